"""Checksums of prepared data: small files are checked at opening, large files block by block as they are read.

The index and the records of all products are gigabytes, of which an episode reads a few kilobytes. So each file has a
checksum for every 256 kB, and a block is checked the first time that any part of it is requested.
"""

from __future__ import annotations

import os
import zipfile
from array import array
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from agent_loops.reading import reason, require_file, shown
from agent_loops.webshop.records import CatalogueError

BLOCK = 1 << 18
BLOCKS = "blocks.bin"
AGAIN = "remove that directory, and the data are prepared again"


def seal(directory: Path) -> dict[str, Any]:
    """Write the checksums of all files below a directory; return what `Seal` needs to know about them, as JSON."""
    sizes: dict[str, int] = {}
    sums = array("I")
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                sums.append(crc32(block))
            sizes[path.relative_to(directory).as_posix()] = file.tell()
    content = np.asarray(sums, dtype="<u4").tobytes()
    (directory / BLOCKS).write_bytes(content)
    return {"files": sizes, "blocks": blake2b(content, digest_size=16).hexdigest()}


class Seal:
    """The checksums that `seal` wrote.

    Safe to share between threads: a block may be checked twice, but is never left unchecked.

    Args:
        directory: the directory with the files.
        written: what `seal` returned.

    Raises:
        CatalogueError: a file is missing or has another size, or the checksums are damaged.
    """

    def __init__(self, directory: Path, written: Any) -> None:
        self._directory = directory
        self._first: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        files = written.get("files") if isinstance(written, dict) else None
        if not isinstance(files, Mapping):
            raise CatalogueError(f"{directory / 'prepared.json'} names no checksums: {AGAIN}")
        total = 0
        for name, size in files.items():
            if not isinstance(size, int) or size < 0 or ".." in Path(name).parts or Path(name).is_absolute():
                raise CatalogueError(f"{directory / 'prepared.json'}: {shown(name)} of {shown(size)} bytes is no file")
            try:
                found = require_file(directory / name).st_size
            except OSError as error:
                raise CatalogueError(f"{directory / name} cannot be read ({reason(error)}): {AGAIN}") from None
            if found != size:
                raise CatalogueError(f"{directory / name} has {found:,} bytes, and {size:,} were written: {AGAIN}")
            self._first[name], self._sizes[name] = total, size
            total += -(-size // BLOCK)
        path = directory / BLOCKS
        try:
            require_file(path)
            content = path.read_bytes()
        except OSError as error:
            raise CatalogueError(f"{path} cannot be read ({reason(error)}): {AGAIN}") from None
        if len(content) != 4 * total or blake2b(content, digest_size=16).hexdigest() != written.get("blocks"):
            raise CatalogueError(f"{path} is damaged: {AGAIN}")
        self._sums = np.frombuffer(content, dtype="<u4").tolist()
        self._checked = bytearray(total)
        self._open: dict[str, int] = {}

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)

    def check(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Compare the blocks of a part of a file with their checksums, unless that has been done.

        Args:
            name: the file's path below the directory.
            start, stop: the range of bytes; all by default.

        Raises:
            CatalogueError: the message names the file and the damaged bytes, or says that there is no such part.
        """
        size = self._sizes.get(name)
        stop = size if stop is None else stop
        if size is None or stop is None or not 0 <= start <= stop <= size:
            raise CatalogueError(f"{self._directory / name} has no bytes {start} to {stop}: {AGAIN}")
        for block in range(start // BLOCK, -(-stop // BLOCK)):
            place = self._first[name] + block
            if self._checked[place]:
                continue
            if crc32(os.pread(self._descriptor(name), BLOCK, block * BLOCK)) != self._sums[place]:
                raise CatalogueError(
                    f"{self._directory / name} is damaged between bytes {block * BLOCK:,} and "
                    f"{min((block + 1) * BLOCK, size):,}: {AGAIN}"
                )
            self._checked[place] = 1

    def check_all(self, but: tuple[str, ...]) -> None:
        """Check all files completely except those with these names, which are checked as they are read."""
        for name in self._sizes:
            if name.rpartition("/")[2] not in but:
                self.check(name)

    def _descriptor(self, name: str) -> int:
        if name not in self._open:
            try:
                descriptor = os.open(self._directory / name, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise CatalogueError(f"{self._directory / name} cannot be read ({reason(error)}): {AGAIN}") from None
            if self._open.setdefault(name, descriptor) != descriptor:
                os.close(descriptor)  # another thread was first
        return self._open[name]


def load_array(path: Path, kind: type[np.generic]) -> np.memmap:
    """Map one of the arrays of prepared data.

    Raises:
        CatalogueError: the file is not such an array.
    """
    try:
        require_file(path)
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (
        OSError,
        ValueError,
        EOFError,
        SyntaxError,
        TypeError,
        OverflowError,
        KeyError,
        zipfile.BadZipFile,
    ) as error:
        raise CatalogueError(f"{path} is no array ({reason(error)}): {AGAIN}") from None
    if not isinstance(found, np.memmap) or found.ndim != 1 or found.dtype != np.dtype(kind):
        raise CatalogueError(f"{path} is not a row of {np.dtype(kind)}: {AGAIN}")
    return found


def check_ends(path: Path, ends: NDArray, size: int) -> None:
    """Raise a `CatalogueError` unless these are the ends of consecutive parts, up to `size`."""
    if (np.diff(ends, prepend=0) < 0).any() or (int(ends[-1]) if len(ends) else 0) != size:
        raise CatalogueError(f"{path} does not fit the {size:,} entries that it divides: {AGAIN}")
