"""studies/reliability.py: its draws against the closed form, and docs/reading_alpha.md against the committed CSV.

Not covered: whether the script still writes that CSV (a minute; run it).
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from reliability import Setting, simulate, true_reliability

ROOT = Path(__file__).parents[2]
GROUPS = 40


@pytest.mark.parametrize("spread", [0.2, 0.4])
@pytest.mark.parametrize("length", [16, 128])
def test_the_estimate_is_right_where_tokens_are_independent(length, spread):
    row = simulate(Setting(length, 64, spread, run=1), GROUPS, seed=1)
    # the estimate is clipped at 0 in each group, which lifts a small mean
    assert row.estimate == pytest.approx(row.reliability, abs=0.08)
    # H̄ is f times a mean that knows nothing of f, so its correlation with f is the root of the share; α falls with H̄
    assert -row.r == pytest.approx(row.reliability**0.5, abs=0.08)


def test_without_true_differences_alpha_follows_nothing():
    row = simulate(Setting(32, 64, 0.0, run=1), GROUPS, seed=2)
    assert (row.reliability, row.r) == (0, 0) and row.estimate < 0.1 < row.range


def test_the_estimate_is_right_where_neighbours_are_alike_and_the_tokens_variance_is_not():
    independent, alike = (simulate(Setting(32, 64, 0.2, run), GROUPS, seed=3) for run in (1, 4))
    assert alike.reliability < independent.reliability and -alike.r < -independent.r
    assert alike.estimate == pytest.approx(alike.reliability, abs=0.1)
    assert alike.by_tokens > alike.reliability + 0.4
    assert independent.by_tokens == pytest.approx(independent.reliability, abs=0.08)


def test_the_true_reliability():
    # m = 0.256, v = 0.36686, of_f = e^0.04 − 1 = 0.040811: 0.0026746 / (0.0026746 + 1.040811 · 0.36686 / 100)
    assert true_reliability(Setting(100, 64, 0.2, run=1)) == pytest.approx(0.41192, abs=1e-5)


def test_the_pages_numbers_are_the_csvs():
    page = " ".join((ROOT / "docs" / "reading_alpha.md").read_text(encoding="utf-8").split())
    with (ROOT / "studies" / "results" / "reliability.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["responses"] == "64"]
    value = {
        (int(row["length"]), float(row["spread"]), int(row["run"]), name): float(row[name])
        for row in rows
        for name in ("by_tokens", "r", "range")
    }
    r8, r32, r128, r512 = (f"−{-value[length, 0.2, 1, 'r']:.2f}" for length in (8, 32, 128, 512))
    assert f"that is {r8} at 8 tokens, {r32} at 32, {r128} at 128 and {r512} at 512" in page
    w8, w32, w128, w512 = (f"{value[length, 0.0, 1, 'range']:.2f}" for length in (8, 32, 128, 512))
    assert f"a range of {w8} nats over 64 responses of 8 tokens, {w32} at 32, {w128} at 128, and {w512} at 512" in page
    least = min(
        by_tokens for (_, spread, run, name), by_tokens in value.items() if (spread, run, name) == (0, 4, "by_tokens")
    )
    assert f"stays above {least - 0.005:.2f} there even" in page
