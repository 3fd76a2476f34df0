"""Software engineering as a benchmark: tasks from files, environments in sandboxes, and the grader."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent_loops.swe.environment import SweEnvironment
from agent_loops.swe.grading import Grade, GradeSettings, grade
from agent_loops.swe.readers import read_tasks
from agent_loops.swe.sandbox import Sandbox, SandboxSettings, open_sandbox
from agent_loops.swe.tasks import SweTask, SweTasks


class Swe:
    """The benchmark over files of tasks.

    Args:
        tasks: a file or a directory of tasks (`read_tasks`).
        validation: the same with the tasks to validate on; None to hold some of `tasks` out.
        held_out, by: which ones (`SweTasks`).
        sandbox: where the agent's commands and the tests run (`SandboxSettings`).
        command_seconds: what one command of the agent may take.
        reward_seconds: what the tests may take.
        slots: how many test runs a machine does at once; None for as many as cores.
        observation_characters: the longest observation.
        statement_characters: the longest problem statement; both lose their middle.

    Raises:
        FileNotFoundError: there are no tasks.
        ValueError: a task or a setting is not as it should be.
    """

    def __init__(
        self,
        tasks: str | Path,
        validation: str | Path | None = None,
        held_out: float = 0.2,
        by: str = "repo",
        sandbox: Mapping[str, Any] | None = None,
        command_seconds: float = 90.0,
        reward_seconds: float = 300.0,
        slots: int | None = None,
        observation_characters: int = 10_000,
        statement_characters: int = 8_000,
    ) -> None:
        for setting, value, least in (
            ("command_seconds", command_seconds, 1),
            ("observation_characters", observation_characters, 1_000),
            ("statement_characters", statement_characters, 100),
        ):
            if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
                raise ValueError(f"{setting}={value!r}: expected a number of {least} or more")
        self._tasks = SweTasks(
            read_tasks(tasks), None if validation is None else read_tasks(validation), held_out=held_out, by=by
        )
        self._sandbox = SandboxSettings(**(sandbox or {}))
        self._grading = GradeSettings(self._sandbox, seconds=reward_seconds, slots=slots)
        self._playing = {
            "command_seconds": float(command_seconds),
            "characters": int(observation_characters),
            "statement_characters": int(statement_characters),
        }
        self._checking = threading.Lock()
        self._checked = False

    @property
    def name(self) -> str:
        return "swe"

    @property
    def task_set(self) -> SweTasks:
        return self._tasks

    def make(self) -> SweEnvironment:
        """Returns a new environment. The first one tries whether sandboxes of this machine work here.

        Raises:
            SandboxError: they do not.
            ImportError: swebench is missing, which grades.
        """
        with self._checking:
            if not self._checked:
                self._check()
            self._checked = True
        return SweEnvironment(self._tasks.task, self.open_sandbox, self.grade, **self._playing)

    def open_sandbox(self, task: SweTask) -> Sandbox:
        """A sandbox with the task's tree."""
        return open_sandbox(self._sandbox, source=Path(task.source) if task.source else None, image=task.image)

    def grade(self, task: SweTask, patch: str) -> Grade:
        """The grade of a patch, in a fresh copy of the task's tree."""
        return grade(task, patch, self._grading)

    def _check(self) -> None:
        if importlib.util.find_spec("swebench") is None:
            raise ImportError("grading needs swebench, which is not installed here: pip install 'verl-aem[swe]'")
        if self._sandbox.backend in ("bubblewrap", "host"):  # a container would need its image
            open_sandbox(self._sandbox).close()
