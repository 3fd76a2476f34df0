"""An environment that is not thread-safe and fails on command, for the tests of the worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import ClassVar

from agent_loops.environment import Observation, Step
from agent_loops.workers import ProcessUnusable, die_with_parent


class TwoPartError(Exception):
    """An error that pickles but does not unpickle: its constructor requires more than the message."""

    def __init__(self, first: str, second: str):
        super().__init__(f"{first} and {second}")


class FragileEnvironment:
    thread_safe = False
    kept: ClassVar[weakref.WeakSet[FragileEnvironment]] = weakref.WeakSet()

    def __init__(self, closed: list[str]):
        self.kept.add(self)
        self._closed = closed
        self._seen: list[str] = []
        self._name = ""

    def reset(self, task: dict) -> Observation:
        if task["name"] == "missing":
            raise OSError("the game file is gone")
        self._name, self._seen = task["name"], []
        return Observation(f"{self._name} begins", info={"instruction": "count", "pid": os.getpid()})

    def step(self, action: str) -> Step:
        self._seen.append(action)
        word, _, rest = action.partition(" ")
        info: dict = {"won": word == "win", "score": float(word == "win"), "pid": os.getpid()}
        if word == "sleep":
            time.sleep(float(rest))
        elif word == "wait":  # signal the start, and continue once the other file exists
            Path(f"{rest}.begun").touch()
            while not Path(f"{rest}.go").exists():
                time.sleep(0.01)
        elif word == "die":
            os._exit(3)
        elif word == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif word == "raise":
            raise RuntimeError("the game crashed")
        elif word == "stop":
            raise StopIteration
        elif word == "exit":
            sys.exit("bye")
        elif word == "odd":
            raise TwoPartError("one", "two")
        elif word == "unusable":
            raise ProcessUnusable("the game's engine is dead")
        elif word == "lock":
            info["lock"] = threading.Lock()
        elif word in ("child", "stray"):  # a process that ends with its parent, and one that does not
            command = [sys.executable, "-c", "import time; time.sleep(600)"]
            info["child"] = subprocess.Popen(command, preexec_fn=die_with_parent if word == "child" else None).pid
        elif word == "closed":
            info["closed"], info["kept"] = list(self._closed), len(self.kept)
        text = f"{self._name}: {len(self._seen)} actions, {len(action)} characters"
        return Step(Observation(text), reward=float(len(self._seen)), terminated=word == "win", info=info)

    def close(self) -> None:
        self._closed.append(self._name)
        if self._name == "unclosable":
            raise RuntimeError("cannot close")


class Concluding(FragileEnvironment):
    """An environment that can report its current outcome."""

    def conclude(self) -> dict:
        return {"won": False, "score": len(self._seen) / 10}


class FragileTasks:
    splits = ("train",)

    def tasks(self, split: str) -> list[dict]:
        return [{"name": f"{split} {number}"} for number in range(4)]


class FragileBenchmark:
    name = "fragile"
    task_set = FragileTasks()

    def __init__(self, fault: str = ""):
        if fault == "open":
            raise ValueError("the catalogue is damaged")
        if fault == "die":
            os._exit(7)
        self._closed: list[str] = []
        self._warm = False
        self._concluding = fault == "concluding"

    def make(self) -> FragileEnvironment:
        return (Concluding if self._concluding else FragileEnvironment)(self._closed)

    def warm_up(self) -> None:
        self._warm = True
