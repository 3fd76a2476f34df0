"""Lets these tests import the studies' scripts and their own helper, and gives them runs on a toy task."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "studies")]


@pytest.fixture(scope="session")
def tokenizer():
    from toy_task import make_tokenizer

    return make_tokenizer()


@pytest.fixture(scope="session")
def weights(tokenizer):
    from toy_task import cloned_weights

    return cloned_weights(tokenizer)


@pytest.fixture
def environment(monkeypatch):
    """What the configuration asks for, and a run on a toy task does not use."""
    for name in ("WEBSHOP_DATA", "WEBSHOP_PARQUET", "AEM_MODEL"):
        monkeypatch.setenv(name, "unused")


@pytest.fixture
def make(tokenizer, weights, tmp_path, environment):
    """A run of so many steps under overrides, on a model that starts the same each time."""
    from replica_parts.training import Training
    from toy_task import EchoBenchmark, build, configured

    def made(*overrides, steps=2, seed=0, tasks=8, followed=None):
        config = configured(tmp_path / "echo.jinja", *overrides, steps=steps)
        numbers = [{"number": number} for number in range(tasks)]
        model = build(tokenizer, weights)
        return Training(config, model, tokenizer, EchoBenchmark(), numbers, numbers[:4], seed, followed)

    return made
