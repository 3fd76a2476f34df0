"""The command `aem`: its subcommands, what they print, and how they fail. The work is done elsewhere."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from agent_loops.webshop.download import DataFile

app = typer.Typer(
    name="aem",
    help="""AEM for verl: prepare data, train, and see what training did.

Start with a benchmark's data; this ends by printing the command that trains on it:

    aem data webshop

Every command explains itself with --help.""",
    rich_markup_mode="markdown",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data = typer.Typer(
    help="""Fetch, verify and prepare a benchmark's data.

A benchmark's files are fetched once, checked, and turned into the parquet files that verl reads. Run a command again
whenever you like: what is there is verified, what is missing is fetched, an interrupted download goes on.

    aem data webshop                  # 1,000 products, from the internet
    aem data webshop --from DIR       # from files you have
    aem data webshop --generated      # a made-up catalogue, at once""",
    rich_markup_mode="markdown",
    no_args_is_help=True,
)
app.add_typer(data, name="data")

out = Console(highlight=False)
if not out.is_terminal:
    out.width = 100  # a log: no narrower than the widest table
err = Console(stderr=True, highlight=False, soft_wrap=True)


class WebShopSet(StrEnum):
    """WebShop's published sets."""

    small = "small"
    full = "full"


@app.callback()
def _root() -> None:
    """Keeps `aem data` a subcommand; typer would fold an only one into the root."""


@data.command("webshop")
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
    with _failures():
        began = time.monotonic()
        directory, home, files = _webshop_files(set_, to, from_, mirror, generated)
        parquet = parquet or home / "tasks"
        _webshop_tasks(directory, parquet, validation, files)
        _say_next(directory, parquet, validation, time.monotonic() - began)


def _webshop_files(
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


def _webshop_tasks(directory: Path, parquet: Path, validation: int, files: list[DataFile]) -> None:
    from agent_loops.dataset import write_parquet
    from agent_loops.webshop import WebShop
    from agent_loops.webshop.prepared import PreparedCatalogue

    try:
        benchmark = WebShop(directory, n_validation=validation)
    except ValueError as error:  # too few goals for --validation, or data that do not fit together
        raise _stop(str(error).replace("n_validation=", "--validation ")) from None
    counts = write_parquet(benchmark, parquet)
    catalogue = benchmark.catalogue  # a large one has been prepared on disk by now

    table = Table(title=f"WebShop in {directory}", title_justify="left")
    table.add_column("File", no_wrap=True)
    table.add_column("Records", justify="right", no_wrap=True)
    table.add_column("MB", justify="right", no_wrap=True)
    table.add_column("sha256", no_wrap=True)
    table.add_column("", no_wrap=True)
    for file in files:
        note = {True: "as published", False: "another version", None: ""}[file.published]
        table.add_row(file.path.name, f"{file.n_records:,}", f"{file.n_bytes / 1e6:,.1f}", file.sha256[:12], note)
    for split, count in counts.items():
        path = parquet / f"{split}.parquet"
        table.add_row(path.name, f"{count:,}", f"{path.stat().st_size / 1e6:,.1f}", "", "tasks for verl")
    out.print(table)
    out.print(
        f"{len(catalogue.products):,} products, {len(catalogue.goals):,} goals; tasks in {parquet}", soft_wrap=True
    )
    if isinstance(catalogue, PreparedCatalogue):
        out.print(f"search index in {catalogue.directory}", soft_wrap=True)


def _say_next(directory: Path, parquet: Path, validation: int, seconds: float) -> None:
    import verl_aem

    where = {"WEBSHOP_DATA": directory.resolve(), "WEBSHOP_PARQUET": parquet.resolve()}
    script = Path(verl_aem.__file__).resolve().parents[1] / "scripts" / "run_webshop_7b.sh"
    if script.is_file():
        shown = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script
        command = f"bash {shlex.quote(str(shown))}"
        del where["WEBSHOP_PARQUET"]  # the script writes its own, with 500 goals for validation
        if validation != 500:
            parts = (("train", "train_files"), ("validation", "val_files"))
            command += "".join(
                f" data.{key}={shlex.quote(str(parquet.resolve() / split))}.parquet" for split, key in parts
            )
    else:  # installed without the checkout
        command = "python -m verl.trainer.main_ppo --config-path=pkg://recipe.aem.config --config-name=webshop_7b"
    settings = " ".join(f"{name}={shlex.quote(str(value))}" for name, value in where.items())
    out.print(f"Ready in {seconds:.0f} s. Next, on a node with GPUs:\n")
    out.print(f"  {settings} {command}", soft_wrap=True, markup=False)


@contextmanager
def _failures() -> Iterator[None]:
    """Turn what users can put right into a message and exit code 1; everything else keeps its traceback."""
    try:
        from agent_loops.download import DownloadError
        from agent_loops.webshop import CatalogueError
    except ModuleNotFoundError as error:
        raise _stop(
            f"the package {error.name} is missing: pip install 'verl-aem\\[webshop]' installs what the data need"
        ) from None
    try:
        yield
    except (DownloadError, CatalogueError, FileExistsError) as error:
        raise _stop(str(error)) from None
    except ModuleNotFoundError as error:
        raise _stop(f"the package {error.name} is missing: pip install 'verl-aem\\[webshop]' installs it") from None
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        raise _stop(f"{named}{error.strerror or error}") from None
    except KeyboardInterrupt:
        raise _stop("interrupted; run the same command again to go on", code=130) from None


def _stop(message: str, code: int = 1) -> typer.Exit:
    err.print(f"aem: {message}", style="red" if err.is_terminal else "")
    return typer.Exit(code)
