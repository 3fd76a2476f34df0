"""The main job: verl's trainer on a processor, `adv_estimator=aem`, from a policy that shops a little.

The advantages are read where they count, in the worker's loss function. Not covered: whether the policy improves (the
demo shows it), GPUs, more than one worker, the async trainer modes, other bases than `grpo_rows`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from by_hand import check_step
from engine import Run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

MOST_ROWS = 24  # of a mini-batch; a batch is filled up to a multiple of it


@pytest.fixture(scope="module")
def train_shopper(train, folder: Path, shop_data: Path, shop_parquet: Path, shopper: Path):
    def run(name: str, *overrides: str) -> Run:
        return train(
            name,
            "webshop_demo",
            "data.train_batch_size=4",
            "actor_rollout_ref.rollout.n=8",
            f"actor_rollout_ref.actor.ppo_mini_batch_size={MOST_ROWS // 8}",
            "actor_rollout_ref.rollout.custom.episode.max_turns=6",
            "trainer.val_before_train=false",
            "trainer.test_freq=-1",
            f"trainer.default_local_dir={folder / 'checkpoints'}",
            *overrides,
            env={"AEM_MODEL": str(shopper), "WEBSHOP_DATA": str(shop_data), "WEBSHOP_PARQUET": str(shop_parquet)},
        )

    return run


@pytest.fixture(scope="module")
def three_steps(train_shopper) -> Run:
    return train_shopper("three_steps", "trainer.total_training_steps=3", "trainer.save_freq=3")


@pytest.fixture(scope="module")
def resumed(train_shopper, three_steps: Run) -> Run:
    return train_shopper("resumed", "trainer.resume_mode=auto", "trainer.total_training_steps=4")


def test_the_workers_loss_sees_what_a_plain_loop_computes(three_steps: Run):
    checked = [check_step(three_steps.probes, step, three_steps.metrics[step]) for step in (1, 2, 3)]

    responses = [one for step in checked for one in step.responses]
    assert all(step.rows >= 4 * 8 for step in checked)
    assert max(abs(one.alpha - 1) for one in responses) > 0.05
    assert max(abs(one.alpha - 1) for one in responses if one.base) > 0.05, "α met no advantage"
    assert any(step.guarded < len(step.ranges) for step in checked)
    assert any(step.padding for step in checked), "no step was filled up; change MOST_ROWS"


def test_it_runs_three_steps_and_leaves_a_checkpoint(three_steps: Run, folder: Path):
    assert sorted(three_steps.metrics) == [1, 2, 3]
    assert (folder / "checkpoints" / "global_step_3" / "actor").is_dir()


def test_the_resumed_run_goes_on_at_step_four(resumed: Run):
    assert sorted(resumed.metrics) == [4]
    assert resumed.metrics[4]["training/global_step"] == 4
    # the estimator works after a resume too
    check_step(resumed.probes, 4, resumed.metrics[4])
