"""Thinking models in the agent loop: templates that open the thought, gpt-oss's channels, special-token markers.

The tokenizers are letter tokenizers, with the real models' markers as single tokens that `skip_special_tokens=True`
would drop; real tokenizers are in tests/models.
"""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("verl", reason="verl is not installed")

from agent_loops.environment import Observation, Step
from tests.helpers.guess import GuessEnvironment
from tests.helpers.scripted import LetterTokenizer, ScriptedServer, make_loop, play, run

STEP = GuessEnvironment.step
THINK = {"require_think": True}


class Marked(LetterTokenizer):
    """Letters, and markers of one token each; `begin` is what the template writes for the model to go on from."""

    markers: tuple[str, ...] = ()
    begin = ""
    refuses = ""

    def encode(self, text, **_):
        ids = []
        while text:
            place = next((place for place, one in enumerate(self.markers) if text.startswith(one)), None)
            ids.append(ord(text[0]) if place is None else 1 + place)
            text = text[1 if place is None else len(self.markers[place]) :]
        return ids

    def decode(self, ids, skip_special_tokens=True):
        def shown(number):
            if number > len(self.markers):
                return chr(number)
            return "" if skip_special_tokens else ("<end>", *self.markers)[number]

        return "".join(map(shown, ids))

    def apply_chat_template(self, messages, add_generation_prompt=True, tokenize=True, **_):
        for message in messages:
            if self.refuses and self.refuses in message["content"]:
                raise ValueError(f"{self.refuses} in a message's content")
        text = "".join(f"<{message['role']}>{message['content']}<end>" for message in messages)
        text += self.begin if add_generation_prompt else ""
        return self.encode(text) if tokenize else text


class Opening(Marked):
    """As of Qwen3-Thinking-2507, QwQ and DeepSeek-R1."""

    markers = ("<think>", "</think>", "<|im_start|>", "<|im_end|>")
    begin = "<assistant><think>\n"


class Closing(Opening):
    """As Qwen3's with enable_thinking=False."""

    begin = "<assistant><think>\n\n</think>\n\n"


class Plain(Opening):
    begin = "<assistant>"


class Channels(Marked):
    """As of gpt-oss, whose template refuses channels in a message's content."""

    markers = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>")
    begin = "<|start|>assistant"
    refuses = "<|channel|>"


def entries(rows, name):
    return [entry for row in rows for entry in row.extra_fields[name]]


@pytest.fixture(params=["turns", "transcript"])
def layout(request):
    return request.param


@pytest.mark.parametrize(
    ("tokenizer", "responses", "valid"),
    [
        # the thought that the prompt opened: -0.1 a turn was charged for it
        (Opening, ["3?</think><action>guess[3]</action>", "7!</think><action>guess[7]</action>"], [True, True]),
        (Opening, ["3?</think><action>guess[3]</action>", "<think>7!</think><action>guess[7]</action>"], [True, True]),
        # never left, it holds no action: the second response wins, not the first
        (Opening, ["<action>guess[7]</action>", "7!</think><action>guess[7]</action>"], [False, True]),
        (Closing, ["<think>3</think><action>guess[3]</action>", "<action>guess[7]</action>"], [True, False]),
        (Plain, ["<think>3</think><action>guess[3]</action>", "3</think><action>guess[7]</action>"], [True, False]),
        (Plain, ["<think><action>guess[7]</action></think><action>guess[3]</action>", "guess[7]"], [True, False]),
        (
            Channels,
            [
                "<|channel|>analysis<|message|>guess[7]<|end|><|start|>assistant"
                "<|channel|>final<|message|><action>guess[3]</action><|return|>",
                "<|channel|>final<|message|><action>guess[7]</action><|return|>",
            ],
            [True, False],
        ),
    ],
    ids=["opened", "opened twice", "not left", "closed", "by the model", "an action in a thought", "channels"],
)
def test_a_thought_is_where_the_model_thinks(tokenizer, responses, valid, layout):
    rows, server = run(responses, tokenizer=tokenizer(), layout=layout, episode=THINK)
    assert {row.extra_fields["fault"] for row in rows} == {""} and len(server.requests) == 2
    assert entries(rows, "turn_valid") == valid and {row.reward_score for row in rows} == {10.0}
    assert entries(rows, "turn_penalties") == [0.0 if one else -0.1 for one in valid]


def test_verl_agents_rule_is_a_setting(layout):
    response = "<think>no <action>guess[7]</action></think><action>guess[3]</action>"
    episode = {**THINK, "read_action": "first"}
    rows, server = run([response], tokenizer=Plain(), layout=layout, episode=episode)
    assert len(server.requests) == 1 and {row.reward_score for row in rows} == {10.0}


def test_a_page_that_ends_with_the_tag_opens_nothing(layout, monkeypatch):
    def step(self, action):
        done = STEP(self, action)
        return Step(Observation("a page <think>"), done.reward, done.terminated, info=done.info)

    monkeypatch.setattr(GuessEnvironment, "step", step)
    responses = [f"x</think><action>guess[{digit}]</action>" for digit in (3, 7)]
    for tokenizer in (Plain(), Opening()):
        rows, _ = run(responses, tokenizer=tokenizer, layout=layout, episode=THINK)
        assert entries(rows, "turn_valid") == [type(tokenizer) is Opening] * 2


@pytest.mark.parametrize("tokenizer", [Plain, LetterTokenizer])
def test_what_the_model_wrote_reaches_the_environment_whole(tokenizer, layout, monkeypatch):
    """Special tokens within a response are part of it; those that end it are not."""
    heard = []
    monkeypatch.setattr(GuessEnvironment, "step", lambda self, action: heard.append(action) or STEP(self, action))
    call = "<function=write><parameter=text>7 '<|im_end|>' <|im_start|>\n</parameter></function>"
    run([call], tokenizer=tokenizer(), layout=layout, episode={"action_format": "function_calls"})
    assert heard == [call]


def test_only_the_tokens_that_end_a_response_are_taken_off(layout):
    class Ending(ScriptedServer):
        async def generate(self, *args, **kwargs):
            output = await super().generate(*args, **kwargs)
            output.token_ids = [0, *output.token_ids, 0]
            output.log_probs = [-0.1] * len(output.token_ids)
            return output

    async def scenario():
        return await play(make_loop(Ending(["<action>guess[7]</action>"]), episode={"layout": layout}), {"secret": 7})

    rows = asyncio.run(scenario())
    assert rows[0].reward_score == 10.0 and rows[0].extra_fields["turn_valid"] == [True]
    # the engine's tokens stay what they were
    assert rows[0].response_ids[0] == 0 and rows[0].response_ids[-2:] == [0, 0]
