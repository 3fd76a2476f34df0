"""Reading a V1 batch back from verl's TransferQueue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class StoredRows:
    """The rows of a batch, in the batch's order.

    Attributes:
        columns: response-aligned columns, padded to verl's own width; `response_mask` is always among them.
        nested_mask: the mask as it is stored, a row's own length each.
        extra_fields: what the agent loop left with each row.
        is_padding: rows that verl added to fill a mini-batch.
    """

    columns: Mapping[str, Tensor]
    nested_mask: Tensor
    extra_fields: Sequence[Mapping[str, Any] | None]
    is_padding: Sequence[bool]


def read_mask(batch: Any) -> Tensor:
    """The response mask of a batch (verl's `KVBatchMeta`), nested: a row's own length each."""
    import transfer_queue as tq

    return tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["response_mask"])[
        "response_mask"
    ]


def read_rows(batch: Any, columns: Sequence[str], needed_by: str) -> StoredRows:
    """Fetch columns of a batch (verl's `KVBatchMeta`) with their mask.

    Raises:
        RuntimeError: a column is missing, which happens where the old-policy pass was skipped.
    """
    import transfer_queue as tq

    # the mask comes along so that padding to a rectangle gives the width that verl's own padding gives
    names = [*columns, "extra_fields", "response_mask"]
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
    missing = {*columns, "response_mask"} - set(data.keys())
    if missing:
        raise RuntimeError(
            f"the batch holds no {' and no '.join(sorted(missing))}: {needed_by} needs the old-policy pass "
            "(algorithm.rollout_correction.bypass_mode=False)"
        )
    extra: list[Mapping[str, Any] | None] = [None] * len(batch.keys)
    if "extra_fields" in data.keys():  # noqa: SIM118  (a TensorDict is not a mapping of its keys)
        extra = data.pop("extra_fields").tolist()
    padded = data.to_padded_tensor()
    return StoredRows(
        columns={name: padded[name] for name in (*columns, "response_mask")},
        nested_mask=data["response_mask"],
        extra_fields=extra,
        is_padding=[bool(tag.get("is_padding", False)) for tag in batch.tags],
    )
