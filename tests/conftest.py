"""What holds for all tests: no clock, one thread each, and how they are spread over the cores (pytest -n 2).

Hypothesis judges an example by its seconds unless it is told not to (a deadline, and a health check): on a busy machine
that fails tests for time alone. A test's own limit (pytest-timeout, `timeout` in pyproject.toml) stays, ten times what
the slowest test takes.
"""

from __future__ import annotations

import os

# before torch is imported; also in whatever the tests start, but for the engine's runs (tests/e2e/engine.py)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("suite"), max_examples=15)  # --hypothesis-profile=quick
settings.load_profile("suite")

# What one worker runs from end to end, for it is made once a process and dear. Everything else goes by module.
SHARED = ("tests/e2e", "tests/packaging", "tests/agent_loops/scienceworld", "tests/recipe/doctor")


def unit_of_work(nodeid: str) -> str:
    """The tests that run in one worker, one after the other: those of a module, or of a folder that shares much."""
    module = nodeid.partition("::")[0]
    return next((folder for folder in SHARED if module.startswith(f"{folder}/")), module)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where there are several workers the long units come first, so that all workers end at about the same time."""
    if not hasattr(config, "workerinput"):
        return
    weight: dict[str, int] = {}
    for item in items:
        seconds = 1000 if item.get_closest_marker("e2e") else 10 if item.get_closest_marker("slow") else 0
        unit = unit_of_work(item.nodeid)
        weight[unit] = weight.get(unit, 0) + seconds
    items.sort(key=lambda item: -weight[unit_of_work(item.nodeid)])


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    from xdist.scheduler import LoadScopeScheduling

    class ByUnit(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit_of_work(nodeid)

    config.option.loadscopereorder = False  # the order above stands
    return ByUnit(config, log)
