"""AEM, adaptive entropy modulation (arXiv 2605.00425): settings, advantages from a `Batch`, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from aem_core import AemEffect, AemStats, Direction, Mean, Scope, aem, aem_effect
from aem_core.errors import AEMValueError
from recipe.aem.batch import Batch, first_tokens
from recipe.aem.columns import number_labels
from recipe.aem.methods.algorithm import Measure, Modulator
from recipe.aem.settings import is_integer

Proxy = Literal["entropy", "surprisal"]
RelativeTo = Literal["turn_kind", "anchor"]
NOISE = 0.5
"""The reliability below which most of what separates a set's entropies is the tokens' own variance."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class AemSettings(Modulator):
    """`algorithm.aem`; the defaults are the paper's (arXiv 2605.00425), except for `base_estimator`.

    Attributes:
        base_estimator: the advantage to modulate: an estimator registered in verl, `grpo_rows`, `gigpo`, `hgpo` or
            `ecpo`.
        lam: λ, the strength; 0 returns the base advantages.
        min_range: nats; a group whose response entropies span less keeps α = 1. 0 switches the guard off.
        scope: the set of responses over which minimum, maximum and mean are taken.
        direction: `reversed` rewards uncertain responses instead (the paper's ablation).
        mean: whether mean α is 1 over responses or over tokens.
        shuffle: a seed; α is then permuted among the responses of each group (the paper's ablation).
        relative_to: null, `turn_kind` or `anchor`: subtract from each entropy the mean over the set's responses on the
            same kind of turn, or to the same observation (ours, exploratory).
        proxy: `surprisal` uses the length-normalised −log π instead of the entropy (ours; needs no entropies).
    """

    name: ClassVar = "aem"
    numbers: ClassVar = ("lam", "min_range")
    choices: ClassVar = {
        "scope": get_args(Scope),
        "direction": get_args(Direction),
        "mean": get_args(Mean),
        "proxy": get_args(Proxy),
        "relative_to": (None, *get_args(RelativeTo)),
    }
    weight: ClassVar = "alpha"
    symbol: ClassVar = "α"
    metric_prefix: ClassVar = "aem/alpha/"
    without_entropies: ClassVar = ("proxy", "surprisal")

    base_estimator: str = "grpo"
    lam: float = 1.0
    min_range: float = 0.1
    scope: Scope = "group"
    direction: Direction = "forward"
    mean: Mean = "response"
    shuffle: int | None = None
    relative_to: RelativeTo | None = None
    proxy: Proxy = "entropy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shuffle is not None and not (is_integer(self.shuffle) and self.shuffle >= 0):
            self.refuse("shuffle", "null or an integer seed, not negative")

    @property
    def measure(self) -> Measure:
        return "old_log_probs" if self.proxy == "surprisal" else "entropies"

    @property
    def whole_batch(self) -> str:
        if self.scope == "batch":
            return "aem.scope=batch takes its statistics over the whole batch"
        return "" if self.shuffle is None else "aem.shuffle draws one permutation for the whole batch"

    def modulate(
        self, batch: Batch, base_BT: Tensor, measure_BT: Tensor, step: int
    ) -> tuple[Tensor, AemStats, Mapping[str, float]]:
        responses = batch.responses
        advantage_BT, stats = aem(
            base_BT,
            measure_BT,
            responses,
            batch.group_B,
            lam=self.lam,
            min_range=self.min_range,
            scope=self.scope,
            trajectory_B=batch.trajectory_B,
            direction=self.direction,
            mean=self.mean,
            # a different permutation at each step, the same in a repeated run
            shuffle=None if self.shuffle is None else self.shuffle + step,
            relative_to_N=None if self.relative_to is None else _kinds(self.relative_to, batch),
        )
        # outcome bases are constant on a response
        base_N = base_BT.reshape(-1)[first_tokens(responses)]
        metrics = aem_metrics(stats, base_N, batch.group_B[responses.row_N])
        effect = aem_effect(base_N, stats, measure_BT, responses, validate=False)
        metrics |= effect_metrics(effect, stats, reliability=self.relative_to is None)
        return advantage_BT, stats, metrics


def _kinds(relative_to: RelativeTo, batch: Batch) -> Tensor:
    """Return each response's kind according to `algorithm.aem.relative_to`, as integer labels."""
    column = {"turn_kind": "turn_kinds", "anchor": "anchors"}[relative_to]
    if not all(column in batch.extra_fields[row] for row, _ in batch.places):
        raise AEMValueError(
            f"algorithm.aem.relative_to={relative_to} compares a response with others of its kind, and the "
            f"agent loop left no extra_fields['{column}']: use the agent loop `environment`, or set it to null"
        )
    return number_labels(batch.entries(column))


def aem_metrics(stats: AemStats, advantage_N: Tensor, group_N: Tensor) -> dict[str, float]:
    """Summarise the responses of one batch, with their base advantages and prompt groups; empty without responses.

    verl averages metrics over the sub-batches of a step by substrings of their names (`max`, `min`, `sum`, `total`,
    `mean`), so the names here contain such a word only where that rule is right.
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


def effect_metrics(effect: AemEffect, stats: AemStats, reliability: bool = True) -> dict[str, float]:
    """Summarise what AEM did to its sets of responses, each counted once; empty for a batch without responses.

    Args:
        effect: from `aem_core.aem_effect`.
        stats: from `aem_core.aem`.
        reliability: whether α was computed from the entropies themselves, of which the reliability tells.
    """
    if not len(stats.alpha_N):
        return {}
    sets = int(stats.scope_N.max()) + 1
    shift_G, net_G, reliable_G, guarded_G = (
        value_N.new_empty(sets).scatter_(0, stats.scope_N, value_N)
        for value_N in (effect.shift_N, effect.net_N, effect.reliability_N, stats.guarded_N)
    )
    metrics = {
        "aem/groups/shift_mean": shift_G.mean(),
        "aem/groups/shift_abs_mean": shift_G.abs().mean(),
        "aem/groups/net_mean": net_G.mean(),
        "aem/groups/net_abs_mean": net_G.abs().mean(),
    }
    reliable_G = reliable_G[~guarded_G & ~reliable_G.isnan()]
    if reliability and len(reliable_G):
        metrics["aem/reliability/mean"] = reliable_G.mean()
        metrics["aem/reliability/noise"] = (reliable_G < NOISE).double().mean()
    return {name: float(value) for name, value in metrics.items()}


def _constant_groups(advantage_N: Tensor, group_N: Tensor) -> Tensor:
    """Return the share of prompt groups whose responses all have the same base advantage: nothing to learn from."""
    group_N = torch.unique(group_N, return_inverse=True)[1]
    size = int(group_N.max()) + 1
    low = torch.full((size,), float("inf")).scatter_reduce(0, group_N, advantage_N, "amin")
    high = torch.full((size,), float("-inf")).scatter_reduce(0, group_N, advantage_N, "amax")
    return (high - low < 1e-6).float().mean()
