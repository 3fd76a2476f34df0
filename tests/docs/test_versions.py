"""docs/versions.md: which verl runs what, and the lines for a recipe on an older verl, inside that verl's own `fit`.

Not covered: a training with verl 0.7 or 0.8; the numbers of the support table, which scripts/test_verl.sh prints.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from recipe.aem.seam.checks import ESTIMATORS_ONLY_VERL, TESTED_VERL
from tests.helpers.support_table import GROUPS, table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
OLDER = ("0.7.1", "0.8.0")
# α of the entropies 0.5, 1.5 and 2.5 of prompt a: H̃ is 0, ½ and 1; b's differ by less than the guard's 0.1 nats
MEAN = (1 + math.exp(-0.5) + math.exp(-1)) / 3
A, B, C = 1 / MEAN, math.exp(-0.5) / MEAN, math.exp(-1) / MEAN
ALPHA = [[A, A, 0, 0], [1, 1, 1, 0], [B, B, 0, C], [1, 0, 0, 0]]


def test_the_page_and_the_checks_name_the_same_versions():
    rows = dict(re.findall(r"^\| ([\d., ]+) \| (.*) \|$", PAGE[: PAGE.index("## ")], re.MULTILINE))
    assert [rows[version] for version in TESTED_VERL] == ["everything"]
    assert all("not the agent loop `environment`" in rows[version] for version in ESTIMATORS_ONLY_VERL)


def test_every_tested_verl_has_its_lines_in_the_support_table_and_none_failed():
    (header, _) = table("", {})
    assert header in PAGE
    lines = re.findall(r"^\| ([\d.]+) \| ([^|\n]+) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert {(version, group) for version, group, *_ in lines} >= {
        (version, group)
        for version in (*TESTED_VERL, *ESTIMATORS_ONLY_VERL)
        for group in GROUPS.values()
        if not group.startswith("engine")
    }
    assert all(int(passed) and not int(failed) for _, _, passed, failed, _ in lines)


def test_the_support_table_counts_by_group():
    contract, loop = "tests/recipe/seam/test_contract_trainer.py::a", "tests/agent_loops/test_loop.py::a"
    outcomes = {"passed": [contract, f"{contract}b"], "error": [contract], "failed": [], "skipped": [loop]}
    assert table("1.2", outcomes)[2:] == ["| 1.2 | contract | 2 | 1 | 0 |", "| 1.2 | loop `environment` | 0 | 0 | 1 |"]


@pytest.mark.parametrize("version", OLDER)
def test_the_lines_for_a_recipe_modulate_inside_an_older_verls_fit(version, tmp_path):
    pytest.importorskip("verl", reason="verl is not installed, and an older one needs the same packages")
    source = Path(sys.prefix) / "older_verl" / version
    if not source.is_dir():
        pytest.skip(f"verl {version} is not in {source}: `bash scripts/test.sh` lays it there, where PyPI is reachable")
    (lines,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "lines.py").write_text(lines, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "helpers" / "older_fit.py", tmp_path / "lines.py"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(source), str(ROOT)))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["verl"] == version
    for name, size in (("grpo", math.sqrt(0.5)), ("rloo", 1.0)):
        signs = [[size] * 4, [size] * 4, [-size] * 4, [-size] * 4]
        for when, factor in (("before", [[float(alpha > 0) for alpha in row] for row in ALPHA]), ("after", ALPHA)):
            expected = [[s * f for s, f in zip(*rows, strict=True)] for rows in zip(signs, factor, strict=True)]
            for row, values in zip(found["advantages"][name][when], expected, strict=True):
                assert row == pytest.approx(values, abs=1e-5), (name, when)
