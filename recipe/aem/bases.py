"""Base advantages of a batch whose trajectories may span several rows.

verl treats a trajectory of several rows as one only for `grpo` (trainer/ppo/v1/utils.py:167); for every other outcome
estimator each row would count as a member of the group. Here an outcome estimator sees one sequence a trajectory: its
response tokens in order and its one reward at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Estimator = Callable[[Tensor, Tensor, list], Tensor]
"""(token_level_rewards, response_mask, group label of each row) -> advantages, all of one shape."""

_EPSILON = 1e-6  # verl's and verl-agent's, added to the standard deviation


@dataclass(frozen=True)
class Rows:
    """What is known of a batch's rows beside its tensors; padding rows are the caller's to leave out.

    Attributes:
        group_B: the prompt group's label of each row.
        trajectory_B: the trajectory's label of each row.
        order_B: the row's place within its trajectory.
    """

    group_B: Sequence[str]
    trajectory_B: Sequence[str]
    order_B: Sequence[int]

    def trajectories(self) -> list[list[int]]:
        """The row numbers of each trajectory, in the order of its turns."""
        rows: dict[str, list[int]] = {}
        for row in sorted(range(len(self.order_B)), key=lambda row: self.order_B[row]):
            rows.setdefault(self.trajectory_B[row], []).append(row)
        return list(rows.values())


def once_a_trajectory(reward_BT: Tensor, mask_BT: Tensor, rows: Rows, estimator: Estimator) -> Tensor:
    """Run an outcome estimator with one sequence a trajectory and bring its advantages back to the rows.

    The sequence is made of the trajectory's tokens under the mask; its reward is that of the last row (verl copies it
    onto every row), set on the last token. A trajectory that is masked whole keeps one token in the estimator's view,
    so that its reward stays in the baseline.

    Args:
        reward_BT: token-level rewards.
        mask_BT: 1 on response tokens.
        rows: which trajectory and group each row belongs to.
        estimator: the base, as verl defines it.

    Returns:
        Advantages of the shape of `reward_BT`, 0 off the mask.
    """
    trajectories = rows.trajectories()
    mask_BT = mask_BT.bool()
    flat_index_BT = torch.arange(mask_BT.numel(), device=mask_BT.device).view(mask_BT.shape)
    places = [torch.cat([flat_index_BT[row][mask_BT[row]] for row in of_one]) for of_one in trajectories]
    width = max([1, *(len(place) for place in places)])
    sequence_reward = reward_BT.new_zeros(len(places), width)
    sequence_mask = mask_BT.new_zeros(len(places), width, dtype=torch.long)
    for number, (place, of_one) in enumerate(zip(places, trajectories, strict=True)):
        length = max(len(place), 1)
        sequence_mask[number, :length] = 1
        sequence_reward[number, length - 1] = reward_BT[of_one[-1]].sum()
    groups = [rows.group_B[of_one[0]] for of_one in trajectories]
    sequence_advantage = estimator(sequence_reward, sequence_mask, groups)
    advantage_BT = torch.zeros(mask_BT.shape, dtype=sequence_advantage.dtype, device=mask_BT.device)
    for number, place in enumerate(places):
        advantage_BT.view(-1)[place] = sequence_advantage[number, : len(place)]
    return advantage_BT


def grpo_rows(reward_N: Tensor, group_N: Tensor, *, by_std: bool = True) -> Tensor:
    """Group-relative advantages with the statistics over all turns of the group, as verl-agent takes them.

        A_n = (r_n − μ_G) / (σ_G + 1e-6),   r_n = R(trajectory of n) + penalty(n)

    so a turn's own penalty moves that turn's advantage, and a long trajectory weighs more in μ and σ than a short one.
    σ is the unbiased one; a group of a single turn has μ = 0 and σ = 1, as in verl's GRPO.

    Args:
        reward_N: reward of each turn: its trajectory's outcome plus its own penalty.
        group_N: integer label of each turn's prompt group.
        by_std: divide by σ.

    Returns:
        One advantage a turn.
    """
    if not len(reward_N):
        return reward_N
    group_N = torch.unique(group_N, return_inverse=True)[1]
    reward_N = reward_N.double()
    size = int(group_N.max()) + 1
    count_G = reward_N.new_zeros(size).index_add(0, group_N, torch.ones_like(reward_N))
    mean_G = reward_N.new_zeros(size).index_add(0, group_N, reward_N) / count_G
    square_G = reward_N.new_zeros(size).index_add(0, group_N, (reward_N - mean_G[group_N]) ** 2)
    alone_G = count_G == 1
    std_G = torch.where(alone_G, 1.0, (square_G / (count_G - 1).clamp(min=1)).sqrt())
    mean_G = torch.where(alone_G, 0.0, mean_G)
    advantage_N = reward_N - mean_G[group_N]
    return (advantage_N / (std_G[group_N] + _EPSILON) if by_std else advantage_N).float()
