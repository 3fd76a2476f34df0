"""Runs of a package's own tests in a sandbox, to find those that pass reliably."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent_loops.errors import FailedError
from agent_loops.swe.copies import top_name
from agent_loops.swe.grading import GradeSettings
from agent_loops.swe.patches import is_protected
from agent_loops.swe.sandbox import Sandbox, open_sandbox
from agent_loops.swe.slots import PATIENCE, core_slot
from agent_loops.swe.tasks import SweTask
from agent_loops.swe.testing import run_tests

# -P and pythonpath: pytest is loaded before anything of the package can replace it. No plugins and none of the
# package's own options (addopts): which tests pass must not depend on what else is installed.
_PYTEST = (
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 python -P -m pytest -rA --show-capture=no --tb={tb} -q -p no:cacheprovider "
    "-o addopts= -o pythonpath='src .'"
)
_SKIPPED_TREES = frozenset(
    {"docs", "doc", "examples", "example", "benchmarks", "benchmark", "bench", "scripts", "tools", "build"}
)


@dataclass(frozen=True)
class Run:
    """A test run: the tests' statuses, its log, and what stopped it, if anything."""

    statuses: Mapping[str, str]
    log: str
    seconds: float
    timed_out: bool

    @property
    def passed(self) -> set[str]:
        return {name for name, status in self.statuses.items() if status == "PASSED"}


def pytest_command(deselect: Sequence[str] = (), tb: str = "no") -> str:
    """Return the command that runs a package's tests and lists each with its status."""
    return " ".join([_PYTEST.format(tb=tb), *(f"--deselect={shlex.quote(one)}" for one in deselect)])


def run_suite(tree: Path, changed: Mapping[str, str], command: str, settings: GradeSettings, seconds: float) -> Run:
    """Run the tests of a package with some of its files changed, in a new sandbox.

    Args:
        tree: the package's directory, which is not changed.
        changed: the new text of files, by their path in the tree.
        command: the command that runs the tests.
        settings: the sandbox and the limits.
        seconds: time limit of the tests.
    """
    task = SweTask("suite", "", "", "", "", "", (), (), command, source=str(tree))
    settings = replace(settings, seconds=seconds)
    with (
        core_slot(settings.slots, patience=2 * seconds + PATIENCE),
        open_sandbox(settings.sandbox, source=tree) as sandbox,
    ):
        for path, text in changed.items():
            done = sandbox.execute(f"cat > {shlex.quote(path)}", seconds=60, stdin=text.encode())
            if done.returncode:
                raise FailedError(f"{path} cannot be written in the sandbox: {done.output[-300:]}")
        began = time.monotonic()
        done = run_tests(sandbox, task, seconds=settings.seconds, log_kb=settings.log_kb)
        took = time.monotonic() - began
    return Run(done.reading.statuses, done.log, took, done.timed_out)


def reliable(runs: Sequence[Run]) -> set[str]:
    """Return the tests that pass in every run.

    A test function with any case that differs between the runs is left out entirely: if the order of the cases differs
    (as in a set), so do their names, and some agree by chance.
    """
    names = {name for run in runs for name in run.statuses}
    changing = {name for name in names if len({run.statuses.get(name) for run in runs}) > 1}
    functions = {name.partition("[")[0] for name in changing}
    return {name for name in runs[0].passed if name.partition("[")[0] not in functions}


def modules(tree: Path) -> list[str]:
    """Return the package's own modules, without tests, documentation and set-up, as sorted paths in its directory.

    A module that the tree holds twice (as leftovers of a build) is left out: its copy would reveal the fault.
    """
    files: dict[str, bytes] = {}
    for file in sorted(tree.rglob("*.py")):
        files[file.relative_to(tree).as_posix()] = file.read_bytes()
    contents = list(files.values())
    chosen = []
    for path, content in files.items():
        parts = path.split("/")
        skipped = is_protected(path) or not _SKIPPED_TREES.isdisjoint(parts[:-1]) or path in ("setup.py", "tasks.py")
        if not skipped and content.strip() and contents.count(content) == 1 and top_name(path):
            chosen.append(path)
    return chosen


def installed(names: Sequence[str], sandbox: Sandbox) -> list[str]:
    """Return the modules that a sandbox's Python can import by itself, and whose correct code it would thus reveal."""
    code = (
        f"import importlib.util, json; print(json.dumps([n for n in {list(names)!r} if importlib.util.find_spec(n)]))"
    )
    done = sandbox.execute(f"cd / && python -P -c {shlex.quote(code)}", seconds=60)
    if done.returncode:
        raise FailedError(f"Python does not run in the sandbox: {done.output[-300:]}")
    return json.loads(done.output.strip().splitlines()[-1])


def top_names(paths: Sequence[str]) -> list[str]:
    """Return the names that modules are imported by, up to the first dot.

    Example:
        >>> top_names(["src/a/b.py", "c.py", "src/a/__init__.py"])
        ['a', 'c']
    """
    return sorted({top_name(path) for path in paths})
