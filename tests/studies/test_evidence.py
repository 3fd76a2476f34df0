"""studies/evidence.py: the protocol's measures and tests on known values, the pages against the CSVs.

Not covered: whether the CSVs come from the runs; `aem study table` and studies/replica.py write them.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import evidence
import gradients
import pytest
from evidence_parts import runs, tables, why
from evidence_parts.runs import Run

from recipe.aem.tools.study.results import Row, read_csv

ROOT = Path(evidence.__file__).parents[1]
RESULTS, DOCS = ROOT / "studies" / "results", ROOT / "docs"


def run(method, seed, success, benchmark="shop", **series):
    return Run(benchmark, method, seed, {"success": success, **series})


def made(seeds=4, gain=0.1, benchmarks=("shop", "order")):
    """GRPO at 0.2 and AEM above it by a gain that differs a little from seed to seed."""
    chance = random.Random(0)
    found = []
    for benchmark in benchmarks:
        for seed in range(seeds):
            base, more = 0.2 + chance.gauss(0, 0.02), gain + chance.gauss(0, 0.01)
            for method, level in (("grpo", base), ("aem", base + more)):
                found.append(
                    run(method, seed, [(0, 0.1), (20, level), (40, level)], benchmark, entropy=[(1, 0.3), (40, 0.1)])
                )
    return found


def test_rows_become_runs():
    rows = [Row("shop", "aem", 1, step, name, step / 2) for name in ("success", "entropy") for step in (0, 1)]
    (one,) = runs.runs(rows)
    assert one == Run("shop", "aem", 1, {"success": [(0, 0.0), (1, 0.5)], "entropy": [(0, 0.0), (1, 0.5)]})


def test_the_measures_of_the_protocol():
    one = run("aem", 0, [(0, 0.0), (20, 0.4), (40, 0.6)], entropy=[(step, float(step)) for step in range(1, 31)])
    of = {name: measure(one) for name, measure in runs.MEASURES.items()}
    assert of["mean level"] == pytest.approx((0.2 * 20 + 0.5 * 20) / 40) and of["end"] == pytest.approx(0.5)
    assert of["entropy, first third"] == pytest.approx(5.5), "steps 1 to 10"
    assert of["entropy, last third"] == pytest.approx(25.5), "steps 21 to 30"
    assert of["alpha q05"] is None and of["share of step"] is None


def test_the_share_of_a_step_is_of_all_its_time():
    one = run(
        "aem", 0, [], **{"timing_s/aem": [(1, 0.1), (2, 0.1)], "timing_s/step": [(1, 30.0), (2, 10.0), (3, 99.0)]}
    )
    assert runs.share_of_step("timing_s/aem")(one) == pytest.approx(0.2 / 40)
    assert runs.share_of_step("timing_s/empg")(one) is None


@pytest.mark.parametrize(("t", "degrees", "p"), [(2.776, 4, 0.05), (4.604, 4, 0.01), (1.0, 9, 0.3434), (0.0, 4, 1.0)])
def test_p_values_are_those_of_the_tables(t, degrees, p):
    half = 0.3
    mean = t * half / runs.t_quantile(degrees)
    assert runs.p_value(mean, half, degrees) == pytest.approx(p, abs=2e-4)
    assert runs.p_value(-mean, half, degrees) == pytest.approx(p, abs=2e-4)


def test_holm():
    assert runs.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert runs.holm([0.9, 0.8]) == [1.0, 1.0] and runs.holm([]) == []


def test_differences_are_paired_by_seed():
    first, second = {0: 1.0, 1: 2.0, 2: 3.5, 7: 99.0}, {0: 0.5, 1: 1.4, 2: 3.0, 8: -99.0}
    one = runs.difference(first, second)
    assert one.estimate.n == 3 and one.estimate.mean == pytest.approx(1.6 / 3)
    assert 0.4999 < one.bootstrap[0] < one.estimate.mean < one.bootstrap[1] < 0.6001 and one.p < 0.01
    assert runs.difference({0: 1.0}, {1: 1.0}) is None
    assert runs.difference({0: 1.0}, {0: 0.0}).bootstrap is None


def test_independent_runs_are_compared_by_welch():
    # variances 2.5 and 44.84; ν = (0.5 + 11.21)² / (0.5²/4 + 11.21²/3) = 3.27, rounded down to 3
    one = runs.apart([1.0, 2.0, 3.0, 4.0, 5.0], [-8.0, 0.0, 4.0, 7.6])
    assert one.n == 4 and one.mean == pytest.approx(2.1)
    assert one.high - one.mean == pytest.approx(3.182446 * 11.71**0.5, rel=1e-4)
    assert runs.apart([1.0], [1.0, 2.0]) is None
    assert runs.apart([1.0, 1.0], [0.5, 0.5]).low == 0.5


def test_agreement_is_of_levels_and_of_gains():
    table = tables.agreement(made(gain=0.1), made(seeds=6, gain=0.0))
    (grpo, aem) = [line.split(" | ") for line in table.splitlines() if line.startswith("| shop")]
    assert grpo[2] == aem[2] == "4 and 6" and grpo[4].strip(" |") == ""
    low, high = (float(part.replace("−", "-")) for part in aem[4].strip(" |)").split("(")[1].split(" to "))
    assert 0 < low < 7.5 < high < 15, "0.1 of 0.75 of the run"
    assert len(tables.agreement(made(seeds=1), made()).splitlines()) == 2, "nothing to say of one run"


def test_pairs_of_two_origins_taken_together():
    def pair(seed, base, more):
        return [run(method, seed, [(0, of), (40, of)]) for method, of in (("grpo", base), ("aem", base + more))]

    first, second = [*pair(0, 0.2, 0.1), *pair(1, 0.9, -0.1)], [*pair(0, 0.4, 0.3), run("grpo", 1, [(0, 0.5)])]
    # 10, -10 and 30 points: t(2) · 20 / √3 = 49.7
    assert tables.together(first, second).splitlines()[2:] == ["| shop | 3 | 1 | +10.0 (−39.7 to +59.7) |"]
    assert len(tables.together([], second).splitlines()) == 2


def test_the_spread_is_between_runs_and_between_pairs():
    found = [
        run(method, seed, [(0, level), (40, level)])
        for method, seed, level in (
            ("grpo", 0, 0.1),
            ("grpo", 1, 0.3),
            ("grpo", 2, 0.5),
            ("aem", 0, 0.2),
            ("aem", 1, 0.6),
            ("aem", 9, 0.4),
        )
    ]
    assert tables.spread({"replica": found, "replica_many": found[:1]}).splitlines()[2:] == [
        "| shop | replica | GRPO | 3 | 20.0 |  |",
        "| shop | replica | AEM | 3 | 20.0 | 14.1 |",  # of the pairs 0 and 1: 0.1 and 0.3
        "| shop | replica, a warm start a pair | GRPO | 1 |  |  |",
    ]


@pytest.mark.parametrize(("gain", "said"), [(0.1, "AEM better"), (-0.1, "AEM worse"), (0.0, "no difference shown")])
def test_the_verdict_is_the_protocols(gain, said):
    table = tables.main_comparison(made(gain=gain), 4)
    lower = {0.1: "| 4 | 0 |", -0.1: "| 4 | 4 |", 0.0: "| 4 | "}[gain]
    assert table.count(said) == 2 and table.count(lower) == 2


def test_fewer_pairs_than_the_protocols_decide_nothing():
    assert tables.main_comparison(made(seeds=1), 2).count("|  |  | not finished |") == 2
    assert tables.main_comparison(made(seeds=4), 5).count("not finished") == 2


def test_only_methods_that_ran_stand_beside_their_papers():
    rows = tables.published({"engine": made(), "replica": []}).splitlines()[2:]
    assert [[row.split(" | ")[column] for column in (0, 2)] for row in rows] == [["| AEM", "engine"]]


def test_the_overview_has_a_line_a_task_and_way_in_which_both_ran():
    ways = {
        "engine": made(5),
        "engine_second": [run("grpo", 0, [(0, 0.1), (40, 0.1)])],
        "replica": made(3, 0.0, ("order",)),
    }
    rows = [row.split(" | ") for row in tables.overview(ways).splitlines()[2:]]
    assert [row[:3] for row in rows] == [
        ["| shop", "engine", "5"],
        ["| order", "engine", "5"],
        ["| order", "replica", "3"],
    ]
    of = runs.difference(*(runs.values(ways["engine"], "shop", method, "end") for method in ("aem", "grpo")))
    assert rows[0][5].startswith(f"{100 * of.estimate.mean:+.1f} (")


def test_what_is_missing_is_said():
    assert (
        tables.missing(made(), ("shop", "order"), {"grpo": 5, "aem": 4})
        == "Not run yet: shop/GRPO: 4 of 5; order/GRPO: 4 of 5."
    )
    assert tables.missing(made(), ("shop",), {"aem": 4}) == "Nothing is missing."
    assert tables.missing(made(), ("else",), {"aem": 1}) == "Not run yet: else/AEM: 0 of 1."


def test_a_page_is_filled_and_filled_again():
    page = "a\n<!-- main engine -->\nold\n<!-- end -->\nb\n<!-- missing engine -->\n<!-- end -->\n"
    once = evidence.fill(page, {"engine": made(5)})
    assert "AEM better" in once and "old" not in once and once.startswith("a\n") and "empg" not in once
    assert evidence.fill(once, {"engine": made(5)}) == once
    with pytest.raises(KeyError):
        evidence.fill(page.replace("main", "nothing"), {"engine": made()})


def test_every_table_and_figure_can_be_made(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    lines = ["benchmark,method,seed,step,metric,value"]
    for one in made():
        lines += [f"{one.benchmark},{one.method},{one.seed},{s},{m},{v}" for m, of in one.series.items() for s, v in of]
    for way in evidence.WANTED:
        (tmp_path / f"{way}.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "gradients.csv").write_text(gradients.as_csv(POINTING))
    names = evidence.blocks({way: [] for way in evidence.WANTED}, POINTING)
    pages = [tmp_path / name for name in evidence.PAGES]
    (folder := tmp_path / "evidence").mkdir()
    for page in pages:
        page.write_text("\n".join(f"<!-- {name} -->\n<!-- end -->\n" for name in names))
    monkeypatch.setattr(sys, "argv", ["evidence.py", "--results", str(tmp_path), "--docs", str(tmp_path)])
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--curves", str(tmp_path / "curves")])
    evidence.main()
    text = pages[0].read_text()
    assert pages[1].read_text() == text
    assert "Not run yet" in text and text.count("| p, Holm | verdict |") == len(evidence.WANTED)
    drawn = {path.name for path in folder.glob("*.png")}
    assert drawn == {
        "learning_main.png",
        "learning_differences.png",
        *(f"learning_{way}_alpha.png" for way in evidence.SHOWN),
    }
    every = {path.name for path in (tmp_path / "curves").glob("*.png")}
    assert every == {f"learning_{way}_alpha.png" for way in evidence.WANTED}
    assert all((folder / name).stat().st_size > 10_000 for name in drawn)


POINTING = [
    gradients.Line("shop", seed, step, method, measure, value)
    for seed, more in ((0, 0.0), (1, 0.02), (2, -0.02))
    for step in (0, 10)
    for method, measure, value in [
        ("grpo", "cosine", 1.0),
        ("grpo", "gain", 0.4 + more),
        ("grpo", "gain adam", 0.2),
        ("aem", "cosine", 0.9),
        ("aem", "gain", 0.32),
        ("aem", "gain adam", 0.22),
        ("aem", "share, kind page", 0.25 + more),
        ("aem", "entropy, kind page", 0.5),
        ("aem", "alpha, kind page", 0.75),
        ("aem", "share, kind typo", 0.01),
        ("aem", "entropy, kind typo", 0.3),
        ("aem", "alpha, kind typo", 2.0),
    ]
]


def test_gains_are_shares_of_grpos():
    table = why.gains(POINTING)
    # a run's gain is 0.8, 0.84 or 0.76: t(2) · 0.04 / √3 = 0.0994, of 0.8
    assert "| shop | 3 | GRPO | 1.00 | 100 (± 12) | 100 (± 0) |" in table
    assert "| shop | 3 | AEM | 0.90 | 80 ± 12 | 110 ± 0 |" in table
    one = why.gains([line for line in POINTING if line.seed == 1])
    assert "| shop | 1 | AEM | 0.90 | 76 | 110 |" in one, "nothing is known of its error"


def test_a_run_half_measured_waits():
    half = [line for line in POINTING if (line.seed, line.step) != (2, 10)]
    assert "| shop | 2 | GRPO |" in why.gains(half)
    first, last = why.steps(half).splitlines()[-1].split(" | ")[-2:]
    assert first == "80 ± 12" and last.startswith("78 ±"), "two runs at step 10"


def test_kinds_are_shown_with_share_entropy_and_alpha():
    table = why.kinds(POINTING)
    assert "| shop | page | 25%: 0.50, 0.75 | 25%: 0.50, 0.75 |" in table
    assert "typo" not in table


def test_the_pages_say_what_the_csvs_say():
    ways = {way: runs.runs(read_csv(RESULTS / f"{way}.csv")) for way in evidence.WANTED}
    lines = gradients.read(RESULTS / "gradients.csv")
    pages = [(DOCS / name).read_text(encoding="utf-8") for name in evidence.PAGES]
    for page in pages:
        assert evidence.fill(page, ways, lines) == page, "run studies/evidence.py"
    assert max(path.stat().st_size for path in RESULTS.glob("*.csv")) < 3_100_000
    for way in ways:
        assert f"<!-- missing {way} -->" in pages[1] and f"<!-- main {way} -->" in pages[1]
    assert all(f"{path.name})" in "".join(pages) for path in (DOCS / "evidence").glob("learning_*.png"))


@pytest.mark.parametrize("name", ["README.md", "docs/evidence.md", "docs/evidence/learning.md"])
def test_what_pages_repeat_of_the_main_comparison_is_what_the_csvs_say(name):
    text = " ".join((ROOT / name).read_text(encoding="utf-8").split()).replace("+", "")
    for way in ("engine", "replica", "replica_many"):
        found = runs.runs(read_csv(RESULTS / f"{way}.csv"))
        for benchmark in evidence.TASKS:
            of = runs.difference(*(runs.values(found, benchmark, method, runs.PRIMARY) for method in ("aem", "grpo")))
            mean, low, high = (
                round(100 * value, 1) + 0.0 for value in (of.estimate.mean, of.estimate.low, of.estimate.high)
            )
            # "AEM − GRPO is −9.3 (−16.2 to −2.3)", or "AEM is 9.3 (2.3 to 16.2) behind"
            signed, behind = f"{low:.1f} to {high:.1f}".replace("-", "−"), f"{-high + 0.0:.1f} to {-low:.1f}"
            assert signed in text or (mean < 0 and behind in text), (way, benchmark, signed)
            assert f"{abs(mean):.1f}" in text, (way, benchmark, mean)
