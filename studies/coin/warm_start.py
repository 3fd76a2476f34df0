"""The study's second task: a small model that has seen a walker look for the coin, and the parquet files for verl.

python studies/coin/warm_start.py outputs/coin [--seed 0] [--rooms 8] [--turns 25] [--waste 0.5]

The walker takes the coin where it sees one, else opens a door or moves, at random; at the share `waste` of its turns
it does anything that is possible. So what imitation gives is a slow random walk with habits that cost time, and finding
the coin within the turns takes more than that: which doors to try, not to turn back, not to look around.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch

from agent_loops.dataset import write_parquet
from agent_loops.environment import Task
from agent_loops.episode import Episode, EpisodeSettings
from agent_loops.textworld_express import TextWorldExpress
from recipe.aem.demo.cloning import Policy, clone, demonstrate
from recipe.aem.demo.play import play, success_rate
from recipe.aem.demo.tiny_model import build_model, build_tokenizer, save

DIRECTIONS = ("north", "south", "east", "west")
ACTIONS = (
    *("take coin", "look around", "inventory"),
    *(f"move {where}" for where in DIRECTIONS),
    *(f"{verb} door to {where}" for verb in ("open", "close") for where in DIRECTIONS),
)
CLONING_STEPS = 300


def walker(waste: float, seed: int) -> Policy:
    """A random walk that knows a coin when it sees one."""
    mood = random.Random(seed)

    def act(episode: Episode, _: Task) -> str:
        assert episode.observation is not None
        possible = list(episode.observation.actions)
        if mood.random() < waste:
            return mood.choice(possible)
        if "take coin" in possible:
            return "take coin"
        return mood.choice([action for action in possible if action.startswith(("open", "move"))])

    return act


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", type=int, default=8)
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--waste", type=float, default=0.5)
    options = parser.parse_args()
    torch.set_num_threads(1)

    game = TextWorldExpress("coin", {"numLocations": options.rooms, "includeDoors": 1, "numDistractorItems": 0})
    settings = EpisodeSettings(
        prompt="textworld_express/coin", max_turns=options.turns, require_think=False, history_length=3
    )
    write_parquet(game, options.directory / "tasks")
    train = game.task_set.tasks("train")
    shown = [
        turn for turns in demonstrate(game, train, settings, walker(options.waste, options.seed)) for turn in turns
    ]
    texts = [text for one in shown[:8000] for text in (one.prompt, one.response)]
    tokenizer = build_tokenizer(texts, ACTIONS, markup=("<action>", "</action>"))
    model = build_model(tokenizer, seed=options.seed)
    clone(model, tokenizer, shown, steps=CLONING_STEPS, seed=options.seed)
    outcomes = play(model, tokenizer, game, game.task_set.tasks("dev")[:256], settings, seed=options.seed)
    facts = {
        **{name: getattr(options, name) for name in ("seed", "rooms", "turns", "waste")},
        "cloning_steps": CLONING_STEPS,
        "demonstrated_turns": len(shown),
        "success_at_temperature_1": success_rate(outcomes),
        "turns_an_episode": sum(one.turns for one in outcomes) / len(outcomes),
        "invalid_turns_an_episode": sum(one.invalid_turns for one in outcomes) / len(outcomes),
    }
    save(model, tokenizer, options.directory / "warm_start", facts)
    print(facts)


if __name__ == "__main__":
    main()
