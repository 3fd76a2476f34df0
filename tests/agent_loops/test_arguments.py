"""Every argument of every benchmark with values of another type: each error is one line that names the argument.

Not covered: invalid values of the right type, which the benchmarks' own tests cover.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from agent_loops import arguments
from agent_loops.alfworld import Alfworld, AlfworldTasks
from agent_loops.scienceworld import ScienceWorld
from agent_loops.swe.benchmark import Swe
from agent_loops.swe.sandbox import SandboxSettings
from agent_loops.textworld_express import TextWorldExpress
from agent_loops.webshop import WebShop
from agent_loops.webshop.generate import generate_catalogue

STRANGE = {
    "null": None,
    "a number": 7,
    "a fraction": 0.5,
    "a truth value": True,
    "a text": "a=1",
    "an empty text": "",
    "a list of numbers": [0, 1],
    "a list": [],
    "a list of lists": [["a"]],
    "a mapping": {"a": 1},
    "a mapping from numbers": {0: "a"},
}
TEXT = {"a text"}
NUMBER = {"a number", "a fraction"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    return generate_catalogue(tmp_path_factory.mktemp("shop"), n_titles=5, n_goals=20)


@pytest.fixture
def games(tmp_path) -> Path:
    (tmp_path / "json_2.1.1" / "train").mkdir(parents=True)
    return tmp_path


def refused(make, good: dict, allowed: dict) -> None:
    """`make` takes `good`; with any of its arguments strange it names that one, but for what is allowed."""
    named = set(inspect.signature(make).parameters) - {"self"}
    assert named == set(allowed), "an argument that this test does not know"
    for setting, kinds in allowed.items():
        for kind, value in STRANGE.items():
            if kind in kinds:
                continue
            with pytest.raises(ValueError, match=rf"^(sandbox\.)?{setting}\b") as error:
                make(**{**good, setting: value})
                pytest.fail(f"{setting}: {kind} was taken")
            assert len(str(error.value).splitlines()) == 1


def test_webshop(shop):
    refused(
        WebShop,
        {"data_dir": shop, "n_validation": 5},
        {"data_dir": TEXT, "n_validation": {"a number"}, "goals": set(), "cache": {"null", *TEXT}},
    )


def test_alfworld(games):
    refused(Alfworld, {"data_dir": games}, {"data_dir": TEXT, "kinds": {"a text", "an empty text", "a list"}})
    refused(AlfworldTasks, {"games": {}}, {"games": set(STRANGE), "kinds": {"a list"}})


def test_scienceworld():
    switch, empty = {"a truth value"}, {"an empty text"}
    refused(
        ScienceWorld,
        {},
        {
            **{"tasks": {"null"}, "simplifications": empty, "valid_actions": switch, "show_state": switch},
            **{"max_steps": {"a number"}, "heap": set()},
        },
    )


def test_textworld_express():
    refused(
        TextWorldExpress,
        {},
        {"game": set(), "parameters": {"null", "a mapping"}, "max_steps": {"a number"}, "heap": set()},
    )
    with pytest.raises(
        ValueError, match=r"^parameters\.numLocations='3': expected a whole number \(1 for yes, 0 for no\)$"
    ):
        TextWorldExpress(parameters={"numLocations": "3"})  # pyright: ignore[reportArgumentType]


def test_swe(tmp_path):
    good = {"tasks": tmp_path, "observation_characters": 1000, "statement_characters": 100}
    allowed = {
        "tasks": TEXT,
        "validation": {"null", *TEXT},
        **{"held_out": NUMBER, "by": set(STRANGE)},  # looked at once the tasks are read
        "sandbox": {"null"},
        **{"command_seconds": {"a number"}, "reward_seconds": {"a number"}, "slots": {"null", "a number"}},
        **{"observation_characters": set(), "statement_characters": set()},
    }
    assert set(inspect.signature(Swe).parameters) == set(allowed)
    for setting in ("tasks", "validation", "sandbox", "command_seconds", "observation_characters"):
        for kind, value in STRANGE.items():
            if kind in allowed[setting]:
                continue
            with pytest.raises(ValueError, match=rf"^{setting}[=.]"):
                Swe(**{**good, setting: value})
                pytest.fail(f"{setting}: {kind} was taken")


def test_a_sandbox():
    counts = ("memory_mb", "processes", "file_mb", "tree_mb", "files", "output_kb", "open_files")
    refused(
        SandboxSettings,
        {},
        {
            "backend": set(STRANGE),  # looked at when it is opened
            **{"unconfined": {"a truth value"}, "tree": set(), "python": {"null", "a text", "an empty text"}},
            **{count: {"a number"} for count in counts},
            **{"env": set(), "options": {"a mapping"}, "cgroup": {"null", "a text", "an empty text"}},
            **{listed: {"a list"} for listed in ("readable", "hidden", "packages")},
        },
    )
    with pytest.raises(ValueError, match=r"^sandbox\.env\.DEBUG=1: expected a text, so put it in quotes$"):
        SandboxSettings(env={"DEBUG": 1})  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        ValueError, match=r"^sandbox\.memory is not a setting; there are backend, unconfined, .*memory_mb"
    ):
        Swe("tasks.jsonl", sandbox={"memory": 3})


def test_gymnasium():
    pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'verl-aem[gymnasium]'")
    from agent_loops.adapters import GymnasiumBenchmark

    allowed = {
        **{"env_id": set(STRANGE), "factory": {"null"}, "env_kwargs": {"null", "a mapping"}},
        **{"train": {"a number"}, "validation": {"a number"}, "options": {"null", "a mapping"}, "keys": {"null"}},
        **{"winning_reward": {"null", *NUMBER}, "thread_safe": {"a truth value"}, "name": {"null", *TEXT}},
    }
    refused(GymnasiumBenchmark, {"factory": "tests.helpers.digit_gym:Digit"}, allowed)
    refused(lambda env_id: GymnasiumBenchmark(env_id), {}, {"env_id": {"null"}})
    with pytest.raises(
        ValueError, match=r"^factory='.*digit_gym:Digits': .*no attribute 'Digits'; expected module:func"
    ):
        GymnasiumBenchmark(factory="tests.helpers.digit_gym:Digits")
    with pytest.raises(ValueError, match=r"^factory='no_such_module:Digit': No module named 'no_such_module'"):
        GymnasiumBenchmark(factory="no_such_module:Digit")
    with pytest.raises(ValueError, match=r"^factory='.*digit_gym:LETTERS' is a str: expected module:function"):
        GymnasiumBenchmark(factory="tests.helpers.digit_gym:LETTERS")
    with pytest.raises(ValueError, match=r"^factory='.*digit_gym:Digit' with env_kwargs=.* makes no env.*'levels'"):
        GymnasiumBenchmark(factory="tests.helpers.digit_gym:Digit", env_kwargs={"levels": 3})
    with pytest.raises(ValueError, match=r"^env_id='Nothing-v7' makes no environment: NameNotFound: "):
        GymnasiumBenchmark("Nothing-v7")


def test_openenv():
    pytest.importorskip("openenv", reason="openenv is not installed: pip install 'verl-aem[openenv]'")
    from agent_loops.adapters import OpenEnvBenchmark, OpenEnvError

    good = {"base_url": "http://127.0.0.1:1", "connect_seconds": 0.5}
    with pytest.raises(OpenEnvError, match="no OpenEnv server answers"):
        OpenEnvBenchmark(**good)
    with_server = {"a text"}  # then the server is asked
    refused(
        OpenEnvBenchmark,
        good,
        {
            **{
                "base_url": with_server,
                "action_field": with_server,
                "observation_field": with_server,
                "name": with_server,
            },
            **{"action_defaults": {"null", "a mapping"}, "options": {"null", "a mapping"}, "keys": {"null"}},
            **{"train": {"a number"}, "validation": {"a number"}, "winning_reward": {"null", *NUMBER}},
            **{"connect_seconds": NUMBER, "message_seconds": NUMBER},
        },
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "1", None, True])
def test_a_number_is_finite(value):
    with pytest.raises(ValueError, match=r"held_out=.*: expected a number"):
        arguments.number("held_out", value)


def test_a_long_value_is_shown_in_part():
    with pytest.raises(ValueError) as error:
        arguments.whole("max_steps", ["many\nlines"] * 100)
    assert len(str(error.value)) < 200 and len(str(error.value).splitlines()) == 1
