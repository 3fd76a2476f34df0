"""Blocking environments under asyncio: calls run elsewhere, with a deadline, and never block the event loop.

Thread-safe environments run in threads of this process (`EnvironmentPool`), the others in subprocesses
(`agent_loops.workers.WorkerPool`). Either pool gives an episode its `Slot`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, ParamSpec, Protocol, TypeVar

from agent_loops.environment import Environment
from agent_loops.errors import AgentLoopError, FailedError

P = ParamSpec("P")
R = TypeVar("R")


class EnvironmentTimeout(AgentLoopError, RuntimeError):
    """A step of an environment exceeded its deadline."""


def contained(function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call foreign code; anything it raises becomes an exception that a future can carry to an event loop.

    asyncio cannot set a StopIteration on a future, whose awaiter would then wait forever; it takes a future's
    CancelledError for a cancellation of the awaiter; and SystemExit would end the event loop.

    Raises:
        FailedError: in place of one of these.

    Examples:
        >>> contained(next, iter([]))
        Traceback (most recent call last):
        ...
        agent_loops.errors.FailedError: StopIteration
    """
    try:
        return function(*args, **kwargs)
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration | CancelledError):
            raise
        said = f": {error}" if str(error) else ""
        raise FailedError(f"{type(error).__name__}{said}") from error


@dataclass(frozen=True)
class Unmade:
    """Placeholder for an environment that could not be created: its `reset` raises the reason."""

    error: Exception
    thread_safe: ClassVar[bool] = True

    def reset(self, task: Any, /) -> NoReturn:
        raise self.error

    def step(self, action: str, /) -> NoReturn:
        raise self.error

    def close(self) -> None:
        pass


class Call(Protocol):
    """A function that runs another function on one episode's environment.

    It raises `EnvironmentTimeout` after `seconds`, and whatever the function raises.
    """

    def __call__(
        self, seconds: float, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Awaitable[R]: ...


@dataclass(frozen=True)
class Slot:
    """Where one episode is played: its environment, and how calls to it are made."""

    environment: Environment
    call: Call


class EnvironmentPool:
    """Threads for the thread-safe environments of one process.

    A call past its deadline is abandoned, although Python cannot end its thread: the thread stays occupied until the
    call returns.

    Args:
        make: a function that creates an environment; not needed for `call`.
        threads: how many calls may run concurrently.
    """

    def __init__(self, make: Callable[[], Environment] | None = None, threads: int | None = None):
        self._make = make
        self._executor = ThreadPoolExecutor(
            max_workers=threads or min(32, 4 * (os.cpu_count() or 1)), thread_name_prefix="environment"
        )

    def open(self) -> Slot:
        """Return a slot for a new episode."""
        assert self._make is not None, "EnvironmentPool(make=…) makes the environments"
        try:
            environment = contained(self._make)
        except Exception as error:  # a fault of its episode, like any other exception of foreign code
            environment = Unmade(error)
        return Slot(environment, self.call)

    async def call(self, seconds: float, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `function` in a thread. Raise `EnvironmentTimeout` after `seconds`, and whatever the function raises."""
        future = self._executor.submit(contained, function, *args, **kwargs)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), timeout=seconds)
        except TimeoutError as error:
            if future.done() and not future.cancelled():
                return future.result()  # it ended at that very moment, or the exception is the function's own
            name = getattr(function, "__qualname__", repr(function))
            raise EnvironmentTimeout(f"{name} took longer than {seconds:g} s (episode.step_seconds)") from error
