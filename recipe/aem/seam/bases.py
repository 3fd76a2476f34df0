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

from aem_core import discounted_returns, gigpo, grpo_advantages
from aem_core.errors import AEMValueError
from recipe.aem.batch import Batch, first_tokens
from recipe.aem.keys import number_labels, parse_key, rows_by_trajectory
from recipe.aem.seam.metrics import gigpo_metrics
from recipe.aem.settings import GAE, GIGPO, RESPONSE_BASES, GigpoSettings, Settings

Estimator = Callable[[Tensor, Tensor, list], Tensor]
"""(token_level_rewards, response_mask, group label of each row) -> advantages, all of one shape."""


@dataclass(frozen=True)
class BaseAdvantages:
    """A base estimator's result.

    Attributes:
        advantage_BT: 0 off the mask.
        return_BT: what verl calls returns; the advantages themselves for an outcome estimator.
        metrics: for verl's tracking.
    """

    advantage_BT: Tensor
    return_BT: Tensor
    metrics: Mapping[str, float] = field(default_factory=dict)


def base_advantages(settings: Settings, config: Mapping[str, Any], batch: Batch, reward_BT: Tensor) -> BaseAdvantages:
    """The advantages of the base that the settings name.

    Args:
        settings: of the run.
        config: `config.algorithm`.
        batch: of rows that all take part, with `values` for `gae`.
        reward_BT: token-level rewards, KL where `kl_on_last_rows` puts it.
    """
    if settings.base in RESPONSE_BASES:
        return _of_turns(settings, config, batch, reward_BT)
    if settings.base == GAE:
        if "values" not in batch.tokens:
            raise AEMValueError(
                f"algorithm.{settings.estimator}.base_estimator=gae: no `values`; set critic.enable=True"
            )
        value_BT = batch.padded("values").float()
        return BaseAdvantages(*verl_advantages(GAE, config, reward_BT, batch.mask_BT, batch.groups, value_BT))

    def estimator(reward: Tensor, mask: Tensor, groups: list) -> Tensor:
        return verl_advantages(settings.base, config, reward, mask, groups)[0]

    advantage_BT = once_a_trajectory(batch, reward_BT, estimator)
    return BaseAdvantages(advantage_BT, advantage_BT)


def once_a_trajectory(batch: Batch, reward_BT: Tensor, estimator: Estimator) -> Tensor:
    """Run an outcome estimator with one sequence a trajectory and bring its advantages back to the rows.

    The sequence is made of the trajectory's tokens under the mask; its reward is that of the last row (verl copies the
    outcome onto every row, and `kl_on_last_rows` brings the KL of all rows there), set on the last token. A trajectory
    that is masked whole keeps one token in the estimator's view, so that its reward stays in the baseline.

    Args:
        batch: of rows that all take part.
        reward_BT: token-level rewards.
        estimator: the base, as verl defines it.

    Returns:
        Advantages of the shape of `reward_BT`, 0 off the mask.
    """
    mask_BT = batch.mask_BT.bool()
    trajectories = list(batch.trajectories.values())
    # the tokens under the mask, trajectory after trajectory and row after row
    order = torch.tensor([row for rows in trajectories for row in rows], dtype=torch.int64)
    place_M = torch.arange(mask_BT.numel()).view(mask_BT.shape)[order][mask_BT[order]]
    length_K = torch.stack([mask_BT[rows].sum() for rows in trajectories])
    number_K = torch.arange(len(trajectories))
    trajectory_M = number_K.repeat_interleave(length_K)
    column_M = torch.arange(len(place_M)) - (length_K.cumsum(0) - length_K)[trajectory_M]

    kept_K = length_K.clamp(min=1)
    sequence_mask = (torch.arange(int(kept_K.max())) < kept_K[:, None]).long()
    sequence_reward = reward_BT.new_zeros(sequence_mask.shape)
    sequence_reward[number_K, kept_K - 1] = torch.stack([reward_BT[rows[-1]].sum() for rows in trajectories])
    groups = [batch.groups[rows[0]] for rows in trajectories]
    sequence_advantage = estimator(sequence_reward, sequence_mask, groups)

    advantage_BT = torch.zeros(mask_BT.shape, dtype=sequence_advantage.dtype)
    advantage_BT.view(-1)[place_M] = sequence_advantage[trajectory_M, column_M]
    return advantage_BT


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
    for *before, last in rows_by_trajectory([parse_key(key) for key in keys]).values():
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


def _of_turns(settings: Settings, config: Mapping[str, Any], batch: Batch, reward_BT: Tensor) -> BaseAdvantages:
    """`grpo_rows` and `gigpo`. A turn's reward is its trajectory's outcome plus what is due to that turn alone."""
    responses, extra = batch.responses, batch.extra_fields
    turns = _all_turns(batch)
    row_U = torch.tensor([turn.row for turn in turns], dtype=torch.int64)
    group_U = batch.group_B[row_U]
    trajectory_U = batch.trajectory_B[row_U]
    outcome_U = _outcomes(batch, reward_BT)[row_U]
    penalty_U = torch.tensor([_penalty(extra[turn.row], turn) for turn in turns], dtype=torch.float32)
    metrics: Mapping[str, float] = {}
    if settings.base == GIGPO:
        of = settings.gigpo
        # at 0 they are not read: the environment's scale is then no matter
        step_U = torch.tensor(
            [_step_reward(extra[turn.row], turn) if of.step_rewards else 0.0 for turn in turns], dtype=torch.float32
        )
        return_U = _returns(outcome_U, step_U, trajectory_U, turns, batch, of) + penalty_U
        anchor_U = number_labels(_anchor(extra[turn.row], turn) for turn in turns)
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
    advantage_BT = torch.zeros(reward_BT.shape, dtype=advantage_U.dtype)
    advantage_BT.view(-1)[responses.token_M] = advantage_U[responses.response_M]
    return BaseAdvantages(advantage_BT, advantage_BT, metrics)


def _all_turns(batch: Batch) -> list[_Turn]:
    """The responses in their order; then the turns that are masked whole, whose rewards stay in the baseline."""
    start_N = first_tokens(batch.responses) % max(batch.width, 1)
    turns = [_Turn(row, span, start) for (row, span), start in zip(batch.places, start_N.tolist(), strict=True)]
    found = set(batch.places)
    rows_found = {row for row, _ in found}
    for row, extra in enumerate(batch.extra_fields):
        if "response_spans" in extra:
            spans = enumerate(extra["response_spans"])
            turns += [_Turn(row, span, int(start)) for span, (start, _) in spans if (row, span) not in found]
        elif row not in rows_found:
            turns.append(_Turn(row, 0, 0))
    return turns


def _outcomes(batch: Batch, reward_BT: Tensor) -> Tensor:
    """The outcome of each row's trajectory: the summed reward of its last row."""
    outcome_B = reward_BT.new_zeros(len(reward_BT))
    for rows in batch.trajectories.values():
        outcome_B[rows] = reward_BT[rows[-1]].sum()
    return outcome_B


def _returns(
    outcome_U: Tensor,
    step_U: Tensor,
    trajectory_U: Tensor,
    turns: Sequence[_Turn],
    batch: Batch,
    settings: GigpoSettings,
) -> Tensor:
    """Discounted returns, of the environment's own rewards before the last turn, and of the outcome with that.

    What the environment gave for the last turn is left out: it is how it rewards the end, and the outcome is that.
    """
    # within a trajectory by row and within a row by place, wherever verl's balancing has put the rows
    turn_U = torch.tensor(
        [batch.row_keys[turn.row].index * (batch.width + 1) + turn.start for turn in turns], dtype=torch.int64
    )
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
