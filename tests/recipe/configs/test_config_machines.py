"""What a machine (eight GPUs, one, none) decides in the shipped configurations, and what it does not."""

from __future__ import annotations

import importlib.resources
import importlib.util
import inspect

import pytest
from omegaconf import open_dict

pytest.importorskip("verl", reason="verl is not installed")


import verl_aem

verl_aem.load()

from verl.trainer.ppo import core_algos  # noqa: E402
from verl.trainer.ppo.utils import need_critic, need_reference_policy  # noqa: E402
from verl.utils.config import omega_conf_to_dataclass, validate_config  # noqa: E402

from tests.helpers.configs import ATTENTION, BROUGHT, EVERY, GIVEN, compose  # noqa: E402

ON_GPUS = [(name, machine) for name, machine in EVERY if machine != "cpu"] + [("aem_trainer", "")]


@pytest.mark.parametrize(("name", "machine"), ON_GPUS)
def test_old_and_new_log_probs_come_from_equal_micro_batches(name, machine):
    """Their ratio is 1 before the first update only as far as the same kernels see the same shapes."""
    part = compose(name, *(GIVEN[name][machine] if machine else BROUGHT)).actor_rollout_ref
    assert part.actor.use_dynamic_bsz == part.rollout.log_prob_use_dynamic_bsz == part.ref.log_prob_use_dynamic_bsz
    if part.actor.use_dynamic_bsz:
        sizes = (part.actor.ppo_max_token_len_per_gpu, part.rollout.log_prob_max_token_len_per_gpu)
        assert len({*sizes, part.ref.log_prob_max_token_len_per_gpu}) == 1
    else:
        sizes = (part.actor.ppo_micro_batch_size_per_gpu, part.rollout.log_prob_micro_batch_size_per_gpu)
        assert len({*sizes, part.ref.log_prob_micro_batch_size_per_gpu}) == 1 and sizes[0] is not None


@pytest.mark.parametrize("name", [name for name in GIVEN if name != "aem_trainer"])
def test_one_gpu_has_small_micro_batches_and_few_processes(name):
    config = compose(name, "machine=gpu1")
    part = config.actor_rollout_ref
    # a micro-batch holds the longest row, or verl stops
    assert part.actor.ppo_max_token_len_per_gpu == (36864 if name == "swe_32b" else 8192)
    assert part.actor.ppo_max_token_len_per_gpu >= part.rollout.max_model_len
    units = config.transfer_queue.backend.SimpleStorage.num_data_storage_units
    assert (part.rollout.agent.num_workers, config.reward.num_workers, units) == (2, 1, 2)
    # with fewer CPUs than verl books in Ray it would wait forever (tests/recipe/tools/doctor/test_doctor_gpu.py)
    assert config.ray_kwargs.ray_init.num_cpus == 16
    # float32 weights, gradients and moments of 1.5B alone are 25 GB
    assert part.actor.fsdp_config.offload_policy


@pytest.mark.parametrize(("name", "machine"), EVERY)
def test_a_critic_is_made_as_the_actor_is(name, machine, monkeypatch):
    """Of `method=ppo`; verl's critic follows the actor in nothing but the sizes of mini-batches."""
    import verl

    from recipe.aem.seam.checks import check_run

    if ATTENTION.get((name, machine)) == "flash_attention_2":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    config = compose(name, *GIVEN[name][machine], "method=aem_ppo")
    settings, _ = check_run(config, set(core_algos.ADV_ESTIMATOR_REGISTRY), verl.__version__)
    assert settings is not None and settings.base == "gae" and need_critic(config)
    actor, model = config.actor_rollout_ref.actor, config.actor_rollout_ref.model
    critic = omega_conf_to_dataclass(config.critic)
    critic.validate(config.trainer.n_gpus_per_node, config.data.train_batch_size)
    assert critic.engine.strategy == actor.strategy == "fsdp2"
    assert critic.model.hf_config._attn_implementation == ATTENTION.get((name, machine), "sdpa")
    assert (critic.model.path, critic.model.use_remove_padding) == (model.path, model.use_remove_padding)
    for key in config.critic.fsdp:
        if key not in ("use_torch_compile", "strategy") and not key.startswith("entropy"):  # no use in a critic
            assert config.critic.fsdp[key] == actor.fsdp_config.get(key), key
    # a micro-batch of the critic holds what one of the actor holds
    assert critic.ppo_infer_max_token_len_per_gpu == actor.ppo_max_token_len_per_gpu


def test_verls_trainer_reads_one_size_of_the_critics_micro_batches():
    """Why method/ppo.yaml sets that one: `ppo_max_token_len_per_gpu` is read nowhere. Source: it makes Ray workers."""
    from verl.trainer.ppo.v1 import trainer_base

    source = inspect.getsource(trainer_base)
    for size in ("engine.infer_max_token_len_per_gpu", "engine.max_token_len_per_gpu"):
        assert f"critic_cfg.{size} = critic_cfg.ppo_infer_max_token_len_per_gpu" in source
    assert "critic_cfg.ppo_max_token_len_per_gpu" not in source


@pytest.mark.parametrize("name", GIVEN)
def test_the_machine_decides_where_it_runs(name):
    node, cpu = (compose(name, *GIVEN[name][machine]).trainer for machine in ("node", "cpu"))
    assert (node.device, node.nnodes, node.n_gpus_per_node) == ("cuda", 1, 8)
    assert (cpu.device, cpu.nnodes, cpu.n_gpus_per_node) == ("cpu", 1, 1)


@pytest.mark.parametrize("name", [name for name in GIVEN if name != "aem_trainer"])
def test_the_machine_does_not_decide_what_is_learned(name):
    def learned(machine):
        config = compose(name, *GIVEN[name][machine])
        actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
        sampling = (rollout.n, rollout.temperature, rollout.top_p, rollout.top_k, rollout.val_kwargs, rollout.custom)
        losses = [actor[key] for key in actor if key.startswith(("clip", "kl_", "use_kl", "entropy", "loss_"))]
        return (
            *(config.algorithm, sampling, losses, actor.ppo_mini_batch_size, actor.ppo_epochs, actor.optim),
            *(config.data.train_batch_size, config.data.max_prompt_length, config.data.max_response_length),
        )

    assert learned("node") == learned("cpu")


@pytest.mark.parametrize("nodes", [1, 8])
def test_swe_fits_its_gpus(nodes):
    config = compose("swe_32b", f"trainer.nnodes={nodes}")
    part = config.actor_rollout_ref
    gpus = nodes * config.trainer.n_gpus_per_node
    split = part.actor.fsdp_config.ulysses_sequence_parallel_size
    assert part.ref.fsdp_config.ulysses_sequence_parallel_size == split and gpus % split == 0
    assert gpus % part.rollout.tensor_model_parallel_size == 0
    # a micro-batch holds the longest row (verl multiplies by the GPUs that share it)
    for most in (part.actor.ppo_max_token_len_per_gpu, part.rollout.log_prob_max_token_len_per_gpu):
        assert most * split >= part.rollout.max_model_len
    rows = part.actor.ppo_mini_batch_size * part.rollout.n
    assert rows % (gpus // split) == 0
    validate_config(config, need_reference_policy(config), need_critic(config))


@pytest.mark.parametrize("machine", ["cpu", "gpu1"])
def test_one_device_shares_no_row(machine):
    """verl's Ulysses splits rows inside flash attention alone, which these machines do not have."""
    part = compose("swe_32b", f"machine={machine}").actor_rollout_ref
    for one in (part.actor, part.ref):
        assert one.fsdp_config.ulysses_sequence_parallel_size == one.ulysses_sequence_parallel_size == 1
    assert part.rollout.tensor_model_parallel_size == 1
    if machine == "cpu":
        assert not (part.actor.fsdp_config.param_offload or part.actor.fsdp_config.optimizer_offload)
        assert not part.ref.fsdp_config.param_offload


@pytest.mark.parametrize("name", ["alfworld_7b", "alfworld_1.5b", "scienceworld_7b", "textworld_express_7b"])
def test_a_mini_batch_of_more_prompts_than_a_step_needs_micro_batches_by_tokens(name):
    config = compose(name)
    actor = config.actor_rollout_ref.actor
    assert actor.ppo_mini_batch_size > config.data.train_batch_size and actor.use_dynamic_bsz
    assert actor.ppo_max_token_len_per_gpu >= config.actor_rollout_ref.rollout.max_model_len
    by_rows = compose(name, "actor_rollout_ref.actor.use_dynamic_bsz=false")
    with open_dict(by_rows):  # what else verl asks for then
        for part in (by_rows.actor_rollout_ref.ref, by_rows.actor_rollout_ref.rollout):
            part.log_prob_micro_batch_size_per_gpu = 8
        by_rows.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu = 8
    with pytest.raises(ValueError, match="train_batch_size"):
        validate_config(by_rows, need_reference_policy(by_rows), need_critic(by_rows))
