"""Composes each shipped configuration once."""

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
