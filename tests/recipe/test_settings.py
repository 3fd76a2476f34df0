"""Every combination of settings refused at start-up, with a message that names the setting to change."""

from __future__ import annotations

import copy

import pytest

from recipe.aem.methods.aem import AemSettings
from recipe.aem.methods.outcomes import OUTCOME_BASES
from recipe.aem.methods.registry import ESTIMATORS
from recipe.aem.seam.checks import ESTIMATORS_ONLY_VERL, TESTED_VERL, check_config, check_name
from recipe.aem.settings import SettingsError

REGISTERED = {"gae", "grpo", "rloo", "opo", "gdpo", "remax", "optimal_token_baseline", *ESTIMATORS}
GOOD = {
    "algorithm": {
        "adv_estimator": "aem",
        "aem": {"base_estimator": "grpo"},
        "rollout_correction": {"bypass_mode": False},
    },
    "critic": {"enable": None},
}


def changed(path: str, value):
    config = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    node = config
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    return config


def check(config, verl="0.9.1"):
    return check_config(config, REGISTERED, verl)


def test_the_papers_settings_are_the_defaults():
    settings = AemSettings.from_config({})
    assert (settings.lam, settings.min_range, settings.scope, settings.direction) == (1.0, 0.1, "group", "forward")
    assert settings.shuffle is None and settings.base_estimator == "grpo"


@pytest.mark.parametrize("base", ["grpo", "rloo", "opo", "grpo_rows", "gigpo", "hgpo", "ecpo"])
def test_good_bases(base):
    assert check(changed("algorithm.aem.base_estimator", base)).base == base


def test_gae_runs_with_a_critic():
    config = changed("algorithm.aem.base_estimator", "gae")
    config["critic"]["enable"] = True
    assert check(config).base == "gae"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("algorithm.aem.base_estimator", "grop", r"base_estimator='grop' is not registered; known: .*grpo_rows"),
        ("algorithm.aem.base_estimator", "grop", r"known: ecpo, gae, gigpo, grpo, grpo_rows, hgpo, opo, rloo$"),
        ("algorithm.aem.base_estimator", "aem", "aem modulates another estimator"),
        (
            "algorithm.aem.base_estimator",
            "rloo_trajectories",
            "aem gives rloo one sequence per trajectory anyway; use rl",
        ),
        ("algorithm.aem.base_estimator", "gae", r"set critic\.enable=True"),
        ("algorithm.aem.base_estimator", "gdpo", "does not run on verl's V1 trainer"),
        ("algorithm.aem.base_estimator", "optimal_token_baseline", "sum_pi_squared"),
        ("algorithm.rollout_correction.bypass_mode", True, r"rollout_correction\.bypass_mode=True .* set it to False"),
        ("algorithm.aem.lam", -1.0, r"algorithm\.aem\.lam=-1\.0: expected a finite number >= 0"),
        ("algorithm.aem.lam", "strong", r"algorithm\.aem\.lam='strong'"),
        (
            "algorithm.aem.relative_to",
            "page",
            r"algorithm\.aem\.relative_to='page': expected one of \[None, 'turn_kind'",
        ),
        ("algorithm.gigpo.gamma", 1.5, r"algorithm\.gigpo\.gamma=1\.5: expected a number in \[0, 1\]"),
        ("algorithm.gigpo.similarity", 0, r"algorithm\.gigpo\.similarity=0: expected null or a number in \(0, 1\]"),
        ("algorithm.gigpo.similarity", True, r"algorithm\.gigpo\.similarity=True: expected null or a number"),
        ("algorithm.hgpo.gamma", 1.5, r"algorithm\.hgpo\.gamma=1\.5: expected a number in \[0, 1\]"),
        ("algorithm.hgpo.history_length", 1.5, r"algorithm\.hgpo\.history_length=1\.5: expected an integer >= 0"),
        ("algorithm.hgpo.history_length", -1, r"algorithm\.hgpo\.history_length=-1: expected an integer >= 0"),
        ("algorithm.hgpo.weight_power", -1.0, r"algorithm\.hgpo\.weight_power=-1\.0: expected a finite number >= 0"),
        ("algorithm.hgpo.trajectory_term", 1, r"algorithm\.hgpo\.trajectory_term=1: expected true or false"),
        ("algorithm.ecpo.gamma", 1.5, r"algorithm\.ecpo\.gamma=1\.5: expected a number in \[0, 1\]"),
        ("algorithm.ecpo.kappa", -1.0, r"algorithm\.ecpo\.kappa=-1\.0: expected a finite number >= 0"),
        ("algorithm.ecpo.by_std", "no", r"algorithm\.ecpo\.by_std='no': expected true or false"),
        ("algorithm.empg.zeta", -0.1, r"algorithm\.empg\.zeta=-0\.1: expected a finite number >= 0"),
        ("algorithm.empg.bonus", 1, r"algorithm\.empg\.bonus=1: expected true or false"),
        ("algorithm.empg.keta", 1, r"algorithm\.empg\.keta is not a setting .*did you mean `zeta`"),
        ("algorithm.aem.shuffle", True, r"algorithm\.aem\.shuffle=True: expected null or an integer seed"),
        ("algorithm.aem.shuffle", -1, r"algorithm\.aem\.shuffle=-1: expected null or an integer seed, not negative"),
        ("algorithm.aem.lambda", 1.0, r"algorithm\.aem\.lambda is not a setting .*did you mean `lam`"),
    ],
)
def test_refused(path, value, message):
    with pytest.raises(SettingsError, match=message):
        check(changed(path, value))


def test_empg_is_held_to_the_same_rules():
    config = changed("algorithm.adv_estimator", "empg")
    assert check(config).base == "grpo"
    config["algorithm"]["empg"] = {"base_estimator": "aem"}
    with pytest.raises(SettingsError, match=r"algorithm\.empg\.base_estimator=aem: empg modulates another"):
        check(config)
    config["algorithm"]["empg"] = {}
    config["algorithm"]["rollout_correction"]["bypass_mode"] = True
    with pytest.raises(SettingsError, match=r"where empg's entropies come from; set it to False$"):
        check(config)


def test_what_needs_no_entropies_runs_without_the_old_policy_pass():
    config = changed("algorithm.rollout_correction.bypass_mode", True)
    config["algorithm"]["aem"]["proxy"] = "surprisal"
    assert check(config).measure == "old_log_probs"
    for name in ("gigpo", "hgpo", "ecpo", "grpo_rows"):
        config["algorithm"]["adv_estimator"] = name
        assert check(config).measure is None and check(config).base == name


@pytest.mark.parametrize("base", OUTCOME_BASES)
def test_every_outcome_estimator_of_verl_has_a_form_over_trajectories(base):
    config = changed("algorithm.adv_estimator", f"{base}_trajectories")
    # it needs no entropies
    config["algorithm"]["rollout_correction"]["bypass_mode"] = True
    assert check(config).base == base and check(config).measure is None
    check_name(f"{base}_trajectories")


@pytest.mark.parametrize("name", ["gae_trajectories", "remax_trajectories", "rlo_trajectories", "aem_trajectories"])
def test_what_has_no_form_over_trajectories_is_refused(name):
    known = "gpg_trajectories, grpo_trajectories, .*rloo_trajectories$"
    with pytest.raises(SettingsError, match=rf"adv_estimator={name} is not an estimator; .* there are {known}"):
        check_name(name)


def test_other_names_are_verls_to_judge():
    for name in ("grpo", "gae", "of_the_users_own", *ESTIMATORS):
        check_name(name)


def test_the_estimators_run_with_an_older_verl_that_was_tested():
    assert all(check(GOOD, verl=version).base == "grpo" for version in (*TESTED_VERL, *ESTIMATORS_ONLY_VERL))
    assert "0.9.0" in ESTIMATORS_ONLY_VERL and not set(TESTED_VERL) & set(ESTIMATORS_ONLY_VERL)


def test_an_untested_verl_is_refused_unless_the_user_says_so():
    with pytest.raises(SettingsError, match=r"verl 0\.10\.0 is installed; .*untested_verl=True"):
        check(GOOD, verl="0.10.0")
    assert check(changed("algorithm.untested_verl", True), verl="0.10.0").base == "grpo"
