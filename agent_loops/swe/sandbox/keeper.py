"""The namespace that holds an episode's files: a file system in memory that nothing else on the machine can see.

A separate process, the keeper, runs in a user and a mount namespace in which a tmpfs of bounded size holds all that the
episode writes. The host has no path to it, so no link in it can mislead a program of the host, it never reaches a disk,
and it disappears with the keeper. The keeper ends when the pipe to it closes, hence also when this process is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

from agent_loops.swe.sandbox.base import SandboxError
from agent_loops.swe.sandbox.visible import PATH, STORE, View

INSTALL = "install it: apt-get install bubblewrap (0.8 or newer) util-linux"
NAMESPACES = (
    "user namespaces are refused here. Ask for sysctl user.max_user_namespaces above 0, "
    "kernel.unprivileged_userns_clone=1 (Debian), kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu), or, in a "
    "container, for a seccomp profile that allows them; or set sandbox.backend to another one"
)
_FIRST_UID, _UIDS = 1_900_000_000, 1 << 24  # above the ranges of users, containers and systemd
_ALL_UIDS = 4_294_967_295
_OWN_INODES = 16  # more than the directories of the tree, /tmp and the home take
SHM_MB, _PTYS = 64, 16
# Buffer sizes of a connection over the loopback in bytes: minimum, initial, maximum. Linux' own limit is 32 MB.
_RECEIVE, _SEND = "4096 65536 131072", "4096 16384 65536"
_STORE_INODES = 4096
_PROGRAM = Path(__file__).with_name("keep.py")


def find_program(name: str) -> str:
    """Return the path of a program.

    Raises:
        SandboxError: it is not installed; the message says how to install it.
    """
    if found := shutil.which(name, path=f"{os.environ.get('PATH', '')}:{PATH}"):
        return found
    raise SandboxError(f"the bubblewrap sandbox needs `{name}`, which is not on PATH; {INSTALL}")


class Keeper:
    """The process that holds an episode's files in separate namespaces.

    If this process is root of the whole machine, commands run under an unused user ID, different for each sandbox: the
    kernel does not limit root's processes, and root owns much that others cannot read. Otherwise they run as the user
    of this process.

    Args:
        size_mb: total size of the files.
        inodes: number of the files.
        view: what to assemble of the host below `STORE`, for bubblewrap to show.

    Raises:
        SandboxError: the kernel refuses the namespaces, or a program is missing.
    """

    def __init__(self, size_mb: int, inodes: int, view: View) -> None:
        root = os.geteuid() == 0 and _maps_all_users()
        plan = {
            "store": STORE,
            "owner": 1000 if root else 0,  # user ID in the keeper's namespace
            "map_self": not root,
            "size_mb": size_mb,
            "inodes": inodes + _OWN_INODES,
            "own_inodes": _STORE_INODES + len(view.host) + 4 * len(view.entries),
            "shm_mb": SHM_MB,
            "ptys": _PTYS,
            "host": view.host,
            "entries": view.entries,
            "receive": _RECEIVE,
            "send": _SEND,
            "cat": find_program("cat"),
        }
        # start the keeper's process
        command = [sys.executable, "-I", "-S", "-B", str(_PROGRAM)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env={"PATH": PATH, "LC_ALL": "C"},
            start_new_session=True,  # Control-C must reach only us
        )
        self.close = weakref.finalize(self, _end, self._process)
        # once it has made its namespaces, write the user map and send the plan
        try:
            self._expect(b"unshared\n")
            if root:
                number = _FIRST_UID + secrets.randbelow(_UIDS)
                for name in ("uid_map", "gid_map"):
                    Path(f"/proc/{self._process.pid}/{name}").write_text(f"0 0 1\n1000 {number} 1\n")
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(plan).encode() + b"\n")
            self._process.stdin.flush()
            self._expect(b"ready\n")
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise SandboxError(f"{NAMESPACES}: {error}") from error
            raise
        # the command that enters its namespaces
        identity = ("--setuid", "1000", "--setgid", "1000") if root else ("--preserve-credentials",)
        self.pid = self._process.pid
        target = f"--target={self.pid}"
        self.enter = [find_program("nsenter"), "--user", "--mount", "--net", target, *identity, "--"]

    def _expect(self, line: bytes) -> None:
        assert self._process.stdout is not None and self._process.stderr is not None
        if self._process.stdout.readline() != line:
            with contextlib.suppress(OSError):
                self._process.kill()
            said = self._process.stderr.read().decode(errors="replace").strip()
            reason = said.rpartition("\n")[2] or "it said nothing"  # the last line of a traceback
            remedy = NAMESPACES if "unshare" in reason else "no file system for the episode"
            raise SandboxError(f"{remedy}: {reason[:500]}")


def _maps_all_users() -> bool:
    return Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(_ALL_UIDS)]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
