"""Ray workers that are forked from a process that has already imported verl, instead of each importing it.

verl's trainer starts about eight workers, one after another, and each spends most of its start on the same imports
(torch, transformers, tensordict, vLLM). Ray lets a run choose the command that starts its workers
(`runtime_env.py_executable`). Here that command is this file: it sends the worker's command line, environment and
standard streams to a server that has imported everything, the server forks, and the child runs Ray's own worker script.
If no server answers, the command executes the Python that Ray would have started.

Only for processes without an accelerator: CUDA does not survive a fork. The file uses only the standard library,
because the command runs without site-packages; the command costs a worker about 30 ms.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_RUNS = b"\1"  # the child's answer: it has received everything, and runs


def start(early: Sequence[str], late: Sequence[str], environment: Mapping[str, str]) -> tuple[subprocess.Popen, str]:
    """Start a server that ends with this process.

    Args:
        early: the modules to import at once.
        late: the modules to import when the first worker asks, in its environment: Ray's library reads the job's number
            and the cluster's settings when it is loaded, and never again.
        environment: the server's environment variables, which the early modules read while they are imported.

    Returns:
        The server, to which the caller must keep a reference, and the command for `py_executable`.
    """
    folder = tempfile.mkdtemp(prefix="aem-fork-")  # the server removes it
    address = os.path.join(folder, "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)  # workers that connect during the imports wait
        server = subprocess.Popen(
            # unbuffered, because the workers inherit the server's sys.stdout
            [sys.executable, "-u", "-m", __spec__.name, str(listener.fileno()), ",".join(early), ",".join(late)],
            env=dict(environment),
            stdin=subprocess.PIPE,  # its end tells the server that this process has ended
            pass_fds=[listener.fileno()],
            start_new_session=True,  # like Ray's workers: Ctrl-C goes to the trainer, which ends the workers
        )
    return server, shlex.join([sys.executable, "-I", "-S", __file__, address])


@dataclass(frozen=True)
class _Request:
    """The arguments of a worker; the connection stays open as long as the worker lives."""

    command: list[str]
    environment: dict[str, str]
    folder: str
    streams: list[int]
    connection: socket.socket


def serve(listener: socket.socket, early: Sequence[str], late: Sequence[str]) -> None:
    """Import the modules and fork a worker for each connection until standard input ends.

    In a worker, this returns when the worker is done.
    """
    address = listener.getsockname()
    signal.signal(signal.SIGTERM, _end)
    try:
        request, before = _fork(listener, early, late)
    except BaseException:
        _remove(address)
        raise
    listener.close()
    if request is None:
        _remove(address)
        os._exit(0)  # like Ray's workers; skips libraries that report leaks at exit
    else:
        _work(request, before)


def _fork(
    listener: socket.socket, early: Sequence[str], late: Sequence[str]
) -> tuple[_Request | None, Mapping[str, str]]:
    """Import the modules, and fork for each connection.

    Returns:
        In a child, its request; in the server, None at its end. With it, the environment before the imports.
    """
    before, is_first = dict(os.environ), True
    _import(early)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the workers
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while all(key.fileobj is listener for key, _ in selector.select()):
            connection, _ = listener.accept()
            if (request := _read(connection)) is None:
                continue
            if is_first:
                _enter(request.environment, before)
                before, is_first = request.environment, False
                _import(late)
                gc.collect()
                gc.freeze()  # a worker's garbage collections then leave the shared pages alone
            with warnings.catch_warnings():
                # Python 3.12 warns about threads; the only other thread is pyarrow's (jemalloc), which handles forks
                warnings.simplefilter("ignore", DeprecationWarning)
                if os.fork() == 0:
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)
                    return request, before
            for stream in request.streams:
                os.close(stream)
            connection.close()
    return None, before


def _import(modules: Sequence[str]) -> None:
    for module in modules:
        importlib.import_module(module)


def _read(connection: socket.socket) -> _Request | None:
    """Read a request; return None if the command was killed while sending it."""
    streams: list[int] = []
    try:
        message, streams, _, _ = socket.recv_fds(connection, 1 << 16, 3)
        while part := connection.recv(1 << 16):
            message += part
        return _Request(**json.loads(message), streams=streams, connection=connection)
    except (OSError, ValueError):
        for stream in streams:
            os.close(stream)
        connection.close()
        return None


def _end(*_: object) -> None:
    raise SystemExit


def _remove(address: str) -> None:
    os.unlink(address)
    os.rmdir(os.path.dirname(address))


def _work(request: _Request, before: Mapping[str, str]) -> None:
    """Turn this process into the worker."""
    os.setpgid(0, 0)  # Ray ends a worker's whole group, which must not be the server's
    for target, stream in enumerate(request.streams):
        os.dup2(stream, target)
        os.close(stream)
    request.connection.sendall(_RUNS)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(request.folder)
    _enter(request.environment, before)
    _seed()
    sys.argv = request.command
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")


def _enter(environment: Mapping[str, str], before: Mapping[str, str]) -> None:
    """Adopt a worker's environment; keep the imports' changes since `before` where the worker's value is as before."""
    changed = {name: value for name, value in os.environ.items() if before.get(name) != value}
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)
    os.environ.update({name: value for name, value in changed.items() if environment.get(name) == before.get(name)})


def _seed() -> None:
    """Reseed the generators, since otherwise all workers draw the same numbers; `random` reseeds itself."""
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if torch := sys.modules.get("torch"):
        torch.default_generator.seed()


def launch(address: str, command: Sequence[str]) -> None:
    """Let the server at `address` run `command`, a script and its arguments, and return when it has ended."""
    request = {"command": list(command), "environment": dict(os.environ), "folder": os.getcwd()}
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(address)
            data = json.dumps(request).encode()
            data = data[socket.send_fds(connection, [data], [0, 1, 2]) :]
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(1)
        except OSError as error:
            answer, reason = b"", str(error)
        else:
            reason = "it ended"
        if answer == _RUNS:
            connection.recv(1)  # receives nothing; returns when the worker ends
            return
    print(f"verl-aem: no warm worker ({reason}: {address}); this one imports for itself", file=sys.stderr, flush=True)
    os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    if sys.flags.isolated:
        launch(sys.argv[1], sys.argv[2:])
    else:
        number, *modules = sys.argv[1:]
        serve(socket.socket(fileno=int(number)), *(names.split(",") for names in modules))
