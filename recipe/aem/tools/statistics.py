"""Means with intervals: Student's t over seeds, Wilson's and a bootstrap over tasks, Fisher's z for a correlation.

Over seeds: a percentile bootstrap over three seeds is no 95 % interval: each extreme resample has probability
1/27 > 0.025, so its interval is the span of the three values, which holds a symmetric distribution's centre 75 % of the
time. Student's t with n − 1 degrees of freedom has the stated coverage for normal values, however few.

Over tasks that were each played several times: tasks are what a benchmark samples; episodes of one task resemble each
other. So these intervals are over tasks, each with the mean of its episodes (whatever their seed): a resample of tasks
takes a task's episodes along, and the spread of these means holds both kinds of variance already. Episodes are never
drawn again within a task; that would count the variance among them twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from aem_core.errors import AEMValueError

LEVEL = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval.

    Attributes:
        low, high: None where the values say nothing of it, such as fewer than two for Student's t.
        n: how many values are behind it: seeds, or tasks.
        method: how the interval was made.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    method: str = "Student's t"


def t_quantile(degrees: int) -> float:
    """The t with P(|T| <= t) = 0.95.

    >>> round(t_quantile(2), 3)
    4.303
    """
    return float(stats.t.ppf((1 + LEVEL) / 2, degrees))


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


def share_interval(means: Sequence[float], episodes: int = 1) -> Estimate:
    """A share, such as success, of tasks with a share each.

    Wilson's score interval, whose number of trials is the number of independent ones that would have the same variance:
    p (1 − p) / (s² / n), with s² the variance of the n tasks' means. That is about n where a task's episodes agree,
    near n times the episodes where they are independent, and never more. It is n, which is Wilson's own interval, with
    one episode a task and where all episodes have one outcome. Unlike a bootstrap it does not collapse there, and it
    holds with few tasks.

    Args:
        means: each task's share, in [0, 1].
        episodes: of each task.

    Raises:
        AEMValueError: there are no tasks, or a share is none.

    Example:
        >>> found = share_interval([1.0, 0.0, 1.0, 1.0] * 16)
        >>> found.mean, round(found.low, 3), round(found.high, 3)
        (0.75, 0.632, 0.84)
    """
    values = _values(means)
    if values.min() < 0 or values.max() > 1:
        raise AEMValueError("a share lies between 0 and 1")
    n, p = len(values), float(values.mean())
    spread = float(values.var(ddof=1)) / n if n > 1 else 0.0
    trials = float(n)
    if spread > 0 and episodes > 1:
        trials = min(p * (1 - p) / spread, float(n * episodes))
    low, high = wilson(p, trials)
    return Estimate(p, low, high, n, "Wilson's, tasks as clusters")


def wilson(share: float, trials: float) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share; scipy's (`binomtest`) takes whole numbers of trials alone.

    Example:
        >>> [round(bound, 4) for bound in wilson(0.0, 10)]
        [0.0, 0.2775]
    """
    z2 = float(stats.norm.ppf((1 + LEVEL) / 2)) ** 2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = (z2 * share * (1 - share) / trials + z2**2 / (4 * trials**2)) ** 0.5 / (1 + z2 / trials)
    # the bounds hold the share; in floating point they may miss it where it is 0 or 1
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def bootstrap_interval(means: Sequence[float]) -> Estimate:
    """A mean of any quantity, such as turns: a bootstrap over tasks, of percentiles.

    The resampled means are spread by √(n / (n − 1)) about the mean, for a resample's variance is that of the n tasks
    and not n − 1's. Same numbers, same interval: the generator has a fixed seed.

    Args:
        means: each task's mean.

    Raises:
        AEMValueError: there are no tasks.
    """
    values = _values(means)
    n, middle = len(values), float(values.mean())
    if np.ptp(values) == 0:  # a bootstrap would claim certainty
        return Estimate(middle, None, None, n, "none: one task" if n == 1 else "none: all tasks alike")
    low, high = _bootstrap(values)
    return Estimate(middle, low, high, n, "bootstrap over tasks")


def difference_of_shares(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """second − first, of shares that are paired by task: a bootstrap over the pairs.

    Where no task differs, a bootstrap would claim certainty. Then the interval is ± Wilson's upper bound on the share
    of tasks that do: a difference of the means cannot be larger than that share.

    Args:
        first: each task's share in one evaluation.
        second: in the other, in the same order.

    Raises:
        AEMValueError: there are no pairs.
    """
    if len(first) != len(second):
        raise AEMValueError(f"{len(first)} and {len(second)} values are no pairs")
    values = _values(second) - _values(first)
    n = len(values)
    if not values.any():
        bound = wilson(0.0, n)[1]
        return Estimate(0.0, -bound, bound, n, "Wilson's, of tasks that differ: none does")
    return bootstrap_interval(values.tolist())


def correlation(x: ArrayLike, y: ArrayLike) -> tuple[float, float | None, float | None] | None:
    """Pearson's r with a 95 % interval by Fisher's z, which takes the pairs for independent.

    Returns:
        r, low, high (None for fewer than five pairs); None for fewer than three pairs, or where one side does not vary.

    Example:
        >>> [round(value, 2) for value in correlation([1, 2, 3, 4, 5], [1, 3, 2, 5, 4])]
        [0.8, -0.28, 0.99]
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    found: Any = stats.pearsonr(x, y)  # scipy has no annotations
    r = float(found.statistic)
    if len(x) < 5 or abs(r) == 1:
        return r, None, None
    interval = found.confidence_interval(LEVEL)
    return r, float(interval.low), float(interval.high)


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


def _values(means: Sequence[float]) -> NDArray[np.float64]:
    values = np.asarray(means, dtype=np.float64)
    if not len(values):
        raise AEMValueError("there are no tasks")
    if not np.isfinite(values).all():
        raise AEMValueError("a task's mean is not a number")
    return values


def _bootstrap(values: NDArray[np.float64]) -> tuple[float, float]:
    n, rng = len(values), np.random.default_rng(0)
    # a value and how often it is drawn: far fewer numbers than n draws where values repeat, as shares do
    distinct, counts = np.unique(values, return_counts=True)
    resampled = rng.multinomial(n, counts / n, size=RESAMPLES) @ distinct / n
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    middle, wider = float(values.mean()), (n / (n - 1)) ** 0.5
    return min(middle, middle + wider * (float(low) - middle)), max(middle, middle + wider * (float(high) - middle))
