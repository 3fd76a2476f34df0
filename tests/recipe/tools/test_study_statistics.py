"""Summaries and intervals: against published t quantiles, worked examples, and simulated coverage."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe.aem.tools.statistics import mean_interval, paired_difference, summarise, t_quantile

values = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8)


@pytest.mark.parametrize(
    ("degrees", "coverage", "quantile"),
    # two-sided, from printed tables
    [
        *((1, 0.95, 12.7062), (2, 0.95, 4.30265), (3, 0.95, 3.18245), (4, 0.95, 2.77645), (9, 0.95, 2.26216)),
        *((30, 0.95, 2.04227), (120, 0.95, 1.97993), (2, 0.99, 9.92484), (5, 0.9, 2.01505), (7, 0.5, 0.711142)),
    ],
)
def test_quantiles_are_those_of_the_tables(degrees, coverage, quantile):
    assert t_quantile(degrees, coverage) == pytest.approx(quantile, rel=2e-5)


def test_quantiles_that_are_none():
    for degrees, coverage in ((0, 0.95), (2, 1.0), (2, 0.0)):
        with pytest.raises(ValueError, match="degrees >= 1"):
            t_quantile(degrees, coverage)


def test_an_interval_by_hand():
    # mean 2, standard deviation 1, standard error 1/√3 = 0.57735, times 4.30265
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert (found.low, found.high) == pytest.approx((2 - 2.48414, 2 + 2.48414), rel=1e-5)


def test_fewer_than_two_values_have_no_interval():
    assert mean_interval([]) is None
    one = mean_interval([3.0])
    assert (one.mean, one.low, one.high, one.n) == (3.0, None, None, 1)


def test_three_seeds_are_covered_as_often_as_is_said():
    generator = random.Random(0)
    t = span = 0
    for _ in range(4000):
        sample = [generator.gauss(0, 1) for _ in range(3)]
        found = mean_interval(sample)
        t += found.low <= 0 <= found.high
        span += min(sample) <= 0 <= max(sample)
    assert t / 4000 == pytest.approx(0.95, abs=0.015)
    assert span / 4000 == pytest.approx(0.75, abs=0.03)  # what a bootstrap over three seeds comes to


@given(values, st.floats(-100, 100))
def test_intervals_move_with_their_values(sample, shift):
    here, there = mean_interval(sample), mean_interval([value + shift for value in sample])
    assert there.mean == pytest.approx(here.mean + shift, abs=1e-6)
    assert there.high - there.low == pytest.approx(here.high - here.low, abs=1e-6)


@given(st.dictionaries(st.integers(0, 9), st.floats(-10, 10), min_size=1), st.floats(-5, 5))
def test_differences_are_of_the_seeds_that_both_have(baseline, shift):
    shifted = {seed: value + shift for seed, value in baseline.items()} | {99: 1e6}
    found = paired_difference(shifted, baseline)
    assert found.n == len(baseline) and found.mean == pytest.approx(shift, abs=1e-9)
    if found.n > 1:  # what the seeds share goes out
        assert found.high - found.low == pytest.approx(0, abs=1e-6)
    assert paired_difference({99: 1.0}, baseline) is None


SERIES = [(0, 0.0), (10, 0.4), (20, 0.8), (30, 0.6)]


@pytest.mark.parametrize(
    ("how", "value"),
    # auc: (0.2 + 0.6 + 0.7) · 10 / 30
    [("last", 0.6), ("best", 0.8), ("mean_last_1", 0.6), ("mean_last_3", 0.6), ("auc", 0.5), ("mean_last_5", None)],
)
def test_summaries_by_hand(how, value):
    assert summarise(SERIES, how) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize("how", ["last", "best", "auc", "mean_last_1"])
def test_summaries_of_nothing_and_of_one(how):
    assert summarise([], how) is None
    assert summarise([(7, 0.25)], how) == 0.25


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0, 1)), min_size=2, max_size=9))
def test_the_area_lies_between_the_extremes(gaps):
    steps, series = 0, []
    for gap, value in gaps:
        steps += gap
        series.append((steps, value))
    found = [value for _, value in series]
    assert min(found) - 1e-9 <= summarise(series, "auc") <= max(found) + 1e-9
    assert all(a[0] < b[0] for a, b in pairwise(series))
