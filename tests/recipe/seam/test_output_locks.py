"""The folders that a training run locks, however it was started: a second run with the same folder is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent_loops.locks import InUse
from recipe.aem.seam import output_locks

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    held: dict[str, int] = {}
    monkeypatch.setattr(output_locks, "_HELD", held)
    yield
    for descriptor in held.values():
        os.close(descriptor)


@pytest.fixture
def config(tmp_path):
    return {
        "algorithm": {"dump": {"dir": str(tmp_path / "dump")}},
        "trainer": {"default_local_dir": str(tmp_path / "checkpoints"), "save_freq": 5},
    }


@pytest.fixture
def other_run(config):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from recipe.aem.seam import output_locks; "
        f"output_locks.hold_outputs({config!r}); print('held', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", code]
    one = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert one.stdout is not None and one.stdout.readline() == "held\n"
    yield one
    one.kill()
    one.communicate()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"algorithm": {}}, "trainer.default_local_dir (AEM_OUTPUT, --output) to another directory"),
        ({"trainer": {}}, "algorithm.dump.dir to another directory"),
        ({"trainer": {"default_local_dir": "x", "save_freq": -1}}, "algorithm.dump.dir to another directory"),
    ],
)
def test_a_folder_of_another_run_is_refused(change, said, config, other_run):
    with pytest.raises(InUse) as error:
        output_locks.hold_outputs(config | change)
    assert f"in use by process {other_run.pid} on " in str(error.value) and str(error.value).endswith(said)


@pytest.mark.parametrize(
    "trainer",
    [
        {"val_only": True, "save_freq": 5},  # reads a checkpoint of a run that goes on
        {"save_freq": -1},
        {"save_freq": 5, "default_local_dir": None},
    ],
)
def test_what_is_not_written_is_not_held(trainer, config, other_run):
    output_locks.hold_outputs({"algorithm": {}, "trainer": config["trainer"] | trainer})


def test_one_process_may_make_two_trainers(config):
    output_locks.hold_outputs(config)
    output_locks.hold_outputs(config)


def test_a_dump_that_cannot_be_made_costs_no_training(config, tmp_path):
    (tmp_path / "dump").write_text("")
    output_locks.hold_outputs(config)
