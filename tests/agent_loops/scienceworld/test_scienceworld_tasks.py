"""The tasks and their splits; only the comparison with the simulator needs Java."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_loops.dataset import write_parquet
from agent_loops.scienceworld import VARIATIONS, ScienceWorld, ScienceWorldTasks
from agent_loops.scienceworld.tasks import check_task


def test_there_are_30_tasks_and_7207_variations():
    tasks = ScienceWorldTasks()
    assert len(VARIATIONS) == 30 and sum(VARIATIONS.values()) == 7207
    assert {split: len(tasks.tasks(split)) for split in tasks.splits} == {"train": 3592, "dev": 1796, "test": 1819}


def test_the_simulator_has_the_same_tasks_variations_and_splits(simulator):
    for name, count in VARIATIONS.items():
        game = simulator.load(name, 0, "")
        simulator.play(game, game.interface.load, name, 0, "", False)  # again, for the tables that our load lets go
        assert simulator.play(game, lambda game=game: len(game.interface.getTaskNames())) == len(VARIATIONS)
        assert simulator.play(game, game.interface.getTaskMaxVariations, name) == count
        tasks = ScienceWorldTasks([name], "")
        for split, ask in (
            ("train", game.interface.getVariationsTrain),
            ("dev", game.interface.getVariationsDev),
            ("test", game.interface.getVariationsTest),
        ):
            theirs = json.loads(simulator.play(game, lambda ask=ask: ask().toString()))
            assert [task["variation"] for task in tasks.tasks(split)] == theirs, (name, split)
        game.close()


def test_the_package_lists_the_tasks_in_this_order():
    from scienceworld.constants import ID2TASK

    assert list(VARIATIONS) == list(ID2TASK.values())


@given(chosen=st.sets(st.sampled_from(sorted(VARIATIONS)), min_size=1), shuffled=st.randoms())
def test_splits_never_overlap_and_their_order_is_the_datas(chosen, shuffled):
    given_names = list(chosen)
    shuffled.shuffle(given_names)
    tasks = ScienceWorldTasks(given_names)
    rows = {split: [json.dumps(task) for task in tasks.tasks(split)] for split in tasks.splits}
    together = [row for split in tasks.splits for row in rows[split]]
    assert len(together) == len(set(together)) == sum(VARIATIONS[name] for name in chosen)
    assert all(rows.values())
    text = ScienceWorldTasks(" , ".join(sorted(chosen)))
    assert {split: [json.dumps(task) for task in text.tasks(split)] for split in text.splits} == rows
    assert [json.loads(row) for row in rows["dev"]] == list(tasks.tasks("dev"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": "boil,fly"}, r"tasks='boil,fly': 'fly' is unknown; there are boil, melt"),
        ({"tasks": []}, r"none is chosen"),
        ({"tasks": " , "}, r"none is chosen"),
        ({"simplifications": "easy,hard"}, r"'hard' is unknown; there are easy, teleportAction"),
        ({"simplifications": "noElectricalAction"}, r"takes away the actions that power-component is about"),
        ({"valid_actions": "yes"}, r"valid_actions='yes': expected true or false"),
        ({"show_state": 1}, r"show_state=1: expected true or false"),
        ({"max_steps": 0}, r"max_steps=0: expected a whole number"),
        ({"heap": "plenty"}, r"heap='plenty': expected a size such as 1g"),
        ({"heap": 1}, r"heap=1: expected"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ScienceWorld(**settings)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (7, "7 is no task: expected e.g."),
        ({"task": "boil"}, "is no task"),
        ({"task": "fly", "variation": 0, "simplification": ""}, "no task of this name"),
        ({"task": "boil", "variation": 30, "simplification": ""}, "has no variation 30: there are 0 to 29"),
        ({"task": "boil", "variation": -1, "simplification": ""}, "no variation -1"),
        ({"task": "boil", "variation": 0, "simplification": "hard"}, "'hard' is unknown"),
        ({"task": "test-conductivity", "variation": 0, "simplification": "noElectricalAction"}, "takes away"),
    ],
)
def test_a_wrong_task_is_refused(task, message):
    with pytest.raises(ValueError, match=message):
        check_task(task)


def test_a_split_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="split 'validation' does not exist: choose one of train, dev, test"):
        ScienceWorldTasks().tasks("validation")


def test_no_simplification_is_possible():
    assert ScienceWorldTasks("boil", "").tasks("dev")[0]["simplification"] == ""
    assert ScienceWorldTasks("boil", " openDoors, openContainers").tasks("dev")[0]["simplification"] == (
        "openDoors,openContainers"
    )


def test_the_tasks_become_parquet_files_without_java(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    counts = write_parquet(ScienceWorld("boil,find-plant"), tmp_path)
    assert counts == {"train": 14 + 150, "dev": 7 + 75, "test": 9 + 75}
