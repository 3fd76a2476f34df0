"""Advantages of sampled rows, by the function that the seam calls inside verl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from aem_core import aem_effect, rescale_advantages
from recipe.aem.batch import Batch, first_tokens
from recipe.aem.methods.aem import aem_metrics, effect_metrics
from recipe.aem.methods.registry import Settings
from recipe.aem.seam.advantage import AdvantageStep, Computed, compute_advantages
from replica_parts.kinds import of_the_kind
from replica_parts.rollout import Row

ALPHA_OF_KIND = "alpha_of_kind"
"""The one setting under `algorithm` that only the replica knows (`kinds.of_the_kind`). verl must not get it."""


def advantages(
    rows: Sequence[Row],
    mask_BT: Tensor,
    old_BT: Tensor,
    entropy_BT: Tensor,
    algorithm: Mapping[str, Any],
    settings: Settings,
    step: int,
    metrics: dict[str, Any],
) -> tuple[Tensor, Computed | None]:
    """Compute advantages, (B, T), and how, where the estimator is ours; update the metrics in place."""
    reward_BT = torch.zeros(mask_BT.shape)
    for number, row in enumerate(rows):
        reward_BT[number, len(row.response) - 1] = row.reward
    batch = Batch.from_columns(
        keys=[row.key for row in rows],
        tokens={"response_mask": mask_BT, "old_log_probs": old_BT, "entropies": entropy_BT},
        extra_fields=[row.extra for row in rows],
        groups=[row.group for row in rows],
    )
    advance = AdvantageStep(batch, settings, step, metrics)
    advantage_BT, _ = compute_advantages(advance, reward_BT, mask_BT, algorithm)
    computed = advance.computed
    if not algorithm.get(ALPHA_OF_KIND):
        return advantage_BT, computed
    assert computed is not None
    base_BT, responses = computed.base_BT, batch.responses
    stats = of_the_kind(rows, computed)
    base_N = base_BT.reshape(-1)[first_tokens(responses)]
    metrics.update(aem_metrics(stats, base_N, batch.group_B[responses.row_N]))
    metrics.update(effect_metrics(aem_effect(base_N, stats, entropy_BT, responses), stats))
    return rescale_advantages(base_BT, stats.alpha_N, responses), replace(computed, stats=stats)
