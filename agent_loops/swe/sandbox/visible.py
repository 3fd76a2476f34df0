"""What of the host is visible in the sandbox, read-only: the system's programs, and a Python."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from agent_loops.swe.sandbox.base import SandboxError, SandboxSettings

_TOP = (
    "bin",
    "sbin",
    "lib",
    "lib32",
    "lib64",
    "libx32",
)  # links into /usr on current systems, directories on older ones
# what programs of /usr need; nothing of it is secret
_ETC = (
    *("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "mime.types", "ssl/certs"),
    *("ssl/openssl.cnf", "magic", "protocols", "services", "java-17-openjdk"),
)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def make_environment(settings: SandboxSettings, interpreter: str | None, home: str) -> dict[str, str]:
    """Return all environment variables of a command; nothing of this process's own is among them."""
    return {
        "PATH": f"{interpreter}:{PATH}" if interpreter else PATH,
        "HOME": home,
        "USER": "agent",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "TERM": "dumb",
        "PAGER": "cat",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        **{name: str(value) for name, value in settings.env.items()},
    }


def system_arguments(root: Path = Path("/")) -> list[str]:
    """Return bubblewrap's arguments for /usr, the directories beside it, and the harmless part of /etc."""
    arguments = ["--ro-bind", str(root / "usr"), "/usr"]
    for name in _TOP:
        path = root / name
        if path.is_symlink():
            arguments += ["--symlink", os.readlink(path), f"/{name}"]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), f"/{name}"]
    for name in _ETC:
        arguments += ["--ro-bind-try", str(root / "etc" / name), f"/etc/{name}"]
    return arguments


def python_paths(python: str | None) -> tuple[str | None, list[str]]:
    """Return the directory of a Python's programs, and the directories that it needs.

    Args:
        python: `SandboxSettings.python`.

    Raises:
        SandboxError: there is no such interpreter, or it cannot be shown without a home directory around it.

    Example:
        >>> python_paths("")
        (None, [])
    """
    if python == "":
        return None, []
    given = Path(os.path.abspath(os.path.expanduser(python or sys.executable)))
    interpreter = given / "bin" / "python" if given.is_dir() else given
    if not os.access(interpreter, os.X_OK):
        raise SandboxError(f"sandbox.python={python!r}: there is no interpreter at {interpreter}")
    needed = [interpreter.parent.parent, Path(os.path.realpath(interpreter)).parent.parent]
    configuration = needed[0] / "pyvenv.cfg"
    if configuration.is_file():  # a virtual environment, which may name its base by another path
        lines = (line.partition("=") for line in configuration.read_text().splitlines())
        needed += [Path(value.strip()).parent for key, _, value in lines if key.strip() == "home"]
    paths = [str(path) for path in dict.fromkeys(needed) if not path.is_relative_to("/usr")]
    for path in map(Path, paths):
        if Path.home().is_relative_to(path) or path.parent == path:
            raise SandboxError(
                f"sandbox.python={python!r} is installed in {path}, which holds more than Python; "
                "name a virtual environment or another installation"
            )
    return str(interpreter.parent), paths
