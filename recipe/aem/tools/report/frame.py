"""A dumped step as columns of one value per response, the input of every section about dumps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recipe.aem.batch import Batch
from recipe.aem.dump.step import Step

NOWHERE = -1
"""The code of a kind that the dump does not name."""


@dataclass(frozen=True)
class Frame:
    """One step (or one sub-batch of a step): N responses, without padding rows and masked turns.

    Attributes:
        step: verl's global step.
        kinds: names of kinds of turn; `kind` holds their indices, `NOWHERE` where the dump names none.
        groups: the names of the prompt groups; `group` holds their indices.
        columns: one value per response: `row` and `span` (its place in the dump), `group`, `turn` (1 is a
            trajectory's first), `kind`, `length` (tokens), `advantage` (what the update used), `base` (before the
            modulation), `weight` (α or g), `entropy` (mean of the tokens' entropies, nats per token), `entropy_sum`,
            `surprisal` (−log π, nats per response); NaN where the dump has none.
        trajectories: what is known of each trajectory, including masked trajectories: `success`, `score` (the summed
            token rewards of its last row, which carries the outcome), `fault`, `cut`, `turns`, `judged` (turns that
            are known to be valid or not) and `invalid`.
    """

    step: int
    kinds: Sequence[str]
    groups: Sequence[str]
    columns: Mapping[str, np.ndarray]
    trajectories: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.columns["group"])


def frame_of(step: Step) -> Frame:
    """Return the columns of a dumped step."""
    batch = step.batch.unpadded
    rows = [batch.rows[row] for row, _ in batch.places]
    groups, group_N = _codes([batch.groups[row] for row, _ in batch.places])
    kinds, kind_N = _codes([kind or "" for kind in batch.entries("turn_kinds")], "")
    columns = {
        "row": np.array(rows, dtype=np.int64),
        "span": batch.responses.span_N.numpy(),
        "group": group_N,
        "kind": kind_N,
        "turn": batch.turn_N.numpy(),
        "length": batch.responses.length_N.numpy(),
        "advantage": batch.means(batch.padded("advantages").double()).numpy(),
        "base": batch.means(batch.padded("base_advantages").double()).numpy(),
        "weight": _weights(step, batch),
        **_entropies(batch),
    }
    return Frame(step.meta.step, kinds, groups, columns, _trajectories(step, batch))


def _entropies(batch: Batch) -> dict[str, np.ndarray]:
    unknown = np.full(len(batch.responses), np.nan)
    found = {"entropy": unknown, "entropy_sum": unknown, "surprisal": unknown}
    if "entropies" in batch.tokens:
        sum_N = batch.sums(batch.padded("entropies").double())
        found["entropy_sum"] = sum_N.numpy()
        found["entropy"] = (sum_N / batch.responses.length_N).numpy()
    if "old_log_probs" in batch.tokens:
        found["surprisal"] = -batch.sums(batch.padded("old_log_probs").double()).numpy()
    return found


def _weights(step: Step, batch: Batch) -> np.ndarray:
    if step.weights is None:
        return np.full(len(batch.places), np.nan)
    rows = [step.weights[row] for row in batch.rows]
    values = [rows[row][span] if span < len(rows[row]) else None for row, span in batch.places]
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _trajectories(step: Step, batch: Batch) -> dict[str, np.ndarray]:
    rewards = step.tokens["rewards"].rows()
    kept: list[dict[str, float]] = []
    for rows in batch.trajectories.values():
        extras = [batch.extra_fields[row] for row in rows]
        info = extras[-1].get("reward_extra_info") or {}
        fault = any(extra.get("fault") for extra in extras)
        valid = [] if fault else [valid for extra in extras for valid in extra.get("turn_valid") or ()]
        kept.append(
            {
                "success": float(info.get("acc", np.nan)),
                "score": float(rewards[batch.rows[rows[-1]]].sum()),
                "fault": float(fault) if _has(extras, "fault") else np.nan,
                "cut": float(any(extra.get("cut") for extra in extras)) if _has(extras, "cut") else np.nan,
                "turns": float(sum(len(extra.get("response_spans", (0,))) for extra in extras)),
                "judged": float(len(valid)),
                "invalid": float(len(valid) - sum(valid)),
            }
        )
    names = ("success", "score", "fault", "cut", "turns", "judged", "invalid")
    return {name: np.array([trajectory[name] for trajectory in kept], dtype=float) for name in names}


def _has(extras: Sequence[Mapping[str, Any]], name: str) -> bool:
    return any(name in extra for extra in extras)


def _codes(values: Sequence[str], nowhere: str | None = None) -> tuple[list[str], np.ndarray]:
    """Return the names in the order of first appearance, and each value's index among them."""
    names: dict[str, int] = {}
    codes = [NOWHERE if value == nowhere else names.setdefault(value, len(names)) for value in values]
    return list(names), np.array(codes, dtype=np.int64)
