"""The study's task with long responses: a model that has watched somebody careless, and the parquet files for verl.

    python studies/market/warm_start.py outputs/market_start/long/seed1 --goods 15 --seed 1

Whoever is imitated writes down the prices and goods of a page, and buys where the price that was *written* is lowest.
A response begins with how they read: who reads slowly gets 3 % of the items wrong, who reads quickly 40 %, and mostly
they read quickly. What fog hides they make up; sometimes they wait instead of buying. So what has to be learned are two
words, to read slowly and to wait in fog, and how uncertain somebody is shows in the whole of what they write.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch

from agent_loops.actions import find_format
from agent_loops.dataset import write_parquet
from agent_loops.environment import Task
from agent_loops.episode import Episode, EpisodeSettings
from recipe.aem.tools.demo.cloning import Demonstration, clone
from recipe.aem.tools.demo.play import play
from recipe.aem.tools.demo.tiny_model import build_model, build_tokenizer, save
from studies.market.market import GOODS, HIDDEN, SHELVES, STALLS, WAIT, Market, Page, Walk

SETTINGS = EpisodeSettings(
    prompt=str(Path(__file__).with_name("market.jinja")), max_turns=4, history_length=0, require_think=False
)
QUICKLY = 0.85
WRONG = {"quickly": 0.4, "slowly": 0.03}
"""The share of items that is wrong, by how a page is read."""
WAITS = {"fog": 0.3, "clear": 0.03}
CLONING_STEPS = 300
RIGHT, BLOCKS = 0.95, 8
"""First the model is shown pages without fog that are read slowly, which teach to copy and to compare: in blocks of
`CLONING_STEPS`, until this share of its purchases is right on such pages, and no longer than so many blocks. Then it is
shown whom it is to imitate. A fixed number of steps left some models at long responses buying at random."""
MARKUP = ("<action>", "</action>")


def written(shown: Page, wrong: float, chance: random.Random) -> Page:
    """Return what is written down of a page: items are made up where they are hidden, and with probability `wrong`."""

    def item(place: int, value: str) -> str:
        if value != HIDDEN and chance.random() >= wrong:
            return value
        return chance.choice("123456789" if place == 0 else GOODS)

    return Page(tuple(tuple(item(place, value) for place, value in enumerate(of)) for of in shown.stalls))


def respond(walk: Walk, page: str, chance: random.Random, quickly: float = QUICKLY) -> str:
    """Return the response to a page."""
    how = "quickly" if chance.random() < quickly else "slowly"
    notes = written(walk.shown, WRONG[how], chance)
    prices = [of[0] for of in notes.stalls]
    action = WAIT if chance.random() < WAITS[page] else STALLS[prices.index(min(prices))]
    return f"{how} {notes} {find_format(SETTINGS.action_format).write(action)}"


def demonstrations(market: Market, tasks: Sequence[Task], seed: int, quickly: float = QUICKLY) -> list[Demonstration]:
    """Return the turns of one episode of every task."""
    chance, turns = random.Random(seed), []
    for task in tasks:
        walk = market.make()
        episode = Episode(walk, SETTINGS)
        episode.reset(task)
        while not episode.done:
            assert episode.observation is not None
            response = respond(walk, episode.observation.info["page"], chance, quickly)
            turns.append(Demonstration(episode.prompt(), response))
            episode.step(response)
    return turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--goods", type=int, required=True, help="0, 4 or 15 for responses of 12, 36 or 102 tokens")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    market = Market(goods=options.goods)
    write_parquet(market, options.directory / "tasks")
    tasks = market.task_set.tasks("train")
    clear = Market(goods=options.goods, fog=0.0)
    plain = demonstrations(clear, tasks, options.seed, quickly=0.0)
    shown = demonstrations(market, tasks, options.seed)
    words = (*GOODS, *STALLS, WAIT, HIDDEN, *WRONG, *map(str, SHELVES))
    tokenizer = build_tokenizer([" ".join(words)], "123456789", markup=MARKUP)
    model = build_model(tokenizer, seed=options.seed, layers=2)
    validation = market.task_set.tasks("validation")[:256]

    def measured(of: Market, temperature: float) -> list[Episode]:
        most = 6 * options.goods + 16
        return play(
            model, tokenizer, of, validation, SETTINGS, max_tokens=most, temperature=temperature, seed=options.seed
        )

    scores: list[float] = []
    while not scores or scores[-1] < RIGHT:
        if len(scores) == BLOCKS:
            raise SystemExit(f"the model has not learned to compare: {scores} of its purchases were right")
        clone(model, tokenizer, plain, steps=CLONING_STEPS, seed=options.seed + len(scores))
        scores.append(fmean(episode.score for episode in measured(clear, temperature=0.0)))
        print(f"purchases right on clear pages: {scores[-1]:.2f}", flush=True)
    clone(model, tokenizer, shown, steps=CLONING_STEPS, seed=options.seed)
    episodes = measured(market, temperature=1.0)
    turns = [turn for episode in episodes for turn in episode.turns]
    facts = {
        "goods": options.goods,
        "seed": options.seed,
        "right_on_clear_pages": scores,
        "success_at_temperature_1": sum(episode.won for episode in episodes) / len(episodes),
        "score": sum(episode.score for episode in episodes) / len(episodes),
        "turns_an_episode": len(turns) / len(episodes),
        "invalid_turns_an_episode": sum(not turn.action.valid for turn in turns) / len(episodes),
    }
    save(model, tokenizer, options.directory / "warm_start", facts)
    print(facts)


if __name__ == "__main__":
    main()
