"""The shipped configurations and the machines that each is for."""

from __future__ import annotations

import pytest

pytest.importorskip("verl", reason="verl is not installed")

import hydra

import verl_aem

verl_aem.load()

# what whoever uses aem_trainer brings: verl's own configuration leaves these open, and verl's FSDP1 needs a GPU
BROUGHT = (
    "actor_rollout_ref.actor.strategy=fsdp2",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.rollout.name=vllm",
    "actor_rollout_ref.rollout.n=8",
    "actor_rollout_ref.model.path=${oc.env:AEM_MODEL}",
    "++actor_rollout_ref.model.override_config.attn_implementation=sdpa",
)
MACHINES = ("node", "gpu1", "cpu")
GIVEN = {
    **{
        name: {machine: (f"machine={machine}",) for machine in MACHINES}
        for name in (
            *("webshop_7b", "webshop_1.5b", "alfworld_7b", "alfworld_1.5b"),
            *("scienceworld_7b", "textworld_express_7b", "search_7b", "search_3b", "swe_32b"),
        )
    },
    "webshop_demo": {machine: (f"machine={machine}",) for machine in MACHINES},
    "aem_trainer": {machine: (f"+machine={machine}", *BROUGHT) for machine in MACHINES},
}
# rows that are split over GPUs need flash attention
ATTENTION = {("swe_32b", "node"): "flash_attention_2"}
EVERY = [(name, machine) for name, machines in GIVEN.items() for machine in machines]


def compose(name, *overrides):
    with hydra.initialize_config_module("recipe.aem.config", version_base=None):
        return hydra.compose(name, list(overrides))
