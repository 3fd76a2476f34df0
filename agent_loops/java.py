"""A Java process with a simulator in it, reached through py4j: bounded in memory, silent, and gone when we are.

ScienceWorld and TextWorldExpress run in one. Each names itself, for the errors.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Generic, Protocol, TypeVar

try:
    from py4j.java_gateway import GatewayParameters, JavaGateway, find_jar_path
    from py4j.protocol import Py4JError, Py4JJavaError
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "what talks to Java is not installed: pip install 'verl-aem[scienceworld]' (or [textworld])"
    ) from error

from agent_loops.workers import ProcessUnusable, die_with_parent

logging.getLogger("py4j").setLevel(logging.CRITICAL)  # it logs each error that it raises

INSTALL = "install one, e.g. `apt-get install openjdk-17-jre-headless`, or point JAVA_HOME at it"
_END_SECONDS = 5.0
_OUT_OF_MEMORY = 3  # the exit status of -XX:+ExitOnOutOfMemoryError


class JavaError(RuntimeError):
    """There is no Java, or it does not start; the message says what to do."""


def find_java(simulator: str) -> str:
    """Returns the path of `java`: the one of JAVA_HOME, else the one on PATH.

    Args:
        simulator: what needs it.

    Raises:
        JavaError: there is none.
    """
    home = os.environ.get("JAVA_HOME")
    if home and (found := shutil.which(str(Path(home, "bin", "java")))):
        return found
    if found := shutil.which("java"):
        return found
    raise JavaError(f"{simulator} needs Java 8 or newer, and there is no `java` on PATH: {INSTALL}")


def missing_java(simulator: str) -> str:
    """Say why `java` cannot be used here and how to get it; return an empty string where it can.

    Unlike `find_java` this starts it (`java -version`, about 0.1 s): a `java` on PATH may be a broken launcher, too
    old, or built for another processor. Call it before a run that needs Java, not for each episode.

    Args:
        simulator: what needs it.
    """
    try:
        java = find_java(simulator)
    except JavaError as error:
        return str(error)
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{java} does not start ({error}): repair it, or {INSTALL}"
    said = _error_line(done.stderr + done.stdout)
    if done.returncode != 0:
        why = f"`java -version` exited with status {done.returncode}: {said}"
        return f"{java} does not start ({why}): repair it, or {INSTALL}"
    if re.search(r'version "1\.[0-7]\b', done.stderr):
        return f"{java} is too old for {simulator}, which needs Java 8 or newer ({said}): {INSTALL}"
    return ""


def check_heap(heap: str) -> str:
    """Returns a heap size as Java takes it.

    Raises:
        ValueError: it is not a number with a unit.
    """
    if not re.fullmatch(r"[1-9]\d*[mMgG]", str(heap)):
        raise ValueError(f"heap={heap!r}: expected a size such as 1g or 768m")
    return str(heap)


class Living(Protocol):
    """What runs in a Java process, and tells whether that lives."""

    @property
    def alive(self) -> bool: ...


S = TypeVar("S", bound=Living)


class OnePerProcess(Generic[S]):
    """A simulator that all environments of this process share: started when it is first asked for, and anew when it
    has died.

    Args:
        start: starts one.
    """

    def __init__(self, start: Callable[[], S]) -> None:
        self._start = start
        self._running: S | None = None

    def __call__(self) -> S:
        if self._running is None or not self._running.alive:
            self._running = self._start()
        return self._running


class SimulatorError(RuntimeError):
    """The simulator failed in one game; the others go on."""


class Jvm:
    """A Java process, reached through `gateway.jvm`; it ends with this object, and with this process however it ends.

    Args:
        simulator: the name of what runs in it.
        jar: where that lies.
        heap: its bound, such as `1g`.
        folder: where it runs, if it reads files from there.

    Raises:
        JavaError: Java is missing, too old, or does not start.
    """

    def __init__(self, simulator: str, jar: Path, heap: str = "1g", folder: Path | None = None) -> None:
        self.simulator, self.heap = simulator, check_heap(heap)
        command = [
            find_java(simulator),
            f"-Xmx{self.heap}",
            "-XX:+UseSerialGC",
            "-XX:+ExitOnOutOfMemoryError",
            "-XX:-UsePerfData",  # no files in /tmp
            f"-XX:ErrorFile={tempfile.gettempdir()}/hs_err_pid%p.log",  # of a crash
            # A simulator may go through hash sets of objects, whose order follows from addresses: ScienceWorld would
            # show other texts and scores each time. With one hash code for all the order is that of insertion.
            "-XX:+UnlockExperimentalVMOptions",
            "-XX:hashCode=2",
            "-XX:+IgnoreUnrecognizedVMOptions",
            "-XX:+DisplayVMOutputToStderr",
            "-Dfile.encoding=UTF-8",
            *("-classpath", os.pathsep.join((find_jar_path(), str(jar))), "py4j.GatewayServer"),
            *("--die-on-broken-pipe", "--enable-auth", "0"),
        ]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, it is closed with the process
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=folder or tempfile.gettempdir(),
            # the kernel counts from the thread that starts it, so only one that lasts will do
            preexec_fn=die_with_parent if threading.current_thread() is threading.main_thread() else None,
        )
        assert self.process.stdout is not None
        port, token = (self.process.stdout.readline().decode(errors="replace").strip() for _ in range(2))
        if not port.isdecimal():
            reason = f"{port}\n{token}\n{self.error_output()}"
            _end(self.process, self._errors)
            raise JavaError(_why_it_does_not_start(simulator, command[0], self.heap, reason))
        self.gateway: Any = JavaGateway(gateway_parameters=GatewayParameters(port=int(port), auth_token=token))
        self.close = weakref.finalize(self, _end, self.process, self._errors)
        self._silence()

    def _silence(self) -> None:
        """What the simulator prints goes nowhere: nobody reads it, and a full pipe would stop it."""
        java = self.gateway.jvm.java
        nowhere = java.io.PrintStream(java.io.FileOutputStream(os.devnull))
        java.lang.System.setOut(nowhere)
        java.lang.System.setErr(nowhere)

    def error_output(self) -> str:
        """What the process wrote to standard error; nothing after `close`."""
        if self._errors.closed:
            return ""
        self._errors.seek(0)
        return self._errors.read(1 << 16).decode(errors="replace")

    def exit_report(self) -> str | None:
        """Why the process is gone; None while it lives."""
        status = self.process.poll()
        if status is None:
            return None
        if status == _OUT_OF_MEMORY:
            return f"Java ran out of its heap of {self.heap}: raise `heap`, or play fewer episodes at once in a process"
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return f"Java ended {how}. {' '.join(self.error_output().split())[:200]}".rstrip()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function that asks this process, and tell its faults apart.

        Raises:
            SimulatorError: the simulator failed; what else runs in the process goes on.
            ProcessUnusable: the process is gone.
        """
        if (report := self.exit_report()) is not None:
            raise ProcessUnusable(report)
        try:
            return function(*arguments)
        except Py4JJavaError as error:
            raise SimulatorError(f"in {self.simulator}: {error.java_exception.toString()}"[:500]) from error
        except Py4JError as error:
            with contextlib.suppress(subprocess.TimeoutExpired):  # the connection breaks a moment before it is gone
                self.process.wait(_END_SECONDS)
            report = self.exit_report() or f"Java does not answer: {error}"
            self.close()
            raise ProcessUnusable(report) from error


def _why_it_does_not_start(simulator: str, java: str, heap: str, said: str) -> str:
    if "UnsupportedClassVersionError" in said:
        return f"{java} is too old for {simulator}, which needs Java 8 or newer: {INSTALL}"
    reason = _error_line(said)
    return f"{java} does not start with a heap of {heap}: {reason}. Repair it, choose another `heap`, or {INSTALL}"


def _error_line(said: str) -> str:
    """The line of Java's output that names the error, else the first."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("Picked up ")]
    return next((line for line in lines if "rror" in line), lines[0] if lines else "it said nothing")[:200]


def _end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, errors):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
