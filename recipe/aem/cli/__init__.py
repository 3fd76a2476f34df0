"""The command `aem`: its subcommands, what they print, and how they fail. The work is done elsewhere."""

from __future__ import annotations

import typer

from recipe.aem.cli import alfworld, doctor, eval, replay, report, study, webshop

app = typer.Typer(
    name="aem",
    help="""AEM for verl: prepare data, train, and see what training did.

Start with a benchmark's data; this ends by printing the command that trains on it:

    aem data webshop
    aem data alfworld

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
    aem data webshop --generated      # a made-up catalogue, at once
    aem data alfworld                 # 3,827 games, from the internet
    aem data alfworld --from DIR      # from games you have""",
    rich_markup_mode="markdown",
    no_args_is_help=True,
)
app.add_typer(data, name="data")
data.command("webshop")(webshop.webshop)
data.command("alfworld")(alfworld.alfworld)
app.command("doctor")(doctor.doctor)
app.command("eval")(eval.evaluate)
app.command("replay", cls=replay.ReplayCommand)(replay.replay)
app.command("report")(report.report)
app.add_typer(study.app, name="study")


@app.callback()
def _root() -> None:
    """Keeps `aem data` a subcommand; typer would fold an only one into the root."""
