"""The facts known before the first test runs: the supervisor's settings and the current files."""

import hashlib
import json
import os
import re
import sys
import time
import types


def read_settings():
    """Return the supervisor's settings and the pipe's end; None in a second pytest process of the same command."""
    file, pipe = (int(part) for part in os.environ.pop("AEM_RECORDER").split(","))
    with os.fdopen(file, "r+", encoding="utf-8") as stream:
        settings = json.load(stream)
        stream.seek(0)
        stream.truncate()  # the shell that started this process has the same file open
    if not settings:
        return None
    os.set_inheritable(pipe, False)
    for name, value in settings["environment"].items():  # the tests see the same environment as without this plugin
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != here]
    return settings, pipe


def make_facts(settings):
    """Return what the other parts need: the tree, the lines that the patch added to it, the tests' files."""
    tree = settings["tree"].rstrip("/") + "/"
    added: dict = {tree + path: set(lines) for path, lines in settings["added"].items()}
    for path in added:
        if _lines_are_odd(path):  # git and Python count lines differently: attribute all of them to the patch
            added[path] = range(1 << 30)
    tests = {tree + path for path in settings["tests"]}
    stems = {os.path.basename(path)[:-3] for path in tests}
    roots = tuple(os.path.join(os.path.realpath(path), "") for path in {sys.prefix, sys.base_prefix, *sys.path} if path)
    return types.SimpleNamespace(
        tree=tree,
        added=added,
        tests=tests,
        data={tree + path for path in settings["data"]},
        digests={path: digest(path) for path in tests},
        inodes={inode(path) for path in tests} - {None},
        names={os.path.basename(path) for path in tests},
        stems={stem for stem in stems if stem.startswith("test_") or stem.endswith("_test")},
        allowed=set(settings["allowed"]),
        started=time.time_ns() - 20_000_000,  # the file system's clock lags behind
        library=os.path.dirname(os.__file__),
        roots=tuple(root for root in roots if not root.startswith(tree) and root != "/"),
        codes={},  # by file of the tests: its code, and all code in it
        test_codes={},  # the tests' functions
        ran=set(),  # files of the patch that ran
    )


def digest(path):
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return None


def inode(path):
    try:
        found = os.stat(path)
        return found.st_dev, found.st_ino
    except (OSError, ValueError):
        return None


def stamp(path):
    """Return values that differ after every change of a file: nothing can set its ctime."""
    try:
        found = os.stat(path)
        return found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns
    except OSError:
        return None


def _lines_are_odd(path):
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return False
    cookie = re.match(rb"(?:[^\n]*\n)?[ \t\f]*#[^\n]*?coding[:=][ \t]*([-\w.]+)", data)
    plain = cookie is None or re.match(rb"(?i)(utf-?8|latin|iso-?8859|ascii|us-ascii|cp125|windows-125)", cookie[1])
    return not plain or re.search(rb"\r(?!\n)", data) is not None
