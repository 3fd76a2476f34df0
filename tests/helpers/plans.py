"""Plans to play when comparing the native engine with the official one: every verb often enough, also rare verbs."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

from agent_loops.alfworld.game import Game, Play, load_game

VERBS = (
    *("go", "open", "close", "take", "move", "use", "heat", "cool", "clean", "slice"),
    *("examine", "look", "inventory", "help"),
)
NONSENSE = (
    "",
    "go to moon 1",
    "LOOK",
    "take it",
    "open",
    "put fork 1 in/on desk 1",
    "look around",
    "go to",
    "é 1",
    "help me",
)
_TRIES = 300
_LONGEST = 12


def verb(command: str, play: Play) -> str:
    """Return the verb of an admissible command; everything else is nonsense."""
    return command.strip().split()[0] if command.strip() in play.commands else "nonsense"


def plan(path: str, game: Game, counts: Counter[str], rng: random.Random, steps: int) -> dict[str, Any]:
    """Return the walkthrough and a play that seeks the least counted verbs, and add their commands to the counts."""
    return {
        "game": path,
        "plays": [_count(game, game.walkthrough, counts), _count(game, _steered(game, counts, rng, steps), counts)],
    }


def _count(game: Game, commands: list[str], counts: Counter[str]) -> list[str]:
    play = Play(game)
    for number, command in enumerate(commands):
        counts[verb(command, play)] += 1
        play.command(command)
        if play.won:
            return commands[: number + 1]
    return commands


def _steered(game: Game, counts: Counter[str], rng: random.Random, steps: int) -> list[str]:
    commands: list[str] = []
    wanted = sorted(VERBS, key=lambda one: (counts[one], rng.random()))
    for target in wanted[:2]:
        commands += _towards(game, commands, target, rng)
    own = Counter(counts)
    play = _replay(game, commands)
    while len(commands) < steps and not play.won:
        if rng.random() < 0.2:
            command = rng.choice([*NONSENSE, f" {rng.choice(play.commands)} ", _inadmissible(game, play, rng)])
        else:
            command = min(play.commands, key=lambda one: own[one.split()[0]] + rng.random() * 3)
        own[verb(command, play)] += 1
        commands.append(command)
        play.command(command)
    return commands


def _towards(game: Game, before: list[str], target: str, rng: random.Random) -> list[str]:
    """Return the shortest of many random paths to a command with this verb; empty if none was found."""
    best: list[str] = []
    for _ in range(_TRIES):
        play = _replay(game, before)
        way: list[str] = []
        while len(way) < (len(best) or _LONGEST) - 1 and not play.won:
            found = [one for one in play.commands if one.split()[0] == target]
            if found:
                best = [*way, rng.choice(found)]
                break
            useful = [one for one in play.commands if one.split()[0] in ("go", "open", "take")]
            way.append(rng.choice([one for one in useful if not one.startswith("go")] * 3 + useful))
            play.command(way[-1])
    return best


def _replay(game: Game, commands: list[str]) -> Play:
    play = Play(game)
    for command in commands:
        play.command(command)
    return play


def _inadmissible(game: Game, play: Play, rng: random.Random) -> str:
    """Return a command of the game that is not admissible at the moment."""
    others = sorted(set(game.walkthrough) - set(play.commands))
    return rng.choice(others) if others else "open fridge 99"


def make_plans(
    data: Path, games: list[str], per_type: int, steps: int, seed: int = 0
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Return plans for a number of games of each of the six types, and how often they use each verb."""
    rng = random.Random(seed)
    by_type: dict[str, list[str]] = {}
    for path in sorted(games):
        by_type.setdefault(Path(path).parts[1].split("-")[0], []).append(path)
    counts: Counter[str] = Counter()
    plans = []
    for paths in by_type.values():
        for path in rng.sample(paths, per_type):
            plans.append(plan(path, load_game(data / path), counts, rng, steps))
    return plans, counts
