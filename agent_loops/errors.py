"""The errors that `agent_loops` raises on purpose.

Each class derives from `AgentLoopError` and from a class of the standard library, so that `except AgentLoopError`
catches all of them and `except ValueError` those of that kind. Each can be pickled, because errors cross process
boundaries. A class that only one module raises is defined in that module. Not part of this tree: what a protocol of
Python requires (`KeyError` of a mapping, `OSError` with a number, `ModuleNotFoundError` at an import) and
`AssertionError`, which marks a bug of this package.
"""

from __future__ import annotations


class AgentLoopError(Exception):
    """Base class of every error that this package raises on purpose."""


class InputError(AgentLoopError, ValueError):
    """A setting, an argument, a file's content or an environment's answer is not as it should be."""


class InputTypeError(AgentLoopError, TypeError):
    """A value has another type than it should have."""


class OrderError(AgentLoopError, RuntimeError):
    """A call was made out of order, such as `step` before `reset`."""


class FailedError(AgentLoopError, RuntimeError):
    """A program or foreign code failed."""


class MissingFileError(AgentLoopError, FileNotFoundError):
    """A file that a setting names does not exist."""


class MissingKeyError(AgentLoopError, KeyError):
    """A key that an environment must report is missing."""

    def __str__(self) -> str:  # KeyError's own quotes the message
        return str(self.args[0]) if self.args else ""


class MissingIndexError(AgentLoopError, IndexError):
    """There is no task with this number."""
