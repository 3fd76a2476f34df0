"""`algorithm.adv_estimator=aem`: base advantages by verl, then modulation by `aem_core`, on one batch of V1 rows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aem_core import Responses, aem, find_responses
from recipe.aem.bases import Rows, grpo_rows, once_a_trajectory
from recipe.aem.metrics import aem_metrics
from recipe.aem.settings import GAE, ROW_BASES, AemSettings


@dataclass
class SideInfo:
    """What verl does not hand to an estimator: one entry a row of the batch, in the batch's order.

    Attributes:
        settings: of this run.
        keys: `{uid}_{session}_{index}`, verl's name of a row.
        is_padding: rows that verl added to fill a mini-batch.
        extra_fields: what the agent loop left with the row (see `agent_loops.loop`).
        entropy_BT: nats, of the old policy, response-aligned.
        values_BT: the critic's, for the base `gae`.
        step: verl's global step.
        metrics: verl's dictionary of the step's metrics; written to.
        seconds: what fetching this information took.
    """

    settings: AemSettings
    keys: Sequence[str]
    is_padding: Sequence[bool]
    extra_fields: Sequence[Mapping[str, Any] | None]
    entropy_BT: Tensor
    values_BT: Tensor | None
    step: int
    metrics: dict[str, Any]
    seconds: float = 0.0


def modulated_advantages(
    side: SideInfo,
    reward_BT: Tensor,
    mask_BT: Tensor,
    group_B: Sequence[Any],
    config: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of a batch: α · base on every response, the base's own returns.

    Args:
        side: what the seam fetched.
        reward_BT: token-level rewards (KL in the reward already applied by verl).
        mask_BT: response mask; what rollout correction rejected is 0 in it.
        group_B: verl's uid of each row.
        config: `config.algorithm`.

    Raises:
        ValueError: the side information does not fit the batch.
    """
    if len(side.keys) != len(mask_BT) or side.entropy_BT.shape != mask_BT.shape:
        raise ValueError(
            f"entropy {tuple(side.entropy_BT.shape)} of {len(side.keys)} rows does not fit the response mask "
            f"{tuple(mask_BT.shape)}: the batch changed between the old-policy pass and the advantage"
        )
    live_L = [row for row, padding in enumerate(side.is_padding) if not padding]
    rows = _rows(side, group_B, live_L)
    extra_L = [side.extra_fields[row] or {} for row in live_L]
    reward_LT, mask_LT = reward_BT[live_L], mask_BT[live_L]
    responses = _responses(extra_L, mask_LT)
    group_L, trajectory_L = _labels(rows.group_B), _labels(rows.trajectory_B)

    base_LT, return_LT = _base(side, reward_LT, mask_LT, rows, responses, group_L, extra_L, live_L, config)

    started = time.perf_counter()
    settings = side.settings
    final_LT, stats = aem(
        base_LT,
        side.entropy_BT[live_L],
        responses,
        group_L,
        lam=settings.lam,
        min_range=settings.min_range,
        scope=settings.scope,
        trajectory_B=trajectory_L,
        direction=settings.direction,
        # another permutation at each step, the same one in a repeated run
        shuffle=None if settings.shuffle is None else settings.shuffle + side.step,
    )
    side.metrics.update(aem_metrics(stats, _first_token(base_LT, responses), group_L[responses.row_N]))
    advantage_BT, return_BT = (torch.zeros(mask_BT.shape, dtype=final_LT.dtype) for _ in range(2))
    advantage_BT[live_L], return_BT[live_L] = final_LT, return_LT.to(final_LT.dtype)
    side.metrics["timing_s/aem"] = side.seconds + time.perf_counter() - started
    return advantage_BT, return_BT


def _rows(side: SideInfo, group_B: Sequence[Any], live_L: list[int]) -> Rows:
    names = [side.keys[row].rsplit("_", 2) for row in live_L]
    return Rows(
        group_B=[str(group_B[row]) for row in live_L],
        trajectory_B=[f"{uid}_{session}" for uid, session, _ in names],
        order_B=[int(index) for _, _, index in names],
    )


def _labels(names: Sequence[str]) -> Tensor:
    return torch.from_numpy(np.unique(np.asarray(names, dtype=str), return_inverse=True)[1].astype(np.int64))


def _responses(extra_L: Sequence[Mapping[str, Any]], mask_LT: Tensor) -> Responses:
    """The loop's own spans where it recorded them, else maximal runs of the mask; never a token off the mask."""
    runs = find_responses(mask_LT)
    if not any("response_spans" in extra for extra in extra_L):
        return runs
    spans = [[(int(start), int(stop)) for start, stop in extra.get("response_spans", ())] for extra in extra_L]
    without = {row for row, extra in enumerate(extra_L) if "response_spans" not in extra}
    first_N = runs.token_M[runs.length_N.cumsum(0) - runs.length_N] % mask_LT.shape[1]
    for row, start, length in zip(runs.row_N.tolist(), first_N.tolist(), runs.length_N.tolist(), strict=True):
        if row in without:
            spans[row].append((start, start + length))
    return Responses.from_spans(spans, shape=runs.shape, mask_BT=mask_LT)


def _base(
    side: SideInfo,
    reward_LT: Tensor,
    mask_LT: Tensor,
    rows: Rows,
    responses: Responses,
    group_L: Tensor,
    extra_L: Sequence[Mapping[str, Any]],
    live_L: list[int],
    config: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    name = side.settings.base_estimator
    if name in ROW_BASES:
        turn_reward_N = _trajectory_reward(reward_LT, rows)[responses.row_N] + _penalties(extra_L, responses)
        by_std = config.get("norm_adv_by_std_in_grpo", True)
        advantage_N = grpo_rows(turn_reward_N, group_L[responses.row_N], by_std=by_std)
        advantage_LT = torch.zeros(mask_LT.shape)
        advantage_LT.view(-1)[responses.token_M] = advantage_N[responses.response_M]
        return advantage_LT, advantage_LT
    if name == GAE:
        if side.values_BT is None:
            raise ValueError("algorithm.aem.base_estimator=gae: the batch holds no `values`; set critic.enable=True")
        return _verl_advantages(name, config, reward_LT, mask_LT, rows.group_B, values_BT=side.values_BT[live_L])

    def estimator(reward: Tensor, mask: Tensor, groups: list) -> Tensor:
        return _verl_advantages(name, config, reward, mask, groups)[0]

    advantage_LT = once_a_trajectory(reward_LT, mask_LT, rows, estimator)
    return advantage_LT, advantage_LT


def _trajectory_reward(reward_LT: Tensor, rows: Rows) -> Tensor:
    """The outcome of each row's trajectory: the summed reward of its last row."""
    outcome_L = reward_LT.new_zeros(len(reward_LT))
    for of_one in rows.trajectories():
        outcome_L[of_one] = reward_LT[of_one[-1]].sum()
    return outcome_L


def _penalties(extra_L: Sequence[Mapping[str, Any]], responses: Responses) -> Tensor:
    """`extra_fields["turn_penalties"]` of each response, 0 where the loop recorded none."""
    penalties = [
        float(extra_L[row]["turn_penalties"][span]) if extra_L[row].get("turn_penalties") else 0.0
        for row, span in zip(responses.row_N.tolist(), responses.span_N.tolist(), strict=True)
    ]
    return torch.tensor(penalties, dtype=torch.float32)


def _verl_advantages(
    name: str,
    config: Mapping[str, Any],
    reward_BT: Tensor,
    mask_BT: Tensor,
    group_B: Sequence[str],
    values_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """verl's own `compute_advantage`, so that each base gets the arguments verl gives it."""
    from verl import DataProto
    from verl.trainer.ppo.ray_trainer import compute_advantage

    tensors = {"token_level_rewards": reward_BT, "response_mask": mask_BT}
    if values_BT is not None:
        tensors["values"] = values_BT
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


def _first_token(value_BT: Tensor, responses: Responses) -> Tensor:
    """The value on the first token of each response; outcome bases are constant on a response."""
    first_N = responses.token_M[responses.length_N.cumsum(0) - responses.length_N]
    return value_BT.reshape(-1)[first_N]
