"""`agent_loops.check_environment` finds each violation of the contract, and none where there is none."""

from __future__ import annotations

import itertools
import re
import threading
from collections import Counter

import pytest

from agent_loops.check_environment import check_benchmark
from agent_loops.environment import Observation, Step

_COUNTER = itertools.count()


class Tasks:
    splits = ("train", "validation")

    def __init__(self, flaw=""):
        self._flaw = flaw
        if flaw == "no splits":
            self.splits = ()

    def tasks(self, split):
        if self._flaw == "tuple tasks":
            return [("a", 1)]
        if self._flaw == "object tasks":
            return [object()]
        if self._flaw == "empty" and split == "validation":
            return []
        if self._flaw == "order":
            return [next(_COUNTER)]
        numbers = range(5) if split == "train" or self._flaw == "overlap" else range(5, 9)
        return [{"n": number} for number in numbers]


class Game:
    """Counts up to five; `flaw` names the promise that it breaks."""

    thread_safe = True

    def __init__(self, flaw, board):
        self._flaw = flaw
        self._board = board
        self._carried = 0
        self._closed = False

    def reset(self, task):
        if self._flaw == "reset raises":
            raise OSError("gone")
        self.number, self.count = task["n"], 0
        if self._flaw == "carries":
            self.count, self._carried = self._carried, 1
        self._board["count"] = 0
        if self._flaw == "no observation":
            return "hello"
        return self._observe()

    def _observe(self):
        count = self._board["count"] if self._flaw == "shares" else self.count
        seen = f"{self.number} {count}" + (f" {next(_COUNTER)}" if self._flaw == "random" else "")
        actions = {"actions string": "up", "actions numbers": [1, 2], "no actions": ()}.get(self._flaw, ["up", "down"])
        info = {"kind": 3 if self._flaw == "kind" else "count"}
        if self._flaw == "unpicklable":
            info["lock"] = threading.Lock()
        return Observation(seen, actions, info)

    def step(self, action):
        if self._flaw == "nonsense raises" and action not in ("up", "down"):
            raise ValueError(f"{action} is no action")
        if self._flaw == "threads" and threading.current_thread() is not threading.main_thread():
            raise RuntimeError("this belongs to the main thread")
        self.count += 1
        self._board["count"] += 1
        if self._flaw == "no step":
            return None
        info = {"won": self.count >= 5, "score": 20.0 if self._flaw == "score" else self.count / 5}
        if self._flaw == "no won":
            del info["won"]
        if self._flaw == "won is a number":
            info["won"] = 1
        reward = {"no reward": None, "infinite reward": float("inf")}.get(self._flaw, 0.5)
        ended = self.count >= 5
        return Step(self._observe(), reward, int(ended) if self._flaw == "terminated" else ended, False, info)

    def close(self):
        if self._flaw == "close twice" and self._closed:
            raise RuntimeError("closed already")
        self._closed = True


class Benchmark:
    name = "count"

    def __init__(self, flaw=""):
        self.task_set = Tasks(flaw)
        self._flaw = flaw
        self._board = Counter()

    def make(self):
        return object() if self._flaw == "no environment" else Game(self._flaw, self._board)


PROMISES = {
    "no splits": "There are no splits.",
    "empty": "Split 'validation' is empty.",
    "tuple tasks": r"Task \('a', 1\) of split 'train' does not survive JSON",
    "object tasks": "does not survive JSON",
    "order": "has another order, or other tasks",
    "overlap": r"Task \{\"n\": 0\} is in split 'train' and in split 'validation'",
    "no environment": "make.. returns no environment",
    "reset raises": "An episode failed: OSError: gone",
    "no observation": "gave 'hello': expected an Observation",
    "no step": "gave None: expected a Step",
    "actions string": "the actions after reset.. are 'up': expected a list of strings",
    "actions numbers": "expected a list of strings",
    "kind": r"info\['kind'\] of the observation after reset.. is 3",
    "unpicklable": "cannot be sent to another process",
    "nonsense raises": "An episode failed: ValueError: .* is no action",
    "no won": "no `won` that is True or False",
    "won is a number": "no `won` that is True or False",
    "score": r"info\['score'\] of step\(.*\) is 20.0",
    "no reward": "The reward of .* is None",
    "infinite reward": "The reward of .* is inf",
    "terminated": "`terminated` of .* is 1",
    "close twice": "closed already",
    "random": "is not deterministic",
    "carries": "keeps something of the episode before",
    "shares": "Environments share state",
    "threads": "thread_safe is True, but .* belongs to the main thread",
}


@pytest.mark.parametrize("flaw", PROMISES)
def test_a_broken_promise_is_told(flaw):
    problems = check_benchmark(Benchmark(flaw))
    assert any(re.search(PROMISES[flaw], problem) for problem in problems), problems
    assert all(problem.endswith(".") for problem in problems)


def test_a_benchmark_that_keeps_them_all():
    assert check_benchmark(Benchmark()) == []
    assert check_benchmark(Benchmark("no actions")) == [], "free text is meant"


def test_an_environment_for_one_thread_is_not_played_in_others():
    class OneThread(Game):
        thread_safe = False

    class ForOneThread(Benchmark):
        def make(self):
            return OneThread(self._flaw, self._board)

    assert check_benchmark(ForOneThread("threads")) == []


def test_something_else_than_a_benchmark():
    class NoTasks:
        name, task_set, make = "x", None, None

    for thing in (object(), NoTasks()):
        assert check_benchmark(thing) == [
            "The benchmark lacks a part of its protocol: name, task_set (with splits and tasks) and make()."
        ]  # type: ignore[arg-type]


def test_tasks_of_the_whole_split_are_compared():
    class Late(Tasks):
        def tasks(self, split):
            return [{"n": 3}] if split == "validation" else [{"n": number} for number in range(5)]

    benchmark = Benchmark()
    benchmark.task_set = Late()
    (problem,) = check_benchmark(benchmark, tasks_a_split=1)
    assert problem == "Task {\"n\": 3} is in split 'train' and in split 'validation'."


def test_a_task_is_the_same_in_whatever_order_its_keys_come():
    class Turned(Tasks):
        def tasks(self, split):
            return [{"n": 1, "m": 2} if split == "train" else {"m": 2, "n": 1}]

    benchmark = Benchmark()
    benchmark.task_set = Turned()
    assert "is in split 'train' and in split 'validation'" in check_benchmark(benchmark)[0]


def test_webshop_keeps_its_promises(tmp_path):
    pytest.importorskip("rapidfuzz", reason="the WebShop extra is not installed")
    from agent_loops.webshop import WebShop
    from agent_loops.webshop.generate import generate_catalogue

    directory = generate_catalogue(tmp_path, n_titles=8, variants=2, n_goals=24, sized_share=0.0)
    assert check_benchmark(WebShop(directory, n_validation=4), steps=20) == []
