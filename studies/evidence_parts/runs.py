"""The runs of a CSV and their measures, as named in studies/PROTOCOL.md, and those of studies/methods.yaml."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance

import numpy as np
from scipy import stats

from recipe.aem.tools.statistics import Estimate, mean_interval, paired_difference, summarise, t_quantile
from recipe.aem.tools.study.results import Row, read_csv

Series = Sequence[tuple[int, float]]
RESAMPLES = 10_000


@dataclass(frozen=True)
class Run:
    """One training."""

    benchmark: str
    method: str
    seed: int
    series: Mapping[str, Series]


def runs(rows: Sequence[Row]) -> list[Run]:
    """Return the runs in the CSV's order."""
    found: dict[tuple[str, str, int], dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        of = found.setdefault((row.benchmark, row.method, row.seed), {})
        of.setdefault(row.metric, []).append((row.step, row.value))
    return [Run(*key, series) for key, series in found.items()]


def runs_of(folder: Path, pattern: str) -> list[Run]:
    """Return the runs of all CSVs of a folder that match, which need not have been made on one machine.

    Raises:
        ValueError: two of them hold the same run.
    """
    found: dict[tuple[str, str, int], Run] = {}
    for path in sorted(folder.glob(pattern)):
        for run in runs(read_csv(path)):
            key = run.benchmark, run.method, run.seed
            if key in found:
                raise ValueError(
                    f"{path}: {'/'.join(map(str, key))} is in another of {pattern}, too; delete one of them"
                )
            found[key] = run
    return list(found.values())


def third(series: Series, which: int) -> float | None:
    """Return the mean over the first (0), second (1) or last (2) third of a run's steps."""
    steps = max((step for step, _ in series), default=0)
    chosen = [value for step, value in series if which * steps < 3 * step <= (which + 1) * steps]
    return fmean(chosen) if chosen else None


def mean_of(name: str) -> Callable[[Run], float | None]:
    def measure(run: Run) -> float | None:
        return fmean(value for _, value in run.series[name]) if run.series.get(name) else None

    return measure


def share_of_step(timer: str) -> Callable[[Run], float | None]:
    """Measure the seconds of a timer as a share of the whole step, in one run."""

    def measure(run: Run) -> float | None:
        own, whole = dict(run.series.get(timer, ())), dict(run.series.get("timing_s/step", ()))
        both = own.keys() & whole.keys()
        return sum(own[step] for step in both) / sum(whole[step] for step in both) if both else None

    return measure


def at_end(name: str, place: int) -> Callable[[Run], float | None]:
    """Measure the first (0) or last (−1) value of a series."""
    return lambda run: run.series[name][place][1] if run.series.get(name) else None


MEASURES: Mapping[str, Callable[[Run], float | None]] = {
    "mean level": lambda run: summarise(run.series.get("success", ()), "auc"),
    "end": lambda run: summarise(run.series.get("success", ()), "mean_last_2"),
    "entropy, first third": lambda run: third(run.series.get("entropy", ()), 0),
    "entropy, last third": lambda run: third(run.series.get("entropy", ()), 2),
    "alpha q05": mean_of("aem/alpha/q05"),
    "alpha q95": mean_of("aem/alpha/q95"),
    "guarded": mean_of("aem/groups/guarded"),
    "without variance": mean_of("aem/groups/without_variance"),
    "between kinds": mean_of("aem/alpha/between_kinds"),
    "between kinds by chance": mean_of("aem/alpha/between_kinds_by_chance"),
    "share of step": share_of_step("timing_s/aem"),
    # of studies/methods.yaml
    "before": at_end("success", 0),
    "after": at_end("success", -1),
    "seconds": mean_of("timing_s/step"),
    "method's share of step": share_of_step("timing_s/aem_method"),
}
PRIMARY = "mean level"


def values(found: Sequence[Run], benchmark: str, method: str, measure: str) -> dict[int, float]:
    """Return a measure by seed."""
    of = {run.seed: MEASURES[measure](run) for run in found if (run.benchmark, run.method) == (benchmark, method)}
    return {seed: value for seed, value in of.items() if value is not None}


@dataclass(frozen=True)
class Difference:
    """The difference of two methods, paired by seed.

    Attributes:
        estimate: with Student's t interval.
        bootstrap: the percentile interval; None for fewer than two pairs.
        p: two-sided, of the paired t test; None for fewer than two pairs.
    """

    estimate: Estimate
    bootstrap: tuple[float, float] | None
    p: float | None


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """Compute first − second; None where they share no seed."""
    estimate = paired_difference(first, second)
    if estimate is None or estimate.low is None or estimate.high is None:
        return None if estimate is None else Difference(estimate, None, None)
    pairs = np.array([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())])
    means = np.random.default_rng(0).choice(pairs, (RESAMPLES, len(pairs))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    half = (estimate.high - estimate.low) / 2
    return Difference(estimate, (float(low), float(high)), p_value(estimate.mean, half, estimate.n - 1))


def apart(first: Sequence[float], second: Sequence[float]) -> Estimate | None:
    """Compute mean(first) − mean(second) of independent runs, with Welch's 95 % t interval; None below two each.

    ν = (a + b)² / (a²/(n₁ − 1) + b²/(n₂ − 1)), a = s₁²/n₁, b = s₂²/n₂, rounded down, which widens the interval.

    Returns:
        The estimate; its `n` is the smaller side's.
    """
    count = min(len(first), len(second))
    if count < 2:
        return None
    mean, a, b = fmean(first) - fmean(second), variance(first) / len(first), variance(second) / len(second)
    if a + b == 0:
        return Estimate(mean, mean, mean, count)
    degrees = (a + b) ** 2 / (a**2 / (len(first) - 1) + b**2 / (len(second) - 1))
    half = t_quantile(math.floor(degrees)) * math.sqrt(a + b)
    return Estimate(mean, mean - half, mean + half, count)


def p_value(mean: float, half: float, degrees: int) -> float:
    """Return the two-sided p value of a mean with the half-width of its 95 % t interval."""
    if half == 0:
        return 1.0 if mean == 0 else 0.0
    return 2 * float(stats.t.sf(abs(mean) / half * t_quantile(degrees), degrees))


def holm(p: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values, in the order given."""
    order, adjusted, largest = sorted(range(len(p)), key=lambda place: p[place]), [math.nan] * len(p), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = largest
    return adjusted


def interval(found: Sequence[Run], benchmark: str, method: str, measure: str) -> Estimate | None:
    return mean_interval(list(values(found, benchmark, method, measure).values()))
