"""The shipped configurations, composed as hydra composes them, for eight GPUs and for the machine without one.

Not covered: whether the data and the model they name exist, and whether training with them runs (tests/e2e); the
trailing arguments of scripts/*.sh.
"""

from __future__ import annotations

import os
import subprocess
import sys

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

from recipe.aem.settings import check_config  # noqa: E402

# what whoever uses aem_trainer brings: verl's own configuration leaves these open, and verl's FSDP1 needs a GPU
BROUGHT = (
    "actor_rollout_ref.actor.strategy=fsdp2",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.rollout.name=vllm",
    "actor_rollout_ref.model.path=${oc.env:AEM_MODEL}",
    "++actor_rollout_ref.model.override_config.attn_implementation=sdpa",
)
GIVEN = {
    "webshop_7b": {"node": ("machine=node",), "cpu": ("machine=cpu",)},
    "webshop_1.5b": {"node": ("machine=node",), "cpu": ("machine=cpu",)},
    "webshop_demo": {"node": ("machine=node",), "gpu1": ("machine=gpu1",), "cpu": ("machine=cpu",)},
    "aem_trainer": {"node": ("+machine=node", *BROUGHT), "cpu": ("+machine=cpu", *BROUGHT)},
}
EVERY = [(name, machine) for name, machines in GIVEN.items() for machine in machines]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    from recipe.aem.demo import tiny_model

    directory = tmp_path_factory.mktemp("model")
    tokenizer = tiny_model.build_tokenizer(["hello"], [], max_words=10)
    tiny_model.save(tiny_model.build_model(tokenizer, hidden=8, layers=1), tokenizer, directory, {})
    return directory


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, model_dir):
    monkeypatch.setenv("AEM_MODEL", str(model_dir))
    monkeypatch.setenv("WEBSHOP_DATA", "/data/webshop")
    monkeypatch.setenv("WEBSHOP_PARQUET", "/data/parquet")
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
def test_aem_accepts_it(name, machine):
    import verl

    config = compose(name, *GIVEN[name][machine])
    assert config.algorithm.adv_estimator == "aem"
    settings = check_config(config, set(core_algos.ADV_ESTIMATOR_REGISTRY), verl.__version__)
    aem = settings.aem
    assert (aem.lam, aem.min_range, aem.scope, aem.direction) == (1.0, 0.1, "group", "forward")
    assert (aem.mean, aem.proxy, aem.shuffle) == ("response", "entropy", None)
    assert settings.base == "grpo_rows"
    assert config.trainer.use_v1 and config.trainer.v1.trainer_mode == "sync"


@pytest.mark.parametrize(("name", "machine"), EVERY)
def test_every_workers_settings_can_be_made(name, machine):
    """The calls of verl's workers (workers/engine_workers.py:540-690, agent_loop.py, trainer_base.py:381)."""
    part = compose(name, *GIVEN[name][machine]).actor_rollout_ref
    assert part.actor.strategy == part.ref.strategy == "fsdp2"

    model = omega_conf_to_dataclass(part.model)
    assert model.hf_config.vocab_size == len(model.tokenizer)
    assert model.hf_config._attn_implementation == "sdpa"

    assert part.actor.use_dynamic_bsz == part.rollout.log_prob_use_dynamic_bsz, "engine_workers.py asserts it"
    actor = omega_conf_to_dataclass(part.actor)
    assert actor.engine.strategy == "fsdp2"

    rollout = omega_conf_to_dataclass(part.rollout)
    assert (rollout.name, rollout.mode) == ("vllm", "async")
    checkpoint = omega_conf_to_dataclass(part.rollout.checkpoint_engine)
    assert checkpoint.backend == "naive"

    with open_dict(part.ref):  # as engine_workers.py:547-554 turns it into an actor's
        part.ref.ppo_mini_batch_size = part.actor.ppo_mini_batch_size
        part.ref.ppo_micro_batch_size = part.ref.pop("log_prob_micro_batch_size", None)
        part.ref.ppo_micro_batch_size_per_gpu = part.ref.pop("log_prob_micro_batch_size_per_gpu", None)
        part.ref.use_dynamic_bsz = part.ref.pop("log_prob_use_dynamic_bsz", False)
        part.ref.ppo_max_token_len_per_gpu = part.ref.pop("log_prob_max_token_len_per_gpu", None)
    assert omega_conf_to_dataclass(part.ref).engine.strategy == "fsdp2"


@pytest.mark.parametrize(("name", "machine"), EVERY)
def test_a_critic_could_be_made(name, machine):
    """For the base `gae`. verl's critic does not follow the actor's strategy, so it is given with `critic.enable`."""
    given = ("critic.enable=True", "critic.strategy=fsdp2", "critic.ppo_micro_batch_size_per_gpu=8")
    given += ("critic.model.path=${oc.env:AEM_MODEL}", "algorithm.aem.base_estimator=gae")
    config = compose(name, *GIVEN[name][machine], *given)
    assert need_critic(config)
    assert omega_conf_to_dataclass(config.critic).strategy == "fsdp2"


@pytest.mark.parametrize("name", GIVEN)
def test_the_machine_decides_where_it_runs(name):
    node, cpu = (compose(name, *GIVEN[name][machine]).trainer for machine in ("node", "cpu"))
    assert (node.device, node.nnodes, node.n_gpus_per_node) == ("cuda", 1, 8)
    assert (cpu.device, cpu.nnodes, cpu.n_gpus_per_node) == ("cpu", 1, 1)


@pytest.mark.parametrize("name", ["webshop_7b", "webshop_demo"])
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


def test_webshop_7b_follows_verl_agents_protocol():
    config = compose("webshop_7b")
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert (config.data.train_batch_size, rollout.n) == (16, 8)
    assert actor.ppo_mini_batch_size * rollout.n == 64  # verl multiplies (v1/trainer_base.py:1603)
    assert actor.optim.lr == 1e-6 and actor.optim.lr_scheduler_type == "constant" and actor.ppo_epochs == 1
    assert actor.optim.lr_warmup_steps in (-1, 0) and actor.optim.lr_warmup_steps_ratio == 0.0
    assert (actor.use_kl_loss, actor.kl_loss_coef, actor.kl_loss_type) == (True, 0.01, "low_var_kl")
    assert not config.algorithm.use_kl_in_reward and config.algorithm.gamma == 0.95
    assert (actor.clip_ratio, actor.clip_ratio_low, actor.clip_ratio_high, actor.clip_ratio_c) == (0.2, 0.2, 0.2, 3.0)
    assert actor.entropy_coeff == 0
    assert (rollout.temperature, rollout.top_p, rollout.top_k) == (1.0, 1, -1)
    validation = rollout.val_kwargs
    assert (validation.temperature, validation.do_sample, validation.n) == (0.4, True, 1)
    assert config.data.val_max_samples == 128 and config.trainer.test_freq == 5
    assert config.trainer.total_training_steps == 150 and config.data.seed == 0
    assert (config.data.max_prompt_length, config.data.max_response_length) == (4096, 512)
    assert (rollout.prompt_length, rollout.response_length) == (4096, 512)
    assert rollout.max_model_len >= 4096 + 512
    episode = rollout.custom.episode
    assert (episode.max_turns, episode.history_length, episode.invalid_penalty) == (15, 2, 0.1)
    assert (episode.won_reward, episode.lost_reward, episode.fallback_characters) == (10.0, 0.0, 20)
    assert episode.require_think and episode.max_prompt_characters == 13000
    assert rollout.custom.benchmark.n_validation == 500


@pytest.mark.parametrize("name", ["webshop_7b", "webshop_demo"])
def test_the_loop_can_read_its_settings(name):
    from agent_loops.episode import EpisodeSettings, load_template

    rollout = compose(name).actor_rollout_ref.rollout
    settings = EpisodeSettings.from_config(OmegaConf.to_container(rollout.custom.episode, resolve=True))
    assert load_template(settings.prompt)
    assert rollout.agent.default_agent_loop == "environment"
    assert rollout.custom.benchmark.data_dir == "/data/webshop"
    assert hydra.utils.get_object(rollout.custom.benchmark.target).__name__ == "WebShop"


def test_the_demo_plays_what_its_warm_start_was_shown():
    from agent_loops.episode import EpisodeSettings
    from recipe.aem.demo import shopping

    rollout = compose("webshop_demo").actor_rollout_ref.rollout
    assert EpisodeSettings.from_config(OmegaConf.to_container(rollout.custom.episode)) == shopping.SETTINGS
    assert rollout.custom.benchmark.n_validation == shopping.N_VALIDATION


def test_another_attention_needs_no_plus():
    config = compose("webshop_7b", "actor_rollout_ref.model.override_config.attn_implementation=flash_attention_2")
    assert config.actor_rollout_ref.model.override_config.attn_implementation == "flash_attention_2"


@pytest.mark.parametrize("name", GIVEN)
def test_aems_settings_need_no_plus(name):
    given = ("lam=0.5", "min_range=0", "scope=batch", "direction=reversed", "shuffle=3", "base_estimator=rloo")
    config = compose(name, *(f"algorithm.aem.{setting}" for setting in given))
    block = config.algorithm.aem
    assert (block.lam, block.min_range, block.scope, block.direction) == (0.5, 0, "batch", "reversed")
    assert (block.shuffle, block.base_estimator) == (3, "rloo")


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("setting", ["algorithm.aem.lamda=1", "algorithm.aem.range=0", "trainer.total_training_step=2"])
def test_a_misspelt_setting_is_refused(name, setting):
    with pytest.raises(ConfigCompositionException, match="Could not override"):
        compose(name, setting)


def test_the_yaml_and_the_dataclass_have_the_same_settings():
    from dataclasses import fields

    from recipe.aem.settings import AemSettings

    assert set(compose("aem_trainer").algorithm.aem) == {field.name for field in fields(AemSettings)}


def test_aem_trainer_changes_nothing_else_of_verls():
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        theirs = hydra.compose("ppo_trainer")
    ours = compose("aem_trainer")
    with open_dict(ours):
        ours.algorithm.pop("aem")
        ours.algorithm.adv_estimator = theirs.algorithm.adv_estimator
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
