"""Dumping in the background: whatever goes wrong there never stops a training run."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")

import pyarrow.parquet as pq

from recipe.aem.dump import schema, writer
from recipe.aem.dump.reader import find_files, read_step
from recipe.aem.dump.writer import Writer
from recipe.aem.seam import capture
from tests.helpers.dumps import AEM, Shelf, advance, dump, make_batch, make_trainer, warnings
from tests.helpers.surroundings import ROOT


def run_steps(directory: Path, count: int = 3, **settings) -> list[dict]:
    """As `fit` does it: steps, then the end."""
    trainer = make_trainer({**AEM, "dump": {"dir": str(directory), **settings}})
    seen = []

    def fit() -> None:
        for number in range(1, count + 1):
            trainer.global_steps = number
            seen.append(advance(trainer, make_batch(number)))

    capture.around_fit(fit, trainer, (), {})
    return seen


def test_every_step_is_there_when_fit_ends(tmp_path, warned):
    # never more at once than may wait, however slow the disk of this machine is
    metrics = run_steps(tmp_path / "a" / "b", 1 + writer.WAITING)
    assert [path.name for path in find_files([tmp_path / "a" / "b"])] == [f"step_00000{n}.parquet" for n in (1, 2, 3)]
    assert [read_step(path).meta.step for path in find_files([tmp_path / "a" / "b"])] == [1, 2, 3]
    assert all(one[capture.SECONDS] > 0 and one[capture.DROPPED] == 0.0 for one in metrics) and not warnings(warned)
    assert not [thread for thread in threading.enumerate() if thread.name == "aem-dump"]


def test_fit_is_wrapped_and_a_fit_that_fails_leaves_its_steps(tmp_path):
    from verl.trainer.ppo.v1 import trainer_base

    assert trainer_base.PPOTrainer.fit.__wrapped__
    trainer = make_trainer({**AEM, "dump": {"dir": str(tmp_path)}})

    def fit() -> None:
        advance(trainer, make_batch(1))
        raise RuntimeError("the rollout died")

    with pytest.raises(RuntimeError, match="the rollout died"):
        capture.around_fit(fit, trainer, (), {})
    assert read_step(tmp_path / "step_000003.parquet").meta.step == 3


def test_a_resumed_run_goes_on_and_replaces_what_is_run_again(tmp_path):
    run_steps(tmp_path, 2)
    before = (tmp_path / "step_000001.parquet").stat().st_mtime_ns
    trainer = make_trainer({"adv_estimator": "gigpo", "dump": {"dir": str(tmp_path)}}, 2)

    def fit() -> None:
        for trainer.global_steps in (2, 3):
            advance(trainer, make_batch(1))

    capture.around_fit(fit, trainer, (), {})
    assert [read_step(path).meta.estimator for path in find_files([tmp_path])] == ["aem", "gigpo", "gigpo"]
    assert (tmp_path / "step_000001.parquet").stat().st_mtime_ns == before


def test_a_disk_slower_than_the_training_drops_steps_and_never_grows(tmp_path, warned, monkeypatch, step):
    release, begun = threading.Event(), threading.Event()
    real = writer.write_step

    def slow(one, directory):
        begun.set()
        assert release.wait(60)
        return real(one, directory)

    monkeypatch.setattr(writer, "write_step", slow)
    background = Writer(tmp_path)
    numbered = [dataclasses.replace(step, meta=dataclasses.replace(step.meta, step=number)) for number in range(10)]
    assert background.put(numbered[0]) and begun.wait(60)
    taken = [background.put(one) for one in numbered[1:]]
    assert taken == [True] * writer.WAITING + [False] * (9 - writer.WAITING) and background.dropped == 7
    release.set()
    background.close()
    assert [read_step(path).meta.step for path in find_files([tmp_path])] == [0, 1, 2]
    first, last = warnings(warned)
    assert "The dump of step 3 is left out" in first and "algorithm.dump.every" in first
    assert "7 steps are missing" in last


def test_after_a_fault_nothing_that_waits_is_tried(tmp_path, warned, monkeypatch, step):
    release, tried = threading.Event(), []

    def fails(one, directory):
        tried.append(one)
        assert release.wait(60)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(writer, "write_step", fails)
    background = Writer(tmp_path)
    assert background.put(step) and background.put(step)
    release.set()
    background.close()
    background.stop(OSError("again"))
    assert len(tried) == 1 and background.stopped and len(warnings(warned)) == 1


def test_a_dropped_step_is_counted(step):
    shelf = Shelf()
    shelf.put = lambda step: False  # type: ignore[method-assign]
    trainer = make_trainer({**AEM, "dump": {"dir": "x"}}, aem_dump=shelf)
    assert advance(trainer, make_batch(1))[capture.DROPPED] == 1.0


def broken_disk(monkeypatch, directory):
    real = os.fsync

    def fails(number):
        if os.readlink(f"/proc/self/fd/{number}").endswith("step_000002.parquet.part"):
            raise OSError(errno.EIO, "Input/output error")
        return real(number)

    monkeypatch.setattr(os, "fsync", fails)
    return "Input/output error", ["step_000001.parquet"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_without_room_a_step_is_missing_and_the_next_is_tried(number, tmp_path, warned, monkeypatch):
    """The disk is full while step 2 is written, and has room again at step 3."""
    real = pq.write_table

    def no_write(table, place, **more):
        if "step_000002" not in str(place):
            return real(table, place, **more)
        Path(place).write_bytes(b"PAR1 half")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(pq, "write_table", no_write)
    assert len(run_steps(tmp_path / "dump", 3)) == 3
    assert sorted(path.name for path in (tmp_path / "dump").iterdir()) == ["step_000001.parquet", "step_000003.parquet"]
    missing, last = warnings(warned)
    assert missing.startswith(
        f"The dump of step 2 is missing: {tmp_path / 'dump' / 'step_000002.parquet'}: no space left"
    )
    assert "algorithm.dump.dir" in missing and "Training continues" in missing and "\n" not in missing
    assert warned.records[0].levelno == logging.ERROR and not warned.records[0].exc_info
    assert last == f"1 steps are missing from the dump in {tmp_path / 'dump'}."


def test_a_really_full_disk(tmp_path, warned):
    """Through the kernel: every write to /dev/full fails."""
    (tmp_path / "dump").mkdir()
    (tmp_path / "dump" / "step_000001.parquet.part").symlink_to("/dev/full")
    run_steps(tmp_path / "dump", 2)
    assert [path.name for path in (tmp_path / "dump").iterdir()] == ["step_000002.parquet"]
    assert "The dump of step 1 is missing" in warnings(warned)[0]


def no_permission(monkeypatch, directory):
    def refuses(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuses)
    return "Permission denied", []


def a_file_in_its_place(monkeypatch, directory):
    directory.write_text("")
    return "File exists", None


def vanished(monkeypatch, directory):
    real = writer.write_step

    def then_gone(step, where):
        real(step, where)
        shutil.rmtree(where)

    monkeypatch.setattr(writer, "write_step", then_gone)
    return "No such file or directory", None


def a_fault_of_ours(monkeypatch, directory):
    monkeypatch.setattr(schema, "to_table", lambda step: 1 / 0)
    return "division by zero", []


def a_fault_while_collecting(monkeypatch, directory):
    monkeypatch.setattr(capture, "_collect", lambda *args: 1 / 0)
    return "division by zero", []


@pytest.mark.parametrize(
    "fault",
    [
        broken_disk,
        no_permission,
        a_file_in_its_place,
        vanished,
        a_fault_of_ours,
        a_fault_while_collecting,
    ],
)
def test_a_fault_ends_the_dump_with_one_warning_and_never_the_training(fault, tmp_path, warned, monkeypatch):
    said, left = fault(monkeypatch, tmp_path / "dump")
    assert len(run_steps(tmp_path / "dump", 3)) == 3
    (warning,) = warnings(warned)
    assert warning.startswith(f"The dump to {tmp_path / 'dump'} has ended: ") and said in warning
    assert "Training continues without it" in warning
    if left is not None and (tmp_path / "dump").exists():
        assert sorted(path.name for path in (tmp_path / "dump").iterdir()) == left
    traced = [record for record in warned.records if record.exc_info]
    assert bool(traced) == ("division" in said), "a traceback for our own faults, none for the user's"


def test_killed_in_mid_write_nothing_unreadable_stays(tmp_path):
    """The next run writes over what is left."""
    code = f"""
import os, signal, sys
from pathlib import Path
from tests.helpers.surroundings import ROOT
from tests.helpers.dumps import dump, make_batch
from recipe.aem.dump import writer
folder = Path({str(tmp_path)!r})
dump(make_batch(1), {AEM!r}, folder, 1)
os.fsync = lambda number: (os.ftruncate(number, 2000), os.kill(os.getpid(), signal.SIGKILL))
dump(make_batch(2), {AEM!r}, folder, 2)
"""
    surroundings = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=surroundings, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000001.parquet", "step_000002.parquet.part"]
    assert [read_step(path).meta.step for path in find_files([tmp_path])] == [1]
    dump(make_batch(2), AEM, tmp_path, 2)
    assert [read_step(path).meta.step for path in find_files([tmp_path])] == [1, 2]
    assert len(list(tmp_path.iterdir())) == 2
