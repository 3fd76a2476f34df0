"""Reading an action: the rules of algorithms.md section 6, and function calls."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_loops.actions import CallError, FunctionCall, ParsedAction, parse_action, parse_function_call, read_call


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


# --- function calls ---------------------------------------------------------------------------------------------------

HTML = "<function=write><parameter=text><think></think></parameter></function>"
LS = "<function=bash><parameter=command>ls</parameter></function>"


@pytest.mark.parametrize(
    ("response", "action", "reason"),
    [
        (LS, LS, ""),
        (f"I look around.\n{LS}\nThen I edit.", LS, ""),
        ("<function=bash>\n  <parameter=command>Ls -A</parameter>\n</function>",) * 2 + ("",),
        ("<function=finish></function>", "<function=finish></function>", ""),
        # the first call counts
        (f"{LS}<function=finish></function>", LS, ""),
        # what was only thought of does not
        (f"<think><function=finish></function></think>{LS}", LS, ""),
        (f"<think>a</think>b <function=x></function></think>{LS}", LS, ""),
        (f"<think>never closed {LS}", LS, ""),
        ("<think><function=x><parameter=y>a draft</think><function=z></function>", "<function=z></function>", ""),
        # it may be part of what is written
        (f"<think>a</think>b {HTML}", HTML, ""),
        (f"<think>{LS}</think> done", "", "no <function=...>"),
        ("ls", "", "no <function=...>"),
        ("", "", "no <function=...>"),
        ("<function=bash", "", "no <function=...>"),
        ("a <function=bash>", "<function=bash>", "<function=bash> is not closed"),
        (LS.removesuffix("</function>"),) * 2 + ("<function=bash> is not closed",),
        ("<function=bash><parameter=command>ls",) * 2 + ("<parameter=command> is not closed",),
        (f"<function=a> b {LS}", f"<function=a> b {LS}", "text between the parameters of <function=a>"),
        (f"<function=a>{LS}", f"<function=a>{LS}", "text between the parameters of <function=a>"),
        ("<function=a><parameter=b>1</parameter> or <parameter=c>2</parameter></function>",) * 2
        + ("text between the parameters of <function=a>",),
        ("<function=a><parameter=b>1</parameter><parameter=b>2</parameter></function>",) * 2
        + ("<parameter=b> is given twice",),
    ],
)
def test_the_first_call_of_a_response(response, action, reason):
    parsed = parse_function_call(response)
    assert (parsed.text, parsed.valid, parsed.reason) == (action, not reason, reason)
    if reason:
        with pytest.raises(CallError) as error:
            read_call(parsed.text)
        assert str(error.value) == reason


def test_reasoning_can_be_asked_for_before_a_call():
    assert parse_function_call(LS, require_think=True) == ParsedAction(LS, False, "no <think>...</think>")
    assert parse_function_call(f"<think>a</think>{LS}", require_think=True) == ParsedAction(LS, True)


NAME = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="<>"), min_size=1)
# a whole call within a value, behind a </think>, is taken for the call: docstring of parse_function_call
VALUE = st.text().filter(lambda text: "</parameter>" not in text and not ("</think>" in text and "<function=" in text))
AROUND = st.text().filter(lambda text: "<" not in text)


@given(NAME, st.dictionaries(NAME, VALUE), AROUND, AROUND, st.sampled_from(["", "\n", " \n\t"]))
def test_a_call_comes_back_to_the_letter(name, arguments, before, after, blank):
    parts = [f"{blank}<parameter={key}>{value}</parameter>" for key, value in arguments.items()]
    text = f"<function={name}>{''.join(parts)}{blank}</function>"
    parsed = parse_function_call(before + text + after)
    assert parsed == ParsedAction(text, True)
    assert read_call(parsed.text) == FunctionCall(name, arguments)


@given(
    st.lists(
        st.sampled_from(["<function=", "f>", "</function>", "<parameter=", "p>", "</parameter>", "</think>", " ", "a"])
    ).map("".join)
)
def test_whatever_is_written_is_a_call_or_says_why_not(response):
    parsed = parse_function_call(response)
    assert parsed.valid == (not parsed.reason) and parsed.text in response
    if parsed.valid:
        assert f"<function={read_call(parsed.text).name}>" in response and parsed.text.endswith("</function>")
