"""The study's second task: the impatient player, the splits, the prompt, and the configuration that trains on it."""

from __future__ import annotations

import importlib.util
import statistics
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("textworld_express", reason="TextWorldExpress is not installed (pip install 'verl-aem[textworld]')")

from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config

from agent_loops.dataset import write_parquet
from agent_loops.episode import Episode, EpisodeSettings
from agent_loops.java import JavaError, find_java
from agent_loops.textworld_express import TextWorldExpress
from recipe.aem.tools.demo.tiny_model import build_tokenizer
from recipe.aem.tools.hydra_config import compose

STUDY = Path(__file__).parents[2] / "studies" / "order"
try:
    find_java("TextWorldExpress")
except JavaError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("order_warm_start", STUDY / "warm_start.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORDER", str(tmp_path_factory.mktemp("order")))
        yield compose(str(STUDY / "config.yaml"), ["method=aem"])


@pytest.fixture(scope="module")
def game(config):
    game = TextWorldExpress(config.actor_rollout_ref.rollout.custom.benchmark.game)
    yield game
    game.simulator().close()


def test_the_trainer_takes_the_configuration(config, module):
    validate_config(config, need_reference_policy(config), need_critic(config))
    assert config.algorithm.adv_estimator == "aem"
    # cloned as it is played
    assert EpisodeSettings.from_config(config.actor_rollout_ref.rollout.custom.episode) == module.SETTINGS


@pytest.mark.parametrize(("guess", "waste", "least", "most"), [(0.0, 0.0, 1.0, 1.0), (1.0, 0.0, 0.0, 0.25)])
def test_reading_wins_and_guessing_does_not(module, game, guess, waste, least, most):
    player, won = module.impatient_policy(0, guess, waste), []
    for task in game.task_set.tasks("train")[:40]:
        episode = Episode(game.make(), module.SETTINGS)
        episode.reset(task)
        while not episode.done:
            episode.step(f"<action>{player(episode, task)}</action>")
        won.append(episode.won)
        assert all(turn.action.valid for turn in episode.turns)
    assert least <= statistics.mean(won) <= most


def test_one_wasted_turn_is_one_too_many(module, game):
    player, episode = module.impatient_policy(0, 0.0, 0.0), Episode(game.make(), module.SETTINGS)
    task = game.task_set.tasks("train")[0]
    episode.reset(task)
    episode.step("<action>look around</action>")
    while not episode.done:
        episode.step(f"<action>{player(episode, task)}</action>")
    assert not episode.won and episode.end == "turns" and len(episode.turns) == 8


def test_validation_is_apart(module, game, tmp_path, config):
    assert write_parquet(module.Order(game), tmp_path) == {"train": 800, "validation": 200}
    seeds = {
        split: {one["task"]["seed"] for one in pq.read_table(tmp_path / f"{split}.parquet")["extra_info"].to_pylist()}
        for split in ("train", "validation")
    }
    assert not seeds["train"] & seeds["validation"]
    assert Path(config.data.val_files).name == "validation.parquet"


def test_a_prompt_shows_what_decides_and_fits(module, game, config):
    player, prompts = module.impatient_policy(0, 0.5, 0.3), []
    for task in game.task_set.tasks("train")[:40]:
        episode = Episode(game.make(), module.SETTINGS)
        episode.reset(task)
        while not episode.done:
            prompts.append(episode.prompt())
            shown = prompts[-1].splitlines()
            past = [f"<action>{turn.action.text}</action>" for turn in episode.turns[-2:]]
            assert shown[: len(past)] == past
            assert {one for one in shown if one.startswith("take ")} == {
                one for one in episode.observation.actions if one.startswith("take ")
            }
            episode.step(f"<action>{player(episode, task)}</action>")
    tokenizer = build_tokenizer(prompts, ["read instructions book", "take orange"], markup=("<action>", "</action>"))
    lengths = [
        len(tokenizer.apply_chat_template([{"role": "user", "content": one}], add_generation_prompt=True)["input_ids"])
        for one in prompts
    ]
    assert max(lengths) < config.data.max_prompt_length
    response = tokenizer("<action>read instructions book</action>", add_special_tokens=False)["input_ids"]
    assert len(response) == 3, "an action is one token"
