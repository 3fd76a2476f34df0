"""Reading an action out of a response, by the rules of verl-agent's prompts."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ACTION = re.compile(r"<action>(.*?)</action>", re.DOTALL)
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
