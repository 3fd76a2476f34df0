"""A status for each test, derived from the exception that it raised, and two tests of our own."""

import os
import pathlib
import random
import sys
import tempfile
import types
import unittest

import pytest
from _pytest.runner import runtestprotocol as protocol


def make_statuses(facts, blame, channel):
    """Return `status`, `note`, `run_canaries`, and the results of the tests and our own (`statuses`, `canaries`)."""
    added, is_of_patch, deceit, send = facts.added, blame.is_of_patch, channel.deceit, channel.send
    statuses, canaries = {}, {}

    def status(item, call, report):
        raised = getattr(call.excinfo, "value", None) if call.excinfo is not None else None
        gave_up = isinstance(raised, (pytest.skip.Exception, pytest.xfail.Exception, unittest.SkipTest))
        by_patch = gave_up and any(is_on_added_line(entry) for entry in _chain(raised.__traceback__))
        if report.passed:
            if raised is not None:
                return "FAILED"
            if call.when != "call":
                return ""
            return "XPASS" if hasattr(report, "wasxfail") else "PASSED"
        if report.skipped and raised is not None and not by_patch:
            return "XFAIL" if hasattr(report, "wasxfail") else "SKIPPED"
        return "FAILED" if call.when == "call" else "ERROR"

    def is_on_added_line(entry):
        code = entry.tb_frame.f_code
        return code.co_filename in added and (entry.tb_lineno in added[code.co_filename] or is_of_patch(code))

    order = ["PASSED", "XPASS", "SKIPPED", "XFAIL", "FAILED", "ERROR"]  # the worst comes last

    def note(nodeid, word):
        before = statuses.get(nodeid)
        if word and (before is None or order.index(word) > order.index(before)):
            statuses[nodeid] = word

    def run_canaries(session):
        names = ["test_" + os.urandom(8).hex() for _ in range(2)]
        value = random.SystemRandom().getrandbits(40)
        text = "def %s():\n    assert %d + 1 == %d\n\n\ndef %s():\n    assert %d + 1 == %d\n"
        text %= (names[0], value, value + 1, names[1], value, value + 2)
        with tempfile.TemporaryDirectory(prefix="test_") as folder:
            file = os.path.join(folder, f"test_{os.urandom(8).hex()}.py")
            with open(file, "w") as stream:
                stream.write(text)
            paths = list(sys.path)
            items = list(_module(session, file).collect())
            for item in items:
                canaries[item.nodeid] = ""
                protocol(item, log=False, nextitem=None)  # pyright: ignore[reportArgumentType]
            sys.path[:] = paths
            sys.modules.pop(os.path.basename(file)[:-3], None)
        came_out = {item.name: canaries[item.nodeid] for item in items}
        passes, fails = (came_out.get(name, "") for name in names)
        if passes == "FAILED" or fails == "PASSED":
            deceit(f"of two tests of ours the one that must pass {passes}, the one that must fail {fails}")
        send("canaries", passes=passes, fails=fails)

    return types.SimpleNamespace(
        status=status, note=note, run_canaries=run_canaries, statuses=statuses, canaries=canaries
    )


def _chain(entry):
    while entry is not None:
        yield entry
        entry = entry.tb_next


def _module(session, file):
    if hasattr(session, "path"):
        return pytest.Module.from_parent(session, path=pathlib.Path(file))
    import py

    return pytest.Module.from_parent(session, fspath=py.path.local(file))  # pyright: ignore[reportArgumentType]
