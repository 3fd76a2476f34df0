"""What aem_core and recipe.aem raise on purpose: an `AEMError`, and the standard type that it specialises.

To add an error: derive it from `AEMError` and from the standard error that callers may already catch, take one message
(more arguments need defaults), and say what came, what was expected and which setting to change. A test
(tests/recipe/test_errors.py) finds a class without the base, one that does not survive pickling, and a bare standard
error.
"""

__all__ = ["AEMError", "AEMRuntimeError", "AEMValueError"]


class AEMError(Exception):
    """Base class of every error that aem_core and recipe.aem raise on purpose.

    Subclasses can be made from their message alone, so that they survive pickling between processes.

    Examples:
        >>> try:
        ...     raise AEMValueError("lam: got -1.0")
        ... except AEMError as error:
        ...     print(type(error).__name__, error)
        AEMValueError lam: got -1.0
    """


class AEMValueError(AEMError, ValueError):
    """An argument has the wrong type, shape or value; the message says which, what came and what was expected.

    Examples:
        >>> issubclass(AEMValueError, ValueError)
        True
    """


class AEMRuntimeError(AEMError, RuntimeError):
    """Something that a run needs is not there; the message says what, why, and which setting brings it.

    Examples:
        >>> issubclass(AEMRuntimeError, RuntimeError)
        True
    """
