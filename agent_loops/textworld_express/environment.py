"""A game of TextWorldExpress as an environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from agent_loops.environment import Observation, Step
from agent_loops.errors import OrderError
from agent_loops.textworld_express.simulator import Game, Simulator
from agent_loops.textworld_express.tasks import check_task


class TextWorldExpressEnvironment:
    """An environment that plays one task at a time in a JVM that it shares with others.

    A reward is the difference of two scores, as in the package. An episode ends with success or failure, which the
    game decides, or with the full score. The valid actions are sorted: the package gives them in no order.

    `Observation.info` holds `instruction` (the task in words). `Step.info` holds `won` (the package's `tasksuccess`),
    `score` (0 to 1) and `failed`.

    Args:
        simulator: a function that returns the running simulator, starting it if necessary.
        parameters: the parameters of the game's generator, as the package names them.
        max_steps: the number of actions after which an episode is truncated.
    """

    thread_safe: ClassVar[bool] = False

    def __init__(
        self, simulator: Callable[[], Simulator], parameters: Mapping[str, int] | None = None, max_steps: int = 100
    ) -> None:
        self._simulator, self._parameters, self._max_steps = simulator, dict(parameters or {}), max_steps
        self._game: Game | None = None
        self._last: Step | None = None
        self._steps, self._score, self._instruction = 0, 0.0, ""

    def reset(self, task: Mapping[str, Any]) -> Observation:
        """Begin a task: a `game` and a `seed`.

        Raises:
            InputError: there is no such task, or the game does not accept a parameter.
            JavaError: Java is missing or does not start.
            ProcessUnusable: the JVM is dead.
        """
        name, seed, split = check_task(task)
        self.close()
        game = self._game = self._simulator().load(name, self._parameters)
        state = game.begin(seed, split)
        self._instruction, self._score = game.description().strip(), float(state["score"])
        return self._observe(state)

    def step(self, action: str) -> Step:
        """Play a command. After the end nothing changes.

        Raises:
            OrderError: no episode was started.
            SimulatorError: the simulator failed.
            ProcessUnusable: the JVM is dead.
        """
        if self._game is None:
            raise OrderError("step() before reset(): no task is being played")
        if self._last is not None:
            return self._last
        state = self._game.step(action)
        score, before = float(state["score"]), self._score
        self._score, self._steps = score, self._steps + 1
        won, failed = bool(state["tasksuccess"]), bool(state["taskfailure"])
        ended = won or failed or score >= 1
        step = Step(
            self._observe(state),
            reward=score - before,
            terminated=ended,
            truncated=not ended and self._steps >= self._max_steps,
            info={"won": won, "score": max(0.0, min(score, 1.0)), "failed": failed},
        )
        if step.terminated or step.truncated:
            self._last = dataclasses.replace(step, reward=0.0)
        return step

    def close(self) -> None:
        """Discard the episode."""
        game, self._game, self._last, self._steps = self._game, None, None, 0
        if game is not None:
            game.close()

    def _observe(self, state: Mapping[str, Any]) -> Observation:
        return Observation(
            state["observation"].strip(), sorted(state["validActions"]), {"instruction": self._instruction}
        )
