"""Summaries and intervals, against worked examples, published tables, and simulated coverage."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("scipy", reason="scipy is not installed")

from recipe.aem.tools import statistics
from recipe.aem.tools.statistics import mean_interval, paired_difference, summarise

SHARES = st.lists(st.integers(0, 4).map(lambda wins: wins / 4), min_size=1, max_size=60)
values = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8)


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


# --- over tasks -----------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(SHARES)
def test_a_share_lies_in_its_interval_and_that_between_0_and_1(shares):
    found = statistics.share_interval(shares, 4)
    assert found.mean == pytest.approx(np.mean(shares)) and found.n == len(shares)
    assert 0 <= found.low <= found.mean <= found.high <= 1
    assert found.high > found.low, "nothing is certain"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=40))
def test_a_mean_lies_in_its_interval(values):
    found = statistics.bootstrap_interval(values)
    if len(set(values)) == 1:
        assert found.low is None and "alike" in found.method, "nothing is certain"
    else:
        assert found.low <= found.mean <= found.high
    assert min(values) - 1e-9 <= found.mean <= max(values) + 1e-9
    assert found == statistics.bootstrap_interval(values), "the same numbers give the same interval"


@settings(max_examples=100, deadline=None)
@given(SHARES)
def test_intervals_shrink_with_tasks(shares):
    once, often = statistics.share_interval(shares, 4), statistics.share_interval(shares * 4, 4)
    assert often.high - often.low < once.high - once.low
    if len(set(shares)) > 1:
        once, often = statistics.bootstrap_interval(shares), statistics.bootstrap_interval(shares * 4)
        assert often.high - often.low <= once.high - once.low


def test_one_episode_a_task_is_wilsons_own_interval():
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    known = ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718))
    for wins, n, low, high in known:
        found = statistics.share_interval([1.0] * wins + [0.0] * (n - wins))
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_episodes_that_agree_add_nothing_and_independent_ones_do():
    agreeing = statistics.share_interval([1.0, 0.0] * 50, 8)
    single = statistics.share_interval([1.0, 0.0] * 50, 1)
    assert agreeing.high - agreeing.low == pytest.approx(single.high - single.low, rel=0.02)
    independent = statistics.share_interval((np.random.default_rng(0).binomial(8, 0.5, size=100) / 8).tolist(), 8)
    assert independent.high - independent.low < 0.5 * (single.high - single.low)


@pytest.mark.parametrize("tasks", [12, 30, 100])
@pytest.mark.parametrize("episodes", [1, 4])
@pytest.mark.parametrize("shape", [(0.5, 0.5), (2, 2), (0.3, 3)])
def test_coverage_of_the_share(tasks, episodes, shape):
    rng = np.random.default_rng([tasks, episodes, int(10 * shape[0])])
    true, held = shape[0] / sum(shape), 0
    for _ in range(500):
        found = statistics.share_interval(
            (rng.binomial(episodes, rng.beta(*shape, size=tasks)) / episodes).tolist(), episodes
        )
        held += found.low <= true <= found.high
    assert held / 500 >= 0.91


@pytest.mark.parametrize(("tasks", "episodes"), [(30, 1), (30, 4), (100, 2)])
def test_coverage_of_the_difference(tasks, episodes, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    rng, held = np.random.default_rng(tasks + episodes), 0
    for _ in range(300):
        p = rng.beta(1, 1, size=tasks)
        one, other = (rng.binomial(episodes, q) / episodes for q in (p, np.clip(p + 0.1, 0, 1)))
        true = float(np.mean(1 - 0.9**2 / 2 - 0.5))  # E min(p + 0.1, 1) − E p = 0.095
        found = statistics.difference_of_shares(one.tolist(), other.tolist())
        held += found.low <= true <= found.high
    assert held / 300 >= 0.91


def test_no_differing_task_is_no_certainty():
    found = statistics.difference_of_shares([1.0, 0.0] * 10, [1.0, 0.0] * 10)
    assert (found.mean, found.low, found.high) == (
        0.0,
        pytest.approx(-0.1611, abs=1e-4),
        pytest.approx(0.1611, abs=1e-4),
    )
    assert "none does" in found.method
    paired = statistics.difference_of_shares([0.0] * 5 + [1.0] * 95, [1.0] * 5 + [1.0] * 95)
    assert paired.mean == 0.05 and 0 < paired.low < 0.05 < paired.high < 0.12


@pytest.mark.parametrize("bad", [[], [0.5, math.nan], [1.5], [-0.1]])
def test_what_is_no_share(bad):
    with pytest.raises(ValueError):
        statistics.share_interval(bad)


def test_one_task_has_a_mean_and_no_bootstrap():
    assert statistics.bootstrap_interval([3.0]).low is None and statistics.bootstrap_interval([3.0]).mean == 3.0
    with pytest.raises(ValueError, match="no pairs"):
        statistics.difference_of_shares([1.0], [1.0, 0.0])
