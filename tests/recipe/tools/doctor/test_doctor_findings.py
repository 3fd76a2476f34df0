"""A check that crashes."""

from __future__ import annotations

import pytest

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("rapidfuzz")
pytest.importorskip("psutil")


import verl_aem

verl_aem.load()

from agent_loops.finding import Finding  # noqa: E402
from recipe.aem.tools.finding import guarded  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Disabled critic")


def test_a_crash_is_a_failure_and_keeps_what_came_before():
    def check():
        yield Finding("ok", "A", "fine")
        raise KeyError("gone")

    first, second = guarded("B", check)
    assert first.title == "A" and (second.level, second.title) == ("failure", "B")
    assert "KeyError" in second.detail and "test_doctor_findings.py" in second.detail and second.remedy
