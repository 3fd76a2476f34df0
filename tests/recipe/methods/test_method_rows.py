"""What the shipped methods make of rows: DAPO's resampling, the bases, GRPO++, by verl's own trainer.

Trajectories come from the real agent loop (tests/helpers/scripted.py), queue and rollouts are faked. Not covered:
the estimators' own arithmetic (test_advantage.py, test_bases.py, tests/aem_core) and training runs (tests/e2e).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch

pytest.importorskip("verl", reason="verl is not installed")

from verl.trainer.ppo.v1 import replay_buffer

from tests.helpers.fake_queue import RIGHT, WRONG, Batch, Queue, play, trainer_of
from tests.helpers.methods import METHODS, compose, gradients


@pytest.mark.parametrize("method", ["dapo", "aem_dapo", "sampo"])
def test_dapo_resamples_groups_in_which_all_fared_alike(monkeypatch, method):
    config = compose("webshop_demo", method)
    queue, refills = Queue(), []
    won, lost = play(config, [RIGHT]), play(config, [WRONG, WRONG])
    won_later = play(config, ["hmm", RIGHT])
    assert won_later[0].extra_fields["turn_penalties"] != [0.0], "a turn's penalty must not keep a group alive"
    queue.add("won", [won, won_later])
    queue.add("lost", [lost, lost])
    queue.add("mixed", [won, lost])
    trainer = trainer_of(config, monkeypatch, queue)

    def refill(count: int) -> None:
        first = sum(refills)
        for number in range(first, first + count):
            queue.add(f"fresh{number}", [won, lost])
        refills.append(count)

    trainer._add_prompts_to_generate = refill
    buffer = trainer._build_replay_buffer()
    buffer.poll_interval = 0.0
    batch, metrics = buffer.sample(1, "train", 3)
    assert len({key.split("_")[0] for key in batch.keys}) == 3
    assert not any(key.startswith(("won", "lost")) for key in batch.keys)
    # of four fresh prompts (two for each that was dropped) two are taken
    assert sum(refills) == 4 and metrics["training/filter_groups/evicted_samples"] == 2
    assert metrics["training/filter_groups/discarded_surplus_samples"] == 2
    assert metrics[replay_buffer.DAPO_FILTERED_REWARD_COUNTS_KEY] == {10.0: 1, 0.0: 1}


def failed(rows: list) -> list:
    """The same trajectory, had its environment failed at the end; as `agent_loops.layouts` reports it."""
    rows = copy.deepcopy(rows)
    for row in rows:
        row.reward_score, row.response_mask = 0.0, [0] * len(row.response_mask)
        info = {**row.extra_fields["reward_extra_info"], "acc": 0.0, "fault": 1.0}
        row.extra_fields |= {"fault": "turn 1: OSError: gone", "reward_extra_info": info}
    return rows


@pytest.mark.parametrize("metric", ["reward", "acc"])
@pytest.mark.parametrize("mode", ["sync", "colocate_async"])
def test_dapo_compares_what_faults_leave_of_a_group(monkeypatch, mode, metric):
    overrides = [f"algorithm.filter_groups.metric={metric}", f"trainer.v1.trainer_mode={mode}"]
    config, queue = compose("webshop_demo", "dapo", *overrides), Queue()
    won, lost = play(config, [RIGHT]), play(config, [WRONG, WRONG])
    fault = failed(lost)
    queue.add("winners", [won, won, won, fault])
    queue.add("losers", [lost, fault, lost, fault])
    queue.add("alone", [won, fault, fault, fault])
    queue.add("alone2", [lost, fault])
    queue.add("nothing", [fault, fault])
    queue.add("mixed", [won, lost, fault, fault])
    queue.add("whole", [won, lost])
    buffer = trainer_of(config, monkeypatch, queue)._build_replay_buffer()
    assert type(buffer).__name__ == ("ReplayBuffer" if mode == "sync" else "ReplayBufferAsync")
    for _ in range(2):  # polled again and again, of which verl remembers what it knows
        buffer._sync_metadata_from_transfer_queue()
        dropped, counts = buffer._dapo_filtered_keys("train")
        assert dropped == {"winners", "losers", "alone", "alone2", "nothing"}
        top = 10.0 if metric == "reward" else 1.0
        assert {level: number for level, number in counts.items() if level == level} == {top: 1, 0.0: 1}
        assert sum(counts.values()) == 5 and len(counts) == 3
        # a trajectory of a row and one of two rows
        assert len([key for key in buffer.partitions["train"] if key.startswith("winners_")]) == 5
    assert buffer._dapo_filtered_keys("val") == (set(), {})
    buffer._evict_terminal_groups(1, "train", buffer._terminal_eviction_reasons(1, "train"))
    assert {key.split("_")[0] for key in queue.rows} == {"mixed", "whole"}, "a dropped group goes with its faults"


@pytest.mark.parametrize("method", [name for name in METHODS if "dapo" not in name and name != "sampo"])
def test_the_other_methods_keep_every_group(monkeypatch, method):
    config = compose("webshop_demo", method)
    queue = Queue()
    queue.add("won", [play(config, [RIGHT])] * 2)
    trainer = trainer_of(config, monkeypatch, queue)
    trainer._add_prompts_to_generate = lambda count: pytest.fail("nothing is to be sampled again")
    batch, metrics = trainer._build_replay_buffer().sample(1, "train", 1)
    assert len(batch.keys) == 2 and not metrics


@pytest.mark.parametrize("method", METHODS)
def test_only_dapo_charges_long_responses(method):
    """A fifth of the response length, 40 of 200 tokens here: 190 tokens stand three quarters into it."""
    config = compose("webshop_demo", method)
    longer, shorter = play(config, [RIGHT + " " * (190 - len(RIGHT) - 1)])[0], play(config, [RIGHT])[0]
    assert len(longer.response_ids) == 190 and longer.reward_score == shorter.reward_score == 10.0
    assert longer.extra_fields["turn_penalties"] == [pytest.approx(-0.75) if "dapo" in method else 0.0]
    assert shorter.extra_fields["turn_penalties"] == [0.0]


# ---- the bases, by verl's trainer


def advantages(
    config: Any, monkeypatch, trajectories: list[list], entropy: Mapping[str, float] | None = None
) -> dict[str, float]:
    """The advantages that verl's trainer writes back, one a row; `entropy` is of a row's tokens, 0.5 where absent."""
    queue = Queue()
    queue.add("u", trajectories)
    for key, row in queue.rows.items():
        row["entropy"] = torch.full(row["response_mask"].shape, (entropy or {}).get(key, 0.5))
    trainer_of(config, monkeypatch, queue)._compute_advantage(Batch(queue, list(queue.rows)), {})
    assert all(len(row["advantages"].unique()) == 1 for row in queue.rows.values()), "one value per response"
    return {key: row["advantages"][0].item() for key, row in queue.rows.items()}


@pytest.mark.parametrize("method", ["grpo", "dapo", "gspo", "drgrpo"])
def test_the_statistics_are_those_of_the_groups_rows(monkeypatch, method):
    """Rewards 10, 0, 0 of three rows: mean 10/3, unbiased σ √(100/3); Dr. GRPO does not divide by it."""
    config = compose("webshop_demo", method)
    values = advantages(config, monkeypatch, [play(config, [RIGHT]), play(config, [WRONG, WRONG])])
    scale = 1.0 if method == "drgrpo" else (100 / 3) ** -0.5
    expected = {"u_0_0": 20 / 3 * scale, "u_1_0": -10 / 3 * scale, "u_1_1": -10 / 3 * scale}
    assert values == pytest.approx(expected, rel=1e-5)


def test_hgpo_compares_turns_with_the_same_observations_before_them(monkeypatch):
    """Both first turns answered one observation, both second turns the same two: returns 9.5, 10 and 0, 0.

    Level 1 and level 2 agree on the second turns. Without a trajectory term that is all.
    """
    config = compose("webshop_demo", "hgpo")
    values = advantages(config, monkeypatch, [play(config, [WRONG, RIGHT]), play(config, [WRONG, WRONG])])
    assert values == pytest.approx({"u_0_0": 4.75, "u_0_1": 5.0, "u_1_0": -4.75, "u_1_1": -5.0}, rel=1e-5)


def test_ecpo_adds_how_an_action_did_among_those_that_answered_its_page(monkeypatch):
    """The first turns answered one observation, by different actions with returns 10 and 0: the gate is open, and
    each mean is drawn two thirds of the way to 5, so ±5/3. With one action for both it would be shut."""
    config = compose("webshop_demo", "ecpo")
    values = advantages(config, monkeypatch, [play(config, [RIGHT]), play(config, [WRONG, WRONG])])
    expected = {"u_0_0": 20 / 3 + 5 / 3, "u_1_0": -10 / 3 - 5 / 3, "u_1_1": -10 / 3}
    assert values == pytest.approx(expected, rel=1e-5)
    same = advantages(config, monkeypatch, [play(config, [WRONG, RIGHT]), play(config, [WRONG, WRONG])])
    # 5 and −5 of outcomes; the second turns answered one observation too, by different actions
    assert same == pytest.approx({"u_0_0": 5.0, "u_0_1": 5 + 5 / 3, "u_1_0": -5.0, "u_1_1": -5 - 5 / 3}, rel=1e-5)


def test_dapos_charge_on_length_moves_the_advantage_of_its_own_turn(monkeypatch):
    """190 of 200 tokens cost 0.75 of that turn's 10, so its row stands 0.75/σ below the trajectory's other row.

    Rewards 10, 9.25, 0, 0: mean 4.8125, squares about it 26.9102, 19.6914 and twice 23.1602, over 3 is σ² = 30.974.
    """
    config = compose("webshop_demo", "dapo")
    group = [play(config, [WRONG, RIGHT + " " * (190 - len(RIGHT) - 1)]), play(config, [WRONG, WRONG])]
    values = advantages(config, monkeypatch, group)
    std = 30.973958**0.5
    expected = [(reward - 4.8125) / std for reward in (10, 9.25, 0, 0)]
    assert list(values.values()) == pytest.approx(expected, rel=1e-5)


# ---- GRPO++: leave-one-out over trajectories, and compact filtering


def test_grpopp_leaves_one_out_once_a_trajectory(monkeypatch):
    """10, 10 and 0 for trajectories of one, two and two rows: each against the mean of the other two.

    10 − (10 + 0)/2 = 5 and 0 − (10 + 10)/2 = −10, with no division by σ. Counted by rows, 10 would stand against
    (10 + 10 + 0 + 0)/4.
    """
    config = compose("webshop_demo", "grpopp", "actor_rollout_ref.rollout.custom.episode.compact_filtering=false")
    group = [play(config, [RIGHT]), play(config, [WRONG, RIGHT]), play(config, [WRONG, WRONG])]
    assert advantages(config, monkeypatch, group, {"u_0_0": 5.0}) == pytest.approx(
        {"u_0_0": 5.0, "u_1_0": 5.0, "u_1_1": 5.0, "u_2_0": -10.0, "u_2_1": -10.0}
    )


CUT = {
    "by its turns": ([WRONG, WRONG], 0.0),
    "by the length of its last response": ([WRONG, "x" * 300], 0.0),
    "by the length of a response that won": ([RIGHT + "x" * 300], 10.0),
}


@pytest.mark.parametrize("how", CUT)
def test_a_trajectory_that_was_cut_trains_nothing_and_stays_in_the_baseline(monkeypatch, how):
    """Two that won stand against (10 + r)/2 with the reward r of the one that was cut: 5 where it lost, 0 where it won.

    Out of the baseline, they would stand against each other alone, at 0.
    """
    answers, reward = CUT[how]
    config = compose("webshop_demo", "grpopp")
    group = [play(config, [RIGHT]), play(config, answers), play(config, [WRONG, RIGHT])]
    assert {row.reward_score for row in group[1]} == {reward}
    values = advantages(config, monkeypatch, group)
    expected = 10.0 - (10.0 + reward) / 2
    assert [values[key] for key in ("u_0_0", "u_2_0", "u_2_1")] == pytest.approx([expected] * 3)
    filtered = [key for key in values if key.startswith("u_1_")]
    assert len(filtered) == len(answers) and all(values[key] == 0.0 for key in filtered)

    # and no gradient reaches it through verl's loss, not even where a base should give its tokens an advantage
    masks = [row.response_mask for trajectory in group for row in trajectory]
    log_ratio = [[0.0 if live else float("nan") for live in mask] for mask in masks]
    gradient = gradients(config, log_ratio, [[1.0] * len(mask) for mask in masks])
    assert [key for key, row in zip(values, gradient, strict=True) if not row.any()] == filtered


def test_a_trajectory_that_was_cut_has_no_part_in_alpha(monkeypatch):
    """Responses of 0.2, 0.5 and 0.8 nats, and a filtered one of 9: H̃ = 0, ½, 1, so α ∝ 1, e^−½, e^−1."""
    config = compose("webshop_demo", "aem_grpopp")
    group = [play(config, [RIGHT]), play(config, [WRONG, WRONG]), play(config, [WRONG, RIGHT])]
    entropy = {"u_0_0": 0.2, "u_2_0": 0.5, "u_2_1": 0.8, "u_1_0": 9.0, "u_1_1": 0.0}
    values = advantages(config, monkeypatch, group, entropy)
    weight = torch.tensor([0.0, -0.5, -1.0]).exp()
    alpha = (weight / weight.mean()).tolist()
    assert [values[key] for key in ("u_0_0", "u_2_0", "u_2_1")] == pytest.approx([5 * a for a in alpha], rel=1e-5)
    assert values["u_1_0"] == values["u_1_1"] == 0.0


@pytest.mark.parametrize("method", [name for name in METHODS if "grpopp" not in name])
def test_the_other_methods_train_on_what_was_cut(method):
    config = compose("webshop_demo", method)
    assert all(set(row.response_mask) == {1} for row in play(config, [WRONG, WRONG]))
