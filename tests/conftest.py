"""What holds for all tests: no clock, one thread each, and how they are spread over the cores (pytest -n 2).

Hypothesis judges an example by its seconds unless it is told not to (a deadline, and a health check): on a busy machine
that fails tests for time alone. A test's own limit (pytest-timeout, `timeout` in pyproject.toml) stays, ten times what
the slowest test takes.
"""

from __future__ import annotations

import os

# before torch is imported; also in whatever the tests start, but for the engine's runs (tests/e2e/engine.py)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")  # with Ray's 15 its workers wait for whatever else runs

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("suite"), max_examples=15)  # --hypothesis-profile=quick
settings.load_profile("suite")

# What one worker runs from end to end, for it is made once a process and dear. Everything else goes by module.
SHARED = ("tests/e2e", "tests/gpu", "tests/packaging", "tests/agent_loops/scienceworld", "tests/recipe/tools/doctor")

# The long units, with their processor seconds: they are begun first, so that all workers end at about the same time.
LONG = {
    "tests/e2e": 900,
    "tests/models": 120,
    "tests/recipe/configs/test_configs.py": 50,
    "tests/agent_loops/swe/test_swe_deceit.py": 70,
    "tests/agent_loops/swe/test_swe_faults.py": 60,
    "tests/agent_loops/swe/test_swe_sandbox_kernel.py": 60,
    "tests/recipe/tools/test_supervise.py": 60,
    "tests/recipe/tools/test_cli_study.py": 60,
    "tests/agent_loops/scienceworld": 80,
    "tests/recipe/tools/test_cli_doctor.py": 60,
    "tests/packaging": 60,
    "tests/studies/test_methods_compared.py": 50,
    "tests/recipe/methods/test_method_configs.py": 50,
    "tests/aem_core/test_core_annotations.py": 50,
    "tests/frameworks/test_trl.py": 50,
    "tests/recipe/tools/test_cli_eval.py": 30,
    "tests/recipe/cpu/test_cpu.py": 30,
    "tests/recipe/seam/test_epo_loss.py": 25,
    "tests/recipe/seam/test_entropy_control.py": 25,
    "tests/recipe/tools/test_cli_report.py": 20,
    "tests/recipe/tools/test_gpu_check.py": 20,
    "tests/recipe/tools/test_cli.py": 20,
    "tests/recipe/tools/test_replay.py": 20,
    "tests/recipe/dump/test_dump_contents.py": 20,
    "tests/recipe/tools/doctor": 20,
}

# Their set-up takes long: processes that import verl, installs, JVMs, a browser, sandboxes, trainings.
# `scripts/test.sh --quick` leaves them out, like the single tests that are marked `slow`.
SLOW = (
    *("tests/packaging", "tests/studies", "tests/frameworks", "tests/docs/test_site.py"),
    "tests/docs/test_versions.py::test_the_lines",
    *("tests/agent_loops/scienceworld", "tests/agent_loops/textworld_express", "tests/agent_loops/test_workers.py"),
    "tests/agent_loops/search/test_search_server.py",
    *(f"tests/agent_loops/swe/test_swe_{what}" for what in ("deceit", "faults", "generate", "grading", "honest")),
    *(f"tests/agent_loops/swe/test_swe_{what}" for what in ("applying", "changes", "parsing", "sandbox")),
    *(f"tests/recipe/tools/test_{what}.py" for what in ("cli", "cli_doctor", "cli_eval", "cli_report", "cli_study")),
    *(f"tests/recipe/tools/test_{what}.py" for what in ("report_browser", "tiny_model", "supervise", "gpu_check")),
    *(f"tests/recipe/seam/test_{what}.py" for what in ("epo_loss", "liveness", "full_disk")),
    *("tests/recipe/cpu/test_cpu.py", "tests/verl_aem/test_forkserver.py", "tests/models"),
    *("tests/recipe/configs", "tests/recipe/tools/test_evaluate.py::test_what_is_no_checkpoint"),
    "tests/recipe/dump/test_dump_faults.py::test_killed_in_mid_write",
    "tests/agent_loops/test_adapter_openenv.py::test_an_answer_that_is_late",
)


# Long tests of which the default has a smaller one; `scripts/test.sh --full` runs them. docs/development.md says which.
FULL = (
    "tests/aem_core/test_core_annotations.py",
    "tests/agent_loops/alfworld/test_alfworld_games.py::test_every_game_loads_and_its_walkthrough_wins",
    "tests/agent_loops/scienceworld/test_scienceworld_gold.py::test_a_gold_path_wins[mendelian",
    "tests/agent_loops/swe/test_swe_generate.py::test_a_real_package",
    "tests/frameworks",
    "tests/packaging/test_installs.py::test_install[editable-beside_a_regular_recipe]",
    "tests/packaging/test_installs.py::test_install[wheel-alone]",
)


def unit_of_work(nodeid: str) -> str:
    """The tests that run in one worker, one after the other: those of a module, or of a folder that shares much."""
    module = nodeid.partition("::")[0]
    return next((folder for folder in SHARED if module.startswith(f"{folder}/")), module)


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.nodeid.startswith(SLOW):
        item.add_marker("slow")
    if item.nodeid.startswith(FULL):
        item.add_marker("full")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of several workers
        items.sort(key=lambda item: -LONG.get(unit_of_work(item.nodeid), 0))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let other workers give way to the one with the engine's runs, which ends last. It begins with them."""
    if hasattr(item.config, "workerinput") and unit_of_work(item.nodeid) != "tests/e2e" and os.nice(0) == 0:
        os.nice(5)


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    from xdist.scheduler import LoadScopeScheduling

    class ByUnit(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit_of_work(nodeid)

    config.option.loadscopereorder = False  # the order above stands
    return ByUnit(config, log)
