"""The thought and the answer within a response. Their use: test_actions.py, test_thinking_models.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_loops.thoughts import assistant_message, opens_thought, split_thought

ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
THEN = "<|end|><|start|>assistant"
PIECES = st.lists(
    st.sampled_from(
        [
            "<think>",
            "</think>",
            "a",
            " ",
            "<|channel|>",
            "analysis",
            "final",
            "<|message|>",
            "<|end|>",
            "<|start|>assistant",
        ]
    )
).map("".join)


@pytest.mark.parametrize(
    ("text", "opened", "thought", "answer", "state"),
    [
        ("", False, "", "", "absent"),
        ("a", False, "", "a", "absent"),
        ("<think>a</think>b", False, "a", "b", "closed"),
        ("a</think>b", True, "a", "b", "closed"),
        # nothing opened it
        ("a</think>b", False, "", "b", "absent"),
        ("<think>a</think>b</think>c", False, "a</think>b", "c", "closed"),
        ("<think>a", False, "", "", "unclosed"),
        ("a", True, "a", "", "unclosed"),
        ("", True, "", "", "unclosed"),
        ("<think>a</think>b<think>c", False, "a", "b", "unclosed"),
        (f"{ANALYSIS}a{THEN}{FINAL}b", False, "a", "b", "closed"),
        (f"{ANALYSIS}a{THEN}{ANALYSIS}b{THEN}{FINAL}c", False, "a\nb", "c", "closed"),
        (f"a{THEN}{FINAL}b", True, "a", "b", "closed"),
        (f"{FINAL}b", False, "", "b", "absent"),
        (f"{ANALYSIS}a", False, "a", "", "unclosed"),
        (f"{ANALYSIS}a{THEN}{FINAL}b{THEN}{ANALYSIS}c", False, "a", "b", "unclosed"),
        ("<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}", False, "", "", "absent"),
        # not how gpt-oss begins
        (f"<think>a</think>b {FINAL}", False, "a", f"b {FINAL}", "closed"),
    ],
)
def test_a_response_is_taken_apart(text, opened, thought, answer, state):
    split = split_thought(text, opened)
    assert (split.thought, split.answer, split.state) == (thought, answer, state)
    assert split.reasoned == bool(split.start and split.answer and (opened or thought))


@given(PIECES, st.booleans())
def test_an_answer_is_part_of_the_text_and_holds_no_thought(text, opened):
    split = split_thought(text, opened)
    assert 0 <= split.start <= split.stop <= len(text)
    if not split.channels:
        assert "<think>" not in split.answer and "</think>" not in split.answer
        assert "</think>" not in text[split.stop :]
    if opened and not split.channels and "</think>" not in text:
        assert not split.answer


@pytest.mark.parametrize(
    ("tail", "opens"),
    [
        ("<|im_start|>assistant\n", False),
        # Qwen3-Thinking-2507 and QwQ; DeepSeek-R1; DeepSeek-V3.1 thinking, and not
        ("<|im_start|>assistant\n<think>\n", True),
        ("<｜Assistant｜><think>\n", True),
        ("<｜Assistant｜><think>", True),
        ("<｜Assistant｜></think>", False),
        # Qwen3 without thinking; GLM-4.5 without
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<|assistant|>\n<think></think>", False),
        # some words of the thought are given
        ("<|im_start|>assistant\n<think>\nOkay, ", True),
        ("<|start|>assistant", False),
        (f"<|start|>assistant{ANALYSIS}", True),
        (f"<|start|>assistant{ANALYSIS}{THEN}{FINAL}", False),
        (f"<|start|>assistant{ANALYSIS}<|end|>", False),
    ],
)
def test_which_prompts_open_a_thought(tail, opens):
    assert opens_thought(tail) is opens


def test_a_message_for_chat_templates():
    """gpt-oss's template refuses `<|channel|>` in a message's content."""
    assert assistant_message(f"{ANALYSIS}a") == {"role": "assistant", "content": "", "thinking": "a"}
    assert assistant_message(f"{FINAL}b") == {"role": "assistant", "content": "b"}
    assert assistant_message(f"a{THEN}{FINAL}b", True) == {"role": "assistant", "content": "b", "thinking": "a"}
    for text in ("", "<think>a", "<think>a</think>b", f"I write {FINAL}"):
        assert assistant_message(text) == {"role": "assistant", "content": text}
