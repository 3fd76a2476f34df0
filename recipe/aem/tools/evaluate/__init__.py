"""Evaluation of a checkpoint through verl's own validation, for `aem eval`.

Printing is in `recipe.aem.tools.cli.eval`.
"""

from __future__ import annotations

from aem_core.errors import AEMError
from agent_loops.reading import FileError


class EvaluationError(AEMError, FileError):
    """An error that the user can fix: the message says what is wrong and what to do."""
