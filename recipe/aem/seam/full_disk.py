"""A training whose disk is full: its metrics wait for room, and a checkpoint that does not fit spares the last one.

The dump has its own way (`dump/writer.py`). `wraps.py` puts these functions round verl's.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
from pathlib import Path
from typing import Any

from agent_loops.files import disk_full, write_file

# below verl's own logger, which has a handler of its own: in its trainer the root logger lets errors through only
logger = logging.getLogger(f"verl.{__name__}")

TRACKER = "latest_checkpointed_iteration.txt"
_WAITING = "aem_waiting"


def wrap_tracking(tracking: Any) -> None:
    """Post-import hook of `verl.utils.tracking`."""
    import wrapt

    wrapt.wrap_function_wrapper(tracking, "FileLogger.log", around_log)
    wrapt.wrap_function_wrapper(tracking, "FileLogger.finish", before_finish)


def around_log(wrapped: Any, file_logger: Any, args: tuple, kwargs: dict) -> None:
    """Wrap `FileLogger.log`: a line is written whole, or waits in memory until there is room.

    verl writes without a buffer and does not look how much of a line arrived: on a full disk half a line stays, and the
    next one is joined to it.
    """
    file, line = file_logger.fp, io.BytesIO()
    file_logger.fp = line
    try:
        wrapped(*args, **kwargs)
    finally:
        file_logger.fp = file
    waiting: list[bytes] = file_logger.__dict__.setdefault(_WAITING, [])
    waiting.append(line.getvalue())
    if (error := _write(file, waiting)) is not None:
        logger.error(
            "%s: %s. The metrics of %d steps wait in memory and are written when there is room; training goes on.",
            file_logger.filepath,
            error.strerror,
            len(waiting),
        )


def before_finish(wrapped: Any, file_logger: Any, args: tuple, kwargs: dict) -> Any:
    """Wrap `FileLogger.finish`: the last try."""
    waiting = file_logger.__dict__.get(_WAITING, [])
    if waiting and not file_logger.fp.closed and (error := _write(file_logger.fp, waiting)) is not None:
        logger.error(
            "%s: %s. The metrics of the last %d steps are missing there; the lines before them are whole.",
            file_logger.filepath,
            error.strerror,
            len(waiting),
        )
    return wrapped(*args, **kwargs)


def _write(file: Any, waiting: list[bytes]) -> OSError | None:
    """Append lines, each whole or not at all; those that are written are taken from the list."""
    while waiting:
        start, rest = file.tell(), waiting[0]
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                file.seek(start)
                file.truncate()
            return disk_full(error, file.name) or error
        del waiting[0]
    return None


def around_save(wrapped: Any, trainer: Any, args: tuple, kwargs: dict) -> Any:
    """Wrap `PPOTrainer._save_checkpoint`: where it fails, what it left of this step goes, and the last one counts.

    The run ends there: processes that share a model wait for each other while they save, and one that failed is not
    in step with them any more.

    Raises:
        DiskFull: there is no room for the checkpoint.
    """
    folder = Path(trainer.config.trainer.default_local_dir)
    half = folder / f"global_step_{trainer.global_steps}"
    was_there, last = half.exists(), _last(folder)
    try:
        return wrapped(*args, **kwargs)
    except Exception as error:
        if not was_there:
            shutil.rmtree(half, ignore_errors=True)
        if last is not None and _last(folder) != last:  # verl empties the file before it writes it
            write_file(folder / TRACKER, last)
        full = disk_full(_cause(error), half)
        if full is None:
            raise
        stands = f"the one of step {last} stands, and the same command goes on from it" if last else "there is none yet"
        logger.error(
            "The checkpoint of step %d is missing: %s. Of the earlier ones, %s.", trainer.global_steps, full, stands
        )
        raise full from error


def _last(folder: Path) -> str | None:
    try:
        return (folder / TRACKER).read_text()
    except OSError:
        return None


def _cause(error: Exception) -> Exception:
    """What a worker of Ray raised; its error's own text is a traceback."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error
