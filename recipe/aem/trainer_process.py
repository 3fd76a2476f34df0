"""Running verl's own trainer as a process of its own, and reading what it logs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from recipe.aem.composition import is_path

Metrics = dict[str, float]
MAIN = (sys.executable, "-m", "verl.trainer.main_ppo")


class TrainingFailed(RuntimeError):
    """verl ended with an error; the message holds the end of its log."""

    lines = True


def trainer_command(config_name: str, overrides: Sequence[str]) -> list[str]:
    """The command line of verl's trainer.

    Args:
        config_name: one of `recipe/aem/config`, or the path of a YAML file.
        overrides: hydra's.
    """
    path, name, where = Path(config_name), config_name, "pkg://recipe.aem.config"
    if is_path(config_name):
        name, where = path.stem, str(path.parent.absolute())
    return [*MAIN, f"--config-path={where}", f"--config-name={name}", *overrides]


def train(
    config_name: str,
    overrides: Sequence[str],
    *,
    environment: Mapping[str, str],
    log: Path,
    metrics: Path,
    on_metrics: Callable[[int, Metrics], None],
    on_look: Callable[[], None] | None = None,
) -> float:
    """Run `verl.trainer.main_ppo` and report each step's metrics as they appear.

    Args:
        config_name: one of `recipe/aem/config`, or the path of a YAML file.
        overrides: hydra's.
        environment: added to this process's.
        log: receives all that verl prints.
        metrics: receives verl's JSON lines, one a step.
        on_metrics: called with (step, metrics).
        on_look: called about once a second while it runs.

    Returns:
        The largest sum of the processes' resident memory that was seen, in GB (shared pages count once a process).

    Raises:
        TrainingFailed: verl did not end well.
    """
    metrics.unlink(missing_ok=True)
    command = trainer_command(config_name, overrides)
    variables = {**os.environ, **environment, "VERL_FILE_LOGGER_PATH": str(metrics), "PYTHONUNBUFFERED": "1"}
    peak = 0.0
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            reader = _lines(metrics)
            while process.poll() is None:
                for step, values in reader():
                    on_metrics(step, values)
                if on_look is not None:
                    on_look()
                peak = max(peak, _resident(process.pid))
                time.sleep(1.0)
            for step, values in reader():
                on_metrics(step, values)
        finally:
            _end(process)
    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise TrainingFailed(f"verl ended with status {process.returncode}. The end of {log}:\n{tail}")
    return peak / 1e9


def _lines(path: Path) -> Callable[[], Iterator[tuple[int, Metrics]]]:
    """A function that yields what was appended to a JSON-lines file since its last call."""
    position = 0

    def read() -> Iterator[tuple[int, Metrics]]:
        nonlocal position
        if not path.is_file():
            return
        with path.open() as file:
            file.seek(position)
            while (line := file.readline()).endswith("\n"):
                position = file.tell()
                record = json.loads(line)
                yield int(record["step"]), record["data"]

    return read


def _resident(pid: int) -> int:
    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for one in processes:
        try:
            total += one.memory_info().rss
        except psutil.Error:
            continue  # it ended between the two looks
    return total


def _end(process: subprocess.Popen) -> None:
    """Ends the trainer and what it started, where it is still there."""
    if process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
        for child in children:
            if child.is_running():
                child.kill()
