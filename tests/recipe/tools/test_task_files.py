"""The parquet files of a run hold the tasks of the benchmark that the run itself opens."""

from __future__ import annotations

import pytest

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("rapidfuzz")

import pyarrow.parquet as pq

from agent_loops.webshop.generate import generate_catalogue
from recipe.aem.tools.task_files import main

CUSTOM = "actor_rollout_ref.rollout.custom.benchmark"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return generate_catalogue(tmp_path_factory.mktemp("tasks") / "shop", n_titles=20, n_goals=600)


def tasks(folder, split):
    return [row["task"] for row in pq.read_table(folder / f"{split}.parquet")["extra_info"].to_pylist()]


def test_overrides_of_the_benchmark_choose_the_tasks(shop, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WEBSHOP_DATA", str(shop))
    assert (
        main(["webshop_7b", str(tmp_path), f"{CUSTOM}.n_validation=50", "machine=cpu", "--cfg", "hydra.verbose=true"])
        == 0
    )
    assert tasks(tmp_path, "validation") == list(range(50)) and min(tasks(tmp_path, "train")) >= 50
    assert "50 validation tasks" in capsys.readouterr().out
    assert main(["webshop_7b", str(tmp_path)]) == 0
    assert tasks(tmp_path, "validation") == list(range(500))


def test_what_cannot_be_opened_is_one_message(shop, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WEBSHOP_DATA", str(shop))
    for arguments, said in (
        (["webshop_70b", str(tmp_path)], "there is no configuration 'webshop_70b': choose one of"),
        (["webshop_7b", str(tmp_path), "a.b=1"], "Could not override 'a.b'"),
        (["webshop_7b", str(tmp_path), f"{CUSTOM}.n_validation=9000"], "n_validation=9000 leaves no goals"),
        (["webshop_7b", str(tmp_path), f"+{CUSTOM}.nonsense=1"], "nonsense"),
        (["aem_trainer", str(tmp_path)], f"{CUSTOM} is not set"),
    ):
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error
    monkeypatch.delenv("WEBSHOP_DATA")
    assert main(["webshop_7b", str(tmp_path)]) == 1 and "WEBSHOP_DATA" in capsys.readouterr().err
    assert main(["webshop_7b"]) == 2 and "python -m recipe.aem.tools.task_files CONFIG" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
