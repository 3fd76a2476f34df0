"""Software engineering as an environment: a repository, a problem, four tools, and hidden tests that decide."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from agent_loops.actions import CallError
from agent_loops.environment import Observation, Step
from agent_loops.swe.sandbox import Sandbox, SandboxError, read_patch
from agent_loops.swe.tools import FORMAT, TOOLS, Toolbox, cut_middle, read_tool_call

if TYPE_CHECKING:
    from agent_loops.swe.grading import Grade
    from agent_loops.swe.tasks import SweTask

_PREPARE_SECONDS = 120.0
# a history of one commit: the one that the tree came with may hold the answer. Ignored files stay ignored.
_FRESH_HISTORY = (
    "rm -rf .git && git init -q && git add --all && "
    "git -c user.name=task -c user.email=task@localhost -c commit.gpgsign=false "
    "commit -q --allow-empty --no-verify -m 'The task begins' && git rev-parse HEAD"
)
_LISTED = 60


class SweEnvironment:
    """Plays one task at a time in a sandbox of its own.

    An action is a function call (`agent_loops.swe.tools`). `finish` ends the episode: what the tree differs in from its
    beginning is graded in a fresh copy, and the reward is 1 where all tests are as they should be, else 0.

    `Observation.info` holds `instruction` (the problem) and `kind` (the repository). `Step.info` holds `invalid` (what
    was wrong with a call that no tool takes) and, at the end, `won`, `score` (the share of the failing tests that pass
    now, times the share of the others that still do), `applied` (whether the patch could be applied), `patch_files`,
    `patch_added`, `patch_removed` and `reason` (why it is not solved).

    Args:
        find: the task that `reset` is given.
        open_sandbox: a sandbox with the task's tree.
        grade: the `Grade` of a task's patch.
        command_seconds: what one command may take.
        characters: the longest observation.
        statement_characters: the longest problem statement; both lose their middle.
    """

    thread_safe: ClassVar[bool] = True

    def __init__(
        self,
        find: Callable[[Any], SweTask],
        open_sandbox: Callable[[SweTask], Sandbox],
        grade: Callable[[SweTask, str], Grade],
        command_seconds: float = 90.0,
        characters: int = 10_000,
        statement_characters: int = 8_000,
    ) -> None:
        self._find = find
        self._open_sandbox = open_sandbox
        self._grade = grade
        self._command_seconds = command_seconds
        self._characters = characters
        self._statement_characters = statement_characters
        # a call that was given up may still run when the episode is closed
        self._lock = threading.Lock()
        self._episode = 0
        self._task: SweTask | None = None
        self._sandbox: Sandbox | None = None
        self._toolbox: Toolbox | None = None
        self._base = ""
        self._end: Step | None = None

    def reset(self, task: Mapping[str, str]) -> Observation:
        """Begins a task, `{"task": its instance id}`.

        Raises:
            ValueError: there is no such task.
            SandboxError: the sandbox cannot be had.
        """
        found = self._find(task)
        self.close()
        episode = self._episode
        sandbox = self._open_sandbox(found)
        with self._lock:
            gone = episode != self._episode
            if not gone:
                self._task, self._sandbox = found, sandbox
        if gone:
            sandbox.close()
            raise SandboxError("the episode was closed while its sandbox was opened")
        self._toolbox = Toolbox(sandbox, self._command_seconds, self._characters)
        self._base = self._begin_history(sandbox, found)
        listed = sandbox.execute(
            f"ls -A -p -I .git | head -n {_LISTED + 1}", seconds=_PREPARE_SECONDS
        ).output.splitlines()
        names = "\n".join(listed[:_LISTED]) + "\n..." * (len(listed) > _LISTED)
        instruction = cut_middle(found.problem_statement.strip(), self._statement_characters)
        text = f"The repository lies in {sandbox.tree}, where every command starts. It holds\n{names}"
        return Observation(text, (), {"instruction": instruction, "kind": found.repo})

    def step(self, action: str) -> Step:
        """Makes a call. One that cannot be made is answered, too. After the end nothing changes.

        Raises:
            RuntimeError: no episode was started.
            SandboxError: the sandbox failed by itself.
        """
        if self._end is not None:
            return self._end
        if self._toolbox is None:
            raise RuntimeError("step() before reset(): no task is being played")
        try:
            call = read_tool_call(action)
            if call.name == "finish":
                return self._finish()
            text = self._toolbox.use(call)
        except CallError as error:
            form = f"Call one of {', '.join(TOOLS)} in this form, with every tag closed:\n{FORMAT}"
            text = f"No call was made: {error}. {form}"
            return Step(Observation(text), 0.0, False, info={"invalid": str(error)})
        return Step(Observation(text), 0.0, False)

    def conclude(self) -> Mapping[str, Any]:
        """Grades the tree as it is: the outcome of an episode that was cut before its agent called `finish`.

        Raises:
            RuntimeError: no episode was started.
            SandboxError: the sandbox failed by itself.
        """
        return (self._end or self._finish()).info

    def close(self) -> None:
        """Ends the sandbox, and a command that still runs in it."""
        with self._lock:
            self._episode += 1
            sandbox, self._sandbox = self._sandbox, None
            self._task, self._toolbox, self._end = None, None, None
        if sandbox is not None:
            sandbox.close()

    def _begin_history(self, sandbox: Sandbox, task: SweTask) -> str:
        if task.hidden:
            done = sandbox.execute(task.hidden, seconds=_PREPARE_SECONDS)
            if done.returncode:
                raise SandboxError(f"what the agent must not see could not be taken away: {done.output[-500:]}")
        done = sandbox.execute(_FRESH_HISTORY, seconds=_PREPARE_SECONDS)
        if done.returncode:
            raise SandboxError(f"no git history can be made in the sandbox (it needs git): {done.output[-500:]}")
        return done.output.split()[-1]

    def _finish(self) -> Step:
        task, sandbox = self._task, self._sandbox
        if task is None or sandbox is None:
            raise RuntimeError("no task is being played: reset() comes first")
        try:
            patch, reason = read_patch(sandbox, self._base), ""
        except SandboxError as error:
            # the agent may have taken git's files away, which is its own loss; a sandbox that is gone is not
            sandbox.execute("true", seconds=self._command_seconds)
            patch, reason = "", str(error)
        info: dict[str, Any] = {"won": False, "score": 0.0, "applied": False, **_patch_stats(patch)}
        if not patch:
            info["reason"] = reason or "nothing was changed"
        else:
            grade = self._grade(task, patch)
            score = _share(grade.fail_to_pass) * _share(grade.pass_to_pass)
            info |= {"won": grade.resolved, "score": score, "applied": grade.applied, "reason": grade.reason}
        step = Step(Observation("The episode is over."), float(info["won"]), True, info=info)
        self._end = dataclasses.replace(step, reward=0.0)
        return step


def _share(passed_of: tuple[int, int]) -> float:
    passed, of = passed_of
    return passed / of if of else 1.0


def _patch_stats(patch: str) -> dict[str, int]:
    lines = patch.splitlines()
    return {
        "patch_files": sum(line.startswith("diff --git ") for line in lines),
        "patch_added": sum(line.startswith("+") and not line.startswith("+++ ") for line in lines),
        "patch_removed": sum(line.startswith("-") and not line.startswith("--- ") for line in lines),
    }
