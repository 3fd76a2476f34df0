"""verl's asynchronous trainers on a CPU, two steps each: the workers' loss sees what plain loops compute, as in sync.

Both trainers hand out the next prompts before a step is over, so trajectories of a step are of several versions of the
model. Not covered: that they are faster, trajectories that are dropped for their age, a resume.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from by_hand import Checked, check_step
from engine import Run

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def train_mode(train_shopper, folder: Path):
    """`train_mode(mode, *overrides)`: two steps, which leave a dump."""

    def run(mode: str, *overrides: str) -> Run:
        return train_shopper(
            mode,
            f"trainer.v1.trainer_mode={mode}",
            "trainer.total_training_steps=2",
            f"algorithm.dump.dir={folder / mode}_dump",
            *overrides,
        )

    return run


def check_alpha(checked: list[Checked]) -> None:
    responses = [one for batch in checked for one in batch.responses]
    assert max(abs(one.alpha - 1) for one in responses) > 0.05
    assert max(abs(one.alpha - 1) for one in responses if one.base) > 0.05, "α met no advantage"


def check_dump(folder: Path, batches: int) -> None:
    """The dump gives the workers' advantages back: that of every batch of both steps."""
    from recipe.aem.dump.reader import find_files, read_step
    from recipe.aem.tools.replay.advantages import check

    steps = [read_step(path) for path in find_files([folder])]
    assert [step.meta.step for step in steps] == sorted([1, 2] * batches)
    for step in steps:
        checked = check(step)
        assert checked.exact and checked.responses >= 4 * 8 // batches, checked


def test_colocate_async(train_mode, folder: Path):
    """The trainer interrupts rollouts for its update, and they go on with new weights; trajectories weigh equally."""
    run = train_mode("colocate_async", "algorithm.balance=trajectory")
    assert sorted(run.metrics) == [1, 2]
    check_alpha([check_step(run.probes, step, run.metrics[step], balanced=True) for step in (1, 2)])
    check_dump(folder / "colocate_async_dump", batches=1)
    # the step's trajectories were begun before the update of the step before
    assert run.metrics[2]["training/off_policy/trajectory_staleness_worst/max"] >= 1


def test_separate_async(train_mode, folder: Path):
    """Rollouts have an engine of their own beside the trainer's; weights reach it over sockets, every second update."""
    run = train_mode(
        "separate_async",
        "trainer.v1.separate_async.parameter_sync_step=2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=1",
        # the trainer's logical "GPU", and the rollouts'
        "ray_kwargs.ray_init.num_gpus=2",
    )
    assert sorted(run.metrics) == [1, 2]
    # verl combines the metrics of a step's two batches
    check_alpha([check_step(run.probes, step, None, number=batch) for step in (1, 2) for batch in (0, 1)])
    check_dump(folder / "separate_async_dump", batches=2)
    # both batches of the first step are of the first weights, and so are their old log-probabilities: for the second
    # batch, verl brings them back
    assert run.metrics[1]["training/rollout_probs_diff_max"] < 1e-3
    assert run.metrics[2]["training/off_policy/trajectory_staleness_worst/max"] >= 1
