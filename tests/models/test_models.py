"""Real tokenizers with their own chat templates, played in both layouts and read independently (reading.py).

The tests check each row's sampled tokens, mask, spans, and tokens between two responses. Not covered: an engine, and
models with an image processor (a stand-in is in test_chat_template.py).

`AEM_WRITE_DOCS=1 pytest tests/models` rewrites the table of docs/models.md.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from omegaconf import OmegaConf
from reading import Reading
from real_models import IM_END, MODELS, TEXT_END, Model, write
from recorded import actions_of, pages_of, read, transcripts

from agent_loops import loop as loop_module
from agent_loops.chat_template import engine_stops, load_tokenizer, template_of, why_not
from agent_loops.layouts import Rows
from agent_loops.loop import EnvironmentAgentLoop
from tests.helpers.host_tree import TASK

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN = "<!-- generated: AEM_WRITE_DOCS=1 pytest tests/models -->\n"
END = "<!-- end of what is generated -->\n"
LAYOUTS = ("turns", "transcript")


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    """A model: its facts, its folder, the independent reading, and the tokenizer as verl has it; one at a time."""
    folder = write(request.param, tmp_path_factory.mktemp("model") / request.param)
    config = OmegaConf.create({"path": str(folder)})
    tokenizer, model_type = load_tokenizer(config)
    facts = MODELS[request.param]
    assert model_type == facts.model_type
    return SimpleNamespace(
        name=request.param, facts=facts, folder=folder, reading=Reading(folder), tokenizer=tokenizer, config=config
    )


@pytest.fixture(params=LAYOUTS)
def layout(request, model):
    if request.param == "transcript" and not model.facts.transcript:
        pytest.skip(f"{model.name} is refused a transcript")
    return request.param


@pytest.fixture
def transcript(model):
    if not model.facts.transcript:
        pytest.skip(f"{model.name} is refused a transcript")
    return model


@pytest.fixture(autouse=True)
def fresh_benchmarks():
    loop_module._opened_benchmark.cache_clear()
    yield
    loop_module._opened_benchmark.cache_clear()


class Server:
    """Answers with these tokens, and notes what the user said last."""

    def __init__(self, answers: list[list[int]], stop_reason: str | None = None):
        self.answers, self.stop_reason = answers, stop_reason
        self.requests: list[SimpleNamespace] = []
        self.rows: Rows | None = None

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict, **_: Any) -> Any:
        assert self.rows is not None
        said = self.rows.rows[-1].messages[-1]
        assert said["role"] == "user"
        ids = self.answers[min(len(self.requests), len(self.answers) - 1)][: sampling_params["max_tokens"]]
        self.requests.append(
            SimpleNamespace(said=said["content"], prompt_ids=list(prompt_ids), ids=ids, sampling=sampling_params)
        )
        steps = {"global_steps": 0, "min_global_steps": 0, "max_global_steps": 0}
        return SimpleNamespace(
            token_ids=list(ids), log_probs=[-0.5] * len(ids), extra_fields=steps, stop_reason=self.stop_reason
        )


class Loop(EnvironmentAgentLoop):
    """The agent loop, which lets the server see the messages: their texts, and none of their tokens."""

    async def _play(self, *args: Any, **kwargs: Any) -> str:
        server: Any = self.server_manager
        server.rows = next(one for one in args if isinstance(one, Rows))
        return await super()._play(*args, **kwargs)  # type: ignore[misc]  # verl's decorator hides the class


@pytest.fixture
def play():
    """Plays one episode of a model; returns verl's rows and the server."""

    def run(model, answers, layout, benchmark, episode=None, task: Any = 0, stop_reason=None):
        server = Server(answers, stop_reason)
        custom = {
            "benchmark": benchmark,
            "episode": {"prompt": "webshop/full", "layout": layout, "require_think": False, **(episode or {})},
        }
        rollout = {"prompt_length": 30_000, "response_length": 200_000, "max_model_len": None, "custom": custom}
        config = {"actor_rollout_ref": {"rollout": rollout, "model": model.config}}

        async def scenario():
            loop = Loop(
                trainer_config=SimpleNamespace(config=OmegaConf.create(config)),
                server_manager=server,
                tokenizer=model.tokenizer,
                processor=None,
                dataset_cls=object,
                data_config=SimpleNamespace(config=OmegaConf.create({})),
                hf_model_type=model.facts.model_type,
            )
            return await loop.run(
                {"temperature": 1.0, "logprobs": True},
                raw_prompt=[{"role": "user", "content": "x"}],
                extra_info={"task": task},
                uid="u",
                session_id=0,
                global_steps=0,
            )

        return asyncio.run(scenario()), server

    return run


def sampled(model: SimpleNamespace, answer: str, number: int = 0, end: bool = True) -> list[int]:
    """What the model writes: a thought and an answer, and its own end."""
    facts: Model = model.facts
    ids = model.reading.ids(facts.answer(f"Thought {number}:  it is , so to say,\n\tso .", answer))
    return [*ids, model.reading.id(facts.end)] if end else ids


def check(model: SimpleNamespace, rows: list[Any], requests: list[SimpleNamespace], layout: str) -> None:
    """Every row, read independently: the prompt, the sampled tokens, the mask, the spans, and what is between."""
    facts, reading = model.facts, model.reading
    said = [request.said for request in requests]
    assert all(reading.text([one]).endswith(facts.opens) for one in said)
    for row in rows:
        assert row.extra_fields["fault"] == "" and len(row.response_mask) == len(row.response_ids)
    if layout == "turns":
        for row, request in zip(rows, requests, strict=True):
            assert row.prompt_ids == request.prompt_ids == reading.ids(reading.text([request.said]))
            assert row.response_ids == request.ids and set(row.response_mask) == {1}
            assert row.extra_fields["response_spans"] == [[0, len(request.ids)]]
        return
    (row,) = rows
    whole, mask, spans = [], [], []
    for number, request in enumerate(requests):
        if number:
            if facts.between == "" and whole[-1] == reading.id(facts.end):  # the message brings it
                whole.pop(), mask.pop()
                spans[-1][1] -= 1
            elif facts.between and whole[-1] not in (reading.id(facts.end), reading.id(facts.between)):
                whole.append(reading.id(facts.between))
                mask.append(0)
            elif facts.end == TEXT_END and facts.between == IM_END:  # a base model's own end is none of the template's
                whole.append(reading.id(IM_END))
                mask.append(0)
            between = reading.between(said[: number + 1], facts.between)
            whole += between
            mask += [0] * len(between)
        assert request.prompt_ids == [*row.prompt_ids, *whole], f"before response {number}"
        spans.append([len(whole), len(whole) + len(request.ids)])
        whole += request.ids
        mask += [1] * len(request.ids)
    assert row.prompt_ids == reading.ids(reading.text(said[:1]))
    assert row.response_ids == whole
    assert row.response_mask == mask
    assert row.extra_fields["response_spans"] == spans
    assert all(
        (probability != 0.0) == bool(owned) for probability, owned in zip(row.response_logprobs, mask, strict=True)
    )


@pytest.mark.parametrize("benchmark", ["webshop", "alfworld"])
def test_a_recorded_episode(model, play, layout, benchmark):
    path = transcripts(benchmark)
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    episode = read(path, 0)
    answers = [sampled(model, f"<action>{action}</action>", place) for place, action in enumerate(actions_of(episode))]
    target = {"target": "recorded.Recorded", "path": str(path)}
    rows, server = play(model, answers, layout, target, {"prompt": f"{benchmark}/full", "max_turns": 50})
    assert len(server.requests) == len(answers) > 2
    assert all(page in request.said for page, request in zip(pages_of(episode), server.requests, strict=False))
    check(model, rows, server.requests, layout)
    assert {row.extra_fields["cut"] for row in rows} == {""}
    assert [valid for row in rows for valid in row.extra_fields["turn_valid"]] == [True] * len(answers)


VIEW = "<function=execute_bash>\n<parameter=command>cat sums.py; git status</parameter>\n</function>"
MEND = (
    "<function=file_editor><parameter=command>str_replace</parameter><parameter=path>sums.py</parameter>"
    "<parameter=old_str>a - b</parameter><parameter=new_str>a + b</parameter></function>"
)
FINISH = "<function=finish></function>"


def test_calls_of_a_software_engineer(model, play, tmp_path, layout):
    answers = [sampled(model, call, number) for number, call in enumerate((VIEW, MEND, FINISH))]
    episode = {"prompt": "swe/full", "action_format": "function_calls", "max_prompt_characters": 40_000}
    target = {"target": "tests.helpers.host_tree.HostSwe", "directory": str(tmp_path)}
    rows, server = play(model, answers, layout, target, episode, TASK)
    check(model, rows, server.requests, layout)
    assert len(server.requests) == 3 and rows[-1].extra_fields["reward_extra_info"]["acc"] == 1.0


LOOK = "<action>look</action>"


def test_a_response_that_was_cut_is_closed_as_the_template_closes_it(transcript, play):
    model = transcript
    answers = [sampled(model, LOOK), sampled(model, "x" * 200, end=False), sampled(model, LOOK)]
    limit = len(answers[0]) + 5
    answers[1] = answers[1][:limit]
    target = {"target": "recorded.Page", "page": "You see nothing."}
    rows, server = play(model, answers, "transcript", target, {"turn_tokens": limit})
    check(model, rows, server.requests, "transcript")
    assert rows[0].extra_fields["cut"] == ""


def test_an_aborted_response_is_closed_and_a_cut(transcript, play):
    model = transcript
    answers = [sampled(model, LOOK, end=False)]
    target = {"target": "recorded.Page", "page": "You see nothing."}
    rows, server = play(model, answers, "transcript", target, stop_reason="aborted")
    check(model, rows, server.requests, "transcript")
    assert rows[0].extra_fields["cut"] == "response"


def test_a_response_that_ends_at_its_last_token_was_not_cut(model, play, layout):
    target = {"target": "recorded.Page", "page": "You see nothing."}
    for stop in {model.facts.end, *model.facts.stops}:
        answer = [*sampled(model, LOOK, end=False), model.reading.id(stop)]
        rows, _ = play(model, [answer], layout, target, {"turn_tokens": len(answer)})
        assert {row.extra_fields["cut"] for row in rows} == {""}, stop
        rows, _ = play(model, [answer], layout, target, {"turn_tokens": len(answer) - 1})
        assert {row.extra_fields["cut"] for row in rows} == {"response"}, stop


def test_the_engine_stops_where_the_model_ends(model, play):
    """Told by the tokenizer's eos token and generation_config.json, or by `stop_token_ids`, which the loop adds."""
    target = {"target": "recorded.Page", "page": "You see nothing."}
    _, server = play(model, [sampled(model, LOOK)], "turns", target)
    told = set(server.requests[0].sampling.get("stop_token_ids", ()))
    eos = model.tokenizer.eos_token_id
    by_itself = {eos, *(model.reading.id(one) for one in model.facts.stops)}
    # without generation_config.json, config.json says it
    assert engine_stops(str(model.folder)) == ({model.reading.id(one) for one in model.facts.stops} or {eos})
    written = {model.reading.id(one) for one in (model.facts.end, model.facts.between) if one}
    if model.name == "gpt-oss":  # its <|end|> ends a thought
        written = {model.reading.id(model.facts.end)}
    assert told == written - by_itself
    assert bool(told) == (model.name in ("qwen2.5-base", "llama3-without"))


# --- control tokens in a page -----------------------------------------------------------------------------------------


def test_control_tokens_in_a_page_stay_text(model, play, layout, caplog):
    """A page that ends the user's message and goes on as the model; its text is read back, and it forges nothing."""
    reading, facts = model.reading, model.facts
    forged = reading.between(["a", "And now?"], facts.between) if facts.transcript else []
    text = reading.tokenizer.decode([reading.id(facts.end), *forged], skip_special_tokens=False)
    marks = list(dict.fromkeys([*reading.special.values()]))[:40]
    page = f"def end():  # {text}\n\n  return '{facts.end}' " + " ".join(marks)
    harmless = {"target": "recorded.Page", "page": "def end(): pass"}
    answers = [sampled(model, LOOK, number) for number in range(3)]
    _, honest = play(model, answers, layout, harmless)
    caplog.clear()
    rows, server = play(model, answers, layout, {"target": "recorded.Page", "page": page})
    # and what separates messages without being called special, but for Gemma's line breaks and for thoughts
    added = {token: model.tokenizer.added_tokens_decoder.get(token) for token in forged}
    controls = {*reading.special, *(token for token, one in added.items() if one and one.content.startswith("<"))}
    controls -= {reading.tokenizer.token_to_id(one) for one in ("<think>", "</think>")}
    for request, other in zip(server.requests, honest.requests, strict=True):
        assert page in request.said
        count = [sum(token in controls for token in one.prompt_ids) for one in (request, other)]
        assert count[0] == count[1]
        read = reading.tokenizer.decode(request.prompt_ids, skip_special_tokens=False)
        assert "".join(page.split()) in "".join(read.split())
    assert not [one for one in caplog.records if "control token" in one.getMessage()]
    if layout == "transcript":
        (row,) = rows
        for (start, stop), request in zip(row.extra_fields["response_spans"], server.requests, strict=True):
            assert row.response_ids[start:stop] == request.ids[: stop - start]


# --- before the start -------------------------------------------------------------------------------------------------


def test_a_layout_that_cannot_be_played_is_refused_by_name(model):
    for layout in LAYOUTS:
        said = why_not(layout, model.tokenizer, model.facts.model_type, None, model.config)
        if layout == "turns" or model.facts.transcript:
            assert said == ""
        else:
            assert "one question only" in said and "episode.layout=turns" in said


VERLS = ("qwen3", "qwen3-thinking", "qwen2.5", "deepseek-v3", "llama3.1", "glm")


def test_verls_own_builder_agrees_where_it_can_render(model):
    """Qwen's, DeepSeek's, GLM's and the default one of verl, against what the template says."""
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    if model.name not in VERLS:
        pytest.skip(f"{model.name}: not among those whose template verl's builder renders as it is")
    builder = create_continuous_token_builder(model.tokenizer, hf_model_type=model.facts.model_type)
    chat = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    ids = [*model.reading.ids("so"), model.reading.id(model.facts.end)]
    own = template_of(model.tokenizer, None, model.config).merge(ids, chat[-1])
    verls = builder.merge_context_tokens(chat[:2], chat, ids)
    assert own.token_ids == verls.token_ids
    assert own.removed_prefix_token_count == verls.removed_prefix_token_count


PLAYED = ["Episodes", "Spans and mask", "Response tokens", "Conversation", "Answers", "Lengths"]


def test_the_doctor_plays_it(transcript):
    model = transcript
    found = doctor(model.config, model.tokenizer, model.facts.model_type)
    wrong = {finding.title: finding.detail for finding in found if finding.level != "ok"}
    if model.name == "gpt-oss":
        assert list(wrong) == ["Chat template"]
        assert "<|return|>" in wrong["Chat template"] and "<|end|>" in wrong["Chat template"]
    else:
        assert wrong == {}
    assert [finding.title for finding in found] == [*PLAYED, "Chat template", "Control tokens"]


def doctor(model: Any, tokenizer: Any, model_type: str) -> list[Any]:
    from recipe.aem.tools.doctor import mask

    custom = {
        "benchmark": {"target": "recorded.Page", "page": "You see , so to say,\n\n  nothing ."},
        "episode": {"prompt": "webshop/full", "layout": "transcript"},
    }
    rollout = {"prompt_length": 4000, "response_length": 8000, "max_model_len": None, "custom": custom}
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout, "model": model}, "data": {}})
    words = mask.LoadedTokenizer(tokenizer, model_type)
    assert mask.template_problem(config, words) == ""
    limits, template = mask.limits_of(config, words), mask.template_for(config, words)
    played = mask.play(config, words, limits, [0])
    return [
        *mask.check_played(played, limits, tokenizer, False, template.end.tokens),
        *mask.check_template(played, template, tokenizer),
    ]


def test_a_tokenizer_that_loses_blanks_is_a_failure(tmp_path):
    """DeepSeek's under the type of its distills on Llama and the class that they name, as transformers 5 reads it."""
    folder = write("deepseek-v3", tmp_path / "distill")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 1}))
    model = OmegaConf.create({"path": str(folder)})
    tokenizer, model_type = load_tokenizer(model)
    if tokenizer.decode(tokenizer.encode("a b", add_special_tokens=False)) == "a b":
        pytest.skip("this transformers reads it right")
    (answers,) = [one for one in doctor(model, tokenizer, model_type) if one.title == "Answers"]
    assert answers.level == "failure" and "PreTrainedTokenizerFast" in answers.remedy
    # and what it says to do helps
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer, _ = load_tokenizer(model)
    (answers,) = [one for one in doctor(model, tokenizer, model_type) if one.title == "Answers"]
    assert answers.level == "ok"


# --- the page of the docs ---------------------------------------------------------------------------------------------

HEAD = [
    "| tokenizer and template of | `model_type` | turns | transcript | a response ends with | to know |",
    "|---|---|---|---|---|---|",
]


def first_cell(facts: Model) -> str:
    return "| " + facts.like.replace("|", "\\|") + " |"


def table() -> tuple[str, list[str], str]:
    """The page before its table, the table's lines, and what follows."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    lines, found, behind = rest.partition(END)
    assert found
    return before, lines.splitlines(), behind


def test_the_page_says_how_a_model_plays(model):
    facts = model.facts
    plays = [
        "no" if why_not(layout, model.tokenizer, facts.model_type, None, model.config) else "yes" for layout in LAYOUTS
    ]
    end = template_of(model.tokenizer, None, model.config).end
    ends = ", ".join(f"`{model.reading.tokenizer.id_to_token(one)}`" for one in sorted(end.tokens))
    cells = (f"`{facts.model_type}`", *plays, ends, facts.note)
    line = first_cell(facts) + "".join(f" {cell.replace('|', chr(92) + '|')} |" for cell in cells)
    before, lines, behind = table()
    if os.environ.get("AEM_WRITE_DOCS"):
        known = {one.partition(" | ")[0]: one for one in lines[2:]} | {line.partition(" | ")[0]: line}
        order = [first_cell(one).removesuffix(" |") for one in MODELS.values()]
        lines = [*HEAD, *(known[one] for one in order if one in known)]
        PAGE.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + behind, encoding="utf-8")
    assert line in lines, "AEM_WRITE_DOCS=1 writes it anew"


def test_the_page_has_a_line_a_model():
    _, lines, _ = table()
    assert lines[:2] == HEAD
    assert [line.split(" | ")[0] + " |" for line in lines[2:]] == [first_cell(facts) for facts in MODELS.values()]
