"""`aem data alfworld`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recipe.aem.tools.cli.shared import AGAIN, add_tasks, explained, files_table, out, say_next

if TYPE_CHECKING:
    from agent_loops.alfworld.download import SplitFiles

HOME = Path("outputs/alfworld")


def alfworld(
    to: Annotated[
        Path | None,
        typer.Option(help="Where the games go.", file_okay=False, show_default=str(HOME)),
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Games you have; nothing is fetched. A directory with json_2.1.1 (an ALFWORLD_DATA), used where it "
            "lies and never written to (with --to, a link to it is put there); or the archive, which is unpacked.",
            exists=True,
        ),
    ] = None,
    mirror: Annotated[
        str | None,
        typer.Option(help="The address of a folder with the archive, asked instead of GitHub.", metavar="URL"),
    ] = None,
    parquet: Annotated[
        Path | None,
        typer.Option(help="Where verl's parquet files go.", file_okay=False, show_default="TO/tasks"),
    ] = None,
) -> None:
    """ALFWorld: 3,553 games to train on, 140 and 134 to validate.

    Fetches the games (37 MB, 330 MB unpacked), reads and verifies every one of them, writes verl's parquet files, and
    prints the command that trains on them.

        aem data alfworld                                 # from GitHub, into outputs/alfworld
        aem data alfworld --from ~/.cache/alfworld        # what alfworld-download left there
        aem data alfworld --from json_2.1.3_tw-pddl.zip   # the archive, fetched by hand

    Interrupted? Run the same command again: it goes on where it stopped. Where GitHub cannot be reached, the message
    says which address to open by hand.
    """
    if from_ and mirror:
        raise typer.BadParameter("--from fetches nothing: leave out --mirror")
    with explained(_errors, "alfworld", AGAIN):
        began = time.monotonic()
        home = to or HOME
        directory, splits = _games(home, to is not None, from_, mirror)
        parquet = parquet or home / "tasks"
        _tasks(directory, parquet, splits)
        say_next("ALFWORLD", "alfworld_7b", directory, parquet, time.monotonic() - began)


def _errors() -> tuple[type[Exception], ...]:
    from agent_loops.alfworld import GameError
    from agent_loops.download import DownloadError

    return DownloadError, FileExistsError, GameError


def _games(home: Path, link: bool, source: Path | None, mirror: str | None) -> tuple[Path, list[SplitFiles]]:
    """Returns the data directory and its splits."""
    from agent_loops.alfworld import download

    if source is None:
        return home, download.fetch_games(home, mirror)
    if download.find_root(source) is None and (archive := download.find_archive(source)) is not None:
        return home, download.check_games(download.unpack(archive, home))
    root = download.require_root(source)
    splits = download.check_games(root)
    if not link:
        return source, splits
    download.link_games(root, home)
    return home, splits


def _tasks(directory: Path, parquet: Path, splits: list[SplitFiles]) -> None:
    from agent_loops.alfworld import Alfworld
    from agent_loops.dataset import write_parquet

    benchmark = Alfworld(directory)
    environment = benchmark.make()
    for split in benchmark.task_set.splits:  # one of each can be played, before a run finds out
        environment.reset(benchmark.task_set.tasks(split)[0])
    environment.close()
    counts = write_parquet(benchmark, parquet)

    table = files_table(f"ALFWorld in {directory}", "Games")
    for split in splits:
        note = "as published" if split.published else "another version"
        table.add_row(split.name, f"{split.n_games:,}", f"{split.n_bytes / 1e6:,.1f}", split.sha256[:12], note)
    add_tasks(table, counts, parquet)
    out.print(table)
    out.print(f"{sum(counts.values()):,} games; tasks in {parquet}", soft_wrap=True)
