"""One batch of V1 rows: base advantages (`bases.py`), then modulation by `aem_core`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aem_core import AemStats, EmpgStats, Responses, aem, empg
from aem_core.errors import AEMValueError
from recipe.aem.rows import ExtraFields, Rows, first_tokens, number_labels, responses_of_rows, trained_rows
from recipe.aem.seam.bases import base_advantages
from recipe.aem.seam.metrics import aem_metrics, empg_metrics
from recipe.aem.settings import AEM, EMPG, RelativeTo, Settings


@dataclass(frozen=True)
class Computed:
    """How the advantages came about; L counts the rows that take part (`recipe.aem.rows.trained_rows`).

    Attributes:
        live_L: the rows' numbers in the batch.
        responses: of these rows.
        base_LT: the base's advantages.
        stats: the modulation's; None for an estimator without one.
    """

    live_L: Sequence[int]
    responses: Responses
    base_LT: Tensor
    stats: AemStats | EmpgStats | None


@dataclass
class SideInfo:
    """What verl does not hand to an estimator: one entry a row of the batch, in the batch's order.

    Attributes:
        settings: of this run.
        keys: `{uid}_{session}_{index}`, verl's name of a row.
        is_padding: rows that verl added to fill a mini-batch.
        extra_fields: what the agent loop left with the row (see `agent_loops.loop`).
        measure_BT: what the modulation is made from, response-aligned, nats: entropies of the old policy, or −log π of
            the sampled tokens; None for an estimator without modulation.
        value_BT: the critic's, for the base `gae`.
        step: verl's global step.
        metrics: verl's dictionary of the step's metrics; written to.
        seconds: what fetching this information took.
        computed: filled by `compute_advantages`, for whoever wants to see more than the result.
    """

    settings: Settings
    keys: Sequence[str]
    is_padding: Sequence[bool]
    extra_fields: Sequence[Mapping[str, Any] | None]
    measure_BT: Tensor | None
    value_BT: Tensor | None
    step: int
    metrics: dict[str, Any]
    seconds: float = 0.0
    computed: Computed | None = None


def compute_advantages(
    side: SideInfo,
    reward_BT: Tensor,
    mask_BT: Tensor,
    group_B: Sequence[Any],
    config: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of a batch: the base's, modulated where the estimator is a modulator.

    Padding rows, trajectories with a fault, and what faults left alone in its group take no part in any statistic:
    their advantages and returns are 0, and the others' are those of a batch without them.

    Args:
        side: what the seam fetched.
        reward_BT: token-level rewards. KL in the reward is already taken off, that of a whole trajectory in its last
            row (`recipe.aem.seam.bases.kl_on_last_rows`).
        mask_BT: response mask; what rollout correction rejected is 0 in it.
        group_B: verl's uid of each row.
        config: `config.algorithm`.

    Raises:
        AEMValueError: the side information does not fit the batch.
    """
    for given in (side.measure_BT, side.value_BT):
        if len(side.keys) != len(mask_BT) or (given is not None and given.shape != mask_BT.shape):
            shape = None if given is None else tuple(given.shape)
            raise AEMValueError(
                f"side information {shape} of {len(side.keys)} rows does not fit the response mask "
                f"{tuple(mask_BT.shape)}: the batch changed between the old-policy pass and the advantage"
            )
    live_L = trained_rows(side.keys, group_B, side.is_padding, side.extra_fields)
    if not live_L:
        return torch.zeros(mask_BT.shape), torch.zeros(mask_BT.shape)
    rows = Rows.from_keys([side.keys[row] for row in live_L], [group_B[row] for row in live_L])
    extra_L = [side.extra_fields[row] or {} for row in live_L]
    reward_LT, mask_LT = reward_BT[live_L], mask_BT[live_L]
    value_LT = None if side.value_BT is None else side.value_BT[live_L]
    responses = responses_of_rows(extra_L, mask_LT)

    base = base_advantages(side.settings, config, reward_LT, mask_LT, rows, responses, extra_L, value_LT)
    side.metrics.update(base.metrics)

    # the base's own seconds are not the modulation's
    started = time.perf_counter()
    advantage_LT, stats = base.advantage_LT, None
    if side.settings.measure is not None and side.measure_BT is not None:
        advantage_LT, stats = _modulate(side, base.advantage_LT, side.measure_BT[live_L], rows, responses, extra_L)
    side.computed = Computed(live_L, responses, base.advantage_LT, stats)
    advantage_BT, return_BT = (torch.zeros(mask_BT.shape, dtype=advantage_LT.dtype) for _ in range(2))
    advantage_BT[live_L], return_BT[live_L] = advantage_LT, base.return_LT.to(advantage_LT.dtype)
    side.metrics[f"timing_s/{side.settings.estimator}"] = side.seconds + time.perf_counter() - started
    return advantage_BT, return_BT


def _modulate(
    side: SideInfo, base_LT: Tensor, measure_LT: Tensor, rows: Rows, responses: Responses, extra_L: ExtraFields
) -> tuple[Tensor, AemStats | EmpgStats]:
    group_L, trajectory_L = number_labels(rows.group_L), number_labels(rows.trajectory_L)
    # outcome bases are constant on a response
    base_N = base_LT.reshape(-1)[first_tokens(responses)]
    if side.settings.estimator == AEM:
        of = side.settings.aem
        advantage_LT, stats = aem(
            base_LT,
            measure_LT,
            responses,
            group_L,
            lam=of.lam,
            min_range=of.min_range,
            scope=of.scope,
            trajectory_B=trajectory_L,
            direction=of.direction,
            mean=of.mean,
            # another permutation at each step, the same one in a repeated run
            shuffle=None if of.shuffle is None else of.shuffle + side.step,
            relative_to_N=None if of.relative_to is None else _kinds(of.relative_to, responses, extra_L),
        )
        side.metrics.update(aem_metrics(stats, base_N, group_L[responses.row_N]))
        return advantage_LT, stats
    assert side.settings.estimator == EMPG
    of = side.settings.empg
    order_L = torch.tensor(rows.order_L, dtype=torch.int64)
    # responses are numbered by place within a row, so this grows with time within a trajectory
    turn_N = order_L[responses.row_N] * len(responses) + torch.arange(len(responses))
    advantage_LT, stats = empg(
        base_LT,
        measure_LT,
        responses,
        trajectory_L[responses.row_N],
        turn_N,
        k=of.k,
        k_future=of.k_future,
        zeta=of.zeta,
        scaling=of.scaling,
        bonus=of.bonus,
        recentre=of.recentre,
    )
    side.metrics.update(empg_metrics(stats, base_N))
    return advantage_LT, stats


def _kinds(relative_to: RelativeTo, responses: Responses, extra_L: ExtraFields) -> Tensor:
    """What `algorithm.aem.relative_to` compares responses by, as integer labels."""
    column = {"turn_kind": "turn_kinds", "anchor": "anchors"}[relative_to]
    if not all(column in extra_L[row] for row in set(responses.row_N.tolist())):
        raise AEMValueError(
            f"algorithm.aem.relative_to={relative_to} compares a response with others of its kind, and the "
            f"agent loop left no extra_fields['{column}']: use the agent loop `environment`, or set it to null"
        )
    return number_labels(
        extra_L[row][column][span]
        for row, span in zip(responses.row_N.tolist(), responses.span_N.tolist(), strict=True)
    )
