"""Damaged files for tests of readers: one list of possible damage, and the property that must hold for each.

AEM_FUZZ=N requests N damaged contents per reader instead of a few dozen.
"""

from __future__ import annotations

import operator
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

VALUES = (
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1", b"9" * 5000, b"null", b"true", b'""', b"[]", b"{}"),
    b'"\\ud800"',
)
TYPES = (
    *(b"<!DOCTYPE html>", b"PK\x03\x04", b"PAR1", b"PAR1PAR1", b"\x93NUMPY", b"\x80\x04.", b"\x1f\x8b\x08"),
    *(b"[]", b"{}", b"3", b'"x"', b"null", b"[[]]", b"---"),
)
ANYTHING = object()
"""The expected content of a file without a digest, in which a letter of a text may change unnoticed."""


def count(usual: int = 40) -> int:
    """Return how many damaged contents to try."""
    return int(os.environ.get("AEM_FUZZ", usual))


def damage(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    """Return a damaged content, and what was done to it."""
    kind = chance.choice(list(_KINDS))
    return kind, _KINDS[kind](content, chance)


def contents(content: bytes, seed: str, number: int | None = None) -> Iterator[tuple[str, bytes]]:
    """Yield `number` damaged contents, always the same, each with a name for the failure's message."""
    for place in range(count() if number is None else number):
        kind, damaged = damage(content, random.Random(f"{seed} {place}"))
        if damaged != content:
            yield f"{seed} {place}: {kind}", damaged


def check(
    read: Callable[[], Any], path: Path, expected: Any, wrong: type[Exception], label: str, same: Any = operator.eq
) -> bool:
    """Check that reading gives the former content, or the reader's own error on one line that names the file.

    Args:
        read: reads `path` and what depends on it.
        path: the damaged file.
        expected: the content of the intact file; `ANYTHING` if any content will do.
        wrong: the reader's error class.
        label: what was done, for the failure's message.
        same: compares two contents; `==` by default.

    Returns:
        Whether the file was refused.
    """
    try:
        found = read()
    except wrong as error:
        text = str(error)
        assert str(path) in text or path.name in text, f"{label}: the message does not name the file: {text}"
        assert "\n" not in text and text.isprintable(), f"{label}: the message is not one harmless line: {text!r}"
        return True
    except Exception as error:
        raise AssertionError(f"{label}: {type(error).__name__}: {error}") from error
    assert expected is ANYTHING or same(found, expected), f"{label}: read as something else"
    return False


def in_place_of(path: Path) -> Iterator[str]:
    """Replace a file by other kinds of things in turn, and restore it at the end."""
    aside = path.with_name(f"{path.name}.aside")
    path.rename(aside)
    try:
        yield "vanished"
        path.mkdir()
        yield "a directory"
        path.rmdir()
        os.mkfifo(path)
        yield "a pipe that nobody writes to"
        path.unlink()
        path.symlink_to("/dev/zero")
        yield "a device without end"
        path.unlink()
        path.symlink_to(path.name)
        yield "a link to itself"
        path.unlink()
        if os.geteuid():
            shutil.copy(aside, path)
            path.chmod(0)
            yield "no permission"
            path.unlink()
    finally:
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            path.rmdir()
        aside.rename(path)


def _place(content: bytes, chance: random.Random) -> int:
    return chance.randrange(len(content)) if content else 0


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: _place(content, chance)]


def _flip_bit(content: bytes, chance: random.Random) -> bytes:
    if not content:
        return b""
    place = _place(content, chance)
    return content[:place] + bytes([content[place] ^ (1 << chance.randrange(8))]) + content[place + 1 :]


def _flip_byte(content: bytes, chance: random.Random) -> bytes:
    place = _place(content, chance)
    return content[:place] + bytes([chance.randrange(256)]) + content[place + 1 :]


def _flip_end(content: bytes, chance: random.Random) -> bytes:
    """Change a byte near the head or the end, where binary formats describe the rest."""
    near = min(len(content), 300)
    place = chance.choice((chance.randrange(near), len(content) - 1 - chance.randrange(near))) if near else 0
    return content[:place] + bytes([chance.randrange(256)]) + content[place + 1 :]


def _zeros(content: bytes, chance: random.Random) -> bytes:
    """Zero a block, as if it never reached the disk."""
    place, length = _place(content, chance), chance.choice((1, 16, 512, 4096))
    return content[:place] + bytes(min(length, len(content) - place)) + content[place + length :]


def _missing(content: bytes, chance: random.Random) -> bytes:
    place = _place(content, chance)
    return content[:place] + content[place + chance.choice((1, 8, 100, 4096)) :]


def _twice(content: bytes, chance: random.Random) -> bytes:
    place, length = _place(content, chance), chance.choice((1, 30, 1000))
    return content[: place + length] + content[place:]


def _deep(content: bytes, chance: random.Random) -> bytes:
    return chance.choice((b"[", b'{"a":', b"(", b"{", b"- ")) * chance.choice((2_000, 100_000))


def _value(content: bytes, chance: random.Random) -> bytes:
    """Replace a value behind a colon or a comma."""
    marks = [place for place, one in enumerate(content[:200_000]) if one in b":,["]
    place = chance.choice(marks) + 1 if marks else 0
    stop = min([found for mark in (b",", b"}", b"]", b"\n") if (found := content.find(mark, place)) >= 0] or [place])
    return content[:place] + chance.choice(VALUES) + content[stop:]


def _recoded(content: bytes, chance: random.Random) -> bytes:
    text = content.decode("latin-1")
    return text.encode(chance.choice(("utf-16", "utf-32-le", "utf-8-sig")), "ignore") if text else b"\xff\xfe"


_KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "empty": lambda content, chance: b"",
    "cut": _cut,
    "cut near the end": lambda content, chance: content[: -chance.randint(1, 40)],
    "a bit flipped": _flip_bit,
    "another bit flipped": _flip_bit,
    "a byte flipped": _flip_byte,
    "a byte flipped at an end": _flip_end,
    "zeros": _zeros,
    "a part missing": _missing,
    "a part twice": _twice,
    "something behind": lambda content, chance: content + chance.choice((b"\0", b"x", b"{}", b"\n]", content[:100])),
    "NUL bytes": lambda content, chance: b"\0" * chance.choice((1, 100, 5000)),
    "noise": lambda content, chance: chance.randbytes(chance.choice((1, 100, 5000))),
    "another type": lambda content, chance: chance.choice(TYPES),
    "another encoding": _recoded,
    "nested deeply": _deep,
    "another value": _value,
    "one more value": _value,
}
