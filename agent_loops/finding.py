"""The result type of a check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        level: `ok`; `warning`: a run starts nevertheless; `failure`: a run would not start, or would not train what
            its configuration says.
        title: what was checked; the same words for the same check.
        detail: what was found.
        remedy: what to do; empty if nothing is wrong.
    """

    level: Level
    title: str
    detail: str
    remedy: str = ""
