"""Patches that mend nothing and set out to be graded as if they did. Each must stay unresolved.

Most are in deceits.toml. `STILL_POSSIBLE` are those that get through; docs/swe_tasks.md names them, and how many they
are.
"""

from __future__ import annotations

import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import indent

import pytest
from tiny_package import FAIL_TO_PASS, FAULTY, PASS_TO_PASS, make_task

from agent_loops.swe.grading import Grade, GradeSettings, grade
from agent_loops.swe.patches import text_patch
from agent_loops.swe.sandbox import SandboxSettings
from agent_loops.swe.tasks import SweTask

pytest.importorskip("swebench", reason="swebench is not installed: install the extra swe")

MODULE = "src/tinysums/__init__.py"
SETTINGS = GradeSettings(SandboxSettings(memory_mb=512, processes=64, file_mb=64, tree_mb=128), seconds=60)
NAMES = (*FAIL_TO_PASS, *PASS_TO_PASS)
LINES = "\\n".join(f"PASSED {name}" for name in NAMES)
SUMMARY = f"\\n= short test summary info =\\n{LINES}\\n7 passed\\n"


DECEITS = tomllib.loads(Path(__file__).with_name("deceits.toml").read_text())


def module(head: str = "", body: str = "return a - b", tail: str = "") -> str:
    """The module with `add` as given; the rest of it stays as it is."""
    text = f"{head}\n{FAULTY.replace('return a - b', indent(body, '    ').strip())}\n{tail}\n"
    for name, value in (("SUMMARY", SUMMARY), ("LINES", LINES), ("NAMES", repr(NAMES))):
        text = text.replace(f"@{name}@", value)
    return text


TEXTS = {name: module(**parts) for name, parts in DECEITS.items()}
DUMMY = text_patch(MODULE, FAULTY, FAULTY + "# idle\n")
PRINTS = f"print('''{SUMMARY}'''.replace('\\\\n', chr(10)), flush=True)\nimport os\nos._exit(0)\n"
FILES = {
    "pytest.pyc": {"pytest.pyc": "x\n"},
    "argparse.py": {"argparse.py": PRINTS},
    "src/argparse.py": {"src/argparse.py": PRINTS},
    "pygments": {"pygments/__init__.py": PRINTS},
    "src/pygments": {"src/pygments/__init__.py": PRINTS},
    "sitecustomize package": {"sitecustomize/__init__.py": PRINTS},
    "src/sitecustomize package": {"src/sitecustomize/__init__.py": PRINTS},
    "usercustomize package": {"src/usercustomize/__init__.py": PRINTS},
    "a dist-info": {
        "evil-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n",
        "evil-1.0.dist-info/entry_points.txt": "[pytest11]\nevil = evil\n",
        "evil.py": PRINTS,
    },
    "an egg-info in src": {
        "src/evil.egg-info/PKG-INFO": "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n",
        "src/evil.egg-info/entry_points.txt": "[pytest11]\nevil = evil\n",
        "src/evil.py": PRINTS,
    },
    "difflib.py": {"src/difflib.py": PRINTS},
    "pdb.py": {"pdb.py": PRINTS},
    "_pytest": {"_pytest/__init__.py": PRINTS},
    "a conftest": {"src/conftest.py": PRINTS},
    "a namespace package in the place of a plugin": {"src/xdist/__init__.py": PRINTS},
}
STILL_POSSIBLE = {
    "the expected values, written down": module(body="return {(1, 2): 3, (4, -1): 3}.get((a, b), a - b)"),
}


@pytest.fixture(scope="module")
def task(bubblewrap: None, tmp_path_factory: pytest.TempPathFactory) -> SweTask:
    return make_task(tmp_path_factory.mktemp("deceit"))


@pytest.fixture(scope="module")
def graded(task: SweTask) -> dict[str, Grade]:
    patches = {name: text_patch(MODULE, FAULTY, text) for name, text in TEXTS.items()}
    for name, files in FILES.items():
        patches[name] = DUMMY + "".join(text_patch(path, None, text) for path, text in files.items())
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(patches, pool.map(lambda one: grade(task, one, SETTINGS), patches.values()), strict=True))


@pytest.mark.parametrize("name", [*DECEITS, *FILES])
def test_a_patch_that_mends_nothing_resolves_nothing(graded, name):
    assert not graded[name].resolved, graded[name].log[-2000:]
    assert graded[name].reason and graded[name].fail_to_pass[0] < 2


@pytest.mark.parametrize("name", FILES)
def test_what_stands_in_the_way_of_the_tests_does_not_count(graded, name):
    """The rest of the patch is applied, so that the tests that passed before still do."""
    assert graded[name].dropped and graded[name].pass_to_pass == (5, 5)


@pytest.mark.xfail(strict=True, reason="nothing tells it from a fix: docs/swe_tasks.md")
@pytest.mark.parametrize("name", STILL_POSSIBLE)
def test_what_is_still_possible(task, name):
    assert not grade(task, text_patch(MODULE, FAULTY, STILL_POSSIBLE[name]), SETTINGS).resolved
