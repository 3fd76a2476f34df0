"""WebShop's reward for a purchase.

r = r_type · (n_attributes + n_options + r_price) / (|attributes| + |options| + 1)      (Yao et al., 2022, equation 2)

n_attributes and n_options count the goal's attributes and options that the purchase matches, r_price is 1 for a price
at or under the limit, and r_type in {0, 0.1, 0.5, 1} says whether it is the right kind of product at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from rapidfuzz import fuzz, utils

from agent_loops.webshop.nouns import title_nouns
from agent_loops.webshop.records import Goal, Product

# The words to which WebShop reduces colours: the first of these that an option contains replaces the whole option.
COLOURS = re.findall(
    r"\w+",
    """
    alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel camo
    caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry cream
    crystal dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass gray green grey heather
    indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve merlot midnight mint mocha
    multicolor mushroom mustard natural navy nude olive orange peach pewter pink plum purple rainbow red rose royal
    rust sand sapphire seashell silver skull slate steel stone stonewash sunflower tan taupe teal tiger turquoise
    violet walnut wheat white wine yellow
    """,
)
_COLOUR_SET = frozenset(COLOURS)
_MATCH_ABOVE = 85


def reward(product: Product, goal: Goal, options: Mapping[str, str]) -> float:
    """Return the score in [0, 1] of buying a product with the chosen options (option's name to value)."""
    matched = matched_attributes(product, goal) + matched_options(options, goal) + (product.price <= goal.price_upper)
    return matched / (len(goal.attributes) + len(goal.options) + 1) * type_reward(product, goal)


def type_reward(product: Product, goal: Goal) -> float:
    """Return r_type: how well the product's kind fits, from its title's nouns, its search query and its categories."""
    wanted = set(title_nouns(goal.title))
    # Shares are over the goal's list of nouns, in which a noun can occur twice.
    share = len(wanted & set(title_nouns(product.title))) / len(title_nouns(goal.title)) if wanted else 0.2
    if share == 0:
        return 0.0
    if share < 0.1:
        return 0.1
    same_kind = (
        share > 0.2
        or product.query == goal.query
        or len(_categories(product.product_category) & _categories(goal.product_category)) >= 2
    )
    return 1.0 if same_kind else 0.5


def matched_attributes(product: Product, goal: Goal) -> int:
    """Return how many of the goal's attributes the product has, among its own attributes or in its texts."""
    texts = (product.title.lower(), " ".join(product.features).lower(), product.description.lower())
    return sum(
        any(similar(own, wanted) for own in product.attributes) or any(wanted in text for text in texts)
        for wanted in goal.attributes
    )


def matched_options(options: Mapping[str, str], goal: Goal) -> int:
    """Return how many of the goal's options the chosen options match."""
    chosen = [_normal_colour(value) for value in options.values()]
    if isinstance(goal.options, Mapping):
        wished = map(_wanted_text, goal.options.items())
    else:
        wished = map(_normal_colour, goal.options)
    return sum(any(similar(value, wanted) for value in chosen) for wanted in wished)


def similar(first: str, second: str) -> bool:
    """Return whether two texts share their words: thefuzz's token_set_ratio above 85, rounded as thefuzz rounds."""
    return round(fuzz.token_set_ratio(_plain(first), _plain(second))) > _MATCH_ABOVE


def _wanted_text(option: tuple[str, str]) -> str:
    # The benchmark compares with the (name, value) pair, not the value: a pair becomes a colour only if the value is
    # exactly a colour, and otherwise is compared as Python writes it.
    return option[1] if option[1] in _COLOUR_SET else str(option)


def _normal_colour(value: str) -> str:
    return next((colour for colour in COLOURS if colour in value), value)


@lru_cache(maxsize=16384)
def _plain(text: str) -> str:
    return utils.default_process("".join(character for character in text if not "\x80" <= character <= "\xff"))


@lru_cache(maxsize=4096)
def _categories(path: str) -> frozenset[str]:
    return frozenset(part.strip() for part in path.split("\u203a"))
