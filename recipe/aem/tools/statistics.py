"""What a few seeds allow to say: summaries of a run, means over seeds, and intervals that are honest for three of them.

A percentile bootstrap over three seeds is no 95 % interval: each extreme resample has probability 1/27 > 0.025, so its
interval is the span of the three values, which holds a symmetric distribution's centre 75 % of the time. Student's t
with n − 1 degrees of freedom has the stated coverage for normal values, however few.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from statistics import fmean, stdev


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; `low` and `high` are None for fewer than two values.

    Attributes:
        n: how many values are behind it.
    """

    mean: float
    low: float | None
    high: float | None
    n: int


@cache
def t_quantile(degrees: int, coverage: float = 0.95) -> float:
    """The t with P(|T| <= t) = coverage, for an integer number of degrees of freedom.

    The distribution function is a finite sum then (Abramowitz and Stegun, 26.7.3 and 26.7.4), inverted by bisection.

    Raises:
        ValueError: degrees < 1, or a coverage outside (0, 1).

    >>> round(t_quantile(2), 3)
    4.303
    """
    if degrees < 1 or not 0 < coverage < 1:
        raise ValueError(f"degrees >= 1 and 0 < coverage < 1 are expected, not {degrees} and {coverage}")
    low, high = 0.0, math.pi / 2  # θ = atan(t / √ν), in which the function is monotone and bounded
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _coverage(middle, degrees) < coverage else (low, middle)
    return math.tan((low + high) / 2) * math.sqrt(degrees)


def _coverage(theta: float, degrees: int) -> float:
    """P(|T| <= t) at θ = atan(t / √ν)."""
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = degrees % 2
    total, term = 0.0, cosine if odd else 1.0
    for index in range(1 + odd, degrees, 2):  # of the powers of cos θ: each term from the one before
        total += term
        term *= index / (index + 1) * cosine**2
    return 2 / math.pi * (theta + sine * total) if odd else sine * total


def mean_interval(values: Sequence[float]) -> Estimate | None:
    """The mean of independent values and its 95 % t interval; None for no value.

    >>> mean_interval([1.0, 2.0, 3.0]).n
    3
    """
    if not values:
        return None
    mean = fmean(values)
    if len(values) == 1:
        return Estimate(mean, None, None, 1)
    half = t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half, len(values))


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate | None:
    """The mean difference over the seeds that both have, with its 95 % t interval; None where they share none.

    Args:
        values: by seed.
        baseline: by seed.
    """
    return mean_interval([values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())])


def summarise(series: Sequence[tuple[int, float]], how: str) -> float | None:
    """One value of a run's series.

    Args:
        series: (step, value), in the order of the steps.
        how: `last`; `best`, the largest, which is optimistic; `mean_last_K`; or `auc`, the area under the series over
            its steps divided by their range, so a mean level.

    Returns:
        The value; None where the series is empty, or shorter than K.
    """
    values = [value for _, value in series]
    if not values:
        return None
    if how == "last":
        return values[-1]
    if how == "best":
        return max(values)
    if how == "auc":
        width = series[-1][0] - series[0][0]
        if width == 0:
            return values[0]
        pairs = pairwise(series)
        return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairs) / width
    count = int(how.removeprefix("mean_last_"))
    return fmean(values[-count:]) if len(values) >= count else None
