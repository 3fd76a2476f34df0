"""Text environments for Gymnasium, and two without text, for the adapter's tests."""

from __future__ import annotations

import string

import gymnasium
from gymnasium.spaces import Discrete, Text

LETTERS = string.ascii_lowercase + string.digits + " .?"


class Digit(gymnasium.Env):
    """A game of guessing the seed's digit; the observation repeats the guess."""

    observation_space = Text(200, min_length=0, charset=LETTERS + string.ascii_uppercase)
    action_space = Text(20, charset=LETTERS)
    closed = 0

    def __init__(self, told=("won", "score"), text=str):
        self._told = told
        self._text = text

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.options = options or {}
        self.number = int(self.np_random.integers(10))
        return self._text("Which digit?"), {"task": "find it", "choices": [f"guess {n}" for n in range(10)]}

    def step(self, action):
        won = action == f"guess {self.number}"
        facts = {"won": won, "score": float(won), "is_success": won, "verdict": "yes"}
        told = {name: facts[name] for name in self._told}
        return self._text(action), 2.0 * won, won, action == "give up", told

    def close(self):
        Digit.closed += 1


class Numbers(gymnasium.Env):
    observation_space = Discrete(3)
    action_space = Text(5)

    def reset(self, *, seed=None, options=None):
        return 0, {}


class Pushes(Numbers):
    observation_space, action_space = Text(5), Discrete(2)
