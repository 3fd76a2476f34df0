"""A software-engineering task, and the tasks of a benchmark in fixed splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent_loops.environment import check_split
from agent_loops.errors import InputError

PYTEST_PARSER = "parse_log_pytest"
R2E_PARSER = "r2e"
"""R2E-Gym's parser: test names without their file; the statuses of all tests are compared with the recorded ones."""


@dataclass(frozen=True)
class SweTask:
    """A state of a repository, a problem in it, and the tests that decide whether the problem is fixed.

    Attributes:
        instance_id: the task's name, unique in its data set.
        repo: the repository or package that it is about.
        base_commit: the commit that the agent starts from.
        problem_statement: what the agent is told.
        patch: a known solution (gold); an empty string if there is none.
        test_patch: a change to the tests that only the grader sees.
        fail_to_pass: tests that fail before the solution and must pass after it.
        pass_to_pass: tests that pass before it and must still pass after it.
        test_command: runs the tests; or a whole evaluation script of SWE-bench, which applies `test_patch` by itself.
        log_parser: swebench's name of the parser of the test log, or `R2E_PARSER`.
        eval_type: swebench's `pass_and_fail` or `fail_only`.
        image: the container image that holds the repository with its environment, where the data set needs one.
        source: the file (.tar.gz) of the repository, for data sets without images.
        version: the package's version, as in the data set.
        hidden: shell commands that remove what the agent must not see from its sandbox; not run for grading.
        expected: the status of every test under the solution, for data sets that are graded by it (R2E-Gym).
    """

    instance_id: str
    repo: str
    base_commit: str
    problem_statement: str
    patch: str
    test_patch: str
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    test_command: str
    log_parser: str = PYTEST_PARSER
    eval_type: str = "pass_and_fail"
    image: str | None = None
    source: str | None = None
    version: str = ""
    hidden: str = ""
    expected: Mapping[str, str] = field(default_factory=dict)


class SweTasks:
    """Tasks by split, named by their `instance_id`.

    Without separate validation tasks, whole repositories are held out of training: tasks made from one repository share
    its code, so training on one would leak information about the others. Repositories are taken in the order of the
    digest of their names, until their tasks reach at least the share `held_out`.

    Args:
        train: the training tasks, from which validation tasks may be held out.
        validation: the validation tasks, from a separate data set.
        held_out: the share of tasks for validation, if there is no such set.
        by: what is held out: whole repositories (`repo`), or tasks by the digest of their names (`task`).

    Raises:
        InputError: two tasks have the same name, or a split would be empty.

    Example:
        >>> def made(repo, n): return SweTask(f"{repo}-{n}", repo, "", "", "", "", ("t",), (), "pytest")
        >>> tasks = SweTasks([made(repo, n) for repo in ("a", "b", "c") for n in range(2)])
        >>> {split: [task["task"] for task in tasks.tasks(split)] for split in tasks.splits}
        {'train': ['a-0', 'a-1', 'b-0', 'b-1'], 'validation': ['c-0', 'c-1']}
    """

    splits: Sequence[str] = ("train", "validation")

    def __init__(
        self,
        train: Iterable[SweTask],
        validation: Iterable[SweTask] | None = None,
        *,
        held_out: float = 0.2,
        by: str = "repo",
    ) -> None:
        train = list(train)
        kept, others = (train, list(validation)) if validation is not None else _hold_out(train, held_out, by)
        self._splits = {"train": kept, "validation": others}
        self._tasks: dict[str, SweTask] = {}
        for task in kept + others:
            if task.instance_id in self._tasks:
                raise InputError(f"two tasks have the name {task.instance_id!r}: leave one of them out")
            self._tasks[task.instance_id] = task
        for split, tasks in self._splits.items():
            if not tasks:
                raise InputError(f"there are no tasks for {split}: {len(train)} tasks were given")

    def tasks(self, split: str) -> Sequence[dict[str, str]]:
        """Return the tasks of a split, as `{"task": instance_id}`, sorted.

        Raises:
            InputError: the split does not exist.
        """
        return [
            {"task": name}
            for name in sorted(task.instance_id for task in self._splits[check_split(split, self.splits)])
        ]

    def task(self, named: Any) -> SweTask:
        """Return the task that `tasks` named.

        Raises:
            InputError: it is not a task of this benchmark.
        """
        name = named.get("task") if isinstance(named, Mapping) else None
        if not isinstance(name, str) or name not in self._tasks:
            raise InputError(f"{named!r} is no task: expected e.g. {{'task': {next(iter(self._tasks))!r}}}")
        return self._tasks[name]


def _hold_out(tasks: list[SweTask], share: float, by: str) -> tuple[list[SweTask], list[SweTask]]:
    if by not in ("repo", "task"):
        raise InputError(f"by={by!r}: choose repo or task")
    if not 0 < share < 1:
        raise InputError(f"held_out={share}: expected a share between 0 and 1")

    def group(task: SweTask) -> str:
        return task.repo if by == "repo" else task.instance_id

    groups = sorted({group(task) for task in tasks}, key=lambda name: hashlib.sha256(name.encode()).digest())
    if len(groups) < 2:
        hint = "; hold out tasks instead with by=task" if by == "repo" and len(tasks) > 1 else ""
        raise InputError(f"{len(tasks)} tasks of {len(groups)} repositories cannot be split{hint}")
    held: set[str] = set()
    for name in groups[:-1]:
        if held and sum(group(task) in held for task in tasks) >= share * len(tasks):
            break
        held.add(name)
    return [t for t in tasks if group(t) not in held], [t for t in tasks if group(t) in held]
