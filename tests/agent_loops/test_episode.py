"""Episode: the conversation around an environment. Not covered: tokens (test_loop.py) and real pages (webshop/)."""

import pytest
from guess import GuessBenchmark

from agent_loops.environment import Benchmark, Environment, TaskSet
from agent_loops.episode import Episode, EpisodeSettings, load_template


def play(settings: EpisodeSettings, responses: list[str], secret: int = 7) -> Episode:
    episode = Episode(GuessBenchmark().make(), settings)
    episode.reset({"secret": secret})
    for response in responses:
        episode.step(response)
    return episode


COMPACT = EpisodeSettings(prompt="webshop/compact", require_think=False, max_turns=4)


def test_the_example_follows_the_protocols():
    benchmark = GuessBenchmark()
    assert isinstance(benchmark, Benchmark) and isinstance(benchmark.task_set, TaskSet)
    assert isinstance(benchmark.make(), Environment)


def test_a_won_episode():
    episode = play(COMPACT, ["<action>guess[3]</action>", "<action>guess[7]</action>"])
    assert episode.done and episode.won and episode.score == 1.0 and episode.outcome_reward == 10.0
    assert [turn.reward for turn in episode.turns] == [0.0, 1.0]
    assert [turn.penalty for turn in episode.turns] == [0.0, 0.0]


def test_the_turn_limit_ends_an_episode_without_reward():
    episode = play(COMPACT, ["<action>guess[3]</action>"] * 4)
    assert episode.done and not episode.won and episode.outcome_reward == 0.0


def test_only_the_turn_that_broke_the_format_is_penalised():
    episode = play(COMPACT, ["guess 3", "<action>guess[4]</action>"])
    assert [turn.penalty for turn in episode.turns] == [-0.1, 0.0]
    assert [turn.action.valid for turn in episode.turns] == [False, True]


def test_the_prompt_shows_the_task_and_the_last_two_turns():
    episode = play(COMPACT, [f"<action>guess[{digit}]</action>" for digit in (1, 2, 3)])
    lines = episode.prompt().split("\n")
    assert lines[0] == "find the secret digit"
    assert lines[1:3] == ["<action>guess[2]</action>", "<action>guess[3]</action>"]
    assert lines[-1] == "higher"


def test_the_full_prompt_numbers_its_history():
    settings = EpisodeSettings(max_turns=9)
    first = play(settings, []).prompt()
    assert "taken" not in first and "find the secret digit" in first and "'guess[<digit>]'" in first
    later = play(settings, ["<action>guess[1]</action>"] * 3).prompt()
    assert "You have taken 3 of at most 9 steps." in later and "You are now at step 4." in later
    assert "[Observation 2: 'higher', Action 2: 'guess[1]']" in later
    assert "Observation 3: 'higher'" in later and "Observation 1:" not in later


def test_the_history_goes_before_a_prompt_grows_too_long():
    settings = EpisodeSettings(max_prompt_characters=900, max_turns=9)
    episode = play(settings, ["<action>" + "guess " * 200 + "</action>"] * 2)
    assert "Action 2" not in episode.prompt() and "find the secret digit" in episode.prompt()


def test_shorter_prompts_keep_the_task():
    episode = play(COMPACT, ["<action>guess[1]</action>"])
    assert "<action>" not in episode.prompt(shorter=1)
    assert episode.prompt(shorter=2).endswith("hig [...]") and "find the secret digit" in episode.prompt(shorter=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "rows"}, r"episode\.layout='rows': expected one of \['turns'\]"),
        ({"max_turns": 0}, r"episode\.max_turns=0: expected at least 1"),
        ({"max_turn": 3}, r"episode\.max_turn is not a setting; there are .*max_turns"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        EpisodeSettings.from_config(change)


def test_an_unknown_template_is_named():
    with pytest.raises(FileNotFoundError, match=r"episode\.prompt='webshop/none': no template none\.jinja"):
        load_template("webshop/none")
