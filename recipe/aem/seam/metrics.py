"""What a step of AEM, EMPG or GiGPO did, as numbers for verl's tracking. `docs/metrics.md` says how to read them."""

from __future__ import annotations

import torch
from torch import Tensor

from aem_core import AemStats, EmpgStats, GigpoStats

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def aem_metrics(stats: AemStats, advantage_N: Tensor, group_N: Tensor) -> dict[str, float]:
    """Summaries over the responses of one batch; empty where the batch holds no response.

    verl averages metrics over the sub-batches of a step by substrings of their names (`max`, `min`, `sum`, `total`,
    `mean`), so the names here contain such a word only where that rule is right.

    Args:
        stats: of `aem_core.aem`.
        advantage_N: base advantage of each response.
        group_N: integer label of each response's prompt group.
    """
    alpha_N = stats.alpha_N
    if not len(alpha_N):
        return {}
    advantage_N = advantage_N.float()
    positive, negative = advantage_N > 0, advantage_N < 0
    up, down = alpha_N > 1, alpha_N < 1
    metrics = {
        "aem/alpha/mean": alpha_N.mean(),
        "aem/alpha/min": alpha_N.min(),
        "aem/alpha/max": alpha_N.max(),
        "aem/entropy/mean": stats.entropy_N.mean(),
        "aem/entropy/range_mean": stats.range_G.mean(),
        "aem/groups/modulated": (~stats.guarded_G).float().mean(),
        "aem/groups/guarded": stats.guarded_G.float().mean(),
        "aem/groups/without_variance": _constant_groups(advantage_N, group_N),
        "aem/advantage/positive": positive.float().mean(),
        "aem/advantage/negative": negative.float().mean(),
        "aem/advantage/zero": (advantage_N == 0).float().mean(),
        "aem/advantage/modulated_mean": (alpha_N * advantage_N).mean(),
        "aem/quadrant/good_certain": (positive & up).float().mean(),
        "aem/quadrant/good_uncertain": (positive & down).float().mean(),
        "aem/quadrant/bad_certain": (negative & up).float().mean(),
        "aem/quadrant/bad_uncertain": (negative & down).float().mean(),
    }
    for share, value in zip(QUANTILES, torch.quantile(alpha_N.float(), torch.tensor(QUANTILES)), strict=True):
        metrics[f"aem/alpha/q{round(100 * share):02d}"] = value
    return {name: float(value) for name, value in metrics.items()}


def empg_metrics(stats: EmpgStats, advantage_N: Tensor) -> dict[str, float]:
    """Summaries over the responses of one batch; empty where the batch holds no response.

    Args:
        stats: of `aem_core.empg`.
        advantage_N: base advantage of each response.
    """
    if not len(stats.entropy_N):
        return {}
    final_N = advantage_N.float() * stats.scale_N + stats.bonus_N - stats.centre
    metrics = {
        "empg/scale/mean": stats.scale_N.mean(),
        "empg/scale/min": stats.scale_N.min(),
        "empg/scale/max": stats.scale_N.max(),
        "empg/bonus/mean": stats.bonus_N.mean(),
        "empg/centre": stats.centre,
        "empg/entropy/mean": stats.entropy_N.mean(),
        "empg/entropy/range": stats.entropy_N.max() - stats.entropy_N.min(),
        # unlike AEM, EMPG can turn an advantage round
        "empg/advantage/flipped": (final_N * advantage_N < 0).float().mean(),
        "empg/advantage/final_mean": final_N.mean(),
    }
    return {name: float(value) for name, value in metrics.items()}


def gigpo_metrics(stats: GigpoStats, responses: int) -> dict[str, float]:
    """How much GiGPO's step term had to work with.

    Args:
        stats: of `aem_core.gigpo`, the responses first; what follows are turns that are masked whole.
        responses: how many responses there are; empty without any.
    """
    if not responses:
        return {}
    return {
        "gigpo/step/alone": float(stats.alone_N[:responses].float().mean()),
        "gigpo/step/set_size_mean": float(stats.size_N[:responses].float().mean()),
        "gigpo/step/zero": float((stats.step_N[:responses] == 0).float().mean()),
        "gigpo/step/abs_mean": float(stats.step_N[:responses].abs().mean()),
        "gigpo/episode/abs_mean": float(stats.episode_N[:responses].abs().mean()),
    }


def _constant_groups(advantage_N: Tensor, group_N: Tensor) -> Tensor:
    """The share of prompt groups whose responses all have the same base advantage: nothing to learn from."""
    group_N = torch.unique(group_N, return_inverse=True)[1]
    size = int(group_N.max()) + 1
    low = torch.full((size,), float("inf")).scatter_reduce(0, group_N, advantage_N, "amin")
    high = torch.full((size,), float("-inf")).scatter_reduce(0, group_N, advantage_N, "amax")
    return (high - low < 1e-6).float().mean()
