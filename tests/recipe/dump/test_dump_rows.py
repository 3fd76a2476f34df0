"""Which steps and rows `algorithm.dump` writes, and which settings it refuses."""

from __future__ import annotations

import dataclasses

import hypothesis
import pytest
from hypothesis import strategies as st

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")

from recipe.aem.dump.reader import read_step
from recipe.aem.dump.writer import write_step
from recipe.aem.seam import capture
from recipe.aem.settings import SettingsError
from recipe.aem.tools.replay.advantages import check
from tests.helpers.dumps import AEM, Shelf, advance, make_batch, make_trainer, warnings


def test_only_what_is_asked_for(tmp_path):
    written = []
    for number in range(1, 8):
        trainer = make_trainer({**AEM, "dump": {"dir": "x", "every": 3}}, number, aem_dump=(shelf := Shelf()))
        metrics = advance(trainer, make_batch(1))
        assert (capture.SECONDS in metrics) == bool(shelf.steps) == (capture.DROPPED in metrics)
        written += [step.meta.step for step in shelf.steps]
    assert written == [3, 6]
    trainer = make_trainer(AEM)
    assert capture.SECONDS not in advance(trainer, make_batch(1)) and not hasattr(trainer, "aem_dump")


def test_the_sub_batches_of_a_step_are_files_of_their_own(tmp_path):
    for part in (0, 1):
        settings = {**AEM, "dump": {"dir": "x"}}
        trainer = make_trainer(settings, aem_dump=(shelf := Shelf()), local_trigger_step=part, parameter_sync_step=2)
        advance(trainer, make_batch(part))
        write_step(shelf.steps[0], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000003_0.parquet", "step_000003_1.parquet"]


@hypothesis.given(st.lists(st.sampled_from("abcdef"), min_size=1), st.integers(1, 30), st.integers(0, 1000))
def test_rows_are_left_out_in_whole_groups(groups, limit, number):
    try:
        chosen = capture.choose_rows(groups, limit, number)
    except SettingsError as error:
        assert min(map(groups.count, groups)) > limit
        assert f"algorithm.dump.rows={limit} is less than any prompt group has" in str(error)
        return
    assert chosen == sorted(set(chosen)) and 0 < len(chosen) <= limit
    inside = {groups[row] for row in chosen}
    assert chosen == [row for row, group in enumerate(groups) if group in inside]
    if len(groups) <= limit:
        assert len(chosen) == len(groups)


def test_which_groups_are_left_out_differs_from_step_to_step():
    groups = [group for group in "abcdefgh" for _ in range(3)]
    drawn = {tuple(capture.choose_rows(groups, 6, number)) for number in range(20)}
    assert len(drawn) > 10
    assert capture.choose_rows(groups, 6, 4) == capture.choose_rows(groups, 6, 4)


def test_small_groups_are_not_preferred():
    """The room that a large group leaves is not filled with a smaller one that was drawn later."""
    assert {len(capture.choose_rows(list("aaabbc"), 4, number)) for number in range(50)} == {2, 3, 4}


def test_a_limit_that_no_group_fits_ends_the_dump(tmp_path, warned):
    trainer = make_trainer({**AEM, "dump": {"dir": str(tmp_path), "rows": 1}})
    for _ in range(2):
        advance(trainer, make_batch(1))
    trainer.aem_dump.close()
    (said,) = warnings(warned)
    assert "algorithm.dump.rows=1 is less than any prompt group has" in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"dir": ""}, r"dir='': expected null or a directory"),
        ({"dir": 3}, "dir=3"),
        ({"every": 0}, r"every=0: expected an integer >= 1"),
        ({"every": 1.5}, r"every=1\.5"),
        ({"every": True}, "every=True"),
        ({"rows": 0}, r"rows=0: expected null \(all rows\) or an integer >= 1"),
    ],
)
@pytest.mark.parametrize("estimator", ["aem", "gigpo", "grpo"])
def test_bad_settings_stop_the_trainer_before_it_starts(setting, said, estimator):
    trainer = make_trainer({"adv_estimator": estimator, "dump": setting})
    with pytest.raises(SettingsError, match=said):
        type(trainer)(trainer.config)


@pytest.mark.parametrize("estimator", ["aem", "gigpo", "grpo"])
@pytest.mark.parametrize(
    ("old", "new"),
    [("dump_dir", "dump.dir"), ("dump_every", "dump.every"), ("dump_rows", "dump.rows"), ("untested_verl",) * 2],
)
def test_the_names_of_version_0_1_0_are_refused_with_the_new_ones(old, new, estimator):
    trainer = make_trainer({"adv_estimator": estimator, "aem": {old: None}})
    with pytest.raises(SettingsError, match=rf"algorithm\.aem\.{old} is named algorithm\.{new} now"):
        type(trainer)(trainer.config)


def test_a_dump_that_records_the_names_of_version_0_1_0_is_read(step, tmp_path):
    aem = {"base_estimator": "grpo_rows", "dump_dir": "x", "dump_every": 2, "dump_rows": None, "untested_verl": False}
    old = {**step.meta.algorithm, "aem": aem}
    del old["dump"]
    read = read_step(
        write_step(dataclasses.replace(step, meta=dataclasses.replace(step.meta, algorithm=old)), tmp_path)
    )
    assert read.meta.algorithm["aem"] == {"base_estimator": "grpo_rows"}
    assert read.meta.algorithm["dump"] == {"dir": "x", "every": 2, "rows": None}
    assert read.meta.algorithm["untested_verl"] is False and check(read).exact
