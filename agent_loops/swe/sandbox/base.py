"""What every sandbox offers, and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from agent_loops import arguments
from agent_loops.errors import AgentLoopError, InputError

_SYSTEM = frozenset(
    ("bin", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "proc", "root", "run", "sbin", "sys")
)
_SYSTEM |= {"tmp", "usr", "var"}


class SandboxError(AgentLoopError, RuntimeError):
    """A sandbox could not be had, or failed by itself; a command that fails is no such error."""


class SandboxClosedError(SandboxError):
    """A sandbox was used that had been closed, or was closed meanwhile: no doing of what runs in it."""


@dataclass(frozen=True)
class Executed:
    """What a command left.

    Attributes:
        output: standard output and error together, as text; bytes that are no UTF-8 are replaced.
        returncode: the exit status; 128 + n after signal n, 124 where its time was up, 137 where its memory was.
        timed_out: its time was up, and all that it had started was killed.
        cut: the output was longer than `output_kb`: a line in its middle says how much is left out.
    """

    output: str
    returncode: int
    timed_out: bool = False
    cut: bool = False


class Sandbox(Protocol):
    """One episode's machine: a tree of files that lasts until `close`, and commands that each begin afresh in it.

    Attributes:
        tree: where the repository lies, as commands see it; they start there.
    """

    tree: str

    def execute(
        self, command: str, *, seconds: float, stdin: bytes | None = None, output_kb: int | None = None
    ) -> Executed:
        """Run a command in bash. What it leaves in the background ends with it.

        Args:
            command: the command, as for `bash -c`.
            seconds: the wall-clock time after which everything that it started is killed.
            stdin: what it can read; nothing by default.
            output_kb: how much of its output to keep, instead of `SandboxSettings.output_kb`.

        Raises:
            SandboxError: the sandbox is closed, or its back end failed.
        """
        ...

    def close(self) -> None:
        """End it, a running command with it, and leave nothing behind. May be called twice."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class SandboxSettings:
    """Where commands run, and what they may use.

    `open_files`, `packages`, `cgroup`, `readable` and `hidden` are for bubblewrap: a container shows its image.

    Args:
        backend: `bubblewrap`, `docker`, `swerex_docker`, `swerex_modal`, `swerex_remote`, `swerex_fargate`, or `host`
            (no isolation at all).
        unconfined: must be true for `host`.
        tree: where the repository lies, as commands see it.
        memory_mb: memory of all processes of a command together.
        processes: how many processes and threads a command may have at once.
        open_files: how many files, pipes and sockets each of them may have open.
        file_mb: the largest file.
        tree_mb: everything that the episode writes, the tree itself, /tmp and the home directory included.
        files: how many files and directories that may be.
        output_kb: how much of a command's output is kept.
        env: further environment variables.
        python: the interpreter (`…/bin/python`) or the virtual environment that comes first on PATH, visible read-only
            with the installation that it is made from, and with its packages; None for the one that runs this, "" for
            the system's own, of which only `packages` are visible beside the standard library.
        packages: the distributions that are visible of a `python` which is not named here, with all that they require.
            A task's answer may lie in any other.
        cgroup: a directory of the host's control groups in which one for each sandbox is made, to bound its memory and
            its processes; None for this process's own where that is allowed, "" for none.
        readable: further files and directories that are visible read-only, at their own paths.
        hidden: files and directories that are not visible although they lie in what is, as a copy of a task's answer.
        options: arguments of the back end's own class, beside those that the settings above make.

    Raises:
        ValueError: a setting is out of range.
    """

    backend: str = "bubblewrap"
    unconfined: bool = False
    tree: str = "/testbed"
    memory_mb: int = 2048
    processes: int = 64
    open_files: int = 256
    file_mb: int = 256
    tree_mb: int = 1024
    files: int = 100_000
    output_kb: int = 64
    env: Mapping[str, str] = field(default_factory=dict)
    python: str | None = None
    packages: tuple[str, ...] = ("pytest",)
    cgroup: str | None = None
    readable: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if one.type == "int" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InputError(f"sandbox.{one.name}={value!r}: expected a whole number of 1 or more")
        for name in ("env", "options"):
            if not isinstance(getattr(self, name), Mapping):
                arguments.refuse(f"sandbox.{name}", getattr(self, name), "a mapping, such as {name: value}")
            arguments.mapping(f"sandbox.{name}", getattr(self, name))
        for name, value in self.env.items():
            if not isinstance(value, str):
                arguments.refuse(f"sandbox.env.{name}", value, "a text, so put it in quotes")
        arguments.switch("sandbox.unconfined", self.unconfined)
        if self.python is not None and not isinstance(self.python, str):
            arguments.refuse("sandbox.python", self.python, "a path, an empty text or null")
        if self.cgroup is not None and not isinstance(self.cgroup, str):
            arguments.refuse("sandbox.cgroup", self.cgroup, "a path, an empty text or null")
        listed = isinstance(self.packages, list | tuple)
        if not listed or not all(isinstance(one, str) and one for one in self.packages):
            arguments.refuse("sandbox.packages", self.packages, "a list of names, as [pytest, hypothesis]")
        for name in ("readable", "hidden"):
            several = getattr(self, name)
            if not isinstance(several, list | tuple) or not all(isinstance(one, str | Path) for one in several):
                arguments.refuse(f"sandbox.{name}", several, "a list of paths")
        parts = arguments.text("sandbox.tree", self.tree).split("/")
        if parts[0] or len(parts) < 2 or {"", ".", ".."} & set(parts[1:]) or parts[1] in _SYSTEM:
            raise InputError(f"sandbox.tree={self.tree!r}: expected an absolute path outside the system, as /testbed")
        object.__setattr__(self, "readable", tuple(self.readable))  # a YAML list
        object.__setattr__(self, "hidden", tuple(self.hidden))
        object.__setattr__(self, "packages", tuple(self.packages))
