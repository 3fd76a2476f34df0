"""The shipped configurations, composed as hydra composes them, for eight GPUs and for the machine without one.

Not covered: whether the data and the model they name exist, and whether training with them runs (tests/e2e); the
trailing arguments of scripts/*.sh.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import inspect
import os
import subprocess
import sys
from dataclasses import asdict, fields

import pytest
from omegaconf import OmegaConf, open_dict

pytest.importorskip("verl", reason="verl is not installed")

import hydra
from hydra.errors import ConfigCompositionException

import verl_aem

verl_aem.load()

from verl.trainer.ppo import core_algos  # noqa: E402
from verl.trainer.ppo.utils import need_critic, need_reference_policy  # noqa: E402
from verl.utils.config import omega_conf_to_dataclass, validate_config  # noqa: E402

from recipe.aem.methods.aem import AemSettings  # noqa: E402
from recipe.aem.seam.checks import check_config  # noqa: E402
from recipe.aem.settings import DumpSettings  # noqa: E402

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


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    from recipe.aem.tools.demo import tiny_model

    directory = tmp_path_factory.mktemp("model")
    tokenizer = tiny_model.build_tokenizer(["hello"], [], max_words=10)
    tiny_model.save(tiny_model.build_model(tokenizer, hidden=8, layers=1), tokenizer, directory, {})
    return directory


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, model_dir):
    monkeypatch.setenv("AEM_MODEL", str(model_dir))
    monkeypatch.setenv("WEBSHOP_DATA", "/data/webshop")
    monkeypatch.setenv("WEBSHOP_PARQUET", "/data/parquet")
    monkeypatch.setenv("ALFWORLD_DATA", "/data/alfworld")
    monkeypatch.setenv("ALFWORLD_PARQUET", "/data/games")
    monkeypatch.setenv("SCIENCEWORLD_PARQUET", "/data/science")
    monkeypatch.setenv("TEXTWORLD_EXPRESS_PARQUET", "/data/express")
    monkeypatch.setenv("SWE_TASKS", "/data/swe")
    monkeypatch.setenv("SWE_PARQUET", "/data/tasks")
    monkeypatch.setenv("SEARCH_DATA", "/data/search")
    monkeypatch.setenv("SEARCH_PARQUET", "/data/questions")
    for name in ("SWE_VALIDATION", "SWE_BACKEND", "SEARCH_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("VERL_PLATFORM", raising=False)


def compose(name, *overrides):
    with hydra.initialize_config_module("recipe.aem.config", version_base=None):
        return hydra.compose(name, list(overrides))


def test_every_primary_configuration_is_tested_here():
    from importlib.resources import files

    shipped = {file.name.removesuffix(".yaml") for file in files("recipe.aem.config").iterdir() if ".yaml" in file.name}
    assert shipped == set(GIVEN)


@pytest.mark.filterwarnings("ignore:Disabled critic")
@pytest.mark.parametrize(("name", "machine"), EVERY)
def test_verl_accepts_it(name, machine):
    config = compose(name, *GIVEN[name][machine])
    validate_config(config, need_reference_policy(config), need_critic(config))
    OmegaConf.resolve(config.actor_rollout_ref)


@pytest.mark.parametrize(("name", "machine"), EVERY)
def test_every_workers_settings_can_be_made(name, machine):
    """The calls of verl's workers (workers/engine_workers.py:540-690, agent_loop.py, trainer_base.py:381)."""
    part = compose(name, *GIVEN[name][machine]).actor_rollout_ref
    assert part.actor.strategy == part.ref.strategy == "fsdp2"

    model = omega_conf_to_dataclass(part.model)
    assert model.hf_config.vocab_size == len(model.tokenizer)
    assert model.hf_config._attn_implementation == ATTENTION.get((name, machine), "sdpa")

    assert part.actor.use_dynamic_bsz == part.rollout.log_prob_use_dynamic_bsz, "engine_workers.py asserts it"
    actor = omega_conf_to_dataclass(part.actor)
    assert actor.engine.strategy == "fsdp2"

    rollout = omega_conf_to_dataclass(part.rollout)
    assert (rollout.name, rollout.mode) == ("vllm", "async")
    checkpoint = omega_conf_to_dataclass(part.rollout.checkpoint_engine)
    assert checkpoint.backend == ("zmq" if machine == "cpu" else "naive")

    with open_dict(part.ref):  # as engine_workers.py:547-554 turns it into an actor's
        part.ref.ppo_mini_batch_size = part.actor.ppo_mini_batch_size
        part.ref.ppo_micro_batch_size = part.ref.pop("log_prob_micro_batch_size", None)
        part.ref.ppo_micro_batch_size_per_gpu = part.ref.pop("log_prob_micro_batch_size_per_gpu", None)
        part.ref.use_dynamic_bsz = part.ref.pop("log_prob_use_dynamic_bsz", False)
        part.ref.ppo_max_token_len_per_gpu = part.ref.pop("log_prob_max_token_len_per_gpu", None)
    assert omega_conf_to_dataclass(part.ref).engine.strategy == "fsdp2"


@pytest.mark.parametrize(("name", "machine"), EVERY)
def test_it_starts_with_the_papers_settings_and_without_a_caution(name, machine):
    """No setting that `check_run` refuses, and none that `cautions` mentions, except one."""
    import verl

    from recipe.aem.seam.checks import cautions, check_run
    from recipe.aem.seam.precision import entropy_precision

    config = compose(name, *GIVEN[name][machine])
    settings, terms = check_run(config, set(core_algos.ADV_ESTIMATOR_REGISTRY), verl.__version__)
    assert settings is not None and settings.estimator == "aem"
    assert settings.blocks["aem"] == AemSettings("rloo" if name == "swe_32b" else "grpo_rows")
    assert config.trainer.use_v1 and config.trainer.v1.trainer_mode == "sync"
    # rows that eight GPUs share do not fit one processor's micro-batch; whoever trains there shortens them
    words = ["Size of micro-batches"] if (name, machine) == ("swe_32b", "cpu") else []
    assert [caution.title for caution in cautions(config, settings, terms)] == words
    assert entropy_precision(config).level == "float32"


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


# name: turns, prompt tokens, rows of a mini-batch, characters executed without tags
PROTOCOLS = {
    "webshop_7b": (15, 4096, 64, 20),
    "webshop_1.5b": (15, 4096, 64, 20),
    "alfworld_7b": (50, 2048, 256, 30),
    "alfworld_1.5b": (50, 2048, 256, 30),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_verl_agents_protocol_is_followed(name):
    turns, prompt, rows, fallback = PROTOCOLS[name]
    config = compose(name)
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert actor.optim.lr == 1e-6 and actor.optim.lr_scheduler_type == "constant"
    assert actor.optim.lr_warmup_steps in (-1, 0) and actor.optim.lr_warmup_steps_ratio == 0.0
    assert actor.ppo_mini_batch_size * rollout.n == rows  # verl multiplies (v1/trainer_base.py:1603)
    assert config.trainer.total_training_steps == 150
    assert (config.data.max_prompt_length, config.data.max_response_length) == (prompt, 512)
    assert (rollout.prompt_length, rollout.response_length) == (prompt, 512)
    assert rollout.max_model_len >= prompt + 512
    episode = rollout.custom.episode
    assert (episode.max_turns, episode.fallback_characters) == (turns, fallback)
    what_every_protocol_has(config)


def what_every_protocol_has(config):
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert (config.data.train_batch_size, rollout.n) == (16, 8)
    assert actor.ppo_epochs == 1
    assert (actor.use_kl_loss, actor.kl_loss_coef, actor.kl_loss_type) == (True, 0.01, "low_var_kl")
    assert not config.algorithm.use_kl_in_reward and config.algorithm.gamma == 0.95
    assert (actor.clip_ratio, actor.clip_ratio_low, actor.clip_ratio_high, actor.clip_ratio_c) == (0.2, 0.2, 0.2, 3.0)
    assert actor.entropy_coeff == 0
    assert (rollout.temperature, rollout.top_p, rollout.top_k) == (1.0, 1, -1)
    validation = rollout.val_kwargs
    assert (validation.temperature, validation.do_sample, validation.n) == (0.4, True, 1)
    assert config.data.val_max_samples == 128 and config.trainer.test_freq == 5 and config.trainer.val_before_train
    assert config.data.seed == 0
    episode = rollout.custom.episode
    assert (episode.history_length, episode.invalid_penalty, episode.require_think) == (2, 0.1, True)
    assert (episode.won_reward, episode.lost_reward) == (10.0, 0.0)


def test_alfworld_plays_every_type_of_task():
    from agent_loops.alfworld import KINDS

    assert tuple(compose("alfworld_7b").actor_rollout_ref.rollout.custom.benchmark.kinds) == KINDS


def test_webshops_history_and_goals():
    custom = compose("webshop_7b").actor_rollout_ref.rollout.custom
    assert custom.episode.max_prompt_characters == 13000 and custom.benchmark.n_validation == 500


def test_scienceworld_follows_epos_paper():
    config = compose("scienceworld_7b")
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    optim = actor.optim
    assert (optim.lr, optim.lr_scheduler_type, optim.lr_warmup_steps_ratio) == (5e-6, "cosine", 0.1)
    assert (optim.min_lr_ratio, config.trainer.total_training_steps) == (0.2, 125)
    assert (config.data.max_prompt_length, config.data.max_response_length) == (2048, 512)
    assert rollout.max_model_len >= 2560 and rollout.custom.episode.max_turns == 30
    assert OmegaConf.to_container(rollout.custom.benchmark) == {
        "target": "agent_loops.scienceworld.ScienceWorld",
        **{"tasks": None, "simplifications": "easy", "heap": "1g"},
        **{"valid_actions": False, "show_state": False, "max_steps": 1000},
    }
    what_every_protocol_has(config)


# protocol: prompts, prompt and response tokens, rows of a mini-batch, warm-up, steps, turns, layout, invalid penalty
SEARCH = {
    "search_verl_agent": (256, 4096, 512, 520, 0.1, None, 4, "turns", 0.01),
    "search_r1": (512, 2048, 2816, 320, 0.285, 1005, 3, "transcript", 0.0),
}


@pytest.mark.filterwarnings("ignore:Disabled critic")
@pytest.mark.parametrize("name", ["search_7b", "search_3b"])
@pytest.mark.parametrize("protocol", SEARCH)
def test_search_follows_its_published_protocols(name, protocol):
    from agent_loops.episode import EpisodeSettings

    config = compose(name, f"protocol={protocol}")
    assert protocol != "search_verl_agent" or config == compose(name), "the default"
    validate_config(config, need_reference_policy(config), need_critic(config))
    data, actor, rollout = config.data, config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    prompts, prompt, response, rows, warm_up, steps, turns, layout, penalty = SEARCH[protocol]
    assert (data.train_batch_size, rollout.n, actor.ppo_mini_batch_size * rollout.n) == (prompts, 5, rows)
    assert (data.max_prompt_length, data.max_response_length) == (prompt, response)
    assert rollout.max_model_len == prompt + response <= actor.ppo_max_token_len_per_gpu and actor.use_dynamic_bsz
    assert (actor.optim.lr, actor.optim.lr_warmup_steps_ratio) == (1e-6, warm_up)
    assert (config.trainer.total_training_steps, config.trainer.test_freq) == (steps, 50)
    assert (actor.use_kl_loss, actor.kl_loss_coef, actor.kl_loss_type) == (True, 0.001, "low_var_kl")
    assert (rollout.temperature, actor.entropy_coeff, actor.clip_ratio) == (1.0, 0, 0.2)
    episode = EpisodeSettings.from_config(OmegaConf.to_container(rollout.custom.episode, resolve=True))
    assert (episode.max_turns, episode.layout, episode.invalid_penalty) == (turns, layout, penalty)
    # the format is one thing: template and reader
    format = protocol.removeprefix("search_") if protocol != "search_r1" else protocol
    assert episode.prompt == f"search/{format}" and episode.action_format == f"agent_loops.search.formats:{format}"
    assert episode.stop_strings == ("</search>", "</answer>") and episode.observation_tokens == 500
    assert (episode.won_reward, episode.lost_reward, episode.read_action) == (1.0, 0.0, "first")
    assert rollout.custom.benchmark.top_k == 3 and rollout.custom.benchmark.url is None
    if layout == "transcript":  # every turn has its room
        shown = episode.observation_tokens * (turns - 1)
        assert episode.turn_tokens is not None and turns * episode.turn_tokens + shown + 200 <= response
    # three attempts end before the loop gives a step up, and turns before the trajectory
    assert 3 * rollout.custom.benchmark.timeout < episode.step_seconds
    assert (episode.trajectory_seconds or 0) >= 120 * turns


def test_searches_are_of_a_server_where_one_is_named(monkeypatch):
    monkeypatch.setenv("SEARCH_URL", "http://localhost:8000/retrieve")
    assert compose("search_3b").actor_rollout_ref.rollout.custom.benchmark.url == "http://localhost:8000/retrieve"


def test_swe_follows_deepswe():
    config = compose("swe_32b")
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert config.actor_rollout_ref.model.path != "Qwen/Qwen3-32B", "AEM_MODEL has its way"
    assert (config.data.train_batch_size, rollout.n, actor.ppo_mini_batch_size, actor.ppo_epochs) == (8, 8, 8, 1)
    assert (actor.optim.lr, actor.optim.lr_scheduler_type) == (1e-6, "constant")
    assert (actor.clip_ratio_low, actor.clip_ratio_high) == (0.2, 0.28)
    assert not actor.use_kl_loss and not config.algorithm.use_kl_in_reward and actor.entropy_coeff == 0
    assert not need_reference_policy(config) and not need_critic(config)
    assert (config.data.max_prompt_length, config.data.max_response_length) == (4096, 32768)
    assert rollout.max_model_len == 4096 + 32768 and config.data.apply_chat_template_kwargs.enable_thinking
    assert (rollout.temperature, rollout.top_p, rollout.top_k) == (1.0, 1, -1)
    episode, benchmark = rollout.custom.episode, rollout.custom.benchmark
    assert (episode.layout, episode.action_format, episode.max_turns) == ("transcript", "function_calls", 50)
    assert (episode.trajectory_seconds, benchmark.command_seconds, benchmark.reward_seconds) == (5400, 90, 300)
    # the loop gives a call up later than the sandbox a command, or the grader the tests, and earlier than a trajectory
    assert benchmark.command_seconds + benchmark.reward_seconds < episode.step_seconds < episode.trajectory_seconds
    assert (episode.won_reward, episode.lost_reward, episode.invalid_penalty) == (1.0, 0.0, 0.0)
    assert not episode.require_think and episode.turn_tokens is None and not episode.conclude
    assert (benchmark.validation, benchmark.sandbox.backend, benchmark.sandbox.unconfined) == (
        None,
        "bubblewrap",
        False,
    )
    assert config.trainer.total_training_steps == 250


def test_swes_default_method_is_aem_over_grpopp():
    """Compact filtering, the leave-one-out baseline over trajectories, and a constant length normaliser."""
    default, plain = compose("swe_32b"), compose("swe_32b", "method=grpopp")
    assert default == compose("swe_32b", "method=aem_grpopp")
    assert (default.algorithm.adv_estimator, default.algorithm.aem.base_estimator) == ("aem", "rloo")
    assert plain.algorithm.adv_estimator == "rloo_trajectories"
    for config in (default, plain):
        actor = config.actor_rollout_ref.actor
        assert config.actor_rollout_ref.rollout.custom.episode.compact_filtering
        assert (actor.loss_agg_mode, actor.loss_scale_factor) == ("seq-mean-token-sum-norm", 32768)


def test_swe_rejects_groups_of_one_outcome_and_samples_two_for_one():
    """verl's replay buffer is credited two prompts for each rejected one; a bound of one batch would hold them back."""
    from verl.trainer.ppo.v1 import replay_buffer

    groups = compose("swe_32b").algorithm.filter_groups
    assert (groups.enable, groups.metric, groups.max_inflight_gen_batches) == (True, "reward", 2)
    assert "refill_credit += 2 * dapo_count" in inspect.getsource(replay_buffer.ReplayBuffer.sample)


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


def test_swes_knobs(monkeypatch):
    monkeypatch.setenv("SWE_VALIDATION", "/data/verified.parquet")
    monkeypatch.setenv("SWE_BACKEND", "docker")
    config = compose("swe_32b", "++actor_rollout_ref.rollout.custom.benchmark.sandbox.options.network=none")
    benchmark = OmegaConf.to_container(config.actor_rollout_ref.rollout.custom.benchmark, resolve=True)
    assert (benchmark["tasks"], benchmark["validation"]) == ("/data/swe", "/data/verified.parquet")
    assert benchmark["sandbox"]["backend"] == "docker" and benchmark["sandbox"]["options"] == {"network": "none"}
    assert (config.data.train_files, config.data.val_files) == (
        "/data/tasks/train.parquet",
        "/data/tasks/validation.parquet",
    )


def test_swes_settings_are_the_sandboxs():
    from dataclasses import asdict

    from agent_loops.swe.sandbox import SandboxSettings

    given = OmegaConf.to_container(compose("swe_32b").actor_rollout_ref.rollout.custom.benchmark.sandbox, resolve=True)
    settings = SandboxSettings(**given)
    assert set(given) == set(asdict(settings)) and settings == SandboxSettings(), "the file shows the defaults"


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


@pytest.mark.parametrize(
    ("name", "files", "splits"),
    [
        ("alfworld_7b", "/data/games", ["valid_seen", "valid_unseen"]),
        ("scienceworld_7b", "/data/science", ["dev", "test"]),
        ("textworld_express_7b", "/data/express", ["dev", "test"]),
    ],
)
def test_one_override_chooses_the_split_to_validate_on(name, files, splits):
    for split, given in zip(splits, [(), (f"data.val_split={splits[1]}",)], strict=True):
        config = compose(name, *given)
        assert (config.data.train_files, config.data.val_files) == (
            f"{files}/train.parquet",
            f"{files}/{split}.parquet",
        )
        tasks = hydra.utils.get_object(f"{config.actor_rollout_ref.rollout.custom.benchmark.target}Tasks")
        assert split in tasks.splits


@pytest.mark.parametrize(
    ("name", "by_std"),
    [
        *[("webshop_7b", False), ("webshop_demo", False)],
        *[("alfworld_7b", True), ("scienceworld_7b", True), ("textworld_express_7b", True), ("swe_32b", True)],
        *[("search_7b", True), ("search_3b", True)],
    ],
)
@pytest.mark.parametrize("method", ["gigpo", "aem_gigpo", "hgpo", "aem_hgpo", "ecpo", "aem_ecpo"])
def test_a_base_of_turns_divides_by_std_where_the_benchmark_says_so(name, method, by_std):
    import verl

    config, base = compose(name, f"method={method}"), method.removeprefix("aem_")
    registered = set(core_algos.ADV_ESTIMATOR_REGISTRY)
    assert check_config(config, registered, verl.__version__).blocks[base].by_std is by_std
    # ScienceWorld's points before the end of a task sum to 100, TextWorldExpress's to 1, where the outcome is 10
    scaled = {"scienceworld_7b": 0.1, "textworld_express_7b": 10.0}
    assert config.algorithm[base].step_rewards == scaled.get(name, 1.0)
    if base == "gigpo":
        similarity = check_config(config, registered, verl.__version__).blocks["gigpo"].similarity
        assert similarity == (0.9 if name.startswith("search") else None)
    other = compose(name, f"method={method}", f"algorithm.{base}.by_std={not by_std}")  # it needs no plus
    assert check_config(other, registered, verl.__version__).blocks[base].by_std is not by_std


BENCHMARKS = {
    "webshop_7b": ("WebShop", {"data_dir": "/data/webshop"}),
    "webshop_demo": ("WebShop", {"data_dir": "/data/webshop"}),
    "alfworld_7b": ("Alfworld", {"data_dir": "/data/alfworld"}),
    "scienceworld_7b": ("ScienceWorld", {"simplifications": "easy"}),
    "textworld_express_7b": ("TextWorldExpress", {"game": "coin"}),
    "search_7b": ("Search", {"data_dir": "/data/search"}),
    "search_3b": ("Search", {"data_dir": "/data/search"}),
    "swe_32b": ("Swe", {"tasks": "/data/swe"}),
}
METHODS = sorted(
    file.name.removesuffix(".yaml")
    for file in importlib.resources.files("recipe.aem.config").joinpath("method").iterdir()
    if file.name.endswith(".yaml")
)


@pytest.mark.parametrize("machine", ["node", "cpu"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_composes_with_swe(method, machine):
    """The other benchmarks' are in tests/recipe/methods."""
    import verl

    from recipe.aem.methods.registry import ESTIMATORS
    from recipe.aem.seam.checks import check_terms

    config = compose("swe_32b", f"method={method}", f"machine={machine}")
    validate_config(config, need_reference_policy(config), need_critic(config))
    if config.algorithm.adv_estimator in ESTIMATORS:
        check_config(config, set(core_algos.ADV_ESTIMATOR_REGISTRY), verl.__version__)
    check_terms(config, verl.__version__)
    assert need_critic(config) == ("ppo" in method)
    omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    assert not need_reference_policy(config), "DeepSWE has no KL term"
    assert config.algorithm.filter_groups.enable


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_loop_can_read_its_settings(name):
    from agent_loops.episode import EpisodeSettings, load_template

    rollout = compose(name).actor_rollout_ref.rollout
    settings = EpisodeSettings.from_config(OmegaConf.to_container(rollout.custom.episode, resolve=True))
    assert load_template(settings.prompt)
    assert rollout.agent.default_agent_loop == "environment"
    arguments = OmegaConf.to_container(rollout.custom.benchmark, resolve=True)
    benchmark = hydra.utils.get_object(arguments.pop("target"))
    called, given = BENCHMARKS[name]
    assert benchmark.__name__ == called and given.items() <= arguments.items()
    inspect.signature(benchmark).bind(**arguments)


def test_the_demo_plays_what_its_warm_start_was_shown():
    from agent_loops.episode import EpisodeSettings
    from recipe.aem.tools.demo import shopping

    rollout = compose("webshop_demo").actor_rollout_ref.rollout
    assert EpisodeSettings.from_config(OmegaConf.to_container(rollout.custom.episode)) == shopping.SETTINGS
    assert rollout.custom.benchmark.n_validation == shopping.N_VALIDATION


@pytest.mark.parametrize("name", GIVEN)
def test_aems_settings_need_no_plus(name):
    given = ("lam=0.5", "min_range=0", "scope=batch", "direction=reversed", "shuffle=3", "base_estimator=rloo")
    config = compose(name, *(f"algorithm.aem.{setting}" for setting in given))
    block = config.algorithm.aem
    assert (block.lam, block.min_range, block.scope, block.direction) == (0.5, 0, "batch", "reversed")
    assert (block.shuffle, block.base_estimator) == (3, "rloo")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_the_settings_of_dumps_and_missing_trajectories(method):
    given = (
        "trajectories.max_missing=0.3",
        "trajectories.stall_seconds=600",
        "dump.dir=d",
        "dump.rows=9",
        "dump.every=2",
    )
    algorithm = compose("webshop_7b", f"method={method}", *(f"algorithm.{setting}" for setting in given)).algorithm
    assert algorithm.trajectories == {"max_missing": 0.3, "stall_seconds": 600}
    assert algorithm.dump == {"dir": "d", "rows": 9, "every": 2}


@pytest.mark.parametrize("name", [name for name in GIVEN if name != "aem_trainer"])
def test_a_trajectory_ends_at_some_time_and_not_before_two_minutes_a_turn(name):
    episode = compose(name).actor_rollout_ref.rollout.custom.episode
    turns = 2 * 60 * 15 if name.startswith("webshop") else 100 * episode.max_turns
    assert turns <= episode.trajectory_seconds < float("inf")


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("setting", ["algorithm.aem.lamda=1", "algorithm.aem.range=0", "trainer.total_training_step=2"])
def test_a_misspelt_setting_is_refused(name, setting):
    with pytest.raises(ConfigCompositionException, match="Could not override"):
        compose(name, setting)


def test_the_yaml_and_the_dataclass_have_the_same_settings():
    algorithm = compose("aem_trainer").algorithm
    assert set(algorithm.aem) == {field.name for field in fields(AemSettings)}
    assert algorithm.dump == asdict(DumpSettings()) and algorithm.untested_verl is False
    assert algorithm.balance is None and algorithm.updates_per_step is None


def test_aem_trainer_changes_nothing_else_of_verls():
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        theirs = hydra.compose("ppo_trainer")
    ours = compose("aem_trainer")
    with open_dict(ours):
        ours.algorithm.pop("aem")
        for name in OmegaConf.load(importlib.resources.files("recipe.aem.config") / "run" / "every.yaml").algorithm:
            ours.algorithm.pop(name)
        ours.algorithm.adv_estimator = theirs.algorithm.adv_estimator
        # but for the entropies' precision, which has two names
        for part, its in ((ours.actor_rollout_ref, theirs.actor_rollout_ref),):
            assert part.actor.entropy_from_logits_with_chunking and not its.actor.entropy_from_logits_with_chunking
            part.actor.entropy_from_logits_with_chunking = False
    assert OmegaConf.to_container(ours) == OmegaConf.to_container(theirs)


def test_verls_command_finds_it(tmp_path):
    environment = os.environ | {"AEM_MODEL": "my/model"}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "verl.trainer.main_ppo", "--config-path=pkg://recipe.aem.config"),
            *("--config-name=webshop_7b", "--cfg", "job", "algorithm.aem.lam=0.25"),
        ],
        env=environment, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = OmegaConf.create(done.stdout)
    assert said.algorithm.adv_estimator == "aem" and said.algorithm.aem.lam == 0.25
    assert said.trainer.n_gpus_per_node == 8
    assert not list(tmp_path.iterdir()), "hydra left files in the working directory"
