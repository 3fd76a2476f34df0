"""EPO (arXiv 2509.22576): settings, their requirements, and the weights of the loss terms from a `Batch`.

The worker computes the terms (`seam/epo_loss.py`); the trainer keeps the history (`seam/epo.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from aem_core import epo_token_weights
from recipe.aem.batch import Batch
from recipe.aem.settings import Block, SettingsError, is_integer


@dataclass(frozen=True)
class EpoSettings(Block):
    """`algorithm.epo`; the defaults are the paper's for ALFWorld.

    Attributes:
        enable: add EPO's two terms to the actor's loss.
        coef: λ, the strength of both terms.
        lower: κ_l, the band's lower edge as a multiple of the mean entropy of past steps.
        upper: κ_r, the band's upper edge as such a multiple.
        alpha: α, the strength of the penalty outside the band; the paper's value for ScienceWorld is 0.05.
        gamma: γ, how fast the penalty's weight β falls from 2 towards 1.
        total_steps: K, the number of steps of β's schedule; null uses the trainer's number.
        allow_missing_history: resume from a checkpoint without EPO's history; the history then starts empty.
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
        if steps is not None and (not is_integer(steps) or steps < 2):
            self.refuse("total_steps", "null (the trainer's total steps) or an integer >= 2")

    def check(self, config: Mapping[str, Any]) -> None:
        """Reject a configuration that EPO cannot work with.

        Args:
            config: verl's whole configuration.

        Raises:
            SettingsError: names the setting.
        """
        if not self.enable:
            return
        algorithm = config["algorithm"]
        if (algorithm.get("rollout_correction") or {}).get("bypass_mode", False):
            raise SettingsError(
                "algorithm.rollout_correction.bypass_mode=True skips the old-policy pass, which is where the entropies "
                "of EPO's history come from; set it to False, or algorithm.epo.enable=False"
            )
        actor = config["actor_rollout_ref"]["actor"]
        if not actor.get("calculate_entropy", False) and not actor.get("entropy_coeff", 0):
            raise SettingsError(
                "algorithm.epo.enable=True needs the entropies of the policy that is being updated: set "
                "actor_rollout_ref.actor.calculate_entropy=True (verl computes none otherwise)"
            )
        if (config.get("distillation") or {}).get("enabled", False):
            raise SettingsError(
                "algorithm.epo.enable=True puts EPO's loss in the worker in place of verl's, so distillation.enabled="
                "True would lose its own; set one of them to False"
            )


def batch_weights(batch: Batch) -> tuple[Tensor, int]:
    """Return the weight of each token in the batch's mean entropy, and the number of trajectories with a response.

    Responses are the same as for AEM: the agent loop's spans where it recorded them, else runs of the mask, in both
    cases without masked tokens. Padding rows do not count, nor do trajectories without a response (filtered, or
    rejected by rollout correction), with a fault, or left alone in their prompt group by faults.

    Returns:
        (B, T) weights that sum to 1, or to 0 in a batch without responses; the number of trajectories.
    """
    live = batch.live
    trajectory_N = live.trajectory_B[live.responses.row_N]
    weight_BT = torch.zeros(batch.mask_BT.shape)
    weight_BT[list(live.rows)] = epo_token_weights(live.responses, trajectory_N)
    return weight_BT, len(torch.unique(trajectory_N))
