"""Training on a full disk: metrics are written later, and a failed checkpoint leaves the last one intact.

verl's own file logger writes to a raw file as ours does here; the trainer is a stand-in with `_save_checkpoint`'s order
of writing. Not covered: several processes that save the same model, of which one fails.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from types import SimpleNamespace

import pytest

pytest.importorskip("wrapt", reason="wrapt is not installed")

from agent_loops.files import DiskFull
from recipe.aem.seam import full_disk


class Disk:
    """A raw file with room for so many bytes, as a file system gives it: a short write first, then an error."""

    def __init__(self, path, room):
        self.file, self.name, self.room = open(path, "wb", buffering=0), str(path), room  # noqa: SIM115

    def write(self, data):
        left = self.room - self.file.tell()
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data[:left])

    def __getattr__(self, name):
        return getattr(self.file, name)


class FileLogger:
    """As verl.utils.tracking has it: test_contract_loading.py holds it to that."""

    def __init__(self, path, room):
        self.filepath, self.fp = str(path), Disk(path, room)

    def log(self, data, step):
        self.fp.write(json.dumps({"step": step, "data": data}).encode() + b"\n")

    def finish(self):
        self.fp.close()


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("verl"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


def log(one, step):
    full_disk.around_log(one.log, one, ({"loss": step / 7},), {"step": step})


def finish(one):
    full_disk.before_finish(one.finish, one, (), {})


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("room", range(0, 130, 7))
def test_metrics_wait_until_there_is_room(room, tmp_path, said):
    path = tmp_path / "metrics.jsonl"
    one = FileLogger(path, room)
    for step in (1, 2, 3):
        log(one, step)
        assert path.read_bytes()[-1:] in (b"", b"\n"), "never half a line"
    assert said() and f"{path}: no space left on the disk" in said()[0] and "training continues" in said()[0]
    one.fp.room = 10_000
    log(one, 4)
    finish(one)
    assert steps(path) == [1, 2, 3, 4]


def test_at_the_end_what_is_missing_is_said(tmp_path, said):
    one = FileLogger(tmp_path / "metrics.jsonl", 60)
    for step in (1, 2, 3):
        log(one, step)
    finish(one)
    assert steps(tmp_path / "metrics.jsonl") == [1] and one.fp.closed
    assert "The metrics of the last 2 steps are missing there; the lines before them are whole" in said()[-1]
    finish(one)  # verl's tracking calls it again when it is collected


def test_with_room_a_line_is_what_verl_wrote(tmp_path, said):
    one = FileLogger(tmp_path / "a", 10_000)
    log(one, 1)
    finish(one)
    assert (tmp_path / "a").read_bytes() == b'{"step": 1, "data": {"loss": 0.14285714285714285}}\n' and not said()


def test_an_error_of_the_logger_itself_is_its_own(tmp_path):
    one = FileLogger(tmp_path / "a", 10_000)
    with pytest.raises(TypeError):
        full_disk.around_log(one.log, one, ({"loss": object()},), {"step": 1})
    log(one, 2)
    assert steps(tmp_path / "a") == [2]


# --- checkpoints ------------------------------------------------------------------------------------------------------

FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


def saving(folder, step, fails_at=None, error=None):
    """Saves as verl does: model, data, tracker; the tracker is emptied before it is written."""
    trainer = SimpleNamespace(
        config=SimpleNamespace(trainer=SimpleNamespace(default_local_dir=str(folder))), global_steps=step
    )

    def write(what, path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if what == fails_at else text)
        if what == fails_at:
            assert error is not None
            raise error

    def save():
        write("model", folder / f"global_step_{step}" / "actor" / "model.pt", "weights")
        write("data", folder / f"global_step_{step}" / "data.pt", "order")
        write("tracker", folder / full_disk.TRACKER, str(step))

    full_disk.around_save(save, trainer, (), {})


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("error", FULL, ids=["python", "torch", "rust"])
@pytest.mark.parametrize("fails_at", ["model", "data", "tracker"])
def test_a_checkpoint_that_does_not_fit_spares_the_last_one(fails_at, error, tmp_path, said):
    saving(tmp_path, 5)
    before = files(tmp_path)
    with pytest.raises(DiskFull) as raised:
        saving(tmp_path, 10, fails_at, error)
    assert files(tmp_path) == before and (tmp_path / full_disk.TRACKER).read_text() == "5"
    assert str(raised.value).startswith(f"{tmp_path / 'global_step_10'}: no space left on the disk")
    (line,) = said()
    assert "The checkpoint of step 10 is missing" in line and "the one of step 5 is intact" in line
    saving(tmp_path, 10)
    assert (tmp_path / full_disk.TRACKER).read_text() == "10"


def test_the_first_one_and_other_errors(tmp_path, said):
    with pytest.raises(DiskFull):
        saving(tmp_path, 1, "data", FULL[0])
    assert files(tmp_path) == [] and "there is none yet" in said()[0]
    with pytest.raises(ValueError, match="ours"):
        saving(tmp_path, 1, "data", ValueError("ours"))
    assert files(tmp_path) == [] and len(said()) == 1


def test_what_a_worker_of_ray_raised_is_looked_at(tmp_path):
    ray = pytest.importorskip("ray", reason="ray is not installed")
    cause = RuntimeError("unexpected pos 704 vs 598")
    wrapped = ray.exceptions.RayTaskError("save_checkpoint", "Traceback …", cause).as_instanceof_cause()
    with pytest.raises(DiskFull):
        saving(tmp_path, 1, "model", wrapped)
