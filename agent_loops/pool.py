"""Blocking environments beside asyncio: calls go to threads, with a deadline, and never hold up the event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class EnvironmentTimeout(RuntimeError):
    """A step of an environment outlasted its deadline."""


class EnvironmentPool:
    """Threads for the environments of one process.

    An environment that is not thread-safe gets a single thread, so its episodes take turns. A call past its deadline
    is given up, though Python cannot end its thread: the thread stays taken until the call returns.
    """

    def __init__(self, thread_safe: bool, threads: int | None = None):
        self._executor = ThreadPoolExecutor(
            max_workers=(threads or min(32, 4 * (os.cpu_count() or 1))) if thread_safe else 1,
            thread_name_prefix="environment",
        )

    async def call(self, seconds: float, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `function` in a thread. Raises `EnvironmentTimeout` after `seconds`, and what the function raises."""
        future = self._executor.submit(function, *args, **kwargs)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), timeout=seconds)
        except TimeoutError as error:
            if future.done() and not future.cancelled():
                raise  # the function's own
            name = getattr(function, "__qualname__", repr(function))
            raise EnvironmentTimeout(f"{name} took longer than {seconds:g} s (episode.step_seconds)") from error
