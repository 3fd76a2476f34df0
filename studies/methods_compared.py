"""The table and the figure of docs/methods_compared.md, made from the committed CSVs alone.

    aem study table studies/methods.yaml --out outputs/methods --csv studies/results/methods_seed1.csv
    python studies/methods_compared.py

All `studies/results/methods_seed*.csv` count, so that seeds can be run on different machines.

The figure's numbers are computed anew from a step that the replica of verl's loop plays, which takes a minute or two,
or from a step of a training (`algorithm.dump.dir`):

    python studies/methods_compared.py --play
    python studies/methods_compared.py --dump outputs/dump/step_000001.parquet

The table stands in the page between `<!-- compared -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from evidence_parts import advantages
from evidence_parts.compared import compared
from evidence_parts.first_step import first_step
from evidence_parts.runs import Run, runs_of

from recipe.aem.dump.reader import read_step
from recipe.aem.tools.study.cells import cells
from recipe.aem.tools.study.file import Study, read_study

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "studies" / "methods.yaml"
RESULTS, RUNS = ROOT / "studies" / "results", "methods_seed*.csv"
ADVANTAGES = RESULTS / "methods_advantages.csv"
PAGE = ROOT / "docs" / "methods_compared.md"
FIGURE = ROOT / "docs" / "evidence" / "methods_advantages.png"
PROMPTS = 32
"""Of the step that is played."""
_BLOCK = re.compile(r"(<!-- compared -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(page: str, study: Study, found: Sequence[Run]) -> str:
    """Return the page with its table filled in from the runs."""
    table = compared(found, list(study.methods), study.seeds)
    return _BLOCK.sub(lambda block: f"{block[1]}{table}\n{block[2]}", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--play", action="store_true", help="play the step of which the figure is to be")
    one.add_argument("--dump", type=Path, help="a dumped step, of which the figure is to be")
    options = parser.parse_args()
    found = runs_of(RESULTS, RUNS)
    study = read_study(STUDY)
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), study, found), encoding="utf-8")
    print(f"{PAGE}: {len(found)} runs")
    if options.play or options.dump:
        step = read_step(options.dump) if options.dump else first_step(cells(study, ROOT / "outputs")[0], PROMPTS)
        ADVANTAGES.write_text(advantages.as_csv(advantages.measure(step)), encoding="utf-8")
    print(advantages.draw(advantages.read(ADVANTAGES), FIGURE))


if __name__ == "__main__":
    main()
