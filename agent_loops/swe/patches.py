"""The parts of an agent's patch that count, and patches between two texts."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath

TEST_DIRECTORIES = frozenset({"test", "tests", "Test", "Tests", "testing", "__tests__", "r2e_tests"})
CONFIGURATION = frozenset(
    # files that configure pytest, nose, tox or git's treatment of files, or that Python runs before the tests
    {"conftest.py", "pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "pyproject.toml", "setup.cfg"}
    | {"tox.ini", "noxfile.py", "sitecustomize.py", "usercustomize.py", ".gitattributes", ".coveragerc", "run_tests.sh"}
)
_RUNNERS = frozenset({"pytest", "_pytest", "pluggy", "iniconfig", "py", "unittest"})  # as top-level packages
_STEMS = frozenset({"conftest", "sitecustomize", "usercustomize"})  # as a module, a package, or a compiled file
_COMPILED = (".pyc", ".pyo", ".so", ".pyd", ".dll", ".dylib", ".pth", ".egg-link")  # content that cannot be reviewed
_METADATA = (".dist-info", ".egg-info", ".egg")  # entry points, by which pytest finds plugins


def is_protected(path: str) -> bool:
    """Return whether an agent's edit of a file is left out when its patch is graded.

    This holds for tests (by the names of the file and of its directories), files that configure the test run or that
    Python reads first, compiled code, and the metadata of installed packages.

    Args:
        path: the file, relative to the top of the repository.

    Example:
        >>> [is_protected(path) for path in ("src/a.py", "tests/data.json", "src/test_a.py", "setup.cfg", "src/a.so")]
        [False, True, True, True, True]
    """
    parts = PurePosixPath(path).parts
    name = parts[-1] if parts else ""
    stem = name.split(".")[0]
    is_test = name.endswith(".py") and (stem.startswith("test_") or stem.endswith("_test") or stem in ("test", "tests"))
    return (
        is_test
        or (bool(parts) and (parts[0].split(".")[0] if name.endswith(".py") else parts[0]) in _RUNNERS)
        or name in CONFIGURATION
        or name.lower().endswith(_COMPILED)
        or any(part.lower().endswith((*_METADATA, "egg-info")) or part.split(".")[0] in _STEMS for part in parts)
        or not TEST_DIRECTORIES.isdisjoint(parts)
    )


@dataclass(frozen=True)
class Outline:
    """A patch's headers and line counts.

    Attributes:
        paths: the files that it touches, by every name in its headers; bytes that are not UTF-8 are surrogates.
        after: the files that exist afterwards and have changed lines or another name, in the patch's order.
        files: number of parts, one per file.
        added: number of lines that its hunks add.
        removed: number of lines that its hunks remove.
        missing: number of lines that its last hunk lacks, of the old file and of the new one.
    """

    paths: frozenset[str]
    after: tuple[str, ...]
    files: int
    added: int
    removed: int
    missing: tuple[int, int]


_HUNK = re.compile(r"@@ -\d{1,18}(?:,(\d{1,18}))? \+\d{1,18}(?:,(\d{1,18}))? @@")
_GIT_PART = "diff --git "
_NAMING = ("rename from ", "rename to ", "copy from ", "copy to ")
_CHOPPED_LINES = 3  # as in GNU patch: the number of context lines that may be blank at a hunk's end


def read_outline(patch: str) -> Outline:
    r"""Read a patch's headers and count its lines; lines of a hunk are content, whatever they look like.

    Example:
        >>> outline = read_outline("--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n--- a/no.py\n+++ b/no.py\n")
        >>> sorted(outline.paths), outline.files, outline.added, outline.removed
        (['x.py'], 1, 1, 1)
    """
    paths: set[str] = set()
    after: dict[str, None] = {}
    files = added = removed = old = new = 0
    of_git = False
    for line in (patch[:-1] if patch.endswith("\n") else patch).split("\n"):
        if old > 0 or new > 0:
            kind = line[:1]
            if kind == "-":
                old, removed = old - 1, removed + 1
            elif kind == "+":
                new, added = new - 1, added + 1
            elif kind in ("", " ", "\r"):  # git also reads an empty line as a blank line of context
                old, new = old - 1, new - 1
            elif kind != "\\":
                old = new = 0  # the hunk ends too early
            if kind in ("-", "+", "", " ", "\r", "\\"):
                continue
        line = line.rstrip("\r")
        if line.startswith(_GIT_PART):
            of_git, files = True, files + 1
            paths.add(_of_both(line[len(_GIT_PART) :]))
        elif line.startswith(_NAMING):
            name = _name(line.split(" ", 2)[2])
            paths.add(name)
            if " to " in line[:10]:
                after[name] = None
        elif line.startswith(("--- ", "+++ ")):
            name = _name(line[4:])
            name = "" if name == "/dev/null" else name.partition("/")[2] or name
            paths.add(name)
            if line.startswith("+"):
                files += not of_git
                after[name] = None
        elif hunk := _HUNK.match(line):
            old, new = (1 if count is None else int(count) for count in hunk.groups())
    after.pop("", None)
    return Outline(frozenset(paths - {""}), tuple(after), files, added, removed, (old, new))


def patched_paths(patch: str) -> set[str]:
    r"""Return the files that a trusted patch touches, including renamed, copied, binary and quoted ones.

    Example:
        >>> sorted(patched_paths('--- a/old.py\n+++ "b/n\\303\\251w.py"\n@@ -1 +1 @@\n-a\n+b\n'))
        ['néw.py', 'old.py']
    """
    return set(read_outline(patch).paths)


def _of_both(names: str) -> str:
    """Return the name in `a/NAME b/NAME`; empty if there are two names, which other lines then give."""
    if names.startswith('"'):
        first, rest = _unquoted(names)
        second = _name(rest[1:])
    else:
        half = len(names) // 2
        first, second = names[:half], names[half + 1 :]
    first, second = (name.partition("/")[2] for name in (first, second))
    return first if first == second else ""


def _name(text: str) -> str:
    return _unquoted(text)[0] if text.startswith('"') else text.partition("\t")[0]


_QUOTED = re.compile(r'[^"\\]+|\\(?:[0-7]{3}|.)')
_LETTERS = {"a": "\a", "b": "\b", "t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}


def _unquoted(text: str) -> tuple[str, str]:
    """Return a name unquoted from git's C-style quotes, and the rest of the text."""
    name, place = bytearray(), 1
    while part := _QUOTED.match(text, place):
        place, found = part.end(), part[0]
        if not found.startswith("\\"):
            name += found.encode("utf-8", "surrogateescape")
        elif len(found) == 4:
            name.append(int(found[1:], 8) & 255)
        else:
            name += _LETTERS.get(found[1], found[1]).encode("utf-8", "surrogateescape")
    return name.decode("utf-8", "surrogateescape"), text[place + 1 :]


def _quoted(name: str) -> str:
    """Return a name as git's headers write it."""
    data = name.encode("utf-8", "surrogateescape")
    if all(32 <= byte < 127 and byte not in b'"\\' for byte in data):
        return name
    letters = {ord(letter): f"\\{short}" for short, letter in _LETTERS.items()}
    return '"{}"'.format(
        "".join(letters.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}") for byte in data)
    )


def patch_bytes(patch: str) -> bytes:
    r"""Return a patch as bytes for git, with bytes that are not UTF-8 and with its stripped end restored.

    Such bytes are the surrogates U+DC80 to U+DCFF of `errors="surrogateescape"`; other surrogates, which represent no
    byte, become question marks. A stripped patch gets its last line break back, and up to three blank lines of context
    that its last hunk lacks, as in GNU patch.

    Example:
        >>> patch_bytes("--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n-a\n+\udce9")
        b'--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n-a\n+\xe9\n \n'
    """
    data = re.sub("[\ud800-\udc7f\udd00-\udfff]", "?", patch).encode("utf-8", "surrogateescape")
    if not data.strip():
        return data
    if not data.endswith(b"\n"):
        data += b"\n"
    old, new = read_outline(patch).missing
    return data + b" \n" * old if 0 < old == new <= _CHOPPED_LINES else data


def text_patch(path: str, old: str | None, new: str | None) -> str:
    """Return git's patch that turns one text of a file into another; None as a text means that the file does not exist.

    Example:
        >>> print(text_patch("a.py", "x = 1\\n", "x = 2\\n"))
        diff --git a/a.py b/a.py
        --- a/a.py
        +++ b/a.py
        @@ -1 +1 @@
        -x = 1
        +x = 2
        <BLANKLINE>
    """
    # split at "\n" only: splitlines would also split at form feeds and the like
    old_lines, new_lines = ([line for line in re.split(r"(?<=\n)", text or "") if line] for text in (old, new))
    hunks = list(difflib.unified_diff(old_lines, new_lines))[2:]
    if not hunks and (old is None) == (new is None):
        return ""
    mode = "new file mode 100644\n" if old is None else "deleted file mode 100644\n" if new is None else ""
    before, after = _quoted(f"a/{path}"), _quoted(f"b/{path}")
    lines = [f"diff --git {before} {after}\n{mode}"]
    if hunks:
        tab = "\t" if " " in path else ""  # as git does, to mark the end of a name with blanks
        lines.append(f"--- {'/dev/null' if old is None else before + tab}\n")
        lines.append(f"+++ {'/dev/null' if new is None else after + tab}\n")
    lines += [line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in hunks]
    return "".join(lines)


def glob_escaped(path: str, special: Collection[str] = "\\*?[") -> str:
    """Return a git pattern that matches only this path."""
    return "".join(f"\\{letter}" if letter in special else letter for letter in path)
