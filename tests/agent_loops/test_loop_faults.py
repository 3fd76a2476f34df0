"""No text or environment makes the agent loop raise into verl, which would drop the trajectory; engine errors do.

Against verl's own output types (scripted.py), in both layouts; no engine, no Ray.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import re
import threading

import jinja2
import pytest

pytest.importorskip("verl", reason="verl is not installed")

from agent_loops import episode as episode_module
from agent_loops import loop as loop_module
from agent_loops.environment import Observation, Step
from agent_loops.workers import WorkerPool
from tests.helpers.guess import GuessBenchmark
from tests.helpers.scripted import LetterTokenizer, ScriptedServer, make_loop, play, run

WRONG, RIGHT = "<action>guess[3]</action>", "<action>guess[7]</action>"


@pytest.fixture(params=["turns", "transcript"])
def layout(request):
    return request.param


@pytest.fixture(autouse=True)
def fresh_benchmarks():
    loop_module._opened_benchmark.cache_clear()
    yield
    loop_module._opened_benchmark.cache_clear()


def entries(rows, name):
    """One entry a response, whatever the layout."""
    return [entry for row in rows for entry in row.extra_fields[name]]


class Strict(LetterTokenizer):
    """It encodes and decodes text as tokenizers of the `tokenizers` library do: a lone surrogate is an error."""

    def apply_chat_template(self, messages, **how):
        for message in messages:
            message["content"].encode("utf-8")
        return super().apply_chat_template(messages, **how)

    def encode(self, text, **how):
        text.encode("utf-8")
        return super().encode(text, **how)

    def decode(self, ids, skip_special_tokens=True):
        text = super().decode(ids, skip_special_tokens)
        if "unreadable" in text:
            raise ValueError("cannot decode \ud800")
        return text


def check_fault(rows, where):
    """Whole rows of a trajectory that trains nothing; returns the reason."""
    (reason,) = {row.extra_fields["fault"] for row in rows}
    assert re.match(rf"{where}: \w+: ", reason), reason
    reason.encode("utf-8")
    for row in rows:
        assert row.reward_score == 0.0 and not any(row.response_mask)
        lengths = {len(row.response_ids), len(row.response_mask), len(row.response_logprobs or row.response_ids)}
        assert len(lengths) == 1 and row.response_ids and row.prompt_ids
        assert all(0 <= start < stop <= len(row.response_ids) for start, stop in row.extra_fields["response_spans"])
        assert row.extra_fields["reward_extra_info"]["fault"] == 1.0
        assert {"min_global_steps", "max_global_steps"} <= set(row.extra_fields)
        assert row.as_dict()["rm_scores"].tolist()[-1] == 0.0
    return reason


@pytest.mark.parametrize("when", ["first", "later"])
def test_a_page_that_cannot_be_encoded_is_played_or_a_fault_and_raises_nothing(when, layout, monkeypatch):
    bad = Observation("a page \ud800", ["guess[<digit>]"], {"instruction": "find the secret digit"})
    if when == "first":
        monkeypatch.setattr("tests.helpers.guess.GuessEnvironment.reset", lambda self, task: bad)
    monkeypatch.setattr(
        "tests.helpers.guess.GuessEnvironment.step", lambda self, action: Step(bad, 0.0, terminated=False)
    )
    rows, _ = run([WRONG], layout=layout, tokenizer=Strict())
    if {row.extra_fields["fault"] for row in rows} != {""}:
        check_fault(rows, f"the prompt of turn {int(when == 'later')}")
    for row in rows:
        "".join([*row.extra_fields["anchors"], *row.extra_fields["turn_kinds"]]).encode("utf-8")


@pytest.mark.parametrize("text", ["{{ nothing_of_that_name }}", "{{ 1 / 0 }}", "{{ '\\ud800' }}"])
def test_a_template_of_the_users_that_fails_is_a_fault(text, layout, tmp_path):
    (tmp_path / "mine.jinja").write_text(text)
    rows, server = run([WRONG], layout=layout, tokenizer=Strict(), episode={"prompt": str(tmp_path / "mine.jinja")})
    check_fault(rows, "the prompt of turn 0")
    assert not server.requests and len(rows) == 1


@pytest.mark.parametrize("raised", [jinja2.UndefinedError("no such variable"), KeyError("x"), MemoryError()])
@pytest.mark.parametrize("turn", [0, 1])
def test_a_template_that_fails_is_a_fault(turn, raised, layout, monkeypatch):
    render = episode_module.Episode.render

    def failing(self, *args, **kwargs):
        if len(self.turns) == turn:
            raise raised
        return render(self, *args, **kwargs)

    monkeypatch.setattr(episode_module.Episode, "render", failing)
    rows, server = run([WRONG], layout=layout)
    check_fault(rows, f"the prompt of turn {turn}")
    assert len(server.requests) == turn and len(rows) == 1


@pytest.mark.parametrize("answers", [["unreadable"], [WRONG, "unreadable"]])
def test_a_response_that_cannot_be_decoded_is_a_fault(answers, layout):
    rows, _ = run(answers, layout=layout, tokenizer=Strict())
    assert "cannot decode" in check_fault(rows, rf"(the prompt of )?turn {len(answers) - 1}")


@pytest.mark.parametrize("turn", [0, 1])
def test_a_response_that_cannot_be_recorded_is_a_fault(turn, layout, monkeypatch):
    """verl's builders look at the tokens that they merge, and raise."""
    merge = loop_module.EnvironmentAgentLoop.ct_merge_assistant_token
    merged = []

    async def failing(self, *args, **kwargs):
        merged.append(args)
        if len(merged) > turn:
            raise RuntimeError("the prefix has changed")
        return await merge(self, *args, **kwargs)

    monkeypatch.setattr(loop_module.EnvironmentAgentLoop, "ct_merge_assistant_token", failing)
    rows, _ = run([WRONG], layout=layout)
    check_fault(rows, f"the response of turn {turn}")
    assert len(entries(rows, "response_spans")) == 1


@pytest.mark.parametrize(
    "raw_prompt", [[{"role": "user", "content": "\ud800"}], [{"role": "user", "content": "x" * 9000}]]
)
def test_the_row_of_an_episode_that_never_began_stands_whatever_the_dataset_says(raw_prompt, layout):
    async def scenario():
        made = make_loop(
            ScriptedServer([]), benchmark={"fault": "reset"}, episode={"layout": layout}, tokenizer=Strict()
        )
        return await made.run(
            {"logprobs": True}, raw_prompt=raw_prompt, extra_info={"task": {"secret": 7}}, uid="u", session_id=0
        )

    rows = asyncio.run(scenario())
    check_fault(rows, "reset")
    assert len(rows) == 1 and len(rows[0].prompt_ids) < 4000


FOREIGN = {
    "StopIteration": StopIteration("the script is over"),
    "SystemExit": SystemExit("bye"),
    "CancelledError": concurrent.futures.CancelledError(),
    "KeyboardInterrupt": KeyboardInterrupt(),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("method", ["reset", "step", "conclude", "close"])
def test_what_would_end_or_hang_an_event_loop_is_a_fault_like_any_other(name, method, layout, monkeypatch):
    """asyncio cannot carry a StopIteration, and takes the others for its own."""

    def failing(self, *args):
        raise FOREIGN[name]

    monkeypatch.setattr(f"tests.helpers.guess.GuessEnvironment.{method}", failing, raising=False)
    rows, _ = run([WRONG], layout=layout, episode={"max_turns": 1})
    if method == "close":
        assert {row.extra_fields["fault"] for row in rows} == {""}
    else:
        where = {"reset": "reset", "step": "turn 0", "conclude": "the end"}[method]
        assert f"FailedError: {name}" in check_fault(rows, where)


@pytest.mark.parametrize("action", ["stop", "exit"])
def test_in_a_worker_too_and_its_other_episodes_go_on(action):

    pool = WorkerPool("tests.helpers.fragile.FragileBenchmark", {}, workers=1)

    async def scenario():
        slots = [pool.open() for _ in range(3)]
        for slot in slots:
            await slot.call(60, slot.environment.reset, {"name": "a"})
        with pytest.raises(RuntimeError, match={"stop": "StopIteration", "exit": "SystemExit"}[action]):
            await slots[0].call(60, slots[0].environment.step, action)
        return [await slot.call(60, slot.environment.step, "win") for slot in slots]

    assert all(step.terminated for step in asyncio.run(scenario()))
    pool.close()


def test_an_environment_that_cannot_be_made_is_a_fault(layout, monkeypatch):
    """The first one, which says whether it is thread-safe, is made when the benchmark is opened."""
    make, made = GuessBenchmark.make, []

    def second_fails(self):
        made.append(self)
        return make(self) if len(made) == 1 else 1 / 0

    monkeypatch.setattr("tests.helpers.guess.GuessBenchmark.make", second_fails)
    rows, _ = run([WRONG], layout=layout)
    assert "division by zero" in check_fault(rows, "reset") and len(made) == 2


def test_an_environment_that_never_closes_is_left(layout, monkeypatch):
    over = threading.Event()
    monkeypatch.setattr("tests.helpers.guess.GuessEnvironment.close", lambda self: over.wait())

    async def scenario():
        made = make_loop(ScriptedServer([RIGHT]), episode={"layout": layout, "step_seconds": 0.2})
        rows = await play(made, {"secret": 7})
        over.set()  # the thread would be waited for with the event loop
        return rows

    rows = asyncio.run(scenario())
    assert rows[0].reward_score == 10.0 and rows[0].extra_fields["fault"] == ""


@pytest.mark.parametrize(
    "raised", [RuntimeError("EngineDeadError"), TimeoutError("the engine"), ValueError("too long")]
)
def test_what_the_engine_raises_goes_to_verl_which_counts_the_session_as_missing(raised, layout):
    class Broken(ScriptedServer):
        async def generate(self, *args, **kwargs):
            raise raised

    async def scenario():
        return await play(make_loop(Broken([]), episode={"layout": layout}), {"secret": 7})

    with pytest.raises(type(raised), match=str(raised)):
        asyncio.run(scenario())
