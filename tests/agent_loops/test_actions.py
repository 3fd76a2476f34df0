"""The rules of algorithms.md section 6 for reading an action."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_loops.actions import parse_action


@pytest.mark.parametrize(
    ("response", "action", "valid"),
    [
        ("<think>a</think><action>search[Red Lamp]</action>", "search[red lamp]", True),
        ("<think>a</think><action> click[x] </action><action>click[y]</action>", "click[x]", True),
        ("<think>a</think>\n<action>\nclick[x]\n</action>", "click[x]", True),
        # without reasoning the action is executed all the same
        ("<action>click[x]</action>", "click[x]", False),
        ("<think>never closed <action>click[x]</action>", "click[x]", False),
        ("<think>買</think><action>click[x]</action>", "click[x]", False),
        ("<think>가</think><action>click[x]</action>", "click[x]", False),
        # no tags: the last twenty characters
        ("I would like to press the button Buy Now", "ss the button buy now"[1:], False),
        ("<think>a</think><action>click[x]", "ink><action>click[x]", False),
        ("", "", False),
    ],
)
def test_rules(response, action, valid):
    parsed = parse_action(response)
    assert (parsed.text, parsed.valid) == (action, valid)
    assert bool(parsed.reason) is not valid


def test_cjk_is_looked_at_only_where_the_tags_exist():
    assert parse_action("買買").reason == "no <action>...</action>"


def test_reasoning_can_be_optional():
    assert parse_action("<action>click[x]</action>", require_think=False).valid


@given(st.text())
def test_any_text_is_read(response):
    parsed = parse_action(response)
    assert parsed.text == parsed.text.lower()


@given(st.text(max_size=40))
def test_what_stands_between_the_tags_comes_back(inside):
    inside = inside.replace("<", "").replace(">", "")
    assert parse_action(f"<action>{inside}</action>", require_think=False).text == inside.lower().strip()
