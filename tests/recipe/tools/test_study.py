"""The parts of a study: file, cells, their fingerprints, series, figure. Its commands: test_cli_study.py."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest

pytest.importorskip("hydra", reason="hydra is not installed")
pytest.importorskip("filelock", reason="filelock is not installed")

from recipe.aem.tools.study import code, fingerprint, state
from recipe.aem.tools.study.cells import cells, select
from recipe.aem.tools.study.composed import compose
from recipe.aem.tools.study.file import StudyError, read_study
from recipe.aem.tools.study.results import Row, as_csv, read_csv, series
from tests.helpers.study_files import write_study


@pytest.fixture
def study(tmp_path):
    return read_study(write_study(tmp_path))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seedz": "[1]"}, "the file has no setting seedz; did you mean seeds?"),
        ({"seeds": ""}, "`seeds` is missing"),
        ({"seeds": "[]"}, "seeds: a list of integers >= 0 is expected"),
        ({"seeds": "[0, 1, 0]"}, "seeds: a seed occurs twice"),
        ({"seeds": "[0, -1]"}, "such as [0, 1, 2], not [0, -1]"),
        ({"methods": "{}"}, "methods: there is none"),
        ({"methods": "[grpo, grpo]"}, "methods: a method occurs twice"),
        ({"methods": "{grpo: [method=grpo], also: [method=grpo]}"}, "grpo and also have the same overrides"),
        ({"methods": "{grpo: [method=grpo], grpo: [method=aem]}"}, "found duplicate key grpo"),
        ({"methods": "{grpo: method=grpo}"}, "methods.grpo: a list of strings is expected"),
        ({"methods": "{grpo: [], a/b: [x=1]}"}, "a/b cannot be a folder's name"),
        ({"methods": "{grpo: [lam]}"}, "methods.grpo: lam is no override"),
        ({"baseline": "grpu"}, "baseline: grpu is not one of the methods; did you mean grpo?"),
        ({"benchmarks": "{shop: {envy: {}}}"}, "benchmarks.shop has no setting envy; did you mean env?"),
        ({"benchmarks": "{}"}, "benchmarks: there is none"),
        ({"config": ""}, "benchmarks.shop: no configuration"),
        ({"metrics": "{success: {serie: x}}"}, "metrics.success has no setting serie; did you mean series?"),
        ({"metrics": "{success: {series: x, summary: mean_last_0}}"}, "mean_last_0 is none of last, best, auc"),
        ({"summary": "first"}, "summary: first is none of"),
        ({"overrides": "[data.seed=3]"}, "data.seed=3: seeds come from `seeds`"),
        ({"overrides": "[+trainer.resume_mode=auto]"}, "the study gives each cell its own"),
        ({"env": "{HF_HUB_OFFLINE: true}"}, "env.HF_HUB_OFFLINE: a string is expected"),
        ({"env": "{A: '${oc.env:NOT_SET_ANYWHERE}'}"}, "NOT_SET_ANYWHERE"),
        ({"seeds": "[0"}, "expected ',' or ']'"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_is_wrong_in_a_file_is_said_in_one_line(changed, said, tmp_path):
    path = write_study(tmp_path, **changed)
    with pytest.raises(StudyError) as refused:
        read_study(path)
    assert str(refused.value).startswith(f"{path}: ") and said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_a_mapping(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(StudyError, match="names with values are expected"):
        read_study(tmp_path / "list.yaml")


def test_short_forms(tmp_path):
    path = write_study(tmp_path, benchmarks="[webshop_1.5b, mine/own.yaml]", methods="[grpo, aem]", config="")
    study = read_study(path)
    assert {name: of.config for name, of in study.benchmarks.items()} == {
        "webshop_1.5b": "webshop_1.5b",
        "own": "mine/own.yaml",
    }
    assert study.methods == {"grpo": ("method=grpo",), "aem": ("method=aem",)}


def test_cells_go_seed_by_seed_and_each_has_its_folder_and_seeds(study, tmp_path):
    found = cells(study, tmp_path / "out")
    names = [f"shop/{method}/seed{seed}" for seed in (0, 1, 2) for method in ("grpo", "aem")]
    assert [cell.name for cell in found] == names
    assert [str(cell.folder.relative_to(tmp_path / "out")) for cell in found] == names
    overrides = found[3].overrides()
    for expected in (
        *("algorithm.aem.lam=1", "data.seed=1", "actor_rollout_ref.rollout.seed=1", "trainer.resume_mode=disable"),
        *("trainer.logger=[console,file]", f"trainer.default_local_dir='{found[3].folder}/checkpoints'"),
    ):
        assert expected in overrides
    assert not any(one.startswith("critic.") for one in overrides), "this configuration has no critic"
    assert found[3].overrides(resume=True)[-1] == "trainer.resume_mode=auto"
    # hydra takes them, as the trainer will
    settings = compose(found[3].config, tuple(overrides)).settings
    assert settings["data.seed"] == 1 and settings["trainer.default_local_dir"] == f"{found[3].folder}/checkpoints"


def test_the_seed_may_stand_in_overrides_and_variables(tmp_path):
    path = write_study(
        tmp_path, overrides="['algorithm.aem.lam={seed}']", env="{AEM_MODEL: 'm/seed{seed}'}", methods="{grpo: []}"
    )
    last = cells(read_study(path), tmp_path)[-1]
    assert last.asked == ("algorithm.aem.lam=2",) and last.env["AEM_MODEL"] == "m/seed2"


@pytest.mark.parametrize(
    ("only", "left"),
    [
        ([], 6),
        (["method=aem,seed=1"], 1),
        (["seed=0|2"], 4),
        (["method=aem,seed=1", "method=grpo"], 4),
    ],
)
def test_filters(only, left, study, tmp_path):
    assert len(select(study, cells(study, tmp_path), only)) == left


@pytest.mark.parametrize(
    ("only", "said"),
    [
        ("aem", "method=NAME, seed=N and benchmark=NAME are expected"),
        ("methods=aem", "are expected"),
        ("method=aen", "has no method aen; it has aem"),
        ("seed=7", "has no seed 7; it has 0, 1, 2"),
    ],
)
def test_filters_that_are_none(only, said, study, tmp_path):
    with pytest.raises(StudyError, match=said):
        select(study, cells(study, tmp_path), [only])


def test_filters_without_a_common_axis_are_refused(study, tmp_path):
    with pytest.raises(StudyError, match='for those of both: --only "seed=0,method=aem"'):
        select(study, cells(study, tmp_path), ["seed=0", "method=aem"])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"overrides": "[algorithm.aem.lamb=1]"}, "lamb"),
        ({"overrides": "[trainer.total_training_steps=null]"}, "set trainer.total_training_steps"),
        ({"benchmarks": "{shop: {}}"}, "reads the variable TASKS"),
        ({"config": "nowhere.yaml"}, "there is no configuration nowhere.yaml"),
        ({"config": "nowhere"}, "nowhere"),
    ],
    ids=str,
)
def test_what_hydra_or_a_study_cannot_take(changed, said, tmp_path, monkeypatch):
    monkeypatch.delenv("TASKS", raising=False)
    first = cells(read_study(write_study(tmp_path, **changed)), tmp_path)[0]
    with pytest.raises(StudyError) as refused:
        _ = first.composed
    assert said in str(refused.value) and str(refused.value).startswith("shop/grpo/seed0: ")
    assert "\n" not in str(refused.value)


def differences(folder, change, **changed):
    """What a change makes different about the first cell."""
    fingerprint.digest.cache_clear()
    then = fingerprint.fingerprint(cells(read_study(write_study(folder)), folder / "out")[0])
    path = write_study(folder, **changed)
    change()
    fingerprint.digest.cache_clear()
    compose.cache_clear()
    now = fingerprint.fingerprint(cells(read_study(path), folder / "elsewhere")[0])
    return fingerprint.differences(json.loads(json.dumps(then)), json.loads(json.dumps(now)))


def test_what_makes_a_cell_another_one(tmp_path, monkeypatch):
    def edit(name, text):
        return lambda: (tmp_path / name).write_text(text)

    assert differences(tmp_path, lambda: None) == []
    assert differences(tmp_path, lambda: None, overrides="[algorithm.dump.dir=x]") == []
    assert differences(tmp_path, lambda: None, overrides="[trainer.total_training_steps=9]") == [
        "trainer.total_training_steps: 4 → 9"
    ]
    assert differences(tmp_path, lambda: None, env="{OMP: '2'}") == ["OMP: not there → 2"]
    assert differences(tmp_path, lambda: monkeypatch.setenv("VERL_PLATFORM", "other"))[0].endswith(" → other")
    (changed,) = differences(tmp_path, edit("tasks/train.parquet", "other tasks"))
    assert changed.startswith("TASKS: content ")
    assert differences(tmp_path, edit("tasks/.hidden", "x")) == []
    text = (tmp_path / "plain.yaml").read_text()
    assert differences(tmp_path, edit("plain.yaml", text.replace("lam: 1.0", "lam: 1.0, scope: x"))) == [
        "algorithm.aem.scope: not there → x"
    ]


def test_large_files_are_read_at_both_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "_WHOLE", 10)
    monkeypatch.setattr(fingerprint, "_END", 2)
    seen = set()
    for text in ("0123456789ABCDEF", "x123456789ABCDEF", "0123456789ABCDEx", "0123456789ABCDEFG", "01234567xxABCDEF"):
        (tmp_path / "model").write_text(text)
        fingerprint.digest.cache_clear()
        seen.add(fingerprint.digest(tmp_path / "model"))
    assert len(seen) == 4  # the middle of the last one is not looked at


def test_the_code_that_counts_is_what_a_training_may_import():
    shop = code.code_of("agent_loops.webshop.WebShop")
    for there in ("recipe/aem/seam/wraps.py", "recipe/aem/seam/advantage.py", "aem_core/aem.py", "agent_loops/loop.py"):
        assert there in shop
    for there in ("agent_loops/webshop/environment.py", "agent_loops/webshop/prompts/compact.jinja"):
        assert there in shop
    for absent in (
        "recipe/aem/tools/cli/study.py",
        "recipe/aem/tools/replay/advantages.py",
        "recipe/aem/tools/study/code.py",
    ):
        assert absent not in shop
    assert not any(name.startswith(("agent_loops/alfworld/", "recipe/aem/tools/doctor/")) for name in shop)
    assert any(name.startswith("agent_loops/alfworld/") for name in code.code_of("agent_loops.alfworld.AlfWorld"))
    assert "agent_loops/adapters/__init__.py" in shop, "what is no benchmark's folder may be shared"
    foreign = code.code_of("tests.helpers.digit_gym.Digits")
    assert {"tests/helpers/digit_gym.py", "agent_loops/webshop/environment.py"} <= foreign.keys(), "may build on ours"


def test_comments_and_docstrings_are_not_code(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    package = tmp_path / "mygame"
    package.mkdir()
    (package / "__init__.py").write_text("from mygame.rules import Game\n")
    (package / "words.json").write_text("[]")

    def digests(text):
        (package / "rules.py").write_text(text)
        code.code_of.cache_clear()
        found = code.code_of("mygame.Game")
        assert {
            "mygame/__init__.py",
            "mygame/rules.py",
            "mygame/words.json",
            "recipe/aem/seam/wraps.py",
        } <= found.keys()
        return found

    first = digests("class Game:\n    LIVES = 3\n")
    assert digests('class Game:\n    """A game."""\n\n    LIVES = 3  # few\n') == first
    assert digests("class Game:\n    LIVES = 4\n") != first


def test_metrics_of_a_run_that_went_on_from_a_checkpoint(tmp_path):
    def write(name, *lines):
        text = "".join(json.dumps({"step": step, "data": data}) + "\n" for step, data in lines)
        (tmp_path / name).write_text(text + ('{"step": 9, "da' if name.startswith("metrics.part") else ""))

    write("metrics.part-001.jsonl", (0, {"v": 0}), (1, {"a": 1}), (2, {"a": 2, "v": 2}), (3, {"a": 3, "old": 1}))
    write("metrics.jsonl", (2, {"v": 2.5}), (3, {"a": 30, "nan": None}))
    read = state.read_metrics(tmp_path)
    assert read == {0: {"v": 0}, 1: {"a": 1}, 2: {"a": 2, "v": 2.5}, 3: {"a": 30}}
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "data": {}}\n')
    with pytest.raises(StudyError, match=r"metrics\.jsonl, line 1 is not of verl's file logger"):
        state.read_metrics(tmp_path)


def test_a_csv_comes_back(tmp_path):
    rows = [
        Row("shop", method, seed, step, "a/b", (step + seed) / 7)
        for method in "xy"
        for seed in (0, 1)
        for step in (0, 5)
    ]
    (tmp_path / "s.csv").write_text(as_csv(rows))
    back = read_csv(tmp_path / "s.csv")
    assert [dataclasses.replace(row, value=0) for row in back] == [dataclasses.replace(row, value=0) for row in rows]
    assert [row.value for row in back] == pytest.approx([row.value for row in rows], rel=1e-5)


def test_a_figure_holds_each_method_with_band_and_seeds(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")
    from recipe.aem.tools.study.figure import _limits, draw

    shown = []
    rows = [
        Row(benchmark, method, seed, step, metric, 0.1 * step + 0.02 * seed)
        for benchmark in ("shop", "house")
        for method in ("grpo", "aem")
        for seed in range(1 if method == "aem" and benchmark == "house" else 3)
        for metric in ("success", "entropy", "other")
        for step in range(0, 5, 1 if metric == "entropy" else 2)
    ]
    close = pyplot.close
    pyplot.close, restore = shown.append, close
    try:
        draw(rows, tmp_path / "a.png")
        draw(rows, tmp_path / "b.svg", ["other"])
    finally:
        pyplot.close = restore
    both, one = (figure.axes for figure in shown)
    assert len(both) == 4 and len(one) == 2 and (tmp_path / "a.png").stat().st_size > 10_000
    shop, house = both[0], both[1]
    assert shop.get_title() == "shop" and [t.get_text() for t in shop.get_legend().get_texts()] == [
        "grpo (3)",
        "aem (3)",
    ]
    assert [t.get_text() for t in house.get_legend().get_texts()] == ["grpo (3)", "aem (1)"]
    assert both[2].get_legend() is None and both[3].get_legend() is None, "the runs are those of the panel above"
    # two methods × (three seeds and a mean), two bands; a single seed has no band
    assert (len(shop.lines), len(shop.collections)) == (8, 2) and (len(house.lines), len(house.collections)) == (5, 1)
    assert len({(line.get_color(), line.get_linestyle()) for line in shop.lines if line.get_linewidth() > 1}) == 2
    # the steps' values decide how high a panel is, not the wide bands
    low, high = shop.get_ylim()
    assert low <= 0 and 0.44 < high < 0.7
    assert _limits([0.1, 0.9]) == pytest.approx((-0.02, 1.05)) and _limits([0.1, 1.9])[1] == pytest.approx(2.8)
    for figure in shown:
        close(figure)
    with pytest.raises(StudyError, match="the CSV has no metric sucess; it has success, entropy, other"):
        draw(rows, tmp_path / "c.png", ["sucess"])
    with pytest.raises(StudyError, match=r"c\.doc"):
        draw(rows, tmp_path / "c.doc")


def test_a_metric_may_be_a_pattern_that_means_one_series():
    steps = {0: {"val-core/shop/acc/mean@1": 0.2, "a/x": 1.0}, 5: {"val-core/shop/acc/mean@1": 0.4, "a/y": 2.0}}
    assert series(steps, "val-core/*/acc/mean@1") == [(0, 0.2), (5, 0.4)]
    assert series(steps, "a/x") == [(0, 1.0)]
    assert series(steps, "b/*") == []
    with pytest.raises(StudyError, match=r"metric a/\* means 2 series: a/x, a/y; say which one"):
        series(steps, "a/*")
