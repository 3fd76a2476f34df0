"""Every test here composes configurations."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def surroundings(variables):
    pass
