"""One run per directory: which run is refused, what the message says, and when the lock is released."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agent_loops import locks
from agent_loops.locks import LOCK, InUse, held, hold, take
from tests.helpers.eventually import eventually

ROOT = Path(__file__).parents[2]
HOLDER = f"""
import sys, time, subprocess
sys.path.insert(0, {str(ROOT)!r})
from agent_loops.locks import hold
lock = hold(sys.argv[1], "--out")
if sys.argv[2:]:
    subprocess.Popen(["sleep", "300"], pass_fds=(lock,), stdout=subprocess.DEVNULL)
print("held", flush=True)
time.sleep(300)
"""


@pytest.fixture
def holder(tmp_path):
    begun = []

    def start(*more: str) -> subprocess.Popen:
        words = [sys.executable, "-I", "-S", "-c", HOLDER, str(tmp_path), *more]
        one = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
        begun.append(one)
        assert one.stdout is not None and one.stdout.readline() == "held\n"
        return one

    yield start
    for one in begun:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.pid, signal.SIGKILL)
        one.communicate()


def free(directory: Path) -> bool:
    try:
        with held(directory, "x"):
            return True
    except InUse:
        return False


def test_the_other_one_is_named_and_what_to_do(tmp_path, holder):
    other = holder()
    with pytest.raises(InUse) as error, held(tmp_path, "--out to another folder"):
        pass
    said = str(error.value)
    assert said.startswith(f"{tmp_path} is in use by process {other.pid} on {socket.gethostname()}, since ")
    assert said.endswith("Wait for it, or set --out to another folder") and "\n" not in said
    assert isinstance(error.value, OSError), "one line at every command line"
    other.kill()  # the kernel gives it back
    other.wait()
    assert eventually(lambda: free(tmp_path))


def test_whoever_inherits_it_holds_it_too(tmp_path, holder):
    """As the process that ends a killed command's trainer does: until then its folder is not free."""
    other = holder("and a child")
    other.kill()
    other.wait()
    assert not free(tmp_path)
    os.killpg(other.pid, signal.SIGKILL)
    assert eventually(lambda: free(tmp_path))


def test_it_leaves_nothing_and_can_be_had_again(tmp_path):
    for _ in range(2):
        with held(tmp_path / "new", "x"), pytest.raises(InUse):
            hold(tmp_path / "new", "x")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_lock_that_was_just_removed_is_made_anew(tmp_path):
    with held(tmp_path, "x"):
        (tmp_path / LOCK).unlink()  # its holder is about to end
        again = hold(tmp_path, "x")
    os.close(again)


@pytest.mark.parametrize("number", locks._WITHOUT_LOCKS)
def test_a_file_system_without_locks_is_said(number, tmp_path, monkeypatch, caplog):
    def refuses(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", refuses)
    with held(tmp_path, "x"):
        assert "nothing keeps a second run from writing there too" in caplog.text


def test_a_damaged_lock_file_has_no_name(tmp_path, holder):
    holder()
    (tmp_path / LOCK).write_bytes(b"\xff{")
    with pytest.raises(InUse, match="in use by another process"):
        hold(tmp_path, "x")
    descriptor = os.open(tmp_path / LOCK, os.O_RDWR)
    assert take(descriptor, tmp_path) == "another process"
    os.close(descriptor)
