"""The study's first task: the demo's shop, with a model cloned from a shopper who is in more of a hurry.

python studies/shop/warm_start.py outputs/shop
python studies/shop/warm_start.py outputs/shop --anew [--seed 0] [--shopper demo]

The demo's shopper leaves so much success that GRPO has most of what can be had after ten steps. This one hardly ever
wins: reward is rare at first, and most groups of rollouts have none. `--shopper demo` imitates the demo's instead, for
short runs.

The clone is kept in `studies/shop/warm_start`, for the same cloning gives other weights on another processor: rounding
differs, and hundreds of steps make that grow. `--anew` clones again.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from agent_loops.dataset import write_parquet
from recipe.aem.tools.demo.cloning import clone, demonstrate
from recipe.aem.tools.demo.play import play
from recipe.aem.tools.demo.shopping import SETTINGS, careful_policy, hurried_policy, open_shop
from recipe.aem.tools.demo.tiny_model import build_model, build_tokenizer, save
from recipe.aem.tools.demo.warm_start import CLONING_STEPS, shown_phrases

SHOPPERS = {"hurried": {"first_hit": 0.885, "early_buy": 0.93}, "demo": {"first_hit": 0.5, "early_buy": 0.7}}
KEPT = Path(__file__).with_name("warm_start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="with --anew")
    parser.add_argument("--anew", action="store_true", help="clone anew")
    parser.add_argument("--shopper", choices=SHOPPERS, default="hurried", help="with --anew")
    options = parser.parse_args()
    if (options.seed or options.shopper != "hurried") and not options.anew:
        parser.error("the clone that is kept is of the hurried shopper, with seed 0; give --anew, too")
    torch.set_num_threads(1)

    shop = open_shop(options.directory / "shop")
    write_parquet(shop, options.directory / "tasks")
    if not options.anew:
        shutil.copytree(KEPT, options.directory / "warm_start", dirs_exist_ok=True)
        return
    train = shop.task_set.tasks("train")
    careful = [turn for turns in demonstrate(shop, train, SETTINGS, careful_policy(shop)) for turn in turns]
    shopper = SHOPPERS[options.shopper]
    policy = hurried_policy(shop, options.seed, **shopper)
    hurried = [turn for turns in demonstrate(shop, train, SETTINGS, policy) for turn in turns]
    # include the careful policy's words, which sees more pages: the tokenizer must not limit what can be learned
    tokenizer = build_tokenizer(
        [text for one in careful for text in (one.prompt, one.response)], shown_phrases(shop, train)
    )
    model = build_model(tokenizer, seed=options.seed)
    clone(model, tokenizer, hurried, steps=CLONING_STEPS, seed=options.seed)
    episodes = play(model, tokenizer, shop, list(shop.task_set.tasks("validation"))[:256], SETTINGS, seed=options.seed)
    facts = {
        **{"seed": options.seed, **shopper},
        "cloning_steps": CLONING_STEPS,
        "success_at_temperature_1": sum(episode.won for episode in episodes) / len(episodes),
        "turns_an_episode": sum(len(one.turns) for one in episodes) / len(episodes),
    }
    save(model, tokenizer, options.directory / "warm_start", facts)
    print(facts)


if __name__ == "__main__":
    main()
