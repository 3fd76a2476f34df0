"""Base advantages of a batch whose trajectories may span several rows.

verl treats a trajectory of several rows as one only for `grpo` (trainer/ppo/v1/utils.py:167); for every other outcome
estimator each row would count as a member of the group. Here an outcome estimator sees one sequence a trajectory: its
response tokens in order and its one reward at the end. `grpo_rows` and `gigpo` see every turn with its own reward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aem_core import Responses, discounted_returns, gigpo, grpo_advantages
from aem_core.errors import AEMValueError
from recipe.aem.rows import ExtraFields, Rows, first_tokens, number_labels
from recipe.aem.seam.metrics import gigpo_metrics
from recipe.aem.settings import GAE, GIGPO, RESPONSE_BASES, GigpoSettings, Settings

Estimator = Callable[[Tensor, Tensor, list], Tensor]
"""(token_level_rewards, response_mask, group label of each row) -> advantages, all of one shape."""


@dataclass(frozen=True)
class Base:
    """A base estimator's result.

    Attributes:
        advantage_LT: 0 off the mask.
        return_LT: what verl calls returns; the advantages themselves for an outcome estimator.
        metrics: for verl's tracking.
    """

    advantage_LT: Tensor
    return_LT: Tensor
    metrics: Mapping[str, float] = field(default_factory=dict)


def base_advantages(
    settings: Settings,
    config: Mapping[str, Any],
    reward_LT: Tensor,
    mask_LT: Tensor,
    rows: Rows,
    responses: Responses,
    extra_L: ExtraFields,
    value_LT: Tensor | None = None,
) -> Base:
    """The advantages of the base that the settings name.

    Args:
        settings: of the run.
        config: `config.algorithm`.
        reward_LT: token-level rewards, KL where `kl_on_last_rows` puts it.
        mask_LT: response mask.
        rows: which trajectory and group each row belongs to.
        responses: of these rows.
        extra_L: what the agent loop left with each row.
        value_LT: the critic's, for `gae`.
    """
    if settings.base in RESPONSE_BASES:
        return _of_turns(settings, config, reward_LT, rows, responses, extra_L)
    if settings.base == GAE:
        if value_LT is None:
            raise AEMValueError(
                f"algorithm.{settings.estimator}.base_estimator=gae: no `values`; set critic.enable=True"
            )
        return Base(*verl_advantages(GAE, config, reward_LT, mask_LT, rows.group_L, value_LT))

    def estimator(reward: Tensor, mask: Tensor, groups: list) -> Tensor:
        return verl_advantages(settings.base, config, reward, mask, groups)[0]

    advantage_LT = once_a_trajectory(reward_LT, mask_LT, rows, estimator)
    return Base(advantage_LT, advantage_LT)


def once_a_trajectory(reward_LT: Tensor, mask_LT: Tensor, rows: Rows, estimator: Estimator) -> Tensor:
    """Run an outcome estimator with one sequence a trajectory and bring its advantages back to the rows.

    The sequence is made of the trajectory's tokens under the mask; its reward is that of the last row (verl copies the
    outcome onto every row, and `kl_on_last_rows` brings the KL of all rows there), set on the last token. A trajectory
    that is masked whole keeps one token in the estimator's view, so that its reward stays in the baseline.

    Args:
        reward_LT: token-level rewards.
        mask_LT: 1 on response tokens.
        rows: which trajectory and group each row belongs to.
        estimator: the base, as verl defines it.

    Returns:
        Advantages of the shape of `reward_LT`, 0 off the mask.
    """
    trajectories = rows.trajectories()
    mask_LT = mask_LT.bool()
    flat_index_LT = torch.arange(mask_LT.numel(), device=mask_LT.device).view(mask_LT.shape)
    places = [torch.cat([flat_index_LT[row][mask_LT[row]] for row in of_one]) for of_one in trajectories]
    width = max([1, *(len(place) for place in places)])
    sequence_reward = reward_LT.new_zeros(len(places), width)
    sequence_mask = mask_LT.new_zeros(len(places), width, dtype=torch.long)
    for number, (place, of_one) in enumerate(zip(places, trajectories, strict=True)):
        length = max(len(place), 1)
        sequence_mask[number, :length] = 1
        sequence_reward[number, length - 1] = reward_LT[of_one[-1]].sum()
    groups = [rows.group_L[of_one[0]] for of_one in trajectories]
    sequence_advantage = estimator(sequence_reward, sequence_mask, groups)
    advantage_LT = torch.zeros(mask_LT.shape, dtype=sequence_advantage.dtype, device=mask_LT.device)
    for number, place in enumerate(places):
        advantage_LT.view(-1)[place] = sequence_advantage[number, : len(place)]
    return advantage_LT


def kl_on_last_rows(reward_BT: Tensor, score_BT: Tensor, keys: Sequence[str]) -> Tensor:
    """Rewards in which each trajectory's last row holds the KL of all its rows.

        last row:    Σ_t reward = R − β Σ_rows Σ_t KL_t          the trajectory's return
        other rows:  their scores, in which verl repeats R

    verl takes KL off row by row (`apply_kl_penalty`: reward = score − β KL) and repeats the outcome R on every row;
    estimators that read a trajectory's outcome from its last row would see the KL of that row alone. It is moved and
    not copied, so that verl's means of the rewards hold every token's KL once. What comes from the rows before stands
    on the last row's first token, which every row has.

    Args:
        reward_BT: rewards, KL taken off.
        score_BT: the same without KL (verl's `token_level_scores`).
        keys: `{uid}_{session}_{index}`, verl's name of a row.

    Returns:
        (B, T); `reward_BT` itself, to the bit, where every trajectory is one row.

    Examples:
        Two turns, an outcome of 5, and 0.25, 0.5 and 1.0 of KL, of which the last two are the second turn's:

        >>> score_BT = torch.tensor([[5.0, 0.0], [0.0, 5.0]])
        >>> kl_on_last_rows(score_BT - torch.tensor([[0.25, 0.0], [0.5, 1.0]]), score_BT, ["u_0_0", "u_0_1"])
        tensor([[ 5.0000,  0.0000],
                [-0.7500,  4.0000]])
    """
    reward_BT = reward_BT.clone()
    for of_one in Rows.from_keys(keys, keys).trajectories():
        *before, last = of_one
        if before:
            reward_BT[last, 0] += (reward_BT[before] - score_BT[before]).sum()
            reward_BT[before] = score_BT[before]
    return reward_BT


def verl_advantages(
    name: str,
    config: Mapping[str, Any],
    reward_BT: Tensor,
    mask_BT: Tensor,
    group_B: Sequence[str],
    value_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns by verl's own `compute_advantage`, so that each base gets the arguments verl gives it."""
    import numpy as np
    from verl import DataProto
    from verl.trainer.ppo.ray_trainer import compute_advantage

    tensors = {"token_level_rewards": reward_BT, "response_mask": mask_BT}
    if value_BT is not None:
        tensors["values"] = value_BT
    data = DataProto.from_dict(tensors, non_tensors={"uid": np.array(group_B, dtype=object)})
    data = compute_advantage(
        data,
        adv_estimator=name,  # type: ignore[arg-type]  # verl compares it with its str enum
        gamma=config.get("gamma", 1.0),
        lam=config.get("lam", 1.0),
        norm_adv_by_std_in_grpo=config.get("norm_adv_by_std_in_grpo", True),
        config=config,  # type: ignore[arg-type]  # verl hands its estimators the DictConfig too
    )
    return data.batch["advantages"], data.batch["returns"]


def of_some_rows(compute: Callable[..., Any], data: Any, keys: Sequence[str], kept: Sequence[int]) -> Any:
    """Advantages by verl's own code as if a batch held some of its rows only; 0 in the others.

    Args:
        compute: verl's `compute_advantage_for_multi_trajectories`, bound but for its data and their keys.
        data: verl's DataProto; gets `advantages` and `returns` of all its rows.
        keys: verl's names of the rows.
        kept: the numbers of the rows that take part.

    Returns:
        `data`.
    """
    if len(kept) == len(keys):
        return compute(data, batch_keys=list(keys))
    part = compute(data.select_idxs(list(kept)), batch_keys=[keys[row] for row in kept])
    for name in ("advantages", "returns"):
        value = part.batch[name]
        data.batch[name] = value.new_zeros((len(keys), *value.shape[1:])).index_copy_(0, torch.tensor(kept), value)
    return data


@dataclass(frozen=True)
class _Turn:
    row: int
    span: int
    start: int


def _of_turns(
    settings: Settings,
    config: Mapping[str, Any],
    reward_LT: Tensor,
    rows: Rows,
    responses: Responses,
    extra_L: ExtraFields,
) -> Base:
    """`grpo_rows` and `gigpo`. A turn's reward is its trajectory's outcome plus what is due to that turn alone."""
    turns = _all_turns(responses, extra_L)
    row_U = torch.tensor([turn.row for turn in turns], dtype=torch.int64)
    group_U = number_labels(rows.group_L)[row_U]
    trajectory_U = number_labels(rows.trajectory_L)[row_U]
    outcome_U = _outcomes(reward_LT, rows)[row_U]
    penalty_U = torch.tensor([_penalty(extra_L[turn.row], turn) for turn in turns], dtype=torch.float32)
    metrics: Mapping[str, float] = {}
    if settings.base == GIGPO:
        of = settings.gigpo
        # at 0 they are not read: the environment's scale is then no matter
        step_U = torch.tensor(
            [_step_reward(extra_L[turn.row], turn) if of.step_rewards else 0.0 for turn in turns], dtype=torch.float32
        )
        return_U = _returns(outcome_U, step_U, trajectory_U, turns, rows, reward_LT.shape[1], of) + penalty_U
        anchor_U = number_labels(_anchor(extra_L[turn.row], turn) for turn in turns)
        advantage_U, stats = gigpo(
            outcome_U + penalty_U,
            return_U,
            group_U,
            anchor_U,
            weight=of.weight,
            by_std=of.by_std,
            over=of.over,
            trajectory_N=trajectory_U,
        )
        metrics = gigpo_metrics(stats, len(responses))
    else:
        by_std = config.get("norm_adv_by_std_in_grpo", True)
        advantage_U = grpo_advantages(outcome_U + penalty_U, group_U, by_std=by_std)
    advantage_LT = torch.zeros(reward_LT.shape, dtype=advantage_U.dtype)
    advantage_LT.view(-1)[responses.token_M] = advantage_U[responses.response_M]
    return Base(advantage_LT, advantage_LT, metrics)


def _all_turns(responses: Responses, extra_L: ExtraFields) -> list[_Turn]:
    """The responses in their order; then the turns that are masked whole, whose rewards stay in the baseline."""
    width = max(responses.shape[1], 1)
    places = zip(
        responses.row_N.tolist(), responses.span_N.tolist(), (first_tokens(responses) % width).tolist(), strict=True
    )
    turns = [_Turn(*place) for place in places]
    found = {(turn.row, turn.span) for turn in turns}
    rows_found = {row for row, _ in found}
    for row, extra in enumerate(extra_L):
        if "response_spans" in extra:
            spans = enumerate(extra["response_spans"])
            turns += [_Turn(row, span, int(start)) for span, (start, _) in spans if (row, span) not in found]
        elif row not in rows_found:
            turns.append(_Turn(row, 0, 0))
    return turns


def _outcomes(reward_LT: Tensor, rows: Rows) -> Tensor:
    """The outcome of each row's trajectory: the summed reward of its last row."""
    outcome_L = reward_LT.new_zeros(len(reward_LT))
    for of_one in rows.trajectories():
        outcome_L[of_one] = reward_LT[of_one[-1]].sum()
    return outcome_L


def _returns(
    outcome_U: Tensor,
    step_U: Tensor,
    trajectory_U: Tensor,
    turns: Sequence[_Turn],
    rows: Rows,
    width: int,
    settings: GigpoSettings,
) -> Tensor:
    """Discounted returns, of the environment's own rewards before the last turn, and of the outcome with that.

    What the environment gave for the last turn is left out: it is how it rewards the end, and the outcome is that.
    """
    # within a trajectory by row and within a row by place, wherever verl's balancing has put the rows
    turn_U = torch.tensor([rows.order_L[turn.row] * (width + 1) + turn.start for turn in turns], dtype=torch.int64)
    last_U = torch.full_like(turn_U, -1).scatter_reduce_(0, trajectory_U, turn_U, "amax")[trajectory_U]
    reward_U = torch.where(turn_U == last_U, outcome_U, settings.step_rewards * step_U)
    return discounted_returns(reward_U, trajectory_U, turn_U, settings.gamma)


def _penalty(extra: Mapping[str, Any], turn: _Turn) -> float:
    """`turn_penalties` of a turn, 0 where the loop recorded none."""
    return float(extra["turn_penalties"][turn.span]) if extra.get("turn_penalties") else 0.0


def _step_reward(extra: Mapping[str, Any], turn: _Turn) -> float:
    """What the environment gave for a turn, 0 where the loop recorded nothing."""
    return float(extra["turn_rewards"][turn.span]) if extra.get("turn_rewards") else 0.0


def _anchor(extra: Mapping[str, Any], turn: _Turn) -> str:
    """The raw observation that the turn answered."""
    if "anchors" not in extra:
        raise AEMValueError(
            "gigpo compares turns that answered the same observation, and the agent loop left no "
            "extra_fields['anchors']: use the agent loop `environment`, or another estimator"
        )
    return extra["anchors"][turn.span]
