"""Downloads of a benchmark's files: fetched with resumption, checked against a checksum, and recorded.

`requests` does the transfer, because no existing library both resumes from these sources and refuses a wrong file:
pooch 1.9 opens its target anew (`w+b`, no `Range`); huggingface_hub resumes, but only files of the Hub; gdown saves
the page that Drive sends in place of a file. None of the three bounds a slow server, a redirection or a file's size.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from tqdm import tqdm

from agent_loops.errors import AgentLoopError, InputError
from agent_loops.files import room_for, write_json
from agent_loops.reading import harmless, parse_json, read_bytes, require_file, shown
from agent_loops.reading import reason as why

CHUNK = 1 << 20
LARGEST = 1 << 36  # bytes of a file whose size nobody publishes
WINDOW = 120.0  # seconds, in which a server has to send SLOWEST bytes a second, and to begin its answer
SLOWEST = 1000
REDIRECTIONS = 10
TIMEOUT = (15, 60)  # seconds to connect, and between two bytes
RETRIES = 20  # after an interrupted transfer; a source that never sent a byte gets one more try only
PAUSE = 1.0  # seconds before a retry
MANIFEST = "aem_data.json"


class DownloadError(AgentLoopError, RuntimeError):
    """A file could not be fetched, or has unexpected content. The message says what to do, perhaps in several lines."""

    lines = True

    def __init__(self, message: str) -> None:
        super().__init__(harmless(message))


class _Refusal(AgentLoopError, RuntimeError):
    """What a source did instead of sending the file."""


@dataclass(frozen=True)
class RemoteFile:
    """A file and its sources.

    Attributes:
        name: its name on disk.
        urls: the sources, tried in this order.
        sha256: the published checksum (64 lower-case hexadecimal digits), if there is one. Without it nothing proves
            that a resumed file's two parts belong to the same version; the caller has to check the content.
        n_bytes: the published size.
        by_hand: an address to open in a browser, if it differs from the first of `urls`.
    """

    name: str
    urls: tuple[str, ...]
    sha256: str | None = None
    n_bytes: int | None = None
    by_hand: str | None = None

    def at(self, mirror: str) -> RemoteFile:
        """Return the same file in a folder of that address."""
        return replace(self, urls=(f"{mirror.rstrip('/')}/{self.name}",), by_hand=None)


def fetch(file: RemoteFile, directory: Path, progress: bool = True) -> str:
    """Fetch a file into a directory, from the first source that provides the right content.

    A partial download is kept in `NAME.part`, and the next call resumes from it. The file gets its name only when it
    is complete and has the published checksum.

    Args:
        file: what to fetch.
        directory: the directory, created if needed. A file of that name in it is replaced.
        progress: show a progress bar if standard error is a terminal.

    Returns:
        The address from which the file was fetched.

    Raises:
        DownloadError: no source gave the file, or another process is fetching it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f"{file.name}.part"
    reasons = []
    with room_for(partial), partial.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(
                f"{partial} is being written by another process: let it finish, then run again"
            ) from None
        for url in file.urls:
            try:
                _fetch_whole(url, file, stream, progress)
            except _Refusal as refusal:
                reason = f"{urlsplit(url).netloc} {refusal}"
                if reason not in reasons:
                    reasons.append(reason)
                continue
            os.fsync(stream.fileno())
            partial.replace(directory / file.name)
            return url
        kept = stream.tell()
    if not kept:
        partial.unlink()
    raise DownloadError(
        f"{file.name} could not be fetched: {'; '.join(reasons)}{f' ({kept:,} bytes are kept)' if kept else ''}.\n"
        f"Run the same command again later. Or open {file.by_hand or file.urls[0]} in a browser, save the file as "
        f"{directory / file.name} and run it again; if you have all the files, pass their directory with --from DIR."
    )


def bar_of(title: str, total: int | None, progress: bool, unit: str = "B", **more: Any) -> tqdm:
    """Return a progress bar for operations longer than a second, on a terminal only; `progress=False` omits it."""
    options = {"leave": False, "delay": 1, "unit_scale": unit == "B", **more}
    return tqdm(desc=title, total=total, unit=unit, disable=None if progress else True, **options)


def check_space(directory: Path, needed: int, what: str) -> None:
    """Create a directory; raise DownloadError if the disk has no room for `needed` bytes of `what`."""
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise DownloadError(
            f"{directory} has {free / 1e9:.1f} GB free, and {what} {needed / 1e9:.1f} GB: make room, or choose another "
            "directory with --to"
        )


def link_to(target: Path, directory: Path, name: str) -> Path:
    """Put a symbolic link to a file or folder into a directory, created if needed; return the link.

    Raises:
        DownloadError: something else is in the link's place.
    """
    directory.mkdir(parents=True, exist_ok=True)
    link = directory / name
    if link.is_symlink() and link.resolve() != target.resolve():
        link.unlink()
    if not link.exists():
        link.symlink_to(target.resolve(), target_is_directory=target.is_dir())
    elif not link.samefile(target):
        kind = "directory" if target.is_dir() else "file"
        raise DownloadError(f"{link} is a {kind} of its own, not a link to {target}: choose another --to")
    return link


def sha256_of(path: Path, progress: bool = False) -> str:
    """Return a file's SHA-256 checksum in hexadecimal; read the file in pieces.

    Raises:
        OSError: the file cannot be read.
    """
    size = require_file(path).st_size
    with path.open("rb") as stream:
        return _digest(stream, size, f"checking {path.name}", progress)


class Manifest:
    """The checksums of a benchmark's files as they first arrived, in a small JSON file.

    Args:
        directory: where `aem_data.json` is or will be. Files in this directory are entered by name, other files by
            absolute path.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / MANIFEST
        self._files: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            try:
                self._files = _entries(parse_json(read_bytes(self.path, _MANIFEST_BYTES)))
            except (OSError, ValueError) as error:
                raise DownloadError(
                    f"{self.path} is damaged ({why(error)}): delete it, and run the same command again"
                ) from None

    def source(self, path: Path) -> str | None:
        """Return where an entered file came from; None if the file has not been entered."""
        entry = self._files.get(self._key(path))
        return None if entry is None else str(entry.get("source"))

    def verify(self, path: Path, sha256: str) -> None:
        """Compare an entered file's checksum with its entry.

        Raises:
            DownloadError: the file has changed since it was entered.
        """
        entry = self._files[self._key(path)]
        if entry.get("sha256") != sha256:
            raise DownloadError(
                f"{path} has changed since {entry.get('arrived')} (sha256 {str(entry.get('sha256'))[:12]}… then, "
                f"{sha256[:12]}… now): put the old file back, or delete it to have it fetched anew; if the change is "
                f"meant, delete {self.path}"
            )

    def enter(self, path: Path, sha256: str, source: str) -> None:
        """Record a file, unless it has been entered before."""
        if self._key(path) not in self._files:
            self._files[self._key(path)] = {
                "sha256": sha256,
                "bytes": path.stat().st_size,
                "source": source,
                "arrived": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            self._write()

    def forget(self, path: Path) -> None:
        """Remove a file's entry, if there is one."""
        if self._files.pop(self._key(path), None) is not None:
            self._write()

    def _key(self, path: Path) -> str:
        path = path.absolute()
        return path.name if path.parent == self.path.parent.absolute() else str(path)

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"format": 1, "files": self._files})


_MANIFEST_BYTES = 16 << 20


def _entries(found: Any) -> dict[str, dict[str, Any]]:
    files = found.get("files") if isinstance(found, dict) else None
    if not isinstance(files, dict):
        raise InputError("it has no files")
    for name, entry in files.items():
        texts = [entry.get(part) for part in ("sha256", "source", "arrived")] if isinstance(entry, dict) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"the entry {shown(name)} is not one of a file")
    return files


def _fetch_whole(url: str, file: RemoteFile, stream: BinaryIO, progress: bool) -> None:
    """Complete `stream` from a source. A resumed file with a wrong checksum is fetched once more from its start."""
    while True:
        resumed = stream.tell() > 0
        _transfer(url, file, stream, progress)
        stream.flush()
        if file.sha256 is None:
            return
        size = stream.tell()
        with open(stream.name, "rb") as written:
            digest = _digest(written, size, f"checking {file.name}", progress)
        if digest == file.sha256:
            return
        _restart(stream)
        if not resumed:
            raise _Refusal(f"sent another file ({size:,} bytes, sha256 {digest[:12]}…; published: {file.sha256[:12]}…)")


def _transfer(url: str, file: RemoteFile, stream: BinaryIO, progress: bool) -> None:
    """Append to `stream` until it is complete, resuming after each interruption."""
    began = stream.tell()
    reason = ""
    with bar_of(file.name, file.n_bytes, progress, leave=True, delay=0) as bar:
        for attempt in range(RETRIES + 1):
            if attempt:
                time.sleep(PAUSE)
            try:
                _append(url, file, stream, bar)
                return
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                stream.flush()
                reason = _plain(error)
                if attempt and stream.tell() == began:
                    break
            except requests.RequestException as error:  # a wrong address, too many redirections
                raise _Refusal(f"cannot be asked ({why(error)})") from error
    raise _Refusal(reason)


def _append(url: str, file: RemoteFile, stream: BinaryIO, bar: tqdm) -> None:
    """Make a request for the missing part of the file and append what arrives until the connection breaks."""
    if file.n_bytes is not None and stream.tell() > file.n_bytes:
        _restart(stream)
    offset = stream.tell()
    if offset and offset == file.n_bytes:
        return  # interrupted between the last byte and the renaming
    # the bytes on disk must be those that the range counts
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    with requests.Session() as session, _ask(session, url, headers) as response:
        if response.status_code == 416 and offset:  # the file is shorter than the part on disk
            _restart(stream)
            raise requests.ConnectionError("the file there is shorter than the part that is here")
        if response.status_code not in (200, 206):
            raise _Refusal(f"answered {response.status_code} {response.reason or ''}".rstrip()[:100])
        coding = response.headers.get("Content-Encoding", "identity")
        if coding.strip().lower() not in ("", "identity"):
            raise _Refusal(f"sent the file packed ({shown(coding)}), which it was not asked for")
        chunks = _chunks(response)
        first = next(chunks, b"")
        kind = response.headers.get("Content-Type", "")
        # before anything is discarded: a refusal is often a page, sent as if it were a success
        if kind.startswith("text/html") or first.lstrip()[:1] == b"<":
            raise _Refusal(f"sent a web page instead of the file{_title(first)}")
        start, total = _place(response)
        if file.n_bytes is not None and total is not None and total != file.n_bytes:
            raise _Refusal(f"offers another file ({total:,} bytes; published: {file.n_bytes:,})")
        if start != offset:
            if start:
                raise _Refusal(f"sent bytes from {start:,} on, not from {offset:,}")
            _restart(stream)  # it does not support ranges
        end = next(size for size in (file.n_bytes, total, LARGEST) if size is not None)
        bar.reset(total)
        bar.initial = bar.n = start
        while first:
            if stream.tell() + len(first) > end:
                _restart(stream)  # what came before is no part of this file either
                raise _Refusal(f"sends more than the {end:,} bytes that the file has")
            stream.write(first)
            bar.update(len(first))
            first = next(chunks, b"")
    if total is not None and stream.tell() < total:
        raise requests.ConnectionError("closed the connection too early")


def _ask(session: requests.Session, url: str, headers: Mapping[str, str]) -> requests.Response:
    """Return the answer to a request as soon as its headers arrive; follow redirections to permitted targets.

    `requests` would follow a redirection from https to http. It also does not bound how long the headers may take: a
    thread is waited for, and abandoned if necessary.
    """
    for _ in range(REDIRECTIONS):
        response = _within(
            lambda url=url: session.get(url, headers=headers, stream=True, timeout=TIMEOUT, allow_redirects=False)
        )
        try:
            target = session.get_redirect_target(response)
            if target is None:
                return response
            before, url = url, urljoin(url, target)
        except ValueError as error:  # not UTF-8, or an invalid address
            raise _Refusal(f"leads on to what is no address ({why(error)})") from None
        response.close()
        allowed = ("https",) if urlsplit(before).scheme == "https" else ("http", "https")
        if urlsplit(url).scheme not in allowed:
            raise _Refusal(f"leads on to {shown(url, 100)}, which is not {' or '.join(allowed)}")
    raise _Refusal(f"leads on to another address more than {REDIRECTIONS} times")


def _within(ask: Callable[[], requests.Response]) -> requests.Response:
    answer: list[requests.Response | BaseException] = []

    def work() -> None:
        try:
            answer.append(ask())
        except BaseException as error:
            answer.append(error)

    thread = threading.Thread(target=work, name="aem-download", daemon=True)
    thread.start()
    thread.join(WINDOW)
    if not answer:
        raise _Refusal(f"did not begin its answer within {WINDOW:g} s")
    if isinstance(answer[0], ValueError) and not isinstance(answer[0], requests.RequestException):
        raise _Refusal(f"cannot be asked ({why(answer[0])})")  # headers or an address that cannot be read
    if isinstance(answer[0], BaseException):
        raise answer[0]
    return answer[0]


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """Yield the body without decompression: each piece as soon as it arrives, so that a slow server is noticed.

    Raises:
        requests.RequestException: the connection broke.
        _Refusal: the server is too slow.
    """
    raw = response.raw
    read = getattr(raw, "read1", raw.read)  # urllib3 before 2.1 waits for the full amount that was requested
    began, sent = time.monotonic(), 0
    try:
        while piece := read(CHUNK):
            yield piece
            sent += len(piece)
            if (passed := time.monotonic() - began) > WINDOW:
                if sent < SLOWEST * passed:
                    raise _Refusal(f"sends too slowly ({sent:,} bytes in {passed:.0f} s)")
                began, sent = time.monotonic(), 0
    except urllib3.exceptions.ReadTimeoutError as error:
        raise requests.Timeout(error) from error
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        if isinstance(error, requests.RequestException):
            raise
        raise requests.ConnectionError(error) from error


def _place(response: requests.Response) -> tuple[int, int | None]:
    """Return the position of the first byte that is sent, and the size of the whole file."""
    if response.status_code == 206:
        match = re.fullmatch(
            r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)", response.headers.get("Content-Range", "")
        )
        if match is None:
            raise _Refusal("answered with a part of the file without saying which")
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if re.fullmatch("[0-9]{1,18}", length) else None


def _restart(stream: BinaryIO) -> None:
    stream.truncate(0)
    stream.seek(0)


def _digest(stream: BinaryIO, size: int, title: str, progress: bool) -> str:
    digest = hashlib.sha256()
    with bar_of(title, size, progress) as bar:
        while block := stream.read(CHUNK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _title(page: bytes) -> str:
    match = re.search(rb"<title[^>]*>(.*?)</title>", page, re.IGNORECASE | re.DOTALL)
    words = " ".join(match[1].decode(errors="replace").split()) if match else ""
    return f' ("{harmless(words[:80])}")' if words else ""


def _plain(error: Exception) -> str:
    """Return a short clause without the text that requests and urllib3 wrap around each other's messages."""
    text = str(error)
    if "resolve" in text or "Name or service not known" in text:
        return "cannot be found (no network, or no name service)"
    if "refused" in text:
        return "refused the connection"
    if isinstance(error, requests.exceptions.ProxyError):
        return "cannot be reached through the proxy (HTTPS_PROXY)"
    if isinstance(error, requests.exceptions.SSLError):
        return "has a certificate that this machine does not trust"
    if isinstance(error, requests.Timeout):
        return "does not answer in time"
    return "broke the connection off again and again"
