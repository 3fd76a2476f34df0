"""Blocking calls beside asyncio."""

import asyncio
import threading
import time

import pytest

from agent_loops.pool import EnvironmentPool, EnvironmentTimeout


def test_the_event_loop_runs_on_while_an_environment_blocks():
    async def scenario() -> int:
        pool, beats = EnvironmentPool(thread_safe=True), 0
        call = asyncio.ensure_future(pool.call(5.0, time.sleep, 0.3))
        while not call.done():
            beats += 1
            await asyncio.sleep(0.01)
        return beats

    assert asyncio.run(scenario()) >= 5


def test_a_deadline_is_kept_and_names_the_setting():
    async def scenario() -> None:
        await EnvironmentPool(thread_safe=True).call(0.05, time.sleep, 0.5)

    with pytest.raises(EnvironmentTimeout, match=r"sleep took longer than 0\.05 s \(episode\.step_seconds\)"):
        asyncio.run(scenario())


def test_a_timeout_of_the_environment_itself_is_not_ours():
    def own_timeout() -> None:
        raise TimeoutError("the game's server")

    async def scenario() -> None:
        await EnvironmentPool(thread_safe=True).call(5.0, own_timeout)

    with pytest.raises(TimeoutError, match="the game's server") as caught:
        asyncio.run(scenario())
    assert not isinstance(caught.value, EnvironmentTimeout)


@pytest.mark.parametrize(("thread_safe", "together"), [(True, 2), (False, 1)])
def test_environments_that_are_not_thread_safe_take_turns(thread_safe, together):
    lock, running, most = threading.Lock(), 0, 0

    def step() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.1)
        with lock:
            running -= 1

    async def scenario() -> None:
        pool = EnvironmentPool(thread_safe=thread_safe, threads=2)
        await asyncio.gather(*(pool.call(5.0, step) for _ in range(4)))

    asyncio.run(scenario())
    assert most == together
