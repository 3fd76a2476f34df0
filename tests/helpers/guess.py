"""A guessing game with every fault that an environment can have, for the tests of the agent loop."""

from __future__ import annotations

import threading

from agent_loops.environment import Observation, Step

RELEASED = threading.Event()
"""The event that a step with the fault `slow` waits for; set it at the end of the test, which joins its thread."""


class GuessTasks:
    splits = ("train", "validation")

    def tasks(self, split: str) -> list[dict]:
        first = 0 if split == "train" else 100
        return [{"secret": (first + number) % 10} for number in range(32 if split == "train" else 4)]


class GuessEnvironment:
    thread_safe = True

    def __init__(self, fault: str):
        self._fault = fault
        self._steps = 0
        self.closed = False

    def reset(self, task: dict) -> Observation:
        if self._fault == "reset":
            raise OSError("the game file is gone")
        self._secret = task["secret"]
        return Observation("Guess a digit.", ["guess[<digit>]"], {"instruction": "find the secret digit"})

    def step(self, action: str) -> Step:
        self._steps += 1
        if self._fault in ("step", f"step {self._steps}"):
            raise RuntimeError("the game crashed")
        if self._fault == "slow":
            RELEASED.wait(600)
        digits = [letter for letter in action if letter.isdecimal()]
        won = bool(digits) and int(digits[0]) == self._secret
        text = "correct" if won else "higher" if digits and int(digits[0]) < self._secret else "lower"
        info = {"won": won, "score": float(won)}
        reward = float("nan") if self._fault == "reward" else float(won)
        return Step(Observation(text), reward=reward, terminated=won, truncated=self._fault == "limit", info=info)

    def close(self) -> None:
        self.closed = True
        if self._fault == "close":
            raise RuntimeError("cannot close")


class GuessBenchmark:
    name = "guess"
    task_set = GuessTasks()

    def __init__(self, fault: str = "", thread_safe: bool = True):
        self._fault = fault
        self.made: list[GuessEnvironment] = []

    def make(self) -> GuessEnvironment:
        self.made.append(GuessEnvironment(self._fault))
        return self.made[-1]
