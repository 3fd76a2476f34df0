"""Rewards computed by hand.

The formula: r_type (n_attributes + n_options + r_price) / (|attributes| + |options| + 1).
"""

import pytest

from agent_loops.webshop import Catalogue
from agent_loops.webshop.nouns import PREPARED_FILE, guess_nouns, nouns_at, prepared_spans, title_digest, title_nouns
from agent_loops.webshop.reward import reward, similar, type_reward

FULL = {"color": "red", "size": "large"}


@pytest.mark.parametrize(
    ("product", "goal", "options", "expected"),
    [
        ({}, {}, FULL, 1.0),
        ({}, {}, {"color": "red"}, 3 / 4),
        ({}, {}, {}, 2 / 4),
        ({"price": 30.0}, {}, FULL, 1.0),  # at the limit
        ({"price": 30.01}, {}, FULL, 3 / 4),
        ({"attributes": ()}, {}, FULL, 3 / 4),
        ({"attributes": (), "features": ("Long Lasting bulb",)}, {}, FULL, 1.0),
        ({"attributes": (), "description": "so long lasting"}, {}, FULL, 1.0),
        ({"attributes": ("lasting long",)}, {}, FULL, 1.0),  # the order of words does not matter
        ({}, {}, {"color": "dark red", "size": "large"}, 3 / 4),  # "dark" is the first colour word in it
        ({}, {}, {"color": "cherry red", "size": "large"}, 1.0),  # "red" is
        ({}, {"options": {"color": "228blue"}}, {"color": "228blue"}, 2 / 3),  # bought as "blue", wanted as "228blue"
        ({}, {"options": {"size": "x-large"}}, {"size": "large"}, 1.0),  # one set of words holds the other
        ({}, {"options": {}}, {}, 1.0),
        ({"title": "glass bowl"}, {}, FULL, 0.0),  # no noun in common
    ],
)
def test_rewards(make_product, make_goal, product: dict, goal: dict, options: dict, expected: float) -> None:
    assert reward(make_product(**product), make_goal(**goal), options) == pytest.approx(expected, abs=1e-15)


def test_type_reward_has_four_values(make_product, make_goal) -> None:
    nouns = [f"noun{chr(97 + n)}" for n in range(11)]
    goal = make_goal(title=" ".join(nouns))
    other = {"query": "bowls", "product_category": "Kitchen \u203a Bowls"}
    assert type_reward(make_product(title="else"), goal) == 0.0
    assert type_reward(make_product(title=nouns[0]), goal) == 0.1  # 1/11 < 0.1
    assert type_reward(make_product(title=" ".join(nouns[:2]), **other), goal) == 0.5  # 2/11 ≤ 0.2, another kind
    assert type_reward(make_product(title=" ".join(nouns[:3]), **other), goal) == 1.0  # 3/11 > 0.2
    assert type_reward(make_product(title=" ".join(nouns[:2]), **{**other, "query": "lamps"}), goal) == 1.0
    one_level = {**other, "product_category": "Home \u203a Else"}
    assert type_reward(make_product(title=" ".join(nouns[:2]), **one_level), goal) == 0.5
    two_levels = {**other, "product_category": "Home \u203a Else \u203a Lamps"}
    assert type_reward(make_product(title=" ".join(nouns[:2]), **two_levels), goal) == 1.0


def test_a_title_without_nouns_fits_no_query(make_product, make_goal) -> None:
    goal = make_goal(title="for the 12")
    other = {"query": "bowls", "product_category": "Kitchen"}
    assert type_reward(make_product(), goal) == 1.0
    assert type_reward(make_product(**other), goal) == 0.5


def test_repeated_nouns_count_in_the_share(make_product, make_goal) -> None:
    # 1 of ("lamp", "lamp", … 11 times): the share is over the list, the common words are a set.
    assert type_reward(make_product(title="lamp"), make_goal(title="lamp " * 11)) == 0.1


def test_similarity_is_above_85() -> None:
    assert similar("machine wash", "Wash, MACHINE!")
    assert similar("caf\u00e9 table", "caf table")  # Latin-1 characters are dropped first
    assert not similar("machine wash", "hand wash")
    assert not similar("", "") and not similar("!!", "!!")


def test_nouns() -> None:
    assert guess_nouns("The Women's 16oz Steel-Bottle | 3D, 12") == ("women", "oz", "steel", "bottle", "|", "3d")
    assert nouns_at("Red Lamp for Men", "4 4 5 3") == ("lamp", "men")
    assert nouns_at("anything", "") == ()


def test_prepared_nouns_of_the_real_titles(real: Catalogue) -> None:
    prepared = prepared_spans(PREPARED_FILE)
    assert all(title_digest(product.title) in prepared for product in real.products)
    for product in real.products:
        assert all(noun in product.title.lower() and noun == noun.strip() for noun in title_nouns(product.title))
