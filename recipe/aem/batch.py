"""Reading a V1 batch back from verl's TransferQueue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from aem_core.errors import AEMRuntimeError


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


def read_mask(batch: Any) -> tuple[Tensor, Sequence[Mapping[str, Any] | None]]:
    """The response mask of a batch (verl's `KVBatchMeta`), nested: a row's own length each; and its `extra_fields`."""
    import transfer_queue as tq

    names = ["response_mask", "extra_fields"]
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
    return data["response_mask"], extra_fields(data, len(batch.keys))


def put_mask(batch: Any, nested_mask: Tensor) -> None:
    """Write the response mask of a batch; what masked tokens have is learned by nobody, in no term of the loss.

    verl's engines count a mini-batch's tokens in `loss_mask`, which it stores as a copy.
    """
    import transfer_queue as tq
    from tensordict import TensorDict

    columns: dict[str, Any] = dict.fromkeys(("response_mask", "loss_mask"), nested_mask)
    fields = TensorDict(columns, batch_size=len(batch.keys))
    tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)


def read_rows(batch: Any, columns: Sequence[str], needed_by: str) -> StoredRows:
    """Fetch columns of a batch (verl's `KVBatchMeta`) with their mask.

    Raises:
        AEMRuntimeError: a column is missing, which happens where the old-policy pass was skipped.
    """
    import transfer_queue as tq

    # the mask comes along so that padding to a rectangle gives the width that verl's own padding gives
    names = [*columns, "extra_fields", "response_mask"]
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
    missing = {*columns, "response_mask"} - set(data.keys())
    if missing:
        raise AEMRuntimeError(
            f"the batch holds no {' and no '.join(sorted(missing))}: {needed_by} needs the old-policy pass "
            "(algorithm.rollout_correction.bypass_mode=False)"
        )
    extra = extra_fields(data, len(batch.keys))
    padded = data.to_padded_tensor()
    return StoredRows(
        columns={name: padded[name] for name in (*columns, "response_mask")},
        nested_mask=data["response_mask"],
        extra_fields=extra,
        is_padding=[bool(tag.get("is_padding", False)) for tag in batch.tags],
    )


def extra_fields(data: Any, rows: int) -> list[Mapping[str, Any] | None]:
    """What the agent loop left with each row, of a TensorDict that was asked for it; None where it left nothing."""
    if "extra_fields" not in data.keys():  # noqa: SIM118  (a TensorDict is not a mapping of its keys)
        return [None] * rows
    return data.pop("extra_fields").tolist()
