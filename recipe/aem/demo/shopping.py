"""The demo's task: the generated WebShop, played by the oracle in the words that the pages show."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from agent_loops.environment import Observation, Task
from agent_loops.episode import Episode, EpisodeSettings
from agent_loops.webshop import Oracle, WebShop
from agent_loops.webshop.generate import generate_catalogue

N_VALIDATION = 500
SETTINGS = EpisodeSettings(prompt="webshop/compact", max_turns=8, require_think=False)


def open_shop(directory: Path, seed: int = 0) -> WebShop:
    """The generated catalogue, written to `directory` where it is not there yet."""
    return WebShop(generate_catalogue(directory, seed=seed), n_validation=N_VALIDATION)


def oracle_policy(shop: WebShop) -> Callable[[Episode, Task], str]:
    """The oracle's actions, spelt as the page spells what is clicked: a small model copies, it cannot lower a case."""
    oracle = Oracle(shop.catalogue)

    def act(episode: Episode, task: Task) -> str:
        assert episode.observation is not None
        action = oracle.act(task, episode.observation, [turn.action.text for turn in episode.turns])
        return as_shown(action, episode.observation)

    return act


def as_shown(action: str, observation: Observation) -> str:
    """`click[buy now]` becomes `click[Buy Now]` where the page says so; a query gets a blank before its first word."""
    name, _, argument = action.partition("[")
    argument = argument.removesuffix("]")
    if name == "search":
        return f"search[ {argument}]"
    for piece in observation.text.split(" [SEP] "):
        if piece.lower() == argument:
            return f"click[{piece}]"
    return action


def phrases(observation: Observation) -> list[str]:
    """What can be clicked on a page, as it is shown there."""
    shown = (as_shown(f"click[{name}]", observation) for name in observation.info["clickables"])
    return [re.sub(r"^click\[|\]$", "", action) for action in shown]
