"""A stand-in for a sandbox without isolation, for tests: bash in a folder of this machine, run by harmless scripts."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

from agent_loops.swe.environment import SweEnvironment
from agent_loops.swe.grading import Grade
from agent_loops.swe.sandbox import Executed, SandboxClosedError, SandboxError
from agent_loops.swe.tasks import SweTask


class HostTree:
    def __init__(self, tree: Path, output_kb: int = 64):
        self.tree = str(tree)
        self.closed = False
        self.commands: list[str] = []
        self._output_kb = output_kb

    def execute(self, command, *, seconds, stdin=None, output_kb=None):
        if self.closed:
            raise SandboxClosedError("the sandbox is closed")
        self.commands.append(command)
        bash = ["bash", "-c", command]
        env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        try:
            done = subprocess.run(
                bash, cwd=self.tree, env=env, input=stdin or b"", stdout=-1, stderr=subprocess.STDOUT, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return Executed("", 124, timed_out=True)
        most = 1024 * (output_kb or self._output_kb)
        return Executed(done.stdout[:most].decode(errors="replace"), done.returncode, cut=len(done.stdout) > most)

    def close(self):
        self.closed = True


TASK = {"task": "sums-1"}


class HostSwe:
    """A benchmark of one task in such folders: `sums.py` subtracts where it should add; a patch that adds solves it."""

    name = "swe"

    def __init__(self, directory: str, fault: str = ""):
        self._directory, self._fault = Path(directory), fault
        self.sandboxes: list[HostTree] = []
        self._number = itertools.count()

    def make(self) -> SweEnvironment:
        def find(task):
            return SweTask(task["task"], "sums", "HEAD", "add(2, 3) gives -1.", "", "", ("t",), (), "pytest")

        return SweEnvironment(find, self._open, self._grade, command_seconds=30, characters=2000)

    def _open(self, task: SweTask) -> HostTree:
        tree = self._directory / f"tree{next(self._number)}"
        tree.mkdir(parents=True)
        (tree / "sums.py").write_text("def add(a, b):\n    return a - b\n")
        sandbox = HostTree(tree)
        self.sandboxes.append(sandbox)
        return sandbox

    def _grade(self, task: SweTask, patch: str) -> Grade:
        if self._fault == "grade":
            raise SandboxError("no sandbox for the tests")
        right = "+    return a + b" in patch
        return Grade(right, True, "" if right else "one test fails", (int(right), 1), (0, 0))
