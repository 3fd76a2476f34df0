"""Faults in data and actions, and that nothing grows with the number of episodes."""

import gc
import json
import time
import tracemalloc
from pathlib import Path

import pytest

from agent_loops.webshop import Catalogue, CatalogueError, Oracle, WebShop, WebShopEnvironment, load_catalogue
from agent_loops.webshop.generate import ATTRIBUTES_FILE, GOALS_FILE, ITEMS_FILE, generate_catalogue


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return generate_catalogue(tmp_path, n_titles=10, variants=2, n_goals=60)


@pytest.mark.parametrize("name", [ITEMS_FILE, ATTRIBUTES_FILE, GOALS_FILE])
@pytest.mark.parametrize("damage", ['"', "\x00", "}}"])
def test_a_corrupt_line_is_named(directory: Path, name: str, damage: str) -> None:
    lines = (directory / name).read_text().splitlines()
    middle = next(number for number in range(len(lines) // 2, len(lines)) if '": ' in lines[number])
    lines[middle] = lines[middle].replace('": ', f'" {damage}: ', 1)
    (directory / name).write_text("\n".join(lines))
    with pytest.raises(CatalogueError, match=rf"{name}, line {middle + 1}: not valid JSON .*, in entry \d+"):
        load_catalogue(directory)


def test_a_record_of_the_wrong_kind_is_named_by_line(directory: Path) -> None:
    path = directory / ITEMS_FILE
    items = [json.dumps(item) for item in json.loads(path.read_text())]
    items[6] = json.dumps({**json.loads(items[6]), "customization_options": [1]})
    path.write_text("[" + ",\n".join(items) + "]")
    with pytest.raises(CatalogueError, match=rf"{ITEMS_FILE}, product 6 \(line 7\) \(B0\w+\) is malformed"):
        load_catalogue(directory)
    items[6] = json.dumps({**json.loads(items[6]), "asin": 7})
    path.write_text("[" + ",\n".join(items) + "]")
    with pytest.raises(CatalogueError, match=r"product 6 \(line 7\) is malformed: its asin is 7, not a text"):
        load_catalogue(directory)


def test_attributes_of_the_wrong_kind_are_named_by_line(directory: Path) -> None:
    path = directory / ATTRIBUTES_FILE
    facts = json.loads(path.read_text())
    asin = list(facts)[2]
    facts[asin] = ["slim"]
    path.write_text(json.dumps(facts).replace('}, "', '},\n"'))
    with pytest.raises(CatalogueError, match=rf"{ATTRIBUTES_FILE}, line 3, {asin}: expected a JSON object, not list"):
        load_catalogue(directory)


def test_frozen_goals_may_list_values_without_names(directory: Path) -> None:
    path = directory / GOALS_FILE
    goals = json.loads(path.read_text())
    goals[0]["goal_options"] = ["red", "large"]
    path.write_text(json.dumps(goals))
    assert load_catalogue(directory).goals[0].options == ("red", "large")


def test_a_file_cut_short_is_refused(directory: Path) -> None:
    path = directory / ITEMS_FILE
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(CatalogueError, match=rf"{ITEMS_FILE}, line \d+: not valid JSON"):
        load_catalogue(directory)


def test_prices_are_read_as_the_benchmark_reads_them(directory: Path) -> None:
    path = directory / ITEMS_FILE
    items = json.loads(path.read_text())
    for item, text in zip(items, ("$1,010.50 - $2,000 off", "from $9.99", "about 7"), strict=False):
        item["pricing"] = text
    path.write_text(json.dumps(items))
    shown = [product.price_text for product in load_catalogue(directory).products[:3]]
    assert shown == ["$1010.5 to $2000.0", "$9.99", "$100.0"]


def test_a_goal_without_its_product_is_a_fault_of_its_own_episodes_only(directory: Path) -> None:
    path = directory / GOALS_FILE
    goals = json.loads(path.read_text())
    goals[3]["asin"] = "B0MISSING0"
    path.write_text(json.dumps(goals))
    environment = WebShop(directory, n_validation=5).make()
    with pytest.raises(CatalogueError, match="goal 3 is for product 'B0MISSING0', which the catalogue lacks"):
        environment.reset(3)
    assert environment.reset(4).info["instruction"] == goals[4]["instruction_text"]


def test_two_episodes_of_one_goal_step_by_step(generated: Catalogue) -> None:
    """One plays to the end while the other walks elsewhere: neither sees anything of the other."""
    oracle = Oracle(generated)
    winner, walker = WebShopEnvironment(generated), WebShopEnvironment(generated)
    alone = WebShopEnvironment(generated)
    seen, history = winner.reset(11), []
    assert walker.reset(11) == alone.reset(11) == seen
    walk = ["search[oak]", "click[next >]", "click[< prev]", "click[back to search]", "search[lamp]", "click[next >]"]
    for action in walk:
        history.append(oracle.act(11, seen, history))
        step = winner.step(history[-1])
        seen = step.observation
        assert walker.step(action) == alone.step(action)
        if step.terminated:
            break
    assert step.info == {"score": 1.0, "won": True}
    assert walker.step("click[back to search]").info == {"score": 0.0, "won": False}


HUGE = 100_000


@pytest.mark.parametrize(
    "action",
    [
        "search[" + "steel lamp " * (HUGE // 11) + "]",
        "search[" + "x" * HUGE + "]",
        "search[" + "\u6f22\u5b57" * (HUGE // 2) + "]",
        "search[" + " ".join(map(str, range(HUGE // 6))) + "]",
        "search[" + "a\u0301\u200d" * (HUGE // 3) + "]",
        "search[" + "\x00\x1b[31m\x07\u202e" * (HUGE // 8) + "]",
        "click[" + "\u7ea2\u8272" * (HUGE // 2) + "]",
        "[]" * (HUGE // 2),
    ],
    ids=range(8),
)
def test_an_action_of_100_kilobytes_is_one_step(generated: Catalogue, action: str) -> None:
    environment = WebShopEnvironment(generated)
    environment.reset(0)
    started = time.process_time()
    step = environment.step(action)
    assert time.process_time() - started < 30  # this process's own work: a tenth of a second
    assert (step.reward, step.terminated, step.info["won"]) == (0.0, False, False)
    assert len(step.observation.text) < 5000  # nothing of it comes back
    assert environment.step("search[lamp]").observation.info["page"] == "results"


@pytest.mark.parametrize(
    "junk", ["\x00", "\x1b[2J", "\u202e", "\u6728\u306e\u30e9\u30f3\u30d7", "\u7ea2\u8272", "\x7f"]
)
def test_control_characters_and_other_scripts_do_not_hide_the_words(generated: Catalogue, junk: str) -> None:
    environment = WebShopEnvironment(generated)
    environment.reset(0)
    plain = environment.step("search[steel lamp]").observation
    assert environment.step(f"search[{junk} steel {junk} lamp]").observation.info["page"] == "results"
    if not junk.isalnum() and "[" not in junk:
        assert environment.step(f"search[{junk} steel {junk} lamp]").observation == plain
    before = environment.step("search[steel lamp]").observation
    assert environment.step(f"click[{junk}]").observation == before
    assert environment.step(f"click[{before.info['clickables'][-1]}{junk}]").observation == before


def test_memory_does_not_grow_with_finished_episodes(generated: Catalogue) -> None:
    environment, oracle = WebShopEnvironment(generated), Oracle(generated)
    goals = range(0, 4000, 40)
    played = {}
    for goal in goals:
        observation, history = environment.reset(goal), []
        while len(history) < 15:
            history.append(oracle.act(goal, observation, history))
            step = environment.step(history[-1])
            observation = step.observation
            if step.terminated:
                break
        assert step.terminated
        played[goal] = history

    def play(episodes: int) -> None:
        for number in range(episodes):
            goal = goals[number % len(goals)]
            one = WebShopEnvironment(generated)
            one.reset(goal)
            actions = played[goal] if number % 10 == 0 else played[goal][: number % 3 == 0]  # most are cut short
            for action in actions:
                one.step(action)
            if number % 2:  # half are closed, half simply dropped
                one.close()

    play(200)
    gc.collect()
    tracemalloc.start()
    try:
        play(100)
        before, _ = tracemalloc.get_traced_memory()
        play(10_000)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 50_000  # five bytes an episode
