"""How much memory and how many processes a process and its descendants hold, from /proc."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


def descendants(pid: int) -> Iterator[int]:
    """Yield a process and all its descendants; those that end meanwhile may be missing."""
    waiting = [pid]
    while waiting:
        yield (one := waiting.pop())
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                with contextlib.suppress(OSError):
                    waiting.extend(map(int, (task / "children").read_text().split()))


def _kilobytes(text: str, *names: str) -> int:
    found = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return sum(int(found.get(name, "0").split()[0]) for name in names)


class ResourceWatch:
    """Says why a process and its descendants have too much, or None.

    Memory that several of them share is counted once: where the sum of what each has in memory is above the limit,
    the proportional share of each decides.

    Args:
        memory_mb: what they may hold together, files apart.
        processes: how many threads they may have together.
    """

    def __init__(self, memory_mb: int, processes: int) -> None:
        self._memory_kb, self._processes = memory_mb * 1024, processes

    def __call__(self, pid: int) -> str | None:
        threads, resident = 0, {}
        for one in descendants(pid):
            with contextlib.suppress(OSError, ValueError):
                status = Path(f"/proc/{one}/status").read_text(errors="replace")
                threads += _kilobytes(status, "Threads")
                resident[one] = _kilobytes(status, "RssAnon", "RssShmem")
        if threads > self._processes:
            return f"it had more than {self._processes} processes and threads"
        if sum(resident.values()) <= self._memory_kb:
            return None
        for one in resident:
            with contextlib.suppress(OSError, ValueError):
                rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
                resident[one] = _kilobytes(rollup, "Pss_Anon", "Pss_Shmem")
        if sum(resident.values()) <= self._memory_kb:
            return None
        return f"it held more than {self._memory_kb // 1024} MB of memory"
