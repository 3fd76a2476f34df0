"""Markets in the fog: a task of few turns whose responses are as long as one wants.

A page shows three stalls, a, b and c. Each has a price from 1 to 9 and so many goods, on numbered shelves. The agent
writes down what it reads, then buys at the stall that is cheapest, without being told whether it was. An episode is won
if it was so at every market. In fog some of the prices and goods cannot be read (`fog`); it stays from one market to
the next, until the agent waits once. There is one turn to spare for that.

The goods change nothing but how much there is to write, so the same decisions take 12 tokens (`goods=0`), 36
(`goods=4`) or 102 (`goods=15`).
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import ClassVar

from agent_loops.environment import Observation, Step, check_split
from agent_loops.errors import InputError

STALLS = ("a", "b", "c")
WAIT = "wait"
HIDDEN = "fog"
GOODS = (
    *("acorn", "bean", "cake", "dish", "egg", "fig", "glass", "honey"),
    *("iron", "jam", "kettle", "lamp", "milk", "nuts", "oil", "pear"),
)
SHELVES = range(10, 100)
"""Numbers with two digits, as prices have one."""


@dataclass(frozen=True)
class Page:
    """What can be read at a market: of each stall the price, then the goods."""

    stalls: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        shelves = iter(SHELVES)
        return " ".join(
            f"{name} {' '.join((price, *(f'{next(shelves)} {item}' for item in goods)))}"
            for name, (price, *goods) in zip(STALLS, self.stalls, strict=True)
        )


@dataclass(frozen=True)
class Rules:
    """How the markets are made.

    Attributes:
        goods: of each stall.
        markets: of an episode.
        fog: the probability that fog falls at a market.
        hidden: the share of prices and goods that it hides.
    """

    goods: int
    markets: int
    fog: float
    hidden: float

    def page(self, seed: int, chosen: str) -> Page:
        """Return the market after these choices, as it is without fog. All prices differ."""
        chance = Random(f"{seed}{chosen}")
        prices = chance.sample("123456789", len(STALLS))
        return Page(tuple((price, *chance.choices(GOODS, k=self.goods)) for price in prices))

    def foggy(self, seed: int, chosen: str) -> bool:
        """Return whether fog has fallen at this market or an earlier one."""
        return any(Random(f"fog {seed}{chosen[:number]}").random() < self.fog for number in range(len(chosen) + 1))

    def in_fog(self, page: Page, seed: int, chosen: str) -> Page:
        chance = Random(f"hidden {seed}{chosen}")
        return Page(
            tuple(tuple(HIDDEN if chance.random() < self.hidden else item for item in of) for of in page.stalls)
        )


class Walk:
    """One episode."""

    thread_safe: ClassVar[bool] = True  # nothing is shared between two of them

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    def reset(self, task: int) -> Observation:
        self._seed, self._chosen, self._waited, self._right = task, "", False, 0
        return self._observe()

    def step(self, action: str) -> Step:
        info: dict = {}
        if action == WAIT:
            self._waited = True
        elif action in STALLS:
            prices = [of[0] for of in self.page.stalls]
            self._right += prices[STALLS.index(action)] == min(prices)
            self._chosen += action
        else:
            info["invalid"] = f"{action!r} is none of {', '.join((*STALLS, WAIT))}"
        done = len(self._chosen) == self._rules.markets
        info |= {"won": self._right == self._rules.markets, "score": self._right / self._rules.markets}
        return Step(self._observe(), reward=0.0, terminated=done, info=info)

    def close(self) -> None:
        """There is nothing to free."""

    @property
    def page(self) -> Page:
        """The market as it is without fog."""
        return self._rules.page(self._seed, self._chosen)

    @property
    def shown(self) -> Page:
        """The market as the agent sees it."""
        foggy = not self._waited and self._rules.foggy(self._seed, self._chosen)
        return self._rules.in_fog(self.page, self._seed, self._chosen) if foggy else self.page

    def _observe(self) -> Observation:
        shown = self.shown
        page = "fog" if any(HIDDEN in of for of in shown.stalls) else "clear"
        return Observation(str(shown), (*STALLS, WAIT), {"page": page})


class Seeds:
    """The tasks. Their pages have nothing in common."""

    splits = ("train", "validation")

    def tasks(self, split: str) -> list[int]:
        return list({"train": range(1000, 5000), "validation": range(500)}[check_split(split, self.splits)])


class Market:
    """The benchmark.

    Args:
        goods, markets, fog, hidden: as in `Rules`.
    """

    name, task_set = "market", Seeds()

    def __init__(self, goods: int = 4, markets: int = 3, fog: float = 0.3, hidden: float = 0.5) -> None:
        if not 0 <= goods <= len(SHELVES) // len(STALLS):
            raise InputError(f"benchmark.goods={goods}: expected 0 to {len(SHELVES) // len(STALLS)}")
        if markets < 1 or not 0 <= fog <= 1 or not 0 <= hidden <= 1:
            raise InputError(f"benchmark: markets={markets}, fog={fog}, hidden={hidden}: expected >= 1, and shares")
        self.rules = Rules(goods, markets, fog, hidden)

    def make(self) -> Walk:
        return Walk(self.rules)
