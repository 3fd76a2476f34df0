"""Reading an action out of a response: by the rules of verl-agent's prompts (`<action>…</action>`), or as a function
call in the form of R2E-Gym and DeepSWE (`<function=NAME><parameter=KEY>VALUE</parameter></function>`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_ACTION = re.compile(r"<action>(.*?)</action>", re.DOTALL)
_CALL = re.compile(r"<function=([^<>\n]*)>")
_PARAMETER = re.compile(r"\s*<parameter=([^<>\n]*)>")
_END_OF_PARAMETER, _END_OF_CALL, _END_OF_THOUGHT = "</parameter>", "</function>", "</think>"
_VERB = re.compile(r"<function=\s*([\w-]+)|\W*([\w-]+)")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]")


@dataclass(frozen=True)
class ParsedAction:
    """What is executed, and whether the response kept to the format. `reason` says what was wrong, else it is empty."""

    text: str
    valid: bool
    reason: str = ""


def parse_action(response: str, *, require_think: bool = True, fallback_characters: int = 20) -> ParsedAction:
    """The text of the first `<action>…</action>`, lower-cased.

    A response without these tags is invalid, and its last characters are executed in their stead. One without
    `<think>…</think>`, or with a CJK character, is invalid too, but its action is executed. Whether the environment
    admits the action does not matter here.

    Args:
        response: the decoded response.
        require_think: whether a response without reasoning is invalid.
        fallback_characters: how much of a response without tags is executed.

    Example:
        >>> parse_action("<think>cheap?</think><action>Click[Buy Now]</action>")
        ParsedAction(text='click[buy now]', valid=True, reason='')
        >>> parse_action("I would buy it", require_think=False, fallback_characters=6)
        ParsedAction(text='buy it', valid=False, reason='no <action>...</action>')
    """
    response = response.lower()
    match = _ACTION.search(response)
    if match is None:
        return ParsedAction(response[-fallback_characters:].strip(), False, "no <action>...</action>")
    action = match.group(1).strip()
    if require_think and not ("<think>" in response and "</think>" in response):
        return ParsedAction(action, False, "no <think>...</think>")
    if _CJK.search(response):
        return ParsedAction(action, False, "CJK character")
    return ParsedAction(action, True)


def action_verb(action: str) -> str:
    """What sort of action it is: the function that is called, else the first word; empty where there is neither.

    Example:
        >>> [action_verb(text) for text in ("click[buy now]", "go to sofa 1", "<function=bash></function>", "?")]
        ['click', 'go', 'bash', '']
    """
    match = _VERB.match(action)
    return (match[1] or match[2]) if match else ""


@dataclass(frozen=True)
class FunctionCall:
    """A call as it was written: names without the blanks around them, values with every blank and line break."""

    name: str
    arguments: Mapping[str, str]


class CallError(ValueError):
    """A text is not a function call; the message says what is wrong with it."""


def parse_function_call(response: str, *, require_think: bool = False) -> ParsedAction:
    """The first function call of a response, as it was written. The text around it is free.

    Where the response has a `</think>`, what stands before the last one is thought and not done, unless no call
    follows and one goes around it: then it is part of a value. A response without a call that can be read is invalid;
    its action is then what there is of a call, which may be nothing.

    Args:
        response: the decoded response.
        require_think: whether a response without reasoning is invalid.

    Example:
        >>> parse_function_call("I look.\\n<function=bash><parameter=command>ls</parameter></function> Then I edit.")
        ParsedAction(text='<function=bash><parameter=command>ls</parameter></function>', valid=True, reason='')
        >>> parse_function_call("<function=bash><parameter=command>ls").reason
        '<parameter=command> is not closed'
    """
    match = _find_call(response)
    if match is None:
        return ParsedAction("", False, "no <function=...>")
    try:
        _, end = _read(response, match)
    except CallError as error:
        return ParsedAction(response[match.start() :], False, str(error))
    action = response[match.start() : end]
    if require_think and not ("<think>" in response and "</think>" in response):
        return ParsedAction(action, False, "no <think>...</think>")
    return ParsedAction(action, True)


def read_call(text: str) -> FunctionCall:
    """The first call of a text.

    Raises:
        CallError: there is none, or it cannot be read.

    Example:
        >>> read_call("<function=edit><parameter=path> a.py</parameter>\\n</function>")
        FunctionCall(name='edit', arguments={'path': ' a.py'})
    """
    match = _CALL.search(text)
    if match is None:
        raise CallError("no <function=...>")
    return _read(text, match)[0]


def _find_call(response: str) -> re.Match[str] | None:
    """Where the first call after the last `</think>` begins; if none can be read there, the one around it."""
    thought = response.rfind(_END_OF_THOUGHT)
    after = _CALL.search(response, max(thought, 0))
    if thought < 0 or (after and _end_of(response, after) > 0):
        return after
    before = (match for match in _CALL.finditer(response, 0, thought) if _end_of(response, match) > thought)
    return next(before, after)


def _end_of(text: str, begin: re.Match[str]) -> int:
    """Where the call that begins there ends; -1 where it cannot be read."""
    try:
        return _read(text, begin)[1]
    except CallError:
        return -1


def _read(text: str, begin: re.Match[str]) -> tuple[FunctionCall, int]:
    """The call that begins there, and where it ends."""
    arguments: dict[str, str] = {}
    place = begin.end()
    while match := _PARAMETER.match(text, place):
        name = match[1].strip()
        end = text.find(_END_OF_PARAMETER, match.end())
        if end < 0:
            raise CallError(f"<parameter={name}> is not closed")
        if name in arguments:
            raise CallError(f"<parameter={name}> is given twice")
        arguments[name] = text[match.end() : end]
        place = end + len(_END_OF_PARAMETER)
    end = text.find(_END_OF_CALL, place)
    if end < 0:
        raise CallError(f"<function={begin[1].strip()}> is not closed")
    if text[place:end].strip():
        raise CallError(f"text between the parameters of <function={begin[1].strip()}>")
    return FunctionCall(begin[1].strip(), arguments), end + len(_END_OF_CALL)
