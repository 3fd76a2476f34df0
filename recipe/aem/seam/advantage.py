"""The advantages of one batch: the base's, then its modulation (`recipe.aem.methods`)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from recipe.aem.batch import Batch
from recipe.aem.methods.registry import Settings


@dataclass(frozen=True)
class Computed:
    """How the advantages of a batch came about.

    Attributes:
        batch: with the response mask that the estimator saw; `batch.live` are the rows that took part.
        reward_BT: token-level rewards, as the estimator saw them.
        base_BT: the base's advantages, 0 in rows that took no part.
        advantage_BT: what the update uses.
        stats: `aem_core`'s of the modulation, over the responses of `batch.live`; None for an estimator without one.
    """

    batch: Batch
    reward_BT: Tensor
    base_BT: Tensor
    advantage_BT: Tensor
    stats: Any = None


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
            row (`recipe.aem.methods.outcomes.kl_on_last_rows`).
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
    base = settings.base_advantages(config, live, reward_BT[rows])
    advance.metrics.update(base.metrics)

    # the base's own seconds are not the modulation's
    started = time.perf_counter()
    advantage_LT, stats = base.advantage_BT, None
    if (modulator := settings.modulator) is not None:
        measure_LT = live.padded(modulator.measure).float()
        if modulator.measure == "old_log_probs":  # a surprisal is −log π
            measure_LT = -measure_LT
        advantage_LT, stats, metrics = modulator.modulate(live, base.advantage_BT, measure_LT, advance.step)
        advance.metrics.update(metrics)
    advantage_BT, return_BT, base_BT = (
        torch.zeros(mask_BT.shape, dtype=advantage_LT.dtype).index_copy_(0, torch.tensor(rows), value)
        for value in (advantage_LT, base.return_BT.to(advantage_LT.dtype), base.advantage_BT.to(advantage_LT.dtype))
    )
    advance.computed = Computed(batch, reward_BT, base_BT, advantage_BT, stats)
    advance.metrics[f"timing_s/{settings.estimator}"] = advance.seconds + time.perf_counter() - started
    return advantage_BT, return_BT
