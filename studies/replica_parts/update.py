"""One pass of updates over a batch: verl's vanilla policy loss, the loss terms that are enabled, AdamW."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any  # transformers annotates its models too loosely to check against

import torch
from torch import Tensor

from recipe.aem.methods.algorithm import LossTerm, Prepared
from replica_parts.policy import log_probs_and_entropies, response_logits
from replica_parts.rollout import Row


def policy_loss(log_prob_M: Tensor, old_M: Tensor, advantage_M: Tensor, actor: Mapping[str, Any]) -> Tensor:
    """Compute verl's vanilla policy loss of each token: PPO's clip, and the dual clip at `clip_ratio_c`."""
    low = actor["clip_ratio_low"] if actor.get("clip_ratio_low") is not None else actor["clip_ratio"]
    high = actor["clip_ratio_high"] if actor.get("clip_ratio_high") is not None else actor["clip_ratio"]
    ratio_M = torch.exp((log_prob_M - old_M).clamp(-20.0, 20.0))
    loss_M = torch.maximum(-advantage_M * ratio_M, -advantage_M * ratio_M.clamp(1 - low, 1 + high))
    dual_M = torch.minimum(-advantage_M * actor["clip_ratio_c"], loss_M)
    return torch.where(advantage_M < 0, dual_M, loss_M)


def low_var_kl(log_prob_M: Tensor, reference_M: Tensor) -> Tensor:
    """Compute verl's `low_var_kl` of each token: r − log r − 1 with r = π_ref / π (Schulman's k3), clipped as there."""
    log_M = (reference_M - log_prob_M).clamp(-20.0, 20.0)
    return (log_M.exp() - log_M - 1).clamp(-10.0, 10.0)


def mini_batches(rows: int, size: int, shuffle: bool, chance: random.Random) -> list[list[int]]:
    """Return the row indices of each update.

    verl pads the batch with masked rows to a multiple of `size`. They are at its end, so without `actor.shuffle` the
    last update has the remainder; with it they are spread over all updates.
    """
    order = list(range(-(-rows // size) * size))
    if shuffle:
        chance.shuffle(order)
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    return [[number for number in part if number < rows] for part in parts]


def update(
    model: Any,
    optimizer: torch.optim.Optimizer,
    rows: Sequence[Row],
    mask_BT: Tensor,
    old_BT: Tensor,
    advantage_BT: Tensor,
    actor: Mapping[str, Any],
    parts: Sequence[Sequence[int]],
    pad: int,
    terms: Sequence[tuple[LossTerm, Prepared]] = (),
    reference_BT: Tensor | None = None,
    entropy_coeff: float = 0.0,
) -> float:
    """Take one optimizer step per part that has rows (`seam.empty_updates`); return the mean gradient norm.

    Args:
        reference_BT: log-probs of the reference policy, for verl's KL loss with `actor.kl_loss_coef`.
        entropy_coeff: of the mean entropy that is taken off the loss.
    """
    norms = []
    for chosen in parts:
        if not chosen:
            continue
        tokens = int(mask_BT[chosen].sum())
        optimizer.zero_grad()
        for part, logits_MV, token_M in response_logits(model, [rows[number] for number in chosen], pad):
            numbers = [chosen[place] for place in part]

            def flat(value_BT: Tensor, numbers: list[int] = numbers) -> Tensor:
                return value_BT[numbers][mask_BT[numbers].bool()]

            log_prob_M, entropy_M = log_probs_and_entropies(logits_MV, token_M)
            loss = policy_loss(log_prob_M, flat(old_BT), flat(advantage_BT).float(), actor).sum() / tokens
            for term, prepared in terms:
                weight_1M = flat(prepared.weight_BT)[None]
                loss = loss + term.loss(entropy_M[None], weight_1M, prepared.numbers, len(parts))[0]
            if reference_BT is not None:
                loss = loss + actor["kl_loss_coef"] * low_var_kl(log_prob_M, flat(reference_BT)).sum() / tokens
            if entropy_coeff:
                loss = loss - entropy_coeff * entropy_M.sum() / tokens
            loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm(actor))))
        optimizer.step()
    return sum(norms) / len(norms)


def clip_norm(actor: Mapping[str, Any]) -> float:
    """Return the maximum gradient norm: the optimizer's setting, or the actor's."""
    return float(actor["optim"].get("clip_grad") or actor["grad_clip"])
