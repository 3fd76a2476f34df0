"""What an algorithm needs besides its module: a configuration, a page, replay, documented metrics."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from recipe.aem.methods.algorithm import Base, Modulator
from recipe.aem.methods.registry import BLOCKS, ESTIMATORS, LOSS_TERMS, MODULATORS, REPLAYED, RESPONSE_BASES, Settings
from recipe.aem.settings import SettingsError
from recipe.aem.tools.replay.methods import parse_method

ROOT = Path(__file__).resolve().parents[2]
EVERY = {**MODULATORS, **RESPONSE_BASES, **LOSS_TERMS}
METHODS = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
METRICS = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", EVERY)
def test_an_algorithm_has_its_own_module(name):
    assert EVERY[name].__module__ == f"recipe.aem.methods.{name}" and EVERY[name].name == name


@pytest.mark.parametrize("name", EVERY)
def test_an_algorithm_has_a_configuration(name):
    files = (ROOT / "recipe" / "aem" / "config" / "method").glob("*.yaml")
    chosen = rf"adv_estimator: {name}$" if name in ESTIMATORS else rf"^  {name}:\n    enable: true$"
    assert any(re.search(chosen, file.read_text(encoding="utf-8"), re.MULTILINE) for file in files), (
        f"no file of config/method chooses {name}"
    )


@pytest.mark.parametrize("name", EVERY)
def test_an_algorithm_and_its_settings_are_documented(name):
    assert f"`{name}`" in METHODS or f"`algorithm.{name}`" in METHODS, f"docs/methods.md has no {name}"
    _, _, text = METHODS.partition("## Settings")
    for field in dataclasses.fields(EVERY[name]):  # type: ignore[arg-type]
        assert f"`{field.name}`" in text, f"docs/methods.md does not explain algorithm.{name}.{field.name}"


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name in EVERY])
def test_an_estimator_can_be_replayed_with_its_settings(name):
    assert name in REPLAYED
    method = parse_method(name, {"adv_estimator": "grpo_rows"})
    assert method.settings.estimator == name
    own = {field.name for field in dataclasses.fields(EVERY[name])}  # type: ignore[arg-type]
    assert {key.partition(".")[2] for key in method.used if key.startswith(f"{name}.")} == own


@pytest.mark.parametrize("name", [name for name, block in EVERY.items() if getattr(block, "metric_prefix", "")])
def test_metrics_are_documented(name):
    assert f"`{EVERY[name].metric_prefix}" in METRICS  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", EVERY)
def test_an_unknown_setting_is_refused_by_its_full_name(name):
    with pytest.raises(SettingsError, match=rf"algorithm\.{name}\.nonsense is not a setting"):
        EVERY[name].from_config({name: {"nonsense": 1}})


def test_every_algorithm_is_a_kind_that_the_seam_knows():
    assert all(issubclass(block, Modulator) for block in MODULATORS.values())
    assert all(issubclass(block, Base) for block in RESPONSE_BASES.values())
    assert set(BLOCKS) <= set(EVERY) and not set(MODULATORS) & set(RESPONSE_BASES)


def test_settings_read_every_block_and_write_those_with_settings():
    settings = Settings.from_config({"adv_estimator": "aem", "gigpo": {"gamma": 0.5}})
    assert set(settings.blocks) == {*MODULATORS, *RESPONSE_BASES}
    written = settings.to_dict()
    assert set(written) == {"estimator", *BLOCKS} and written["gigpo"]["gamma"] == 0.5
