"""What the commands share: where they print, how they fail, and the last words of `aem data`."""

from __future__ import annotations

import logging
import shlex
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
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


def add_tasks(table: Table, counts: Mapping[str, int], parquet: Path) -> None:
    """Add the parquet files of a benchmark's splits to a table of files."""
    for split, count in counts.items():
        path = parquet / f"{split}.parquet"
        table.add_row(path.name, f"{count:,}", f"{path.stat().st_size / 1e6:,.1f}", "", "tasks for verl")


def say_next(
    benchmark: str, config: str, directory: Path, parquet: Path, seconds: float, given: Sequence[str] = ()
) -> None:
    """Print the command that trains on what has been prepared.

    Args:
        benchmark: its name, which is in the names of the script's variables.
        config: the configuration, and the script `run_CONFIG.sh`.
        directory: the data.
        parquet: the tasks.
        seconds: how long preparing took.
        given: arguments for the script, which otherwise makes its own tasks.
    """
    import verl_aem

    where = {f"{benchmark}_DATA": directory.resolve(), f"{benchmark}_PARQUET": parquet.resolve()}
    script = Path(verl_aem.__file__).resolve().parents[1] / "scripts" / f"run_{config}.sh"
    if script.is_file():
        shown = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script
        command = " ".join(["bash", shlex.quote(str(shown)), *given])
        del where[f"{benchmark}_PARQUET"]  # the script writes its own
    else:  # installed without the checkout
        command = f"python -m verl.trainer.main_ppo --config-path=pkg://recipe.aem.config --config-name={config}"
    settings = " ".join(f"{name}={shlex.quote(str(value))}" for name, value in where.items())
    out.print(f"Ready in {seconds:.0f} s. Next, on a node with GPUs:\n")
    out.print(f"  {settings} {command}", soft_wrap=True, markup=False)


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
