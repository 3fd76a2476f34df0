"""The shipped configurations, composed as hydra composes them: verl accepts each, and no setting is misspelt.

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
from tests.helpers.configs import ATTENTION, EVERY, GIVEN, compose  # noqa: E402


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
