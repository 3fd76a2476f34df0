"""`aem replay`: what it prints and writes, and its one-line errors. Numbers: test_replay.py; files: ../dump."""

from __future__ import annotations

import io
import json

import pytest

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")

from rich.table import Table
from typer.testing import CliRunner

from recipe.aem.tools import cli
from recipe.aem.tools.cli.shared import SafeConsole
from tests.helpers.dumps import dump, make_batch

AEM = {"adv_estimator": "aem", "aem": {"base_estimator": "grpo_rows"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dump")
    for number in (1, 2):
        dump(make_batch(number, "turns" if number == 1 else "transcript"), AEM, folder, number)
    return folder


def aem(*arguments, code=0):
    done = CliRunner().invoke(cli.app, ["replay", *map(str, arguments)])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout if code == 0 else done.stderr


def test_the_first_line_says_whether_these_are_the_trainings_advantages(folder):
    first, *rest = aem(folder).splitlines()
    assert first.startswith("Exact: aem over grpo_rows gives the training's own advantages, bit for bit (2 steps, ")
    assert rest[-1].startswith("2 files in ")


def test_tables_of_several_methods(folder, tmp_path):
    text = aem(
        *(folder, "--method", "grpo_rows", "aem", "empg", "gigpo", "aem:scope=batch,lam=0.5"),
        *("--json", tmp_path / "out.json"),
    )
    for words in (
        *("Against the base (grpo_rows)", "Weight by turn", "Weight by response length", "Weight by outcome"),
        *("Correlation of the advantages", "aem:scope=batch,lam=0.5", "success", "failure"),
    ):
        assert words in text
    written = json.loads((tmp_path / "out.json").read_text())
    assert list(written["methods"]) == ["grpo_rows", "aem", "empg", "gigpo", "aem:scope=batch,lam=0.5"]
    assert written["reproduced"]["exact"] and [one["step"] for one in written["steps"]] == [1, 2]
    assert written["files"] == [str(folder / f"step_00000{number}.parquet") for number in (1, 2)]
    assert f"{written['methods']['empg']['weight']:.3f}" in text
    assert written["methods"]["aem:scope=batch,lam=0.5"]["settings"]["aem.lam"] == 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        ("--method", "aem", "empg", "--json", "x.json", "DUMP"),
        ("DUMP", "--method", "aem", "-m", "empg"),
        ("DUMP", "--method=aem", "--method=empg"),
    ],
)
def test_methods_in_one_go_or_one_by_one(arguments, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = [] if "--json" in arguments else ["--json", "x.json"]
    aem(*(folder if one == "DUMP" else one for one in arguments), *out)
    assert list(json.loads((tmp_path / "x.json").read_text())["methods"]) == ["aem", "empg"]


def test_rows_left_out_are_the_reason(tmp_path):
    algorithm = {"adv_estimator": "empg", "empg": {"base_estimator": "grpo_rows"}}
    dump(make_batch(2, groups=4), algorithm, tmp_path, rows=30)
    first = aem(tmp_path).splitlines()[0]
    assert first.startswith("Not exact in 1 of 1 steps (")
    assert "in step_000003.parquet " in first and "Why: algorithm.dump.rows left out " in first
    dump(make_batch(2, groups=4), AEM, tmp_path, rows=30)
    assert "algorithm.dump.rows left out " in (first := aem(tmp_path).splitlines()[0]) and first.startswith("Exact: ")


def test_nothing_to_compare(tmp_path):
    dump(make_batch(1, masked=1.0), AEM, tmp_path)
    assert "No response has a token that counts" in aem(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["."], ". holds no dump: no file step_*.parquet"),
        (["DUMP", "--method", "emgp"], "'emgp' is not a method; did you mean `empg`?"),
        (["DUMP", "--json", "nowhere/x.json"], "nowhere/x.json: No such file or directory"),
    ],
)
def test_errors_are_one_line(arguments, said, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = aem(*(folder if one == "DUMP" else one for one in arguments), code=1)
    assert text.startswith("aem: ") and said in text and text.count("\n") == 1


def test_a_console_shows_what_does_not_print():
    console = SafeConsole(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    console.print("a\x1b[31m\x9b2J\nb")
    table = Table("\x1b]0;x\x07")
    table.add_row("\ud800 [bold]c[/bold]")
    console.print(table)
    text = console.file.getvalue()
    assert r"a\x1b[31m\x9b2J" in text and r"\x1b]0;x\x07" in text and r"\ud800" in text
    assert not {"\x9b", "\x07", "\ud800"} & set(text) and "\x1b]" not in text and "\x1b[31m" not in text


@pytest.mark.parametrize("arguments", [[], ["DUMP", "--method"], ["DUMP", "--methods", "aem"]])
def test_wrong_usage_is_2(arguments, folder):
    aem(*(folder if one == "DUMP" else one for one in arguments), code=2)
