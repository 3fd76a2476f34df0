"""The policy's log-probs and entropies on sampled rows, at the response tokens only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any  # transformers annotates its models too loosely to check against

import torch
from torch import Tensor

from replica_parts.rollout import Row

FORWARD_ROWS = 64
"""Rows of a forward pass, sorted by length; the size changes nothing but speed."""


def response_logits(model: Any, rows: Sequence[Row], pad: int) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield for parts of the rows: row indices, and flattened over the response tokens the logits and the tokens."""
    order = sorted(range(len(rows)), key=lambda number: len(rows[number].ids))
    for start in range(0, len(order), FORWARD_ROWS):
        part = order[start : start + FORWARD_ROWS]
        width = max(len(rows[number].ids) for number in part)
        ids = torch.full((len(part), width), pad)
        mask = torch.zeros((len(part), width), dtype=torch.long)
        place: list[tuple[int, int]] = []
        for at, number in enumerate(part):
            of = rows[number]
            ids[at, : len(of.ids)] = torch.tensor(of.ids)
            mask[at, : len(of.ids)] = 1
            # a token's distribution is at the position of the preceding token
            place += [(at, column) for column in range(len(of.prompt) - 1, len(of.ids) - 1)]
        hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        at_M, column_M = torch.tensor(place).T
        yield part, model.lm_head(hidden[at_M, column_M]).float(), ids[at_M, column_M + 1]


def log_probs_and_entropies(logits_MV: Tensor, token_M: Tensor) -> tuple[Tensor, Tensor]:
    log_MV = torch.log_softmax(logits_MV, dim=-1)
    return log_MV.gather(1, token_M[:, None])[:, 0], -(log_MV.exp() * log_MV).sum(-1)


def mask_of(rows: Sequence[Row], width: int) -> Tensor:
    mask_BT = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        mask_BT[number, : len(row.response)] = 1
    return mask_BT


@torch.no_grad()
def old_policy(model: Any, rows: Sequence[Row], mask_BT: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Compute log-probs of the sampled tokens and entropies, (B, T)."""
    log_prob_BT, entropy_BT = torch.zeros(mask_BT.shape), torch.zeros(mask_BT.shape)
    for part, logits_MV, token_M in response_logits(model, rows, pad):
        lengths = [len(rows[number].response) for number in part]
        log_prob_M, entropy_M = log_probs_and_entropies(logits_MV, token_M)
        for number, logs, entropies in zip(part, log_prob_M.split(lengths), entropy_M.split(lengths), strict=True):
            log_prob_BT[number, : len(logs)], entropy_BT[number, : len(entropies)] = logs, entropies
    return log_prob_BT, entropy_BT
