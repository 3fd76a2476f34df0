"""ALFWorld's games in the official splits, by the type of their task."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from agent_loops import arguments
from agent_loops.alfworld.game import GameError
from agent_loops.environment import check_split
from agent_loops.errors import InputError

RELEASE = "json_2.1.1"
SPLITS = ("train", "valid_seen", "valid_unseen")
KINDS = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
"""The six types of tasks, in the order of ALFWorld's numbers for them (1 to 6)."""


def games_directory(data_dir: str | Path) -> Path:
    """Return the directory with the splits: `data_dir` itself, or `json_2.1.1` in it.

    Raises:
        GameError: neither directory has them.
    """
    data_dir = arguments.path("data_dir", data_dir)
    for directory in (data_dir / RELEASE, data_dir):
        if any((directory / split).is_dir() for split in SPLITS):
            return directory
    raise GameError(
        f"{data_dir} holds no games: expected {RELEASE} with {', '.join(SPLITS)} in it; `aem data alfworld` fetches it"
    )


def kind_of(game: str) -> str:
    """Return the type of a game's task, with which its folder's name begins.

    Example:
        >>> kind_of("train/pick_and_place_simple-Book-None-Sofa-229/trial_T2019/game.tw-pddl")
        'pick_and_place_simple'
    """
    return Path(game).parts[-3].split("-")[0] if len(Path(game).parts) > 2 else ""


def find_games(data_dir: str | Path) -> dict[str, list[str]]:
    """Return all games by split, as paths below the directory with the splits. Only names are inspected.

    The order is that of a checksum of the path: it is the same everywhere, and every prefix of it is a fair sample of
    the types and rooms, which a prefix of an alphabetical order would not be.
    """
    directory = games_directory(data_dir)
    found: dict[str, list[str]] = {}
    for split in SPLITS:
        games = []
        for task in _folders(directory / split):
            for trial in _folders(Path(task)):
                if os.path.isfile(os.path.join(trial, "game.tw-pddl")):
                    games.append(f"{split}/{os.path.basename(task)}/{os.path.basename(trial)}/game.tw-pddl")
        found[split] = sorted(games, key=lambda game: hashlib.sha256(game.encode()).digest())
    return found


class AlfworldTasks:
    """Games by split. A task is a game's path below `json_2.1.1`.

    Args:
        games: the result of `find_games`.
        kinds: the types of tasks to include, as a list or a comma-separated string.
    """

    splits: Sequence[str] = SPLITS

    def __init__(self, games: dict[str, list[str]], kinds: str | Sequence[str] = KINDS) -> None:
        kinds = arguments.names("kinds", kinds)
        unknown = sorted(set(kinds) - set(KINDS))
        if unknown:
            raise InputError(f"kinds={unknown[0]!r} is not a type of task: choose from {', '.join(KINDS)}")
        self._games = {
            split: [game for game in games.get(split, ()) if kind_of(game) in kinds] for split in self.splits
        }

    def tasks(self, split: str) -> Sequence[str]:
        """Return the games of a split.

        Raises:
            InputError: the split does not exist.
        """
        return self._games[check_split(split, self.splits)]


def _folders(directory: Path) -> list[str]:
    if not directory.is_dir():
        return []
    with os.scandir(directory) as entries:
        return sorted(entry.path for entry in entries if entry.is_dir())
