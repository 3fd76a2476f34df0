"""Tasks in splits, which files of a patch count, and the machine's slots for test runs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_loops.environment import TaskSet
from agent_loops.swe.patches import is_protected, patched_paths, text_patch
from agent_loops.swe.shadows import Shadows
from agent_loops.swe.slots import core_slot, cores
from agent_loops.swe.tasks import SweTask, SweTasks
from tests.helpers.eventually import PATIENCE

ROOT = Path(__file__).resolve().parents[3]


def _task(name: str, repo: str = "r") -> SweTask:
    return SweTask(name, repo, "HEAD", "It fails.", "", "", ("t",), (), "pytest")


def _names(tasks: SweTasks, split: str) -> set[str]:
    return {task["task"] for task in tasks.tasks(split)}


@given(st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 6), min_size=2, max_size=9), st.randoms())
def test_splits_share_no_repository_and_do_not_depend_on_the_order(sizes, random):
    made = [_task(f"{repo}-{n}", repo) for repo, size in sizes.items() for n in range(size)]
    tasks = SweTasks(made)
    train, validation = (_names(tasks, split) for split in tasks.splits)
    assert train and validation and train | validation == {task.instance_id for task in made}
    of = {task.instance_id: task.repo for task in made}
    assert not {of[name] for name in train} & {of[name] for name in validation}
    random.shuffle(made)
    assert _names(SweTasks(made), "validation") == validation


def test_the_held_out_share_is_reached_by_as_few_repositories_as_the_order_allows():
    made = [_task(f"{repo}-{n}", repo) for repo in "abcdefghij" for n in range(5)]
    assert len(_names(SweTasks(made), "validation")) == 10  # a fifth of 50
    assert len(_names(SweTasks(made, held_out=0.21), "validation")) == 15
    assert len(_names(SweTasks(made, held_out=0.01), "validation")) == 5


def test_tasks_of_one_repository_are_split_by_their_own_names_only_when_that_is_asked_for():
    made = [_task(f"x-{n}") for n in range(10)]
    with pytest.raises(ValueError, match="by=task"):
        SweTasks(made)
    tasks = SweTasks(made, by="task")
    assert len(_names(tasks, "validation")) == 2 and len(_names(tasks, "train")) == 8


def test_a_data_set_for_validation_is_taken_whole():
    tasks = SweTasks([_task("a")], [_task("b"), _task("c")])
    assert isinstance(tasks, TaskSet)
    assert (_names(tasks, "train"), _names(tasks, "validation")) == ({"a"}, {"b", "c"})
    assert tasks.task({"task": "c"}).instance_id == "c"


def test_what_is_no_task_set_is_refused():
    with pytest.raises(ValueError, match="two tasks have the name 'a'"):
        SweTasks([_task("a")], [_task("a")])
    with pytest.raises(ValueError, match="no tasks for validation"):
        SweTasks([_task("a")], [])
    with pytest.raises(ValueError, match="by='file'"):
        SweTasks([_task("a"), _task("b")], by="file")
    with pytest.raises(ValueError, match=r"held_out=1\.5"):
        SweTasks([_task("a"), _task("b")], held_out=1.5, by="task")
    tasks = SweTasks([_task("a")], [_task("b")])
    with pytest.raises(ValueError, match="choose one of train, validation"):
        tasks.tasks("test")
    for wrong in ({"task": "z"}, {"task": 3}, "a", None):
        with pytest.raises(ValueError, match="is no task"):
            tasks.task(wrong)


@pytest.mark.parametrize(
    "path",
    [
        *("tests/a.txt", "a/test/b.py", "pkg/testing/x.py", "test_a.py", "a/b_test.py", "src/tests.py", "conftest.py"),
        *("a/conftest.py", "pytest.ini", ".pytest.ini", "pytest.toml", "setup.cfg", "tox.ini", "pyproject.toml"),
        *("pytest.py", "_pytest/runner.py", "sitecustomize.py", "a/x.pth", "r2e_tests/test_1.py", ".gitattributes"),
        *("sitecustomize/__init__.py", "src/usercustomize.pyc", "a/conftest.pyc", "conftest/__init__.py"),
        *("a.so", "src/a.cpython-311-x86_64-linux-gnu.so", "a/__pycache__/b.cpython-311.pyc", "x.egg-link"),
        *("x-1.0.dist-info/entry_points.txt", "src/x.egg-info/PKG-INFO", "x.egg", "EGG-INFO/entry_points.txt"),
    ],
)
def test_edits_of_tests_and_of_what_configures_them_do_not_count(path):
    assert is_protected(path)


@pytest.mark.parametrize(
    "path",
    ["src/a.py", "latest.py", "contest/a.py", "attest_a.py", "src/_pytest/runner.py", "docs/test.md", "setup.py"],
)
def test_edits_of_the_product_count(path):
    assert not is_protected(path)


_LINES = st.lists(st.sampled_from(["a", "b", "", " c", "-d", "+e", "\f", "é", "x\x0by", "@@"]), max_size=12)


@settings(max_examples=25, deadline=None)
@given(_LINES, _LINES, st.booleans(), st.booleans())
def test_git_applies_the_patch_between_two_texts(old, new, old_end, new_end):
    before, after = ("\n".join(lines) + "\n" * (bool(lines) and end) for lines, end in ((old, old_end), (new, new_end)))
    patch = text_patch("a/b.txt", before, after)
    assert (patch == "") == (before == after)
    if patch:
        assert patched_paths(patch) >= {"a/b.txt"}
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory, "a/b.txt")
            file.parent.mkdir()
            file.write_bytes(before.encode())
            subprocess.run(
                ["git", "apply", "--whitespace=nowarn", "-"], cwd=directory, input=patch.encode(), check=True
            )
            assert file.read_bytes() == after.encode()


@pytest.mark.parametrize("text", ["x\n", "x", ""])
def test_git_applies_the_patch_that_makes_a_file_and_the_one_that_removes_it(tmp_path, text):
    for old, new in ((None, text), (text, None)):
        patch = text_patch("n.txt", old, new)
        subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=patch.encode(), check=True)
        assert (tmp_path / "n.txt").exists() == (new is not None)


def test_no_more_threads_hold_slots_than_there_are(tmp_path):
    held, most, lock = 0, 0, threading.Lock()
    two = threading.Barrier(2, timeout=PATIENCE)

    def work(_):
        nonlocal held, most
        with core_slot(2, tmp_path):
            with lock:
                held += 1
                most = max(most, held)
            two.wait()
            threading.Event().wait(0.02)  # for a third, if it may
            with lock:
                held -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(12)))
    assert most == 2 and cores() >= 1


def test_a_slot_is_another_process_s_too_and_free_after_its_death(tmp_path):
    code = f"""
from pathlib import Path
from agent_loops.swe.slots import core_slot
with core_slot(1, Path({str(tmp_path)!r})):
    print("held", flush=True)
    input()
"""
    acquired = threading.Event()

    def acquire():
        with core_slot(1, tmp_path):
            acquired.set()

    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, cwd=ROOT) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        thread = threading.Thread(target=acquire)
        thread.start()
        assert not acquired.wait(0.3)
        holder.kill()
    thread.join(PATIENCE)
    assert acquired.is_set()


@pytest.mark.parametrize(
    "path, shadow",
    [
        ("argparse.py", True),
        ("argparse.pyc", True),
        ("argparse/__init__.py", True),
        ("src/argparse.py", True),
        ("json/codec.py", True),  # the directory is there, but is no module yet
        ("lib/deep/json.py", True),  # whatever is on the path: nothing there is a package
        ("src/app/argparse.py", False),  # a package's own module
        ("src/app/new/json.py", False),
        ("statistics.py", False),  # the tree has it already
        ("src/app/cli.py", False),
        ("reproduce.py", False),
        ("", False),
    ],
)
def test_new_files_in_the_place_of_modules_that_python_has(path, shadow):
    tracked = {"src/app/__init__.py", "src/app/cli.py", "statistics.py", "json/data.txt"}
    assert (path in Shadows({"argparse", "json", "statistics"}, tracked)) is shadow
