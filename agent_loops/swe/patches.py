"""Which parts of an agent's patch count, and patches between two texts."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from pathlib import PurePosixPath

TEST_DIRECTORIES = frozenset({"test", "tests", "Test", "Tests", "testing", "__tests__", "r2e_tests"})
CONFIGURATION = frozenset(
    # what configures pytest, nose or tox, or git's treatment of files; what Python runs before the tests do
    {"conftest.py", "pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "pyproject.toml", "setup.cfg"}
    | {"tox.ini", "noxfile.py", "sitecustomize.py", "usercustomize.py", ".gitattributes", ".coveragerc", "run_tests.sh"}
)
_RUNNERS = frozenset({"pytest", "_pytest", "pluggy", "iniconfig", "py", "unittest"})  # at the top, in their place
_STEMS = frozenset({"conftest", "sitecustomize", "usercustomize"})  # as a module, a package, or compiled
_COMPILED = (".pyc", ".pyo", ".so", ".pyd", ".dll", ".dylib", ".pth", ".egg-link")  # nobody reads what these do
_METADATA = (".dist-info", ".egg-info", ".egg")  # entry points, by which pytest finds plugins


def is_protected(path: str) -> bool:
    """Whether an agent's edit of a file is left out when its patch is graded.

    So are tests (by the names of the file and of its directories), files that configure the test run or that Python
    reads first, compiled code, and the metadata of installed packages.

    Args:
        path: the file, from the top of the repository.

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
        or name.endswith(_COMPILED)
        or any(part.endswith(_METADATA) or part == "EGG-INFO" or part.split(".")[0] in _STEMS for part in parts)
        or not TEST_DIRECTORIES.isdisjoint(parts)
    )


def patched_paths(patch: str) -> set[str]:
    """Return the files that a trusted patch touches, by its `---` and `+++` lines.

    Example:
        >>> sorted(patched_paths("--- a/old.py\\n+++ b/new.py\\n@@ -1 +1 @@\\n-a\\n+b\\n"))
        ['new.py', 'old.py']
    """
    return {match[1] for match in re.finditer(r"^(?:--- a/|\+\+\+ b/)([^\t\n]+)", patch, re.MULTILINE)}


def text_patch(path: str, old: str | None, new: str | None) -> str:
    """Return git's patch that turns one text of a file into another; None where there is no such file.

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
    # keepends by "\n" alone: splitlines would also split at form feeds and the like
    before, after = ([line for line in re.split(r"(?<=\n)", text or "") if line] for text in (old, new))
    hunks = list(difflib.unified_diff(before, after))[2:]
    if not hunks and (old is None) == (new is None):
        return ""
    mode = "new file mode 100644\n" if old is None else "deleted file mode 100644\n" if new is None else ""
    lines = [f"diff --git a/{path} b/{path}\n{mode}"]
    if hunks:
        lines.append(f"--- {'/dev/null' if old is None else 'a/' + path}\n")
        lines.append(f"+++ {'/dev/null' if new is None else 'b/' + path}\n")
    lines += [line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in hunks]
    return "".join(lines)


def glob_escaped(path: str, special: Collection[str] = "\\*?[") -> str:
    """Return a path as a pattern of git that matches it alone."""
    return "".join(f"\\{letter}" if letter in special else letter for letter in path)
