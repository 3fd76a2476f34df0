"""Blocking environments beside asyncio: calls run elsewhere, with a deadline, and never hold up the event loop.

Thread-safe environments run in threads of this process (`EnvironmentPool`), the others in subprocesses
(`agent_loops.workers.WorkerPool`). Either gives an episode its `Seat`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

from agent_loops.environment import Environment

P = ParamSpec("P")
R = TypeVar("R")


class EnvironmentTimeout(RuntimeError):
    """A step of an environment outlasted its deadline."""


class Call(Protocol):
    """Runs a function that uses one episode's environment; raises `EnvironmentTimeout` after `seconds`, and what the
    function raises."""

    def __call__(
        self, seconds: float, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Awaitable[R]: ...


@dataclass(frozen=True)
class Seat:
    """Where one episode is played: its environment, and how calls to it are made."""

    environment: Environment
    call: Call


class EnvironmentPool:
    """Threads for the thread-safe environments of one process.

    A call past its deadline is given up, though Python cannot end its thread: the thread stays taken until the call
    returns.

    Args:
        make: makes an environment; not needed for `call`.
        threads: how many calls may run at once.
    """

    def __init__(self, make: Callable[[], Environment] | None = None, threads: int | None = None):
        self._make = make
        self._executor = ThreadPoolExecutor(
            max_workers=threads or min(32, 4 * (os.cpu_count() or 1)), thread_name_prefix="environment"
        )

    def open(self) -> Seat:
        """A seat for a new episode."""
        assert self._make is not None, "EnvironmentPool(make=…) makes the environments"
        return Seat(self._make(), self.call)

    async def call(self, seconds: float, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `function` in a thread. Raises `EnvironmentTimeout` after `seconds`, and what the function raises."""
        future = self._executor.submit(function, *args, **kwargs)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), timeout=seconds)
        except TimeoutError as error:
            if future.done() and not future.cancelled():
                return future.result()  # it ended at that very moment, or the exception is its own
            name = getattr(function, "__qualname__", repr(function))
            raise EnvironmentTimeout(f"{name} took longer than {seconds:g} s (episode.step_seconds)") from error
