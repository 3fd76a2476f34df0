"""Predictions in swebench's format, graded and counted."""

from __future__ import annotations

import gzip
import json

import pytest
from typer.testing import CliRunner

from agent_loops.swe import evaluate as module
from agent_loops.swe.evaluate import (
    NO_PREDICTION,
    Prediction,
    evaluate,
    read_predictions,
    write_predictions,
)
from agent_loops.swe.grading import Grade
from agent_loops.swe.readers import task_row
from agent_loops.swe.sandbox import SandboxError
from agent_loops.swe.tasks import SweTask
from recipe.aem.tools import cli
from tests.helpers.tiny_package import FIXED, make_task


def _task(name: str) -> SweTask:
    return SweTask(name, "r", "HEAD", "It fails.", "", "", ("t", "u"), ("v",), "pytest")


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_predictions_come_back_as_they_were(tmp_path, suffix):
    predictions = [Prediction("a", "m/x", "line\n\u2028é\r\n"), Prediction("b", "m/x", "")]
    write_predictions(predictions, tmp_path / "deep" / f"p{suffix}")
    assert read_predictions(tmp_path / "deep" / f"p{suffix}") == predictions
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [f"p{suffix}"]


def test_swebench_reads_what_is_written(tmp_path):
    utils = pytest.importorskip("swebench.harness.utils", reason="swebench is not installed")
    for name in ("p.json", "p.jsonl"):
        write_predictions([Prediction("a", "m", "x"), Prediction("b", "m", "")], tmp_path / name)
        rows = utils.get_predictions_from_file(str(tmp_path / name), "", "")
        assert rows[0] == {"instance_id": "a", "model_name_or_path": "m", "model_patch": "x"} and len(rows) == 2


def test_predictions_by_instance_and_without_a_patch(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps({"a": {"instance_id": "a", "model_patch": None, "more": 1}}))
    assert read_predictions(tmp_path / "p.json") == [Prediction("a", "", "")]


@pytest.mark.parametrize(
    "text, message",
    [
        ('[{"model_patch": "x"}]', "row 1, field 'instance_id'"),
        ('[{"instance_id": "a", "model_patch": 3}]', "row 1, field 'model_patch'"),
        ('[{"instance_id": "a", "model_patch": ""}, {"instance_id": "a", "model_patch": ""}]', "two predictions for a"),
        ('[{"instance_id": "a"}]', "row 1, field 'model_patch' is missing; there are 'instance_id'"),
        ('[{"instance_id": "a", "patch": "x"}]', "'model_patch' is missing; there are 'instance_id', 'patch'"),
        ('[{"instance_id": "a", "prediction": {"model_patch": "x"}}]', "'model_patch' is missing"),
        ('[{"instance_id": "a", "model_patch": {"patch": "x"}}]', "field 'model_patch': expected text, not dict"),
        ('[{"instance_id": "a", "model_patch": false}]', "field 'model_patch': expected text, not bool"),
        ('[{"instance_id": "a", "model_patch": []}]', "field 'model_patch': expected text, not list"),
        ('[{"instance_id": "a", "model_patch": "x", "model_patch": ""}]', "the key 'model_patch' is given twice"),
        ('{"a": {"model_patch": "x"}, "a": {"model_patch": ""}}', "the key 'a' is given twice"),
        ('{"a": {"instance_id": "b", "model_patch": "x"}}', "under 'a' is a prediction for 'b'"),
        ('{"a": {"output": "x"}}', "row 1, field 'model_patch' is missing; there are 'output', 'instance_id'"),
        ('{"predictions": []}', "expected an object, not list"),
        ('{"instance_id": "a", "model_patch": "x"}\n{"instance_id": "b', "line 2: no JSON"),
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("[" * 100_000, "nested too deeply"),
        ("[3]", "row 1: expected an object"),
        ("3", "expected predictions, not int"),
        ("[", "no JSON"),
    ],
)
def test_what_are_no_predictions(tmp_path, text, message):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_predictions(tmp_path / "p.json")


ROWS = [{"instance_id": "a", "model_patch": "é\n"}, {"instance_id": "b", "model_patch": None}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ROWS).encode(),
        LINES.encode(),
        LINES.replace("\n", "\r\n").encode() + b"\r\n",
        LINES.replace("\n", "\n\n").encode() + b"  \n",
        LINES.rstrip("\n").encode(),
        b"\xef\xbb\xbf" + LINES.encode(),
        LINES.encode("utf-16"),
        b"\xfe\xff" + json.dumps(ROWS, indent=2, ensure_ascii=False).encode("utf-16-be"),
        json.dumps({"a": {"model_patch": "é\n"}, "b": {"instance_id": "b", "model_patch": None}}).encode(),
        json.dumps({"a": "é\n", "b": None}).encode(),
    ],
    ids=range(10),
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_predictions_are_read_however_they_are_written(tmp_path, suffix, content):
    (tmp_path / f"p{suffix}").write_bytes(content)
    assert read_predictions(tmp_path / f"p{suffix}") == [Prediction("a", "", "é\n"), Prediction("b", "", "")]


def test_one_prediction_alone_is_read(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps(ROWS[0], indent=1))
    assert read_predictions(tmp_path / "p.json") == [Prediction("a", "", "é\n")]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_bytes_that_are_no_utf_8_come_back(tmp_path, suffix):
    patch = bytes(range(256)).decode("utf-8", "surrogateescape")
    write_predictions([Prediction("a", "m", patch)], tmp_path / f"p{suffix}")
    (found,) = read_predictions(tmp_path / f"p{suffix}")
    assert found.model_patch.encode("utf-8", "surrogateescape") == bytes(range(256))


@pytest.mark.parametrize(
    ("content", "message"),
    [(gzip.compress(b"[]", mtime=0), "is compressed .gzip.: unpack it first"), (b'["\xe9"]', "is no UTF-8 text")],
)
def test_what_is_no_text_is_named(tmp_path, content, message):
    (tmp_path / "p.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"p\.json {message}"):
        read_predictions(tmp_path / "p.json")


def test_a_name_that_swebench_would_not_read_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.json or \.jsonl"):
        write_predictions([], tmp_path / "p.txt")


def test_each_task_counts_once_with_or_without_a_prediction(monkeypatch):
    def fake(task, patch, settings):
        if patch == "crash":
            raise SandboxError("no container engine")
        return Grade(patch == "good", True, "" if patch == "good" else "2 fail", (1, 2), (1, 1), log="secret")

    monkeypatch.setattr(module, "grade", fake)
    tasks = [_task(name) for name in "abcd"]
    predictions = [Prediction(name, "m", patch) for name, patch in (("a", "good"), ("b", "bad"), ("c", "crash"))]
    lines: list[str] = []
    result = evaluate(tasks, predictions, jobs=2, report=lines.append)
    assert (result["resolved"], result["total"], result["rate"], result["errors"]) == (1, 4, 0.25, 1)
    assert list(result["grades"]) == ["a", "b", "c", "d"]
    assert result["grades"]["d"]["reason"] == NO_PREDICTION and not result["grades"]["d"]["resolved"]
    assert "no container engine" in result["grades"]["c"]["error"] and "error" not in result["grades"]["b"]
    assert sorted(lines)[:2] == ["a: resolved", "b: 2 fail"] and len(lines) == 4
    assert json.loads(json.dumps(result)) == result and "secret" not in json.dumps(result)


def test_predictions_for_other_tasks_are_refused():
    with pytest.raises(ValueError, match="1 predictions are for tasks that are not there, the first for z"):
        evaluate([_task("a")], [Prediction("z", "m", "")])
    with pytest.raises(ValueError, match="no tasks"):
        evaluate([], [])


def grade(*arguments, code=0):
    done = CliRunner().invoke(cli.app, ["grade", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr


def test_the_command_from_predictions_to_json(tmp_path, bubblewrap):
    pytest.importorskip("swebench", reason="swebench is not installed: install the extra swe")
    rows = []
    for name in ("one", "two"):
        task = make_task(tmp_path, name)
        rows.append(task_row(task) | {"source": f"{name}.tar.gz"})
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_predictions([Prediction("one", "m", FIXED), Prediction("two", "m", "nonsense")], tmp_path / "p.json")
    out = tmp_path / "results" / "grades.json"
    printed = grade(tmp_path / "p.json", "--tasks", tmp_path, "--json", out)
    assert "one: resolved" in printed and "two: the patch does not apply" in printed
    assert "resolved 1 of 2: 50.0% (95 % interval 9.5% to 90.5%)" in printed
    result = json.loads(out.read_text())
    assert result["resolved"] == 1 and result["grades"]["one"]["fail_to_pass"] == [2, 2]
    # (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n) with z = 1.959964, by hand
    assert result["interval"] == pytest.approx([0.094531, 0.905469], abs=2e-6)
    assert "resolved 2 of 2: 100.0%" in grade("gold", "--tasks", tmp_path)


def test_the_command_names_what_is_wrong(tmp_path, monkeypatch):
    predictions = tmp_path / "p.json"
    assert "tasks.jsonl" in grade(predictions, "--tasks", tmp_path, code=1)
    row = task_row(_task("a"))
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row) + "\n")
    assert grade(predictions, "--tasks", tmp_path, code=1) == f"aem: {predictions}: No such file or directory\n"
    predictions.write_text('[{"instance_id": "a", "model_patch": "x"}]')

    def broken(*_):
        raise SandboxError("no engine")

    monkeypatch.setattr(module, "grade", broken)
    assert "1 tasks have no grade" in grade(predictions, "--tasks", tmp_path, code=1)
