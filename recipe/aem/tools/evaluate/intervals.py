"""Means and intervals over tasks that were each played several times. Pure: numbers in, numbers out.

Tasks are what a benchmark samples; episodes of one task resemble each other. So every interval here is over tasks,
each with the mean of its episodes (whatever their seed): a resample of tasks takes a task's episodes along, and the
spread of these means holds both kinds of variance already. Episodes are never drawn again within a task; that would
count the variance among them twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval.

    Attributes:
        mean: over tasks.
        low, high: the 95 % interval; None where the tasks' values say nothing of it.
        method: how the interval was made.
        tasks: how many there are.
    """

    mean: float
    low: float | None
    high: float | None
    method: str
    tasks: int


def rate(means: Sequence[float], episodes: int = 1) -> Estimate:
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
        ValueError: there are no tasks, or a share is none.

    Example:
        >>> found = rate([1.0, 0.0, 1.0, 1.0] * 16)
        >>> found.mean, round(found.low, 3), round(found.high, 3)
        (0.75, 0.632, 0.84)
    """
    values = _values(means)
    if values.min() < 0 or values.max() > 1:
        raise ValueError("a share lies between 0 and 1")
    n, p = len(values), float(values.mean())
    spread = float(values.var(ddof=1)) / n if n > 1 else 0.0
    trials = float(n)
    if spread > 0 and episodes > 1:
        trials = min(p * (1 - p) / spread, float(n * episodes))
    low, high = wilson(p, trials)
    return Estimate(p, low, high, "Wilson's, tasks as clusters", n)


def wilson(share: float, trials: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share.

    Example:
        >>> [round(bound, 4) for bound in wilson(0.0, 10)]
        [0.0, 0.2775]
    """
    z2 = NormalDist().inv_cdf((1 + LEVEL) / 2) ** 2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = (z2 * share * (1 - share) / trials + z2**2 / (4 * trials**2)) ** 0.5 / (1 + z2 / trials)
    # the bounds hold the share; in floating point they may miss it where it is 0 or 1
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def mean(means: Sequence[float]) -> Estimate:
    """A mean of any quantity, such as turns: a bootstrap over tasks, of percentiles.

    The resampled means are spread by √(n / (n − 1)) about the mean, for a resample's variance is that of the n tasks
    and not n − 1's. Same numbers, same interval: the generator has a fixed seed.

    Args:
        means: each task's mean.

    Raises:
        ValueError: there are no tasks.
    """
    values = _values(means)
    n, middle = len(values), float(values.mean())
    if np.ptp(values) == 0:  # a bootstrap would claim certainty
        return Estimate(middle, None, None, "none: one task" if n == 1 else "none: all tasks alike", n)
    low, high = _bootstrap(values)
    return Estimate(middle, low, high, "bootstrap over tasks", n)


def difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """second − first, of shares that are paired by task: a bootstrap over the pairs.

    Where no task differs, a bootstrap would claim certainty. Then the interval is ± Wilson's upper bound on the share
    of tasks that do: a difference of the means cannot be larger than that share.

    Args:
        first: each task's share in one evaluation.
        second: in the other, in the same order.

    Raises:
        ValueError: there are no pairs.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values are no pairs")
    values = _values(second) - _values(first)
    n = len(values)
    if not values.any():
        bound = wilson(0.0, n)[1]
        return Estimate(0.0, -bound, bound, "Wilson's, of tasks that differ: none does", n)
    return mean(values.tolist())


def _values(means: Sequence[float]) -> NDArray[np.float64]:
    values = np.asarray(means, dtype=np.float64)
    if not len(values):
        raise ValueError("there are no tasks")
    if not np.isfinite(values).all():
        raise ValueError("a task's mean is not a number")
    return values


def _bootstrap(values: NDArray[np.float64]) -> tuple[float, float]:
    n, rng = len(values), np.random.default_rng(0)
    # a value and how often it is drawn: far fewer numbers than n draws where values repeat, as shares do
    distinct, counts = np.unique(values, return_counts=True)
    resampled = rng.multinomial(n, counts / n, size=RESAMPLES) @ distinct / n
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    middle, wider = float(values.mean()), (n / (n - 1)) ** 0.5
    return min(middle, middle + wider * (float(low) - middle)), max(middle, middle + wider * (float(high) - middle))
