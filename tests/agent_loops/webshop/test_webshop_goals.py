"""Goals made from the catalogue: derived by hand, and compared with the benchmark's own."""

import json
import re
from collections import Counter
from itertools import product as combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_loops.webshop import Catalogue, CatalogueError, Goal, WebShop, WebShopEnvironment, load_catalogue
from agent_loops.webshop.generate import ATTRIBUTES_FILE, generate_catalogue
from agent_loops.webshop.goals import (
    NO_LIMIT,
    count_goals,
    first_worded,
    goal_places,
    price_limit,
    shuffled,
    synthetic_goal,
    written_goals,
)
from agent_loops.webshop.oracle import best_options
from agent_loops.webshop.reward import matched_options, reward

WISH = {"instruction": "Find me lasting lamps", "instruction_attributes": ("long lasting",)}


def test_synthetic_goals_by_hand(make_product) -> None:
    product = make_product(options={"size": ("s", "l"), "color": ("red", "blue")}, price=985.0, **WISH)
    assert count_goals(product) == 4
    goals = [synthetic_goal(product, number) for number in range(4)]
    assert [goal.instruction for goal in goals] == [
        "Find me lasting lamps with color: red, and size: s",
        "Find me lasting lamps with color: red, and size: l",
        "Find me lasting lamps with color: blue, and size: s",
        "Find me lasting lamps with color: blue, and size: l",
    ]
    assert goals[1] == Goal(
        asin=product.asin,
        instruction="Find me lasting lamps with color: red, and size: l",
        attributes=("long lasting",),
        options={"color": "red", "size": "l"},
        price_upper=1_000_000.0,
        query=product.query,
        product_category=product.product_category,
        title=product.title,
    )
    plain = make_product(options={}, price=955.0, **WISH)
    assert synthetic_goal(plain, 0).instruction in {
        f"Find me lasting lamps, and price lower than {limit} dollars" for limit in ("970.00", "980.00", "990.00")
    }


def test_who_gives_no_goal(make_product) -> None:
    assert count_goals(make_product()) == 0
    assert count_goals(make_product(instruction="Find me lamps")) == 0  # the reward needs an attribute
    assert count_goals(make_product(options={"size": ()}, **WISH)) == 0


@given(st.dictionaries(st.text(max_size=3), st.lists(st.text(max_size=3), max_size=4), max_size=4))
def test_combinations_come_in_the_order_of_nested_loops(options: dict[str, list[str]]) -> None:
    from agent_loops.webshop.records import Product

    own = {name: tuple(values) for name, values in options.items()}
    product = Product("B0", "t", "", (), "$1.0", 1.0, own, (), "", "", "w", ("a",))
    names = sorted(options)
    expected = [dict(zip(names, values, strict=True)) for values in combinations(*(options[name] for name in names))]
    assert [synthetic_goal(product, number).options for number in range(count_goals(product))] == expected


@given(st.text(max_size=10), st.floats(0, 2000) | st.integers(0, 101).map(lambda tens: 10.0 * tens))
def test_the_limit_is_one_of_the_next_multiples_of_ten(asin: str, price: float) -> None:
    limit = price_limit(asin, price)
    following = [10.0 * n for n in range(1, 100) if 10.0 * n > price][:4]
    assert limit == NO_LIMIT if len(following) < 2 else limit in following[1:]


def test_limits_have_the_benchmarks_odds() -> None:
    # The greater of two of four: the second in 1 of the 6 pairs, the third in 2, the fourth in 3.
    drawn = Counter(price_limit(f"B{number:09}", 15.0) for number in range(6000))
    assert [round(drawn[limit] / 1000, 1) for limit in (30.0, 40.0, 50.0)] == pytest.approx([1, 2, 3], abs=0.11)


def test_what_is_drawn_never_changes() -> None:
    # Pinned: another order or another limit would be another benchmark. The shuffle is CPython's under the seed 233.
    assert shuffled(10).tolist() == ORDER_OF_TEN
    assert [price_limit(f"B00000000{n}", 15.0) for n in range(8)] == LIMITS_OF_EIGHT
    products, numbers = goal_places([2, 0, 1])
    assert sorted(zip(products.tolist(), numbers.tolist(), strict=True)) == [(0, 0), (0, 1), (2, 0)]
    in_order = [(0, 0), (0, 1), (2, 0)]
    assert list(zip(products.tolist(), numbers.tolist(), strict=True)) == [in_order[n] for n in shuffled(3)]


ORDER_OF_TEN = [5, 9, 0, 1, 4, 7, 6, 3, 8, 2]
LIMITS_OF_EIGHT = [30.0, 40.0, 40.0, 50.0, 30.0, 40.0, 50.0, 50.0]


@given(st.lists(st.sampled_from(["a", "b", "c", "\ud800", ""])))
def test_first_worded(texts: list[str]) -> None:
    assert first_worded(texts).tolist() == [texts.index(text) for text in texts]


def test_the_benchmarks_own_goals_are_made_again(real: Catalogue, real_dir: Path) -> None:
    """All 6,910, in the same order; only the limits, which the benchmark draws unseeded, and the prices differ."""
    made = load_catalogue(real_dir, goals="synthetic").goals

    def facts(goal: Goal) -> tuple:
        wish = re.sub(r", and price lower than \d+\.00 dollars$", "", goal.instruction)
        return goal.asin, wish, goal.options, goal.attributes, goal.query, goal.product_category, goal.title

    assert [facts(goal) for goal in made] == [facts(goal) for goal in real.goals]
    steps = [(goal.price_upper - frozen.price_upper) / 10 for goal, frozen in zip(made, real.goals, strict=True)]
    unlimited = sum(goal.price_upper == NO_LIMIT for goal in real.goals)
    assert sum(goal.price_upper == NO_LIMIT for goal in made) == unlimited
    assert sum(abs(step) <= 2 for step in steps) > 0.9 * len(steps)  # the rest: prices in a range, drawn there too


@pytest.fixture
def without_goals(tmp_path: Path) -> Path:
    generate_catalogue(tmp_path, n_titles=20, n_goals=20)
    (tmp_path / "goals.json").unlink()
    return tmp_path


def test_a_directory_without_goals_makes_them(without_goals: Path) -> None:
    shop = WebShop(without_goals, n_validation=50)
    goals = shop.catalogue.goals
    assert len(goals) == sum(count_goals(product) for product in shop.catalogue.products)
    assert list(goals[:3]) == [goals[0], goals[1], goals[2]]
    assert all(shop.catalogue.by_asin[goal.asin].price < goal.price_upper for goal in goals)
    assert shop.make().reset(7).info["instruction"] == goals[7].instruction
    with pytest.raises(IndexError):
        goals[len(goals)]


def test_a_directory_without_instructions_says_so(without_goals: Path) -> None:
    (without_goals / ATTRIBUTES_FILE).write_text("{}")
    with pytest.raises(CatalogueError, match=rf"{ATTRIBUTES_FILE} gives no goals"):
        load_catalogue(without_goals)


def test_goals_that_people_wrote(without_goals: Path) -> None:
    first, second = load_catalogue(without_goals).products[:2]
    human = without_goals / "items_human_ins.json"
    written = {"instruction": "i need a lamp.", "instruction_attributes": ["slim"], "instruction_options": ["red"]}
    human.write_text(
        json.dumps(
            {
                "B0NOTSOLD0": [written],
                second.asin: [{**written, "instruction_options": {"color": "blue"}}, {**written}],
                first.asin: [written, {**written, "instruction_attributes": []}],
            }
        )
    )
    catalogue = load_catalogue(without_goals, goals="human")
    in_order = [(first.asin, ("red",)), (second.asin, {"color": "blue"}), (second.asin, ("red",))]
    assert [(goal.asin, goal.options) for goal in catalogue.goals] == [in_order[n] for n in shuffled(3)]
    limit = price_limit(first.asin, first.price)
    goal = next(goal for goal in catalogue.goals if goal.asin == first.asin)
    assert goal.instruction == f"i need a lamp, and price lower than {limit:.2f} dollars"
    assert len(load_catalogue(without_goals).goals) > 3  # nobody gets them unasked
    human.write_text(json.dumps({first.asin: [{"instruction": "i need a lamp"}]}))
    with pytest.raises(CatalogueError, match=rf"items_human_ins.json, line 1, {first.asin} is malformed"):
        load_catalogue(without_goals, goals="human")
    human.unlink()
    with pytest.raises(CatalogueError, match=r"exactly one items_human_ins\*.json"):
        load_catalogue(without_goals, goals="human")
    with pytest.raises(ValueError, match="goals='frozen': choose one of auto, synthetic, human"):
        load_catalogue(without_goals, goals="frozen")  # pyright: ignore[reportArgumentType]


def test_options_without_names_are_rewarded_by_value(make_product, make_goal) -> None:
    # Here colours are reduced on both sides, so "228blue" can be met; with names it cannot.
    goal = make_goal(options=("228blue", "large"))
    product = make_product(options={"color": ("red", "228blue"), "size": ("large", "small")})
    assert matched_options({"color": "228blue", "size": "small"}, goal) == 1
    assert best_options(product, goal) == {"color": "228blue", "size": "large"}
    assert reward(product, goal, best_options(product, goal)) == 1.0
    assert reward(product, goal, {"size": "large"}) == pytest.approx(3 / 4)


def test_a_written_goal_can_be_played(without_goals: Path) -> None:
    products = load_catalogue(without_goals).products
    goal = written_goals(
        products[0],
        [{"instruction": "x", "instruction_attributes": ["slim"], "instruction_options": []}],
        where="here",
    )[0]
    assert goal.options == ()
    catalogue = Catalogue(products, [goal], load_catalogue(without_goals).index)
    assert WebShopEnvironment(catalogue).reset(0).info["instruction"] == goal.instruction
