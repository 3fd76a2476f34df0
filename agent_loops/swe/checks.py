"""Checks for what software engineering needs: a sandbox and tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent_loops.finding import Finding
from agent_loops.reading import reason
from agent_loops.swe.readers import read_tasks
from agent_loops.swe.sandbox import SandboxError, SandboxSettings


def check_settings(settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Look for `bwrap` if the settings run commands in bubblewrap, and for the validation tasks."""
    backend = (settings.get("sandbox") or {}).get("backend", SandboxSettings.backend)
    if backend == "bubblewrap":
        from agent_loops.swe.sandbox.bubblewrap import find_bwrap

        try:
            yield Finding("ok", "Sandbox", f"bubblewrap at {find_bwrap()}")
        except SandboxError as error:
            remedy = "or name another sandbox: SWE_BACKEND=docker (docs/swe.md)"
            yield Finding("failure", "Sandbox", str(error), remedy)
    validation = settings.get("validation")
    if validation and not Path(str(validation)).exists():
        yield Finding("failure", "Tasks to validate on", f"{validation} does not exist", "set SWE_VALIDATION to tasks")


def check_data(path: Path) -> Iterator[Finding]:
    """Read the tasks and count them."""
    title = "Tasks"
    try:
        tasks = read_tasks(path)
    except (OSError, ValueError) as error:
        yield Finding("failure", title, reason(error), "docs/swe.md says which files hold tasks")
        return
    yield Finding("ok", title, f"{len(tasks):,} of {len({task.repo for task in tasks}):,} repositories in {path}")
