"""The advantages of one batch: the base's (`bases.py`), then modulation by `aem_core`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aem_core import AemStats, EmpgStats, aem, empg
from aem_core.errors import AEMValueError
from recipe.aem.batch import Batch, first_tokens
from recipe.aem.keys import number_labels
from recipe.aem.seam.bases import base_advantages
from recipe.aem.seam.metrics import aem_metrics, empg_metrics
from recipe.aem.settings import AEM, EMPG, RelativeTo, Settings


@dataclass(frozen=True)
class Computed:
    """How the advantages of a batch came about.

    Attributes:
        batch: with the response mask that the estimator saw; `batch.live` are the rows that took part.
        reward_BT: token-level rewards, as the estimator saw them.
        base_BT: the base's advantages, 0 in rows that took no part.
        advantage_BT: what the update uses.
        stats: the modulation's, over the responses of `batch.live`; None for an estimator without one.
    """

    batch: Batch
    reward_BT: Tensor
    base_BT: Tensor
    advantage_BT: Tensor
    stats: AemStats | EmpgStats | None = None


@dataclass
class Advance:
    """One computation of advantages, and what verl does not hand to an estimator.

    Attributes:
        batch: with the columns that `settings` ask for.
        settings: of this run; None for an estimator that is not of this package.
        step: verl's global step.
        metrics: verl's dictionary of the step's metrics; written to.
        seconds: what fetching the batch took.
        computed: filled when the advantages are there.
    """

    batch: Batch
    settings: Settings | None
    step: int
    metrics: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    computed: Computed | None = None


def compute_advantages(
    advance: Advance, reward_BT: Tensor, mask_BT: Tensor, config: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of a batch: the base's, modulated where the estimator is a modulator.

    Padding rows, trajectories with a fault, and what faults left alone in its group take no part in any statistic:
    their advantages and returns are 0, and the others' are those of a batch without them.

    Args:
        advance: the batch, and the settings of an estimator of this package.
        reward_BT: token-level rewards. KL in the reward is already taken off, that of a whole trajectory in its last
            row (`recipe.aem.seam.bases.kl_on_last_rows`).
        mask_BT: response mask; what rollout correction rejected is 0 in it.
        config: `config.algorithm`.

    Raises:
        ValueError: the batch does not fit the mask.
    """
    settings = advance.settings
    assert settings is not None
    batch = advance.batch.with_mask(mask_BT)
    live = batch.live
    rows = list(live.rows)
    if not rows:
        return torch.zeros(mask_BT.shape), torch.zeros(mask_BT.shape)
    base = base_advantages(settings, config, live, reward_BT[rows])
    advance.metrics.update(base.metrics)

    # the base's own seconds are not the modulation's
    started = time.perf_counter()
    advantage_LT, stats = base.advantage_BT, None
    if settings.measure is not None:
        measure_LT = live.padded(settings.measure).float()
        if settings.measure == "old_log_probs":  # a surprisal is −log π
            measure_LT = -measure_LT
        advantage_LT, stats = _modulate(advance, settings, live, base.advantage_BT, measure_LT)
    advantage_BT, return_BT, base_BT = (
        torch.zeros(mask_BT.shape, dtype=advantage_LT.dtype).index_copy_(0, torch.tensor(rows), value)
        for value in (advantage_LT, base.return_BT.to(advantage_LT.dtype), base.advantage_BT.to(advantage_LT.dtype))
    )
    advance.computed = Computed(batch, reward_BT, base_BT, advantage_BT, stats)
    advance.metrics[f"timing_s/{settings.estimator}"] = advance.seconds + time.perf_counter() - started
    return advantage_BT, return_BT


def _modulate(
    advance: Advance, settings: Settings, live: Batch, base_BT: Tensor, measure_BT: Tensor
) -> tuple[Tensor, AemStats | EmpgStats]:
    responses = live.responses
    # outcome bases are constant on a response
    base_N = base_BT.reshape(-1)[first_tokens(responses)]
    if settings.estimator == AEM:
        of = settings.aem
        advantage_BT, stats = aem(
            base_BT,
            measure_BT,
            responses,
            live.group_B,
            lam=of.lam,
            min_range=of.min_range,
            scope=of.scope,
            trajectory_B=live.trajectory_B,
            direction=of.direction,
            mean=of.mean,
            # another permutation at each step, the same one in a repeated run
            shuffle=None if of.shuffle is None else of.shuffle + advance.step,
            relative_to_N=None if of.relative_to is None else _kinds(of.relative_to, live),
        )
        advance.metrics.update(aem_metrics(stats, base_N, live.group_B[responses.row_N]))
        return advantage_BT, stats
    assert settings.estimator == EMPG
    of = settings.empg
    # responses are numbered by place within a row, so this grows with time within a trajectory
    turn_N = live.order_B[responses.row_N] * len(responses) + torch.arange(len(responses))
    advantage_BT, stats = empg(
        base_BT,
        measure_BT,
        responses,
        live.trajectory_B[responses.row_N],
        turn_N,
        k=of.k,
        k_future=of.k_future,
        zeta=of.zeta,
        scaling=of.scaling,
        bonus=of.bonus,
        recentre=of.recentre,
    )
    advance.metrics.update(empg_metrics(stats, base_N))
    return advantage_BT, stats


def _kinds(relative_to: RelativeTo, live: Batch) -> Tensor:
    """What `algorithm.aem.relative_to` compares responses by, as integer labels."""
    column = {"turn_kind": "turn_kinds", "anchor": "anchors"}[relative_to]
    if not all(column in live.extra_fields[row] for row, _ in live.places):
        raise AEMValueError(
            f"algorithm.aem.relative_to={relative_to} compares a response with others of its kind, and the "
            f"agent loop left no extra_fields['{column}']: use the agent loop `environment`, or set it to null"
        )
    return number_labels(live.entries(column))
