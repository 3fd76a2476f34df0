"""What the other engine tests leave out of the shipped methods, in verl's real worker, each run against plain loops.

* SAMPO (GSPO's ratio, GiGPO's advantages, the group filter), with `algorithm.balance=trajectory` and
  `algorithm.updates_per_step`;
* KL-Cov, with AEM over HGPO;
* Clip-Cov, with ECPO.

In each run a turn is a row. Not covered: several ranks, learning, balance over tokens (test_trainers.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import pytest
from by_hand import compare_rows, find_responses, modulate, on_tokens, share_equally
from engine import ROOT, Run

from agent_loops.dataset import write_parquet
from recipe.aem.tools.demo.shopping import open_shop

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(900)]

GAMMA, HISTORY, KAPPA, UPDATES = 0.95, 2, 2.0, 3
CLIP_COV = 0.01, 5.0
EPISODE = "actor_rollout_ref.rollout.custom.episode"
SETTINGS = (
    "data.train_batch_size=4",
    # of 3 tasks, less than a step has: several mini-batches
    "actor_rollout_ref.actor.ppo_mini_batch_size=3",
    # one micro-batch a mini-batch: Clip-Cov and KL-Cov choose tokens of a micro-batch
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=65536",
    # the small model wins one game in ten; charged by their length, responses differ in any case
    f"{EPISODE}.overlong_buffer=1.0",
    f"{EPISODE}.overlong_penalty=5.0",
)


@pytest.fixture(scope="module")
def train_winner(train: Callable[..., Run], folder: Path) -> Callable[..., Run]:
    """`train_winner(name, *overrides)`: one step of the demo's configuration, from the study's warm start.

    It is the smallest model at hand that sometimes wins, without which no group has different outcomes.
    """
    shop = open_shop(folder / "study_shop")
    write_parquet(shop, folder / "study_tasks")
    env = {"WEBSHOP_DATA": str(folder / "study_shop"), "WEBSHOP_PARQUET": str(folder / "study_tasks")}
    env["AEM_MODEL"] = str(ROOT / "studies" / "shop" / "warm_start")

    def run(name: str, *overrides: str) -> Run:
        return train(name, "webshop_demo", *SETTINGS, "trainer.total_training_steps=1", *overrides, env=env)

    return run


@dataclass
class Turn:
    """A row: one response, with what the methods compare it by."""

    row: dict
    group: str
    trajectory: str
    index: int
    anchor: str
    action: str
    reward: float
    value: float = 0.0


def turns_of(rows: list[dict]) -> list[Turn]:
    """The turns of a step in the order of its rows, each with its discounted return."""
    found = []
    for row in rows:
        extra, (trajectory, index) = row["extra_fields"], row["key"].rsplit("_", 1)
        assert len(extra["response_spans"]) == 1, "a row is not a turn"
        of = [extra[name][0] for name in ("anchors", "actions", "turn_penalties")]
        found.append(Turn(row, row["uid"], trajectory, int(index), of[0], of[1], of[2]))
    for name in {one.trajectory for one in found}:
        turns = sorted((one for one in found if one.trajectory == name), key=lambda one: one.index)
        outcome = after = sum(turns[-1].row["rm_scores"])
        for one in reversed(turns):
            if one is not turns[-1]:
                (own,) = one.row["extra_fields"].get("turn_rewards") or [0.0]
                after = own + GAMMA * after
            one.value, one.reward = after + one.reward, outcome + one.reward
    return found


def histories(turns: list[Turn], length: int) -> list[tuple | None]:
    """The group and the last `length` observations of each turn; None where there were fewer."""
    anchors = {(one.trajectory, one.index): one.anchor for one in turns}
    found: list[tuple | None] = []
    for one in turns:
        back = [anchors.get((one.trajectory, one.index - past)) for past in range(length)]
        found.append(None if None in back else (one.group, *back))
    return found


def hgpo(turns: list[Turn]) -> list[float]:
    """Σ w_k A_k / Σ w_k over the levels whose A_k is not 0, w_k = k + 1, A_k the return less the mean of its set."""
    sums, weights = [0.0] * len(turns), [0.0] * len(turns)
    for level in range(1, HISTORY + 2):
        names = histories(turns, level)
        for place, name in enumerate(names):
            same = [one.value for one, other in zip(turns, names, strict=True) if other == name]
            apart = turns[place].value - fmean(same) if name is not None and len(same) > 1 else 0.0
            if apart:
                sums[place] += (level + 1) * apart
                weights[place] += level + 1
    return [of / weight if weight else 0.0 for of, weight in zip(sums, weights, strict=True)]


def episode_terms(turns: list[Turn]) -> list[float]:
    """The outcome, with the turn's penalty, less its mean over the group's responses."""
    return [one.reward - fmean(other.reward for other in turns if other.group == one.group) for one in turns]


def gigpo(turns: list[Turn]) -> list[float]:
    names = histories(turns, 1)
    steps = []
    for place, one in enumerate(turns):
        steps.append(
            one.value - fmean(other.value for other, name in zip(turns, names, strict=True) if name == names[place])
        )
    return [episode + step for episode, step in zip(episode_terms(turns), steps, strict=True)]


def ecpo(turns: list[Turn]) -> list[float]:
    """Add ρ (μ̃ − μ) of the turn's action among those that answered its observation."""
    names, found = histories(turns, 1), episode_terms(turns)
    for place, one in enumerate(turns):
        same = [other for other, name in zip(turns, names, strict=True) if name == names[place]]
        mean = fmean(other.value for other in same)
        by_action = {
            action: [other.value for other in same if other.action == action] for action in {o.action for o in same}
        }
        between = sum(len(values) * (fmean(values) - mean) ** 2 for values in by_action.values())
        within = sum((value - fmean(values)) ** 2 for values in by_action.values() for value in values)
        if len(by_action) > 1 and between + within:
            values = by_action[one.action]
            shrunk = (sum(values) + KAPPA * mean) / (len(values) + KAPPA)
            found[place] += between / (between + within) * (shrunk - mean)
    return found


@dataclass(frozen=True)
class Seen:
    """A step: the rows that are not verl's padding, the number of those that are, and what the loss was given."""

    rows: list[dict]
    padding: int
    loss: list[dict]

    @classmethod
    def of(cls, run: Run, step: int) -> Seen:
        batch = json.loads((run.probes / f"step_{step:03d}.json").read_text())
        rows = [row for row in batch if not row["is_padding"]]
        loss = [json.loads(line) for line in (run.probes / f"loss_{step:03d}.rank0.jsonl").read_text().splitlines()]
        return cls(rows, len(batch) - len(rows), loss)

    @property
    def mini_batches(self) -> list[list[dict]]:
        """The rows of each; its size in rows and tokens is what verl's worker knew of it."""
        calls = [
            [row for row in self.loss if row["call"] == call] for call in sorted({row["call"] for row in self.loss})
        ]
        for rows in calls:
            assert len(rows) == rows[0]["mini_batch_rows"], "several micro-batches in a mini-batch"
            assert sum(sum(row["response_mask"]) for row in rows) == rows[0]["mini_batch_tokens"]
        return calls


def check_advantages(seen: Seen, base: Callable[[list[Turn]], list[float]], alpha: bool = False, balance: bool = False):
    """Compare the advantages in the worker's loss with the loops; returns the expected ones, a list a row."""
    responses = find_responses(seen.rows)
    assert [one.row for one in responses] == list(range(len(seen.rows)))
    if alpha:
        modulate(responses)
        assert max(abs(one.alpha - 1) for one in responses) > 0.05
    for one, value in zip(responses, base(turns_of(seen.rows)), strict=True):
        one.base = value
    assert sum(abs(one.base) > 1e-3 for one in responses) > len(responses) / 20, "hardly any advantage"
    expected = on_tokens(seen.rows, responses)
    if balance:  # over rows, which SAMPO's loss weighs equally
        expected = share_equally(seen.rows, expected, lambda row: 1)
    # returns of up to 10 cancel each other
    compare_rows(seen.rows, expected, seen.loss, seen.padding, rounding=2e-5)


def masked(row: dict, name: str) -> list[float]:
    return [value for value, one in zip(row[name], row["response_mask"], strict=True) if one]


def moved(seen: Seen) -> float:
    """The largest change of a token's log-probability under the updates of the step."""
    return max(
        abs(new - old)
        for row in seen.loss
        for new, old in zip(masked(row, "log_probs"), masked(row, "old_log_probs"), strict=True)
    )


@pytest.fixture(scope="module")
def sampo(train_winner) -> Run:
    more = ("algorithm.balance=trajectory", f"algorithm.updates_per_step={UPDATES}")
    return train_winner("sampo", "method=sampo", *more)


@pytest.fixture(scope="module")
def kl_cov(train_winner) -> Run:
    return train_winner("kl_cov", "method=kl_cov", "algorithm.adv_estimator=aem", "+algorithm.aem.base_estimator=hgpo")


@pytest.fixture(scope="module")
def clip_cov(train_winner) -> Run:
    # at this size hardly a token's covariance reaches the method's own lower bound of 1
    low = f"actor_rollout_ref.actor.policy_loss.clip_cov_lb={CLIP_COV[0]}"
    return train_winner("clip_cov", "method=clip_cov", "algorithm.adv_estimator=ecpo", low)


def covariances(rows: list[dict]) -> list[float]:
    """(A − Ā)(log π − its mean) of each token of a mini-batch."""
    advantages, log_probs = ([one for row in rows for one in masked(row, name)] for name in ("advantages", "log_probs"))
    mean, centre = fmean(advantages), fmean(log_probs)
    return [(one - mean) * (log_prob - centre) for one, log_prob in zip(advantages, log_probs, strict=True)]


def test_clip_cov_leaves_tokens_out_and_trains_on_ecpos_advantages(clip_cov: Run):
    assert sorted(clip_cov.metrics) == [1]
    chosen = 0
    for step, metrics in clip_cov.metrics.items():
        seen = Seen.of(clip_cov, step)
        check_advantages(seen, ecpo)
        shares = []
        for rows in seen.mini_batches:
            between = [one for one in covariances(rows) if CLIP_COV[0] < one < CLIP_COV[1]]
            tokens = rows[0]["mini_batch_tokens"]
            left_out = min(max(int(2e-4 * tokens), 1), len(between))
            chosen += left_out
            shares.append(left_out / tokens)
        assert metrics["actor/pg_clipfrac"] == pytest.approx(fmean(shares), rel=1e-4)
        assert math.isfinite(metrics["actor/grad_norm"]) and metrics["actor/grad_norm"] > 0
    assert chosen, "no token between the bounds"


def test_kl_cov_penalises_the_tokens_that_covary_most(kl_cov: Run):
    assert sorted(kl_cov.metrics) == [1]
    for step, metrics in kl_cov.metrics.items():
        seen = Seen.of(kl_cov, step)
        check_advantages(seen, hgpo, alpha=True)
        losses, without, changes = [], [], []
        for rows in seen.mini_batches:
            columns = {
                name: [one for row in rows for one in masked(row, name)]
                for name in ("advantages", "log_probs", "old_log_probs")
            }
            change = [n - o for n, o in zip(columns["log_probs"], columns["old_log_probs"], strict=True)]
            tokens = [-a * math.exp(of) for a, of in zip(columns["advantages"], change, strict=True)]
            without.append(fmean(tokens))
            order = sorted(range(len(tokens)), key=covariances(rows).__getitem__, reverse=True)
            for place in order[: max(1, int(2e-4 * len(tokens)))]:
                tokens[place] += abs(change[place])  # β = 1
            losses.append(fmean(tokens))
            changes.append(fmean(map(abs, change)))
        assert metrics["actor/pg_loss"] == pytest.approx(fmean(losses), rel=1e-4, abs=1e-6)
        assert metrics["actor/ppo_kl"] == pytest.approx(fmean(changes), rel=1e-4, abs=1e-7)
        assert fmean(losses) > fmean(without), "no token was penalised"


def test_a_step_has_the_wanted_number_of_updates_of_equal_size(sampo: Run):
    seen = Seen.of(sampo, 1)
    sizes = [len(rows) for rows in seen.mini_batches]
    assert len(sizes) == UPDATES and len(set(sizes)) == 1
    assert seen.padding < UPDATES and sum(sizes) == len(seen.rows) + seen.padding
    assert moved(seen) > 1e-4, "the later updates see a policy that the first has changed"


def test_sampo_clips_rows_of_groups_whose_outcomes_differ(sampo: Run):
    assert sorted(sampo.metrics) == [1]
    clipped = 0.0
    for step, metrics in sampo.metrics.items():
        seen = Seen.of(sampo, step)
        check_advantages(seen, gigpo, balance=True)
        won: dict[str, dict[str, float]] = {}
        for one in turns_of(seen.rows):
            of = won.setdefault(one.group, {})
            of[one.trajectory] = max(of.get(one.trajectory, 0.0), sum(one.row["rm_scores"]))
        assert len(won) == 4 and all(len(set(of.values())) > 1 for of in won.values()), won
        losses, shares = [], []
        for rows in seen.mini_batches:
            sums, above = [], []
            for row in rows:
                if not any(row["response_mask"]):
                    continue
                old, new, advantages = (masked(row, name) for name in ("old_log_probs", "log_probs", "advantages"))
                ratio = math.exp(fmean(n - o for n, o in zip(new, old, strict=True)))
                limited = min(max(ratio, 1 - 3e-4), 1 + 4e-4)
                sums.append(fmean(max(-a * ratio, -a * limited) for a in advantages))
                above += [-a * limited > -a * ratio for a in advantages]
            losses.append(sum(sums) / rows[0]["mini_batch_rows"])
            shares.append(fmean(above))
        assert metrics["actor/pg_loss"] == pytest.approx(fmean(losses), rel=1e-3, abs=1e-5)
        assert metrics["actor/pg_clipfrac"] == pytest.approx(fmean(shares), abs=0.01)
        clipped += fmean(shares)
    assert clipped > 0, "no row was clipped"
