"""What this project depends on in verl's agent loops and their builder of token rows, one test per name."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

pytest.importorskip("verl", reason="verl is not installed")

import verl_aem

verl_aem.load()

from verl.experimental.agent_loop import agent_loop as verl_loop  # noqa: E402
from verl.utils.tokenizer.continuous_token import ContinuousTokenBuilder  # noqa: E402

from agent_loops.continuous_tokens import MERGE_MESSAGES, MERGE_TOKENS  # noqa: E402
from tests.helpers.contract import output  # noqa: E402
from tests.helpers.scripted import needs_continuous_tokens  # noqa: E402


def test_importing_verls_loops_makes_ours_known():
    assert verl_loop._agent_loop_registry["environment"] == {"_target_": "agent_loops.loop.EnvironmentAgentLoop"}


@needs_continuous_tokens
def test_a_loop_finds_its_settings_server_and_tokenizer_on_itself():
    from agent_loops.loop import EnvironmentAgentLoop

    config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"custom": {"a": 1}, "prompt_length": 2}}})
    server, calls = object(), []

    class Tokenizer(SimpleNamespace):
        __hash__ = object.__hash__  # as real ones have: what is known of a template is kept by tokenizer

    tokenizer = Tokenizer(
        apply_chat_template=lambda messages, **_: calls.append(messages) or [1, 2, 3, 4],
        eos_token_id=0,
        encode=lambda *_, **__: [],
    )

    async def scenario():
        loop = EnvironmentAgentLoop(
            trainer_config=verl_loop.DictConfigWrap(config),
            server_manager=server,
            tokenizer=tokenizer,
            processor=None,
            dataset_cls=object,
            data_config=verl_loop.DictConfigWrap(OmegaConf.create({})),
            hf_model_type=None,
            tools=None,
        )
        assert loop.rollout_config.custom == {"a": 1}
        assert loop.server_manager is server and loop.tokenizer is tokenizer
        message = [{"role": "user", "content": "x"}]
        # what `Rows` asks for, so that it sees how long a prompt is
        assert loop.continuous_token_builder.build_initial_tokens(message) == [1, 2, 3, 4]
        assert dict(loop.apply_chat_template_kwargs) == {}
        return await loop.ct_build_initial_tokens(message)

    # verl cuts a long prompt's head; `Rows._new_row` keeps prompts below prompt_length so that this never happens
    assert asyncio.run(scenario()) == [3, 4]


def test_an_output_with_a_reward_puts_it_on_the_last_token():
    row = output(2.0).as_dict()
    assert row["rm_scores"].tolist() == [0.0, 2.0]
    assert row["response_mask"].tolist() == [1, 1] and row["rollout_log_probs"].tolist() == [-0.5, -0.5]


def test_the_agent_loop_renders_by_its_builder():
    """agent_loops.loop puts a builder of its own in the place of verl's, and agent_loops.layouts calls these."""
    names = list(inspect.signature(verl_loop.AgentLoopBase.__init__).parameters)
    assert names[1:5] == ["trainer_config", "server_manager", "tokenizer", "processor"]
    for method, called in (
        ("ct_build_initial_tokens", "build_initial_tokens"),
        (MERGE_MESSAGES, MERGE_TOKENS),
        ("ct_merge_assistant_token", "merge_assistant_tokens"),
    ):
        # source: what a method calls is not to be had otherwise without an engine
        assert f"self.continuous_token_builder.{called}(" in inspect.getsource(getattr(verl_loop.AgentLoopBase, method))


def test_verl_renders_a_later_message_behind_a_system_and_a_user():
    """Why agent_loops.chat_template renders it behind [user, assistant]: if this fails, see whether verl does now."""

    class Alternating:
        def apply_chat_template(self, messages, **_):
            assert all((one["role"] == "user") == (place % 2 == 0) for place, one in enumerate(messages))
            return [ord(letter) for one in messages for letter in str(one["content"])]

    chat = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    with pytest.raises(AssertionError):
        getattr(ContinuousTokenBuilder(Alternating()), MERGE_TOKENS)(chat[:2], chat, [1])


@pytest.mark.parametrize("reason", ["length", "aborted"])
def test_why_the_engine_stopped_reaches_the_loop_so(reason):
    """agent_loops.layouts reads these two of verl's TokenOutput; vLLM's `length` is told as `completed`."""
    from verl.workers.rollout import replica

    assert "stop_reason" in replica.TokenOutput.model_fields
    # source: the server imports vLLM, which may be in another environment
    folder = Path(inspect.getfile(replica)).parent
    servers = ("llm_server.py", "vllm_rollout/vllm_async_server.py")
    assert any(f'stop_reason = "{reason}"' in (folder / one).read_text() for one in servers)
