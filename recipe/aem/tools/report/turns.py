"""Response entropy and α by turn and by kind of turn, and the share of α's variance that these explain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from recipe.aem.tools.report.columns import Columns
from recipe.aem.tools.report.frame import NOWHERE

FEWEST = 5
"""Turns and kinds with fewer responses are counted, not drawn: their mean would say nothing."""
QUARTILES = (0.25, 0.5, 0.75)


def by_turn(columns: Columns) -> list[dict[str, Any]]:
    """Summarise entropy and α for each turn index that at least `FEWEST` responses have."""
    turn = columns["turn"].astype(int)
    return [{"turn": int(index), **_about(columns, turn == index)} for index in np.unique(turn) if _many(turn == index)]


def by_kind(columns: Columns) -> list[dict[str, Any]]:
    """Summarise entropy and α for each kind of turn, the most frequent first."""
    kind = columns["kind"].astype(int)
    counted = sorted(range(len(columns.kinds)), key=lambda code: -int((kind == code).sum()))
    return [{"kind": columns.kinds[code], **_about(columns, kind == code)} for code in counted if _many(kind == code)]


def _many(which: np.ndarray) -> bool:
    return int(which.sum()) >= FEWEST


def _about(columns: Columns, which: np.ndarray) -> dict[str, Any]:
    about: dict[str, Any] = {"responses": int(which.sum())}
    for title, name in (("entropy", "entropy"), ("weight", "weight")):
        values = columns[name][which]
        values = values[~np.isnan(values)]
        about[title] = None
        if len(values):
            low, middle, high = np.quantile(values, QUARTILES)
            about[title] = {"mean": float(values.mean()), "q25": float(low), "q50": float(middle), "q75": float(high)}
    return about


def explained(columns: Columns) -> list[dict[str, Any]] | None:
    """Compute how much of α's variance inside prompt groups turn kind, turn index, and both together explain.

    Groups in which α does not vary are left out, because they have nothing to explain. All three use the same
    responses: those with a kind, where the dump names kinds.

    Returns:
        One entry per factor, as `eta_squared` gives it; None where α does not vary anywhere.
    """
    if "weight" not in columns:
        return None
    weight, group, turn, kind = (columns[name] for name in ("weight", "group", "turn", "kind"))
    known = ~np.isnan(weight)
    if (kind != NOWHERE).any():
        known &= kind != NOWHERE
    weight, group, turn, kind = (values[known] for values in (weight, group, turn, kind))
    varied = _spread(weight, group) > 0
    weight, group, turn, kind = (values[varied] for values in (weight, group, turn, kind))
    if not len(weight):
        return None
    factors = {"turn index": turn}
    if (kind != NOWHERE).any():
        both = np.unique(np.stack([kind, turn]), axis=1, return_inverse=True)[1]
        factors = {"turn kind": kind, **factors, "both together": both.reshape(-1)}
    return [{"factor": name, **eta_squared(weight, group, cell)} for name, cell in factors.items()]


def eta_squared(value: np.ndarray, group: np.ndarray, cell: np.ndarray) -> dict[str, Any]:
    """Compute the share of a value's variance inside groups that a grouping into cells explains.

    Both the value and the cells' indicators are taken relative to their group's mean; η² is the R² of the regression
    of the value on the indicators. It is 1 where the value is the same function of the cell in every group, plus a
    constant per group, however the groups mix the cells.

    With many small cells, chance explains much: with df_m the rank of the indicators and df_t the number of values
    minus the number of groups, meaningless cells explain df_m / df_t on average (exactly so for a value of equal
    variance everywhere). `adjusted` corrects for this: 1 − (1 − η²) · df_t / (df_t − df_m), which is 0 on average by
    chance.

    Args:
        value: of each response.
        group: its prompt group.
        cell: its turn kind, or turn index, or both.

    Returns:
        `eta2`, `chance`, `adjusted` (None where a cell is left for every value), `cells`, `responses`, `groups`.

    Examples:
        >>> found = eta_squared(np.array([1.0, 2.0, 5.0, 6.0]), np.array([0, 0, 1, 1]), np.array([7, 8, 7, 8]))
        >>> round(found["eta2"], 6), found["chance"]
        (1.0, 0.5)
    """
    _, group = np.unique(group, return_inverse=True)
    _, cell = np.unique(cell, return_inverse=True)
    groups, cells = int(group.max()) + 1, int(cell.max()) + 1
    size = np.bincount(group, minlength=groups)
    inner = value - (np.bincount(group, value, groups) / size)[group]
    counts = np.bincount(group * cells + cell, minlength=groups * cells).reshape(groups, cells).astype(float)
    # X'MX and X'My, with X the indicators and M the projection that subtracts a group's mean
    gram = np.diag(counts.sum(0)) - counts.T @ (counts / size[:, None])
    moment = np.bincount(cell, inner, cells)
    values, vectors = np.linalg.eigh(gram)
    kept = values > max(values.max(), 1.0) * cells * 1e-12
    rank, total = int(kept.sum()), float(inner @ inner)
    model = float(((vectors[:, kept].T @ moment) ** 2 / values[kept]).sum())
    freedom = len(value) - groups
    eta2 = min(1.0, model / total) if total > 0 else None
    return {
        "eta2": eta2,
        "chance": rank / freedom if freedom else None,
        "adjusted": 1 - (1 - eta2) * freedom / (freedom - rank) if eta2 is not None and freedom > rank else None,
        "cells": cells,
        "responses": len(value),
        "groups": groups,
    }


def _spread(value: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return the range of values in each response's group; rounding errors count as 0."""
    codes = np.unique(group, return_inverse=True)[1]
    high = np.full(codes.max(initial=-1) + 1, -np.inf)
    low = -high
    np.maximum.at(high, codes, value)
    np.minimum.at(low, codes, value)
    spread = high - low
    return np.where(spread > 1e-6, spread, 0.0)[codes]


def shown_kinds(tables: Sequence[list[dict[str, Any]]], most: int = 12) -> list[str]:
    """Return the kinds that fit in a chart: the most frequent over all runs."""
    counts: dict[str, int] = {}
    for table in tables:
        for row in table:
            counts[row["kind"]] = counts.get(row["kind"], 0) + row["responses"]
    return sorted(counts, key=lambda kind: -counts[kind])[:most]
