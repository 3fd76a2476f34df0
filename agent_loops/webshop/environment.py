"""One episode of WebShop: actions and pages as text.

The pages are those of the benchmark's `text` mode: the visible pieces of each page joined by " [SEP] ".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from agent_loops.environment import Observation, Step
from agent_loops.errors import MissingIndexError, OrderError
from agent_loops.webshop.catalogue import Catalogue
from agent_loops.webshop.records import CatalogueError, Goal, Product
from agent_loops.webshop.reward import reward

PAGE_SIZE: Final = 10
SEPARATOR: Final = " [SEP] "
SEARCH_HINT: Final = "search[<your query>]"
SUB_PAGES: Final = ("description", "features", "reviews")
_ITEM_BUTTONS: Final = ("back to search", "< prev", *SUB_PAGES, "buy now")


def parse_action(action: str) -> tuple[str, str]:
    """Return an action's name and its argument in lower case; both are empty if it is not `name[argument]`.

    What follows the last closing bracket, or the first line, is ignored; the argument starts at the last bracket
    that opens.

    Example:
        >>> parse_action("click[Buy Now]"), parse_action("buy now")
        (('click', 'buy now'), ('', ''))
    """
    line = action.partition("\n")[0]
    end = line.rfind("]")
    start = line.rfind("[", 1, max(end - 1, 0))
    return ("", "") if start < 0 else (line[:start], line[start + 1 : end].lower())


@dataclass(slots=True)
class _Episode:
    goal: Goal
    page: str = "search"
    hits: tuple[int, ...] = ()
    number: int = 1
    product: Product | None = None
    options: dict[str, str] = field(default_factory=dict)
    score: float | None = None


class WebShopEnvironment:
    """An environment that plays one goal at a time over a shared, read-only catalogue.

    Its own state is a few hundred bytes. `Observation.info` holds `instruction` (the goal in words), `page` (search,
    results, item, description, features, reviews or done), `clickables`, `has_search_bar`, and `body`: the text
    without the heading that repeats the goal. `Step.info` holds `score` and `won` (score is exactly 1).
    """

    thread_safe: ClassVar[bool] = True

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._episode: _Episode | None = None

    def reset(self, goal_index: int) -> Observation:
        """Open the search page for the goal with this index.

        Raises:
            MissingIndexError: there is no goal with this index.
            CatalogueError: the goal's product is not in the catalogue, so no search could find it. The agent loop
                turns this into a row with reward 0 and this reason.
        """
        goals = self._catalogue.goals
        if not 0 <= goal_index < len(goals):
            raise MissingIndexError(f"goal {goal_index} does not exist: the catalogue has {len(goals)} goals")
        goal = goals[goal_index]
        if goal.asin not in self._catalogue.by_asin:
            raise CatalogueError(
                f"goal {goal_index} is for product {goal.asin!r}, which the catalogue lacks: take goals and items of "
                "one data set"
            )
        self._episode = _Episode(goal)
        return self._observe(self._episode)

    def step(self, action: str) -> Step:
        """Play an action, `search[words]` or `click[what]`. An action that matches nothing on the page does nothing.

        Raises:
            OrderError: no episode was started.
        """
        episode = self._episode
        if episode is None:
            raise OrderError("step() before reset(): no goal is being played")
        gained = 0.0
        if episode.page != "done":
            name, argument = parse_action(action)
            if name == "search":
                _show_results(episode, self._catalogue.search(argument))
            elif name == "click":
                self._click(episode, argument)
            if episode.score is not None:
                gained = episode.score
        score = episode.score or 0.0
        return Step(
            observation=self._observe(episode),
            reward=gained,
            terminated=episode.page == "done",
            info={"score": score, "won": score == 1.0},
        )

    def close(self) -> None:
        """Discard the episode."""
        self._episode = None

    def _click(self, episode: _Episode, what: str) -> None:
        page, product = episode.page, episode.product
        if page in ("search", "done"):
            return
        if what == "back to search":
            episode.page, episode.product, episode.options = "search", None, {}
        elif page == "results":
            if what == "next >":
                _show_results(episode, episode.hits, episode.number + 1)
            elif what == "< prev":
                if episode.number > 1:
                    _show_results(episode, episode.hits, episode.number - 1)
            elif clicked := next((shown for shown in self._shown(episode) if shown.asin.lower() == what), None):
                episode.page, episode.product = "item", clicked
        elif what == "< prev":
            if page == "item":
                _show_results(episode, episode.hits, episode.number)
            else:
                episode.page = "item"
        elif page == "item" and product is not None:
            if what in SUB_PAGES:
                episode.page = what
            elif what == "buy now":
                episode.page, episode.score = "done", reward(product, episode.goal, episode.options)
            else:
                # If two options share a value, the later option is meant, as in the benchmark.
                for name, values in reversed(list(product.options.items())):
                    if what in values:
                        episode.options[name] = what
                        break

    def _shown(self, episode: _Episode) -> list[Product]:
        first = (episode.number - 1) * PAGE_SIZE
        return [self._catalogue.products[position] for position in episode.hits[first : first + PAGE_SIZE]]

    def _observe(self, episode: _Episode) -> Observation:
        pieces, clickables = self._render(episode)
        body = SEPARATOR.join(pieces)
        instruction = episode.goal.instruction
        if episode.page == "search":
            text = f"WebShop{SEPARATOR}Instruction:{SEPARATOR}{instruction}{SEPARATOR}{body}"
        elif episode.page == "done":
            text = body
        else:
            text = f"Instruction:{SEPARATOR}{instruction}{SEPARATOR}{body}"
        searchable = episode.page == "search"
        return Observation(
            text=text,
            actions=[SEARCH_HINT] if searchable else [f"click[{name}]" for name in clickables],
            info={
                "instruction": instruction,
                "page": episode.page,
                "body": body,
                "clickables": clickables,
                "has_search_bar": searchable,
            },
        )

    def _render(self, episode: _Episode) -> tuple[list[str], list[str]]:
        """Return the page's pieces of text and what can be clicked on it."""
        page, product = episode.page, episode.product
        if page == "search":
            return ["Search"], ["search"]
        if page == "results":
            shown = self._shown(episode)
            buttons = ["Back to Search", "< Prev", "Next >"] if episode.number > 1 else ["Back to Search", "Next >"]
            pieces = ["Back to Search", f"Page {episode.number} (Total results: {len(episode.hits)})", *buttons[1:]]
            for found in shown:
                pieces += [found.asin, *_visible(found.title), found.price_text]
            return pieces, [*map(str.lower, buttons), *(found.asin.lower() for found in shown)]
        if product is None:
            raise AssertionError(f"page {page!r} without a product")
        if page == "done":
            return _receipt(product, episode.options, episode.score), []
        pieces = ["Back to Search", "< Prev"]
        if page == "item":
            pieces += _item_pieces(product)
            values = (value for values in product.options.values() for value in values)
            return pieces, list(dict.fromkeys((*_ITEM_BUTTONS, *values)))
        if page == "description":
            pieces += _visible(product.description)
        elif page == "features":
            for feature in product.features:
                pieces += _visible(" " + feature)
        return pieces, ["back to search", "< prev"]


def _show_results(episode: _Episode, hits: tuple[int, ...], number: int = 1) -> None:
    episode.page, episode.hits, episode.number = "results", hits, number
    episode.product, episode.options = None, {}


def _item_pieces(product: Product) -> list[str]:
    pieces: list[str] = []
    for name, values in product.options.items():
        for text in (name, *values):
            pieces += _visible(text)
    return [
        *pieces,
        *_visible(product.title),
        f"Price: {product.price_text}",
        "Rating: N.A.",
        "Description",
        "Features",
        "Reviews",
        "Buy Now",
    ]


def _visible(text: str) -> Sequence[str]:
    """Return the text as a page shows it: nothing for an empty text or a line break, else the stripped text."""
    if not text:
        return ()
    if not text.strip(" \t\n\f\r"):
        return () if "\n" in text else ("",)
    return (text.strip(),)


def _receipt(product: Product, options: Mapping[str, str], score: float | None) -> list[str]:
    chosen = json.dumps(options, sort_keys=True)
    for character in "<>&'":
        chosen = chosen.replace(character, f"\\u{ord(character):04x}")
    return [
        *("Thank you for shopping with us!", "Your code:", "None", "(Paste it in your MTurk interface.)", "Purchased"),
        *("asin", product.asin, "options", chosen, "attrs", "None", "category", "None", "query", "None"),
        *("product category", "None", "Target", "asin", "options", "attrs", "price upper", "instuction text"),
        *("category", "product category", "query", "Goal", "None", "Reward"),
        *("Your score (min 0.0, max 1.0)", str(score), "Reward Details", "None"),
    ]
