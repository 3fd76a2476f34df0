"""The namespace that holds an episode's files: a file system in memory that nothing else on the machine can see.

A process of our own, the keeper, lives in a user and a mount namespace in which a tmpfs of bounded size holds all that
the episode writes. The host has no path to it, so no link in it can mislead a program of the host, nothing of it ever
reaches a disk, and with the keeper it is gone. The keeper ends when the pipe to it closes, hence also when this process
is killed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import weakref
from collections.abc import Sequence
from pathlib import Path

from agent_loops.swe.sandbox.base import SandboxError
from agent_loops.swe.sandbox.visible import PATH

INSTALL = "install it: apt-get install bubblewrap (0.8 or newer) util-linux"
NAMESPACES = (
    "user namespaces are refused here. Ask for sysctl user.max_user_namespaces above 0, "
    "kernel.unprivileged_userns_clone=1 (Debian), kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu), or, in a "
    "container, for a seccomp profile that allows them; or set sandbox.backend to another one"
)
STORE = "/sys"  # where the keeper mounts it: a directory that every Linux has and that no source of a bind lies in
_FIRST_UID, _UIDS = 1_900_000_000, 1 << 24  # above those of users, containers and systemd
_ALL_UIDS = 4_294_967_295
_OWN_INODES = 16  # more than the script below makes

# $1 size in MB, $2 number of inodes, $3 owner, then what is visible read-only: bound to STORE/readable/0, 1, …
_SCRIPT = rf"""
set -e
echo unshared
read -r _
mount -t tmpfs -o "size=$1m,nr_inodes=$2,mode=0755,nosuid,nodev" tmpfs {STORE}
cd {STORE}
mkdir tree tmp home readable etc
chown "$3:$3" tree tmp home
chmod 1777 tmp
printf 'root:x:0:0::/root:/bin/sh\nagent:x:%s:%s::/home/agent:/bin/bash\n' 1000 1000 >etc/passwd
printf 'root:x:0:\nagent:x:1000:\n' >etc/group
printf '127.0.0.1 localhost sandbox\n' >etc/hosts
printf 'passwd: files\ngroup: files\nhosts: files\n' >etc/nsswitch.conf
shift 3
place=0
for path in "$@"; do
    if [ -d "$path" ]; then mkdir "readable/$place"; else : >"readable/$place"; fi
    mount --rbind "$path" "readable/$place"
    place=$((place + 1))
done
echo ready
read -r _ || true
"""


def find_program(name: str) -> str:
    """Return the path of a program.

    Raises:
        SandboxError: it is not installed; the message says how to install it.
    """
    if found := shutil.which(name, path=f"{os.environ.get('PATH', '')}:{PATH}"):
        return found
    raise SandboxError(f"the bubblewrap sandbox needs `{name}`, which is not on PATH; {INSTALL}")


class Keeper:
    """Holds an episode's files, in namespaces of its own.

    Where this process is root of the whole machine, commands run under a user number that nobody has, another one for
    each sandbox: the kernel does not limit root's processes, and root owns much that others cannot read. Else they run
    as the user of this process.

    Args:
        size_mb: how much the files may hold.
        inodes: how many they may be.
        readable: paths that are bound below `STORE`/readable, in this order.

    Raises:
        SandboxError: the kernel refuses the namespaces, or a program is missing.
    """

    def __init__(self, size_mb: int, inodes: int, readable: Sequence[str]) -> None:
        root = os.geteuid() == 0 and _maps_all_users()
        owner = 1000 if root else 0  # as the keeper's namespace numbers users
        command = [find_program("unshare"), "--user", "--mount", *([] if root else ["--map-root-user"]), "--"]
        command += ["/bin/bash", "-c", _SCRIPT, "keeper", str(size_mb)]
        command += [str(inodes + _OWN_INODES + len(readable)), str(owner), *readable]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env={"PATH": PATH, "LC_ALL": "C"},
            start_new_session=True,  # Control-C is for us, not for it
        )
        self.close = weakref.finalize(self, _end, self._process)
        try:
            self._expect(b"unshared\n")
            if root:
                number = _FIRST_UID + secrets.randbelow(_UIDS)
                for name in ("uid_map", "gid_map"):
                    Path(f"/proc/{self._process.pid}/{name}").write_text(f"0 0 1\n1000 {number} 1\n")
            assert self._process.stdin is not None
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
            self._expect(b"ready\n")
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise SandboxError(f"{NAMESPACES}: {error}") from error
            raise
        identity = ("--setuid", "1000", "--setgid", "1000") if root else ("--preserve-credentials",)
        target = f"--target={self._process.pid}"
        self.enter = [find_program("nsenter"), "--user", "--mount", target, *identity, "--"]

    def _expect(self, line: bytes) -> None:
        assert self._process.stdout is not None and self._process.stderr is not None
        if self._process.stdout.readline() != line:
            with contextlib.suppress(OSError):
                self._process.kill()
            reason = self._process.stderr.read().decode(errors="replace").strip() or "it said nothing"
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
