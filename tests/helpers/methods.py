"""The shipped methods: their names, their configurations, and the gradient of their losses in verl."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

pytest.importorskip("verl", reason="verl is not installed")

import hydra

import verl_aem

verl_aem.load()

from verl.trainer.ppo import core_algos  # noqa: E402
from verl.utils.config import omega_conf_to_dataclass  # noqa: E402

PLAIN = (
    *("grpo", "dapo", "gspo", "drgrpo", "grpopp", "gigpo", "hgpo", "ecpo", "empg"),
    *("clip_cov", "kl_cov", "sampo"),
)
WITH_AEM = ("aem", "aem_dapo", "aem_gspo", "aem_grpopp", "aem_gigpo", "aem_hgpo", "aem_ecpo")
METHODS = PLAIN + WITH_AEM
# they have a loss of their own, which is tested elsewhere
EPO = ("epo", "aem_epo", "epo_alfworld", "aem_epo_alfworld", "epo_scienceworld", "aem_epo_scienceworld")
WITH_TERM = (*EPO, "skywork", "aer_like")
# they have a critic, whose settings are in tests/recipe/configs
PPO = ("ppo", "aem_ppo", "epo_ppo", "epo_ppo_scienceworld")
MACHINE = {
    "webshop_7b": "node",
    "webshop_demo": "cpu",
    "alfworld_7b": "node",
    "scienceworld_7b": "cpu",
    "search_7b": "node",
}


def compose(name: str, method: str, *overrides: str) -> Any:
    """The configuration, composed once; whoever changes it takes a copy."""
    return composed(name, f"method={method}", f"machine={MACHINE[name]}", *overrides)


@functools.cache
def composed(name: str, *overrides: str) -> Any:
    with hydra.initialize_config_module("recipe.aem.config", version_base=None):
        config = hydra.compose(name, list(overrides))
    OmegaConf.set_readonly(config, True)
    return config


def changeable(config: Any) -> Any:
    config = copy.deepcopy(config)
    OmegaConf.set_readonly(config, False)
    OmegaConf.set_struct(config, False)
    return config


def actor_of(config: Any) -> Any:
    return omega_conf_to_dataclass(config.actor_rollout_ref.actor)


def gradients(config: Any, log_ratio: list[list[float]], advantage: list[list[float]], width: int = 0) -> torch.Tensor:
    """d loss / d log π of each token, with `log_ratio` = log π − log π_old; NaN marks what is not there.

    As verl's worker calls the loss (workers/utils/losses.py:65-100), in one micro-batch, which its padding makes
    `width` tokens wide.
    """
    longest = max(width, *map(len, log_ratio))
    pad = [row + [float("nan")] * (longest - len(row)) for row in log_ratio]
    ratio = torch.tensor(pad, dtype=torch.float64)
    mask = ~ratio.isnan()
    filled = torch.tensor([row + [0.0] * (longest - len(row)) for row in advantage], dtype=torch.float64)
    log_prob = ratio.nan_to_num().requires_grad_()
    actor = actor_of(config)
    actor.global_batch_info.update(
        dp_size=1,
        batch_num_tokens=int(mask.sum()),
        global_batch_size=len(mask),
        loss_scale_factor=actor.loss_scale_factor,
    )
    loss, _ = core_algos.get_policy_loss_fn(actor.policy_loss.loss_mode)(
        old_log_prob=torch.zeros_like(log_prob),
        log_prob=log_prob,
        advantages=filled,
        response_mask=mask,
        loss_agg_mode=actor.loss_agg_mode,
        config=actor,
    )
    loss.backward()
    assert log_prob.grad is not None
    return log_prob.grad
