"""The agent loop against verl's own output types (scripted.py), in both layouts; no engine, no Ray.

What only a transcript has is in test_transcript.py.
"""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("verl", reason="verl is not installed")

from scripted import ScriptedServer, log_prob, make_loop, play, run

from agent_loops import episode as episode_module
from agent_loops import loop as loop_module
from agent_loops.rows import ROWS


@pytest.fixture(params=["turns", "transcript"])
def layout(request):
    return request.param


def entries(rows, name):
    """One entry a response, whatever the layout."""
    return [entry for row in rows for entry in row.extra_fields[name]]


@pytest.fixture(autouse=True)
def fresh_benchmarks():
    loop_module._opened_benchmark.cache_clear()
    yield
    loop_module._opened_benchmark.cache_clear()


def test_every_layout_has_its_rows():
    assert tuple(ROWS) == episode_module.LAYOUTS


def test_a_row_a_turn():
    rows, server = run(["<action>guess[3]</action>", "<action>guess[7]</action>"])
    assert len(rows) == 2
    for place, row in enumerate(rows):
        length = len(row.response_ids)
        assert row.response_mask == [1] * length
        assert row.response_logprobs == [log_prob(token) for token in row.response_ids]
        assert row.reward_score == 10.0 and row.num_turns == 4
        extra = row.extra_fields
        assert extra["response_spans"] == [[0, length]] and extra["turn_index"] == [place]
        assert extra["trajectory_id"] == "u_2" and extra["fault"] == "" and extra["cut"] == ""
        assert extra["min_global_steps"] == extra["max_global_steps"] == place + 1
        assert extra["reward_extra_info"] == {
            "acc": 1.0, "task_score": 1.0, "turns": 2.0, "invalid_turns": 0.0, "fault": 0.0, "cut": 0.0,
        }  # fmt: skip
    assert rows[1].extra_fields["turn_rewards"] == [1.0]
    assert rows[0].extra_fields["anchors"] == ["Guess a digit."] and rows[1].extra_fields["anchors"] == ["higher"]
    assert "<action>guess[3]</action>\nhigher" in server.prompts[1]


@pytest.mark.parametrize("log_probs", [True, False])
def test_all_rows_of_a_batch_have_the_keys_that_verl_stacks(log_probs):
    batch = []
    for layout in ("turns", "transcript"):
        for fault in ("", "reset", "step"):
            answers = ["no tags at all", "<action>guess[7]</action>"]
            batch += run(answers, layout=layout, benchmark={"fault": fault}, log_probs=log_probs)[0]
    assert len(batch) == 2 + 1 + 1 + 1 + 1 + 1
    assert len({frozenset(row.as_dict()) for row in batch}) == 1
    # the engine's own facts are missing where it was never asked; verl reads only these two
    assert all({"min_global_steps", "max_global_steps"} <= set(row.extra_fields) for row in batch)
    assert len({frozenset(row.extra_fields) - {"global_steps"} for row in batch}) == 1
    assert all((row.response_logprobs is not None) == log_probs for row in batch)


def test_an_invalid_turn_carries_its_penalty_and_leaves_the_outcome_alone(layout):
    rows, _ = run(["nothing here", "<action>guess[7]</action>"], layout=layout)
    assert entries(rows, "turn_penalties") == [-0.1, 0.0] and entries(rows, "turn_valid") == [False, True]
    assert {row.reward_score for row in rows} == {10.0}
    assert rows[0].extra_fields["reward_extra_info"]["invalid_turns"] == 1.0


@pytest.mark.parametrize(
    ("fault", "rows_expected", "reason"),
    [
        ("reset", 1, "reset: OSError: the game file is gone"),
        ("step", 1, "turn 0: RuntimeError: the game crashed"),
        ("slow", 1, "turn 0: EnvironmentTimeout: Episode.step took longer than 0.1 s"),
    ],
)
def test_a_fault_of_the_environment_masks_the_trajectory_and_raises_nothing(fault, rows_expected, reason, layout):
    # a lost episode's reward is not a failed one's
    episode = {"step_seconds": 0.1, "lost_reward": -1.0}
    rows, _ = run([WRONG] * 4, layout=layout, benchmark={"fault": fault}, episode=episode)
    assert len(rows) == rows_expected
    for row in rows:
        assert row.reward_score == 0.0 and set(row.response_mask) == {0}
        assert row.extra_fields["fault"].startswith(reason)
        assert (
            row.extra_fields["reward_extra_info"]["fault"] == 1.0
            and row.extra_fields["reward_extra_info"]["acc"] == 0.0
        )
        assert isinstance(row.extra_fields["min_global_steps"], int)
        assert row.extra_fields["response_spans"] == [[0, len(row.response_ids)]]
        assert row.as_dict()["rm_scores"].tolist()[-1] == 0.0


def test_a_benchmark_that_cannot_be_opened_is_the_users_to_mend():
    with pytest.raises(Exception, match="NoSuchBenchmark"):
        run([], benchmark={"target": "guess.NoSuchBenchmark"})


def test_an_environment_that_cannot_close_costs_nothing(layout):
    rows, _ = run(["<action>guess[7]</action>"], benchmark={"fault": "close"}, layout=layout)
    assert rows[0].reward_score == 10.0 and rows[0].extra_fields["fault"] == ""


def test_a_long_observation_is_cut_before_the_task_is():
    rows, server = run(
        ["<action>" + "guess[1] " * 10 + "</action>", "<action>guess[7]</action>"],
        prompt_length=70,
        response_length=150,
    )
    assert len(rows) == 2
    assert "find the secret digit" in server.prompts[1] and "<action>" not in server.prompts[1]


@pytest.mark.parametrize("setting", ["data.max_prompt_length", "rollout.max_model_len"])
def test_a_prompt_without_room_for_the_task_is_an_error_that_names_the_setting(setting, layout):
    limits = {"prompt_length": 10} if "prompt" in setting else {"max_model_len": 10}
    with pytest.raises(ValueError, match=rf"{setting}=10 .* raise {setting}"):
        run(["x"], layout=layout, **limits)


def test_a_long_first_observation_is_cut_before_verl_cuts_the_task(layout):
    """verl would keep the last tokens of the prompt, silently."""
    whole = run([RIGHT], layout=layout)[1].prompts[0]
    rows, server = run([RIGHT], layout=layout, prompt_length=len(whole))
    assert len(rows[0].prompt_ids) < len(whole)
    assert server.prompts[0].startswith("<user>find the secret digit") and server.prompts[0].endswith(" [...]")


def test_a_response_is_never_longer_than_the_configuration_says():
    rows, _ = run(["x" * 50] * 4, response_length=20)
    assert {len(row.response_ids) for row in rows} == {20}
    assert rows[0].extra_fields["response_spans"] == [[0, 20]]


def test_a_turn_has_its_own_limit_in_both_layouts(layout):
    rows, server = run(["x" * 50] * 4, layout=layout, episode={"turn_tokens": 20}, response_length=4000)
    assert [stop - start for start, stop in entries(rows, "response_spans")] == [20] * 4
    assert [request.room for request in server.requests] == [20] * 4
    assert {row.extra_fields["cut"] for row in rows} == {"response"}


def test_the_trajectory_stays_on_the_server_that_knows_its_beginning(layout):
    ids = [{request.id for request in run([WRONG], layout=layout)[1].requests} for _ in range(2)]
    assert [len(one) for one in ids] == [1, 1] and ids[0] != ids[1]


WRONG, RIGHT = "<action>guess[3]</action>", "<action>guess[7]</action>"
LENGTH = len(RIGHT)  # and one more token that ends the message

CUTS = {
    "response": ([WRONG, RIGHT + " because"], {"episode": {"turn_tokens": LENGTH + 1}}),
    "response, wherever its room ends": ([RIGHT + "x" * 300], {"max_model_len": 200}),
    "response, by the server's word": ([RIGHT], {"stop_reason": "length"}),
    "turns": ([WRONG] * 4, {}),
    "truncated": ([WRONG], {"benchmark": {"fault": "limit"}}),
}


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("reason", CUTS)
def test_a_trajectory_that_was_cut_says_so_and_is_masked_where_asked(reason, filtered, layout):
    answers, settings = CUTS[reason]
    episode = {"compact_filtering": filtered, **settings.get("episode", {})}
    rows, _ = run(answers, layout=layout, **{**settings, "episode": episode})
    won = RIGHT in answers[-1]
    assert len(entries(rows, "response_spans")) == len(answers)
    for row in rows:
        assert row.extra_fields["cut"] == reason.split(",")[0]
        assert row.extra_fields["reward_extra_info"]["cut"] == 1.0
        for start, stop in row.extra_fields["response_spans"]:
            assert set(row.response_mask[start:stop]) == {0 if filtered else 1}
        # the reward is what it was: the baseline needs it
        assert row.reward_score == (10.0 if won else 0.0) and row.extra_fields["fault"] == ""
        assert row.extra_fields["reward_extra_info"]["acc"] == float(won)


def test_a_trajectory_that_ended_is_never_filtered(layout):
    """Neither a cut response on the way, nor an end in the last turn or at the last token, is a cut trajectory."""
    for answers in ([WRONG + " because", RIGHT], [WRONG, WRONG, WRONG, RIGHT]):
        settings = {"compact_filtering": True, "turn_tokens": LENGTH + 1}
        rows, _ = run(answers, layout=layout, episode=settings)
        spans = entries(rows, "response_spans")
        assert {row.extra_fields["cut"] for row in rows} == {""} and spans[-1][1] - spans[-1][0] == LENGTH + 1
        assert sum(sum(row.response_mask) for row in rows) == sum(stop - start for start, stop in spans)


@pytest.mark.parametrize("filtered", [True, False])
def test_a_call_out_of_time_is_a_fault_and_a_cut(filtered, layout):
    episode = {"step_seconds": 0.1, "compact_filtering": filtered}
    rows, _ = run([WRONG], layout=layout, benchmark={"fault": "slow"}, episode=episode)
    assert rows[0].extra_fields["cut"] == "time" and rows[0].extra_fields["fault"]
    assert set(rows[0].response_mask) == {0} and rows[0].reward_score == 0.0
    broken, _ = run([WRONG], layout=layout, benchmark={"fault": "step"}, episode={"compact_filtering": filtered})
    assert broken[0].extra_fields["cut"] == "" and broken[0].extra_fields["fault"]


def test_a_long_response_is_charged_to_its_own_turn(layout):
    """Of 40 tokens the last half is the buffer: 26 tokens are 6/20 into it, 40 are at its end; a broken format adds."""
    assert LENGTH + 1 == 26
    limits = {"episode": {"turn_tokens": 40}} if layout == "transcript" else {"response_length": 40, "episode": {}}
    charged = {**limits, "episode": {**limits["episode"], "overlong_buffer": 0.5, "overlong_penalty": 2.0}}
    rows, _ = run(["short", WRONG, "x" * 50, RIGHT], layout=layout, **charged)
    assert entries(rows, "turn_penalties") == pytest.approx([-0.1, -0.6, -2.1, -0.6])
    assert {row.reward_score for row in rows} == {10.0}
    plain, _ = run(["short", WRONG, "x" * 50, RIGHT], layout=layout, **limits)
    assert entries(plain, "turn_penalties") == [-0.1, 0.0, -0.1, 0.0]


def test_a_cancelled_episode_closes_its_environment(layout):
    async def scenario():
        asked = asyncio.Event()

        class Silent(ScriptedServer):
            async def generate(self, *args, **kwargs):
                asked.set()
                await asyncio.sleep(3600)

        agent_loop = make_loop(Silent([]), episode={"layout": layout})
        task = asyncio.create_task(play(agent_loop, {"secret": 7}))
        await asyncio.wait_for(asked.wait(), 10)
        benchmark, *_ = loop_module.open_benchmark(agent_loop.rollout_config.custom)
        (environment,) = [one for one in benchmark.made if hasattr(one, "_secret")]
        assert not environment.closed
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return environment

    assert asyncio.run(scenario()).closed


def test_two_episodes_of_one_task_at_once_do_not_meet(layout):
    """They share the benchmark and its threads, and take turns at every response."""
    answers = ([WRONG, RIGHT], [RIGHT], ["nothing"] * 4)

    async def one(number, script):
        agent_loop = make_loop(ScriptedServer(script), episode={"layout": layout})
        return await play(agent_loop, {"secret": 7}, session_id=number)

    async def scenario():
        return await asyncio.gather(*(one(number, script) for number, script in enumerate(answers)))

    for number, (together, script) in enumerate(zip(asyncio.run(scenario()), answers, strict=True)):
        alone, _ = run(script, layout=layout, session_id=number, response_length=4000)
        assert [row.extra_fields for row in together] == [row.extra_fields for row in alone]
        assert [row.response_ids for row in together] == [row.response_ids for row in alone]
        assert [row.response_mask for row in together] == [row.response_mask for row in alone]


def test_an_engine_that_writes_more_than_it_was_asked_for_is_cut(layout):
    """verl's TensorRT-LLM server has a limit of its own (trtllm_async_server.py:330)."""

    class Generous(ScriptedServer):
        async def generate(self, request_id, *, prompt_ids, sampling_params):
            more = {**sampling_params, "max_tokens": 10**6}
            return await super().generate(request_id, prompt_ids=prompt_ids, sampling_params=more)

    async def scenario():
        episode = {"layout": layout, "turn_tokens": 10, "max_turns": 2}
        return await play(make_loop(Generous(["x" * 50]), episode=episode), {"secret": 7})

    rows = asyncio.run(scenario())
    assert [stop - start for start, stop in entries(rows, "response_spans")] == [10, 10]
    assert sum(sum(row.response_mask) for row in rows) == 20 and rows[0].extra_fields["cut"] == "response"


def test_an_interrupted_engine_leaves_a_masked_token(layout):
    """verl cannot hold a row without a token, nor the estimators a response without one."""
    rows, _ = run([[], RIGHT], layout=layout)
    assert entries(rows, "turn_valid") == [False, True] and rows[0].reward_score == 10.0
    (start, stop), _ = entries(rows, "response_spans")
    assert (start, stop) == (0, 1) and rows[0].response_ids[0] == 0 and rows[0].response_mask[0] == 0
    assert rows[0].response_logprobs[0] == 0.0
    assert 0 not in rows[0].response_ids[1:2], "the message is ended once"
    assert sum(sum(row.response_mask) for row in rows) == LENGTH + 1
    ended, _ = run([[]], layout=layout, episode={"max_turns": 1})
    assert ended[0].extra_fields["cut"] == "response" and ended[0].as_dict()["rm_scores"].tolist() == [0.0]


def test_missing_settings_are_named():
    with pytest.raises(ValueError, match=r"rollout\.custom\.benchmark is not set"):
        loop_module.open_benchmark(None)
