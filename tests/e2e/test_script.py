"""The unmodified 7B script, with the CPU machine file, the tiny model and two steps.

It covers the script's own path: set-up (nothing to do here), tasks, the full prompt, the KL loss's reference model.
Not covered: whether 7B fits on eight GPUs (tests/recipe composes and validates the settings), validation, learning.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from by_hand import check_step
from engine import ROOT, Run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def data(shop_data: Path) -> Path:
    """WebShop's 1,000 products where they are; they cannot be shipped."""
    for place in (os.environ.get("AEM_WEBSHOP_DATA"), ROOT.parent / "shared" / "data" / "webshop"):
        if place and (Path(place) / "goals.json").is_file():
            print(f"WebShop's own data: {place}")
            return Path(place)
    print("WebShop's own data are not here: the generated catalogue stands in")
    return shop_data


@pytest.fixture(scope="module")
def run(run_script, data: Path) -> Run:
    return run_script(
        "script",
        "run_webshop_7b.sh",
        env={"WEBSHOP_DATA": str(data)},
    )


def test_two_steps_of_the_script(run: Run, folder: Path):
    assert sorted(run.metrics) == [1, 2]
    for step, metrics in run.metrics.items():
        check_step(run.probes, step, metrics)
        assert math.isfinite(metrics["actor/pg_loss"])
        assert math.isfinite(metrics["actor/kl_loss"])
        rows = json.loads((run.probes / f"step_{step:03d}.json").read_text())
        faults = {row["extra_fields"]["fault"] for row in rows if not row["is_padding"]}
        assert faults == {""}
    assert (folder / "script_output" / "checkpoints" / "global_step_2" / "actor").is_dir()
    assert (folder / "script_output" / "tasks" / "train.parquet").is_file()
    # its last words are the command that evaluates the checkpoint
    assert "trainer.val_only=true" in run.log.read_text().splitlines()[-1]
