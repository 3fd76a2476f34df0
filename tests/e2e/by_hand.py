"""AEM over verl-agent's row statistics once more, in lists and loops: no tensor, and nothing of this project.

    h_n = mean entropy of response n;  x_n = (h_n − min_G) / (max_G − min_G);  α_n = exp(−λ x_n) / mean_G exp(−λ x)
    A_n = (r_n − mean_G r) / (std_G r + 1e-6),  r_n = outcome of n's trajectory + its own penalty
    or, for GRPO++, its trajectory's outcome − the mean of the group's other outcomes

with α = 1 in a group whose range is below the guard. Not covered: other scopes, directions and bases (tests/recipe).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import pytest


@dataclass
class Response:
    row: int
    tokens: list[int]
    group: str
    entropy: float
    reward: float
    alpha: float = 1.0
    base: float = 0.0


@dataclass(frozen=True)
class Checked:
    """What a step came to.

    Attributes:
        responses: every response of the step.
        ranges: of the entropies, a number a group.
        guarded: groups that kept α = 1.
        padding: rows that verl added.
        rows: the other rows.
    """

    responses: list[Response]
    ranges: list[float]
    guarded: int
    padding: int
    rows: int


def check_step(
    probes: Path,
    step: int,
    metrics: dict[str, float] | None,
    base: Callable[[list[dict], list[Response]], None] | None = None,
    number: int = 0,
    balanced: bool = False,
) -> Checked:
    """Compare what the workers' loss saw in a step, and what was logged, with the loops; returns what they found.

    Args:
        metrics: what was logged; None where a step has several batches, whose metrics verl combines.
        base: sets the responses' base advantages; by default `standardise`.
        number: of the step's batches.
        balanced: whether trajectories have equal shares of the loss (`algorithm.balance=trajectory`), over tokens.
    """
    label = f"{step:03d}_{number}" if number else f"{step:03d}"
    batch = json.loads((probes / f"step_{label}.json").read_text())
    seen = read_loss(probes, label)
    rows = [row for row in batch if not row["is_padding"]]
    responses = find_responses(rows)
    ranges, guarded = modulate(responses)
    (base or standardise)(rows, responses)
    values = on_tokens(rows, responses)
    if balanced:
        values = share_equally(rows, values, lambda row: sum(row["response_mask"]))
    compare_rows(rows, values, seen, padding=len(batch) - len(rows))
    if metrics is not None:
        compare_metrics(responses, ranges, guarded, metrics)
    return Checked(responses, ranges, guarded, len(batch) - len(rows), len(rows))


def read_loss(probes: Path, label: str) -> list[dict]:
    """The rows that the loss saw of the batch `label`, of all ranks."""
    files = sorted(probes.glob(f"loss_{label}.rank*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def find_responses(rows: list[dict]) -> list[Response]:
    """The loop's spans, else the runs of the mask; only tokens under the mask."""
    last: dict[str, tuple[int, float]] = {}
    for row in rows:
        trajectory, index = row["key"].rsplit("_", 1)
        if int(index) >= last.get(trajectory, (-1, 0.0))[0]:
            last[trajectory] = (int(index), sum(row["rm_scores"]))
    found = []
    for number, row in enumerate(rows):
        mask, extra = row["response_mask"], row["extra_fields"]
        outcome = last[row["key"].rsplit("_", 1)[0]][1]
        spans = extra.get("response_spans", runs(mask))
        for place, (start, stop) in enumerate(spans):
            tokens = [token for token in range(start, stop) if mask[token]]
            if tokens:
                penalty = extra["turn_penalties"][place] if "turn_penalties" in extra else 0.0
                entropy = fmean(row["entropy"][token] for token in tokens)
                reward = float32(outcome + float32(penalty))
                found.append(Response(number, tokens, row["uid"], entropy, reward))
    return found


def runs(mask: list[int]) -> list[tuple[int, int]]:
    found = []
    for token, one in enumerate(mask):
        if one and token and mask[token - 1]:
            found[-1] = (found[-1][0], token + 1)
        elif one:
            found.append((token, token + 1))
    return found


def modulate(responses: list[Response], lam: float = 1.0, min_range: float = 0.1) -> tuple[list[float], int]:
    """Sets α; returns the groups' ranges and how many are under the guard."""
    ranges, guarded = [], 0
    for group in groups(responses):
        low, high = min(one.entropy for one in group), max(one.entropy for one in group)
        ranges.append(high - low)
        if high - low < min_range:
            guarded += 1
            continue
        weights = [math.exp(-lam * (one.entropy - low) / (high - low)) for one in group]
        for one, weight in zip(group, weights, strict=True):
            one.alpha = weight / fmean(weights)
    return ranges, guarded


def leave_one_out(rows: list[dict], responses: list[Response]) -> None:
    """Sets the base advantage of GRPO++: the outcome less the mean of the group's others. A row is a trajectory, and
    those without a response stay among the others."""
    outcomes = [sum(row["rm_scores"]) for row in rows]
    for one in responses:
        others = [outcomes[n] for n, row in enumerate(rows) if row["uid"] == one.group and n != one.row]
        one.base = outcomes[one.row] - fmean(others)


def standardise(rows: list[dict], responses: list[Response]) -> None:
    """Sets the base advantage of `grpo_rows`."""
    for group in groups(responses):
        mean, std = 0.0, 1.0
        if len(group) > 1:
            mean = fmean(one.reward for one in group)
            std = math.sqrt(sum((one.reward - mean) ** 2 for one in group) / (len(group) - 1))
        for one in group:
            one.base = (one.reward - mean) / (std + 1e-6)


def groups(responses: list[Response]) -> list[list[Response]]:
    return [[one for one in responses if one.group == name] for name in sorted({one.group for one in responses})]


def on_tokens(rows: list[dict], responses: list[Response]) -> list[list[float]]:
    """The advantages of the rows' tokens, where every token of a response has the same."""
    values = [[0.0] * len(row["response_mask"]) for row in rows]
    for one in responses:
        for token in one.tokens:
            values[one.row][token] = one.alpha * one.base
    return values


def share_equally(rows: list[dict], values: list[list[float]], units: Callable[[dict], int]) -> list[list[float]]:
    """The values times the mean number of units of a trajectory over that of their own; not all may have equally many.

    `units` of a row are its tokens, or 1, by what the loss weighs equally.
    """
    names = [row["key"].rsplit("_", 1)[0] for row in rows]
    count = dict.fromkeys(names, 0)
    for name, row in zip(names, rows, strict=True):
        count[name] += units(row)
    assert len(set(count.values())) > 1, "all trajectories are equally long"
    mean = fmean(one for one in count.values() if one)
    # a trajectory without a unit has no value but 0
    return [[mean / (count[name] or 1) * one for one in of] for name, of in zip(names, values, strict=True)]


def compare_rows(
    rows: list[dict],
    advantages: list[list[float]],
    seen: list[dict],
    padding: int,
    whitened: bool = False,
    rounding: float = 2e-6,
) -> None:
    """Each row of the batch once in the worker, with the advantages that the loops expect; padding rows with none.

    Off the mask they are 0, except where verl whitens: that moves them from 0, and the loss leaves them out. It also
    divides float32's rounding of rewards and values by a small σ. `rounding` is what is allowed where large values
    cancel each other.

    Rows are known by their old log-probs. Two rollouts that began alike share them, and may differ in the outcome, so
    rows of equal log-probs are compared as a set.
    """
    expected: dict[tuple, list[list[float]]] = {}
    for row, values in zip(rows, advantages, strict=True):
        expected.setdefault(_name(row), []).append(_under_mask(values, row))
    found: dict[tuple, list[list[float]]] = {}
    empty = 0
    for row in seen:
        off = [value for value, one in zip(row["advantages"], row["response_mask"], strict=True) if not one]
        assert whitened or not any(off), f"advantages off the mask: {off}"
        if any(row["response_mask"]):
            found.setdefault(_name(row), []).append(_under_mask(row["advantages"], row))
        else:
            empty += 1
    masked = len(expected.pop((), []))  # rows of a failed episode
    assert empty == padding + masked, "rows without a response, in the worker and in the batch"
    assert {name: len(same) for name, same in found.items()} == {name: len(same) for name, same in expected.items()}
    for name, same in expected.items():
        for ours, theirs in zip(sorted(same), sorted(found[name]), strict=True):
            assert theirs == pytest.approx(ours, rel=1e-5, abs=2e-5 if whitened else rounding)


def _name(row: dict) -> tuple:
    return tuple(_under_mask(row["old_log_probs"], row))


def _under_mask(values: list[float], row: dict) -> list[float]:
    return [value for value, one in zip(values, row["response_mask"], strict=True) if one]


def compare_metrics(responses: list[Response], ranges: list[float], guarded: int, metrics: dict[str, float]) -> None:
    alphas = [one.alpha for one in responses]

    def share(condition) -> float:
        return fmean(condition(one) for one in responses)

    def sign(one: Response) -> float:  # a reward equal to its group's mean up to rounding is no advantage
        return 0.0 if abs(one.base) < 1e-9 else one.base

    ours = {
        "alpha/mean": fmean(alphas),
        "alpha/min": min(alphas),
        "alpha/max": max(alphas),
        "entropy/mean": fmean(one.entropy for one in responses),
        "entropy/range_mean": fmean(ranges),
        "groups/guarded": guarded / len(ranges),
        "groups/modulated": 1 - guarded / len(ranges),
        "advantage/positive": share(lambda one: sign(one) > 0),
        "advantage/negative": share(lambda one: sign(one) < 0),
        "advantage/modulated_mean": fmean(one.alpha * one.base for one in responses),
        "quadrant/good_certain": share(lambda one: sign(one) > 0 and one.alpha > 1),
        "quadrant/good_uncertain": share(lambda one: sign(one) > 0 and one.alpha < 1),
        "quadrant/bad_certain": share(lambda one: sign(one) < 0 and one.alpha > 1),
        "quadrant/bad_uncertain": share(lambda one: sign(one) < 0 and one.alpha < 1),
    }
    logged = {name: metrics[f"aem/{name}"] for name in ours}
    assert logged == pytest.approx(ours, rel=1e-5, abs=1e-5)
    assert metrics["timing_s/aem"] > 0


def float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]
