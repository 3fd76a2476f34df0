"""HGPO: a response compared with those whose last observations were the same, for histories of several lengths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from aem_core import _checks as checks
from aem_core._segments import EPSILON, dense_labels, pair_labels, segment_mean, segment_sum, working_dtype
from aem_core.groups import check_turns, grpo_advantages, order_of_turns

__all__ = ["HgpoStats", "hgpo"]

_LENGTH_FIX = "Set `history_length` to the number of past turns that a prompt shows; 0 compares by observation alone."
_POWER_FIX = "Set `weight_power` to 1 for the published weights, 0 for equal ones."


@dataclass(frozen=True, eq=False)
class HgpoStats:
    """Intermediate results of `hgpo`, one value per response.

    Attributes:
        shared_N: int64, how many of its last observations, at most K + 1, the response shares with another one of its
            group; 0: its observation is met nowhere else in the group.
        size_N: int64, the number of responses of the group that answered the same observation.
        levels_N: int64, the number of terms of its weighted mean: those that are not 0.
        alone_N: bool, whether no other response of the group answered the same observation.

    Examples:
        >>> label_N, anchor_N = torch.tensor([0, 0, 0]), torch.tensor([4, 4, 5])
        >>> _, stats = hgpo(torch.tensor([9.0, 1.0, 2.0]), label_N, anchor_N, torch.tensor([0, 1, 1]), torch.arange(3))
        >>> stats.shared_N.tolist(), stats.size_N.tolist(), stats.alone_N.tolist()
        ([1, 1, 0], [2, 2, 1], [False, False, True])
    """

    shared_N: Integer[Tensor, " N"]
    size_N: Integer[Tensor, " N"]
    levels_N: Integer[Tensor, " N"]
    alone_N: Bool[Tensor, " N"]


def hgpo(
    return_N: Float[Tensor, " N"],
    group_N: Integer[Tensor, " N"],
    anchor_N: Integer[Tensor, " N"],
    trajectory_N: Integer[Tensor, " N"],
    turn_N: Integer[Tensor, " N"],
    *,
    history_length: int = 2,
    weight_power: float = 1.0,
    by_std: bool = True,
    outcome_N: Float[Tensor, " N"] | None = None,
    validate: bool = True,
) -> tuple[Float[Tensor, " N"], HgpoStats]:
    """Average a response's advantages over nested sets of responses, whose histories are the same ever further back.

        A = Σ_k w_k A_k / Σ_k w_k    over the levels k = 1 … K + 1 with A_k ≠ 0,    w_k = (k + 1)^a
        A_k = (R − mean R) / (σ + 1e-6)          (by_std=False: R − mean R)

    with mean and population σ of the returns R over the response's set of level k: the responses of its group that
    answered the same observation, and whose k − 1 turns before answered the same observations, in the same order. A set
    counts turns, several of one trajectory too. A_k is 0 in a set of one response or of equal returns, and for a
    response with fewer than k − 1 turns before it. Without any level A = 0.

    With `outcome_N` the trajectory's advantage within its group takes part as level 0: A_0 of `grpo_advantages`,
    w_0 = 1.

    Source: HGPO, arXiv 2602.22817, and its authors' recipe in verl-agent, with K = 2 (or 4), a = 1 and no level 0. That
    levels of exactly 0 drop out, the population σ, the 1e-6 and the beginning of an episode are the recipe's. Ours:
    float64, in which equal returns have no rounding noise to divide by σ; and a weighted mean whose weights sum to 1,
    where the recipe adds 1e-6 to their sum.

    Args:
        return_N: (N,), the discounted return of each response (plus the response's penalty), as for `gigpo`.
        group_N: (N,), integer label of each response's prompt group.
        anchor_N: (N,), integer label of the raw observation that the response answers, as for `gigpo`.
        trajectory_N: (N,), integer label of each response's trajectory, unique in the whole batch.
        turn_N: (N,), integer index of each response's turn, in any numbering that grows with time.
        history_length: K, how many earlier observations the longest history has; 0 leaves GiGPO's step sets.
        weight_power: a; 0 gives every level the same weight.
        by_std: divide by σ: the recipe's choice for ALFWorld; False is its choice for WebShop.
        outcome_N: None, or (N,), the outcome of each response's trajectory (plus the response's penalty).
        validate: check that returns and outcomes are finite and that no turn occurs twice.

    Returns:
        A, (N,), float32, or float64 where an input is float64; and `HgpoStats`.

    Raises:
        AEMValueError: shapes, dtypes or devices do not fit; a setting out of range; values that are not finite.

    Examples:
        Two trajectories of two turns, which answered the same observations. The second turns share two, so two levels
        say the same of them:

        >>> return_N = torch.tensor([8.0, 10.0, 4.0, 5.0])
        >>> group_N, anchor_N = torch.tensor([0, 0, 0, 0]), torch.tensor([1, 2, 1, 2])
        >>> trajectory_N, turn_N = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
        >>> advantage_N, stats = hgpo(return_N, group_N, anchor_N, trajectory_N, turn_N, by_std=False)
        >>> advantage_N
        tensor([ 2.0000,  2.5000, -2.0000, -2.5000])
        >>> stats.shared_N.tolist(), stats.levels_N.tolist()
        ([1, 2, 1, 2], [1, 2, 1, 2])
    """
    checks.require_count("history_length", history_length, _LENGTH_FIX)
    checks.require_setting("weight_power", weight_power, _POWER_FIX)
    checks.require_tensor("return_N", return_N, 1, checks.FLOAT_DTYPES, "Pass one return a response.")
    slots, device = len(return_N), return_N.device
    labels = {"group_N": group_N, "anchor_N": anchor_N, "trajectory_N": trajectory_N, "turn_N": turn_N}
    for name, label_N in labels.items():
        checks.require_labels(name, label_N, slots, device, "response")
    return_N = return_N.detach()
    order_N = order_of_turns(trajectory_N, turn_N)
    if validate:
        checks.check_response_values("return_N", return_N, checks.RETURN_FIX, lowest=-torch.inf)
        check_turns(trajectory_N, turn_N, order_N)

    dtype = working_dtype(return_N.dtype)
    value_N = return_N.double()
    terms, shared_N = [], torch.zeros(slots, dtype=torch.int64, device=device)
    sizes = []
    for level, set_N in enumerate(_nested_sets(group_N, anchor_N, trajectory_N, order_N, history_length), start=1):
        advantage_N, size_N = _within_sets(value_N, set_N, by_std)
        terms.append((level, advantage_N))
        sizes.append(size_N)
        shared_N = torch.where(size_N > 1, level, shared_N)
    if outcome_N is not None:
        fix = "Pass one outcome and one return a response, in the same order."
        checks.require_tensor("outcome_N", outcome_N, 1, checks.FLOAT_DTYPES, fix)
        checks.require_shape("outcome_N", outcome_N, return_N.shape, device, fix)
        if validate:
            checks.check_response_values("outcome_N", outcome_N.detach(), checks.RETURN_FIX, lowest=-torch.inf)
        episode_N = grpo_advantages(outcome_N, group_N, by_std=by_std, validate=False)
        dtype = torch.promote_types(dtype, episode_N.dtype)
        terms.append((0, episode_N.double()))
    mean_N, levels_N = _weighted_mean(terms, weight_power)
    return mean_N.to(dtype), HgpoStats(shared_N, sizes[0], levels_N, sizes[0] == 1)


def _nested_sets(
    group_N: Tensor, anchor_N: Tensor, trajectory_N: Tensor, order_N: Tensor, history_length: int
) -> list[Tensor]:
    """Return for each level k the set of each response, as a label below 2N: its group and its last k observations.

    A response with fewer than k − 1 turns before it has a set of its own.
    """
    slots = len(order_N)
    own_N = slots + torch.arange(slots, device=order_N.device)
    # the response before each response in its trajectory; where there is none, itself
    before_N = torch.empty_like(order_N).scatter_(0, order_N, torch.cat([order_N[:1], order_N[:-1]]))
    trajectory_N = trajectory_N.to(torch.int64)
    begins_N = trajectory_N[before_N] != trajectory_N
    begins_N = begins_N.scatter(0, order_N[:1], True)

    observed_N = pair_labels(dense_labels(group_N), anchor_N)
    sets = [observed_N]
    short_N = torch.zeros_like(begins_N)
    history_N = observed_N
    for _ in range(history_length):
        # the last k observations are this response's one and the last k − 1 of the response before
        short_N = begins_N | short_N[before_N]
        history_N = pair_labels(observed_N, history_N[before_N])
        sets.append(torch.where(short_N, own_N, history_N))
    return sets


def _within_sets(value_N: Tensor, set_N: Tensor, by_std: bool) -> tuple[Tensor, Tensor]:
    """Return the advantages within sets, 0 in a set of one, and the size of each response's set."""
    count = 2 * len(value_N)
    size_G = segment_sum(torch.ones_like(value_N), set_N, count)
    advantage_N = value_N - segment_mean(value_N, set_N, count)[set_N]
    if by_std:
        variance_G = segment_sum(advantage_N**2, set_N, count) / size_G.clamp(min=1)
        advantage_N = advantage_N / (variance_G.sqrt()[set_N] + EPSILON)
    return advantage_N, size_G[set_N].to(torch.int64)


def _weighted_mean(terms: list[tuple[int, Tensor]], power: float) -> tuple[Tensor, Tensor]:
    """Return the mean of the terms that are not 0, with weights (level + 1)^power, and their number; 0 without any."""
    advantage_KN = torch.stack([term for _, term in terms])
    weight_K = torch.tensor([level + 1.0 for level, _ in terms], dtype=torch.float64)
    weight_KN = weight_K.to(advantage_KN.device, non_blocking=True)[:, None] * (advantage_KN != 0)
    # Relative to the largest of the response's own weights: a large power can neither overflow nor lose all of them.
    weight_KN = (weight_KN / weight_KN.amax(0).clamp(min=1)) ** float(power) * (advantage_KN != 0)
    total_N = weight_KN.sum(0)
    mean_N = (weight_KN * advantage_KN).sum(0) / torch.where(total_N > 0, total_N, 1.0)
    return mean_N, (advantage_KN != 0).sum(0)
