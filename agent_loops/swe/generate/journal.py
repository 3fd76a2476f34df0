"""Rows of JSON that are written one by one and survive a crash between any two of them, and in mid-row."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any


class Journal:
    """A JSONL file that is only ever added to. A torn last row, of a crash, is cut off when it is opened.

    Args:
        file: where it is; made with the first row.

    Raises:
        ValueError: a row before the last is no JSON.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        if file.is_file():
            self._read()

    def _read(self) -> None:
        content = self.file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                self.rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{self.file}, row {number}: no JSON ({error}); repair or remove the file") from error
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
