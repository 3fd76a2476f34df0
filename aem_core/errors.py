"""What aem_core raises. All of it is an `AEMError`, and each error is also the standard type it specialises."""

__all__ = ["AEMError", "AEMValueError"]


class AEMError(Exception):
    """Base class of every error that this project raises on purpose.

    Subclasses take one message and nothing else, so that they survive pickling between processes.

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
