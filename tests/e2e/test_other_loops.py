"""verl's own agent loops: their rows have no spans, so a response is a run of the mask; they are unchanged.

Not covered: multimodal rows, tools that keep state, interactions.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import pytest
from by_hand import check_step
from engine import HERE, Run

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.release, pytest.mark.timeout(900)]

CALL = '<tool_call>{"name": "roll", "arguments": {}}</tool_call>'


@pytest.fixture(scope="module")
def talker(folder: Path) -> Path:
    """A model that says a digit, or rolls the die first; which one it does is left to chance, so entropies differ."""
    from recipe.aem.tools.demo.cloning import Demonstration, clone
    from recipe.aem.tools.demo.tiny_model import build_model, build_tokenizer, save

    chance = random.Random(0)

    def number() -> str:
        return f"number {chance.randrange(10)}"

    demonstrations = []
    for _ in range(300):
        prompt = _prompt(chance.randrange(10))
        demonstrations.append(Demonstration(prompt, chance.choice((CALL, number()))))
        # the turn after the tool, written as one long user message: the marks in it are the template's own
        side = chance.choice(("high", "low"))
        rolled = f"<|im_end|>\n<|im_start|>assistant\n{CALL}<|im_end|>\n<|im_start|>tool\n{side}"
        demonstrations.append(Demonstration(prompt + rolled, number()))
    texts = [text for one in demonstrations for text in (one.prompt, one.response)]
    tokenizer = build_tokenizer(texts, [CALL])  # the call is one token: it cannot be misspelt
    model = build_model(tokenizer)
    clone(model, tokenizer, demonstrations, steps=150)
    save(model, tokenizer, folder / "talker", {})
    return folder / "talker"


def _prompt(digit: int) -> str:
    return f"Say a number, for example {digit}."


@pytest.fixture(scope="module")
def train_talker(train, folder: Path, talker: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "data_source": "digits",
            "prompt": [{"role": "user", "content": _prompt(index % 10)}],
            "reward_model": {"style": "rule", "ground_truth": ""},
            "extra_info": {"index": index},
        }
        for index in range(40)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "digits.parquet")

    def run(loop: str, *overrides: str) -> Run:
        return train(
            loop,
            "aem_trainer",
            "+machine=cpu",
            f"data.train_files={folder / 'digits.parquet'}",
            f"data.val_files={folder / 'digits.parquet'}",
            "data.return_raw_chat=true",
            "data.train_batch_size=4",
            "data.max_prompt_length=64",
            "data.max_response_length=48",
            f"reward.custom_reward_function.path={HERE / 'digit_reward.py'}",
            f"actor_rollout_ref.model.path={talker}",
            "actor_rollout_ref.actor.strategy=fsdp2",
            "actor_rollout_ref.actor.ppo_mini_batch_size=2",
            "actor_rollout_ref.rollout.name=vllm",
            "actor_rollout_ref.rollout.n=8",
            "actor_rollout_ref.rollout.max_model_len=128",
            "actor_rollout_ref.rollout.max_num_batched_tokens=512",
            f"actor_rollout_ref.rollout.agent.default_agent_loop={loop}",
            "trainer.logger=[console,file]",
            "trainer.total_training_steps=2",
            f"trainer.default_local_dir={folder / loop}",
            *overrides,
        )

    return run


def _check(run: Run) -> list[int]:
    """Two sound steps of AEM; returns how many responses each of their rows has."""
    assert sorted(run.metrics) == [1, 2]
    per_row = []
    for step, metrics in run.metrics.items():
        assert math.isfinite(metrics["actor/pg_loss"])
        assert math.isfinite(metrics["actor/grad_norm"]) and metrics["actor/grad_norm"] > 0
        checked = check_step(run.probes, step, metrics)
        assert checked.rows == 4 * 8
        assert checked.guarded < len(checked.ranges)
        assert max(abs(one.alpha - 1) for one in checked.responses if one.base) > 0.05
        per_row += Counter(one.row for one in checked.responses).values()
    return per_row


def test_single_turn_agent(train_talker):
    assert set(_check(train_talker("single_turn_agent"))) == {1}


def test_tool_agent(train_talker):
    run = train_talker(
        "tool_agent",
        "actor_rollout_ref.rollout.multi_turn.enable=true",
        "actor_rollout_ref.rollout.multi_turn.format=hermes",
        "actor_rollout_ref.rollout.multi_turn.max_assistant_turns=3",
        f"actor_rollout_ref.rollout.multi_turn.function_tool_path={HERE / 'die.py'}",
    )
    # a tool's words stand between two responses of a row, which get an α each
    assert max(_check(run)) > 1
