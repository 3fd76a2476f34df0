"""docs/conversations.md: its sample is the loop's output for the episode, and its settings form a consistent run.

`AEM_WRITE_DOCS=1 pytest tests/docs/test_conversations.py` rewrites the sample.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("rapidfuzz", reason="the WebShop extra is not installed")

from agent_loops.environment import Observation
from agent_loops.episode import Episode, EpisodeSettings
from agent_loops.webshop import Oracle, WebShop
from agent_loops.webshop.generate import generate_catalogue
from tests.helpers.scripted import LetterTokenizer, run

PAGE = Path(__file__).parents[2] / "docs" / "conversations.md"
BEGIN = "<!-- generated: AEM_WRITE_DOCS=1 pytest tests/docs/test_conversations.py -->\n"
END = "<!-- end of what is generated -->\n"
SHOP = {"n_titles": 4, "variants": 2, "n_goals": 12, "sized_share": 0.0}
THOUGHTS = {
    "search": "<think>I search for what is asked.</think>\n",
    "results": "",  # this one breaks the format
    "item": "<think>Is it the right one, in the right colour?</think>\n",
}
SHOWN = ("response_spans", "turn_index", "turn_rewards", "turn_penalties", "turn_valid")


class ChatLetters(LetterTokenizer):
    """Letters in Qwen's chat template."""

    SPECIAL = ("<|im_end|>", "<|im_start|>")

    def apply_chat_template(self, messages, add_generation_prompt=False, tokenize=True, **_):
        text = "".join(f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in messages)
        text += "<|im_start|>assistant\n" if add_generation_prompt else ""
        return self.encode(text) if tokenize else text

    def encode(self, text, **_):
        pieces = re.split("(" + "|".join(map(re.escape, self.SPECIAL)) + ")", text)
        return [
            number
            for piece in pieces
            for number in ([self.SPECIAL.index(piece)] if piece in self.SPECIAL else map(ord, piece))
        ]

    def decode(self, ids, skip_special_tokens=True):
        shown = ("", "") if skip_special_tokens else self.SPECIAL
        return "".join(shown[number] if number < 2 else chr(number) for number in ids)

    def convert_tokens_to_ids(self, token):
        return self.SPECIAL.index(token)


def responses(shop: WebShop, task: int) -> list[str]:
    """The oracle's episode in a reasoning model's words."""
    oracle, said = Oracle(shop.catalogue), []
    episode = Episode(shop.make(), EpisodeSettings())
    episode.reset(task)
    while not episode.done:
        observation: Observation | None = episode.observation
        assert observation is not None
        action = oracle.act(task, observation, [turn.action.text for turn in episode.turns])
        said.append(f"{THOUGHTS[observation.info['page']]}<action>{action}</action>")
        episode.step(said[-1])
    assert episode.won and len(said) == 4
    return said


def show(row, number: int) -> list[str]:
    """A row's text, line by line behind what its tokens are."""
    tokenizer = ChatLetters()
    extra = row.extra_fields
    lines = [f"-- row {number} ".ljust(60, "-")]

    def add(gutter: str, ids: list[int]) -> None:
        text = tokenizer.decode(ids, skip_special_tokens=False)
        lines.extend(f"{gutter:>10} | {line}".rstrip() for line in re.sub(r"^\n", "↵\n", text).splitlines())

    add("prompt", row.prompt_ids)
    place = 0
    for turn, (start, stop) in zip(extra["turn_index"], extra["response_spans"], strict=True):
        for gutter, ids in (("0", row.response_ids[place:start]), (f"turn {turn}: 1", row.response_ids[start:stop])):
            assert set(row.response_mask[place:start]) <= {0} and set(row.response_mask[start:stop]) == {1}
            add(gutter, ids)
        place = stop
    assert place == len(row.response_ids)
    lines += [f"{name:>16}: {json.dumps(extra[name])}" for name in SHOWN]
    lines.append(f"{'reward':>16}: {row.reward_score} on the last token")
    return lines


def render(directory: Path) -> str:
    shop = WebShop(generate_catalogue(directory, **SHOP), n_validation=2)
    task = shop.task_set.tasks("train")[0]
    benchmark = {"target": "agent_loops.webshop.WebShop", "data_dir": str(directory), "n_validation": 2}
    parts = []
    for layout in ("turns", "transcript"):
        rows, _ = run(
            responses(shop, task),
            layout=layout,
            task=task,
            benchmark=benchmark,
            episode={"prompt": "webshop/full", "require_think": True, "max_turns": 15},
            prompt_length=10_000,
            response_length=10_000,
            tokenizer=ChatLetters(),
            hf_model_type="qwen2",
        )
        lines = [line for number, row in enumerate(rows) for line in show(row, number)]
        parts += [f"### `layout: {layout}`", "", "```text", *lines, "```", ""]
    return "\n" + "\n".join(parts)


def test_the_sample_is_what_the_loop_makes_of_it(tmp_path):
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    written, after = rest.split(END)
    expected = render(tmp_path / "shop")
    if os.environ.get("AEM_WRITE_DOCS"):
        PAGE.write_text(before + BEGIN + expected + END + after, encoding="utf-8")
        written = expected
    assert written == expected, "AEM_WRITE_DOCS=1 writes it anew"


@pytest.mark.filterwarnings("ignore:Disabled critic")
def test_the_transcript_runs_settings_agree(monkeypatch):
    import hydra
    from omegaconf import OmegaConf
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    for name, value in (("AEM_MODEL", "/model"), ("WEBSHOP_DATA", "/data"), ("WEBSHOP_PARQUET", "/tasks")):
        monkeypatch.setenv(name, value)
    (command,) = re.findall(r"```bash\nbash scripts/run_webshop_7b\.sh ([^`]*)```", PAGE.read_text(encoding="utf-8"))
    overrides = command.replace("\\\n", " ").split()
    with hydra.initialize_config_module("recipe.aem.config", version_base=None):
        config = hydra.compose("webshop_7b", overrides)
    validate_config(config, need_reference_policy(config), need_critic(config))
    rollout, actor = config.actor_rollout_ref.rollout, config.actor_rollout_ref.actor
    settings = EpisodeSettings.from_config(OmegaConf.to_container(rollout.custom.episode, resolve=True))
    assert settings.layout == "transcript" and settings.turn_tokens == 512
    # the row's three limits agree, and the longest row fits a micro-batch (verl asserts it: seqlen_balancing.py)
    assert rollout.prompt_length + rollout.response_length == rollout.max_model_len
    assert rollout.response_length >= settings.max_turns * settings.turn_tokens
    assert (
        actor.use_dynamic_bsz
        and rollout.log_prob_use_dynamic_bsz
        and config.actor_rollout_ref.ref.log_prob_use_dynamic_bsz
    )
    for limit in (actor.ppo_max_token_len_per_gpu, rollout.log_prob_max_token_len_per_gpu):
        assert limit >= rollout.max_model_len
