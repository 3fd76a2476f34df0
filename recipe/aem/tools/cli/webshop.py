"""`aem data webshop`."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recipe.aem.tools.cli.shared import AGAIN, add_tasks, explained, files_table, out, say_next, stop

if TYPE_CHECKING:
    from agent_loops.webshop.download import DataFile


class WebShopSet(StrEnum):
    """WebShop's published sets."""

    small = "small"
    full = "full"


def webshop(
    set_: Annotated[
        WebShopSet | None,
        typer.Option(
            "--set", help="small: 1,000 products, 5 MB. full: 1,181,436 products, 5.7 GB.", show_default="small"
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(help="Where the files go.", file_okay=False, show_default="outputs/webshop_SET"),
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="A directory with WebShop's files, used where they lie and never written to. Nothing is fetched. With "
            "--to, links to them are put there.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    mirror: Annotated[
        str | None,
        typer.Option(
            help="The address of a folder with the files, asked instead of Google Drive and the known mirrors.",
            metavar="URL",
        ),
    ] = None,
    generated: Annotated[
        bool, typer.Option("--generated", help="Write a made-up catalogue: 360 products, 4,000 goals, no download.")
    ] = False,
    parquet: Annotated[
        Path | None,
        typer.Option(help="Where verl's parquet files go.", file_okay=False, show_default="TO/tasks"),
    ] = None,
    validation: Annotated[int, typer.Option(help="How many of the first goals validate; the rest train.", min=1)] = 500,
) -> None:
    """WebShop: products, goals, search index and tasks.

    Fetches the set, verifies it (checksums, counts, goals that fit the products), prepares the search index, writes
    verl's parquet files, and prints the command that trains on them.

        aem data webshop                                # the small set
        aem data webshop --set full --to /data/shop     # everything: 5.7 GB
        aem data webshop --from ~/webshop/data          # files you have
        aem data webshop --generated                    # a made-up catalogue

    Interrupted? Run the same command again: it goes on where it stopped. Where a source refuses (Google Drive often
    does), the next one is tried; when all do, the message says which address to open by hand.
    """
    if generated and (set_ or from_ or mirror):
        raise typer.BadParameter("--generated makes its own files: leave out --set, --from and --mirror")
    if from_ and mirror:
        raise typer.BadParameter("--from fetches nothing: leave out --mirror")
    with explained(_errors, "webshop", AGAIN):
        began = time.monotonic()
        directory, home, files = _files(set_, to, from_, mirror, generated)
        parquet = parquet or home / "tasks"
        _tasks(directory, parquet, validation, files)
        # of the configuration; what verl draws is that
        given = [] if validation == 500 else [f"actor_rollout_ref.rollout.custom.benchmark.n_validation={validation}"]
        say_next("WEBSHOP", "webshop_7b", directory, parquet, time.monotonic() - began, given)


def _errors() -> tuple[type[Exception], ...]:
    from agent_loops.download import DownloadError
    from agent_loops.webshop import CatalogueError

    return DownloadError, FileExistsError, CatalogueError


def _files(
    set_: WebShopSet | None, to: Path | None, from_: Path | None, mirror: str | None, generated: bool
) -> tuple[Path, Path, list[DataFile]]:
    """Returns the data directory, the one for what is written, and the files."""
    from agent_loops.webshop import download
    from agent_loops.webshop.generate import generate_catalogue

    if generated:
        home = to or Path("outputs/webshop")
        generate_catalogue(home)
        name, paths = download.choose_files(home)
        return home, home, download.check_files(name, paths)  # no manifest: the next version may make others
    if from_ is None:
        name = set_ or WebShopSet.small
        home = to or Path(f"outputs/webshop_{name}")
        return home, home, download.fetch_set(name, home, mirror)
    name, paths = download.choose_files(from_, set_)
    home = to or Path(f"outputs/webshop_{name}")
    files = download.check_files(name, paths, home)
    if to is None and not download.needs_links(from_):
        return from_, home, files
    download.link_files(paths, home)
    return home, home, files


def _tasks(directory: Path, parquet: Path, validation: int, files: list[DataFile]) -> None:
    from agent_loops.dataset import write_parquet
    from agent_loops.webshop import WebShop
    from agent_loops.webshop.prepared import PreparedCatalogue

    try:
        benchmark = WebShop(directory, n_validation=validation)
    except ValueError as error:  # too few goals for --validation, or data that do not fit together
        raise stop(str(error).replace("n_validation=", "--validation ")) from None
    counts = write_parquet(benchmark, parquet)
    catalogue = benchmark.catalogue  # a large one has been prepared on disk by now

    table = files_table(f"WebShop in {directory}", "Records")
    for file in files:
        note = {True: "as published", False: "another version", None: ""}[file.published]
        table.add_row(file.path.name, f"{file.n_records:,}", f"{file.n_bytes / 1e6:,.1f}", file.sha256[:12], note)
    add_tasks(table, counts, parquet)
    out.print(table)
    out.print(
        f"{len(catalogue.products):,} products, {len(catalogue.goals):,} goals; tasks in {parquet}", soft_wrap=True
    )
    if isinstance(catalogue, PreparedCatalogue):
        out.print(f"search index in {catalogue.directory}", soft_wrap=True)
