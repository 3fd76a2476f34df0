"""JSON rows that are written one by one and survive a crash between two rows or within a row."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from agent_loops.reading import FileError, parse_json, read_bytes, reason, shown

_MOST_BYTES = 4 << 30


class Journal:
    """An append-only JSONL file; opening it removes a last row torn by a crash.

    Args:
        file: its path; the first row creates it.

    Raises:
        FileError: a row before the last is not a JSON object, or the file cannot be read.
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
        """Write a row to disk before returning; this may be called from several threads."""
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        with self._lock:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab") as stream:
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
            self.rows.append(row)
