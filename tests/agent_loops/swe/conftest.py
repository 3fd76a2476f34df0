"""What the tests of agent_loops.swe share: a sandbox where the machine allows one."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent_loops.swe.sandbox import Sandbox, SandboxSettings, open_sandbox
from agent_loops.swe.sandbox.keeper import INSTALL, NAMESPACES

SMALL = SandboxSettings(memory_mb=256, processes=64, file_mb=16, tree_mb=32, files=5000)


@pytest.fixture(scope="session")
def bubblewrap() -> None:
    """Skips where bubblewrap is missing or the kernel refuses its namespaces, and says what to do about it.

    Whether it is so is asked without our own code: that must not fail in silence.
    """
    for command in (["bwrap", "--version"], ["unshare", "--user", "--map-root-user", "--mount", "true"]):
        try:
            subprocess.run(command, check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip(f"`{command[0]}` is not on PATH; {INSTALL}")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"{NAMESPACES}: {error.stderr.decode().strip()}")


@pytest.fixture
def make_sandbox(bubblewrap: None) -> Iterator[Callable[..., Sandbox]]:
    """Opens small bubblewrap sandboxes, which are closed after the test: make_sandbox(source=…, tree_mb=…)."""
    opened = []

    def make(source: Path | None = None, **settings) -> Sandbox:
        opened.append(open_sandbox(replace(SMALL, **settings), source))
        return opened[-1]

    yield make
    for sandbox in opened:
        sandbox.close()


@pytest.fixture
def sandbox(make_sandbox: Callable[..., Sandbox]) -> Sandbox:
    """A small bubblewrap sandbox with an empty tree."""
    return make_sandbox()


def _processes_with(marker: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if marker in line:
                found.append(line)
    return found


@pytest.fixture(scope="session")
def processes_with() -> Callable[[str], list[str]]:
    """Returns the command lines of the living processes of this machine in which a marker occurs."""
    return _processes_with
