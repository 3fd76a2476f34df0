"""Files are whole or absent, at whatever step an error, a kill or a full disk stops the writing.

Not covered: a power cut; only the order of calls shows that the bytes reach the disk before the file gets its name.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent_loops import files
from agent_loops.files import DiskFull, disk_full, replacing, replacing_folder, room_for, write_files, write_json

ROOT = Path(__file__).parents[2]
CALLS = ("fsync", "replace", "rename", "fchmod")


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def nth_call_fails(monkeypatch):
    """Makes the n-th call that changes something raise; returns how many there have been."""

    def install(number: int, error: OSError) -> list[str]:
        made: list[str] = []

        def counted(name, real):
            def call(*args, **kwargs):
                made.append(name)
                if len(made) == number:
                    raise error
                return real(*args, **kwargs)

            return call

        for name in ("fsync", "fchmod"):
            monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
        for name in ("write_bytes", "replace", "rename", "mkdir"):
            monkeypatch.setattr(Path, name, counted(name, getattr(Path, name)))
        return made

    return install


def test_what_is_written_is_there_and_nothing_else(tmp_path):
    write_files({tmp_path / "a": "ä", tmp_path / "b": b"\x00"})
    write_json(tmp_path / "c", {"ü": 1})
    assert (tmp_path / "a").read_text(encoding="utf-8") == "ä" and (tmp_path / "b").read_bytes() == b"\x00"
    assert json.loads((tmp_path / "c").read_text(encoding="utf-8")) == {"ü": 1}
    assert names(tmp_path) == ["a", "b", "c"]


def test_a_file_keeps_its_mode_a_link_its_place_and_a_device_itself(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "link").symlink_to("real")
    write_json(tmp_path / "link", 1)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "1\n"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o600
    write_json(Path("/dev/null"), 1)
    assert Path("/dev/null").is_char_device()
    with pytest.raises(DiskFull, match="/dev/full: no space left on the disk"):
        write_json(Path("/dev/full"), 1)
    assert Path("/dev/full").is_char_device()


def test_at_every_step_of_an_error_the_older_files_stay_all_of_them(tmp_path, nth_call_fails, monkeypatch):
    """Three files that belong together (a report's), and each call in turn fails. Before the first takes its place all
    have been written, so only a rename that fails could mix them, and a rename needs no room."""
    new = {tmp_path / name: f"new {name}" for name in "abc"}
    made = nth_call_fails(-1, OSError())
    write_files(new)
    calls = list(made)
    assert calls[:9] == ["write_bytes", "fsync"] * 3 + ["replace", "fsync", "replace"], "no mode to keep: they are new"
    first_name = calls.index("replace") + 1
    for number in range(1, first_name + 1):
        monkeypatch.undo()
        for path in new:
            path.write_text("old")
        made = nth_call_fails(number, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(DiskFull) as error:
            write_files(new)
        assert error.value.filename in map(str, new) and "no space left on the disk" in str(error.value)
        assert [path.read_text() for path in new] == ["old"] * 3 and names(tmp_path) == ["a", "b", "c"], number


@pytest.mark.parametrize("old", [True, False])
def test_a_file_too_large_for_the_disk(old, tmp_path):
    """Through the kernel: RLIMIT_FSIZE cuts a write short, and refuses the next."""
    path = tmp_path / "report.html"
    if old:
        path.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(DiskFull, match=r"report\.html: no space left: a file may not grow further"):
            write_files({path: "x" * 5000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, heard)
    assert names(tmp_path) == (["report.html"] if old else [])
    assert not old or path.read_text() == "old"


def test_other_errors_stay_what_they_are(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a") as part:
        part.write_text("half")
        _ = 1 / 0
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a") as part:
        part.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(OSError, match="Input/output error") as error, replacing(tmp_path / "a") as part:
        raise OSError(errno.EIO, "Input/output error")
    assert error.value.filename == str(tmp_path / "a") and not isinstance(error.value, DiskFull)
    with pytest.raises(FileNotFoundError):
        write_json(tmp_path / "nowhere" / "a", 1)
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("Disk quota exceeded (os error 122)"),
        OSError("5000 requested and 1024 written"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
)
def test_a_full_disk_is_known_in_every_librarys_words(error):
    with pytest.raises(DiskFull) as full, room_for("/x/y"):
        raise error
    assert str(full.value).startswith("/x/y: no space left") and "\n" not in str(full.value)
    assert str(pickle.loads(pickle.dumps(full.value))) == str(full.value), "it crosses Ray"
    assert isinstance(full.value, OSError) and full.value.__cause__ is error


@pytest.mark.parametrize("error", [OSError(errno.EACCES, ""), ValueError("unexpected pos"), KeyError("os error 2")])
def test_other_errors_are_no_full_disk(error):
    assert disk_full(error, "x") is None


# --- folders ----------------------------------------------------------------------------------------------------------


def fill(folder: Path, text: str) -> None:
    with replacing_folder(folder) as part:
        (part / "deep").mkdir()
        for name in ("config.json", "deep/weights"):
            (part / name).write_text(text)


def test_a_folder_at_every_step_of_an_error(tmp_path, nth_call_fails, monkeypatch):
    target = tmp_path / "model"
    fill(target, "older")
    made = nth_call_fails(-1, OSError())
    fill(target, "old")
    total = len(made)
    assert total > 5 and (target / "deep/weights").read_text() == "old" and names(tmp_path)[0] == "model"
    for number in range(1, total + 1):
        monkeypatch.undo()
        fill(target, "old")
        nth_call_fails(number, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(OSError):
            fill(target, "new")
        monkeypatch.undo()
        whole = {path.read_text() for path in (target / "config.json", target / "deep/weights") if path.exists()}
        assert len(whole) <= 1, "never a mixture"
        fill(target, "next")
        assert (target / "deep/weights").read_text() == "next"
        assert {path.name for path in tmp_path.iterdir()} == {"model"}, "and nothing is left over"


def test_what_others_put_into_a_folder_is_kept(tmp_path):
    fill(tmp_path / "model", "old")
    (tmp_path / "model" / "mine.txt").write_text("dear")
    fill(tmp_path / "model", "new")
    assert (tmp_path / "model.old-1" / "mine.txt").read_text() == "dear"
    assert (tmp_path / "model" / "config.json").read_text() == "new"
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        fill(tmp_path / "file", "x")


# --- killed -----------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from agent_loops import files
left = [{number}]
def counted(real):
    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
os.fsync = counted(os.fsync)
for name in ("write_bytes", "write_text", "replace", "rename", "mkdir"):
    setattr(Path, name, counted(getattr(Path, name)))
target = Path({target!r})
files.write_json(target / "file.json", ["new"] * 1000)
with files.replacing_folder(target / "folder") as part:
    (part / "a").write_text("new")
    (part / "b").write_text("new")
"""


def test_killed_at_every_step_the_next_writing_makes_it_whole(tmp_path):
    number, ended = 0, None
    while ended != 0:
        number += 1
        target = tmp_path / str(number)
        (target / "folder").mkdir(parents=True)
        (target / "file.json").write_text('["old"]')
        for name in "ab":
            (target / "folder" / name).write_text("old")
        code = KILLED.format(root=str(ROOT), number=number, target=str(target))
        ended = subprocess.run([sys.executable, "-I", "-S", "-c", code], timeout=60).returncode
        assert ended in (0, -signal.SIGKILL)
        assert json.loads((target / "file.json").read_text()) in (["old"], ["new"] * 1000)
        there = [path.read_text() for path in (target / "folder").iterdir()] if (target / "folder").exists() else []
        assert there in ([], ["old"] * 2, ["new"] * 2), number
        with replacing_folder(target / "folder") as part:
            (part / "a").write_text("next")
            (part / "b").write_text("next")
        write_json(target / "file.json", "next")
        assert names(target) == ["file.json", "folder", "folder/a", "folder/b"]
    assert 8 < number < 40


def test_two_writers_of_one_file_wait_for_each_other(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from agent_loops.files import write_file
for turn in range(40):
    write_file(Path({str(tmp_path / "x")!r}), sys.argv[1] * 20000)
"""
    writers = [subprocess.Popen([sys.executable, "-I", "-S", "-c", code, letter]) for letter in "ab"]
    seen = set()
    while any(one.poll() is None for one in writers):
        if (tmp_path / "x").exists():
            seen.add((tmp_path / "x").read_text())
    assert [one.returncode for one in writers] == [0, 0]
    assert seen <= {"a" * 20000, "b" * 20000} and names(tmp_path) == ["x"]


def test_a_part_of_a_killed_writer_is_written_over(tmp_path):
    (tmp_path / ".a.part").write_text("x" * 10_000)
    write_json(tmp_path / "a", 1)
    assert (tmp_path / "a").read_text() == "1\n" and names(tmp_path) == ["a"]
    assert files._IN_WORDS.search("os error 28")
