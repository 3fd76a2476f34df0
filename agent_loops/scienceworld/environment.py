"""ScienceWorld's tasks as an environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from agent_loops.environment import Observation, Step
from agent_loops.errors import OrderError
from agent_loops.scienceworld.simulator import Game, Simulator
from agent_loops.scienceworld.tasks import check_task

FIRST_COMMAND = "look around"


class ScienceWorldEnvironment:
    """An environment that plays one task at a time in a JVM shared with others; all their calls take turns.

    As in the package's own environment, an episode begins with the answer to `look around`, which counts as a move; a
    reward is the difference of two scores; and a failure has score −100 and ends the episode.

    `Observation.info` holds `instruction` (the task in words), `kind` (the task's name) and, after `reset`, `score`.
    `Step.info` holds `won` (the score is 100), `score` (the score / 100, and 0 after a failure) and `failed`.

    Args:
        simulator: a function that returns the running simulator, starting it if necessary.
        valid_actions: whether to fill `Observation.actions`.
        show_state: whether to add the surroundings and the inventory to each text.
        max_steps: the number of actions after which an episode is truncated.
    """

    thread_safe: ClassVar[bool] = False

    def __init__(
        self,
        simulator: Callable[[], Simulator],
        valid_actions: bool = False,
        show_state: bool = False,
        max_steps: int = 1000,
    ) -> None:
        self._simulator = simulator
        self._valid_actions = valid_actions
        self._show_state = show_state
        self._max_steps = max_steps
        self._game: Game | None = None
        self._last: Step | None = None
        self._steps = 0
        self._score = 0
        self._about: dict[str, Any] = {}

    def reset(self, task: Mapping[str, Any]) -> Observation:
        """Begin a task: `task` and `variation`, and the `simplification` with which it is played.

        Raises:
            InputError: there is no such task.
            JavaError: Java is missing or does not start.
            SimulatorError: the task cannot be loaded.
            ProcessUnusable: the JVM is dead.
        """
        name, variation, simplifications = check_task(task)
        self.close()
        game = self._game = self._simulator().load(name, variation, simplifications)
        self._about = {"instruction": game.description(), "kind": name}
        text, self._score, _ = game.step(FIRST_COMMAND)
        return self._observe(game, text, {"score": _share(self._score)})

    def step(self, action: str) -> Step:
        """Play a command. After the end nothing changes.

        The simulator also answers commands that it does not understand.

        Raises:
            OrderError: no episode was started.
            SimulatorError: the simulator failed.
            ProcessUnusable: the JVM is dead.
        """
        if self._game is None:
            raise OrderError("step() before reset(): no task is being played")
        if self._last is not None:
            return self._last
        text, score, completed = self._game.step(action)
        reward, self._score = float(score - self._score), score
        self._steps += 1
        ended = completed or score < 0
        step = Step(
            self._observe(self._game, text),
            reward=reward,
            terminated=ended,
            truncated=not ended and self._steps >= self._max_steps,
            info={"won": score >= 100, "score": _share(score), "failed": score < 0},
        )
        if step.terminated or step.truncated:
            self._last = dataclasses.replace(step, reward=0.0)
        return step

    def close(self) -> None:
        """Discard the episode."""
        game, self._game, self._last, self._steps, self._score = self._game, None, None, 0, 0
        if game is not None:
            game.close()

    def _observe(self, game: Game, text: str, more: Mapping[str, Any] | None = None) -> Observation:
        if self._show_state:
            text = "\n\n".join(part.strip() for part in (text, game.look(), game.inventory()))
        actions = game.valid_actions() if self._valid_actions else []
        return Observation(text, actions, {**self._about, **(more or {})})


def _share(score: int) -> float:
    return max(score, 0) / 100
