"""The channel out of the process; messages are signed so that nothing else in the process can forge them."""

import contextlib
import hashlib
import hmac
import json
import os
import types


def make_channel(pipe, key):
    """Return `send`, `deceit` and `take_from_forks`."""
    write, getpid = os.write, os.getpid
    process, key = getpid(), key.encode()
    sent, told = [0], set()
    of_forks = os.pipe()
    os.set_blocking(of_forks[0], False)
    os.set_blocking(of_forks[1], False)

    def send(kind, **values):
        if getpid() != process:
            return  # in a fork made by a test
        line = json.dumps([sent[0], kind, values])
        sent[0] += 1
        mark = hmac.new(key, line.encode(), hashlib.sha256).hexdigest()
        data = (f"{mark} {line}\n").encode()
        while data:
            data = data[write(pipe, data) :]

    def deceit(what):
        if getpid() != process:  # a fork, which the parent learns of at the end
            write(of_forks[1], what.encode(errors="replace")[:400] + b"\n")
            return
        if what not in told and len(told) < 20:
            told.add(what)
            send("deceit", what=what)

    def take_from_forks():
        with contextlib.suppress(BlockingIOError):
            for line in os.read(of_forks[0], 1 << 16).decode(errors="replace").splitlines():
                deceit(f"in a process that it started: {line}")

    return types.SimpleNamespace(send=send, deceit=deceit, take_from_forks=take_from_forks)
