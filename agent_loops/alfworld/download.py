"""ALFWorld's text games: where they come from, and whether a directory holds all of them.

The games are the `game.tw-pddl` files of one release archive of https://github.com/alfworld/alfworld (MIT licence).
Upstream states no checksum. The checksum below is what several independent users of the archive have published (looked
up in November 2026, all equal), and the archive's size is that of these games, to the byte. `Split.sha256` is over the
games themselves, so that it also holds for a copy that was packed differently:

    cd json_2.1.1 && find train -name game.tw-pddl | LC_ALL=C sort | xargs sha256sum | sha256sum
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import fcntl
import gzip
import hashlib
import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from agent_loops.download import DownloadError, RemoteFile, bar_of, check_space, fetch, link_to, sha256_of
from agent_loops.errors import AgentLoopError
from agent_loops.files import room_for, sync_tree
from agent_loops.reading import parse_json, read_bytes, reason, require_file, shown

ROOT = "json_2.1.1"
GAME = "game.tw-pddl"
ARCHIVE = RemoteFile(
    "json_2.1.3_tw-pddl.zip",  # its games are in json_2.1.1, as those of its predecessors are
    ("https://github.com/alfworld/alfworld/releases/download/0.4.2/json_2.1.3_tw-pddl.zip",),
    sha256="5df77ea759f2211a4106082839ddbbb790f1ba4e7d097ed732cf453f72aa36cf",
    n_bytes=36_507_267,
)
ARCHIVE_NAMES = ("*.zip", "*.tar", "*.tar.*", "*.tgz")
_KEYS = ("pddl_domain", "grammar", "pddl_problem", "solvable")  # of a game's JSON
_UNPACKED_BYTES = 360_000_000
_MEMBER = re.compile(rf"(?:\./)?{re.escape(ROOT)}/(?P<split>[^/]+)/(?P<below>[^/]+/[^/]+/{re.escape(GAME)})")
# limits on an archive: the published one has 4,027 games of at most 140 kB; a repacked one may hold ALFRED's files
# and pictures too
_GAME_BYTES = 8 << 20
_ARCHIVE_BYTES = 16 << 30
_MOST_FILES = 500_000
_DIRECTORY_BYTES = 48 << 20  # of a zip file, which `zipfile` reads whole
_LOOK_AT = 100_000  # files below a directory that is not as it should be
_OTHER_FILES = {
    "traj_data.json": "ALFRED's annotations, of json_2.1.1_json.zip",
    "initial_state.pddl": "scenes without texts, of json_2.1.1_pddl.zip",
    "game.tw": "games of an older format",
    ".pth": "weights of a detector or an agent",
    ".zip": "archives that are not unpacked",
}


@dataclass(frozen=True)
class Split:
    """The published facts about a split.

    Attributes:
        types: the number of games of each task type.
        sha256: over the games' checksums, as `sha256sum` lists them in the order of their paths.
    """

    types: Mapping[str, int]
    sha256: str

    @property
    def n_games(self) -> int:
        return sum(self.types.values())


def _split(sha256: str, look: int, place: int, clean: int, cool: int, heat: int, two: int) -> Split:
    types = {
        "look_at_obj_in_light": look,
        "pick_and_place_simple": place,
        "pick_clean_then_place_in_recep": clean,
        "pick_cool_then_place_in_recep": cool,
        "pick_heat_then_place_in_recep": heat,
        "pick_two_obj_and_place": two,
    }
    return Split(types, sha256)


# The archive has 200 more games, `valid_train`, which the benchmark does not use.
SPLITS: dict[str, Split] = {
    "train": _split("ee760906a175326135ec138a921f28f6c58ddf690611f7638676da1409014fcd", 308, 790, 650, 533, 459, 813),
    "valid_seen": _split("2f0135d66ccefa654c5dba2148ceda1264b5ce23a8acc8aca165fcec05259a69", 13, 35, 27, 25, 16, 24),
    "valid_unseen": _split("0ecd5b0bb801227149f754cb74af68e870634e0a203f9e91c52c98f5c601c025", 18, 24, 31, 21, 23, 17),
}


@dataclass(frozen=True)
class SplitFiles:
    """The games of a split, after all of them have been read.

    Attributes:
        name: the split.
        n_games: their number, which equals the published number.
        n_bytes: their size.
        sha256: as in `Split`.
        published: whether these are the published games, byte for byte.
    """

    name: str
    n_games: int
    n_bytes: int
    sha256: str
    published: bool


def fetch_games(directory: Path, mirror: str | None = None, progress: bool = True) -> list[SplitFiles]:
    """Fetch the missing games into `directory/json_2.1.1`, and verify all of them.

    Args:
        directory: the target directory. Existing splits are verified, not fetched.
        mirror: the address of a folder with the archive, used instead of GitHub.
        progress: show progress bars if standard error is a terminal.

    Returns:
        The three splits.

    Raises:
        DownloadError: the archive cannot be fetched, or the games differ from the published games.
        OSError: the disk is full or not writable.
    """
    root = directory / ROOT
    if not all((root / name).is_dir() for name in SPLITS):
        archive = directory / ARCHIVE.name
        by_hand = archive.exists()
        if not by_hand:
            check_space(directory, _UNPACKED_BYTES + (ARCHIVE.n_bytes or 0), "the games take")
            fetch(ARCHIVE if mirror is None else ARCHIVE.at(mirror), directory, progress)
        elif (sha256 := sha256_of(archive, progress)) != ARCHIVE.sha256:
            raise DownloadError(
                f"{archive} is not the published file (sha256 {sha256[:12]}…; published: "
                f"{(ARCHIVE.sha256 or '')[:12]}…): delete it to have it fetched, or pass it with --from to use it "
                "as it is"
            )
        unpack(archive, directory, progress)
        if not by_hand:
            archive.unlink()
    splits = check_games(root, progress)
    for split in splits:
        if not split.published:
            raise DownloadError(
                f"{root / split.name} does not hold the published games (sha256 {split.sha256[:12]}…; published: "
                f"{SPLITS[split.name].sha256[:12]}…): delete it to have them fetched, or pass {directory} with --from "
                "to use them as they are"
            )
    return splits


def find_root(directory: Path) -> Path | None:
    """Return the directory whose folders are the splits: `directory/json_2.1.1`, or `directory`; None if neither is.

    Example:
        >>> find_root(Path("no/such/folder")) is None
        True
    """
    below = directory / ROOT
    if below.is_dir():
        return below
    return directory if any((directory / name).is_dir() for name in SPLITS) else None


def find_archive(source: Path) -> Path | None:
    """Return the archive with the games; None if there is none.

    It is `source` if that is a file, else the only file in it whose name matches.

    Raises:
        DownloadError: there are several archives in the directory.
    """
    if source.is_file():
        return source
    found = sorted({path for pattern in ARCHIVE_NAMES for path in source.glob(pattern) if "tw-pddl" in path.name})
    found = found or sorted({path for pattern in ARCHIVE_NAMES[1:] for path in source.glob(f"{ROOT}{pattern[1:]}")})
    if len(found) > 1:
        raise DownloadError(
            f"{source} holds {' and '.join(path.name for path in found)}: say which one, with --from FILE"
        )
    return found[0] if found else None


def require_root(source: Path) -> Path:
    """Like `find_root`, for a directory that has to hold games.

    Raises:
        DownloadError: the directory holds no games; the message says what is there instead.
    """
    root = find_root(source)
    if root is None or not any(True for name in SPLITS for _ in _games(root / name)):
        raise DownloadError(_say_what_is_there(source))
    return root


def check_games(root: Path, progress: bool = True) -> list[SplitFiles]:
    """Read every game of the three splits, and compare them with the published games.

    Args:
        root: the directory whose folders are the splits; it is only read.
        progress: show a progress bar if standard error is a terminal.

    Raises:
        DownloadError: games are missing, or too many, or cannot be read.
        OSError: a file cannot be read.
    """
    games = {name: sorted(_games(root / name)) for name in SPLITS}
    faults = [fault for name, paths in games.items() if (fault := _compare_counts(root / name, paths))]
    if faults:
        raise DownloadError(
            f"{'; '.join(faults)}. Delete the folder of a split that is not whole and unpack it again: the games are "
            f"in {ARCHIVE.name} ({ARCHIVE.urls[0]}), and `aem data alfworld` without --from fetches them"
        )
    splits, broken = [], []
    with bar_of("reading games", sum(map(len, games.values())), progress, "game", delay=0) as bar:
        for name, paths in games.items():
            listing, n_bytes = hashlib.sha256(), 0
            for path in paths:
                try:
                    content = read_bytes(root / path, _GAME_BYTES)
                except OSError as error:
                    raise DownloadError(f"{root / path} cannot be read: {reason(error)}") from None
                if what := _fault(content):
                    broken.append(f"{root / path} {what}")
                listing.update(f"{hashlib.sha256(content).hexdigest()}  {path}\n".encode())
                n_bytes += len(content)
                bar.update()
            sha256 = listing.hexdigest()
            splits.append(SplitFiles(name, len(paths), n_bytes, sha256, sha256 == SPLITS[name].sha256))
    if broken:
        more = f" ({len(broken) - 1:,} more are faulty)" if broken[1:] else ""
        raise DownloadError(f"{broken[0]}{more}. Delete the folder of that split and unpack it again")
    return splits


def unpack(archive: Path, directory: Path, progress: bool = True) -> Path:
    """Unpack the games of the three splits, and nothing else, into `directory/json_2.1.1`.

    A split's folder gets its name when it is complete. Run again after an interruption, this function resumes: files
    that equal the archive's are kept.

    Args:
        archive: a .zip or a tar archive, compressed or not.
        directory: the target directory, created if needed.
        progress: show a progress bar if standard error is a terminal.

    Returns:
        `directory/json_2.1.1`.

    Raises:
        DownloadError: the archive is damaged or holds other things, a split in it is incomplete, another process is
            unpacking there, or the directory holds other games.
        OSError: the disk is full or not writable.
    """
    root = directory / ROOT
    root.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    others: Counter[str] = Counter()
    total = sum(split.n_games for split in SPLITS.values())
    with (
        _locked(root),
        bar_of(f"unpacking {archive.name}", total, progress, "game", delay=0) as bar,
    ):
        # copy each game of the archive, unless an equal file is there
        whole = {name for name in SPLITS if (root / name).is_dir()}
        for member, content in _members(archive):
            place = _place(member)
            if content is None or place is None:
                others[member.rpartition("/")[2]] += 1
                continue
            split, below = place
            target = (root / split if split in whole else _partial(root, split)) / below
            if not (target.is_file() and target.read_bytes() == content):
                if split in whole:
                    raise DownloadError(
                        f"{root / split} holds other games than {archive}: choose another directory with --to, or "
                        "delete it"
                    )
                with room_for(target):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content)
            counts[split] += 1
            bar.update()
        # refuse another or an incomplete archive
        if not counts:
            found = _describe(others) or "nothing"
            raise DownloadError(f"{archive} holds no ALFWorld games, but {found}. {_WHERE_THEY_ARE}")
        for name, split in SPLITS.items():
            if counts[name] != split.n_games:
                raise DownloadError(
                    f"{archive} holds {counts[name]:,} games of {name}, and {split.n_games:,} are published: it is "
                    f"incomplete, or another archive. {_WHERE_THEY_ARE}"
                )
        # give the new splits their names
        for name in SPLITS.keys() - whole:
            sync_tree(_partial(root, name))
            _partial(root, name).replace(root / name)
    return root


def link_games(root: Path, directory: Path) -> Path:
    """Put a symbolic link `json_2.1.1` to games into a directory; return the link.

    Raises:
        DownloadError: something else is in the link's place.
    """
    return link_to(root, directory, ROOT)


_WHERE_THEY_ARE = (
    f"The games are the {GAME} files of {ARCHIVE.name}: leave out --from to have them fetched, or open "
    f"{ARCHIVE.urls[0]} in a browser and pass the file with --from"
)


def _games(split: Path) -> Iterator[str]:
    """Return the games of a split as paths below its parent; none if there is no such folder."""
    for task in _folders(split):
        for trial in _folders(task):
            if (trial / GAME).is_file():
                yield f"{split.name}/{task.name}/{trial.name}/{GAME}"


def _folders(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    with os.scandir(directory) as entries:
        return [directory / entry.name for entry in entries if entry.is_dir()]


def _compare_counts(split: Path, games: Sequence[str]) -> str:
    """Return what is wrong with the number of games, or an empty string."""
    published = SPLITS[split.name]
    if len(games) == published.n_games:
        return ""
    if not games:
        return f"{split} holds none of its {published.n_games:,} games"
    types = Counter(game.split("/")[1].split("-")[0] for game in games)
    differ = [
        f"{types[name]:,} of {published.types.get(name, 0):,} {name}"
        for name in sorted(published.types.keys() | types.keys())
        if types[name] != published.types.get(name, 0)
    ]
    return f"{split} holds {len(games):,} games, and {published.n_games:,} are published ({', '.join(differ)})"


def _fault(content: bytes) -> str:
    """Return why this is not a game that can be won; an empty string if it is."""
    try:
        game = parse_json(content)
    except ValueError as error:
        return "is empty" if not content else f"is not JSON: it is cut short or another file ({reason(error)})"
    missing = [key for key in _KEYS if not isinstance(game, dict) or key not in game]
    if missing:
        return f"is not a game: {' and '.join(missing)} is missing"
    return "" if game["solvable"] is True else "is marked as unsolvable"


def _say_what_is_there(source: Path) -> str:
    """Return why a directory holds no games, and what to do."""
    found: Counter[str] = Counter()
    n_files = 0
    for place, folders, files in os.walk(source):
        folders.sort()
        here = Path(place)
        if any(True for name in SPLITS for _ in _games(here / name)):
            return f"{source} is not the directory with ALFWorld's games: they lie deeper, so pass --from {here}"
        found.update(files)
        n_files += len(files)
        if n_files > _LOOK_AT:
            break
    if found[GAME]:
        return (
            f"{source} holds {found[GAME]:,} {GAME} files, but not as {ROOT}/SPLIT/TASK/TRIAL/{GAME} with the splits "
            f"{', '.join(SPLITS)}: unpack {ARCHIVE.name} as it is, or pass the archive with --from"
        )
    return f"{source} holds no ALFWorld games, but {_describe(found) or 'nothing'}. {_WHERE_THEY_ARE}"


def _describe(names: Counter[str]) -> str:
    """Return what these files are, in words."""
    words = []
    for end, meaning in _OTHER_FILES.items():
        count = sum(n for name, n in names.items() if (name.endswith(end) if end.startswith(".") else name == end))
        if count:
            words.append(f"{count:,} {end.replace('.', '*.', 1) if end.startswith('.') else end} ({meaning})")
    rest = sum(names.values())
    return ", ".join(words) or (f"other files ({rest:,})" if rest else "")


def _members(archive: Path) -> Iterator[tuple[str, bytes | None]]:
    """Yield each plain file of an archive, in the archive's order: its name, and the content if it is a game.

    Sizes are counted as the data arrive, not taken from the archive's headers; other files are skipped without
    unpacking.

    Raises:
        DownloadError: the archive is damaged, or holds more than any archive of games.
    """
    seen: set[tuple[str, str]] = set()
    try:
        require_file(archive)
        found = _zipped(archive) if zipfile.is_zipfile(archive) else _tarred(archive)
        for number, (name, read) in enumerate(found):
            if number >= _MOST_FILES:
                raise _TooMuch(f"more than {_MOST_FILES:,} files")
            place = _place(name)
            if place is None:
                yield name, None
                continue
            if place in seen:
                raise _TooMuch(f"{shown(name, 200)} twice")
            seen.add(place)
            content = read(_GAME_BYTES + 1)
            if len(content) > _GAME_BYTES:
                raise _TooMuch(f"{shown(name, 200)} of more than {_GAME_BYTES / 1e6:.0f} MB, which no game has")
            yield name, content
    except _TooMuch as error:
        raise DownloadError(f"{archive} holds {error}: it is no archive of ALFWorld's. {_WHERE_THEY_ARE}") from None
    except _UNPACKING as error:
        raise DownloadError(
            f"{archive} cannot be unpacked ({reason(error) if str(error) else 'it ends too early'}): it is damaged, "
            "incomplete, or no archive. Fetch it again"
        ) from error


class _TooMuch(AgentLoopError, RuntimeError):
    """The archive holds more than an archive of games can."""


# what the libraries raise for damaged or encrypted archives, and for compression methods that this Python lacks
_UNPACKING = (
    *(zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError, ValueError, RuntimeError),
    *(NotImplementedError, struct.error, OverflowError, IndexError, KeyError, TypeError, AttributeError, MemoryError),
)
_Read = Callable[[int], bytes]


def _zipped(archive: Path) -> Iterator[tuple[str, _Read]]:
    size = _directory_size(archive)
    if size > _DIRECTORY_BYTES:
        raise _TooMuch(f"a list of files of {size / 1e6:,.0f} MB")
    with zipfile.ZipFile(archive) as zipped:
        for info in zipped.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir() or kind not in (0, stat.S_IFREG):  # links and devices are not games
                continue

            def read(count: int, info: zipfile.ZipInfo = info) -> bytes:
                with zipped.open(info) as stream:
                    return stream.read(count)  # at its end it compares the checksum

            yield info.filename, read


def _directory_size(archive: Path) -> int:
    """Return the size of a zip file's directory in bytes, as its end record states; `zipfile` uses the same number."""
    with archive.open("rb") as file:
        file.seek(max(archive.stat().st_size - (1 << 16) - 22, 0))
        tail = file.read()
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) - end < 22:
        return 0  # then it is not a zip file, and `zipfile` says so
    if b"PK\6\7" in tail[:end]:  # zip64: for archives of 65,535 files and more, or beyond 4 GB
        large = tail.rfind(b"PK\6\6", 0, end)
        return struct.unpack_from("<Q", tail, large + 40)[0] if 0 <= large <= len(tail) - 48 else _DIRECTORY_BYTES + 1
    return struct.unpack_from("<L", tail, end + 12)[0]


def _tarred(archive: Path) -> Iterator[tuple[str, _Read]]:
    with archive.open("rb") as file:
        start = file.read(8)
        file.seek(0)
        opened = next((opener for magic, opener in _COMPRESSIONS.items() if start.startswith(magic)), None)
        with (
            opened(file) if opened else contextlib.nullcontext(file) as plain,
            tarfile.open(fileobj=(stream := _Bounded(plain)), mode="r:") as tar,  # type: ignore[call-overload]
        ):
            while (member := tar.next()) is not None:
                tar.members = []  # tarfile keeps all of them
                if member.isreg() and not member.issparse() and (content := tar.extractfile(member)) is not None:
                    yield member.name, content.read
            while stream.read(1 << 20):  # the checksum of the compression is at its end
                pass


_COMPRESSIONS: Mapping[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
    b"\x5d\0\0": lzma.LZMAFile,
}


class _Bounded:
    """A forward-only stream that refuses to give more than an archive of games can hold.

    It unpacks what is skipped. The limits are for a single piece, which may be a name of gigabytes, and for the total.
    """

    def __init__(self, stream: Any) -> None:
        self._stream, self._position = stream, 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        if position < self._position:
            raise tarfile.ReadError("its parts overlap")
        while self._position < position and self.read(min(position - self._position, 1 << 20)):
            pass
        return self._position

    def read(self, count: int) -> bytes:
        if count > 2 * _GAME_BYTES:
            raise _TooMuch(f"a header of {count / 1e6:,.0f} MB")
        piece = self._stream.read(count)
        self._position += len(piece)
        if self._position > _ARCHIVE_BYTES:
            raise _TooMuch(f"more than {_ARCHIVE_BYTES / 1e9:.0f} GB")
        return piece


def _place(member: str) -> tuple[str, str] | None:
    """Return the split of an archive's member and its path in it; None if it is not a game of the benchmark."""
    match = _MEMBER.fullmatch(member)
    if match is None or match["split"] not in SPLITS or ".." in member.split("/"):
        return None
    return match["split"], match["below"]


def _partial(root: Path, split: str) -> Path:
    return root / f".{split}.part"


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold a directory against other processes that unpack into it."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise DownloadError(
                f"{directory} is being written by another process: let it finish, then run again"
            ) from None
        yield
    finally:
        os.close(descriptor)
