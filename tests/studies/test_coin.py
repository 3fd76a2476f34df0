"""The study's second task: the walker, the prompt, and the configuration that trains on it."""

from __future__ import annotations

import importlib.util
import statistics
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("textworld_express", reason="TextWorldExpress is not installed (pip install 'verl-aem[textworld]')")

from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config

from agent_loops.episode import Episode, EpisodeSettings
from agent_loops.java import JavaError, find_java
from agent_loops.textworld_express import TextWorldExpress
from recipe.aem.composition import compose
from recipe.aem.demo.tiny_model import build_tokenizer

STUDY = Path(__file__).parents[2] / "studies" / "coin"
try:
    find_java("TextWorldExpress")
except JavaError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("coin_warm_start", STUDY / "warm_start.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COIN", str(tmp_path_factory.mktemp("coin")))
        yield compose(str(STUDY / "config.yaml"), ["method=aem"])


@pytest.fixture(scope="module")
def game(config):
    benchmark = config.actor_rollout_ref.rollout.custom.benchmark
    game = TextWorldExpress(benchmark.game, dict(benchmark.parameters))
    yield game
    game.simulator().close()


@pytest.fixture(scope="module")
def settings(config):
    episode = dict(config.actor_rollout_ref.rollout.custom.episode)
    return EpisodeSettings.from_config(episode)


def test_the_trainer_takes_the_configuration(config):
    validate_config(config, need_reference_policy(config), need_critic(config))
    assert config.algorithm.adv_estimator == "aem"


def test_waste_costs_the_walker_coins(module, game, settings):
    def won(waste):
        walk, found = module.walker(waste, seed=0), []
        for task in game.task_set.tasks("train")[:40]:
            episode = Episode(game.make(), settings)
            episode.reset(task)
            while not episode.done:
                episode.step(f"<action>{walk(episode, task)}</action>")
            found.append(episode.won)
            assert all(turn.action.valid for turn in episode.turns)
        return statistics.mean(found)

    assert won(0.0) > won(0.6) + 0.1


def test_a_prompt_shows_what_decides_and_fits(module, game, settings, config):
    walk, longest = module.walker(0.5, seed=0), 0
    prompts = []
    for task in game.task_set.tasks("dev")[:30]:
        episode = Episode(game.make(), settings)
        episode.reset(task)
        while not episode.done:
            prompts.append(episode.prompt())
            shown = prompts[-1].splitlines()
            past = [f"<action>{turn.action.text}</action>" for turn in episode.turns[-3:]]
            assert shown[: len(past)] == past
            assert ("coin" in shown) == ("take coin" in episode.observation.actions)
            episode.step(f"<action>{walk(episode, task)}</action>")
    tokenizer = build_tokenizer(prompts, module.ACTIONS, markup=("<action>", "</action>"))
    for prompt in prompts:
        chat = [{"role": "user", "content": prompt}]
        longest = max(longest, len(tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]))
    assert longest < config.data.max_prompt_length / 2
    response = tokenizer("<action>open door to north</action>", add_special_tokens=False)["input_ids"]
    assert len(response) == 3, "an action is one token"
    assert tokenizer.decode(response) == "<action>open door to north</action>"
