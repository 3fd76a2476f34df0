"""The variables that configurations read."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.setenv("AEM_MODEL", "my/model")
    monkeypatch.setenv("WEBSHOP_DATA", "/data/webshop")
    monkeypatch.setenv("WEBSHOP_PARQUET", "/data/parquet")
    for name in ("ALFWORLD_DATA", "ALFWORLD_PARQUET", "SCIENCEWORLD_PARQUET", "SEARCH_DATA", "SEARCH_PARQUET"):
        monkeypatch.setenv(name, "/data")
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
