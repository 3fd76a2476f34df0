"""Composes each shipped configuration once; a small model, and the variables that configurations read."""

from __future__ import annotations

import pickle

import pytest


@pytest.fixture(scope="session", autouse=True)
def composed_once():
    """Hydra composes a configuration of the installed packages once: it reads some forty files for each.

    Whoever asks again gets a copy of his own. What a test writes itself (a folder of configurations) is always read.
    """
    try:
        import hydra
        from hydra.core.global_hydra import GlobalHydra
    except ImportError:
        yield
        return
    compose, kept = hydra.compose, {}

    def once(config_name=None, overrides=(), *rest, **more):
        sources = [one.path or "" for one in GlobalHydra.instance().config_loader().get_search_path().get_path()]
        if rest or more or not all(path.startswith(("pkg://", "structured://")) for path in sources):
            return compose(config_name, list(overrides), *rest, **more)
        key = (*sources, config_name, *overrides)
        if key not in kept:
            kept[key] = pickle.dumps(compose(config_name, list(overrides)))
        return pickle.loads(kept[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hydra, "compose", once)
        yield


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """A model of two layers that has learned nothing."""
    from recipe.aem.tools.demo import tiny_model

    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_model.build_tokenizer(["hello"], [], max_words=10)
    tiny_model.save(tiny_model.build_model(tokenizer, hidden=16, layers=2), tokenizer, folder, {})
    return folder


@pytest.fixture
def variables(monkeypatch, model_dir):
    """Set what every shipped configuration must be told, and nothing that it may be told."""
    monkeypatch.setenv("AEM_MODEL", str(model_dir))
    for benchmark in ("WEBSHOP", "ALFWORLD", "SCIENCEWORLD", "TEXTWORLD_EXPRESS", "SWE", "SEARCH"):
        monkeypatch.setenv(f"{benchmark}_PARQUET", f"/parquet/{benchmark.lower()}")
    for name in ("WEBSHOP_DATA", "ALFWORLD_DATA", "SWE_TASKS", "SEARCH_DATA"):
        monkeypatch.setenv(name, f"/data/{name.partition('_')[0].lower()}")
    for name in ("SWE_VALIDATION", "SWE_BACKEND", "SEARCH_URL", "VERL_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
