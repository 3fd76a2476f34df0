"""The study's task with long responses: the markets, who is imitated, how long the responses are, the configurations.

Not covered: how well the clones play (studies/market/calibration.md).
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="verl is not installed")

import replica
from replica_parts import training
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config

from agent_loops.check_environment import check_benchmark
from agent_loops.episode import Episode, EpisodeSettings
from agent_loops.errors import InputError
from recipe.aem.tools.demo.tiny_model import build_tokenizer
from recipe.aem.tools.hydra_config import compose
from recipe.aem.tools.study.cells import cells
from recipe.aem.tools.study.file import read_study
from studies.market import warm_start
from studies.market.market import GOODS, HIDDEN, SHELVES, STALLS, WAIT, Market, Page

ROOT = Path(__file__).parents[2]
DIGITS = set("123456789")
LENGTHS = {0: 12, 4: 36, 15: 102}
"""Tokens of a response with its end, by goods a stall."""


def cheapest(page):
    return min(zip([of[0] for of in page.stalls], STALLS, strict=True))[1]


def test_the_benchmark_keeps_its_promises():
    assert check_benchmark(Market(goods=4)) == []
    with pytest.raises(InputError, match="goods=31: expected 0 to 30"):
        Market(goods=31)
    with pytest.raises(InputError, match=r"fog=1\.5"):
        Market(fog=1.5)


@pytest.mark.parametrize("wrong_at", [None, 0, 2])
def test_who_buys_at_the_cheapest_stall_each_time_has_won(wrong_at):
    for task in range(20):
        walk = Market(goods=2).make()
        walk.reset(task)
        for market in range(3):
            right = cheapest(walk.page)
            step = walk.step(next(stall for stall in STALLS if (stall == right) == (market != wrong_at)))
            assert step.terminated == (market == 2)
        assert step.info["won"] == (wrong_at is None) and step.info["score"] == pytest.approx(
            1 - (wrong_at is not None) / 3
        )


def test_fog_stays_until_the_agent_waits():
    hidden = []
    for task in range(300):
        walk = Market(goods=15, fog=0.5).make()
        seen = [walk.reset(task).info["page"], *(walk.step("a").observation.info["page"] for _ in range(2))]
        assert "fog clear" not in " ".join(seen)
        hidden.append(seen)
        walk.reset(task)
        before = walk.page
        assert walk.step(WAIT).observation.text == str(before), "the same market, in the clear"
        assert HIDDEN not in walk.step("b").observation.text
    shares = [sum(seen[market] == "fog" for seen in hidden) / len(hidden) for market in range(3)]
    assert shares == pytest.approx([0.5, 0.75, 0.875], abs=0.09)


def test_what_is_chosen_decides_what_comes_and_nothing_else_does():
    def page(task, *actions):
        walk = Market(goods=4, fog=0).make()
        walk.reset(task)
        for action in actions:
            walk.step(action)
        return str(walk.page)

    assert page(1, "a") == page(1, "a") != page(1, "b") != page(2, "b")
    assert page(1, "a", WAIT) == page(1, "a")
    prices = [part for part in page(1).split() if part in DIGITS]
    assert len(set(prices)) == 3


@pytest.mark.parametrize("goods", LENGTHS)
def test_the_same_decisions_take_so_many_tokens(goods):
    words = (*GOODS, *STALLS, WAIT, HIDDEN, *warm_start.WRONG, *map(str, SHELVES))
    tokenizer = build_tokenizer([" ".join(words)], "123456789", markup=warm_start.MARKUP)
    shown = warm_start.demonstrations(Market(goods=goods), range(1000, 1020), seed=0)
    for one in shown:  # "wait" without a blank before it is two tokens
        length = len(tokenizer(one.response)["input_ids"]) + 1 - (WAIT in one.response)
        assert length == LENGTHS[goods]
    # a page has the same places whether or not there is fog, the stalls' names included
    assert len({len(tokenizer(one.prompt)["input_ids"]) for one in shown}) == 1


def test_what_is_bought_follows_from_what_was_written():
    for one in warm_start.demonstrations(Market(goods=1), range(1000, 1200), seed=1):
        *notes, action = one.response.split()
        action = action.removeprefix("<action>").removesuffix("</action>")
        assert notes[0] in warm_start.WRONG
        written = Page(tuple((notes[4 * at + 2], notes[4 * at + 4]) for at in range(3)))
        assert str(written) == " ".join(notes[1:]) and HIDDEN not in notes
        # of equal prices the first
        assert action in (WAIT, cheapest(written))


def test_how_much_is_wrong():
    page = Market(goods=15).make()
    page.reset(3)
    shown = Page(tuple((HIDDEN, *of[1:]) for of in page.page.stalls))
    chance = random.Random(0)
    for wrong in (0.0, 0.4):
        pairs = [
            (item, other)
            for _ in range(200)
            for of, notes in zip(shown.stalls, warm_start.written(shown, wrong, chance).stalls, strict=True)
            for item, other in zip(of, notes, strict=True)
        ]
        assert all(other in DIGITS for item, other in pairs if item == HIDDEN)
        seen = [item != other for item, other in pairs if item != HIDDEN]
        # one of sixteen goods that are made up is right
        assert sum(seen) / len(seen) == pytest.approx(wrong * 15 / 16, abs=0.02)


@pytest.mark.parametrize("study", ["market", "market_rates"])
def test_the_replica_takes_every_cell(study, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = cells(read_study(ROOT / "studies" / f"{study}.yaml"), Path("unused"))
    first = [cell for cell in found if cell.seed == found[0].seed]
    assert len(first) == 3 * {"market": 12, "market_rates": 6}[study]
    for cell in first:
        # the rates are not known before studies/market_rates.yaml has run
        for name, value in {"RATE_GRPO": "1e-4", "RATE_AEM": "1e-4", **cell.env}.items():
            monkeypatch.setenv(name, value)
        config = compose(cell.config, cell.asked)
        training.check(config)
        rollout_of, actor = config.actor_rollout_ref.rollout, config.actor_rollout_ref.actor
        assert config.data.train_batch_size * rollout_of.n == 64
        assert actor.ppo_mini_batch_size * rollout_of.n == 128
        assert config.data.max_response_length > LENGTHS[int(os.environ["GOODS"])]
        played = EpisodeSettings.from_config(rollout_of.custom.episode)
        assert Path(played.prompt).resolve() == Path(warm_start.SETTINGS.prompt)
        assert (played.max_turns, played.history_length) == (
            warm_start.SETTINGS.max_turns,
            warm_start.SETTINGS.history_length,
        )
        if not {"alpha_of_kind", replica.ENTROPY_CURVE} & set(config.algorithm):
            validate_config(config, need_reference_policy(config), need_critic(config))


def test_an_episode_can_be_played_by_its_configuration():
    episode = Episode(Market(goods=4).make(), warm_start.SETTINGS)
    episode.reset(0)
    assert episode.prompt().split()[0] == "a"
    turn = episode.step(f"slowly {episode.environment.page} <action>{cheapest(episode.environment.page)}</action>")
    assert turn.action.valid and turn.kind in ("fog", "clear") and not episode.done
