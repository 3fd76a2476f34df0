"""What an algorithm is to the rest of this package: a block of settings that computes advantages."""

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
    """What a base estimator gives.

    Attributes:
        advantage_BT: 0 off the mask.
        return_BT: what verl calls returns; the advantages themselves for an outcome estimator.
        metrics: for verl's tracking.
    """

    advantage_BT: Tensor
    return_BT: Tensor
    metrics: Mapping[str, float] = field(default_factory=dict)


class Base(Block):
    """An estimator that sees every response with its own reward, and not a trajectory's one outcome."""

    metric_prefix: ClassVar[str] = ""
    """Of its metrics, by which a run without a dump is known."""

    @abstractmethod
    def advantages(self, algorithm: Mapping[str, Any], batch: Batch, reward_BT: Tensor) -> BaseAdvantages:
        """The advantages of a batch of rows that all take part.

        Args:
            algorithm: `config.algorithm`.
            batch: the rows.
            reward_BT: token-level rewards, KL where `kl_on_last_rows` puts it.
        """


class Modulator(Block):
    """An estimator that modulates the advantages of another one, `base_estimator`, by a measure of uncertainty."""

    weight: ClassVar[str]
    """Of the dump's column `weights`: the stats have it as `{weight}_N`."""
    symbol: ClassVar[str]
    """How reports write it."""
    metric_prefix: ClassVar[str]
    without_entropies: ClassVar[tuple[str, str] | None] = None
    """The setting, and its value, with which it needs none."""

    base_estimator: str

    @property
    def measure(self) -> Measure:
        """The column that the modulation is made from."""
        return "entropies"

    @property
    def whole_batch(self) -> str:
        """Why its statistics reach beyond the prompt group, in words; empty where they do not."""
        return ""

    @abstractmethod
    def modulate(
        self, batch: Batch, base_BT: Tensor, measure_BT: Tensor, step: int
    ) -> tuple[Tensor, Any, Mapping[str, float]]:
        """Modulate the base's advantages.

        Args:
            batch: of rows that all take part.
            base_BT: the base's advantages.
            measure_BT: entropies, or −log π of the sampled tokens, nats.
            step: verl's global step.

        Returns:
            The advantages, `aem_core`'s stats of them, and the metrics.
        """
