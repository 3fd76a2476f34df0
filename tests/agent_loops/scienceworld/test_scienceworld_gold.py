"""The simulator's own solutions of all 30 tasks, played through the environment.

All reach 100. Three of them take more than 100 moves, where the package's environment stops by default; its users see
27 of 30 solved.
"""

from __future__ import annotations

import pytest

from agent_loops.scienceworld import VARIATIONS, ScienceWorldEnvironment

AFTER_100_MOVES = {
    "inclined-plane-friction-unnamed-surfaces": 20,
    "mendelian-genetics-known-plant": 35,
    "mendelian-genetics-unknown-plant": 34,
}
"""The score of those three at that point."""


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIATIONS)
def test_a_gold_path_wins(name, simulator, gold):
    environment = ScienceWorldEnvironment(lambda: simulator)
    first = environment.reset({"task": name, "variation": 0, "simplification": "easy"})
    total, cut = 100 * first.info["score"], None
    for action in gold(name):
        step = environment.step(action.lower())  # as the agent loop's parser hands them on
        total += step.reward
        assert total == pytest.approx(100 * step.info["score"])
        assert step.terminated == step.info["won"]
        if cut is None and environment._game.interface.getNumMoves() > 100:
            cut = round(100 * step.info["score"])
        if step.terminated:
            break
    environment.close()
    assert step.info["score"] == 1.0 and total == 100.0
    assert cut == AFTER_100_MOVES.get(name)
