"""A complete environment: find a number from 1 to 100 in seven guesses. docs/environments.md explains it."""

from random import Random

from agent_loops.environment import Observation, Step

GUESSES = 7


class GuessingGame:
    """One episode. The score is partial credit: how close the best guess came."""

    thread_safe = True  # nothing is shared between two of them

    def reset(self, task: dict) -> Observation:
        self.number, self.left, self.score = Random(task["seed"]).randint(1, 100), GUESSES, 0.0
        instruction = f"Find the number from 1 to 100 in {GUESSES} guesses."
        return Observation("No guess yet.", ["guess <number>"], {"instruction": instruction})

    def step(self, action: str) -> Step:
        self.left -= 1
        word, _, number = action.partition(" ")
        if word == "guess" and number.isdecimal() and len(number) < 4:
            off = int(number) - self.number
            best = max(self.score, 1 - abs(off) / 100)
            text = "Correct." if off == 0 else f"{number} is too {'high' if off > 0 else 'low'}."
        else:
            off, best, text = None, self.score, "Say: guess <number>."
        gained, self.score = best - self.score, best
        won = off == 0
        return Step(
            Observation(f"{text} {self.left} guesses are left.", ["guess <number>"]),
            reward=gained,
            terminated=won or self.left == 0,
            info={"won": won, "score": self.score},
        )

    def close(self) -> None:
        """There is nothing to free."""


class Seeds:
    """The tasks: each is plain data, and no seed is in two splits."""

    splits = ("train", "validation")

    def tasks(self, split: str) -> list[dict]:
        seeds = {"train": range(1000, 2000), "validation": range(100)}[split]
        return [{"seed": seed} for seed in seeds]


class GuessTheNumber:
    """The benchmark: what a process opens once. Arguments of __init__ would be its settings."""

    name, task_set, make = "guess_the_number", Seeds(), GuessingGame
