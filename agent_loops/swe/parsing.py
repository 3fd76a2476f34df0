"""Reading of test logs with swebench's own functions, in another process, and the verdict on a task's tests.

Logs are untrusted, and swebench's parsers are regular expressions: a single line of brackets takes them minutes, during
which no other thread of their process runs. They therefore run in a separate process, with a deadline and bounded
lines.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent_loops.errors import AgentLoopError, FailedError, InputError
from agent_loops.swe.tasks import R2E_PARSER, SweTask

SECONDS = 30.0
LONGEST_LINE = 2_000
_START_SECONDS = 300.0
STATUSES = ("PASSED", "FAILED", "ERROR", "SKIPPED", "XFAIL")
_PYTEST = re.compile(r"parse_log_(pytest|seaborn|matplotlib)")
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_SUMMARY = "short test summary info"


@dataclass(frozen=True)
class Reading:
    """The content of a log.

    Attributes:
        statuses: the status of each test, in swebench's words.
        valid: whether the tests ran.
        fail_to_pass, pass_to_pass: which of the task's tests have the expected status.
        doubts: why statuses were not believed.
    """

    statuses: Mapping[str, str]
    valid: bool
    fail_to_pass: tuple[str, ...] = ()
    pass_to_pass: tuple[str, ...] = ()
    doubts: tuple[str, ...] = field(default=())


class TooSlow(AgentLoopError, RuntimeError):
    """A log that could not be read in time."""


def is_pytest(log_parser: str) -> bool:
    """Return whether a parser reads pytest's summary."""
    return log_parser == R2E_PARSER or log_parser in _parser_names_of_pytest()


def _parser_names_of_pytest() -> frozenset[str]:
    # swebench names its parsers by repository, and most are the same function; ask once for its table
    global _pytest_names
    if _pytest_names is None:
        _pytest_names = frozenset(_reader.ask({"kind": "names"})["names"])
    return _pytest_names


_pytest_names: frozenset[str] | None = None


def read_log(task: SweTask, log: str, *, recorded: bool = False, seconds: float = SECONDS) -> Reading:
    """Read a log with the task's parser, and judge the task's tests.

    A test whose status is contradicted in the log has failed. A fail-to-pass test that is expected to fail (XFAIL) does
    not count as passing.

    Args:
        task: names the parser and the tests.
        log: the tests' output, or the summary of a record.
        recorded: whether the log is the summary of a record.
        seconds: time limit.

    Raises:
        TooSlow: the time limit is exceeded.
        InputError: swebench has no such parser.
        ImportError: swebench is not installed.
    """
    request = {
        "kind": "read",
        "log": log,
        "recorded": recorded,
        "parser": task.log_parser,
        "task": {
            "instance_id": task.instance_id,
            "repo": task.repo,
            "version": task.version,
            "image": task.image or "",
            "FAIL_TO_PASS": list(task.fail_to_pass),
            "PASS_TO_PASS": list(task.pass_to_pass),
            "eval_type": task.eval_type,
        },
    }
    answer = _reader.ask(request, seconds)
    return Reading(
        answer["statuses"],
        answer["valid"],
        tuple(answer["fail_to_pass"]),
        tuple(answer["pass_to_pass"]),
        tuple(answer["doubts"]),
    )


def check_parser(task: SweTask) -> None:
    """Raise `InputError` if swebench has no parser of the task's name."""
    if task.log_parser != R2E_PARSER:
        _reader.ask({"kind": "check", "parser": task.log_parser, "instance_id": task.instance_id})


class _Reader:
    """The reader process; started at the first question, and again after a question that took too long."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def ask(self, request: dict[str, Any], seconds: float = SECONDS) -> dict[str, Any]:
        with self._lock:
            process = self._started()
            try:
                answer = self._exchange(process, request, seconds)
            except BaseException:
                self.stop()
                raise
        kind = answer.get("error")
        if kind == "ImportError":
            raise ImportError(answer["message"])
        if kind:
            raise InputError(answer["message"])
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        process = self._process
        if process is not None and self._owner == os.getpid() and process.poll() is None:
            return process
        program = f"import sys; sys.path[:] = {sys.path!r}; from agent_loops.swe.parsing import serve; serve()"
        self._process = process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHON_DOTENV_DISABLED": "1"},  # swebench reads a .env file of the working directory
            start_new_session=True,
        )
        self._owner = os.getpid()
        try:
            self._receive(process, time.monotonic() + _START_SECONDS)  # swebench is imported
        except BaseException:
            self.stop()
            raise
        return process

    def _exchange(self, process: subprocess.Popen[bytes], request: dict[str, Any], seconds: float) -> dict[str, Any]:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise FailedError("the process that reads logs has ended") from None
        return self._receive(process, time.monotonic() + seconds)

    @staticmethod
    def _receive(process: subprocess.Popen[bytes], deadline: float) -> dict[str, Any]:
        assert process.stdout is not None
        descriptor, answer = process.stdout.fileno(), b""
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while not answer.endswith(b"\n"):
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise TooSlow("the log of the tests could not be read in time")
                chunk = os.read(descriptor, 1 << 20)
                if not chunk:
                    raise FailedError("the process that reads logs has ended")
                answer += chunk
        return json.loads(answer)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


_reader = _Reader()
atexit.register(_reader.stop)


# ---- in the other process --------------------------------------------------------------------------------------------


def serve() -> None:
    """Answer questions on standard input, one per line, until it ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # swebench's own output must not mix with the answers
    try:
        modules = _swebench()
    except ImportError as error:
        failed = {"error": "ImportError", "message": f"grading needs swebench: install the extra swe ({error})"}
        print(json.dumps({}), file=answers, flush=True)
        for _ in sys.stdin:
            print(json.dumps(failed), file=answers, flush=True)
        return
    print(json.dumps({}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer = _answer(modules, json.loads(line))
        except Exception as error:  # the asking process raises it
            answer = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


@dataclass(frozen=True)
class _Modules:
    constants: Any
    grading: Any
    parsers: Mapping[str, Any]
    python: Any
    types: Any


def _swebench() -> _Modules:
    import swebench.harness as harness
    import swebench.types as types
    from swebench.harness.log_parsers import python

    logging.root.setLevel(logging.ERROR)
    return _Modules(harness.constants, harness.grading, harness.log_parsers.PARSER_REGISTRY, python, types)


def _answer(modules: _Modules, request: dict[str, Any]) -> dict[str, Any]:
    if request["kind"] == "names":
        family = {getattr(modules.python, name) for name in dir(modules.python) if _PYTEST.match(name)}
        return {"names": [name for name, parser in modules.parsers.items() if parser in family]}
    name = request["parser"]
    if name != R2E_PARSER and name not in modules.parsers:
        instance = request.get("instance_id") or request["task"]["instance_id"]
        raise InputError(f"task {instance}: swebench has no log parser {name!r}")
    if request["kind"] == "check":
        return {}
    return _read(modules, request)


def _read(modules: _Modules, request: dict[str, Any]) -> dict[str, Any]:
    name, task = request["parser"], request["task"]
    log, doubts = request["log"], []
    if name == R2E_PARSER:
        statuses, doubts = r2e_statuses(log)
        return _as_answer(statuses, bool(statuses), doubts)
    spec = modules.types.TestSpec(
        instance_id=task["instance_id"],
        image=task["image"],
        eval_script_list=[],
        repo=task["repo"],
        version=task["version"],
        FAIL_TO_PASS=task["FAIL_TO_PASS"],
        PASS_TO_PASS=task["PASS_TO_PASS"],
        log_parser=name,
        eval_type=task["eval_type"],
    )
    lines = [line[:LONGEST_LINE] for line in log.split("\n")]
    if name in _answer(modules, {"kind": "names"})["names"]:
        lines = [line for line in lines if _ANSI.sub("", line).strip().startswith(STATUSES) or _ends_so(line)]
        contradicted = _contradicted(lines)
    else:
        contradicted = set()
    parse = modules.parsers[name]
    statuses = dict(parse("\n".join(lines), spec))
    for line in contradicted:
        for test in parse(line, spec):
            statuses[test] = "FAILED"
            doubts.append(f"{test} has two statuses")
    judged = {test: _must_pass(status) if test in task["FAIL_TO_PASS"] else status for test, status in statuses.items()}
    kind = modules.constants.EvalType(task["eval_type"])
    gold = {"FAIL_TO_PASS": task["FAIL_TO_PASS"], "PASS_TO_PASS": task["PASS_TO_PASS"]}
    ran = bool(statuses) or bool(modules.grading.SUITE_RAN.search("\n".join(lines)))
    passed = modules.grading.get_eval_tests_report(judged, gold, eval_type=kind)
    return _as_answer(statuses, ran, doubts, *(passed[which]["success"] for which in gold))


def _as_answer(statuses: Any, valid: bool, doubts: Any, f2p: Any = (), p2p: Any = ()) -> dict[str, Any]:
    return {
        "statuses": statuses,
        "valid": valid,
        "doubts": list(doubts)[:20],
        "fail_to_pass": list(f2p),
        "pass_to_pass": list(p2p),
    }


def _must_pass(status: str) -> str:
    return "FAILED" if status == "XFAIL" else status


def _ends_so(line: str) -> bool:
    """Return whether a line has an old or verbose form such as `name PASSED [ 5%]`."""
    words = _ANSI.sub("", line).split()
    return len(words) > 1 and any(word in STATUSES for word in words[1:4])


def _contradicted(lines: list[str]) -> set[str]:
    """Return the lines of pytest's summary that give a test, by its whole name, another status than an earlier line."""
    seen: dict[str, str] = {}
    found = set()
    for line in lines:
        status, _, rest = _ANSI.sub("", line).strip().partition(" ")
        if status in STATUSES and rest and not re.match(r"\[\d+\]", rest):
            name = rest.split(" - ")[0].strip()
            if seen.setdefault(name, status) != status:
                found.add(f"{status} {name}")
    return found


def r2e_statuses(log: str) -> tuple[dict[str, str], list[str]]:
    """Read a log as R2E-Gym does: names without their file, and one of three words in pytest's summary.

    Returns:
        The statuses, and the tests that have two statuses.
    """
    text = re.sub(r"\x1b\[[0-9;]*m|\r", "", log)
    statuses: dict[str, str] = {}
    doubts = []
    for line in text.partition(_SUMMARY)[2].splitlines():
        line = line[:LONGEST_LINE]
        for status in ("PASSED", "FAILED", "ERROR"):
            if status in line:
                name = ".".join(line.split("::")[1:]).split(" - ")[0]
                if name and statuses.get(name, status) != status:
                    doubts.append(f"{name} has two statuses")
                statuses[name] = status
                break
    return statuses, doubts
