"""`algorithm.aem`: the settings, and the combinations refused at start-up, each with its reason."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from aem_core import Direction, Scope

ESTIMATOR = "aem"
GAE = "gae"
ROW_BASES = ("grpo_rows",)
TESTED_VERL = ("0.9.1",)
SCOPES = get_args(Scope)
DIRECTIONS = get_args(Direction)

BROKEN_ON_V1 = {
    "gdpo": "verl's V1 batch has no `prompts` and no per-dimension rewards for it",
    "remax": "verl's V1 trainer never samples its greedy baseline (reward_baselines)",
    "optimal_token_baseline": "verl's V1 trainer never computes sum_pi_squared",
    "tir_optimal_token_baseline": "verl's V1 trainer never computes sum_pi_squared",
}


class SettingsError(ValueError):
    """A setting that AEM cannot train with; the message names it and what to write instead."""


@dataclass(frozen=True)
class AemSettings:
    """One field a key of `algorithm.aem`; the defaults are the paper's (arXiv 2605.00425), but for `base_estimator`.

    Attributes:
        base_estimator: the advantage that is modulated: an estimator registered in verl, or `grpo_rows`.
        lam: λ, the strength; 0 gives the base advantages back.
        min_range: nats; a group whose response entropies span less keeps α = 1.
        scope: over which responses minimum, maximum and mean are taken.
        direction: `reversed` rewards uncertain responses instead (the paper's ablation).
        shuffle: a seed; α is then permuted among the responses of each group (the paper's ablation).
        untested_verl: run although the installed verl is not one of the versions this release was tested with.
    """

    base_estimator: str = "grpo"
    lam: float = 1.0
    min_range: float = 0.1
    scope: Scope = "group"
    direction: Direction = "forward"
    shuffle: int | None = None
    untested_verl: bool = False

    def __post_init__(self) -> None:
        for name in ("lam", "min_range"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise SettingsError(f"algorithm.aem.{name}={value!r}: expected a finite number >= 0")
        for name, allowed in (("scope", SCOPES), ("direction", DIRECTIONS)):
            if getattr(self, name) not in allowed:
                raise SettingsError(f"algorithm.aem.{name}={getattr(self, name)!r}: expected one of {list(allowed)}")
        if self.shuffle is not None and (isinstance(self.shuffle, bool) or not isinstance(self.shuffle, int)):
            raise SettingsError(f"algorithm.aem.shuffle={self.shuffle!r}: expected null or an integer seed")

    @classmethod
    def from_config(cls, algorithm: Mapping[str, Any]) -> AemSettings:
        """Read `config.algorithm`; a block that is absent means the defaults, an unknown key is an error."""
        given = dict(algorithm.get("aem") or {})
        known = [field.name for field in dataclasses.fields(cls)]
        for key in given:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"; did you mean `{near[0]}`?" if near else ""
                raise SettingsError(f"algorithm.aem.{key} is not a setting (there are {', '.join(known)}){hint}")
        return cls(**given)


def check_config(config: Mapping[str, Any], registered: Collection[str], verl_version: str) -> AemSettings:
    """The settings of a run that verl's V1 trainer is about to start, or a `SettingsError`.

    Args:
        config: verl's whole configuration.
        registered: the names of verl's estimator registry.
        verl_version: the installed verl.
    """
    algorithm = config["algorithm"]
    settings = AemSettings.from_config(algorithm)
    base = settings.base_estimator
    if base == ESTIMATOR:
        raise SettingsError("algorithm.aem.base_estimator=aem: AEM modulates another estimator; use e.g. grpo")
    if base in BROKEN_ON_V1:
        reason = BROKEN_ON_V1[base]
        raise SettingsError(f"algorithm.aem.base_estimator={base} does not run on verl's V1 trainer: {reason}")
    if base not in registered and base not in ROW_BASES:
        known = sorted((set(registered) | set(ROW_BASES)) - set(BROKEN_ON_V1) - {ESTIMATOR})
        raise SettingsError(f"algorithm.aem.base_estimator={base!r} is not registered; known: {', '.join(known)}")
    if base == GAE and not config["critic"].get("enable"):
        raise SettingsError(
            "algorithm.aem.base_estimator=gae needs values: set critic.enable=True "
            "(verl turns the critic on by itself only for algorithm.adv_estimator=gae)"
        )
    correction = algorithm.get("rollout_correction") or {}
    if correction.get("bypass_mode", False):
        raise SettingsError(
            "algorithm.rollout_correction.bypass_mode=True skips the old-policy pass, which is where AEM's entropies "
            "come from; set it to False"
        )
    if verl_version not in TESTED_VERL and not settings.untested_verl:
        raise SettingsError(
            f"verl {verl_version} is installed; this release was tested with {', '.join(TESTED_VERL)}. "
            "Install that, or set algorithm.aem.untested_verl=True and compare the aem/* metrics with a known run"
        )
    return settings
