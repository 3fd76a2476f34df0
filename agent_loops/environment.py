"""The protocol every environment of this package follows: strings in, strings out, in Gymnasium's words.

An environment is synchronous and knows nothing of tokens, prompts or verl. A *benchmark* is what a process opens once
(a catalogue, an index, a set of games) and all its episodes share; `Benchmark.make` gives one episode's environment,
whose own state is small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from agent_loops.errors import InputError

Task = Any
"""Plain data that names one episode: an index, a file name, a dict of those. It must survive JSON."""


@dataclass(frozen=True)
class Observation:
    """What the agent sees before it acts.

    Attributes:
        text: the page or the feedback, exactly as the benchmark words it.
        actions: the admissible actions, empty where free text is meant.
        info: facts about the observation. `instruction`: the task in words, where the benchmark has one. `body`: the
            text without these words. `page`: where the agent stands, as one of a few words, where there are such (it
            sorts turns in reports). Of the first one also `kind`: the type of the task, where there are several.
    """

    text: str
    actions: Sequence[str] = ()
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """The environment's answer to one action.

    Attributes:
        observation: what the agent sees next.
        reward: this action's reward, on the benchmark's own scale; a finite number. Methods that credit turns read it
            of all turns but an episode's last, which has the outcome (`won`) instead.
        terminated: the task ended (won or lost).
        truncated: the environment cut the episode short (its own step limit).
        info: facts about the outcome. `won`: bool, the task is solved. `score`: float in [0, 1], where it is graded.
            `invalid`: why the action breaks the format, where only the environment can tell. `counts`: further numbers
            of the episode by name, which become metrics beside `task_score`.
    """

    observation: Observation
    reward: float
    terminated: bool
    truncated: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Environment(Protocol):
    """One episode at a time. `thread_safe`: different instances may step in different threads at once.

    An environment may also have `conclude() -> Mapping`: `won` and `score`, as in `Step.info`, of the task as it stands
    when the loop cuts the episode.
    """

    thread_safe: ClassVar[bool]

    def reset(self, task: Task, /) -> Observation: ...

    def step(self, action: str, /) -> Step: ...

    def close(self) -> None: ...


@runtime_checkable
class TaskSet(Protocol):
    """The tasks of a benchmark by split. Splits never share a task, and their order is fixed by the data alone."""

    @property
    def splits(self) -> Sequence[str]: ...

    def tasks(self, split: str, /) -> Sequence[Task]: ...


@runtime_checkable
class Benchmark(Protocol):
    """What one process opens once: read-only data, the task set, and a maker of environments over them."""

    @property
    def name(self) -> str: ...

    @property
    def task_set(self) -> TaskSet: ...

    def make(self) -> Environment: ...


def check_split(split: str, splits: Sequence[str]) -> str:
    """Return the split's name.

    Args:
        split: what was asked for.
        splits: those of the task set.

    Raises:
        ValueError: it is none of them.

    Example:
        >>> check_split("train", ("train", "validation"))
        'train'
    """
    if split not in splits:
        raise InputError(f"split {split!r} does not exist: choose one of {', '.join(splits)}")
    return split
