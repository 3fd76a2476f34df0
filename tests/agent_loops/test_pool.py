"""Blocking calls alongside asyncio."""

import asyncio
import threading

import pytest

from agent_loops.pool import EnvironmentPool, EnvironmentTimeout
from tests.helpers.eventually import PATIENCE
from tests.helpers.guess import GuessBenchmark


def test_the_event_loop_runs_on_while_an_environment_blocks():
    async def scenario() -> int:
        pool, beats, released = EnvironmentPool(), 0, threading.Event()
        call = asyncio.ensure_future(pool.call(PATIENCE, released.wait, PATIENCE))
        while not call.done():
            beats += 1
            if beats == 5:
                released.set()
            await asyncio.sleep(0.01)
        assert await call, "the environment was let go"
        return beats

    assert asyncio.run(scenario()) >= 5


def test_a_deadline_is_kept_and_names_the_setting():
    released = threading.Event()

    async def scenario() -> None:
        with pytest.raises(EnvironmentTimeout, match=r"wait took longer than 0\.05 s \(episode\.step_seconds\)"):
            await EnvironmentPool().call(0.05, released.wait, PATIENCE)
        released.set()

    asyncio.run(scenario())


def test_a_timeout_of_the_environment_itself_is_not_ours():
    def own_timeout() -> None:
        raise TimeoutError("the game's server")

    async def scenario() -> None:
        await EnvironmentPool().call(5.0, own_timeout)

    with pytest.raises(TimeoutError, match="the game's server") as caught:
        asyncio.run(scenario())
    assert not isinstance(caught.value, EnvironmentTimeout)


def test_thread_safe_environments_step_side_by_side():
    met = threading.Barrier(2, timeout=PATIENCE)

    async def scenario() -> None:
        slots = [EnvironmentPool(GuessBenchmark().make, threads=2).open()]
        slots.append(slots[0])
        await asyncio.gather(*(slot.call(PATIENCE, met.wait) for slot in slots))

    asyncio.run(scenario())


def test_every_episode_has_an_environment_of_its_own():
    benchmark = GuessBenchmark()
    pool = EnvironmentPool(benchmark.make)
    slots = [pool.open() for _ in range(2)]
    assert [slot.environment for slot in slots] == benchmark.made and len(set(map(id, benchmark.made))) == 2
