"""What the commands share: where they print and how they fail."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agent_loops.files import disk_full
from agent_loops.reading import harmless


class SafeConsole(Console):
    """A console on which texts from outside can do nothing: what does not print is shown as Python escapes it."""

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(harmless(text), **settings)


out = SafeConsole(highlight=False)
if not out.is_terminal:
    out.width = 100  # a log: no narrower than the widest table
AGAIN = "interrupted; run the same command again to go on"
err = SafeConsole(stderr=True, highlight=False, soft_wrap=True)


def files_table(title: str, counted: str) -> Table:
    """A table of files: name, what is counted in them, size, checksum, remark."""
    table = Table(title=title, title_justify="left")
    table.add_column("File", no_wrap=True)
    table.add_column(counted, justify="right", no_wrap=True)
    table.add_column("MB", justify="right", no_wrap=True)
    table.add_column("sha256", no_wrap=True)
    table.add_column("", no_wrap=True)
    return table


def use_working_folder() -> None:
    """Let modules of the working folder be imported, as `python -m` does: a benchmark of the user's own."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


@contextmanager
def explained(
    wrong: Callable[[], tuple[type[Exception], ...]], extra: str, interrupted: str = "interrupted"
) -> Iterator[None]:
    """Turn what users can put right into one line and exit code 1; everything else keeps its traceback.

    Args:
        wrong: imports and returns the errors whose messages are for users; those of several lines keep them where they
            say so (`lines = True`).
        extra: of this package, that brings what the command needs.
        interrupted: what is said after Ctrl-C (exit code 130), SIGTERM (143) and SIGHUP (129).
    """

    def missing(error: ModuleNotFoundError) -> typer.Exit:
        return stop(f"the package {error.name} is missing: pip install 'verl-aem[{extra}]' brings it")

    try:
        users = wrong()
    except ModuleNotFoundError as error:
        raise missing(error) from None
    try:
        with ended_by_signals():
            yield
    except users as error:
        text = str(error)
        raise stop(text if getattr(error, "lines", False) else " ".join(text.split())) from None
    except ModuleNotFoundError as error:
        raise missing(error) from None
    except OSError as error:
        if (full := disk_full(error, "")) is not None:
            raise stop(str(full) if full.filename else f"{full.strerror}") from None
        named = f"{error.filename}: " if error.filename else ""
        raise stop(f"{named}{error.strerror or error}") from None
    except KeyboardInterrupt as error:
        raise stop(interrupted, code=getattr(error, "exit_code", 130)) from None


class Ended(KeyboardInterrupt):
    """A signal asks this process to end: the way out is that of Ctrl-C, whatever the signal."""

    def __init__(self, number: int):
        super().__init__()
        self.exit_code = 128 + number


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise `Ended`, once: a second one does not cut the way out short.

    What the caller had this process ignore (`nohup`, `&` in a script) stays ignored.
    """
    numbers = [one for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) != signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # signals are the main thread's

    def end(number: int, _: Any) -> None:
        for one in numbers:
            signal.signal(one, signal.SIG_IGN)
        raise Ended(number)

    before = {one: signal.signal(one, end) for one in numbers}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def ended(status: int) -> None:
    """End as a process did that this command ran in its terminal; return where that went well."""
    if status == 128 + signal.SIGINT:
        # by the signal itself, so that the calling shell ends too, and what called it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    if status:
        raise typer.Exit(status)


@contextmanager
def quietly() -> Iterator[None]:
    """Without what foreign packages say when they are imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def stop(message: str, code: int = 1) -> typer.Exit:
    """Print why the command ends, on standard error; returns what to raise."""
    err.print(f"aem: {message}", style="red" if err.is_terminal else "", markup=False)
    return typer.Exit(code)
