"""Splits and the benchmark object."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agent_loops.environment import Benchmark, TaskSet
from agent_loops.webshop import Catalogue, WebShop, WebShopTasks

ROOT = Path(__file__).resolve().parents[3]


def test_protocols(generated_dir: Path) -> None:
    shop = WebShop(generated_dir)
    assert isinstance(shop, Benchmark) and isinstance(shop.task_set, TaskSet)
    assert shop.name == "webshop"
    assert shop.make().reset(shop.task_set.tasks("validation")[0]).info["page"] == "search"


def test_the_first_goals_validate(generated_dir: Path) -> None:
    tasks = WebShop(generated_dir).task_set
    assert list(tasks.tasks("validation")) == list(range(500))
    assert list(tasks.tasks("train")) == list(range(500, 4000))
    assert list(WebShop(generated_dir, n_validation=7).task_set.tasks("validation")) == list(range(7))
    assert set(tasks.splits) == {"train", "validation"}


@pytest.mark.parametrize("which", ["generated", "real"])
def test_splits_share_no_goal_and_no_wording(request: pytest.FixtureRequest, which: str) -> None:
    catalogue: Catalogue = request.getfixturevalue(which)
    tasks = WebShop(request.getfixturevalue(f"{which}_dir")).task_set
    train, validation = tasks.tasks("train"), tasks.tasks("validation")
    assert not set(train) & set(validation)
    assert len(train) > 1000
    texts = [{catalogue.goals[index].instruction for index in split} for split in (train, validation)]
    assert not texts[0] & texts[1]


def test_a_training_goal_worded_as_a_validation_goal_is_left_out() -> None:
    assert list(WebShopTasks(["a", "b", "c", "a", "d"], n_validation=2).tasks("train")) == [2, 4]


def test_splits_are_the_same_in_another_process(generated_dir: Path) -> None:
    code = (
        "import json, sys; from agent_loops.webshop import WebShop; s = WebShop(sys.argv[1]); t = s.task_set;"
        "print(json.dumps([[s.catalogue.goals[i].instruction for i in t.tasks(n)] for n in t.splits]))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, str(generated_dir)], check=True, cwd=ROOT, capture_output=True, text=True
    ).stdout
    shop = WebShop(generated_dir)
    goals, splits = shop.catalogue.goals, map(shop.task_set.tasks, shop.task_set.splits)
    here = [[goals[index].instruction for index in split] for split in splits]
    assert json.loads(output) == here


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"n_validation=500 .* 20 goals, so choose between 1 and 19"):
        WebShopTasks([str(n) for n in range(20)])
    with pytest.raises(ValueError, match="split 'test' does not exist: choose one of train, validation"):
        WebShopTasks(["a", "b"], 1).tasks("test")


def test_a_directory_is_read_once_a_process(generated_dir: Path) -> None:
    assert WebShop(generated_dir).catalogue is WebShop(str(generated_dir) + "/").catalogue
