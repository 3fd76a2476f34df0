"""The demo's task: the generated WebShop, played by the oracle in the words that the pages show."""

from __future__ import annotations

import random
import re
from pathlib import Path

from agent_loops.environment import Observation, Task
from agent_loops.episode import Episode, EpisodeSettings
from agent_loops.webshop import Oracle, WebShop
from agent_loops.webshop.generate import generate_catalogue
from recipe.aem.tools.demo.cloning import Policy

N_VALIDATION = 500
SETTINGS = EpisodeSettings(prompt="webshop/compact", max_turns=8, require_think=False)


def open_shop(directory: Path) -> WebShop:
    """The generated catalogue, written to `directory` where it is not there yet.

    Products of one title differ in price alone, which the results show: what is to be learned can be seen.
    """
    return WebShop(generate_catalogue(directory, colours_offered=5, sizes_offered=5), n_validation=N_VALIDATION)


def careful_policy(shop: WebShop) -> Policy:
    """The oracle's actions, spelt as the page spells what is clicked: a small model copies, it cannot lower a case."""
    oracle = Oracle(shop.catalogue)

    def act(episode: Episode, task: Task) -> str:
        assert episode.observation is not None
        action = oracle.act(task, episode.observation, [turn.action.text for turn in episode.turns])
        return as_shown(action, episode.observation)

    return act


def hurried_policy(shop: WebShop, seed: int = 0, first_hit: float = 0.5, early_buy: float = 0.7) -> Policy:
    """The oracle in a hurry: it often takes the first product of the page whatever its price, and mostly buys before it
    has set the last option. Who imitates it, however well, keeps these habits; reward alone can tell that they are bad.

    Args:
        shop: the benchmark.
        seed: of the moods.
        first_hit: how often the first product of the results is taken.
        early_buy: how often a second option is skipped.
    """
    careful, mood = careful_policy(shop), random.Random(seed)

    def act(episode: Episode, task: Task) -> str:
        assert episode.observation is not None
        action = careful(episode, task)
        page = episode.observation.info["page"]
        if page == "results" and mood.random() < first_hit:
            ids = [name for name in episode.observation.info["clickables"] if name.startswith("b0")]
            return as_shown(f"click[{ids[0]}]", episode.observation) if ids else action
        options_set = sum(turn.observation.info["page"] == "item" for turn in episode.turns)
        if page == "item" and options_set and action != "click[Buy Now]" and mood.random() < early_buy:
            return "click[Buy Now]"
        return action

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
