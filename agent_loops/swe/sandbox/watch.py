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
        # a second time, because shares grow from one reading to the next while some of the processes end
        if min(_shares(resident), _shares(resident)) <= self._memory_kb:
            return None
        return f"it held more than {self._memory_kb // 1024} MB of memory"


def _shares(resident: dict[int, int]) -> int:
    """The memory of processes in kB, what they share counted once; `resident` serves for those that may not be read."""
    total = 0
    for pid, whole in resident.items():
        try:
            total += _kilobytes(Path(f"/proc/{pid}/smaps_rollup").read_text(), "Pss_Anon", "Pss_Shmem")
        except PermissionError:
            total += whole
        except OSError:
            pass  # it is gone
    return total
