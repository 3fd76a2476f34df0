"""System calls that no command in the sandbox may make, as a filter for the kernel (seccomp-BPF)."""

from __future__ import annotations

import errno
import platform
import struct
from functools import cache

from agent_loops.swe.sandbox.base import SandboxError

# Memory that belongs to no process and no bounded file system (memfd, System V), keys and messages of the kernel's own,
# and large interfaces that repositories' tests do not need. Numbers from the kernel's tables: x86-64, then AArch64.
FORBIDDEN = {
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "syslog": (103, 116),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
}
_SOCKET = (41, 198)
# AF_UNIX, AF_INET, AF_INET6, AF_NETLINK. AF_VSOCK above all is missing: it reaches a virtual machine's host, since it
# knows no network namespaces.
_FAMILIES = (1, 2, 10, 16)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32 = 0x40000000  # calls of the x32 ABI have this bit, and would slip through
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000


@cache
def forbidding_filter(machine: str = platform.machine()) -> bytes:
    """Return the filter: a forbidden call fails with ENOSYS, a socket of another family with EAFNOSUPPORT.

    Args:
        machine: the processor, as `uname -m` names it.

    Raises:
        SandboxError: the numbers of this processor's system calls are not known here.
    """
    if machine not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise SandboxError(f"the bubblewrap sandbox knows the system calls of {known}, and this is {machine}")
    column, architecture = _ARCHITECTURES[machine]
    refuse = (_RETURN, 0, 0, _ERROR | errno.ENOSYS)
    program = [
        *((_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), refuse),
        *((_LOAD, 0, 0, 0), (_AT_LEAST, 0, 1, _X32), refuse),
    ]
    for numbers in FORBIDDEN.values():
        program += [(_EQUAL, 0, 1, numbers[column]), refuse]
    program += [(_EQUAL, 1, 0, _SOCKET[column]), (_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, 16)]
    for family in _FAMILIES:
        program += [(_EQUAL, 0, 1, family), (_RETURN, 0, 0, _ALLOW)]
    program.append((_RETURN, 0, 0, _ERROR | errno.EAFNOSUPPORT))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
