"""The benchmark's data: products, goals and the search index over them, read once per process and shared.

Nothing here draws a random number: the order and the prices follow from the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from agent_loops.webshop.files import (
    DataFiles,
    HumanInstructions,
    check_goals,
    read_facts,
    read_frozen_goals,
    read_products,
)
from agent_loops.webshop.goals import SyntheticGoals, count_goals, first_worded, goal_places, shuffled
from agent_loops.webshop.records import Goal, Product, searchable_text
from agent_loops.webshop.search import Ranking, SearchIndex


@dataclass(frozen=True)
class Catalogue:
    """Products in file order, goals in their final order, and the search index over the products."""

    products: Sequence[Product]
    goals: Sequence[Goal]
    index: Ranking = field(repr=False)

    @cached_property
    def by_asin(self) -> Mapping[str, Product]:
        """Products by their asin (upper-case)."""
        return {product.asin: product for product in self.products}

    @cached_property
    def first_worded(self) -> NDArray[np.int32]:
        """For each goal, the first goal with exactly the same words."""
        return first_worded(goal.instruction for goal in self.goals)

    def search(self, query: str) -> tuple[int, ...]:
        """Return the positions of at most 50 products, best first."""
        return self.index.search(query)


def read_catalogue(files: DataFiles) -> Catalogue:
    """Read a data directory's files into memory.

    Raises:
        CatalogueError: a file is malformed.
    """
    frozen = read_frozen_goals(files.goals) if files.goals else []
    price_limits = {goal.asin: goal.price_upper for goal in frozen}
    facts = dict(read_facts(files.attributes))
    products = list(read_products(files.items, lambda asin: facts.get(asin, {}), price_limits))
    goals: Sequence[Goal] = frozen
    if files.human:
        instructions = HumanInstructions(files.human)
        written = [goal for product in products for goal in instructions.goals(product)]
        goals = [written[place] for place in shuffled(len(written)).tolist()]
    elif not files.goals:
        goals = SyntheticGoals(products, *goal_places([count_goals(product) for product in products]))
    check_goals(files, len(goals), sum(product.asin in price_limits for product in products))
    return Catalogue(products, goals, SearchIndex(map(searchable_text, products)))
