"""`aem eval` of a checkpoint that verl saved: exactly the figures of the training's own validation.

Validation is greedy, since sampling is not reproducible: the engine sees requests in a different order each time.
Not covered: Hugging Face checkpoints and several seeds (tests/recipe/tools/test_cli_eval.py, with a stand-in for verl).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from engine import main_ppo, run_engine

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(900)]
TASKS = 32


@pytest.fixture(scope="module")
def env(shop_data: Path, shop_parquet: Path, shopper: Path) -> dict[str, str]:
    return {"AEM_MODEL": str(shopper), "WEBSHOP_DATA": str(shop_data), "WEBSHOP_PARQUET": str(shop_parquet)}


@pytest.fixture(scope="module")
def trained(folder: Path, env: dict[str, str]) -> dict[str, float]:
    """One step, saved and validated."""
    validation = "actor_rollout_ref.rollout.val_kwargs"
    overrides = [
        *("data.train_batch_size=4", "actor_rollout_ref.rollout.n=4", f"data.val_max_samples={TASKS}"),
        *("actor_rollout_ref.actor.ppo_mini_batch_size=4", "actor_rollout_ref.rollout.custom.episode.max_turns=6"),
        *(f"{validation}.temperature=0", f"{validation}.do_sample=false", "trainer.val_before_train=false"),
        *("trainer.total_training_steps=1", "trainer.test_freq=1", "trainer.save_freq=1"),
        f"trainer.default_local_dir={folder / 'eval_checkpoints'}",
    ]
    return run_engine("eval_train", folder, main_ppo("webshop_demo", *overrides), env, probed=False).metrics[1]


def test_it_says_what_the_training_said(trained: dict[str, float], folder: Path, env: dict[str, str]):
    checkpoints = str(folder / "eval_checkpoints")
    command = [
        *(sys.executable, "-m", "verl_aem.command", "eval", checkpoints, "--config", "webshop_demo"),
        *("--greedy", "--tasks", str(TASKS), "--out", str(folder / "eval"), "--json", str(folder / "eval.json")),
        "actor_rollout_ref.rollout.custom.episode.max_turns=6",
    ]
    run = run_engine("eval", folder, command, env, probed=False)
    found = json.loads((folder / "eval.json").read_text())
    summary = found["summary"]
    assert found["checkpoint"]["step"] == 1 and summary["tasks"] == summary["episodes"] == TASKS
    logged = {
        "success": "val-core/webshop/acc",
        "score": "val-aux/webshop/task_score",
        "turns": "val-aux/webshop/turns",
    }
    for ours, theirs in logged.items():
        assert summary[ours]["mean"] == pytest.approx(trained[f"{theirs}/mean@1"], abs=1e-9), ours
    assert 0 < summary["score"]["mean"] < 1, "a score that says something"
    assert summary["faults"] == summary["lost"] == 0
    said = run.log.read_text()
    # `playing`, its progress, is said only where episodes outlast verl's interval between two lines about them
    assert "32 of 500 of the split validation" in said and "95 % interval" in said
