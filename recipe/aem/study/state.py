"""How a cell stands, read from its folder, and the few changes that a folder goes through."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from agent_loops import locks
from recipe.aem.study.cells import Cell
from recipe.aem.study.file import StudyError
from recipe.aem.study.fingerprint import Fingerprint, differences

Kind = Literal["to do", "running", "interrupted", "failed", "done", "made otherwise"]

_LOOKING_SECONDS = 1.0  # another may only be looking
COMMAND, DONE, METRICS, LOG = "command.json", "done.json", "metrics.jsonl", "verl.log"


@dataclass(frozen=True)
class State:
    """Attributes:
    kind: `made otherwise` is done, but not what the study now asks for.
    differs: what the cell was made with and the study now says otherwise.
    command: of `command.json`; empty where there is none.
    result: of `done.json`; empty where there is none.
    """

    kind: Kind
    differs: list[str] = field(default_factory=list)
    command: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)


def look(cell: Cell, now: Fingerprint | None = None, ours: bool = False) -> State:
    """How a cell stands.

    Args:
        cell: of a study.
        now: its fingerprint. Without it only what the study file says is compared, for which verl is not needed.
        ours: this process holds the cell's lock.

    Raises:
        StudyError: a file in its folder that is not ours, or torn.
    """
    command = _read(cell.folder / COMMAND)
    if not command:
        return State("to do" if ours or not locked(cell) else "running")
    if now is not None:
        differs = differences(command["fingerprint"], now)
    else:
        differs = [
            f"{key}: {command['cell'][key]} → {value}"
            for key, value in cell.identity.items()
            if command["cell"][key] != value
        ]
    result = _read(cell.folder / DONE)
    kind: Kind = result["status"] if result else "interrupted" if ours or not locked(cell) else "running"
    if kind == "done" and differs:
        kind = "made otherwise"
    return State(kind, differs, command, result)


@contextmanager
def taken(cell: Cell) -> Iterator[tuple[int, str]]:
    """Holds the cell's lock; yields its descriptor, and who else has it, which is empty where it is held.

    The lock lies beside the folder, which is renamed. The system gives it back when the process dies, and whoever
    inherited the descriptor.
    """
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(_lock(cell), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    until = time.monotonic() + _LOOKING_SECONDS
    try:
        while (other := locks.take(descriptor, cell.folder)) and time.monotonic() < until:
            time.sleep(0.05)
        yield descriptor, other
    finally:
        os.close(descriptor)


def locked(cell: Cell) -> bool:
    """Is a runner at it, here or on another machine that shares the folder?"""
    if not _lock(cell).exists():
        return False
    with taken(cell) as (_, other):
        return bool(other)


def seconds_of(cell: Cell) -> float | None:
    """How long it took, where it is done."""
    result = _read(cell.folder / DONE)
    return result["seconds"] if result.get("status") == "done" else None


def set_aside(cell: Cell, why: str) -> Path:
    """Rename the cell's folder to `seedN.WHY-K`, so that nothing is lost and the cell starts anew."""
    number = 1
    while (to := cell.folder.with_name(f"{cell.folder.name}.{why}-{number}")).exists():
        number += 1
    cell.folder.rename(to)
    return to


def keep_part(cell: Cell) -> None:
    """Before a run that goes on from a checkpoint: keep the metrics so far, which verl's logger would overwrite."""
    for name in (METRICS, LOG):
        path = cell.folder / name
        if path.exists():
            number = len(list(cell.folder.glob(f"{path.stem}.part-*"))) + 1
            path.rename(path.with_name(f"{path.stem}.part-{number:03d}{path.suffix}"))


def has_checkpoint(cell: Cell) -> bool:
    """Is there one of verl's that a run can go on from?"""
    return (cell.folder / "checkpoints" / "latest_checkpointed_iteration.txt").is_file()


def read_metrics(folder: Path) -> dict[int, dict[str, float]]:
    """A cell's metrics by step; of a step that was done twice, for a run went on from before it, the later holds."""
    steps: dict[int, dict[str, float]] = {}
    for path in [*sorted(folder.glob("metrics.part-*.jsonl")), folder / METRICS]:
        if not path.is_file():
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        resumed: dict[int, dict[str, float]] = {}
        for number, line in enumerate(lines):
            try:
                record = json.loads(line)
                step, values = int(record["step"]), record["data"]
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines) - 1:
                    break  # the trainer was killed in the middle of a line
                raise StudyError(f"{path}, line {number + 1}: not one of verl's metrics lines ({error})") from None
            # a step has two lines where a validation is logged apart
            resumed.setdefault(step, {}).update({k: v for k, v in values.items() if isinstance(v, int | float)})
        if resumed:
            first = min(resumed)  # the checkpoint's own step where it was validated again: its training was before
            before = {step: values for step, values in steps.items() if step <= first}
            steps = before | resumed | {first: before.get(first, {}) | resumed[first]}
    return dict(sorted(steps.items()))


def _lock(cell: Cell) -> Path:
    return cell.folder.with_name(f".{cell.folder.name}.lock")


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise StudyError(f"{path} is damaged ({error}); move its folder away, and the cell is made anew") from None
