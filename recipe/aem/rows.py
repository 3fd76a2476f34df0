"""What is known of the rows of a V1 batch beside their tensors, and where their responses are.

verl's padding rows are the caller's to leave out. L is the number of rows that are left.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aem_core import Responses, find_responses

ExtraFields = Sequence[Mapping[str, Any]]
"""What the agent loop left with each row (see `agent_loops.loop`); empty where it left nothing."""


@dataclass(frozen=True)
class Rows:
    """Which group and trajectory each row belongs to.

    Attributes:
        group_L: the prompt group's label of each row.
        trajectory_L: the trajectory's label of each row, unique in the batch.
        order_L: the row's place within its trajectory.
    """

    group_L: Sequence[str]
    trajectory_L: Sequence[str]
    order_L: Sequence[int]

    @classmethod
    def from_keys(cls, keys: Sequence[str], group_L: Sequence[Any]) -> Rows:
        """Read verl's names of rows, `{uid}_{session}_{index}`."""
        names = [key.rsplit("_", 1) for key in keys]
        return cls([str(group) for group in group_L], [name for name, _ in names], [int(index) for _, index in names])

    def trajectories(self) -> list[list[int]]:
        """The row numbers of each trajectory, in the order of its turns."""
        rows: dict[str, list[int]] = {}
        for row in sorted(range(len(self.order_L)), key=lambda row: self.order_L[row]):
            rows.setdefault(self.trajectory_L[row], []).append(row)
        return list(rows.values())


def trained_rows(
    keys: Sequence[str],
    group_B: Sequence[Any],
    is_padding: Sequence[bool],
    extra_fields: Sequence[Mapping[str, Any] | None],
) -> list[int]:
    """The numbers of the rows that training may learn from and take statistics over.

    A fault of the infrastructure is no lost episode: a trajectory with one is left out, whatever its mask says. So is a
    trajectory that faults left alone in its prompt group, since nothing is there that it could be compared with. A
    trajectory that was alone without any fault stays.

    Args:
        keys: `{uid}_{session}_{index}`, verl's name of a row.
        group_B: the prompt group's label of each row.
        is_padding: rows that verl added to fill a mini-batch; left out, whatever fields they copied.
        extra_fields: what the agent loop left with each row; `fault` says why the trajectory failed.

    Examples:
        >>> extra = [{"fault": fault} for fault in ("", "reset: OSError", "", "", "reset: OSError")]
        >>> trained_rows(["u_0_0", "u_1_0", "u_2_0", "v_0_0", "v_1_0"], ["u"] * 3 + ["v"] * 2, [False] * 5, extra)
        [0, 2]
    """
    trajectory_B = [key.rsplit("_", 1)[0] for key in keys]
    live = [row for row, padding in enumerate(is_padding) if not padding]
    faulted = {trajectory_B[row] for row in live if (extra_fields[row] or {}).get("fault")}
    sound: dict[str, set[str]] = {str(group_B[row]): set() for row in live if trajectory_B[row] in faulted}
    for row in live:
        if trajectory_B[row] not in faulted and str(group_B[row]) in sound:
            sound[str(group_B[row])].add(trajectory_B[row])
    alone = {group for group, trajectories in sound.items() if len(trajectories) < 2}
    return [row for row in live if trajectory_B[row] not in faulted and str(group_B[row]) not in alone]


def number_labels(names: Iterable[Hashable]) -> Tensor:
    """Integer labels in the order of first appearance."""
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names], dtype=torch.int64)


def responses_of_rows(extra_L: ExtraFields, mask_LT: Tensor) -> Responses:
    """The loop's own spans where it recorded them, else maximal runs of the mask; never a token off the mask."""
    runs = find_responses(mask_LT)
    if not any("response_spans" in extra for extra in extra_L):
        return runs
    spans = [[(int(start), int(stop)) for start, stop in extra.get("response_spans", ())] for extra in extra_L]
    without = {row for row, extra in enumerate(extra_L) if "response_spans" not in extra}
    first_N = first_tokens(runs) % mask_LT.shape[1]
    for row, start, length in zip(runs.row_N.tolist(), first_N.tolist(), runs.length_N.tolist(), strict=True):
        if row in without:
            spans[row].append((start, start + length))
    return Responses.from_spans(spans, shape=runs.shape, mask_BT=mask_LT)


def first_tokens(responses: Responses) -> Tensor:
    """Where the first token of each response stands: row · T + column."""
    return responses.token_M[responses.length_N.cumsum(0) - responses.length_N]
