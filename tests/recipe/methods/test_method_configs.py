"""The shipped methods: each one composes, passes verl's checks, and sets what its paper says and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from omegaconf import OmegaConf

pytest.importorskip("verl", reason="verl is not installed")

import verl_aem

verl_aem.load()

from verl.trainer.ppo import core_algos  # noqa: E402
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY  # noqa: E402
from verl.trainer.ppo.utils import need_critic, need_reference_policy  # noqa: E402
from verl.utils.config import omega_conf_to_dataclass, validate_config  # noqa: E402

from agent_loops.episode import EpisodeSettings  # noqa: E402
from recipe.aem.methods.aem import AemSettings  # noqa: E402
from recipe.aem.methods.ecpo import EcpoSettings  # noqa: E402
from recipe.aem.methods.empg import EmpgSettings  # noqa: E402
from recipe.aem.methods.gigpo import GigpoSettings  # noqa: E402
from recipe.aem.methods.hgpo import HgpoSettings  # noqa: E402
from recipe.aem.seam.checks import check_config, check_terms  # noqa: E402
from tests.helpers.methods import (  # noqa: E402
    MACHINE,
    METHODS,
    PLAIN,
    PPO,
    WITH_AEM,
    WITH_TERM,
    actor_of,
    changeable,
    compose,
)


def test_every_method_is_tested():
    from importlib.resources import files

    folder = files("recipe.aem.config").joinpath("method")
    shipped = {file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")}
    assert shipped == {*METHODS, *WITH_TERM, *PPO}


@pytest.mark.filterwarnings("ignore:Disabled critic")
@pytest.mark.parametrize("method", [*METHODS, *WITH_TERM])
@pytest.mark.parametrize("name", MACHINE)
def test_verl_and_the_loop_accept_it(name, method):
    import verl

    config = compose(name, method)
    assert check_config(config, set(ADV_ESTIMATOR_REGISTRY), verl.__version__).estimator in ADV_ESTIMATOR_REGISTRY
    assert bool(check_terms(config, verl.__version__)) == (method in WITH_TERM)
    validate_config(config, need_reference_policy(config), need_critic(config))
    rollout = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    EpisodeSettings.from_config(OmegaConf.to_container(config.actor_rollout_ref.rollout.custom.episode))
    actor = actor_of(config)
    assert core_algos.get_policy_loss_fn(actor.policy_loss.loss_mode)
    assert actor.rollout_n == rollout.n > 1 and not need_critic(config)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_sets_the_estimator_the_loss_and_the_episode_and_nothing_else(method):
    allowed = {
        "algorithm": None,
        "actor_rollout_ref.actor": {
            *("clip_ratio_low", "clip_ratio_high", "loss_agg_mode", "loss_scale_factor"),
            *("use_kl_loss", "entropy_coeff", "policy_loss"),
        },
        "actor_rollout_ref.rollout.custom.episode": {
            *("overlong_buffer", "overlong_penalty", "compact_filtering"),
        },
    }  # fmt: skip
    theirs, plain = (changeable(compose("webshop_7b", name)) for name in (method, "aem"))
    for config in (theirs, plain):
        for place, names in allowed.items():
            node = OmegaConf.select(config, place)
            for key in list(node) if names is None else names & set(node):
                del node[key]
    assert OmegaConf.to_container(theirs, resolve=True) == OmegaConf.to_container(plain, resolve=True)


@pytest.mark.parametrize("method", [name for name in WITH_AEM if name != "aem"])
def test_aem_over_a_method_is_that_method_with_its_advantages_modulated(method):
    over, alone = (changeable(compose("webshop_7b", name)) for name in (method, method.removeprefix("aem_")))
    base = alone.algorithm.adv_estimator.removesuffix("_trajectories")  # grpopp's; as AEM's base always once each
    assert over.algorithm.adv_estimator == "aem"
    assert over.algorithm.aem == {**compose("webshop_7b", "aem").algorithm.aem, "base_estimator": base}
    assert AemSettings.from_config(over.algorithm).lam == 1.0
    for config in (over, alone):
        del config.algorithm.adv_estimator
        config.algorithm.pop("aem", None)
    assert over == alone


def test_the_base_of_each_method():
    estimator = {method: compose("webshop_7b", method).algorithm.adv_estimator for method in PLAIN}
    assert estimator == {
        **dict.fromkeys(("grpo", "dapo", "gspo", "drgrpo", "clip_cov", "kl_cov"), "grpo_rows"),
        "grpopp": "rloo_trajectories", **{name: name for name in ("gigpo", "hgpo", "ecpo", "empg")}, "sampo": "gigpo",
    }  # fmt: skip
    by_std = {method: compose("webshop_7b", method).algorithm.norm_adv_by_std_in_grpo for method in PLAIN}
    assert [method for method in PLAIN if not by_std[method]] == ["drgrpo"]


@pytest.mark.parametrize("method", METHODS)
def test_the_kl_term_goes_where_the_method_has_none(method):
    """Of the protocol's KL loss DAPO, Dr. GRPO and GRPO++ want none; the others keep it."""
    without = method.removeprefix("aem_") in ("dapo", "drgrpo", "grpopp")
    config = compose("webshop_7b", method)
    assert need_reference_policy(config) == (not without)
    assert config.actor_rollout_ref.actor.use_kl_loss == (not without)
    assert not config.algorithm.use_kl_in_reward and config.actor_rollout_ref.actor.entropy_coeff == 0


def test_published_values_of_gigpo_and_empg():
    gigpo, empg = compose("webshop_7b", "gigpo").algorithm.gigpo, compose("webshop_7b", "empg").algorithm.empg
    # WebShop rewards nothing before the last turn, so that `step_rewards` is no matter there
    assert gigpo == {
        **{"weight": 1.0, "gamma": 0.95, "by_std": False, "over": "responses", "step_rewards": 1.0},
        "similarity": None,
    }
    assert empg == {
        **{"base_estimator": "grpo_rows", "k": 1.0, "k_future": 1.0, "zeta": 0.1},
        **{"scaling": True, "bonus": True, "recentre": True},
    }


def test_published_values_of_hgpo_and_ecpo():
    for benchmark, by_std in (("webshop_7b", False), ("alfworld_7b", True)):
        assert compose(benchmark, "hgpo").algorithm.hgpo == {
            **{"gamma": 0.95, "by_std": by_std, "history_length": 2, "weight_power": 1.0, "trajectory_term": False},
            "step_rewards": 1.0,
        }
    assert compose("webshop_7b", "ecpo").algorithm.ecpo == {
        **{"weight": 1.0, "gamma": 0.95, "by_std": False, "kappa": 2.0, "step_rewards": 1.0}
    }


def test_hgpo_compares_histories_as_long_as_those_that_prompts_show():
    shown = "actor_rollout_ref.rollout.custom.episode.history_length"
    config = compose("webshop_7b", "hgpo", f"{shown}=4")
    assert HgpoSettings.from_config(config.algorithm).history_length == 4
    config = changeable(config)
    config.actor_rollout_ref.rollout.custom = None  # another agent loop
    assert HgpoSettings.from_config(config.algorithm).history_length == 2


@pytest.mark.parametrize(("benchmark", "alpha", "steps"), [("alfworld", 0.1, 150), ("scienceworld", 0.05, 125)])
def test_published_values_of_epo(benchmark, alpha, steps):
    """Each benchmark's file has its paper's values, on its own protocol; with AEM they stay."""
    for method in (f"epo_{benchmark}", f"aem_epo_{benchmark}"):
        config = compose(f"{benchmark}_7b", method)
        epo = config.algorithm.epo
        assert (epo.enable, epo.coef, epo.lower, epo.upper, epo.alpha, epo.gamma) == (True, 0.001, 0.0, 2.0, alpha, 3.0)
        assert epo.total_steps is None and config.trainer.total_training_steps == steps  # K: the trainer's steps
        optim = config.actor_rollout_ref.actor.optim
        assert (optim.lr, optim.lr_scheduler_type, optim.lr_warmup_steps_ratio) == (5e-6, "cosine", 0.1)
        assert (optim.min_lr_ratio, config.actor_rollout_ref.actor.calculate_entropy) == (0.2, True)
    assert compose(f"{benchmark}_7b", f"epo_{benchmark}").algorithm.adv_estimator == "grpo_rows"
    assert compose(f"{benchmark}_7b", f"aem_epo_{benchmark}").algorithm.adv_estimator == "aem"


def test_ppo_is_verls_gae_with_a_critic():
    """A trajectory's KL stays where the protocol has it, in the loss; γ is GAE's, not the protocol's."""
    ppo, aem = compose("webshop_7b", "ppo"), compose("webshop_7b", "aem_ppo")
    for config in (ppo, aem):
        assert need_critic(config) and config.critic.optim.lr == 1e-5
        assert (config.algorithm.gamma, config.algorithm.lam) == (1.0, 1.0)
        assert need_reference_policy(config) and config.actor_rollout_ref.actor.use_kl_loss
    assert (ppo.algorithm.adv_estimator, aem.algorithm.adv_estimator) == ("gae", "aem")
    assert aem.algorithm.aem == {**compose("webshop_7b", "aem").algorithm.aem, "base_estimator": "gae"}
    assert aem.critic == ppo.critic and aem.actor_rollout_ref == compose("webshop_7b", "aem").actor_rollout_ref


@pytest.mark.parametrize(
    ("name", "method", "alpha", "steps"),
    [("alfworld_7b", "epo_ppo", 0.1, 150), ("scienceworld_7b", "epo_ppo_scienceworld", 0.05, 125)],
)
def test_published_values_of_epo_over_ppo(name, method, alpha, steps):
    config = compose(name, method)
    epo, optim = config.algorithm.epo, config.actor_rollout_ref.actor.optim
    assert (epo.enable, epo.coef, epo.lower, epo.upper, epo.alpha, epo.gamma) == (True, 0.001, 0.0, 2.0, alpha, 3.0)
    assert config.trainer.total_training_steps == steps
    assert (optim.lr, optim.lr_scheduler_type, optim.lr_warmup_steps_ratio) == (3e-6, "cosine", 0.1)
    assert optim.min_lr_ratio == 0.2 and config.actor_rollout_ref.actor.calculate_entropy
    assert (config.critic.optim.lr, config.critic.optim.lr_scheduler_type) == (3e-6, "constant")
    plain = compose(name, "ppo")
    assert config.algorithm.adv_estimator == "gae" and need_critic(config)
    assert {**config.critic, "optim": None} == {**plain.critic, "optim": None}


def test_no_method_sets_what_a_machine_sets():
    """So every method goes with every machine as it goes with one."""
    from importlib.resources import files

    def keys(node: Any, path: tuple = ()) -> set[tuple]:
        if not isinstance(node, Mapping):
            return {path}
        return set().union(*(keys(value, (*path, name)) for name, value in node.items() if name != "defaults"))

    config = files("recipe.aem.config")
    groups = {}
    for group in ("method", "machine"):
        paths = [path for path in config.joinpath(group).iterdir() if path.name.endswith(".yaml")]
        loaded = (OmegaConf.to_container(OmegaConf.create(path.read_text(encoding="utf-8"))) for path in paths)
        groups[group] = set().union(*map(keys, loaded))
    assert len(groups["method"]) > 30 and len(groups["machine"]) > 30
    assert not groups["method"] & groups["machine"]


def test_no_setting_needs_a_plus():
    from dataclasses import fields

    blocks = {
        EpisodeSettings: compose("webshop_7b", "grpo").actor_rollout_ref.rollout.custom.episode,
        GigpoSettings: compose("webshop_7b", "gigpo").algorithm.gigpo,
        HgpoSettings: compose("webshop_7b", "hgpo").algorithm.hgpo,
        EcpoSettings: compose("webshop_7b", "ecpo").algorithm.ecpo,
        EmpgSettings: compose("webshop_7b", "empg").algorithm.empg,
    }
    for settings, block in blocks.items():
        assert set(block) == {field.name for field in fields(settings)}
