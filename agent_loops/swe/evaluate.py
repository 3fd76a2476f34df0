"""Evaluation: how many tasks a set of predictions resolves; `aem grade` is its command line.

Predictions have swebench's format: instance_id, model_name_or_path and model_patch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_loops.errors import InputError
from agent_loops.files import write_file
from agent_loops.swe.grading import Grade, GradeSettings, grade, grade_row
from agent_loops.swe.readers import read_tasks
from agent_loops.swe.sandbox import SandboxError, SandboxSettings
from agent_loops.swe.slots import cores
from agent_loops.swe.tasks import SweTask

NO_PREDICTION = "there is no prediction"
GOLD = "gold"


@dataclass(frozen=True)
class Prediction:
    """An agent's answer to a task, under swebench's names; `model_patch` is empty if it gave none."""

    instance_id: str
    model_name_or_path: str
    model_patch: str


def write_predictions(predictions: Iterable[Prediction], path: Path | str) -> None:
    """Write predictions as swebench reads them: a list (`.json`), or one prediction per line (`.jsonl`).

    The file is ASCII. Bytes of a patch that are not UTF-8 (surrogates in its text) are JSON escapes such as `\\udce9`.

    Args:
        predictions: what to write.
        path: the file; it is written whole or not at all.

    Raises:
        InputError: the file's name ends in neither.
    """
    path = Path(path)
    rows = [vars(one) for one in predictions]
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    elif path.suffix == ".json":
        text = json.dumps(rows, indent=1) + "\n"
    else:
        raise InputError(f"{path}: expected a name that ends in .json or .jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text)


def read_predictions(path: Path | str) -> list[Prediction]:
    """Read predictions: a JSON list, an object by instance, or JSON lines, whatever the file's suffix.

    A patch is `model_patch`; null means no answer. In an object by instance, a string is the patch itself.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it holds no predictions, or two for one task; the message names the file, the row and the field.
    """
    path = Path(path)
    text = _decoded(path)
    if not text.strip():
        raise InputError(f"{path} is empty: expected predictions")
    rows = _json_rows(text, path)
    if isinstance(rows, dict):
        rows = [rows] if "instance_id" in rows else [_of_instance(name, row, path) for name, row in rows.items()]
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected predictions, not {type(rows).__name__}")
    predictions = [_prediction(row, f"{path}, row {number}") for number, row in enumerate(rows, 1)]
    seen: set[str] = set()
    for one in predictions:
        if one.instance_id in seen:
            raise InputError(f"{path}: two predictions for {one.instance_id}")
        seen.add(one.instance_id)
    return predictions


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    for magic, what in ((b"\x1f\x8b", "gzip"), (b"PK\3\4", "zip"), (b"\x28\xb5\x2f\xfd", "zstd")):
        if content.startswith(magic):
            raise InputError(f"{path} is compressed ({what}): unpack it first")
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no {encoding.removesuffix('-sig').upper()} text ({error})") from error


def _json_rows(text: str, path: Path) -> Any:
    try:
        return _loads(text)
    except ValueError as error:
        whole = error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    rows = []
    for number, line in lines:
        try:
            rows.append(_loads(line))
        except ValueError as error:
            # if not even the first line is JSON, the file is not JSON lines
            if path.suffix == ".jsonl" or rows:
                raise InputError(f"{path}, line {number}: no JSON ({error})") from error
            raise InputError(f"{path}: no JSON ({whole})") from whole
    return rows


def _loads(text: str) -> Any:
    """Parse JSON and refuse repeated keys, of which the first would be lost."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise InputError(f"the key {key!r} is given twice")
            found[key] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except RecursionError as error:
        raise InputError("it is nested too deeply") from error


def _of_instance(name: str, row: Any, path: Path) -> Any:
    """Return a value of an object by instance, with the instance's name added."""
    if row is None or isinstance(row, str):
        return {"instance_id": name, "model_patch": row}
    if isinstance(row, dict) and row.setdefault("instance_id", name) != name:
        raise InputError(f"{path}: under {name!r} is a prediction for {row['instance_id']!r}")
    return row


def _prediction(row: Any, place: str) -> Prediction:
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected an object, not {type(row).__name__}")
    if not isinstance(row.get("instance_id"), str):
        raise InputError(f"{place}, field 'instance_id': expected text, not {type(row.get('instance_id')).__name__}")
    if "model_patch" not in row:
        others = ", ".join(repr(str(key)[:50]) for key in list(row)[:10])
        raise InputError(
            f"{place}, field 'model_patch' is missing; there are {others}. The patch has to be under 'model_patch', "
            "or null there where there is none"
        )
    values = {name: "" if row.get(name) is None else row[name] for name in ("model_name_or_path", "model_patch")}
    for name, value in values.items():
        if not isinstance(value, str):
            raise InputError(f"{place}, field {name!r}: expected text, not {type(value).__name__}")
    return Prediction(row["instance_id"], **values)


def evaluate(
    tasks: Sequence[SweTask],
    predictions: Sequence[Prediction],
    settings: GradeSettings | None = None,
    jobs: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Grade predictions; a task without a prediction counts as not resolved.

    Args:
        tasks: all tasks that count.
        predictions: the answers.
        settings: how they are graded.
        jobs: number of concurrent gradings; the number of cores by default.
        report: called with one line per grade.

    Returns:
        Plain data: `resolved`, `total`, `rate`, `errors` (tasks whose sandbox failed; they count as not resolved), and
        `grades` by instance.

    Raises:
        InputError: a prediction is for an unknown task, or there are no tasks.
    """
    by_name = {one.instance_id: one for one in predictions}
    if unknown := sorted(set(by_name) - {task.instance_id for task in tasks}):
        raise InputError(f"{len(unknown)} predictions are for tasks that are not there, the first for {unknown[0]}")
    if not tasks:
        raise InputError("there are no tasks to evaluate on")

    def graded(task: SweTask) -> dict[str, Any]:
        if task.instance_id not in by_name:
            row = grade_row(_missing(task))
        else:
            try:
                row = grade_row(grade(task, by_name[task.instance_id].model_patch, settings))
            except SandboxError as error:
                row = grade_row(_missing(task)) | {"reason": "", "error": f"the sandbox failed: {error}"}
        report(f"{task.instance_id}: {'resolved' if row['resolved'] else row.get('error') or row['reason']}")
        return row

    with ThreadPoolExecutor(jobs or cores()) as pool:
        rows = list(pool.map(graded, tasks))
    resolved = sum(row["resolved"] for row in rows)
    return {
        "resolved": resolved,
        "total": len(tasks),
        "rate": resolved / len(tasks),
        "errors": sum("error" in row for row in rows),
        "grades": {task.instance_id: row for task, row in zip(tasks, rows, strict=True)},
    }


def _missing(task: SweTask) -> Grade:
    totals = ((0, len(task.fail_to_pass or task.expected)), (0, len(task.pass_to_pass)))
    return Grade(False, False, NO_PREDICTION, *totals)


def grade_predictions(
    predictions: str,
    path: Path,
    *,
    jobs: int | None = None,
    seconds: float | None = None,
    backend: str = SandboxSettings.backend,
    unconfined: bool = False,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Grade a file of predictions on files of tasks (`aem grade`).

    Args:
        predictions: the file of predictions; or `gold` for the tasks' known solutions.
        path: a file of tasks, or a directory of task files.
        jobs, report: as in `evaluate`.
        seconds: time limit of a test run; None for the default.
        backend, unconfined: settings of the sandbox.

    Raises:
        OSError, FileError, InputError: a file cannot be read, or a setting is wrong.
        ImportError: swebench, which grades, is not installed.
    """
    tasks = read_tasks(path)
    if predictions == GOLD:
        answers = [Prediction(task.instance_id, GOLD, task.patch) for task in tasks]
    else:
        answers = read_predictions(predictions)
    sandbox = SandboxSettings(backend=backend, unconfined=unconfined)
    settings = GradeSettings(sandbox=sandbox, seconds=seconds or GradeSettings.seconds)
    return evaluate(tasks, answers, settings, jobs, report)
