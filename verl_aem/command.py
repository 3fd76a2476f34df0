"""The command `aem`, which starts outside `recipe` for the reason given in `verl_aem`."""

from __future__ import annotations

import importlib
import sys

from verl_aem import uncover_recipe


def main() -> None:
    """Run the command line. `recipe.aem.tools.cli` holds the subcommands."""
    uncover_recipe()
    try:
        cli = importlib.import_module("recipe.aem.tools.cli")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        sys.exit(f"aem: the package {error.name} is missing; `pip install verl-aem` installs it")
    cli.app(prog_name="aem")


if __name__ == "__main__":
    main()
