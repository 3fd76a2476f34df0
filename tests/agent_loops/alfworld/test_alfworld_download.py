"""ALFWorld's games: download, unpacking, verification, and messages for missing games. A real server, small splits.

Not covered: GitHub itself, and the published archive byte for byte: the test of the real games uses a different archive
of them, and their own checksums.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import io
import json
import os
import random
import shutil
import struct
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.helpers import damage
from tests.helpers.shaky_server import shaky_server

pytest.importorskip("requests")
from agent_loops import download as shared
from agent_loops.alfworld import download
from agent_loops.download import DownloadError, RemoteFile
from agent_loops.files import DiskFull

ROOT = Path(__file__).resolve().parents[3]
COUNTS = {"train": (1, 2, 0, 1, 0, 1), "valid_seen": (0, 1, 1, 0, 0, 0), "valid_unseen": (0, 0, 0, 1, 0, 0)}
N_GAMES = 8


def game(name: str, **changes) -> bytes:
    problem = random.Random(name).randbytes(900).hex()  # so that an archive has some length
    return json.dumps(
        {"pddl_domain": "d", "grammar": "g", "pddl_problem": f"{name} {problem}", "solvable": True} | changes
    ).encode()


def games() -> dict[str, bytes]:
    """Every game by its path in the archive, `valid_train` too."""
    types = list(download.SPLITS["train"].types)
    made = {}
    for split, counts in {**COUNTS, "valid_train": (1, 0, 0, 0, 0, 0)}.items():
        for kind, count in zip(types, counts, strict=True):
            for n in range(count):
                path = f"json_2.1.1/{split}/{kind}-Mug-None-Desk-{n}/trial_{n}/game.tw-pddl"
                made[path] = game(path)
    return made


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w:xz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def lay_out(files: dict[str, bytes], directory: Path) -> Path:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def snapshot(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {
        path.relative_to(directory).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file()
    }


def unpacked(directory: Path) -> dict[str, bytes]:
    return {name: content for name, (content, _) in snapshot(directory).items()}


WANTED = {name: content for name, content in games().items() if "valid_train" not in name}


@pytest.fixture(autouse=True)
def published(monkeypatch):
    """Small splits, and an archive of theirs, in the place of the published ones."""
    types = list(download.SPLITS["train"].types)
    for split, counts in COUNTS.items():
        lines = [
            f"{hashlib.sha256(content).hexdigest()}  {name.removeprefix('json_2.1.1/')}\n"
            for name, content in sorted(WANTED.items())
            if name.startswith(f"json_2.1.1/{split}/")
        ]
        digest = hashlib.sha256("".join(lines).encode()).hexdigest()
        monkeypatch.setitem(download.SPLITS, split, download.Split(dict(zip(types, counts, strict=True)), digest))
    body = zipped(games())
    archive = RemoteFile(download.ARCHIVE.name, ("http://127.0.0.1:9/",), hashlib.sha256(body).hexdigest(), len(body))
    monkeypatch.setattr(download, "ARCHIVE", archive)
    monkeypatch.setattr(download, "_UNPACKED_BYTES", 0)
    monkeypatch.setattr(shared, "PAUSE", 0.0)
    monkeypatch.setattr(shared, "CHUNK", 512)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return body


@pytest.fixture
def server(published):
    with shaky_server() as shaky:
        shaky.files[download.ARCHIVE.name] = published
        yield shaky


# ------------------------------------------------------------------------------------------------------------ fetching


def test_the_games_arrive_and_nothing_else(server, tmp_path):
    splits = download.fetch_games(tmp_path, server.url)
    assert unpacked(tmp_path) == WANTED, "no archive, no valid_train, no part"
    assert [(split.name, split.n_games, split.published) for split in splits] == [
        ("train", 5, True), ("valid_seen", 2, True), ("valid_unseen", 1, True),
    ]  # fmt: skip
    assert sum(split.n_bytes for split in splits) == sum(map(len, WANTED.values()))
    asked = len(server.requests)
    before = snapshot(tmp_path)
    assert download.fetch_games(tmp_path, server.url) == splits
    assert len(server.requests) == asked and snapshot(tmp_path) == before


def test_an_interrupted_download_goes_on(server, tmp_path):
    server.faults[download.ARCHIVE.name] = [3000, "403"]
    with pytest.raises(DownloadError, match="answered 403 Forbidden"):
        download.fetch_games(tmp_path, server.url)
    kept = (tmp_path / f"{download.ARCHIVE.name}.part").stat().st_size
    assert kept > 0
    download.fetch_games(tmp_path, server.url)
    assert server.ranges(download.ARCHIVE.name)[-1] == f"bytes={kept}-"
    assert unpacked(tmp_path) == WANTED


def test_another_archive_is_refused(server, tmp_path):
    server.files[download.ARCHIVE.name] = zipped(games() | {"more": b"x"})
    with pytest.raises(DownloadError, match="offers another file"):
        download.fetch_games(tmp_path, server.url)
    assert not (tmp_path / "json_2.1.1").exists()


def test_without_a_network_the_message_says_what_to_open(tmp_path):
    with pytest.raises(DownloadError) as refused:
        download.fetch_games(tmp_path)
    message = str(refused.value)
    assert f"{download.ARCHIVE.name} could not be fetched" in message and "--from DIR" in message
    assert f"open {download.ARCHIVE.urls[0]} in a browser" in message


def test_an_archive_that_was_put_there_by_hand_is_verified_and_kept(published, tmp_path):
    (tmp_path / download.ARCHIVE.name).write_bytes(published)
    download.fetch_games(tmp_path)
    assert unpacked(tmp_path) == WANTED | {download.ARCHIVE.name: published}

    other = tmp_path / "other"
    other.mkdir()
    (other / download.ARCHIVE.name).write_bytes(zipped(WANTED))
    with pytest.raises(DownloadError, match=r"is not the published file .*delete it .*--from"):
        download.fetch_games(other)


def test_a_full_disk_is_noticed_before_anything_is_fetched(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_UNPACKED_BYTES", 1 << 60)
    with pytest.raises(DownloadError, match=r"GB free, and the games take .* --to"):
        download.fetch_games(tmp_path, server.url)
    assert not server.requests


def test_fetched_games_that_changed_are_noticed(server, tmp_path):
    download.fetch_games(tmp_path, server.url)
    path = next((tmp_path / "json_2.1.1" / "valid_seen").rglob("game.tw-pddl"))
    path.write_bytes(game("another"))
    with pytest.raises(DownloadError, match=r"valid_seen does not hold the published games .*delete it .*--from"):
        download.fetch_games(tmp_path, server.url)


def test_a_split_that_was_deleted_is_fetched_anew(server, tmp_path):
    download.fetch_games(tmp_path, server.url)
    before = snapshot(tmp_path)
    for path in sorted((tmp_path / "json_2.1.1" / "train").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (tmp_path / "json_2.1.1" / "train").rmdir()
    download.fetch_games(tmp_path, server.url)
    after = snapshot(tmp_path)
    assert unpacked(tmp_path) == WANTED
    assert {name: after[name] for name in after if "valid" in name} == {n: before[n] for n in before if "valid" in n}


# ----------------------------------------------------------------------------------------------------------- unpacking


@pytest.mark.parametrize("pack", [zipped, tarred, lambda files: tarred(files, "w")], ids=["zip", "tar.xz", "tar"])
def test_every_kind_of_archive(pack, tmp_path):
    archive = tmp_path / "a"
    archive.write_bytes(pack(games()))
    root = download.unpack(archive, tmp_path / "home")
    assert root == tmp_path / "home" / "json_2.1.1" and unpacked(tmp_path / "home") == WANTED


def test_nothing_is_written_outside(tmp_path):
    evil = {
        "../json_2.1.1/train/a/b/game.tw-pddl": b"1",
        "/json_2.1.1/train/a/b/game.tw-pddl": b"2",
        "json_2.1.1/train/../../../escaped/game.tw-pddl": b"3",
        "json_2.1.1/train/../../game.tw-pddl": b"4",
        "json_2.1.1/../train/b/game.tw-pddl": b"5",
        "json_2.1.1/train/a/b/traj_data.json": b"6",
        "json_2.1.1/detectors/a/b/game.tw-pddl": b"7",
    }
    (tmp_path / "a.zip").write_bytes(zipped(evil | games()))
    (tmp_path / "a.tar").write_bytes(tarred(evil | games(), "w"))
    for name in ("a.zip", "a.tar"):
        home = tmp_path / f"home of {name}" / "deeper"
        download.unpack(tmp_path / name, home)
        assert unpacked(home) == WANTED
        assert [path.name for path in home.parent.iterdir()] == ["deeper"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "a.zip", "home of a.tar", "home of a.zip"]


def test_a_link_in_an_archive_is_not_followed(tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        link = tarfile.TarInfo("json_2.1.1/train/a/b/game.tw-pddl")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (tmp_path / "a.tar").write_bytes(stream.getvalue())
    with pytest.raises(DownloadError, match="holds no ALFWorld games, but nothing"):
        download.unpack(tmp_path / "a.tar", tmp_path / "home")
    assert unpacked(tmp_path / "home") == {}


def test_an_interrupted_unpacking_goes_on(tmp_path, monkeypatch):
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped(games()))
    home = tmp_path / "home"
    real, written = Path.write_bytes, []

    def failing(path, content):
        if len(written) == 4:
            real(path, content[:100])
            raise KeyboardInterrupt
        written.append(path)
        return real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", failing)
        with pytest.raises(KeyboardInterrupt):
            download.unpack(archive, home)
    assert not any((home / "json_2.1.1" / name).exists() for name in COUNTS), "a split appears whole or not at all"
    with pytest.raises(DownloadError, match="holds none of its 5 games"):
        download.check_games(home / "json_2.1.1")

    resumed = []
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", lambda path, content: (resumed.append(path), real(path, content)))
        download.unpack(archive, home)
    assert len(resumed) == N_GAMES - 4, "what was there is kept, the cut one is not"
    assert unpacked(home) == WANTED


def test_one_process_unpacks_at_a_time(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped(games()))
    (tmp_path / "json_2.1.1").mkdir()
    descriptor = os.open(tmp_path / "json_2.1.1", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with pytest.raises(DownloadError, match="is being written by another process"):
            download.unpack(tmp_path / "a.zip", tmp_path)
    finally:
        os.close(descriptor)
    download.unpack(tmp_path / "a.zip", tmp_path)


@pytest.mark.parametrize("pack", [zipped, tarred], ids=["zip", "tar.xz"])
@pytest.mark.parametrize("where", [0.3, 0.95])
def test_a_damaged_archive(pack, where, tmp_path):
    body = pack(games())
    archive = tmp_path / "a"
    archive.write_bytes(body[: int(len(body) * where)])
    with pytest.raises(DownloadError, match="cannot be unpacked"):
        download.unpack(archive, tmp_path / "home")
    assert not any((tmp_path / "home" / "json_2.1.1" / name).exists() for name in COUNTS)


def test_a_disk_that_fills_up_is_said_and_the_next_call_goes_on(tmp_path, monkeypatch):
    (tmp_path / "a.zip").write_bytes(zipped(games()))
    real = Path.write_bytes
    for number in range(1, 1 + sum(map(sum, COUNTS.values()))):
        written: list[Path] = []

        def full(path, data, number=number, written=written):
            written.append(path)
            if len(written) == number:
                real(path, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(path, data)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "write_bytes", full)
            with pytest.raises(DiskFull, match=r"game\.tw-pddl: no space left on the disk"):
                download.unpack(tmp_path / "a.zip", tmp_path / str(number))
        assert not any((tmp_path / str(number) / "json_2.1.1" / name).exists() for name in COUNTS)
        download.unpack(tmp_path / "a.zip", tmp_path / str(number))
        bodies = [[body for body, _ in snapshot(tmp_path / one).values()] for one in (str(number), "1")]
        assert sorted(bodies[0]) == sorted(bodies[1])


def test_a_zip_whose_content_was_altered(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:  # stored, so that a byte can be changed
        for name, content in games().items():
            archive.writestr(name, content)
    body = stream.getvalue().replace(b'"grammar": "g"', b'"grammar": "h"', 1)
    (tmp_path / "a.zip").write_bytes(body)
    with pytest.raises(DownloadError, match=r"cannot be unpacked .*CRC"):
        download.unpack(tmp_path / "a.zip", tmp_path / "home")


def test_an_archive_that_lacks_games(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped({name: body for name, body in games().items() if "unseen" not in name}))
    with pytest.raises(DownloadError, match="holds 0 games of valid_unseen, and 1 are published"):
        download.unpack(tmp_path / "a.zip", tmp_path / "home")


def test_upstreams_other_archives_are_recognised(tmp_path):
    for kind, meaning in {"traj_data.json": r"json_2\.1\.1_json\.zip", "initial_state.pddl": "scenes"}.items():
        (tmp_path / "a.zip").write_bytes(zipped({name.replace("game.tw-pddl", kind): b"{}" for name in games()}))
        with pytest.raises(DownloadError, match=rf"no ALFWorld games, but 9 {kind} \(.*{meaning}.*browser"):
            download.unpack(tmp_path / "a.zip", tmp_path / "home")


def test_other_games_are_never_mixed_in(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped(games()))
    download.unpack(tmp_path / "a.zip", tmp_path / "home")
    before = snapshot(tmp_path / "home")
    (tmp_path / "b.zip").write_bytes(zipped(games() | {next(iter(WANTED)): game("another")}))
    with pytest.raises(DownloadError, match=r"holds other games than .*b\.zip: choose another directory with --to"):
        download.unpack(tmp_path / "b.zip", tmp_path / "home")
    assert snapshot(tmp_path / "home") == before


# ----------------------------------------------------------------------------------------------- directories with games


def test_the_checksum_is_the_one_that_sha256sum_gives(tmp_path):
    lay_out(WANTED, tmp_path)
    command = "find train -name game.tw-pddl | LC_ALL=C sort | xargs sha256sum | sha256sum"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path / "json_2.1.1", capture_output=True, text=True)
    (train, *_) = download.check_games(tmp_path / "json_2.1.1")
    assert done.stdout.split()[0] == train.sha256 and train.published


def test_both_directories_are_understood_and_only_read(tmp_path):
    lay_out(games() | {"json_2.1.1/train/x/y/traj_data.json": b"{}", "logic/alfred.pddl": b"x"}, tmp_path)
    before = snapshot(tmp_path)
    for given in (tmp_path, tmp_path / "json_2.1.1"):
        assert download.require_root(given) == tmp_path / "json_2.1.1"
    assert all(split.published for split in download.check_games(tmp_path / "json_2.1.1"))
    assert snapshot(tmp_path) == before


def test_another_version_is_told_from_the_published_one(tmp_path):
    name = next(name for name in WANTED if "/valid_seen/" in name)
    lay_out(WANTED | {name: game("another")}, tmp_path)
    published = {split.name: split.published for split in download.check_games(tmp_path / "json_2.1.1")}
    assert published == {"train": True, "valid_seen": False, "valid_unseen": True}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (game("x")[:50], "is not JSON: it is cut short"),
        (b"[1]", "is not a game: pddl_domain and grammar and pddl_problem and solvable is missing"),
        (game("x", solvable=False), "is marked as unsolvable"),
        (
            json.dumps({"pddl_domain": "", "pddl_problem": "", "solvable": True}).encode(),
            "is not a game: grammar is missing",
        ),
    ],
    ids=["empty", "cut short", "other JSON", "unsolvable", "a key is missing"],
)
def test_a_game_that_is_none(content, said, tmp_path):
    names = [name for name in WANTED if "/train/" in name][:2]
    lay_out(WANTED | {name: content for name in names}, tmp_path)
    with pytest.raises(DownloadError) as refused:
        download.check_games(tmp_path / "json_2.1.1")
    message = str(refused.value)
    assert f"{tmp_path / names[0]} {said}" in message and "(1 more are faulty)" in message


def test_games_that_are_missing_are_named_by_split_and_type(tmp_path):
    lay_out(WANTED, tmp_path)
    for path in (tmp_path / "json_2.1.1" / "train").glob("pick_and_place_simple*/*/*"):
        path.unlink()
    (next((tmp_path / "json_2.1.1" / "valid_unseen").glob("*/*/*"))).unlink()
    with pytest.raises(DownloadError) as refused:
        download.check_games(tmp_path / "json_2.1.1")
    message = str(refused.value)
    assert "train holds 3 games, and 5 are published (0 of 2 pick_and_place_simple)" in message
    assert "valid_unseen holds none of its 1 games" in message
    assert "valid_seen" not in message and download.ARCHIVE.urls[0] in message


def test_too_many_games_are_not_taken(tmp_path):
    extra = "json_2.1.1/train/pick_and_place_with_movable_recep-A-B-C-1/trial/game.tw-pddl"
    lay_out(WANTED | {extra: game("x")}, tmp_path)
    with pytest.raises(DownloadError, match=r"6 games, and 5 are .*\(1 of 0 pick_and_place_with_movable_recep\)"):
        download.check_games(tmp_path / "json_2.1.1")


NO_GAMES = {
    "annotations": ("json_2.1.1/train/a/b/traj_data.json", r"1 traj_data\.json \(ALFRED's annotations"),
    "scenes": ("json_2.1.1/train/a/b/initial_state.pddl", r"1 initial_state\.pddl \(scenes"),
    "older": ("json_2.1.1/train/a/b/game.tw", r"1 game\.tw \(games of an older format\)"),
    "detector": ("detectors/mrcnn_alfred_objects_sep13_004.pth", r"1 \*\.pth \(weights of a detector"),
    "packed": ("json_2.1.1_json.zip", r"1 \*\.zip \(archives that are not unpacked\)"),
    "other": ("readme", r"other files \(1\)"),
}


@pytest.mark.parametrize("kind", NO_GAMES)
def test_a_directory_without_games_says_what_is_there(kind, tmp_path):
    path, said = NO_GAMES[kind]
    lay_out({path: b"{}"}, tmp_path)
    with pytest.raises(DownloadError, match=rf"holds no ALFWorld games, but {said}.*--from"):
        download.require_root(tmp_path)


def test_an_empty_directory(tmp_path):
    with pytest.raises(DownloadError, match="holds no ALFWorld games, but nothing"):
        download.require_root(tmp_path)


@pytest.mark.parametrize("above", ["json_2.1.3_tw-pddl", "json_2.1.1", "json_2.1.1/json_2.1.2"])
def test_games_that_lie_deeper(above, tmp_path):
    lay_out({f"{above}/{name}": body for name, body in WANTED.items()}, tmp_path)
    deeper = tmp_path / above / "json_2.1.1"
    with pytest.raises(DownloadError, match=f"they lie deeper, so pass --from {deeper}"):
        download.require_root(tmp_path)
    assert download.require_root(deeper) == deeper


def test_games_in_other_folders(tmp_path):
    lay_out({"all/trial/game.tw-pddl": b"{}"}, tmp_path)
    with pytest.raises(DownloadError, match=r"holds 1 game\.tw-pddl files, but not as json_2\.1\.1/SPLIT/TASK/TRIAL"):
        download.require_root(tmp_path)


def test_the_archive_in_a_directory_is_found(tmp_path):
    assert download.find_archive(tmp_path) is None
    for name in ("json_2.1.1_json.zip", "json_2.1.1_pddl.zip", "json_2.1.1.tar.xz"):
        (tmp_path / name).write_bytes(b"")
    assert download.find_archive(tmp_path) == tmp_path / "json_2.1.1.tar.xz"
    (tmp_path / "json_2.1.3_tw-pddl.zip").write_bytes(b"")
    assert download.find_archive(tmp_path) == tmp_path / "json_2.1.3_tw-pddl.zip"
    (tmp_path / "json_2.1.2_tw-pddl.zip").write_bytes(b"")
    with pytest.raises(DownloadError, match=r"json_2\.1\.2_tw-pddl\.zip and json_2\.1\.3_tw-pddl\.zip: say which"):
        download.find_archive(tmp_path)
    assert download.find_archive(tmp_path / "json_2.1.1_json.zip") == tmp_path / "json_2.1.1_json.zip"


def test_links(tmp_path):
    for place in ("one", "two"):
        lay_out(WANTED, tmp_path / place)
    for place in ("one", "two", "two"):
        link = download.link_games(tmp_path / place / "json_2.1.1", tmp_path / "home")
        assert link.is_symlink() and link.resolve() == tmp_path / place / "json_2.1.1"
    assert download.find_root(tmp_path / "home") == link
    lay_out(WANTED, tmp_path / "taken")
    with pytest.raises(DownloadError, match="is a directory of its own"):
        download.link_games(tmp_path / "one" / "json_2.1.1", tmp_path / "taken")


# ------------------------------------------------------------------------------------------------------- the real games


def test_the_published_games(tmp_path, monkeypatch):
    """Another packing of the archive, with the published numbers and checksums."""
    given = Path(os.environ.get("AEM_ALFWORLD_DATA", ROOT.parent / "shared" / "data" / "alfworld"))
    archive = download.find_archive(given) if given.exists() else None
    root = download.find_root(given)
    if archive is None and root is None:
        pytest.skip(f"ALFWorld's games are not at {given}; set AEM_ALFWORLD_DATA to where they are")
    monkeypatch.undo()
    if root is None:
        assert archive is not None
        root = download.unpack(archive, tmp_path)
    splits = download.check_games(root)
    assert [(split.name, split.n_games) for split in splits] == [
        ("train", 3553), ("valid_seen", 140), ("valid_unseen", 134),
    ]  # fmt: skip
    assert all(split.published for split in splits)


def test_what_is_published_adds_up(monkeypatch):
    monkeypatch.undo()
    assert {name: split.n_games for name, split in download.SPLITS.items()} == {
        "train": 3553, "valid_seen": 140, "valid_unseen": 134,
    }  # fmt: skip
    assert download.ARCHIVE.urls[0].endswith(f"/{download.ARCHIVE.name}")
    assert dataclasses.asdict(download.ARCHIVE)["n_bytes"] == 36_507_267


# ------------------------------------------------------------------------------------------------- archives with a hook


def said(archive: Path, directory: Path) -> str:
    with pytest.raises(DownloadError) as refused:
        download.unpack(archive, directory, progress=False)
    text = str(refused.value)
    assert str(archive) in text and all(line.isprintable() for line in text.split("\n"))
    return text


NAME = next(iter(WANTED))


def write_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_a_game_that_unpacks_to_gigabytes(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_GAME_BYTES", 1 << 20)
    bomb = bytes(5 << 20)
    (zipped_bomb := tmp_path / "a.zip").write_bytes(zipped({**games(), NAME: bomb}))
    assert zipped_bomb.stat().st_size < 1 << 20
    assert f"holds '{NAME}' of more than 1 MB, which no game has" in said(zipped_bomb, tmp_path / "to")
    (tarred_bomb := tmp_path / "a.tar.xz").write_bytes(tarred({**games(), NAME: bomb}))
    assert f"holds '{NAME}' of more than 1 MB, which no game has" in said(tarred_bomb, tmp_path / "to")


def test_a_zip_file_whose_list_lies_about_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_GAME_BYTES", 1 << 20)
    content = bytes(5 << 20)
    body = zipped({NAME: content}).replace(struct.pack("<L", len(content)), struct.pack("<L", 10))
    (path := tmp_path / "a.zip").write_bytes(body)
    assert "cannot be unpacked" in (text := said(path, tmp_path / "to")) or "more than 1 MB" in text


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz", "w"])
def test_what_is_passed_over_counts_too(mode, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_ARCHIVE_BYTES", 1 << 20)
    path = write_tar(tmp_path / "a.tar", (tarfile.TarInfo("zeros"), bytes(3 << 20)), mode=mode)
    assert "holds more than 0 GB" in said(path, tmp_path / "to")


def test_a_name_of_megabytes(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_GAME_BYTES", 1 << 18)
    path = write_tar(tmp_path / "a.tar.gz", (tarfile.TarInfo("x" * (1 << 21)), b""))
    assert "holds a header of 2 MB" in said(path, tmp_path / "to")


def test_more_files_than_any_archive_of_games(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_MOST_FILES", 20)
    members = [(tarfile.TarInfo(str(number)), b"") for number in range(30)]
    assert "holds more than 20 files" in said(write_tar(tmp_path / "a.tar", *members), tmp_path / "to")
    (path := tmp_path / "a.zip").write_bytes(zipped({str(number): b"" for number in range(30)}))
    assert "holds more than 20 files" in said(path, tmp_path / "to")
    monkeypatch.setattr(download, "_DIRECTORY_BYTES", 1000)
    assert "a list of files of 0 MB" in said(path, tmp_path / "to")


def test_a_game_that_comes_twice(tmp_path):
    members = [(tarfile.TarInfo(NAME), b"{}"), (tarfile.TarInfo(f"./{NAME}"), b"[]")]
    assert f"holds './{NAME}' twice" in said(write_tar(tmp_path / "a.tar", *members), tmp_path / "to")


@pytest.mark.parametrize("name", [f"../{NAME}", f"/{NAME}", NAME.replace("trial_0", ".."), f"json_2.1.1/../{NAME}"])
def test_names_that_lead_elsewhere_do_nothing(name, tmp_path):
    (tmp_path / "to").mkdir()
    said(write_tar(tmp_path / "a.tar", (tarfile.TarInfo(name), b"{}")), tmp_path / "to" / "here")
    (path := tmp_path / "a.zip").write_bytes(zipped({name: b"{}"}))
    said(path, tmp_path / "to" / "here")
    assert not [one for one in tmp_path.rglob("game.tw-pddl")]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_links_and_devices_do_nothing(kind, tmp_path):
    member = tarfile.TarInfo(NAME)
    member.type, member.linkname = kind, "/etc/passwd"
    assert "holds no ALFWorld games" in said(write_tar(tmp_path / "a.tar", (member, b"")), tmp_path / "to")
    info = zipfile.ZipInfo(NAME)
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    assert "holds no ALFWorld games" in said(tmp_path / "a.zip", tmp_path / "to")
    assert not [one for one in (tmp_path / "to").rglob("game.tw-pddl")]


def test_an_encrypted_archive_and_one_of_another_packing(tmp_path):
    body = bytearray(zipped({NAME: b"{}"}))
    for magic, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        body[body.find(magic) + offset] |= 1
    (path := tmp_path / "a.zip").write_bytes(body)
    assert "cannot be unpacked" in said(path, tmp_path / "to") and "encrypted" in said(path, tmp_path / "to")
    body = bytearray(zipped({NAME: b"{}"}))
    for magic, offset in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        body[body.find(magic) + offset] = 99
    path.write_bytes(body)
    assert "cannot be unpacked" in said(path, tmp_path / "to")


@pytest.mark.parametrize("packed", [zipped, tarred, lambda files: tarred(files, "w:gz")], ids=["zip", "xz", "gz"])
def test_a_damaged_archive_gives_the_games_or_an_error(packed, tmp_path):
    path, whole = tmp_path / "archive", packed(games())
    for label, content in damage.contents(whole, "archive", damage.count(60)):
        path.write_bytes(content)
        to = tmp_path / "to"
        shutil.rmtree(to, ignore_errors=True)
        damage.check(lambda to=to: unpacked(download.unpack(path, to).parent), path, WANTED, DownloadError, label)


def test_a_game_with_escapes_in_its_name_and_games_that_cannot_be_read(tmp_path):
    root = lay_out(WANTED, tmp_path) / "json_2.1.1"
    first = tmp_path / NAME
    whole = first.read_bytes()
    for content in (b"[" * 100_000, b'{"solvable": true, "solvable": false}', b"\xff", whole.replace(b"true", b"NaN")):
        first.write_bytes(content)
        with pytest.raises(DownloadError, match=r"game\.tw-pddl is not JSON"):
            download.check_games(root, progress=False)
    first.unlink()
    first.parent.rename(first.parent.with_name("trial_\x1b[2J"))
    (first.parent.with_name("trial_\x1b[2J") / "game.tw-pddl").write_bytes(b"x")
    with pytest.raises(DownloadError, match=r"trial_.x1b\[2J/game\.tw-pddl is not JSON"):
        download.check_games(root, progress=False)
