"""All official games: they load, their walkthroughs win, and no command is ambiguous."""

from collections import Counter
from pathlib import Path

import pytest

from agent_loops.alfworld import KINDS, Play, find_games, load_game
from agent_loops.alfworld.tasks import kind_of


@pytest.mark.slow
def test_every_game_loads_and_its_walkthrough_wins(official_games: Path) -> None:
    games = find_games(official_games)
    assert {split: len(found) for split, found in games.items()} == {
        "train": 3553,
        "valid_seen": 140,
        "valid_unseen": 134,
    }
    assert {kind_of(game) for found in games.values() for game in found} == set(KINDS)
    for game in (game for found in games.values() for game in found):
        loaded = load_game(official_games / game)
        play = Play(loaded)
        for command in loaded.walkthrough:
            assert not play.won, game
            assert command in play.commands, (game, command)
            play.command(command)
        assert play.won, game


def test_every_type_is_in_the_first_tasks_of_a_split(official_games: Path) -> None:
    for games in find_games(official_games).values():
        shares = Counter(kind_of(game) for game in games[:128])
        whole = Counter(kind_of(game) for game in games)
        for kind in KINDS:
            assert abs(shares[kind] / min(128, len(games)) - whole[kind] / len(games)) < 0.12


def test_no_command_means_two_things(official_games: Path) -> None:
    """Where it did, TextWorld would do the first one in an order of the planner's, which nothing here keeps."""
    for game in find_games(official_games)["train"][:60]:
        loaded = load_game(official_games / game)
        play = Play(loaded)
        for command in loaded.walkthrough:
            meanings = [
                (schema._command(play._facts, values), schema.wording.template, values)
                for schema in loaded.schemas
                for join, idle in schema._joins
                for values in join.solve(play._facts)
                if idle is None or not idle(values)
            ]
            assert len(set(meanings)) == len({words for words, *_ in meanings}) == len(play.commands)
            play.command(command)
