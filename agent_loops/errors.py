"""The errors that `agent_loops` raises on purpose.

Each has `AgentLoopError` and a class of the standard library as bases, so that `except AgentLoopError` takes all of
them and `except ValueError` those of that kind; and each can be pickled, for they cross the borders of processes.
A class that only one module raises is defined there. Not of this tree: what a protocol of Python asks for (`KeyError`
of a mapping, `OSError` with a number, `ModuleNotFoundError` at an import) and `AssertionError`, which is our mistake.
"""

from __future__ import annotations


class AgentLoopError(Exception):
    """Base class of every error that this package raises on purpose."""


class InputError(AgentLoopError, ValueError):
    """A setting, an argument, a file's content or what an environment returned is not as it should be."""


class InputTypeError(AgentLoopError, TypeError):
    """A value is of another type than it should be."""


class OrderError(AgentLoopError, RuntimeError):
    """A call came out of turn, such as `step` before `reset`."""


class FailedError(AgentLoopError, RuntimeError):
    """A program or foreign code failed."""


class MissingFileError(AgentLoopError, FileNotFoundError):
    """A file that a setting names is not there."""


class MissingKeyError(AgentLoopError, KeyError):
    """What an environment has to tell is not among what it tells."""

    def __str__(self) -> str:  # KeyError's own quotes the message
        return str(self.args[0]) if self.args else ""


class MissingIndexError(AgentLoopError, IndexError):
    """There is no task of this number."""
