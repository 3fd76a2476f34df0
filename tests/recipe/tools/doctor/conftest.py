"""A shop, a model, and surroundings in which no variable names another one."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    from agent_loops import loop
    from agent_loops.benchmarks import TABLE

    for entry in TABLE.values():
        for name in (*entry.paths, *entry.knobs, entry.parquet_variable):
            monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AEM_MODEL", raising=False)
    loop._opened_benchmark.cache_clear()
    yield
    loop._opened_benchmark.cache_clear()


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    from agent_loops.webshop.generate import generate_catalogue

    return generate_catalogue(tmp_path_factory.mktemp("doctor") / "shop", n_titles=20, n_goals=600)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    from recipe.aem.tools.demo import tiny_model

    tokenizer = tiny_model.build_tokenizer(["hello"], [], max_words=10)
    folder = tmp_path_factory.mktemp("model")
    tiny_model.save(tiny_model.build_model(tokenizer, hidden=8, layers=1), tokenizer, folder, {})
    return folder
