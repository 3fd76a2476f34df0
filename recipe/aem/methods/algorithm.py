"""The interface of an algorithm to the rest of this package: a block of settings that computes advantages."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from recipe.aem.batch import Batch
from recipe.aem.settings import Block

Measure = Literal["entropies", "old_log_probs"]


@dataclass(frozen=True)
class BaseAdvantages:
    """The result of a base estimator.

    Attributes:
        advantage_BT: 0 outside the mask.
        return_BT: what verl calls returns; for an outcome estimator, the advantages themselves.
        metrics: for verl's tracking.
    """

    advantage_BT: Tensor
    return_BT: Tensor
    metrics: Mapping[str, float] = field(default_factory=dict)


class Base(Block):
    """An estimator that gives every response a separate reward, rather than only its trajectory's outcome."""

    metric_prefix: ClassVar[str] = ""
    """The prefix of its metrics, by which reports recognise a run without a dump."""

    @abstractmethod
    def advantages(self, algorithm: Mapping[str, Any], batch: Batch, reward_BT: Tensor) -> BaseAdvantages:
        """Compute the advantages of a batch in which all rows take part.

        Args:
            algorithm: `config.algorithm`.
            batch: the rows.
            reward_BT: token-level rewards, with the KL placed as by `kl_on_last_rows`.
        """


class Modulator(Block):
    """An estimator that modulates the advantages of `base_estimator` by a measure of uncertainty."""

    weight: ClassVar[str]
    """The name of the values in the dump's column `weights`: the stats have them as `{weight}_N`."""
    symbol: ClassVar[str]
    """The symbol for the weight in reports."""
    metric_prefix: ClassVar[str]
    without_entropies: ClassVar[tuple[str, str] | None] = None
    """The setting, and its value, with which the estimator needs no entropies."""

    base_estimator: str

    @property
    def measure(self) -> Measure:
        """The column from which the modulation is computed."""
        return "entropies"

    @property
    def whole_batch(self) -> str:
        """The reason, in words, why its statistics extend beyond the prompt group; empty if they do not."""
        return ""

    @abstractmethod
    def modulate(
        self, batch: Batch, base_BT: Tensor, measure_BT: Tensor, step: int
    ) -> tuple[Tensor, Any, Mapping[str, float]]:
        """Modulate the base's advantages.

        Args:
            batch: all its rows take part.
            base_BT: the base's advantages.
            measure_BT: entropies, or −log π of the sampled tokens, nats.
            step: verl's global step.

        Returns:
            The advantages, their stats from `aem_core`, and the metrics.
        """
