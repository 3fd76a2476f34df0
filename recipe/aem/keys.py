"""The names that verl gives the rows of a batch, read here and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

KEY = re.compile(r".+_[0-9]+_[0-9]+", re.DOTALL)
"""verl's name of a row."""


@dataclass(frozen=True)
class RowKey:
    """verl's name of a row, `{uid}_{session}_{index}`, in parts; `trajectory` is `{uid}_{session}`."""

    uid: str
    session: int
    index: int
    trajectory: str


def parse_key(key: str) -> RowKey:
    """Take a row's name apart.

    Raises:
        ValueError: it is no such name.

    Examples:
        >>> parse_key("u_x_0_1")
        RowKey(uid='u_x', session=0, index=1, trajectory='u_x_0')
    """
    trajectory, _, index = key.rpartition("_")
    uid, _, session = trajectory.rpartition("_")
    return RowKey(uid, int(session), int(index), trajectory)


def rows_by_trajectory(keys: Sequence[RowKey]) -> dict[str, list[int]]:
    """The numbers of the rows of each trajectory, in the order of its turns.

    Examples:
        >>> rows_by_trajectory([parse_key(key) for key in ("u_0_1", "u_0_0", "v_2_0")])
        {'u_0': [1, 0], 'v_2': [2]}
    """
    rows: dict[str, list[int]] = {}
    for row in sorted(range(len(keys)), key=lambda row: keys[row].index):
        rows.setdefault(keys[row].trajectory, []).append(row)
    return rows
