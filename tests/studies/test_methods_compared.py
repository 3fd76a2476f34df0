"""studies/methods.yaml and docs/methods_compared.md: the cells' configurations, the table, the figure's numbers.

Not covered: whether the CSVs come from the runs and the dump; how the figure looks.
"""

from __future__ import annotations

import importlib.resources
import os
from pathlib import Path

import methods_compared
import numpy as np
import pytest
from evidence_parts import advantages
from evidence_parts.compared import OTHER_ENTROPY, compared
from evidence_parts.runs import Run, runs_of

pytest.importorskip("verl", reason="verl is not installed")

import verl
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config

from recipe.aem.dump.reader import read_step
from recipe.aem.seam.checks import cautions, check_run
from recipe.aem.tools import hydra_config
from recipe.aem.tools.study.cells import cells
from recipe.aem.tools.study.file import read_study

ROOT = methods_compared.ROOT
STUDY = read_study(methods_compared.STUDY)
OTHER_BENCHMARKS = {
    "epo_alfworld",
    "aem_epo_alfworld",
    "epo_scienceworld",
    "aem_epo_scienceworld",
    "epo_ppo_scienceworld",
}


def composed(method):
    (cell,) = [one for one in cells(STUDY, Path("out")) if (one.method, one.seed) == (method, STUDY.seeds[0])]
    return hydra_config.compose(cell.config, cell.overrides())


@pytest.fixture
def surroundings(monkeypatch):
    for name in STUDY.benchmarks["shop"].env:
        monkeypatch.setenv(name, "unused")
    monkeypatch.setenv("AEM_MODEL", str(ROOT / "studies" / "shop" / "warm_start"))


def test_every_method_file_of_the_benchmark_is_in_the_study():
    files = {
        path.name.removesuffix(".yaml") for path in importlib.resources.files("recipe.aem.config.method").iterdir()
    }
    shipped = {name for name in files if not name.startswith("_")}
    taken = {
        override.removeprefix("method=") for of in STUDY.methods.values() for override in of if "method=" in override
    }
    assert taken == shipped - OTHER_BENCHMARKS
    assert {name.removesuffix("_unfiltered") for name in STUDY.methods} == taken


@pytest.mark.filterwarnings("ignore:Disabled critic")
@pytest.mark.parametrize("method", STUDY.methods)
def test_every_cell_starts_with_an_equal_budget(method, surroundings):
    config = composed(method)
    validate_config(config, need_reference_policy(config), need_critic(config))
    settings, terms = check_run(config, set(ADV_ESTIMATOR_REGISTRY), verl.__version__)
    assert not list(cautions(config, settings, terms))
    assert need_critic(config) == ("ppo" in method.split("_"))
    summed = config.actor_rollout_ref.actor.loss_agg_mode == "seq-mean-token-sum-norm"
    assert summed == (method in OTHER_ENTROPY), "its entropy is not per token"
    assert not (config.algorithm.get("filter_groups") or {}).get("enable"), "resamples"
    actor = config.actor_rollout_ref.actor
    budget = (config.data.train_batch_size, config.actor_rollout_ref.rollout.n, config.trainer.total_training_steps)
    optimiser = (actor.optim.lr, actor.optim.lr_scheduler_type, actor.ppo_mini_batch_size, actor.ppo_epochs)
    assert (*budget, *optimiser) == (8, 8, 8, 5e-4, "constant", 16, 1)


def made(method, seed, more=0.0):
    success = [(0, 0.1), (10, 0.2 + more), (20, 0.3 + more)]
    steps = range(1, 21)
    timers = {
        "timing_s/step": [(step, 10.0) for step in steps],
        "timing_s/aem_method": [(step, 0.05) for step in steps],
    }
    return Run("shop", method, seed, {"success": success, "entropy": [(step, step / 100) for step in steps], **timers})


def test_a_row_has_the_levels_the_difference_and_the_costs():
    found = [made("grpo", seed, seed / 100) for seed in (1, 2, 3)]
    found += [made("aem", seed, seed / 100 + 0.1) for seed in (1, 2)]
    lines = compared(found, ["grpo", "aem", "ppo"], (1, 2, 3)).splitlines()
    # (0.15 · 10 + 0.25 · 10) / 20 and three quarters of what is added
    assert lines[2] == "| `grpo` | 3 | 10 | 32 | 21.5 |  | 0.17 | 10.0 | 0.50 % |"
    assert lines[3] == "| `aem` | 2 | 10 | 42 | 28.6 | +7.5 (+7.5 to +7.5) | 0.17 | 10.0 | 0.50 % |"
    assert lines[-1] == "Not run yet: `aem` (1 of 3 seeds), `ppo` (3 of 3 seeds)."
    assert compared(found[:3], ["grpo"], (1, 2, 3, 4)).endswith("\nAll methods have run with 3 of 4 seeds so far.")
    assert compared([], ["grpo"], (1,)) == "No cell has been run yet."
    assert compared([made("drgrpo", 1)], ["drgrpo"], (1,)).splitlines()[2].endswith("|  | – | 10.0 | 0.50 % |")
    own = {name: of for name, of in made("ppo", 1).series.items() if "method" not in name}
    rows = compared([Run("shop", "ppo", 1, own)], ["ppo"], (1,)).splitlines()
    assert rows[2].endswith("| 10.0 | – |") and rows[-1] == "All methods have run with all 1 seeds."


def test_the_page_says_what_the_csv_says():
    found = runs_of(methods_compared.RESULTS, methods_compared.RUNS)
    assert found
    page = methods_compared.PAGE.read_text(encoding="utf-8")
    assert methods_compared.fill(page, STUDY, found) == page, "run studies/methods_compared.py"
    assert {run.method for run in found} <= set(STUDY.methods)


# --- the figure -------------------------------------------------------------------------------------------------------


def test_the_figures_numbers_are_of_the_pairs(tmp_path):
    from tests.helpers.dumps import ALGORITHM, dump, make_batch

    path = tmp_path / "dump"
    dump(make_batch(1), {**ALGORITHM, "adv_estimator": "grpo_rows"}, path)
    (file,) = path.glob("*.parquet")
    lines = advantages.measure(read_step(file))
    correlation, signs = (advantages.of_pairs(lines, name) for name in (advantages.CORRELATION, advantages.SIGNS))
    for one in advantages.METHODS:
        assert correlation[one, one] == pytest.approx(1.0) and signs[one, one] == 0
        for other in advantages.METHODS:
            assert correlation[one, other] == pytest.approx(correlation[other, one])
            assert signs[one, other] == signs[other, one]
    # AEM and balance never change a sign, and something differs
    assert signs["grpo", "aem"] == signs["grpo", "balance"] == signs["gigpo", "aem_gigpo"] == 0
    assert correlation["grpo", "aem"] < 1 and signs["grpo", "gigpo"] > 0
    (tmp_path / "lines.csv").write_text(advantages.as_csv(lines))
    again = advantages.read(tmp_path / "lines.csv")
    assert [line[:3] for line in again] == [line[:3] for line in lines]
    assert [line.value for line in again] == pytest.approx([line.value for line in lines], rel=1e-3)
    assert advantages.draw(again, tmp_path / "figure.png").stat().st_size > 10_000


def test_the_variance_within_groups_by_hand():
    # deviations within: ±1 and ±2; from the mean 4: −3, −1, 0, 4
    assert advantages.within(np.array([1.0, 3.0, 4.0, 8.0]), np.array([7, 7, 9, 9])) == pytest.approx(10 / 26)


def test_the_committed_numbers_are_complete():
    lines = advantages.read(methods_compared.ADVANTAGES)
    names = set(advantages.METHODS)
    for measure in (advantages.CORRELATION, advantages.SIGNS):
        assert set(advantages.of_pairs(lines, measure)) == {(one, other) for one in names for other in names}
    correlation, signs = (advantages.of_pairs(lines, name) for name in (advantages.CORRELATION, advantages.SIGNS))
    inside, zero = (advantages.of_pairs(lines, name) for name in (advantages.WITHIN, advantages.ZERO))
    text = " ".join(methods_compared.PAGE.read_text(encoding="utf-8").split())
    assert f"Under `grpo` {100 * zero['grpo', 'grpo']:.0f} % of the responses" in text
    assert signs["grpo", "aem"] == signs["grpo", "balance"] == 0
    assert signs["grpo", "empg"] == zero["grpo", "grpo"] and zero["empg", "empg"] == 0
    shares = [f"{100 * signs['grpo', name]:.0f} %" for name in ("gigpo", "ecpo", "hgpo")]
    assert f"in the sign of {shares[0]}, {shares[1]} and {shares[2]} of the responses" in text
    r = [f"{correlation['drgrpo', name]:.2f}" for name in ("grpo", "gigpo", "ecpo")]
    assert f"correlates with `grpo` at {r[0]}, and with `gigpo` and `ecpo` at {r[1]} and {r[2]}" in text
    own = {name: f"{100 * inside[name, name]:.0f} %" for name in names}
    assert own["aem_gigpo"] == own["aem"]
    most = f"over `hgpo` {own['aem_hgpo']} of the variance is there, over `gigpo` and `grpo` {own['aem']}"
    assert f"{most}, over `ecpo` {own['aem_ecpo']}. Of the others `hgpo` has most, {own['hgpo']}." in text
    assert f"Under `grpo` it is {own['grpo']}" in text
    others = [name for name in names if not name.startswith("aem")]
    assert max(others, key=lambda name: inside[name, name]) == "hgpo"
    assert max(names, key=lambda name: inside[name, name]) == "aem_hgpo"
    assert os.path.getsize(methods_compared.FIGURE) < 100_000
    page = methods_compared.PAGE.read_text(encoding="utf-8")
    assert f"({methods_compared.FIGURE.relative_to(ROOT / 'docs')})" in page
