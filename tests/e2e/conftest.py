"""The small world that the engine's tests train in, made once a session: a shop, its tasks, warm-started models."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("by_hand")  # so that a failed comparison there shows both sides

from engine import Run, main_ppo, run_engine, why_not  # noqa: E402

Train = Callable[..., Run]


@pytest.fixture(scope="session", autouse=True)
def _engine() -> None:
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="session")
def shop_data(folder: Path) -> Path:
    from agent_loops.webshop.generate import generate_catalogue

    # every option everywhere: a task is then a matter of choosing, and of turns
    return generate_catalogue(folder / "shop", colours_offered=5, sizes_offered=5)


@pytest.fixture(scope="session")
def shop_parquet(folder: Path, shop_data: Path) -> Path:
    from agent_loops.dataset import write_parquet
    from agent_loops.webshop import WebShop

    write_parquet(WebShop(shop_data, n_validation=500), folder / "tasks")
    return folder / "tasks"


@pytest.fixture(scope="session")
def shopper(folder: Path, shop_data: Path) -> Path:
    """A model that has seen a hundred episodes: it shops, but is not sure of itself, so entropies differ.

    A random one has the same entropy everywhere, and the guard would leave every α at 1.
    """
    import torch

    from agent_loops.episode import Episode
    from agent_loops.webshop import WebShop
    from recipe.aem.demo.cloning import clone, demonstrate
    from recipe.aem.demo.shopping import SETTINGS, careful_policy, hurried_policy, phrases
    from recipe.aem.demo.tiny_model import build_model, build_tokenizer, save

    torch.set_num_threads(2)
    shop = WebShop(shop_data, n_validation=500)
    careful, hurried = careful_policy(shop), hurried_policy(shop)
    tasks = random.Random(0).sample(shop.task_set.tasks("train"), 600)
    shown, texts = [], []
    for task in tasks:
        episode = Episode(shop.make(), SETTINGS)
        episode.reset(task)
        while not episode.done:
            action = f"<action>{careful(episode, task)}</action>"
            shown += phrases(episode.observation)
            texts += [episode.prompt(), action]
            episode.step(action)
    tokenizer = build_tokenizer(texts, shown)
    model = build_model(tokenizer)
    demonstrations = [turn for turns in demonstrate(shop, tasks[:100], SETTINGS, hurried) for turn in turns]
    clone(model, tokenizer, demonstrations, steps=250)
    # the real script's prompts are long; positions are rotary, so nothing was learned for a length
    model.config.max_position_embeddings = tokenizer.model_max_length = 8192
    save(model, tokenizer, folder / "shopper", {})
    return folder / "shopper"


@pytest.fixture(scope="session")
def train(folder: Path) -> Train:
    """`train(name, config, *overrides, env=…)`: one training with the probe in it."""

    def run(name: str, config: str, *overrides: str, env: dict[str, str] | None = None) -> Run:
        probe = "actor_rollout_ref.actor.policy_loss.loss_mode=aem_probe"
        return run_engine(name, folder, main_ppo(config, probe, *overrides), env or {})

    return run
