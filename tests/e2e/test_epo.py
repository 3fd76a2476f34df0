"""EPO's loss in verl's real worker, together with AEM's advantages, and its history across a checkpoint.

The learning rate is 0: the updated policy is then the old policy, whose entropies the probe has saved, so that plain
loops can recompute the worker's results. Not covered: several ranks (tests/recipe), learning.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import pytest
from by_hand import check_step
from engine import Run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

COEF, UPPER, ALPHA, STEPS = 0.5, 1.0, 0.1, 10


@pytest.fixture(scope="module")
def epo(folder: Path) -> list[str]:
    return [
        "method=aem_epo",
        f"algorithm.epo.coef={COEF}",
        f"algorithm.epo.upper={UPPER}",
        f"algorithm.epo.total_steps={STEPS}",
        # several micro-batches in a mini-batch
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=2048",
        "actor_rollout_ref.actor.optim.lr=0",
        f"trainer.default_local_dir={folder / 'epo'}",
    ]


@pytest.fixture(scope="module")
def two_steps(train_shopper, epo: list[str]) -> Run:
    return train_shopper("epo", *epo, "trainer.total_training_steps=2", "trainer.save_freq=2")


@pytest.fixture(scope="module")
def resumed(train_shopper, epo: list[str], two_steps: Run) -> Run:
    return train_shopper("epo_resumed", *epo, "trainer.resume_mode=auto", "trainer.total_training_steps=3")


@dataclass(frozen=True)
class Tokens:
    """The entropies of a step's responses: a list a trajectory of a list a turn."""

    trajectories: list[list[list[float]]]

    @classmethod
    def of(cls, run: Run, step: int) -> Tokens:
        turns: dict[str, list[list[float]]] = {}
        for row in json.loads((run.probes / f"step_{step:03d}.json").read_text()):
            if row["is_padding"]:
                continue
            for start, stop in row["extra_fields"]["response_spans"]:
                kept = [row["entropy"][token] for token in range(start, stop) if row["response_mask"][token]]
                if kept:
                    turns.setdefault(row["key"].rsplit("_", 1)[0], []).append(kept)
        return cls(list(turns.values()))

    def mean(self, of=lambda entropy: entropy) -> float:
        """Over tokens, then turns, then trajectories."""
        return fmean(fmean(fmean(map(of, turn)) for turn in turns) for turns in self.trajectories)


def check_epo(run: Run, step: int, past: list[float]) -> float:
    """The step's mean entropy, after what verl logged has been compared with it."""
    metrics, tokens = run.metrics[step], Tokens.of(run, step)
    entropy, close = tokens.mean(), {"rel": 1e-3, "abs": 1e-5}
    beta = 1 + math.exp(-3 * (step - 1) / (STEPS // 2))
    smoothing = 0.0
    if past:
        reference = fmean(past)
        assert metrics["epo/reference"] == pytest.approx(reference, **close)
        smoothing = ALPHA * tokens.mean(lambda entropy: max(0.0, entropy - UPPER * reference))
        assert smoothing > 0
    else:
        assert "epo/reference" not in metrics
    assert metrics["epo/entropy"] == pytest.approx(entropy, **close)
    assert metrics["epo/beta"] == pytest.approx(beta)
    assert metrics["actor/epo_entropy"] == pytest.approx(entropy, **close)
    assert metrics["actor/epo_smoothing"] == pytest.approx(smoothing, **close)
    assert metrics["actor/epo_loss"] == pytest.approx(-COEF * (entropy - beta * smoothing), **close)
    assert metrics["actor/loss"] == pytest.approx(metrics["actor/pg_loss"] + metrics["actor/epo_loss"], **close)
    assert math.isfinite(metrics["actor/grad_norm"]) and metrics["actor/grad_norm"] > 0
    return entropy


def test_the_worker_computes_what_plain_loops_do_and_the_history_survives_a_resume(
    two_steps: Run, resumed: Run, folder: Path
):
    assert sorted(two_steps.metrics) == [1, 2] and sorted(resumed.metrics) == [3]
    past: list[float] = []
    for step in (1, 2):
        past.append(check_epo(two_steps, step, past))
    saved = json.loads((folder / "epo" / "global_step_2" / "aem_epo.json").read_text())
    assert saved["count"] == 2 and saved["total"] == pytest.approx(sum(past), rel=1e-3)
    check_epo(resumed, 3, past)


def test_aems_advantages_are_what_they_are_without_epo(two_steps: Run):
    for step in (1, 2):
        check_step(two_steps.probes, step, two_steps.metrics[step])
    assert any(two_steps.metrics[step]["actor/pg_loss"] for step in (1, 2)), "no policy loss beside EPO's terms"
