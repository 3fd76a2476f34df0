"""The split of a response into thought and answer: `<think>…</think>`, or the channels of gpt-oss. Works on text only.

`TAGS` and `THOUGHT_CHANNELS` are the known markers. Everything is linear in the text's length.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any, Literal

TAGS = ("<think>", "</think>")
"""What opens and closes a thought: of Qwen, QwQ, DeepSeek-R1, GLM and what is trained from them."""
THOUGHT_CHANNELS = ("analysis",)
"""The channels of OpenAI's harmony format (gpt-oss) that hold a thought."""
OTHER_CHANNELS = ("commentary",)
"""Those that hold neither a thought nor an answer: calls of tools in a format that is not ours, remarks about them."""

MESSAGE = "<|message|>"
"""Ends the header of a channel."""

State = Literal["closed", "unclosed", "absent"]

_HEADER = re.compile(
    r"(?:<\|end\|>\s*)?(?:<\|start\|>assistant[^<]*)?"
    r"<\|channel\|>\s*(\w++)[^<]*+(?:<\|constrain\|>[^<]*+)?<\|message\|>"
)
_END = "<|end|>"


@dataclass(frozen=True)
class Split:
    """A response, split into its parts.

    Attributes:
        text: the complete response.
        start, stop: `text[start:stop]` is the answer: the text after the last closed thought, up to an unclosed
            thought; empty if there is no answer.
        reasoned: whether a thought was closed before the answer.
        unclosed: whether the text ends within a thought.
        thought: the thought before the answer, or all thoughts if there is no answer.
        channels: whether it is in gpt-oss's format.
    """

    text: str
    start: int
    stop: int
    reasoned: bool
    unclosed: bool
    thought: str
    channels: bool = False

    @property
    def answer(self) -> str:
        return self.text[self.start : self.stop]

    @property
    def state(self) -> State:
        if self.unclosed:
            return "unclosed"
        return "closed" if self.reasoned else "absent"


def split_thought(text: str, opened: bool = False) -> Split:
    """Split a response into its parts.

    Args:
        text: the complete decoded response.
        opened: whether its prompt ends within a thought (`opens_thought`).

    Example:
        >>> split = split_thought("<think>7? </think>Seven.")
        >>> split.thought, split.answer, split.state
        ('7? ', 'Seven.', 'closed')
        >>> split_thought("7? </think>Seven.", opened=True).state, split_thought("7?", opened=True).state
        ('closed', 'unclosed')
        >>> final = "<|start|>assistant<|channel|>final<|message|>Seven."
        >>> split_thought(f"<|channel|>analysis<|message|>7?<|end|>{final}").answer
        'Seven.'
    """
    headers = list(_HEADER.finditer(text))
    # elsewhere than at the beginning, the answer is talking about them
    if headers and (not text[: headers[0].start()].strip() or (opened and TAGS[1] not in text)):
        return _split_channels(text, headers, opened)
    begin, end = TAGS
    last = text.rfind(end)
    start = last + len(end) if last >= 0 else 0
    first = text.find(begin, 0, last) if last >= 0 else -1
    reasoned = last >= 0 and (opened or first >= 0)
    stop = text.find(begin, start)
    if last < 0 and opened:
        return Split(text, len(text), len(text), False, True, text)
    thought = text[first + len(begin) if first >= 0 else 0 : last] if reasoned else ""
    return Split(text, start, stop if stop >= 0 else len(text), reasoned, stop >= 0, thought)


def _split_channels(text: str, headers: list[re.Match[str]], opened: bool) -> Split:
    """Find the answer: the last message of a channel for answers."""
    thoughts = [text[: headers[0].start()]] if opened else []
    answer, reasoned, unclosed, before = (len(text), len(text)), False, False, thoughts
    for header, following in itertools.zip_longest(headers, headers[1:]):
        start, stop = header.end(), following.start() if following else len(text)
        unclosed = header[1] in THOUGHT_CHANNELS and following is None
        if header[1] in THOUGHT_CHANNELS:
            thoughts.append(text[start:stop])
        elif header[1] not in OTHER_CHANNELS:
            answer, reasoned, before = (start, stop), bool(thoughts), list(thoughts)
    return Split(text, *answer, reasoned, unclosed, "\n".join(before), channels=True)


def opens_thought(tail: str) -> bool:
    """Return whether a prompt with this end leaves a thought open.

    Args:
        tail: the chat template's generation prompt, from which the model continues, without any message.

    Example:
        >>> [opens_thought(f"<|im_start|>assistant\\n{text}") for text in ("", "<think>\\n", "<think>\\n\\n</think>")]
        [False, True, False]
    """
    if tail.rfind(TAGS[0]) > tail.rfind(TAGS[1]):
        return True
    headers = list(_HEADER.finditer(tail))
    return bool(headers) and headers[-1][1] in THOUGHT_CHANNELS and _END not in tail[headers[-1].end() :]


def assistant_message(text: str, opened: bool = False) -> dict[str, Any]:
    """Return a response as a message for chat templates.

    gpt-oss's template refuses channels in `content` and splits them itself.

    Example:
        >>> assistant_message("<|channel|>analysis<|message|>7?<|end|><|start|>assistant<|channel|>final<|message|>7")
        {'role': 'assistant', 'content': '7', 'thinking': '7?'}
        >>> assistant_message("<think>7?</think>7")
        {'role': 'assistant', 'content': '<think>7?</think>7'}
    """
    split = split_thought(text, opened)
    if not split.channels:
        return {"role": "assistant", "content": text}
    return {"role": "assistant", "content": split.answer, **({"thinking": split.thought} if split.thought else {})}
