"""Every algorithm of this package, once; and what a run asks of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recipe.aem.batch import Batch
from recipe.aem.methods.aem import AemSettings
from recipe.aem.methods.algorithm import Base, BaseAdvantages, Measure, Modulator
from recipe.aem.methods.empg import EmpgSettings
from recipe.aem.methods.epo import EpoSettings
from recipe.aem.methods.gigpo import GigpoSettings
from recipe.aem.methods.grpo_rows import GrpoRows
from recipe.aem.methods.outcomes import GAE, GRPO, OUTCOME_BASES, OVER_TRAJECTORIES, WHOLE_BATCH, of_verl
from recipe.aem.settings import Block

MODULATORS: Mapping[str, type[Modulator]] = {each.name: each for each in (AemSettings, EmpgSettings)}
RESPONSE_BASES: Mapping[str, type[Base]] = {each.name: each for each in (GigpoSettings, GrpoRows)}
"""Bases that see every response with its own reward, and not a trajectory's one outcome."""
LOSS_TERMS: Mapping[str, type[Block]] = {EpoSettings.name: EpoSettings}
"""Terms of the actor's loss, which go with any estimator: `algorithm.NAME.enable`."""
ESTIMATORS = (*MODULATORS, *RESPONSE_BASES, *(name + OVER_TRAJECTORIES for name in OUTCOME_BASES))
"""What this package registers as `algorithm.adv_estimator`; `rloo_trajectories` is verl's `rloo` with one sequence a
trajectory, where verl's own counts every row."""
BLOCKS: Mapping[str, type[Block]] = {
    name: block for name, block in {**MODULATORS, **RESPONSE_BASES}.items() if dataclasses.fields(block)
}
"""The blocks of settings that estimators read."""
REPLAYED = (*ESTIMATORS, *OUTCOME_BASES, GAE)
"""Estimators that `aem replay` can compute: these, and verl's own."""


@dataclass(frozen=True)
class Settings:
    """What a run asks for: its estimator, and the settings of every algorithm."""

    estimator: str
    blocks: Mapping[str, Block]

    @classmethod
    def of(cls, estimator: str, *blocks: Block) -> Settings:
        """An estimator with these settings, and the defaults of all others."""
        given = {block.name: block for block in blocks}
        every = {**MODULATORS, **RESPONSE_BASES}
        return cls(estimator, {name: given.get(name) or block() for name, block in every.items()})

    @classmethod
    def from_config(cls, algorithm: Mapping[str, Any]) -> Settings:
        """Read `config.algorithm`.

        Raises:
            SettingsError: an unknown setting, or a value out of range.
        """
        every = {**MODULATORS, **RESPONSE_BASES}
        return cls(str(algorithm["adv_estimator"]), {name: each.from_config(algorithm) for name, each in every.items()})

    def to_dict(self) -> dict[str, Any]:
        """As plain values: the estimator, and of each block its fields."""
        return {"estimator": self.estimator, **{name: dataclasses.asdict(self.blocks[name]) for name in BLOCKS}}  # type: ignore[call-overload]

    @property
    def modulator(self) -> Modulator | None:
        """The estimator, where it is one that modulates another."""
        block = self.blocks.get(self.estimator)
        return block if isinstance(block, Modulator) else None

    @property
    def base(self) -> str:
        """The advantage that everything begins with."""
        modulator = self.modulator
        return modulator.base_estimator if modulator else self.estimator.removesuffix(OVER_TRAJECTORIES)

    @property
    def measure(self) -> Measure | None:
        """The column of the batch that the modulation is made from."""
        return self.modulator.measure if self.modulator else None

    @property
    def columns(self) -> list[str]:
        """The columns of the batch that the estimator reads beside rewards and mask."""
        return [name for name in (self.measure, "values" if self.base == GAE else None) if name]

    @property
    def whole_batch(self) -> str:
        """Which of the settings reads beyond the prompt group; empty where none does."""
        if self.modulator and self.modulator.whole_batch:
            return self.modulator.whole_batch
        return f"{self.base} takes its statistics over the whole batch" if self.base in WHOLE_BATCH else ""

    def base_advantages(self, algorithm: Mapping[str, Any], batch: Batch, reward_BT: Any) -> BaseAdvantages:
        """The advantages of the base, of a batch of rows that all take part; see `Base.advantages`."""
        block = self.blocks.get(self.base)
        if isinstance(block, Base):
            return block.advantages(algorithm, batch, reward_BT)
        return of_verl(self.base, algorithm, batch, reward_BT)


def shares_return(algorithm: Mapping[str, Any]) -> bool:
    """Whether all rows of a trajectory have its one return; else each row is a sample of its own, and keeps its own KL.

    Args:
        algorithm: `config.algorithm`.
    """
    if algorithm["adv_estimator"] in ESTIMATORS:
        return Settings.from_config(algorithm).base != GAE
    return algorithm["adv_estimator"] == GRPO
