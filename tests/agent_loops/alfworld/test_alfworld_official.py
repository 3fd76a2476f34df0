"""The native engine against the official packages, command by command, if these are installed.

python -m venv official && official/bin/pip install alfworld==0.4.2 "textworld[pddl]"
AEM_ALFWORLD_PYTHON=official/bin/python pytest tests/agent_loops/alfworld/test_alfworld_official.py -s
"""

import json
import os
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from agent_loops.alfworld import Play, find_games, load_game
from tests.helpers.plans import make_plans, verb

PER_TYPE = 18  # games of each of the six types


@pytest.fixture
def interpreter() -> str:
    """A Python with the official packages: this one, or the one that AEM_ALFWORLD_PYTHON names."""
    named = os.environ.get("AEM_ALFWORLD_PYTHON")
    if named is None and not (find_spec("alfworld") and find_spec("textworld")):
        pytest.skip("the official alfworld is not installed; AEM_ALFWORLD_PYTHON may name a Python that has it")
    return named or sys.executable


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_official_engine_answers_alike(interpreter: str, official_games: Path) -> None:
    games = [game for split in find_games(official_games).values() for game in split]
    plans, planned = make_plans(official_games, games, PER_TYPE, steps=22)
    assert min(planned.values()) >= 20, planned
    recorder = Path(__file__).with_name("official.py")
    done = subprocess.run(
        [interpreter, str(recorder), str(official_games)],
        input="\n".join(map(json.dumps, plans)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["game"] for record in records] == [plan["game"] for plan in plans]

    cases: Counter[str] = Counter()
    differing: list[str] = []
    for plan, record in zip(plans, records, strict=True):
        game = load_game(official_games / plan["game"])
        for commands, answers in zip(plan["plays"], record["plays"], strict=True):
            play = Play(game)
            for command, answer in zip(["", *commands], answers, strict=True):
                if answer is not answers[0]:
                    cases[verb(command, play)] += 1
                    play.command(command)
                ours = (play.text, play.commands, int(play.won), play.won, play.won)
                theirs = (answer["text"], *(answer[key] for key in ("commands", "score", "done", "won")))
                if ours != theirs:
                    differing.append(f"{plan['game']}, {command!r}: {ours} instead of {theirs}")
    print(f"{len(records)} games, {sum(cases.values())} commands:", dict(cases.most_common()))
    assert not differing, f"{len(differing)} differences, the first:\n" + "\n".join(differing[:3])
    assert len(records) >= 100 and min(cases.values()) >= 20
