"""A trajectory whose environment failed is not a lost one: every training statistic and estimator excludes it.

Tested through the wrapped trainer over a fake queue (dumps.py), and `compute_advantages` alone. Not covered: DAPO's
filter (tests/recipe/methods), how the loop handles a fault (tests/agent_loops), the real queue (tests/e2e).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

pytest.importorskip("verl", reason="verl is not installed")

from verl.trainer.ppo import core_algos

from recipe.aem.batch import Batch as Rows
from recipe.aem.methods.aem import AemSettings
from recipe.aem.methods.epo import batch_weights
from recipe.aem.methods.outcomes import OUTCOME_BASES
from recipe.aem.methods.registry import Settings
from recipe.aem.seam import empty_updates
from recipe.aem.seam.advantage import AdvantageStep, compute_advantages
from tests.helpers.dumps import FAULT, Batch, Queue, advance, make_batch, make_trainer

WON, LOST, FAILED = 10.0, 0.0, None


def over(name: str, base: str, **settings: Any) -> dict[str, Any]:
    return {"adv_estimator": name, name: {"base_estimator": base, **settings}}


COMPARING = [
    *({"adv_estimator": name} for name in ("grpo_rows", "gigpo", "hgpo", "ecpo")),
    *({"adv_estimator": f"{name}_trajectories"} for name in OUTCOME_BASES),
    *(over("aem", base) for base in ("grpo_rows", "gigpo", "hgpo", "ecpo", *OUTCOME_BASES)),
    over("aem", "grpo_rows", scope="batch"),
    *({"adv_estimator": name} for name in OUTCOME_BASES),
]
"""Estimators to which trajectories that fared alike are worth nothing."""
EVERY = [*COMPARING, over("empg", "grpo_rows"), over("aem", "gae"), {"adv_estimator": "gae"}]


def named(algorithm: Mapping[str, Any]) -> str:
    block = algorithm.get(algorithm["adv_estimator"], {})
    return " ".join([algorithm["adv_estimator"], *map(str, block.values())])


def queue_of(groups: Mapping[str, Sequence[float | None]], turns: int = 2, masked: bool = True) -> Queue:
    """A row a turn, of prompt groups by outcome; everything about a row follows from its key alone.

    Args:
        groups: the outcome of each trajectory; None for a fault.
        turns: how many each has.
        masked: whether the loop has masked what failed, as ours does.
    """
    columns: dict[str, list] = {name: [] for name in ("key", "response_mask", "rm_scores", "entropy", "values")}
    columns |= {"old_log_probs": [], "extra_fields": [], "uid": []}
    for uid, outcomes in groups.items():
        for session, outcome in enumerate(outcomes):
            for turn in range(turns):
                length = 2 + turn
                on = 0 if outcome is None and masked else 1
                chance = torch.Generator().manual_seed(sum(map(ord, uid)) * 1000 + session * 10 + turn)
                columns["key"].append(f"{uid}_{session}_{turn}")
                columns["uid"].append(uid)
                columns["response_mask"].append(torch.full((length,), on))
                columns["rm_scores"].append(torch.tensor([0.0] * (length - 1) + [outcome or 0.0]))
                for name in ("entropy", "values", "old_log_probs"):
                    columns[name].append(torch.rand(length, generator=chance))
                columns["extra_fields"].append(
                    {
                        "response_spans": [[0, length]],
                        "turn_penalties": [0.0],
                        "anchors": [f"page {turn}"],
                        "actions": [f"go {session % 2}"],
                        "fault": FAULT if outcome is None else "",
                        "cut": "",
                        "reward_extra_info": {"acc": float(outcome == WON)},
                    }
                )
    keys = columns.pop("key")
    return Queue(columns, Batch(keys=keys, partition_id="train", tags=[{} for _ in keys]))


def train(queue: Queue, algorithm: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The advantages of each row by its key, and the metrics but for times and for what was played."""
    metrics = advance(make_trainer(algorithm), queue)
    learned = {
        name: value for name, value in metrics.items() if not name.startswith(("timing", "training/trajectories"))
    }
    return queue.columns["advantages"], learned


def without(queue: Queue, keys: set[str]) -> Queue:
    """The same batch, in which these rows never were."""
    kept = [place for place, key in enumerate(queue.batch.keys) if key not in keys]
    tags = [queue.batch.tags[place] for place in kept]
    batch = Batch(keys=[queue.batch.keys[place] for place in kept], partition_id="train", tags=tags)
    columns = {name: [values[key] for key in batch.keys] for name, values in queue.columns.items()}
    return Queue(columns, batch)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("algorithm", COMPARING, ids=named)
def test_three_winners_and_a_fault_are_three_winners(algorithm, masked):
    """As losers, faults gave the winners +0.5 (grpo_rows), +1 (gigpo) and +3.3 (rloo)."""
    # undiscounted, since reinforce_plus_plus tells a sequence's tokens apart otherwise
    algorithm = {**algorithm, "gamma": 1.0}
    advantage, _ = train(queue_of({"u": [WON, WON, WON, FAILED]}, masked=masked), algorithm)
    assert len(advantage) == 8 and not any(row.any() for row in advantage.values())


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("algorithm", EVERY, ids=named)
def test_two_winners_a_loser_and_a_fault_are_a_group_of_three(algorithm, masked):
    # pass@k compares the best two, which here are not alike
    groups = {"u": [WON, WON / 2, LOST], "v": [WON, LOST, LOST, WON / 2]}
    expected, metrics = train(queue_of(groups), algorithm)
    found, also = train(queue_of({**groups, "u": [*groups["u"], FAILED]}, masked=masked), algorithm)
    if algorithm["adv_estimator"] != "grpo_passk":  # by itself it counts rows, and the best two are the winner's
        assert any(values.any() for key, values in expected.items() if key.startswith("u"))
    for key, values in expected.items():
        assert torch.equal(found.pop(key), values), key
    assert list(found) == ["u_3_0", "u_3_1"] and not any(row.any() for row in found.values())
    assert also == metrics, "what is logged of α, g and step sets does not count the fault either"


@pytest.mark.parametrize(
    ("name", "winner", "loser"),
    [
        # rewards 10, 10, 0: mean 20/3, unbiased σ = √(100/3)
        ("grpo_rows", 10 / 3 / (100 / 3) ** 0.5, -20 / 3 / (100 / 3) ** 0.5),
        ("grpo", 10 / 3 / (100 / 3) ** 0.5, -20 / 3 / (100 / 3) ** 0.5),
        # leave-one-out: 10 − (10 + 0)/2, 0 − (10 + 10)/2
        ("rloo_trajectories", 5.0, -10.0),
        ("rloo", 5.0, -10.0),
        # one turn: the episode term twice
        ("gigpo", 20 / 3 / (100 / 3) ** 0.5, -40 / 3 / (100 / 3) ** 0.5),
    ],
)
def test_the_values_by_hand(name, winner, loser):
    advantage, _ = train(queue_of({"u": [WON, FAILED, WON, LOST]}, turns=1), {"adv_estimator": name})
    got = [advantage[f"u_{session}_0"][0].item() for session in range(4)]
    assert got == pytest.approx([winner, 0.0, winner, loser], abs=1e-5)


@pytest.mark.parametrize("algorithm", EVERY, ids=named)
def test_what_faults_leave_alone_in_its_group_trains_nothing(algorithm):
    rest = {"v": [WON, LOST, LOST, WON]}
    expected, metrics = train(queue_of(rest), algorithm)
    queue = queue_of({"u": [FAILED, WON, FAILED, FAILED], **rest})
    found, also = train(queue, algorithm)
    for key, values in found.items():
        assert torch.equal(values, expected[key]) if key in expected else not values.any(), key
        # no term of the loss sees these tokens, and the tokens of a mini-batch are counted without them
        assert queue.columns["response_mask"][key].tolist() == [int(key in expected)] * len(values)
        assert queue.columns["loss_mask"][key].tolist() == [int(key in expected)] * len(values)
    assert also == metrics


def test_a_batch_of_which_faults_leave_nothing_to_compare_skips_its_update(caplog):
    empty_updates.logger.addHandler(caplog.handler)
    try:
        queue = queue_of({"u": [FAILED, WON], "v": [FAILED, FAILED]})
        advantage, metrics = train(queue, {"adv_estimator": "gigpo"})
    finally:
        empty_updates.logger.removeHandler(caplog.handler)
    assert not any(row.any() for row in advantage.values()) and metrics == {}
    assert "None of the 8 rows of this batch has a token to learn from" in caplog.text


def test_a_trajectory_that_is_alone_without_a_fault_is_trained_on_as_by_verl():
    advantage, _ = train(queue_of({"u": [WON], "v": [WON, LOST, FAILED]}), {"adv_estimator": "rloo_trajectories"})
    assert {key: values[0].item() for key, values in advantage.items() if key.endswith("_1")} == {
        "u_0_1": 10.0, "v_0_1": 10.0, "v_1_1": -10.0, "v_2_1": 0.0,
    }  # fmt: skip


def test_a_cut_trajectory_is_an_outcome_and_stays_in_the_baseline():
    queue = queue_of({"u": [WON, WON, LOST, FAILED]}, turns=1)
    queue.columns["response_mask"]["u_2_0"] = torch.zeros(2, dtype=torch.int64)
    queue.columns["extra_fields"]["u_2_0"]["cut"] = "turns"
    advantage, _ = train(queue, {"adv_estimator": "rloo_trajectories"})
    assert [advantage[f"u_{session}_0"][0].item() for session in range(4)] == [5.0, 5.0, 0.0, 0.0]


def test_padding_rows_may_have_copied_a_fault():
    queue = queue_of({"u": [FAILED, WON, LOST]}, turns=1)
    source = "u_0_0"
    queue.batch.keys.append("padff_0_0")
    queue.batch.tags.append({"is_padding": True})
    for name, values in queue.columns.items():
        values["padff_0_0"] = "padff" if name == "uid" else values[source]
    advantage, _ = train(queue, {"adv_estimator": "grpo"})
    assert advantage["u_1_0"][0] > 0 > advantage["u_2_0"][0] and not advantage["padff_0_0"].any()


def test_an_estimator_of_the_users_gets_the_rows_that_take_part(monkeypatch):
    monkeypatch.setattr(core_algos, "ADV_ESTIMATOR_REGISTRY", dict(core_algos.ADV_ESTIMATOR_REGISTRY))
    seen: list[Any] = []

    @core_algos.register_adv_est("mine")
    def mine(token_level_rewards, response_mask, index, **_):
        seen.append((token_level_rewards.sum(-1).tolist(), list(index)))
        return token_level_rewards + 1.0, token_level_rewards + 2.0

    queue = queue_of({"u": [WON, FAILED, LOST], "v": [WON, FAILED]}, turns=1)
    advantage, _ = train(queue, {"adv_estimator": "mine"})
    assert seen == [([10.0, 0.0], ["u", "u"])]
    assert [row.tolist() for row in advantage.values()] == [[1.0, 11.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    assert queue.columns["returns"]["u_0_0"].tolist() == [2.0, 12.0]


# what is compared with a group, with a batch, with those of an observation, and by verl's own code
MIXED = [
    *({"adv_estimator": name} for name in ("grpo", "opo", "reinforce_plus_plus", "gpg", "gae", "gigpo")),
    *(over("aem", "grpo_rows", scope="batch"), over("aem", "rloo"), over("empg", "gigpo"), over("aem", "gae")),
]


@pytest.mark.parametrize("algorithm", MIXED, ids=named)
@hypothesis.settings(deadline=None, max_examples=4)
@hypothesis.given(
    seed=st.integers(0, 2**31),
    layout=st.sampled_from(["turns", "transcript"]),
    faults=st.sampled_from([0.2, 0.5, 0.8]),
)
@hypothesis.example(seed=5, layout="turns", faults=0.8)
def test_a_batch_with_faults_is_the_batch_without_their_rows(algorithm, seed, layout, faults):
    queue = make_batch(seed, layout, masked=0.2, faults=faults)
    keys, tags = queue.batch.keys, queue.batch.tags
    batch = Rows.from_columns(
        keys,
        {"response_mask": torch.ones(len(keys), 1)},
        [queue.columns["extra_fields"][key] for key in keys],
        is_padding=[bool(tag.get("is_padding")) for tag in tags],
    )
    gone = {keys[row] for row in batch.dropped}
    shorter = without(queue, gone)
    found, metrics = train(queue, algorithm)
    expected, also = train(shorter, algorithm)
    for key, values in found.items():
        if key in gone:
            assert not values.any()
        else:  # sums over rows of another width may differ in the last bit
            torch.testing.assert_close(values, expected[key], rtol=1e-5, atol=1e-5)
    assert metrics == pytest.approx(also, abs=1e-5)


# --- without the trainer ----------------------------------------------------------------------------------------------


def advance_of(settings: Settings, keys: list[str], entropy_BT: torch.Tensor, extra: list[dict]) -> AdvantageStep:
    tokens = {"response_mask": torch.ones(entropy_BT.shape, dtype=torch.long), "entropies": entropy_BT}
    return AdvantageStep(Rows.from_columns(keys, tokens, extra), settings, step=1)


def test_alphas_minimum_maximum_and_mean_do_not_see_a_fault():
    """α by hand: H̃ = 0, ½, 1 for 0.1, 0.5, 0.9 nats; the fault's 7 nats would have made them all about 1."""
    given = advance_of(
        Settings.of("aem", AemSettings("rloo")),
        [f"u_{session}_0" for session in range(4)],
        torch.tensor([[0.1], [0.5], [0.9], [7.0]]),
        [{"fault": fault} for fault in ("", "", "", FAULT)],
    )
    reward = torch.tensor([[10.0], [10.0], [0.0], [0.0]])
    advantage, _ = compute_advantages(given, reward, given.batch.mask_BT, {})
    weight = torch.exp(torch.tensor([0.0, -0.5, -1.0]))
    alpha = 3 * weight / weight.sum()
    torch.testing.assert_close(advantage[:3, 0], alpha * torch.tensor([5.0, 5.0, -10.0]))
    assert advantage[3] == 0.0 and given.metrics["aem/entropy/mean"] == pytest.approx(0.5)
    assert given.metrics["aem/alpha/max"] == pytest.approx(alpha.max().item())


def test_a_batch_of_faults_alone_is_all_zeros():
    settings = Settings.of("aem")
    given = advance_of(settings, ["u_0_0", "u_1_0"], torch.ones(2, 3), [{"fault": FAULT}] * 2)
    advantage, returns = compute_advantages(given, torch.ones(2, 3), given.batch.mask_BT, {})
    assert advantage.shape == returns.shape == (2, 3) and not advantage.any() and not returns.any()


def test_epos_mean_and_its_count_of_trajectories_are_over_what_takes_part():
    # of group u two trajectories take part, of v, where a fault left one alone, none
    keys = ["u_0_0", "u_1_0", "u_2_0", "v_0_0", "v_1_0"]
    extra = [{"fault": fault} for fault in ("", FAULT, "", "", FAULT)]
    mask = torch.ones(5, 2, dtype=torch.long)
    weight, trajectories = batch_weights(Rows.from_columns(keys, {"response_mask": mask}, extra))
    assert trajectories == 2
    assert weight.tolist() == [[0.25, 0.25], [0.0, 0.0], [0.25, 0.25], [0.0, 0.0], [0.0, 0.0]]
    nothing, none = batch_weights(Rows.from_columns(keys[:2], {"response_mask": mask[:2]}, extra[:2]))
    assert none == 0 and not nothing.any()
