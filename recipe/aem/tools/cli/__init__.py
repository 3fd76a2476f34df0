"""The command `aem`: its subcommands, what they print, and how they fail. The work is done elsewhere."""

from __future__ import annotations

import typer

from recipe.aem.tools.cli import alfworld, doctor, eval, replay, report, study, webshop

app = typer.Typer(
    name="aem",
    help="""AEM for verl: prepare data, train, and see what training did.

In the order of a project:

    aem data webshop                    # data, and the command that trains
    aem doctor webshop_7b               # would a run start?
    aem report outputs/webshop_7b_aem   # what happened in it
    aem replay outputs/DUMP             # other methods, same rollouts
    aem eval outputs/webshop_7b_aem     # how good is the checkpoint?
    aem study run FILE                  # methods × seeds × benchmarks

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
