"""What a check finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        level: `ok`; `warning`, a run starts all the same; `failure`, it would not start, or not train what it says.
        title: what was looked at; the same words for the same check.
        detail: what was found.
        remedy: what to do; empty where all is well.
    """

    level: Level
    title: str
    detail: str
    remedy: str = ""
