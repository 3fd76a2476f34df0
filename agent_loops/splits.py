"""The name of a split, checked."""

from __future__ import annotations

from collections.abc import Sequence


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
        raise ValueError(f"split {split!r} does not exist: choose one of {', '.join(splits)}")
    return split
