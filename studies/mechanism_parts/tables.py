"""Table rows, summaries over independent groups or seeds, and CSV text with a fixed number of decimals."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import torch

from recipe.aem.tools.statistics import mean_interval, wilson

Row = dict[str, str | int | float]

SIGNIFICANT = 4  # significant figures of a value in a CSV


def interval(values: Sequence[float], name: str = "mean") -> Row:
    """Return the mean of independent values and its 95 % t interval, as columns."""
    found = mean_interval(list(values))
    if found is None or found.low is None or found.high is None:
        raise ValueError(f"{name}: two values at least are expected, not {len(values)}")
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


def share(hits: Sequence[bool], name: str) -> Row:
    """Return the share of independent hits and Wilson's 95 % interval, as columns."""
    part = sum(hits) / len(hits)
    low, high = wilson(part, len(hits))
    return {name: part, f"{name}_low": low, f"{name}_high": high}


def quantiles(values: Sequence[float], points: Sequence[float] = (0.05, 0.5, 0.95)) -> Row:
    """Return quantiles as columns q05, q50, …"""
    value_N = torch.tensor(list(values), dtype=torch.float64)
    return {f"q{round(100 * point):02d}": float(torch.quantile(value_N, point)) for point in points}


def as_csv(rows: Sequence[Row]) -> str:
    """Return the rows as CSV; all rows have the first row's columns."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _text(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def _text(value: str | int | float) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.{SIGNIFICANT}g}" if abs(value) >= 5e-14 else "0"
