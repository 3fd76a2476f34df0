"""A real OpenEnv server for the tests, in a separate process: `python openenv_server.py PORT SESSIONS`.

It prints the port that it listens on (any free port for PORT 0).
"""

from __future__ import annotations

import os
import random
import socket
import sys
import time
from typing import Any

import uvicorn
from openenv.core.env_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State
from pydantic import Field


class Say(Action):
    message: str = Field(max_length=100)
    voice: str = "low"


class Hear(Observation):
    message: str
    task: str = ""
    actions: list[str] = Field(default_factory=list)
    solved: bool | None = None
    number: int = 0


class Game(Environment):
    """A game of guessing the seed's number; `crash`, `sleep` and `exit` do what their names say."""

    SUPPORTS_CONCURRENT_SESSIONS = True
    live = 0

    def __init__(self) -> None:
        super().__init__()
        Game.live += 1
        self._number: int | None = None
        self._limit = 4
        self._steps = 0

    def reset(self, seed: int | None = None, episode_id: str | None = None, limit: int = 4, **_: Any) -> Hear:
        self._number, self._limit, self._steps = random.Random(seed).randrange(10), limit, 0
        if limit == 0:
            return Hear(message="over", done=True)
        return Hear(message="Guess a digit.", task="find the digit", actions=[f"guess {n}" for n in range(10)])

    def step(self, action: Say, timeout_s: float | None = None, **_: Any) -> Hear:
        self._steps += 1
        if action.message == "crash":
            raise ValueError("the game crashed")
        if action.message == "sleep":
            time.sleep(20)
        if action.message == "exit":
            os._exit(1)
        if action.message == "live":
            return Hear(message=str(Game.live))
        if self._number is None:
            return Hear(message="never reset")
        solved = action.message == f"guess {self._number}"
        done = solved or self._steps >= self._limit
        text = "right" if solved else "wrong" if action.voice == "low" else "WRONG"
        return Hear(message=text, done=done, reward=float(solved) if done else None, solved=solved)

    @property
    def state(self) -> State:
        return State(step_count=self._steps)

    def close(self) -> None:
        Game.live -= 1


if __name__ == "__main__":
    listening = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    print(listening.getsockname()[1], flush=True)
    app = create_fastapi_app(Game, Say, Hear, max_concurrent_envs=int(sys.argv[2]))
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listening])
