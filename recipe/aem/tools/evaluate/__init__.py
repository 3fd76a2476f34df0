"""Evaluating a checkpoint through verl's own validation, for `aem eval`. Printing is in `recipe.aem.tools.cli.eval`."""

from __future__ import annotations

from aem_core.errors import AEMError
from agent_loops.reading import FileError


class EvaluationError(AEMError, FileError):
    """What the user can put right: the message says what is wrong and what to do."""
