"""WebShop's goals in fixed splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from agent_loops import arguments
from agent_loops.environment import check_split
from agent_loops.errors import InputError
from agent_loops.webshop.catalogue import Catalogue
from agent_loops.webshop.goals import first_worded


class _Indices(Sequence[int]):
    """Goal indices kept as an array, four bytes each."""

    def __init__(self, indices: NDArray[np.int32]) -> None:
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[int]: ...
    def __getitem__(self, place: int | slice) -> int | Sequence[int]:
        found = self._indices[place]
        return _Indices(found) if isinstance(place, slice) else int(found)


class WebShopTasks:
    """Goal indices by split: the first `n_validation` goals are for validation, the rest for training.

    Only the goals' order matters, so the splits are the same in every process. A later goal with exactly the words of
    a validation goal is left out of training.

    Args:
        instructions: the goals' texts, in order.
        n_validation: how many of the first goals are for validation.
    """

    splits: Sequence[str] = ("train", "validation")

    def __init__(self, instructions: Sequence[str], n_validation: int = 500) -> None:
        self._split(first_worded(instructions), n_validation)

    @classmethod
    def of(cls, catalogue: Catalogue, n_validation: int = 500) -> WebShopTasks:
        """Return the splits of a catalogue's goals, without reading prepared goals."""
        tasks = cls.__new__(cls)
        tasks._split(catalogue.first_worded, n_validation)
        return tasks

    def _split(self, first_G: NDArray[np.int32], n_validation: int) -> None:
        arguments.whole("n_validation", n_validation)
        if not 0 < n_validation < len(first_G):
            raise InputError(
                f"n_validation={n_validation} leaves no goals for one of the splits: there are {len(first_G)} "
                f"goals, so choose between 1 and {len(first_G) - 1}"
            )
        # The first goal with the same words never comes later: if it is not for validation, neither is the goal.
        train = np.flatnonzero(first_G >= n_validation).astype(np.int32)
        self._splits: dict[str, Sequence[int]] = {"train": _Indices(train), "validation": range(n_validation)}

    def tasks(self, split: str) -> Sequence[int]:
        """Return the goal indices of a split.

        Raises:
            InputError: the split does not exist.
        """
        return self._splits[check_split(split, self.splits)]
