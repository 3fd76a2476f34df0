"""One JVM and the games in it. Games share nothing there: they may take turns as they like."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

try:
    JAR = Path(
        str(importlib.metadata.distribution("textworld-express").locate_file("textworld_express/textworld-express.jar"))
    )
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("TextWorldExpress is not installed: pip install 'verl-aem[textworld]'") from error

from agent_loops.java import Jvm

NAME = "TextWorldExpress"


class Simulator:
    """A JVM that holds games.

    Args:
        heap: the JVM's bound.

    Raises:
        JavaError: Java is missing or does not start.
    """

    def __init__(self, heap: str = "512m") -> None:
        self._jvm = Jvm(NAME, JAR, heap, folder=JAR.parent)
        self._new_interface = self._jvm.gateway.jvm.textworldexpress.runtime.PythonInterface

    @property
    def process_id(self) -> int:
        """Of the JVM."""
        return self._jvm.process.pid

    @property
    def alive(self) -> bool:
        return self._jvm.exit_report() is None

    def load(self, game: str, parameters: Mapping[str, int]) -> Game:
        """A game in which no task has begun.

        Raises:
            ValueError: the simulator does not take a parameter.
            ProcessUnusable: the JVM is dead.
        """
        interface = self.call(self._new_interface)
        given = ",".join(f"{name}={value}" for name, value in parameters.items())
        problem = self.call(interface.load, game, given)
        if problem:
            self.release(interface)
            raise ValueError(f"{game} with parameters {given!r}: {problem.strip()}")
        return Game(self, interface)

    def call(self, function: Any, *arguments: Any) -> Any:
        """Call a function that asks the JVM, and tell its faults apart."""
        return self._jvm.call(function, *arguments)

    def release(self, interface: Any) -> None:
        """Let go of an object of the JVM. Python alone would not: the proxies of Java objects stand in cycles."""
        if self.alive:
            self.call(self._jvm.gateway.detach, interface)

    def close(self) -> None:
        """End the JVM."""
        self._jvm.close()


class Game:
    """A loaded game; what it answers is the package's own record of a state, as a dictionary."""

    def __init__(self, simulator: Simulator, interface: Any) -> None:
        self._simulator, self._interface = simulator, interface

    def begin(self, seed: int, split: str, gold: bool = False) -> dict[str, Any]:
        """Begin a task.

        Args:
            gold: have a solution worked out too (`gold_actions`).
        """
        return json.loads(self._simulator.call(self._interface.generateNewGameJSON, seed, split, gold))

    def step(self, command: str) -> dict[str, Any]:
        """Play a command; what is not understood is answered, too."""
        # a lone surrogate cannot be sent; the simulator understands nothing but ASCII anyway
        command = command.encode("utf-8", "replace").decode("utf-8")
        return json.loads(self._simulator.call(self._interface.stepJSON, command))

    def description(self) -> str:
        """The task in words."""
        return self._simulator.call(self._interface.getTaskDescription)

    def gold_actions(self) -> list[str]:
        """A solution, where `begin` was asked for it."""
        return list(self._simulator.call(self._interface.getGoldActionSequence))

    def close(self) -> None:
        """Let go of the game."""
        self._simulator.release(self._interface)
