"""Checks whether a configuration composes and the trainer would accept it."""

from __future__ import annotations

import pytest

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("rapidfuzz")
pytest.importorskip("psutil")

from omegaconf import OmegaConf

import verl_aem
from agent_loops.benchmarks import TABLE
from tests.helpers.findings import one

verl_aem.load()

from recipe.aem.tools.doctor import (  # noqa: E402
    configuration,
)
from recipe.aem.tools.hydra_config import CUSTOM, ConfigurationError, compose  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Disabled critic")

LAYOUT = "actor_rollout_ref.rollout.custom.episode.layout"


def test_a_configuration_composes_and_is_taken(monkeypatch, shop, model_dir):
    monkeypatch.setenv("AEM_MODEL", str(model_dir))
    config = compose("webshop_7b", ["machine=cpu"])
    OmegaConf.update(config, f"{CUSTOM}.benchmark.data_dir", str(shop))
    chosen = configuration.read(config)
    assert (chosen.entry, chosen.data, chosen.unset) == (TABLE["webshop"], shop, "")
    assert set(chosen.parquet.values()) == {None} and chosen.model == str(model_dir)
    settings = one(configuration.check_settings(config))
    assert (settings.level, settings.detail) == ("ok", "aem over grpo_rows")
    assert one(configuration.check_verl(config)).level == "ok"


@pytest.mark.parametrize(
    "given", ["critic.enable=true", "algorithm.adv_estimator=gae", "algorithm.aem.base_estimator=gae"]
)
def test_a_critic_that_cannot_start_is_said(given):
    settings = one(configuration.check_settings(compose("webshop_7b", ["machine=cpu", given])))
    assert (
        settings.level == "failure"
        and "verl/issues/5210" in settings.detail
        and given.lower() in settings.detail.lower()
    )


@pytest.mark.parametrize(
    ("name", "overrides", "levels"),
    [
        ("webshop_7b", [], ["ok"]),
        ("alfworld_7b", [], ["ok"]),
        ("webshop_demo", [], ["ok"]),
        ("webshop_7b", ["actor_rollout_ref.actor.shuffle=false"], ["warning"]),
        # one row a trajectory, or a loop that is not ours
        ("webshop_7b", ["actor_rollout_ref.actor.shuffle=false", f"{LAYOUT}=transcript"], []),
        ("swe_32b", [], []),
        ("aem_trainer", [], []),
    ],
)
def test_rows_in_the_order_of_ending_are_a_warning(name, overrides, levels):
    found = list(configuration.check_row_order(compose(name, overrides)))
    assert [finding.level for finding in found] == levels
    assert all("actor.shuffle=true" in finding.remedy for finding in found if finding.level == "warning")


@pytest.mark.parametrize(
    ("name", "overrides", "titles"),
    [
        ("webshop_7b", ["machine=gpu1"], []),
        ("webshop_7b", ["actor_rollout_ref.model.use_remove_padding=false"], ["Precision of entropies"]),
        (
            "webshop_7b",
            ["machine=gpu1", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=4096"],
            ["Size of micro-batches"],
        ),
        (
            "webshop_7b",
            ["method=grpo", "algorithm.adv_estimator=grpo", "actor_rollout_ref.rollout.n=1"],
            ["Size of groups"],
        ),
        (
            "webshop_7b",
            ["method=grpo", "algorithm.adv_estimator=grpo", "actor_rollout_ref.model.use_remove_padding=false"],
            [],
        ),
    ],
)
def test_what_is_worth_a_word_is_a_warning(name, overrides, titles):
    settings, *said = configuration.check_settings(compose(name, overrides))
    assert settings.level == "ok" and [(one.level, one.title) for one in said] == [("warning", t) for t in titles]
    assert all(finding.remedy for finding in said)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["actor_rollout_ref.rollout.n=1"], "rollout.n=1: grpo_rows"),
        (["algorithm.aem.base_estimator=grpo_passk", "actor_rollout_ref.rollout.n=1"], "grpo_passk needs two"),
        (["trainer.device=cpu"], "reads entropies in half precision"),
    ],
)
def test_what_the_trainer_refuses_is_a_failure(overrides, words):
    given = ["actor_rollout_ref.actor.entropy_from_logits_with_chunking=false"] if "device" in overrides[0] else []
    finding = one(configuration.check_settings(compose("webshop_7b", [*overrides, *given])))
    assert finding.level == "failure" and words in finding.detail


def test_the_entropies_precision_is_said():
    good = one(configuration.check_precision(compose("webshop_7b", ["machine=gpu1"])))
    assert good.level == "ok" and "float32" in good.detail
    assert one(configuration.check_precision(compose("webshop_7b", ["machine=cpu"]))).detail.endswith("=fp32")
    padded = compose("webshop_7b", ["actor_rollout_ref.model.use_remove_padding=false"])
    assert not list(configuration.check_precision(padded)), "said among the settings' warnings"


def test_variables_that_are_not_set_are_named():
    chosen = configuration.read(compose("alfworld_7b", []))
    assert (chosen.entry, chosen.data, chosen.unset) == (TABLE["alfworld"], None, "ALFWORLD_DATA")
    chosen = configuration.read(compose("scienceworld_7b", []))
    assert (chosen.entry, chosen.unset) == (TABLE["scienceworld"], "")
    assert configuration.read(compose("swe_32b", [])).unset == "SWE_TASKS"
    assert configuration.read(compose("webshop_demo", [])).model is None
    assert configuration.read(compose("aem_trainer", [])).target == ""


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("webshop", [], "webshop_7b"),
        ("webshop_7b", ["algorithm.aem.lamda=1"], "lamda"),
        ("webshop_7b", ["method=nothing"], "nothing"),
        ("webshop_7b", ["a=[b"], "a=[b"),
    ],
)
def test_what_does_not_compose(name, overrides, words):
    with pytest.raises(ConfigurationError) as error:
        compose(name, overrides)
    assert words in f"{error.value} {error.value.remedy}"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["algorithm.aem.lam=-1"], "algorithm.aem.lam=-1"),
        (["algorithm.aem.base_estimator=nothing"], "'nothing' is not registered"),
        (["algorithm.adv_estimator=foo_trajectories"], "foo_trajectories is not an estimator"),
        (["algorithm.adv_estimator=foo"], "foo is not registered with verl"),
        (["+algorithm.rollout_correction.bypass_mode=True"], "bypass_mode"),
        (["trainer.use_v1=False"], "older trainer"),
        (["method=epo", "actor_rollout_ref.actor.calculate_entropy=False"], "calculate_entropy"),
    ],
)
def test_settings_that_the_trainer_refuses(overrides, words):
    if overrides[0].startswith("+") and "rollout_correction" in compose("webshop_7b", []).algorithm:
        overrides = [overrides[0].removeprefix("+")]
    finding = one(configuration.check_settings(compose("webshop_7b", overrides)))
    assert finding.level == "failure" and words in f"{finding.detail} {finding.remedy}"


def test_verls_own_checks_are_asked():
    config = compose("webshop_7b", ["data.train_batch_size=1"])
    finding = one(configuration.check_verl(config))
    assert finding.level == "failure" and finding.detail
