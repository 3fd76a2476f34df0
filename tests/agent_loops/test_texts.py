"""Texts from outside, of which no lone surrogate and no NUL reaches a row.

Not covered: special tokens spelled out in a page (`<|im_end|>`), which the tokenizer reads.
"""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_loops.environment import Observation
from agent_loops.episode import Episode, EpisodeSettings
from agent_loops.texts import REPLACEMENT, clean, clean_observation, cut_middle
from tests.helpers.guess import GuessEnvironment

ANY_TEXT = st.text(st.characters(exclude_categories=[]) | st.sampled_from("\ud83d\ude00\udc80\ud800\0a"))


@given(ANY_TEXT)
@settings(deadline=None)
def test_a_cleaned_text_can_be_encoded_and_is_changed_nowhere_else(text):
    cleaned = clean(text)
    assert cleaned.encode().decode() == cleaned and "\0" not in cleaned
    assert clean(cleaned) == cleaned
    lone = any(0xD800 <= ord(letter) < 0xE000 for letter in text)
    if not lone:
        assert cleaned == text.replace("\0", REPLACEMENT)
    # what is no surrogate stays, in its order
    kept = [letter for letter in text if not 0xD800 <= ord(letter) < 0xE000 and letter != "\0"]
    rest = iter(cleaned)
    assert all(letter in rest for letter in kept)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a\udc80b", "a\ufffdb"),
        ("\ud83d", "\ufffd"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("\ud83d\ude00", "\U0001f600"),
        ("a\0b", "a\ufffdb"),
        ("é🙂\ufeff", "é🙂\ufeff"),
    ],
)
def test_what_becomes_of_what_cannot_be_encoded(text, cleaned):
    assert clean(text) == cleaned


def test_an_observation_is_cleaned_whole():
    info = {"instruction": "\udc80", "body": "\0", "kind": "a\ud800", "won": False, "score": 0.5}
    observation = clean_observation(Observation("x\udc80", ["a\0", "b"], info))
    expected = {"instruction": "\ufffd", "body": "\ufffd", "kind": "a\ufffd", "won": False, "score": 0.5}
    assert observation == Observation("x\ufffd", ("a\ufffd", "b"), expected)


@given(st.text(max_size=60), st.integers(0, 70))
def test_a_cut_keeps_both_ends(text, characters):
    cut = cut_middle(text, characters)
    head, tail = text[: characters // 2], text[len(text) - (characters - characters // 2) :]
    assert cut == text if len(text) <= characters else cut.startswith(head) and cut.endswith(tail)


class Dirty(GuessEnvironment):
    """Says what no UTF-8 text can hold, wherever an environment may say something."""

    heard: list[str]

    def reset(self, task):
        super().reset(task)
        self.heard = []
        info = {"instruction": "find \udc80\0", "kind": "a\udc80", "page": "p\udc80"}
        return Observation("Guess\udc80 a\0 digit.", ["guess[\udc80]"], info)

    def step(self, action):
        self.heard.append(action)
        step = super().step(action)
        observation = Observation(f"{step.observation.text}\udc80\0", ["guess[\ud800]"], {"page": "q\ud800"})
        return dataclasses.replace(step, observation=observation, info={**step.info, "invalid": "no \udc80"})


@pytest.mark.parametrize("layout", ["turns", "transcript"])
def test_nothing_of_it_reaches_a_prompt_a_turn_or_the_environment(layout):
    environment = Dirty("")
    settings = EpisodeSettings(prompt="webshop/full", layout=layout, require_think=False, max_turns=3)
    episode = Episode(environment, settings)
    episode.reset({"secret": 7})
    said = []
    for response in ("<action>guess[\0 3]</action>", "\udc80 nothing \0", "<action>guess[4]\udc80</action>"):
        said.append(episode.prompt())
        turn = episode.step(response)
        said += [turn.observation.text, *turn.observation.actions, turn.action.text, turn.action.reason, turn.kind]
    said += [episode.instruction, episode.kind, *environment.heard]
    for text in said:
        assert clean(text) == text
        json.dumps(text, ensure_ascii=False).encode()
    assert "find \ufffd\ufffd" in said[0] and environment.heard[0] == "guess[\ufffd 3]"
