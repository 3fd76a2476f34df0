"""Progress display of the demo: bars in a terminal; plain lines, flushed at once, in a file or a pipe."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

EVERY_STEPS = 5
"""Training steps between two lines."""
EVERY_SHARE = 0.25
"""The part of a piece of work between two lines, where it has no steps."""


class Display(Protocol):
    """Shows the stages of the demo, one after the other."""

    def stage(self, title: str, total: float) -> None:
        """Begin a stage that is complete at `total`: a number of steps, or 1.0 for a share."""
        ...

    def update(self, work: str, done: float, note: str = "") -> None:
        """Show the current piece of work, the completed share of the stage or of this work, and a remark."""
        ...


@contextmanager
def display(console: Console) -> Iterator[Display]:
    """Show progress on a console for the duration of the context."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield _Bars(progress)


class _Bars:
    """One bar per stage."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def stage(self, title: str, total: float) -> None:
        self.bar = self.progress.add_task(title, total=total, note="")

    def update(self, work: str, done: float, note: str = "") -> None:
        self.progress.update(self.bar, completed=done, note=(note or work).ljust(28))


class _Lines:
    """One line per stage, per new piece of work, and per `EVERY_STEPS` steps or `EVERY_SHARE` of the work."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.began = time.perf_counter()

    def stage(self, title: str, total: float) -> None:
        self.title, self.work, self.due = title, "", 0.0
        self.every = EVERY_STEPS if total > 1 else EVERY_SHARE
        self.total = total
        self._print(title)

    def update(self, work: str, done: float, note: str = "") -> None:
        if work == self.work and done < min(self.due, self.total):
            return
        self.work, self.due = work, done - done % self.every + self.every
        share = f"{done / self.total:.0%}" if self.every == EVERY_SHARE and done else ""
        self._print(f"{self.title}: {', '.join(part for part in (work, note or share) if part)}")

    def _print(self, text: str) -> None:
        seconds = f"{time.perf_counter() - self.began:.0f} s"
        # print, because the console breaks lines at its width
        print(f"[{seconds:>6}] {text}", file=self.console.file, flush=True)
