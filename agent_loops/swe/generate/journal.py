"""Rows of JSON that are written one by one and survive a crash between any two of them, and in mid-row."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from agent_loops.reading import FileError, parse_json, read_bytes, reason, shown

_MOST_BYTES = 4 << 30


class Journal:
    """A JSONL file that is only ever added to. A torn last row, of a crash, is cut off when it is opened.

    Args:
        file: where it is; made with the first row.

    Raises:
        FileError: a row before the last is no JSON object, or the file cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        if file.exists():
            self._read()

    def _read(self) -> None:
        try:
            content = read_bytes(self.file, _MOST_BYTES)
        except OSError as error:
            raise FileError(f"{self.file} cannot be read: {reason(error)}") from None
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.split(b"\n")[:-1], 1):
            try:
                row = parse_json(line)
            except ValueError as error:
                raise FileError(
                    f"{self.file}, row {number}: no JSON ({reason(error)}); repair or remove the file"
                ) from error
            if not isinstance(row, dict):
                raise FileError(f"{self.file}, row {number}: {shown(row)} is no row; repair or remove the file")
            self.rows.append(row)
        if len(whole) < len(content):
            os.truncate(self.file, len(whole))

    def add(self, row: dict[str, Any]) -> None:
        """Write a row; it is on the disk when this returns. May be called from several threads."""
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        with self._lock:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab") as stream:
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
            self.rows.append(row)
