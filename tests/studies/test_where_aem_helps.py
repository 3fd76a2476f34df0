"""studies/where_aem_helps.py: the tables by hand, the rule for learning rates, the page against the committed CSVs.

Not covered: whether the CSVs come from the runs; how the figure looks.
"""

from __future__ import annotations

import re

import pytest
import where_aem_helps
from evidence_parts.runs import PRIMARY, Run, difference, runs_of, values

from recipe.aem.tools.study.file import read_study


def made(length, method, seed, level, reliability=None, fingerprint=5.0):
    series = {"success": [(0, 0.1), (10, 2 * level - 0.1)], "entropy": [(1, 0.5), (2, 0.7)]}
    series["validation/fingerprint"] = [(0, fingerprint)]
    return Run(length, method, seed, series | ({"aem/reliability/mean": [(1, reliability)]} if reliability else {}))


FOUND = [
    *(made("long", "grpo", seed, 0.3 + seed / 100) for seed in (1, 2)),
    *(made("long", "aem", seed, 0.34 + seed / 50, reliability=seed / 4) for seed in (1, 2)),
    made("short", "grpo", 1, 0.3),
    made("short", "aem", 1, 0.28),
]


def test_the_comparisons_by_hand():
    lines = where_aem_helps.comparisons(FOUND, where_aem_helps.BOTH).splitlines()
    # differences 5 and 6 points: 5.5 ± 12.706 · 0.5
    assert lines[0] == "|  | 12 tokens | 102 tokens |", "36 tokens have no run"
    assert lines[2] == "| AEM − GRPO | −2.0, 1 | +5.5 (−0.9 to +11.9), 2 |"
    assert lines[3:] == ["| AEM − shuffled α | not run | not run |"]
    assert where_aem_helps.comparisons([], where_aem_helps.BOTH) == where_aem_helps.NOTHING


def test_fresh_pairs_stand_apart_from_those_of_the_map():
    fresh = [made("long", method, seed, 0.3) for method in ("grpo", "aem") for seed in (27, 42)]
    found = where_aem_helps.Found([*FOUND, *fresh], [], [])
    assert (found.mapped, found.fresh) == (FOUND, fresh)
    page = where_aem_helps.fill("<!-- comparisons -->\n<!-- end -->\n<!-- fresh -->\n<!-- end -->\n", found)
    of_map, of_fresh = page.split("<!-- fresh -->")
    assert "+5.5 (−0.9 to +11.9), 2 |" in of_map
    assert "| AEM − GRPO | +0.0 (+0.0 to +0.0), 2 |" in of_fresh


def test_the_distance_of_entropies_by_hand():
    entropies = {"aem": [0.5, 0.7], "grpo": [0.6, 0.4], "entropy_of_aem": [0.5, 0.8]}
    found = [Run("middle", method, 27, {"entropy": list(enumerate(series))}) for method, series in entropies.items()]
    said = where_aem_helps.entropy_followed(found)
    assert "1 pairs: 0.05 nats a step with the bonus, 0.20 with GRPO alone" in said
    assert where_aem_helps.entropy_followed(found[:2]) == where_aem_helps.NOTHING


def test_the_levels_by_hand():
    lines = where_aem_helps.levels(FOUND).splitlines()
    assert lines[2] == "| `grpo` | 12 | 1 | 10.0 | 30.0 | 30.0 | 0.60 |  |  |"
    assert lines[-1] == "| `aem` | 102 | 2 | 10.0 ± 0.0 | 37.0 ± 12.7 | 37.0 ± 12.7 | 0.60 | 0.38 |  |"


def test_a_mean_that_rounds_to_zero_has_no_sign():
    of = [Run("long", "aem", 1, {"aem/groups/shift_mean": [(1, value)]}) for value in (-0.001, -0.002)]
    assert where_aem_helps._mean(of, "aem/groups/shift_mean") == "0.00"
    assert where_aem_helps._mean([Run("long", "aem", 1, {"x": [(1, -0.5)]})], "x") == "−0.50"


def test_the_learning_rate_with_the_highest_mean_level_is_chosen():
    found = [
        made("long", f"aem_{name}", seed, level + seed / 1000)
        for name, level in (("low", 0.3), ("middle", 0.32), ("high", 0.2))
        for seed in (0, 2)
    ]
    assert where_aem_helps.chosen(found) == {("long", "aem"): "5e-4"}
    assert where_aem_helps.chosen(found[:5]) == {}, "a rate lacks a seed"
    row = where_aem_helps.rates(found).splitlines()[2]
    assert row == "| `aem` | 102 | 2 | 30.1 | **32.1** | 20.1 |"


def test_a_run_that_is_in_two_csvs_is_refused(tmp_path):
    lines = "benchmark,method,seed,step,metric,value\nlong,aem,{seed},0,success,0.5\n"
    (tmp_path / "a1.csv").write_text(lines.format(seed=1))
    (tmp_path / "a2.csv").write_text(lines.format(seed=2))
    assert [run.seed for run in runs_of(tmp_path, "a*.csv")] == [1, 2]
    (tmp_path / "a3.csv").write_text(lines.format(seed=2))
    with pytest.raises(ValueError, match=r"a3\.csv: long/aem/2 is in another of a\*\.csv"):
        runs_of(tmp_path, "a*.csv")


def test_runs_from_different_clones_are_no_pair():
    where_aem_helps.check_clones(FOUND)
    other = made("long", "aem_shuffled", 2, 0.3, fingerprint=6.0)
    with pytest.raises(ValueError, match="long/seed2: aem and aem_shuffled won other tasks before training"):
        where_aem_helps.check_clones([*FOUND, other])


def test_a_comparison_of_its_own_may_come_from_a_clone_of_its_own():
    factor = [made("long", method, 2, 0.3, fingerprint=6.0) for method in ("aem_kl", "grpo_kl")]
    where_aem_helps.check_clones([*FOUND, *factor])
    with pytest.raises(ValueError, match="long/seed2: aem_kl and grpo_kl"):
        where_aem_helps.check_clones([*FOUND, factor[0], made("long", "grpo_kl", 2, 0.3)])


def test_the_engine_stands_beside_the_same_seeds_of_the_replica():
    verl = [made("long", method, 1, level) for method, level in (("grpo", 0.4), ("aem", 0.43))]
    lines = where_aem_helps.engine(verl, FOUND).splitlines()
    assert lines[2:] == [
        "| AEM − GRPO | 102 | verl | +3.0, 1 | +3.0 |",
        "| AEM − GRPO | 102 | the replica | +5.0, 1 | +5.0 |",
    ]
    assert where_aem_helps.engine([], FOUND) == where_aem_helps.NOTHING_IN_VERL


def test_the_map_is_drawn(tmp_path):
    where_aem_helps.draw(where_aem_helps.Found(FOUND, [], []), tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 5_000


@pytest.fixture
def committed():
    return where_aem_helps.Found.read()


def test_the_page_says_what_the_csvs_say(committed):
    where_aem_helps.check_clones(committed.replica)
    page = where_aem_helps.PAGE.read_text(encoding="utf-8")
    assert where_aem_helps.fill(page, committed) == page, "run studies/where_aem_helps.py"
    assert ("where_aem_helps.png" in page) == bool(committed.replica)
    assert all(f"<!-- {name} -->" in page for name in where_aem_helps.TABLES)


def test_the_study_has_the_learning_rates_that_were_chosen(committed):
    study = read_study(where_aem_helps.ROOT / "studies" / "market.yaml")
    chosen = where_aem_helps.chosen(committed.rates)
    assert len(chosen) == 2 * len(where_aem_helps.LENGTHS)
    for (length, method), rate in chosen.items():
        assert study.benchmarks[length].env[f"RATE_{method.upper()}"] == rate


def test_every_comparison_is_of_methods_of_the_study():
    study = read_study(where_aem_helps.ROOT / "studies" / "market.yaml")
    assert {name for pair in where_aem_helps.COMPARISONS.values() for name in pair} == set(study.methods)
    rates = read_study(where_aem_helps.ROOT / "studies" / "market_rates.yaml")
    assert list(rates.benchmarks) == list(study.benchmarks) == list(where_aem_helps.LENGTHS)
    for method, overrides in rates.methods.items():
        assert overrides[1].endswith(f"lr={where_aem_helps.RATE_NAMES[method.rpartition('_')[2]]}")


def test_the_intervals_in_sentences_are_those_of_the_csvs(committed):
    """Sentences are written by hand; an interval in them that no comparison has is one of earlier runs."""
    measured = {
        where_aem_helps._points(one.estimate).partition("(")[2].partition(")")[0].replace("+", "")
        for found in (committed.mapped, committed.fresh, committed.replica, committed.engine)
        for length in where_aem_helps.LENGTHS
        for pair in where_aem_helps.COMPARISONS.values()
        for measure in (PRIMARY, "end")
        if (one := difference(*(values(found, length, method, measure) for method in pair)))
    }
    page = where_aem_helps.PAGE.read_text(encoding="utf-8")
    sentences = re.sub(r"<!-- .*?<!-- end -->", "", page, flags=re.DOTALL)
    readme = (where_aem_helps.ROOT / "README.md").read_text(encoding="utf-8")
    sentence = re.search(r"With responses of 12,.*?where_aem_helps", readme, re.DOTALL)
    assert sentence, "the README has its sentence on where AEM helps"
    found = re.findall(r"([+−]?\d+\.\d)\s+to\s+([+−]?\d+\.\d)", sentences + sentence[0])
    said = {f"{low.lstrip('+')} to {high.lstrip('+')}" for low, high in found}
    assert len(said) > 5
    assert said <= measured
