"""Does a patch mend a task's repository? Graded by swebench's own functions, in a fresh sandbox.

What the agent did to its own sandbox is of no account: only its patch is, applied by git to a fresh copy of the
repository. Of the patch, edits that could fool the grader are left out (`patches.is_protected`: tests, the
configuration of the test run, modules in the test runner's place), except in files that the known solution edits too.
The code under test still runs in the tests' own process, as it does in SWE-bench: product code that sets out to deceive
pytest from within can.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from agent_loops.swe.applying import NotApplied, add_tests, apply_patch
from agent_loops.swe.sandbox import Executed, Sandbox, SandboxSettings, open_sandbox
from agent_loops.swe.slots import core_slot
from agent_loops.swe.tasks import R2E_PARSER, SweTask

# The same order of sets and the same day everywhere; no bytecode that outlives a change within one second.
_ENVIRONMENT = "export PYTHONHASHSEED=0 TZ=UTC PYTHONDONTWRITEBYTECODE=1"
_KB = 1024


@dataclass(frozen=True)
class GradeSettings:
    """How patches are graded.

    Args:
        sandbox: where the tests run.
        seconds: how long they may take.
        patch_kb: the largest patch.
        log_kb: how much of the tests' output is kept; a longer one loses its middle, and with it the tests there.
        slots: how many test runs a machine does at once; as many as cores by default.
    """

    sandbox: SandboxSettings = field(default_factory=SandboxSettings)
    seconds: float = 300.0
    patch_kb: int = 4096
    log_kb: int = 16 * 1024
    slots: int | None = None

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.patch_kb < 1 or self.log_kb < 1:
            raise ValueError(f"{self}: seconds, patch_kb and log_kb must be above 0")


@dataclass(frozen=True)
class Grade:
    """What became of a patch.

    Attributes:
        resolved: all tests that must pass do.
        applied: the patch could be applied, and the tests ran.
        reason: in a sentence, why it is not resolved; empty where it is.
        fail_to_pass: how many of these tests pass, and how many there are. With R2E-Gym: how many tests of all have
            the expected status.
        pass_to_pass: the same of these.
        dropped: the files whose edits were left out.
        log: the tests' output.
        seconds: how long the tests took.
    """

    resolved: bool
    applied: bool
    reason: str
    fail_to_pass: tuple[int, int]
    pass_to_pass: tuple[int, int]
    dropped: tuple[str, ...] = ()
    log: str = field(default="", repr=False)
    seconds: float = 0.0


def grade(task: SweTask, patch: str, settings: GradeSettings | None = None) -> Grade:
    """Apply a patch to a fresh copy of the task's repository and run the tests.

    May be called from several threads and processes; no more tests run at once than the machine has cores.

    Args:
        task: the task.
        patch: a patch as `git diff` writes it; untrusted.
        settings: the sandbox and the limits.

    Returns:
        The grade. Whatever the patch holds, and whatever the tests then do, is a grade with a reason, not an error.

    Raises:
        SandboxError: the sandbox itself failed.
        ValueError: the task's source is damaged, or swebench does not know its log parser.
    """
    settings = settings or GradeSettings()
    if task.log_parser != R2E_PARSER:
        _parser(task)
    counts = ((0, len(task.fail_to_pass or task.expected)), (0, len(task.pass_to_pass)))
    n_kb = len(patch) // _KB
    if not patch.strip():
        return Grade(False, False, "the patch is empty", *counts)
    if n_kb > settings.patch_kb:
        return Grade(False, False, f"the patch has {n_kb} kB; patch_kb allows {settings.patch_kb}", *counts)
    dropped: tuple[str, ...] = ()
    with core_slot(settings.slots):
        source = Path(task.source) if task.source else None
        with open_sandbox(settings.sandbox, source=source, image=task.image) as sandbox:
            try:
                dropped = apply_patch(sandbox, task, patch)
            except NotApplied as error:
                return Grade(False, False, str(error), *counts, dropped=tuple(error.args[1:]))
            began = time.monotonic()
            log, executed = run_tests(sandbox, task, settings)
            seconds = time.monotonic() - began
    return _judge(task, log, executed, dropped, seconds, settings)


def run_tests(sandbox: Sandbox, task: SweTask, settings: GradeSettings) -> tuple[str, Executed]:
    """Run a task's tests in a sandbox as it is.

    Args:
        sandbox: holds the repository.
        task: the task; its `test_patch` is applied first, where its command does not do so by itself.
        settings: the limits.

    Returns:
        The log, with swebench's marks around the tests' output, and what the command left.
    """
    script = _script(task)
    # Through a file: an evaluation script may be longer than a command's argument can be.
    command = 'cat > "${TMPDIR:-/tmp}/aem-tests.sh" && bash "${TMPDIR:-/tmp}/aem-tests.sh" < /dev/null'
    executed = sandbox.execute(command, seconds=settings.seconds, stdin=script.encode(), output_kb=settings.log_kb)
    marks = _swebench().constants
    log = executed.output
    if executed.timed_out:
        log += f"\n{marks.TESTS_TIMEOUT}\nTimeout error: {settings.seconds:g} seconds exceeded.\n"
    return log, executed


def read_statuses(task: SweTask, log: str) -> dict[str, str]:
    """Return the status of each test (swebench's words) by its name, as the task's parser reads a log."""
    marks = _swebench().constants
    log = log.partition(marks.START_TEST_OUTPUT)[2].partition(marks.END_TEST_OUTPUT)[0]
    if task.log_parser == R2E_PARSER:
        return _r2e_statuses(log)
    return _parser(task)(log, _spec(task))


def _script(task: SweTask) -> str:
    marks = _swebench().constants
    if marks.START_TEST_OUTPUT in task.test_command:
        utils = _swebench().utils
        lines = utils.record_test_exit_code(utils.parse_eval_script(task.test_command))
        return "\n".join(["set -uxo pipefail", _ENVIRONMENT, *lines]) + "\n"
    lines = [_ENVIRONMENT]
    if task.test_patch:
        lines += [f"{{ {add_tests(task.test_patch)}\n}} || {{ echo '{marks.RESET_FAILED}'; exit 1; }}"]
    lines += [
        f"echo '{marks.START_TEST_OUTPUT}'",
        f"( {task.test_command}\n) 2>&1",
        "code=$?",
        f"echo; echo '{marks.END_TEST_OUTPUT}'",
        f'echo "{marks.TEST_EXIT_CODE}: $code"',
    ]
    return "\n".join(lines) + "\n"


def _judge(
    task: SweTask, log: str, executed: Executed, dropped: tuple[str, ...], seconds: float, settings: GradeSettings
) -> Grade:
    total = (len(task.fail_to_pass), len(task.pass_to_pass))
    reason = _no_result(executed, settings)
    if task.log_parser == R2E_PARSER:
        statuses = read_statuses(task, log)
        expected = _r2e_names(task.expected)
        agree = sum(statuses.get(name) == status for name, status in expected.items())
        # as upstream: a test too many is a difference, too
        resolved = agree == len(expected) == len(statuses) and not executed.timed_out
        if not resolved and statuses:
            reason = reason or f"{len(expected) - agree} of {len(expected)} tests differ from what is expected"
        passed = ((agree, len(expected)), (0, 0))
        applied = bool(statuses)
    else:
        report = _report(task, log)
        applied, resolved = report["patch_successfully_applied"], report["resolved"]
        tests = report.get("tests_status", {})
        f2p, p2p = (len(tests.get(kind, {}).get("success", ())) for kind in ("FAIL_TO_PASS", "PASS_TO_PASS"))
        passed = ((f2p, total[0]), (p2p, total[1]))
        if applied and not resolved:
            reason = reason or (
                f"{total[0] - f2p} of {total[0]} tests that must begin to pass still fail, and {total[1] - p2p} of "
                f"{total[1]} that passed before fail now"
            )
    if not resolved:
        reason = reason or f"the tests did not run to their end (exit status {executed.returncode})"
    return Grade(resolved, applied, "" if resolved else reason, *passed, dropped=dropped, log=log, seconds=seconds)


def _no_result(executed: Executed, settings: GradeSettings) -> str:
    if executed.timed_out:
        return f"the tests took longer than {settings.seconds:g} seconds"
    if executed.cut:
        return f"the tests printed more than log_kb={settings.log_kb}"
    return ""


def _report(task: SweTask, log: str) -> dict[str, Any]:
    prediction = {"instance_id": task.instance_id, "model_name_or_path": "", "model_patch": "-"}
    with tempfile.TemporaryDirectory(prefix="aem-swe-") as directory:
        file = Path(directory) / "test_output.txt"
        file.write_text(log, encoding="utf-8", newline="\n")
        return _swebench().grading.get_eval_report(_spec(task), prediction, str(file), True)[task.instance_id]


def _spec(task: SweTask) -> Any:
    return _swebench().types.TestSpec(
        instance_id=task.instance_id,
        image=task.image or "",
        eval_script_list=[],
        repo=task.repo,
        version=task.version,
        FAIL_TO_PASS=list(task.fail_to_pass),
        PASS_TO_PASS=list(task.pass_to_pass),
        log_parser=task.log_parser,
        eval_type=task.eval_type,
    )


def _parser(task: SweTask) -> Any:
    parsers = _swebench().log_parsers.PARSER_REGISTRY
    if task.log_parser not in parsers:
        raise ValueError(f"task {task.instance_id}: swebench has no log parser {task.log_parser!r}")
    return parsers[task.log_parser]


def _r2e_statuses(log: str) -> dict[str, str]:
    """As R2E-Gym reads a log: names without their file, the last status of three words in the summary."""
    statuses = {}
    for line in re.sub(r"\x1b\[[0-9;]*m|\r", "", log).partition("short test summary info")[2].splitlines():
        for status in ("PASSED", "FAILED", "ERROR"):
            if status in line:
                name = ".".join(line.split("::")[1:])
                statuses[name.split(" - ")[0]] = status
                break
    return statuses


def _r2e_names(expected: Mapping[str, str]) -> dict[str, str]:
    return {re.sub(r"\x1b\[\d+m", "", name).split(" - ")[0]: status for name, status in sorted(expected.items())}


@lru_cache(maxsize=1)
def _swebench() -> Any:
    """swebench, imported late: it takes seconds, reads a `.env` file of the working directory, and logs."""
    before = os.environ.get("PYTHON_DOTENV_DISABLED")
    os.environ["PYTHON_DOTENV_DISABLED"] = "1"
    level = logging.root.level
    try:
        import swebench.harness as harness
        import swebench.types as types
    except ImportError as error:
        raise ImportError(f"grading needs swebench: install the extra swe ({error})") from error
    finally:
        logging.root.setLevel(level)
        if before is None:
            del os.environ["PYTHON_DOTENV_DISABLED"]
        else:
            os.environ["PYTHON_DOTENV_DISABLED"] = before
    return _Modules(harness.constants, harness.grading, harness.log_parsers, harness.utils, types)


@dataclass(frozen=True)
class _Modules:
    constants: Any
    grading: Any
    log_parsers: Any
    utils: Any
    types: Any


def grade_row(grade: Grade) -> dict[str, Any]:
    """Return a grade as plain data, without its log."""
    row = {name: getattr(grade, name) for name in Grade.__dataclass_fields__ if name != "log"}
    return json.loads(json.dumps(row))
