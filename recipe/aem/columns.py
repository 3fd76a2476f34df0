"""Columns of one value a token: ragged as they are stored, and how verl's TransferQueue has them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

QUEUE_COLUMNS = {
    "prompt_ids": ("prompts",),
    "response_ids": ("responses",),
    "response_mask": ("response_mask",),
    # the second exists where KL is taken off the rewards, and is then what the advantages are made from
    "rewards": ("rm_scores", "token_level_rewards"),
    "old_log_probs": ("old_log_probs",),
    "entropies": ("entropy",),
    "values": ("values",),
    "advantages": ("advantages",),
}
"""A batch's columns, and what verl calls them in its queue; of several the last that is there counts."""


@dataclass(frozen=True)
class Ragged:
    """A column with one row of tokens for each of B rows, each of its own length.

    Attributes:
        values: the rows one after the other.
        length_B: int64, how long each is.

    Examples:
        >>> Ragged.from_rows([torch.tensor([1, 2]), torch.tensor([3])]).pad(3)
        tensor([[1, 2, 0],
                [3, 0, 0]])
    """

    values: Tensor
    length_B: Tensor

    @classmethod
    def from_rows(cls, rows: Sequence[Tensor]) -> Ragged:
        return cls(torch.cat(list(rows)), torch.tensor([len(row) for row in rows], dtype=torch.int64))

    @classmethod
    def from_padded(cls, value_BT: Tensor, length_B: Tensor) -> Ragged:
        """Of a rectangle, what is not behind the end of a row."""
        return cls(value_BT[torch.arange(value_BT.shape[1]) < length_B[:, None]], length_B)

    def rows(self) -> list[Tensor]:
        return list(self.values.split(self.length_B.tolist()))

    def take(self, rows: Sequence[int]) -> Ragged:
        """Some of the rows."""
        if len(rows) == len(self.length_B):
            return self
        every = self.rows()
        return Ragged.from_rows([every[row] for row in rows])

    def pad(self, width: int) -> Tensor:
        """A rectangle, 0 behind the end of a row."""
        padded = self.values.new_zeros(len(self.length_B), width)
        padded[torch.arange(width) < self.length_B[:, None]] = self.values
        return padded

    def nested(self) -> Tensor:
        """As verl's queue stores columns."""
        return torch.nested.as_nested_tensor(self.rows(), layout=torch.jagged)


def number_labels(names: Iterable[Hashable]) -> Tensor:
    """Integer labels in the order of first appearance."""
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names], dtype=torch.int64)


def queue_names(columns: Iterable[str]) -> list[str]:
    """What to ask verl's queue for."""
    return [name for column in columns for name in QUEUE_COLUMNS[column]]


def columns_of(data: Any, columns: Iterable[str]) -> dict[str, Ragged]:
    """Of a TensorDict that was asked for them, the columns that it has."""
    there = set(data.keys())
    found = {}
    for column in columns:
        names = [name for name in QUEUE_COLUMNS[column] if name in there]
        if names:
            found[column] = Ragged.from_rows(data[names[-1]].unbind(0))
    return found


def extra_fields_of(data: Any, rows: int) -> list[Mapping[str, Any] | None]:
    """What the agent loop left with each row, of a TensorDict that was asked for it; None where it left nothing."""
    if "extra_fields" not in data.keys():  # noqa: SIM118  (a TensorDict is not a mapping of its keys)
        return [None] * rows
    return data.pop("extra_fields").tolist()


def put_columns(batch: Any, columns: Mapping[str, Tensor]) -> Any:
    """Write nested columns of a batch (verl's `KVBatchMeta`); returns what TransferQueue returns."""
    import transfer_queue as tq
    from tensordict import TensorDict

    fields = TensorDict(dict(columns), batch_size=len(batch.keys))  # type: ignore[arg-type]
    return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)


def put_mask(batch: Any, mask: Ragged) -> None:
    """Write the response mask of a batch; what masked tokens have is learned by nobody, in no term of the loss.

    verl's engines count a mini-batch's tokens in `loss_mask`, which it stores as a copy.
    """
    nested = mask.nested()
    put_columns(batch, {"response_mask": nested, "loss_mask": nested})
