"""Two steps of the ALFWorld script and a validation, on the official games if this machine has them.

It covers the script's own path, the native engine in verl's workers, and success by type in verl's validation. Not
covered: learning; a small model wins no game.
"""

from __future__ import annotations

import json
import math
import os
import tarfile
from pathlib import Path

import pytest
from by_hand import check_step
from engine import ROOT, Run

from tests.helpers.kitchen import write_games

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    """ALFWorld's games; they cannot be shipped."""
    place = Path(os.environ.get("AEM_ALFWORLD_DATA", ROOT.parent / "shared" / "data" / "alfworld"))
    if not (place / "json_2.1.1.tar.xz").is_file():
        print(f"ALFWorld's own games are not at {place}: made-up kitchens stand in")
        return write_games(folder / "kitchens", n_train=40)
    with tarfile.open(place / "json_2.1.1.tar.xz") as archive:
        archive.extractall(folder / "alfworld", filter="data")
    return folder / "alfworld"


@pytest.fixture(scope="module")
def run(run_script, data: Path) -> Run:
    return run_script(
        "alfworld",
        "run_alfworld_7b.sh",
        "data.val_max_samples=12",
        "trainer.test_freq=2",
        env={"ALFWORLD_DATA": str(data)},
    )


def test_two_steps_and_a_validation(run: Run, folder: Path):
    assert sorted(run.metrics) == [1, 2]
    for step, metrics in run.metrics.items():
        check_step(run.probes, step, metrics)
        assert math.isfinite(metrics["actor/pg_loss"]) and math.isfinite(metrics["actor/kl_loss"])
        rows = json.loads((run.probes / f"step_{step:03d}.json").read_text())
        played = [row["extra_fields"] for row in rows if not row["is_padding"]]
        assert {fields["fault"] for fields in played} == {""}
    validation = run.metrics[2]
    by_type = {name: value for name, value in validation.items() if name.startswith("val-aux/alfworld/acc/")}
    assert by_type and all(name.endswith("/mean@1") for name in by_type)
    assert 0 <= validation["val-core/alfworld/acc/mean@1"] <= 1
    assert 0 < validation["val-aux/alfworld/turns/mean@1"] <= 3
    assert validation["val-aux/alfworld/fault/mean@1"] == 0
    assert (folder / "alfworld_output" / "tasks" / "valid_unseen.parquet").is_file()
