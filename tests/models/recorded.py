"""Episodes of WebShop and ALFWorld that were recorded, as environments; whatever is done, the record goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path

from agent_loops.environment import Observation, Step

SHARED = Path(__file__).parents[3] / "shared" / "data"


def transcripts(name: str) -> Path:
    """Where the recorded episodes of `webshop` or `alfworld` are."""
    return Path(os.environ.get(f"AEM_{name.upper()}_DATA") or SHARED / name) / "transcripts.jsonl"


def read(path: Path, number: int) -> dict:
    with path.open(encoding="utf-8") as lines:
        return json.loads(next(line for place, line in enumerate(lines) if place == number))


def actions_of(episode: dict) -> list[str]:
    return [step["action"] for step in episode["steps"]]


def pages_of(episode: dict) -> list[str]:
    return [episode["reset"]["obs"], *(step["obs"] for step in episode["steps"])]


class RecordedEpisode:
    thread_safe = True

    def __init__(self, path: Path):
        self._path = path

    def reset(self, task: int) -> Observation:
        self._episode = read(self._path, task)
        self._place = 0
        return self._page(self._episode["reset"])

    def step(self, action: str) -> Step:
        step = self._episode["steps"][self._place]
        self._place += 1
        over = self._place == len(self._episode["steps"])
        return Step(self._page(step), 0.0, terminated=over, info={"won": over})

    def _page(self, step: dict) -> Observation:
        actions = step.get("admissible") or [f"click[{one}]" for one in step["clickables"]]
        instruction = self._episode.get("instruction") or self._episode["game"]
        return Observation(step["obs"], actions, {"instruction": instruction})

    def close(self) -> None:
        pass


class PageEpisode:
    """Says the same page whatever is done, three times."""

    thread_safe = True

    def __init__(self, page: str):
        self._page = page

    def reset(self, task: object) -> Observation:
        self._turns = 0
        return Observation(self._page, ["look"], {"instruction": "look around"})

    def step(self, action: str) -> Step:
        self._turns += 1
        return Step(Observation(self._page, ["look"]), 0.0, terminated=self._turns == 3, info={"won": True})

    def close(self) -> None:
        pass


class _Tasks:
    splits = ("train",)

    def tasks(self, split: str) -> range:
        return range(10)


class Recorded:
    name = "recorded"
    task_set = _Tasks()

    def __init__(self, path: str):
        self._path = Path(path)

    def make(self) -> RecordedEpisode:
        return RecordedEpisode(self._path)


class Page:
    name = "page"
    task_set = _Tasks()

    def __init__(self, page: str):
        self._page = page

    def make(self) -> PageEpisode:
        return PageEpisode(self._page)
