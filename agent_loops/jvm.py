"""A Java process that runs a simulator, reached through py4j: bounded in memory, silent, and ended with this process.

ScienceWorld and TextWorldExpress use it. Each passes its name, for the error messages.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

try:
    from py4j.java_gateway import GatewayParameters, JavaGateway, find_jar_path
    from py4j.protocol import Py4JError, Py4JJavaError
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "what talks to Java is not installed: pip install 'verl-aem[scienceworld]' (or [textworld])"
    ) from error

from agent_loops.errors import AgentLoopError
from agent_loops.java import INSTALL, JavaError, check_heap, error_line, find_java
from agent_loops.workers import ProcessUnusable, die_with_parent

logging.getLogger("py4j").setLevel(logging.CRITICAL)  # it logs each error that it raises

_END_SECONDS = 5.0
_OUT_OF_MEMORY = 3  # the exit status of -XX:+ExitOnOutOfMemoryError


class SimulatorError(AgentLoopError, RuntimeError):
    """The simulator failed in one game; other games continue."""


class Jvm:
    """A Java process, reached through `gateway.jvm`; it ends with this object and with this process.

    Args:
        simulator: the name of the simulator that runs in it.
        jar: the path of the simulator's jar.
        heap: the maximum heap size, such as `1g`.
        folder: the working directory, if it reads files from there.

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
            # A simulator may iterate over hash sets of objects, whose order follows from addresses: ScienceWorld would
            # show other texts and scores each time. With one hash code for all, the order is that of insertion.
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
            # the kernel counts from the thread that starts it, so only a thread that lasts will do
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
        """Discard what the simulator prints: nobody reads it, and a full pipe would stop the simulator."""
        java = self.gateway.jvm.java
        nowhere = java.io.PrintStream(java.io.FileOutputStream(os.devnull))
        java.lang.System.setOut(nowhere)
        java.lang.System.setErr(nowhere)

    def error_output(self) -> str:
        """Return what the process wrote to standard error; empty after `close`."""
        if self._errors.closed:
            return ""
        self._errors.seek(0)
        return self._errors.read(1 << 16).decode(errors="replace")

    def exit_report(self) -> str | None:
        """Return why the process ended; None while it lives."""
        status = self.process.poll()
        if status is None:
            return None
        if status == _OUT_OF_MEMORY:
            return f"Java ran out of its heap of {self.heap}: raise `heap`, or play fewer episodes at once in a process"
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return f"Java ended {how}. {' '.join(self.error_output().split())[:200]}".rstrip()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function that queries this process, and distinguish the two kinds of failure.

        Raises:
            SimulatorError: the simulator failed; everything else in the process continues.
            ProcessUnusable: the process has ended.
        """
        if (report := self.exit_report()) is not None:
            raise ProcessUnusable(report)
        try:
            return function(*arguments)
        except Py4JJavaError as error:
            raise SimulatorError(f"in {self.simulator}: {error.java_exception.toString()}"[:500]) from error
        except Py4JError as error:
            with contextlib.suppress(subprocess.TimeoutExpired):  # the connection breaks just before it ends
                self.process.wait(_END_SECONDS)
            report = self.exit_report() or f"Java does not answer: {error}"
            self.close()
            raise ProcessUnusable(report) from error


class JvmSimulator:
    """A Java process that holds games, whose calls must not overlap.

    Args:
        simulator: the name of the simulator that runs in it.
        jar: the path of the simulator's jar.
        heap: the maximum heap size.
        folder: the working directory, if it reads files from there.

    Raises:
        JavaError: Java is missing or does not start.
    """

    def __init__(self, simulator: str, jar: Path, heap: str, folder: Path | None = None) -> None:
        self._jvm = Jvm(simulator, jar, heap, folder)

    @property
    def process_id(self) -> int:
        """The process id of the JVM."""
        return self._jvm.process.pid

    @property
    def alive(self) -> bool:
        return self._jvm.exit_report() is None

    def play(self, game: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call one of a game's own methods.

        Raises:
            SimulatorError: the simulator failed.
            ProcessUnusable: the JVM is dead.
        """
        return self._jvm.call(function, *arguments)

    def release(self, game: Any) -> None:
        """Release a game."""
        self.detach(game.interface)

    def detach(self, *objects: Any) -> None:
        """Release objects of the JVM. Python alone would not: the proxies of Java objects are in reference cycles."""
        for held in objects:
            self._jvm.call(self._jvm.gateway.detach, held)

    def close(self) -> None:
        """End the JVM."""
        self._jvm.close()


M = TypeVar("M", bound=JvmSimulator)


class JvmGame(Generic[M]):
    """A game in a simulator's JVM.

    Args:
        simulator: the simulator that holds the game.
        interface: the game's object in the JVM.
    """

    def __init__(self, simulator: M, interface: Any = None) -> None:
        self._simulator = simulator
        self.interface = interface

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function that queries the JVM about this game; characters that cannot be sent are replaced."""
        # a lone surrogate, which no simulator here understands: they know only ASCII
        sent = [
            text.encode("utf-8", "replace").decode("utf-8") if isinstance(text, str) else text for text in arguments
        ]
        return self._simulator.play(self, function, *sent)

    def description(self) -> str:
        """Return the task in words."""
        return self.ask(self.interface.getTaskDescription)

    def gold_actions(self) -> list[str]:
        """Return a solution, if it was requested when the task was loaded."""
        return list(self.ask(self.interface.getGoldActionSequence))

    def close(self) -> None:
        """Release the game."""
        if self._simulator.alive:
            self._simulator.release(self)


class OnePerProcess(Generic[M]):
    """A simulator shared by all environments of this process: started when first needed, and again after it died.

    Args:
        start: a function that starts a simulator.
    """

    def __init__(self, start: Callable[[], M]) -> None:
        self._start = start
        self._running: M | None = None

    def __call__(self) -> M:
        if self._running is None or not self._running.alive:
            self._running = self._start()
        return self._running


def _why_it_does_not_start(simulator: str, java: str, heap: str, said: str) -> str:
    if "UnsupportedClassVersionError" in said:
        return f"{java} is too old for {simulator}, which needs Java 8 or newer: {INSTALL}"
    reason = error_line(said)
    return f"{java} does not start with a heap of {heap}: {reason}. Repair it, choose another `heap`, or {INSTALL}"


def _end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, errors):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
