"""Replays of recorded plays of the official environment, comparing everything an agent receives from it."""

import json
from pathlib import Path

from agent_loops.alfworld import AlfworldEnvironment


def test_recorded_plays_are_reproduced(official_data: Path, official_games: Path) -> None:
    environment = AlfworldEnvironment(official_games)
    with (official_data / "transcripts.jsonl").open(encoding="utf-8") as file:
        plays = [json.loads(line) for line in file]
    steps = 0
    for play in plays:
        first = environment.reset(play["game"])
        assert first.text == play["reset"]["obs"]
        assert set(first.actions) == set(play["reset"]["admissible"])
        assert first.text.endswith(f"Your task is to: {first.info['instruction']}")
        for recorded in play["steps"]:
            step = environment.step(recorded["action"])
            where = f"{play['game']}, {recorded['action']!r}"
            assert step.observation.text == recorded["obs"], where
            assert list(step.observation.actions) == sorted(set(recorded["admissible"])), where
            assert (step.reward, step.info["score"]) == (recorded["score"], recorded["score"]), where
            assert (step.terminated, step.info["won"]) == (recorded["done"], recorded["won"]), where
            steps += 1
    print(f"ALFWorld fidelity: {steps} of {steps} steps of {len(plays)} recorded plays")
    assert steps > 200
