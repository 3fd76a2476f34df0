"""A small shop, made once."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    from agent_loops.webshop.generate import generate_catalogue

    return generate_catalogue(tmp_path_factory.mktemp("made") / "shop", n_titles=20, n_goals=600)
