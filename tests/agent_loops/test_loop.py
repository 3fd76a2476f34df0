"""The agent loop against verl's own output types, with a scripted server and a letter tokenizer; no engine, no Ray."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

pytest.importorskip("verl", reason="verl is not installed")

from agent_loops import loop as loop_module
from agent_loops.loop import EnvironmentAgentLoop

TARGET = "guess.GuessBenchmark"


class LetterTokenizer:
    """One token a letter; id 0 ends a message."""

    eos_token_id = 0

    def apply_chat_template(self, messages, add_generation_prompt=True, tokenize=True, **_):
        text = "".join(f"<{message['role']}>{message['content']}" for message in messages)
        return [ord(letter) for letter in text] if tokenize else text

    def encode(self, text, **_):
        return [ord(letter) for letter in text]

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(number) for number in ids if number or not skip_special_tokens)


class ScriptedServer:
    """Answers from a list; keeps what it was asked."""

    def __init__(self, answers: list[str]):
        self.answers, self.prompts = list(answers), []

    async def generate(self, request_id, *, prompt_ids, sampling_params, **_):
        self.prompts.append("".join(map(chr, prompt_ids)))
        ids = [ord(letter) for letter in self.answers.pop(0)] + [0]
        steps = {"global_steps": 3, "min_global_steps": 3, "max_global_steps": 3}
        return SimpleNamespace(token_ids=ids, log_probs=[-0.5] * len(ids), extra_fields=steps)


def run(answers, *, benchmark=None, episode=None, prompt_length=4000, response_length=200, secret=7):
    config = OmegaConf.create(
        {
            "actor_rollout_ref": {
                "rollout": {
                    "prompt_length": prompt_length,
                    "response_length": response_length,
                    "custom": {
                        "benchmark": {"target": TARGET, **(benchmark or {})},
                        "episode": {
                            "prompt": "webshop/compact",
                            "require_think": False,
                            "max_turns": 4,
                            **(episode or {}),
                        },
                    },
                }
            }
        }
    )
    server = ScriptedServer(answers)

    async def scenario():
        agent_loop = EnvironmentAgentLoop(
            trainer_config=SimpleNamespace(config=config),
            server_manager=server,
            tokenizer=LetterTokenizer(),
            processor=None,
            dataset_cls=object,
            data_config=SimpleNamespace(config=OmegaConf.create({})),
        )
        return await agent_loop.run(
            {"temperature": 1.0},
            raw_prompt=[{"role": "user", "content": "x"}],
            extra_info={"task": {"secret": secret}},
            uid="u",
            session_id=2,
            global_steps=3,
        )

    return asyncio.run(scenario()), server


@pytest.fixture(autouse=True)
def fresh_benchmarks():
    loop_module._opened_benchmark.cache_clear()
    yield
    loop_module._opened_benchmark.cache_clear()


def test_a_row_a_turn():
    rows, server = run(["<action>guess[3]</action>", "<action>guess[7]</action>"])
    assert len(rows) == 2
    for place, row in enumerate(rows):
        length = len(row.response_ids)
        assert row.response_mask == [1] * length and len(row.response_logprobs) == length
        assert row.reward_score == 10.0 and row.num_turns == 4
        extra = row.extra_fields
        assert extra["response_spans"] == [[0, length]] and extra["turn_index"] == [place]
        assert extra["trajectory_id"] == "u_2" and extra["fault"] == ""
        assert extra["min_global_steps"] == 3
        assert extra["reward_extra_info"] == {
            "acc": 1.0, "task_score": 1.0, "turns": 2.0, "invalid_turns": 0.0, "fault": 0.0,
        }  # fmt: skip
    assert rows[1].extra_fields["turn_rewards"] == [1.0]
    assert rows[0].extra_fields["anchor"] == "Guess a digit." and rows[1].extra_fields["anchor"] == "higher"
    assert "<action>guess[3]</action>\nhigher" in server.prompts[1]


def test_the_rows_of_a_trajectory_have_the_keys_that_verl_stacks():
    rows, _ = run(["no tags at all", "<action>guess[7]</action>"])
    assert len({frozenset(row.as_dict()) for row in rows}) == 1
    assert len({frozenset(row.extra_fields) for row in rows}) == 1


def test_an_invalid_turn_carries_its_penalty_and_leaves_the_outcome_alone():
    rows, _ = run(["nothing here", "<action>guess[7]</action>"])
    assert [row.extra_fields["turn_penalties"] for row in rows] == [[-0.1], [0.0]]
    assert [row.reward_score for row in rows] == [10.0, 10.0]
    assert rows[0].extra_fields["reward_extra_info"]["invalid_turns"] == 1.0


@pytest.mark.parametrize(
    ("fault", "rows_expected", "reason"),
    [
        ("reset", 1, "reset: OSError: the game file is gone"),
        ("step", 1, "turn 0: RuntimeError: the game crashed"),
        ("slow", 1, "turn 0: EnvironmentTimeout: Episode.step took longer than 0.1 s"),
    ],
)
def test_a_fault_of_the_environment_masks_the_trajectory_and_raises_nothing(fault, rows_expected, reason):
    rows, _ = run(["<action>guess[1]</action>"] * 4, benchmark={"fault": fault}, episode={"step_seconds": 0.1})
    assert len(rows) == rows_expected
    for row in rows:
        assert row.reward_score == 0.0 and set(row.response_mask) == {0}
        assert row.extra_fields["fault"].startswith(reason)
        assert (
            row.extra_fields["reward_extra_info"]["fault"] == 1.0
            and row.extra_fields["reward_extra_info"]["acc"] == 0.0
        )
        assert isinstance(row.extra_fields["min_global_steps"], int)
        assert row.as_dict()["rm_scores"].tolist()[-1] == 0.0


def test_a_benchmark_that_cannot_be_opened_is_the_users_to_mend():
    with pytest.raises(Exception, match="NoSuchBenchmark"):
        run([], benchmark={"target": "guess.NoSuchBenchmark"})


def test_an_environment_that_cannot_close_costs_nothing():
    rows, _ = run(["<action>guess[7]</action>"], benchmark={"fault": "close"})
    assert rows[0].reward_score == 10.0 and rows[0].extra_fields["fault"] == ""


def test_a_long_observation_is_cut_before_the_task_is():
    rows, server = run(
        ["<action>" + "guess[1] " * 10 + "</action>", "<action>guess[7]</action>"],
        prompt_length=70,
        response_length=150,
    )
    assert len(rows) == 2
    assert "find the secret digit" in server.prompts[1] and "<action>" not in server.prompts[1]


def test_a_prompt_length_without_room_for_the_task_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"data\.max_prompt_length=10"):
        run(["x"], prompt_length=10)


def test_a_response_is_never_longer_than_the_configuration_says():
    rows, _ = run(["x" * 50] * 4, response_length=20)
    assert {len(row.response_ids) for row in rows} == {20}
    assert rows[0].extra_fields["response_spans"] == [[0, 20]]


def test_missing_settings_are_named():
    with pytest.raises(ValueError, match=r"rollout\.custom\.benchmark is not set"):
        loop_module.open_benchmark(None)
