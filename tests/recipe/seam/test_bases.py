"""Base advantages of trajectories that span several rows, against verl's own estimators and by hand."""

from __future__ import annotations

import pytest
import torch

from recipe.aem.batch import Batch
from recipe.aem.columns import number_labels
from recipe.aem.methods.outcomes import once_a_trajectory

core_algos = pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl is not installed")


def rloo(reward, mask, groups):
    return core_algos.compute_rloo_outcome_advantage(reward, mask, index=groups)[0]


def batch(turns_a: int, turns_b: int, tokens: int = 3, rewards=(1.0, 0.0)):
    """Two trajectories of one group, with verl's copied reward on the last token of every row."""
    rows = turns_a + turns_b
    reward = torch.zeros(rows, tokens)
    reward[:turns_a, -1], reward[turns_a:, -1] = rewards
    keys = [*(f"g_0_{turn}" for turn in range(turns_a)), *(f"g_1_{turn}" for turn in range(turns_b))]
    return reward, torch.ones(rows, tokens, dtype=torch.long), keys


def once(reward, mask, keys, estimator):
    return once_a_trajectory(Batch.from_columns(keys, {"response_mask": mask}), reward, estimator)


def test_rloo_of_three_rows_against_one_is_plus_and_minus_one():
    # leave-one-out of rewards 1 and 0 is 1 − 0 and 0 − 1; over the four rows it would be +0.33 and −1
    reward, mask, keys = batch(3, 1)
    advantage = once(reward, mask, keys, rloo)
    assert advantage[:3].eq(1.0).all() and advantage[3].eq(-1.0).all()
    assert torch.allclose(rloo(reward, mask, ["g"] * 4)[0, 0], torch.tensor(1 / 3))


def test_grpo_is_verls_own_bit_for_bit():
    """verl broadcasts the last row's advantage itself (trainer/ppo/v1/utils.py): the same rows, the same bits."""
    import numpy as np
    from verl import DataProto
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    generator = torch.Generator().manual_seed(0)
    turns, keys, groups = (3, 1, 2, 4, 1, 5), [], []
    for session, count in enumerate(turns):
        keys += [f"u{session // 3}_{session}_{index}" for index in range(count)]
        groups += [f"u{session // 3}"] * count
    rows = len(keys)
    reward, mask = torch.zeros(rows, 4), torch.ones(rows, 4, dtype=torch.long)
    outcome = torch.rand(len(turns), generator=generator)
    reward[:, -1] = outcome.repeat_interleave(torch.tensor(turns))
    mask[:, 3] = torch.randint(0, 2, (rows,), generator=generator)
    data = DataProto.from_dict(
        {"token_level_rewards": reward, "response_mask": mask}, non_tensors={"uid": np.array(groups, dtype=object)}
    )
    expected = compute_advantage_for_multi_trajectories(data, keys, "grpo", config={}).batch["advantages"]

    ours = once(
        reward, mask, keys, lambda r, m, g: core_algos.compute_grpo_outcome_advantage(r, m, index=np.array(g))[0]
    )
    assert torch.equal(ours, expected)


def test_the_order_of_the_rows_does_not_matter():
    reward, mask, keys = batch(3, 2)
    reward[2, -1] = 5.0  # only the last row of a trajectory is read
    order = [4, 2, 0, 3, 1]
    expected = once(reward, mask, keys, rloo)
    assert torch.equal(once(reward[order], mask[order], [keys[row] for row in order], rloo), expected[order])
    assert expected[0, 0] == 5.0


def test_a_trajectory_masked_whole_has_no_advantage_but_counts_in_the_baseline():
    reward, mask, keys = batch(2, 1, rewards=(0.0, 1.0))
    mask[2] = 0
    advantage = once(reward, mask, keys, rloo)
    assert advantage[2].eq(0).all() and advantage[:2].eq(-1.0).all()


def test_a_masked_last_row_does_not_silence_its_trajectory():
    reward, mask, keys = batch(2, 1)
    mask[1] = 0
    advantage = once(reward, mask, keys, rloo)
    assert advantage[0].eq(1.0).all() and advantage[1].eq(0).all()


def test_opo_weighs_a_trajectory_by_all_its_tokens():
    # baseline = Σ length · R / Σ length = (9·1 + 3·0) / 12 = 0.75
    reward, mask, keys = batch(3, 1)
    advantage = once(reward, mask, keys, lambda r, m, g: core_algos.compute_opo_outcome_advantage(r, m, index=g)[0])
    assert torch.allclose(advantage[0, 0], torch.tensor(0.25)) and torch.allclose(advantage[3, 0], torch.tensor(-0.75))


def test_labels_are_numbered_by_appearance():
    assert number_labels(["b", "a", "b", ""]).tolist() == [0, 1, 0, 2]
