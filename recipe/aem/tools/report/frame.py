"""A dumped step as columns of one value a response, which is what every section about dumps computes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from aem_core import Responses
from recipe.aem.dump.step import Step
from recipe.aem.rows import responses_of_rows
from recipe.aem.tools.replay.advantages import live_rows, means, sums, turn_numbers

NOWHERE = -1
"""The code of a kind that the dump does not name."""


@dataclass(frozen=True)
class Frame:
    """One step (or one sub-batch of a step); N responses, padding rows and masked turns left out.

    Attributes:
        step: verl's global step.
        kinds: names of kinds of turn; `kind` holds their positions, `NOWHERE` where the dump names none.
        groups: the names of the prompt groups; `group` holds their positions.
        columns: one value a response: `row` and `span` (its place in the dump), `group`, `turn` (1 is a trajectory's
            first), `kind`, `length` (tokens), `advantage` (what the update used), `base` (before the modulation),
            `weight` (α or g), `entropy` (mean of the tokens' entropies, nats a token), `entropy_sum`, `surprisal`
            (−log π, nats a response); NaN where the dump has none.
        trajectories: what is known of each trajectory, masked ones too: `success`, `score` (the summed token rewards
            of its last row, which carries the outcome), `fault`, `cut`, `turns`, `judged` (turns that are known to be
            valid or not) and `invalid`.
    """

    step: int
    kinds: Sequence[str]
    groups: Sequence[str]
    columns: Mapping[str, np.ndarray]
    trajectories: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.columns["group"])


def frame_of(step: Step) -> Frame:
    """The columns of a dumped step."""
    live_L, width = live_rows(step), step.meta.width
    mask_LT = step.tokens["response_mask"].pad(width)[live_L]
    responses = responses_of_rows([step.extra_fields[row] for row in live_L], mask_LT)

    def column(name: str) -> Tensor:
        return step.tokens[name].pad(width)[live_L].double()

    rows = [live_L[row] for row in responses.row_N.tolist()]
    places = list(zip(rows, responses.span_N.tolist(), strict=True))
    groups, group_N = _codes([str(step.groups[row]) for row in rows])
    kinds, kind_N = _codes([_entry(step.extra_fields[row].get("turn_kinds"), span) or "" for row, span in places], "")
    columns = {
        "row": np.array(rows, dtype=np.int64),
        "span": responses.span_N.numpy(),
        "group": group_N,
        "kind": kind_N,
        "turn": np.array(turn_numbers(step, places), dtype=np.int64),
        "length": responses.length_N.numpy(),
        "advantage": means(column("advantages"), responses).numpy(),
        "base": means(column("base_advantages"), responses).numpy(),
        "weight": _weights(step, places),
        **_entropies(step, column, responses),
    }
    return Frame(step.meta.step, kinds, groups, columns, _trajectories(step, live_L))


def _entropies(step: Step, column: Any, responses: Responses) -> dict[str, np.ndarray]:
    unknown = np.full(len(responses), np.nan)
    found = {"entropy": unknown, "entropy_sum": unknown, "surprisal": unknown}
    if "entropies" in step.tokens:
        sum_N = sums(column("entropies"), responses)
        found["entropy_sum"] = sum_N.numpy()
        found["entropy"] = (sum_N / responses.length_N).numpy()
    if "old_log_probs" in step.tokens:
        found["surprisal"] = -sums(column("old_log_probs"), responses).numpy()
    return found


def _weights(step: Step, places: Sequence[tuple[int, int]]) -> np.ndarray:
    if step.weights is None:
        return np.full(len(places), np.nan)
    values = [_entry(step.weights[row], span) for row, span in places]
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _trajectories(step: Step, live_L: Sequence[int]) -> dict[str, np.ndarray]:
    rows: dict[str, list[int]] = {}
    for row in sorted(live_L, key=lambda row: int(step.keys[row].rsplit("_", 1)[1])):
        rows.setdefault(step.keys[row].rsplit("_", 1)[0], []).append(row)
    rewards = [float(values.sum()) for values in step.tokens["rewards"].rows()]
    kept: list[dict[str, float]] = []
    for of_one in rows.values():
        extras = [step.extra_fields[row] for row in of_one]
        info = extras[-1].get("reward_extra_info") or {}
        fault = any(extra.get("fault") for extra in extras)
        valid = [] if fault else [one for extra in extras for one in extra.get("turn_valid") or ()]
        kept.append(
            {
                "success": float(info.get("acc", np.nan)),
                "score": rewards[of_one[-1]],
                "fault": float(fault) if any("fault" in extra for extra in extras) else np.nan,
                "cut": float(any(extra.get("cut") for extra in extras)) if _has(extras, "cut") else np.nan,
                "turns": float(sum(len(extra.get("response_spans", (0,))) for extra in extras)),
                "judged": float(len(valid)),
                "invalid": float(len(valid) - sum(valid)),
            }
        )
    names = ("success", "score", "fault", "cut", "turns", "judged", "invalid")
    return {name: np.array([one[name] for one in kept], dtype=float) for name in names}


def _has(extras: Sequence[Mapping[str, Any]], name: str) -> bool:
    return any(name in extra for extra in extras)


def _codes(values: Sequence[str], nowhere: str | None = None) -> tuple[list[str], np.ndarray]:
    """Names in the order of their first appearance, and each value's position among them."""
    names: dict[str, int] = {}
    codes = [NOWHERE if value == nowhere else names.setdefault(value, len(names)) for value in values]
    return list(names), np.array(codes, dtype=np.int64)


def _entry(values: Sequence[Any] | None, place: int) -> Any:
    """What stands at a place of a column that may be missing or too short."""
    return values[place] if values is not None and place < len(values) else None
