"""WebShop as a benchmark: its goals in frozen splits, and environments over one shared catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from agent_loops.webshop.catalogue import Catalogue, load_catalogue
from agent_loops.webshop.environment import WebShopEnvironment


class WebShopTasks:
    """Goal indices by split: the first `n_validation` goals validate, the rest train.

    The file's order alone decides, so the splits are the same in every process. A later goal that is worded exactly
    as one for validation trains nobody: it is left out.

    Args:
        instructions: the goals' texts, in file order.
        n_validation: how many of the first goals are for validation.
    """

    splits: Sequence[str] = ("train", "validation")

    def __init__(self, instructions: Sequence[str], n_validation: int = 500) -> None:
        if not 0 < n_validation < len(instructions):
            raise ValueError(
                f"n_validation={n_validation} leaves no goals for one of the splits: there are {len(instructions)} "
                f"goals, so choose between 1 and {len(instructions) - 1}"
            )
        held_out = set(instructions[:n_validation])
        train = [index for index in range(n_validation, len(instructions)) if instructions[index] not in held_out]
        self._splits: dict[str, Sequence[int]] = {"train": tuple(train), "validation": range(n_validation)}

    def tasks(self, split: str) -> Sequence[int]:
        """Returns the goal indices of a split.

        Raises:
            ValueError: the split does not exist.
        """
        if split not in self._splits:
            raise ValueError(f"split {split!r} does not exist: choose one of {', '.join(self.splits)}")
        return self._splits[split]


class WebShop:
    """The benchmark over one data directory. A directory is read once a process, however many objects use it.

    Args:
        data_dir: where WebShop's files lie (`load_catalogue`).
        n_validation: how many of the first goals are for validation.
    """

    def __init__(self, data_dir: str | Path, n_validation: int = 500) -> None:
        self._catalogue = _shared_catalogue(str(Path(data_dir).resolve()))
        self._tasks = WebShopTasks([goal.instruction for goal in self._catalogue.goals], n_validation)

    @property
    def name(self) -> str:
        return "webshop"

    @property
    def catalogue(self) -> Catalogue:
        """The shared, read-only data."""
        return self._catalogue

    @property
    def task_set(self) -> WebShopTasks:
        return self._tasks

    def make(self) -> WebShopEnvironment:
        """Returns a new environment over the shared catalogue."""
        return WebShopEnvironment(self._catalogue)


@lru_cache(maxsize=4)
def _shared_catalogue(directory: str) -> Catalogue:
    return load_catalogue(directory)
