"""What the trainer and the doctor refuse alike, over all of this package's parts."""

from __future__ import annotations

import copy

import pytest

from recipe.aem.settings import SettingsError
from recipe.aem.startup import check_run

GOOD = {
    "algorithm": {"adv_estimator": "aem", "aem": {"base_estimator": "grpo"}},
    "critic": {},
    "actor_rollout_ref": {"model": {}, "actor": {"calculate_entropy": True}, "ref": {}},
}


def check(estimator="aem", *, epo=False, attention=None, older=False, **sizes):
    config = copy.deepcopy(GOOD)
    config["algorithm"].update(adv_estimator=estimator, epo={"enable": epo})
    ours = config["actor_rollout_ref"]
    if attention:
        ours["model"]["override_config"] = {"attn_implementation": attention}
    for role, size in sizes.items():
        place = ours[role] if older else ours[role].setdefault("fsdp_config", {})
        place["ulysses_sequence_parallel_size"] = size
    return check_run(config, {"grpo", "rloo", "aem"}, "0.9.1")


def test_what_comes_back():
    settings, epo = check(epo=True)
    assert settings is not None and settings.base == "grpo" and epo.enable
    settings, epo = check("rloo")
    assert settings is None and not epo.enable


CRITICS = {
    "adv_estimator": ({"adv_estimator": "gae"}, {}, r"algorithm\.adv_estimator=gae"),
    "aem": ({"aem": {"base_estimator": "gae"}}, {"enable": True}, r"algorithm\.aem\.base_estimator=gae"),
    # not "set critic.enable=True", which would not help
    "aem, no critic": ({"aem": {"base_estimator": "gae"}}, {}, r"algorithm\.aem\.base_estimator=gae"),
    "empg": (
        {"adv_estimator": "empg", "empg": {"base_estimator": "gae"}},
        {"enable": True},
        r"algorithm\.empg\.base_estimator=gae",
    ),
    "alone": ({"adv_estimator": "rloo"}, {"enable": True}, r"critic\.enable=True"),
}


@pytest.mark.parametrize("strategy", [{}, {"strategy": "fsdp"}, {"strategy": "fsdp2"}])
@pytest.mark.parametrize("device", ["cpu", "cuda", None])
@pytest.mark.parametrize("asked", CRITICS)
def test_a_critic_that_verl_cannot_load_is_refused(asked, device, strategy, monkeypatch):
    """`verl#5210`: where flash-attn is missing. What verl does stands in test_contract_verl.py."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    algorithm, critic, said = CRITICS[asked]
    config = copy.deepcopy(GOOD) | {"critic": critic | strategy, "trainer": {"device": device}}
    config["algorithm"].update(algorithm)
    why = "there is none without a GPU" if device == "cpu" else "flash-attn is not installed"
    with pytest.raises(SettingsError, match=rf"^{said} cannot start: .*verl/issues/5210.* {why}\. Use an estimator"):
        check_run(config, {"grpo", "rloo", "aem", "gae"}, "0.9.1")


def test_where_flash_attention_is_installed_or_the_engine_is_another_a_critic_may_start(monkeypatch):
    config = copy.deepcopy(GOOD) | {"critic": {"enable": True}, "trainer": {"device": "cuda"}}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == "flash_attn" else None)
    check_run(config, {"grpo"}, "0.9.1")
    config["trainer"]["device"] = "cpu"
    with pytest.raises(SettingsError, match="without a GPU"):
        check_run(config, {"grpo"}, "0.9.1")
    config["critic"]["strategy"] = "megatron"
    check_run(config, {"grpo"}, "0.9.1")


@pytest.mark.parametrize("role", ["actor", "ref"])
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
def test_ulysses_needs_flash_attention(role, attention):
    said = rf"{role}\.fsdp_config\.ulysses_sequence_parallel_size=4 with .*attn_implementation={attention}: .*size to 1"
    with pytest.raises(SettingsError, match=said):
        check(attention=attention, **{role: 4})
    with pytest.raises(SettingsError, match=said):
        check("rloo", epo=True, attention=attention, **{role: 4})
    with pytest.raises(SettingsError, match=rf"_ref\.{role}\.ulysses_sequence_parallel_size=4 with"):
        check(attention=attention, older=True, **{role: 4})
    check(attention=attention, **{role: 1})
    check("rloo", attention=attention, **{role: 4})  # a run of verl's own is verl's to judge


@pytest.mark.parametrize("attention", [None, "flash_attention_2", "flash_attention_3"])
def test_with_flash_attention_it_runs(attention):
    check(attention=attention, actor=4, ref=4)


def test_settings_of_every_part_are_looked_at():
    with pytest.raises(SettingsError, match="is not an estimator"):
        check("aem_trajectories")
    with pytest.raises(SettingsError, match="dump_evry"):
        check_run({**GOOD, "algorithm": {"adv_estimator": "rloo", "aem": {"dump_evry": 2}}}, {"rloo"}, "0.9.1")
    with pytest.raises(SettingsError, match="calculate_entropy"):
        algorithm = {"adv_estimator": "rloo", "epo": {"enable": True}}
        check_run({**GOOD, "algorithm": algorithm, "actor_rollout_ref": {"actor": {}}}, {"rloo"}, "0.9.1")
