"""The variables that configurations read, and a model for them."""

from __future__ import annotations

import pytest


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
