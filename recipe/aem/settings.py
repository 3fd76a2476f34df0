"""What a run's `config.algorithm` asks of this package."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

from aem_core import AEMError, Direction, Mean, Over, Scope

AEM, EMPG, GIGPO, GRPO_ROWS = "aem", "empg", "gigpo", "grpo_rows"
MODULATORS = (AEM, EMPG)
RESPONSE_BASES = (GIGPO, GRPO_ROWS)
"""Bases that see every response with its own reward, and not a trajectory's one outcome."""
OUTCOME_BASES = ("gpg", "grpo", "grpo_passk", "opo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "rloo")
"""Estimators of verl for one outcome a sequence."""
OVER_TRAJECTORIES = "_trajectories"
ESTIMATORS = (*MODULATORS, *RESPONSE_BASES, *(name + OVER_TRAJECTORIES for name in OUTCOME_BASES))
"""What this package registers as `algorithm.adv_estimator`; `rloo_trajectories` is verl's `rloo` with one sequence a
trajectory, where verl's own counts every row."""
GAE = "gae"
GRPO = "grpo"
OPO = "opo"

Proxy = Literal["entropy", "surprisal"]
RelativeTo = Literal["turn_kind", "anchor"]


class SettingsError(AEMError, ValueError):
    """A setting that this package cannot train with; the message names it and what to write instead."""


class Block:
    """A block of `config.algorithm` as a frozen dataclass, one field a key."""

    name: ClassVar[str]
    numbers: ClassVar[tuple[str, ...]] = ()
    """Fields that are finite numbers >= 0."""
    choices: ClassVar[Mapping[str, tuple]] = {}
    switches: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_config(cls, algorithm: Mapping[str, Any]) -> Self:
        """Read the block; one that is absent means the defaults, an unknown key is an error."""
        given = dict(algorithm.get(cls.name) or {})
        known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for key in given:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"; did you mean `{near[0]}`?" if near else ""
                raise SettingsError(f"algorithm.{cls.name}.{key} is not a setting (there are {', '.join(known)}){hint}")
        return cls(**given)

    def __post_init__(self) -> None:
        for field in self.numbers:
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                self.refuse(field, "a finite number >= 0")
        for field, allowed in self.choices.items():
            if getattr(self, field) not in allowed:
                self.refuse(field, f"one of {list(allowed)}")
        for field in self.switches:
            if not isinstance(getattr(self, field), bool):
                self.refuse(field, "true or false")

    def refuse(self, field: str, expected: str) -> None:
        raise SettingsError(f"algorithm.{self.name}.{field}={getattr(self, field)!r}: expected {expected}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class AemSettings(Block):
    """`algorithm.aem`; the defaults are the paper's (arXiv 2605.00425), but for `base_estimator`.

    Attributes:
        base_estimator: the advantage that is modulated: an estimator registered in verl, `grpo_rows` or `gigpo`.
        lam: λ, the strength; 0 gives the base advantages back.
        min_range: nats; a group whose response entropies span less keeps α = 1. 0 switches the guard off.
        scope: over which responses minimum, maximum and mean are taken.
        direction: `reversed` rewards uncertain responses instead (the paper's ablation).
        mean: whether mean α is 1 over responses or over tokens.
        shuffle: a seed; α is then permuted among the responses of each group (the paper's ablation).
        relative_to: null, or `turn_kind` or `anchor`: entropies less the mean of the set's responses on the same kind
            of turn, or to the same observation (ours, exploratory).
        proxy: `surprisal` puts the length-normalised −log π in the entropy's place (ours; needs no entropies).
        untested_verl: run although the installed verl is not one of the versions this release was tested with; holds
            for every estimator of this package.
        dump_dir: a directory; every step's batch is written there (`recipe.aem.dump`). This and the two below hold for
            every estimator, verl's own too.
        dump_every: of every n-th step only.
        dump_rows: at most so many rows of a step, in whole prompt groups; null for all.
    """

    name: ClassVar = AEM
    numbers: ClassVar = ("lam", "min_range")
    choices: ClassVar = {
        "scope": get_args(Scope),
        "direction": get_args(Direction),
        "mean": get_args(Mean),
        "proxy": get_args(Proxy),
        "relative_to": (None, *get_args(RelativeTo)),
    }
    switches: ClassVar = ("untested_verl",)

    base_estimator: str = "grpo"
    lam: float = 1.0
    min_range: float = 0.1
    scope: Scope = "group"
    direction: Direction = "forward"
    mean: Mean = "response"
    shuffle: int | None = None
    relative_to: RelativeTo | None = None
    proxy: Proxy = "entropy"
    untested_verl: bool = False
    dump_dir: str | None = None
    dump_every: int = 1
    dump_rows: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shuffle is not None and not _is_integer(self.shuffle):
            self.refuse("shuffle", "null or an integer seed")
        if self.dump_dir is not None and not (isinstance(self.dump_dir, str) and self.dump_dir):
            self.refuse("dump_dir", "null or a directory")
        if not _is_integer(self.dump_every) or self.dump_every < 1:
            self.refuse("dump_every", "an integer >= 1")
        if self.dump_rows is not None and (not _is_integer(self.dump_rows) or self.dump_rows < 1):
            self.refuse("dump_rows", "null (all rows) or an integer >= 1")


@dataclass(frozen=True)
class EmpgSettings(Block):
    """`algorithm.empg`; the defaults are the project page's (arXiv 2509.09265), but for `base_estimator`.

    Attributes:
        base_estimator: as in `algorithm.aem`.
        k: strength of the self-calibrating scaling.
        k_future: strength of the future-clarity bonus's fall with the next step's entropy.
        zeta: ζ, the bonus's weight.
        scaling, bonus, recentre: the three parts, each switchable (the paper's ablation).
    """

    name: ClassVar = EMPG
    numbers: ClassVar = ("k", "k_future", "zeta")
    switches: ClassVar = ("scaling", "bonus", "recentre")

    base_estimator: str = "grpo"
    k: float = 1.0
    k_future: float = 1.0
    zeta: float = 0.1
    scaling: bool = True
    bonus: bool = True
    recentre: bool = True


@dataclass(frozen=True)
class GigpoSettings(Block):
    """`algorithm.gigpo` (arXiv 2505.10978), read where gigpo is the estimator or the base.

    Attributes:
        weight: w, of the step advantage.
        gamma: discount of the step returns.
        by_std: divide the episode and the step advantage by σ.
        over: the statistics of the episode advantage, over responses (verl-agent's) or trajectories.
        step_rewards: factor of the environment's own rewards in the step returns, those of the turns before the last; 0
            leaves the outcome alone.
    """

    name: ClassVar = GIGPO
    numbers: ClassVar = ("weight", "gamma", "step_rewards")
    choices: ClassVar = {"over": get_args(Over)}
    switches: ClassVar = ("by_std",)

    weight: float = 1.0
    gamma: float = 0.95
    by_std: bool = True
    over: Over = "responses"
    step_rewards: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma > 1:
            self.refuse("gamma", "a number in [0, 1]")


@dataclass(frozen=True)
class EpoSettings(Block):
    """`algorithm.epo`; the defaults are the paper's for ALFWorld.

    Attributes:
        enable: add EPO's two terms to the actor's loss.
        coef: λ, the strength of both terms.
        lower: κ_l, the band's lower edge as a multiple of the mean entropy of past steps.
        upper: κ_r, its upper edge.
        alpha: α, the strength of the penalty outside the band; 0.05 for ScienceWorld.
        gamma: γ, how fast the penalty's weight β falls from 2 towards 1.
        total_steps: K, the steps that β's schedule is laid out for; null takes the trainer's.
        allow_missing_history: resume from a checkpoint without EPO's history, which then starts anew.
    """

    name: ClassVar = "epo"
    numbers: ClassVar = ("coef", "lower", "upper", "alpha", "gamma")
    switches: ClassVar = ("enable", "allow_missing_history")

    enable: bool = False
    coef: float = 0.001
    lower: float = 0.0
    upper: float = 2.0
    alpha: float = 0.1
    gamma: float = 3.0
    total_steps: int | None = None
    allow_missing_history: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lower > self.upper:
            self.refuse("lower", f"at most algorithm.epo.upper={self.upper!r}: the band lies between them")
        steps = self.total_steps
        if steps is not None and (not _is_integer(steps) or steps < 2):
            self.refuse("total_steps", "null (the trainer's total steps) or an integer >= 2")


@dataclass(frozen=True)
class TrajectorySettings(Block):
    """`algorithm.trajectories`, which holds for every estimator.

    Attributes:
        max_missing: the largest share of a step's trajectories that may be missing, from 0 to 1; a step that lacks more
            is refused, which ends the run.
        stall_seconds: how long the trainer waits with no trajectory arriving; null: what `stall_seconds` below makes of
            the episode's own limits, and without such limits for ever.
    """

    name: ClassVar = "trajectories"
    numbers: ClassVar = ("max_missing",)

    max_missing: float = 0.1
    stall_seconds: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_missing > 1:
            self.refuse("max_missing", "a share from 0 to 1")
        seconds = self.stall_seconds
        if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds <= 0):
            self.refuse("stall_seconds", "null or a number > 0")


@dataclass(frozen=True)
class Settings:
    """What a run asks for: its estimator, and the blocks that it reads."""

    estimator: str
    aem: AemSettings
    empg: EmpgSettings
    gigpo: GigpoSettings

    @classmethod
    def from_config(cls, algorithm: Mapping[str, Any]) -> Settings:
        return cls(
            estimator=str(algorithm["adv_estimator"]),
            aem=AemSettings.from_config(algorithm),
            empg=EmpgSettings.from_config(algorithm),
            gigpo=GigpoSettings.from_config(algorithm),
        )

    @property
    def base(self) -> str:
        """The advantage that everything begins with."""
        if self.estimator in MODULATORS:
            return (self.aem if self.estimator == AEM else self.empg).base_estimator
        return self.estimator.removesuffix(OVER_TRAJECTORIES)

    @property
    def measure(self) -> Literal["entropies", "old_log_probs"] | None:
        """The column of the batch that the modulation is made from."""
        if self.estimator == AEM and self.aem.proxy == "surprisal":
            return "old_log_probs"
        return "entropies" if self.estimator in MODULATORS else None


def shares_return(algorithm: Mapping[str, Any]) -> bool:
    """Whether all rows of a trajectory have its one return; else each row is a sample of its own, and keeps its own KL.

    Args:
        algorithm: `config.algorithm`.
    """
    if algorithm["adv_estimator"] in ESTIMATORS:
        return Settings.from_config(algorithm).base != GAE
    return algorithm["adv_estimator"] == GRPO
