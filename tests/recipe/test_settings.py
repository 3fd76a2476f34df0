"""Every combination that is refused at start-up, and that the message names the setting to change."""

from __future__ import annotations

import copy

import pytest

from recipe.aem.settings import AemSettings, SettingsError, check_config

REGISTERED = {"gae", "grpo", "rloo", "opo", "gdpo", "remax", "optimal_token_baseline", "aem"}
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


@pytest.mark.parametrize("base", ["grpo", "rloo", "opo", "grpo_rows"])
def test_good_bases(base):
    assert check(changed("algorithm.aem.base_estimator", base)).base_estimator == base


def test_gae_runs_with_a_critic():
    config = changed("algorithm.aem.base_estimator", "gae")
    config["critic"]["enable"] = True
    assert check(config).base_estimator == "gae"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("algorithm.aem.base_estimator", "grop", r"base_estimator='grop' is not registered; known: .*grpo_rows"),
        ("algorithm.aem.base_estimator", "aem", "AEM modulates another estimator"),
        ("algorithm.aem.base_estimator", "gae", r"set critic\.enable=True"),
        ("algorithm.aem.base_estimator", "gdpo", "does not run on verl's V1 trainer"),
        ("algorithm.aem.base_estimator", "remax", "reward_baselines"),
        ("algorithm.aem.base_estimator", "optimal_token_baseline", "sum_pi_squared"),
        ("algorithm.rollout_correction.bypass_mode", True, r"rollout_correction\.bypass_mode=True .* set it to False"),
        ("algorithm.aem.lam", -1.0, r"algorithm\.aem\.lam=-1\.0: expected a finite number >= 0"),
        ("algorithm.aem.lam", float("nan"), r"algorithm\.aem\.lam=nan"),
        ("algorithm.aem.lam", "strong", r"algorithm\.aem\.lam='strong'"),
        ("algorithm.aem.min_range", float("inf"), r"algorithm\.aem\.min_range=inf"),
        (
            "algorithm.aem.scope",
            "row",
            r"algorithm\.aem\.scope='row': expected one of \['group', 'trajectory', 'batch'\]",
        ),
        ("algorithm.aem.direction", "up", r"algorithm\.aem\.direction='up'"),
        ("algorithm.aem.shuffle", True, r"algorithm\.aem\.shuffle=True: expected null or an integer seed"),
        ("algorithm.aem.lambda", 1.0, r"algorithm\.aem\.lambda is not a setting .*did you mean `lam`"),
    ],
)
def test_refused(path, value, message):
    with pytest.raises(SettingsError, match=message):
        check(changed(path, value))


def test_an_untested_verl_is_refused_unless_the_user_says_so():
    with pytest.raises(SettingsError, match=r"verl 0\.10\.0 is installed; .*untested_verl=True"):
        check(GOOD, verl="0.10.0")
    assert check(changed("algorithm.aem.untested_verl", True), verl="0.10.0").untested_verl
