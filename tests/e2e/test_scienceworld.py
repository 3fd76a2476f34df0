"""Two steps of the ScienceWorld script: the simulator's worker processes below verl's own, none left running.

Not covered: learning; a small model completes no task.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from by_hand import check_step
from engine import Run

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def run(run_script) -> Run:
    if not (shutil.which("java") and find_spec("scienceworld")):
        pytest.skip("ScienceWorld needs Java and the package scienceworld")
    return run_script(
        "scienceworld",
        "run_scienceworld_7b.sh",
    )


def test_two_steps_of_the_script(run: Run):
    assert sorted(run.metrics) == [1, 2]
    for step, metrics in run.metrics.items():
        check_step(run.probes, step, metrics)
        assert math.isfinite(metrics["actor/pg_loss"]) and math.isfinite(metrics["actor/kl_loss"])
        rows = json.loads((run.probes / f"step_{step:03d}.json").read_text())
        played = [row["extra_fields"] for row in rows if not row["is_padding"]]
        assert {fields["fault"] for fields in played} == {""}


def test_nothing_of_the_run_is_left_behind(run: Run, folder: Path):
    output = str(folder / "scienceworld_output")  # whatever the script starts, down to the JVM, inherits AEM_OUTPUT
    left = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if process.environ().get("AEM_OUTPUT") == output:
                left.append(process.info["cmdline"])
    assert left == []
