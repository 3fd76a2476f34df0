"""Files from outside, read so that a damaged one is refused and never read as something else.

What is wrong with a file is a `FileError`: one class for each kind of file, and one line that names the file and the
place in it. Nothing of the file reaches a terminal as it is: `harmless` and `shown` quote it.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import reprlib
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from agent_loops.errors import AgentLoopError, InputError

LARGEST = 256 << 20
"""Bytes of a file that is read whole, unless its reader knows better."""

_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxother, _REPR.maxlong = 3, 200, 60
_PLAIN = re.compile(r"[\x20-\x7e\n]*")


def harmless(text: str) -> str:
    r"""The text with everything that does not print, line breaks apart, as Python would escape it.

    Control characters move a terminal's cursor, set its title and answer for its user; marks of direction make a text
    read as another; a lone surrogate cannot be printed at all. Doing it twice changes nothing.

    Example:
        >>> print(harmless("red \x1b[31m, back \u202e, é"))
        red \x1b[31m, back \u202e, é
    """
    if _PLAIN.fullmatch(text):
        return text
    return "".join(one if one == "\n" or one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def shown(value: Any, characters: int = 60) -> str:
    r"""What stands somewhere, for a message: as Python writes it, on one line, cut, and harmless.

    Example:
        >>> shown("a\nb"), shown("x" * 100, 8), shown([None, 1e400])
        ("'a\\nb'", "'xxxxxxx…", '[None, inf]')
    """
    # of a long text only so much is written out as can be seen
    text = repr(value[: characters + 1]) if isinstance(value, str | bytes) else " ".join(_REPR.repr(value).split())
    text = harmless(text)
    return text if len(text) <= characters else f"{text[:characters]}…"


class FileError(AgentLoopError, ValueError):
    """A file that cannot be read as what it should be. The message names it, and is fit for a terminal."""

    def __init__(self, message: str) -> None:
        super().__init__(harmless(message))


def require_file(path: Path) -> os.stat_result:
    """The state of a plain file; a pipe or a device in its place would be waited for without end.

    Raises:
        OSError: there is no such file, or it is something else.
    """
    try:
        state = path.stat()
    except ValueError as error:  # a NUL in its name
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(state.st_mode):
        raise OSError(errno.EINVAL, "Not a plain file", str(path))
    return state


def read_bytes(path: Path, at_most: int = LARGEST) -> bytes:
    """The content of a plain file.

    Raises:
        OSError: it cannot be read, is no plain file, or is larger than `at_most`.
    """
    require_file(path)
    with path.open("rb") as file:
        content = file.read(at_most + 1)
    if len(content) > at_most:
        raise OSError(errno.EFBIG, f"larger than {at_most / 1e6:,.0f} MB, which no such file is", str(path))
    return content


def reason(error: BaseException) -> str:
    """What went wrong, on one line, without the path that an OSError may carry."""
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    return harmless(" ".join(text.split()))[:300] or type(error).__name__


def parse_json(text: str | bytes, not_a_number: bool = False) -> Any:
    r"""Strict JSON in UTF-8.

    Args:
        text: all of it.
        not_a_number: take NaN and the infinities, which are no JSON.

    Raises:
        ValueError: says why, without naming the file: no JSON, another encoding, a name that stands twice in one
            object, a number beyond all floats, more levels than any file of ours has.

    Example:
        >>> parse_json(b'{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ValueError: the name 'a' stands twice in one object
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        if text.startswith("\ufeff"):
            raise InputError("it begins with a byte order mark: save it as UTF-8 without one")
        return (_LOOSE if not_a_number else _STRICT).decode(text)
    except RecursionError:
        raise InputError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise InputError(f"it is not UTF-8 text, at byte {error.start:,}") from None


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON in which no name stands twice: `object_pairs_hook` of a decoder.

    Raises:
        ValueError: one does.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InputError(f"the name {shown(_twice(name for name, _ in pairs))} stands twice in one object")
    return found


def finite(text: str) -> float:
    """A number of JSON: `parse_float` of a decoder.

    Raises:
        ValueError: it is beyond all floats.
    """
    value = float(text)
    if not math.isfinite(value):
        raise InputError(f"the number {shown(text)} is too large")
    return value


def _twice(names: Iterable[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))


def _no_number(text: str) -> float:
    raise InputError(f"{text} is no number")


_STRICT = json.JSONDecoder(object_pairs_hook=once, parse_float=finite, parse_constant=_no_number)
_LOOSE = json.JSONDecoder(object_pairs_hook=once)
