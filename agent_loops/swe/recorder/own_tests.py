"""The tests' own files and code: what runs under a test's name must be what its file contains."""

import sys
import types

from .facts import digest, stamp


def make_own_tests(facts, blame, deceit):
    """Return `note_items`, `check_file` and `check_test`."""
    tree, tests, added, digests = facts.tree, facts.tests, facts.added, facts.digests
    made, is_of_patch = blame.made, blame.is_of_patch
    stamps, items = {path: stamp(path) for path in tests}, {}

    def note_items(collected):
        """Record what is to run, before any of it does."""
        for item in collected:
            function = function_of(item)
            code = getattr(function, "__code__", None)
            if isinstance(code, types.CodeType) and code.co_filename in tests:
                items[item.nodeid] = code
                facts.test_codes[id(code)] = code
            marks = getattr(function, "pytestmark", None)
            if isinstance(marks, list):  # pytest has read them; they hold expected values
                marks[:] = [mark for mark in marks if getattr(mark, "name", "") != "parametrize"]

    def check_file(file):
        if file in digests and stamps.get(file) != stamp(file):
            stamps[file] = stamp(file)
            if digest(file) != digests[file]:
                deceit(f"{file[len(tree) :]} was changed while the tests ran")

    def check_test(item):
        function = function_of(item)
        file = str(getattr(item, "path", None) or item.fspath)
        if "runtest" in vars(item):
            deceit(f"{item.nodeid}: its runtest was replaced")
        _, codes = facts.codes.get(file, (None, None))
        check_file(file)
        code = getattr(function, "__code__", None)
        if not isinstance(code, types.CodeType):
            return
        codes = codes or {}
        known = items.get(item.nodeid, code)
        of_file = id(code) in codes
        name = getattr(item, "originalname", None) or item.name.partition("[")[0]
        if known is not code and (of_file or is_of_patch(code)):
            deceit(f"{item.nodeid}: its code was replaced")
        elif of_file or is_inherited(item, name):
            return
        elif is_of_patch(code) and (code.co_filename in added or id(code) in made or code.co_filename[:1] != "<"):
            deceit(f"{item.nodeid}: its code was replaced")
        elif code.co_filename == file or code.co_filename.startswith("<"):  # noqa: SIM102
            if any(inner.co_name == name for inner in codes.values()):
                deceit(f"{item.nodeid}: its code was replaced")

    def function_of(item):
        function = getattr(item, "obj", None)
        for _ in range(100):
            inner = getattr(function, "__wrapped__", None) or getattr(function, "__func__", None)
            if inner is None:
                break
            function = inner
        return function

    def is_inherited(item, name):
        """Return whether a test comes from a class that the product offers for tests to inherit."""
        for kind in getattr(getattr(item, "cls", None), "__mro__", ()):
            if name in vars(kind):
                return getattr(sys.modules.get(kind.__module__), "__file__", None) in added
        return False

    return types.SimpleNamespace(note_items=note_items, check_file=check_file, check_test=check_test)
