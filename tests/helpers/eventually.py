"""Waiting for events without asserting how long they take, however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from agent_loops.swe.sandbox import Executed

T = TypeVar("T")
PATIENCE = 240.0  # seconds; far more than anything here takes, below the 600 that end a hung test


def eventually(look: Callable[[], T], seconds: float = PATIENCE) -> T:
    """Call `look` until its result is true; return the last result, for the test to assert on."""
    give_up = time.monotonic() + seconds
    while not (seen := look()) and time.monotonic() < give_up:
        time.sleep(0.02)
    return seen


def run_late(execute: Callable[..., Executed], command: str, said: str, seconds: float = 0.5) -> Executed:
    """Run a command that never ends into its time limit, after it has printed something.

    If a busy machine has not even started the command by then, the limit is doubled.
    """
    while True:
        done = execute(command, seconds=seconds)
        assert (done.returncode, done.timed_out) == (124, True), done
        if done.output.startswith(said) or seconds > PATIENCE / 4:
            return done
        seconds *= 2
