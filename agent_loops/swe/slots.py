"""At most as many test runs at once as there are cores, over all processes of a machine."""

from __future__ import annotations

import fcntl
import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PAUSE = 0.05


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def core_slot(slots: int | None = None, directory: Path | None = None) -> Iterator[None]:
    """Hold one of a machine's slots for a test run; waits until one is free.

    A slot is a lock on a file, which the kernel lets go when its holder dies. Threads hold slots of their own, too.

    Args:
        slots: how many there are; as many as cores by default. All who share `directory` should say the same.
        directory: where the files are; one of this user's below the directory for temporary files by default.

    Example:
        >>> with core_slot():
        ...     pass
    """
    slots = slots or cores()
    directory = directory or Path(tempfile.gettempdir()) / f"aem-swe-slots-{os.getuid()}"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = None
    try:
        while held is None:
            for number in random.sample(range(slots), slots):
                file = os.open(directory / str(number), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    held = file
                    break
                except BlockingIOError:
                    os.close(file)
            else:
                time.sleep(_PAUSE * (0.5 + random.random()))
        yield
    finally:
        if held is not None:
            os.close(held)
