"""The benchmarks' published protocols, as the shipped configurations follow them."""

from __future__ import annotations

import inspect
from dataclasses import asdict

import pytest
from omegaconf import OmegaConf

pytest.importorskip("verl", reason="verl is not installed")

import hydra

import verl_aem

verl_aem.load()

from verl.trainer.ppo import core_algos  # noqa: E402
from verl.trainer.ppo.utils import need_critic, need_reference_policy  # noqa: E402
from verl.utils.config import validate_config  # noqa: E402

from recipe.aem.seam.checks import check_config  # noqa: E402
from tests.helpers.configs import compose  # noqa: E402

# name: turns, prompt tokens, rows of a mini-batch, characters executed without tags
PROTOCOLS = {
    "webshop_7b": (15, 4096, 64, 20),
    "webshop_1.5b": (15, 4096, 64, 20),
    "alfworld_7b": (50, 2048, 256, 30),
    "alfworld_1.5b": (50, 2048, 256, 30),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_verl_agents_protocol_is_followed(name):
    turns, prompt, rows, fallback = PROTOCOLS[name]
    config = compose(name)
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert actor.optim.lr == 1e-6 and actor.optim.lr_scheduler_type == "constant"
    assert actor.optim.lr_warmup_steps in (-1, 0) and actor.optim.lr_warmup_steps_ratio == 0.0
    assert actor.ppo_mini_batch_size * rollout.n == rows  # verl multiplies (v1/trainer_base.py:1603)
    assert config.trainer.total_training_steps == 150
    assert (config.data.max_prompt_length, config.data.max_response_length) == (prompt, 512)
    assert (rollout.prompt_length, rollout.response_length) == (prompt, 512)
    assert rollout.max_model_len >= prompt + 512
    episode = rollout.custom.episode
    assert (episode.max_turns, episode.fallback_characters) == (turns, fallback)
    what_every_protocol_has(config)


def what_every_protocol_has(config):
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert (config.data.train_batch_size, rollout.n) == (16, 8)
    assert actor.ppo_epochs == 1
    assert (actor.use_kl_loss, actor.kl_loss_coef, actor.kl_loss_type) == (True, 0.01, "low_var_kl")
    assert not config.algorithm.use_kl_in_reward and config.algorithm.gamma == 0.95
    assert (actor.clip_ratio, actor.clip_ratio_low, actor.clip_ratio_high, actor.clip_ratio_c) == (0.2, 0.2, 0.2, 3.0)
    assert actor.entropy_coeff == 0
    assert (rollout.temperature, rollout.top_p, rollout.top_k) == (1.0, 1, -1)
    validation = rollout.val_kwargs
    assert (validation.temperature, validation.do_sample, validation.n) == (0.4, True, 1)
    assert config.data.val_max_samples == 128 and config.trainer.test_freq == 5 and config.trainer.val_before_train
    assert config.data.seed == 0
    episode = rollout.custom.episode
    assert (episode.history_length, episode.invalid_penalty, episode.require_think) == (2, 0.1, True)
    assert (episode.won_reward, episode.lost_reward) == (10.0, 0.0)


def test_alfworld_plays_every_type_of_task():
    from agent_loops.alfworld import KINDS

    assert tuple(compose("alfworld_7b").actor_rollout_ref.rollout.custom.benchmark.kinds) == KINDS


def test_webshops_history_and_goals():
    custom = compose("webshop_7b").actor_rollout_ref.rollout.custom
    assert custom.episode.max_prompt_characters == 13000 and custom.benchmark.n_validation == 500


def test_scienceworld_follows_epos_paper():
    config = compose("scienceworld_7b")
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    optim = actor.optim
    assert (optim.lr, optim.lr_scheduler_type, optim.lr_warmup_steps_ratio) == (5e-6, "cosine", 0.1)
    assert (optim.min_lr_ratio, config.trainer.total_training_steps) == (0.2, 125)
    assert (config.data.max_prompt_length, config.data.max_response_length) == (2048, 512)
    assert rollout.max_model_len >= 2560 and rollout.custom.episode.max_turns == 30
    assert OmegaConf.to_container(rollout.custom.benchmark) == {
        "target": "agent_loops.scienceworld.ScienceWorld",
        **{"tasks": None, "simplifications": "easy", "heap": "1g"},
        **{"valid_actions": False, "show_state": False, "max_steps": 1000},
    }
    what_every_protocol_has(config)


# protocol: prompts, prompt and response tokens, rows of a mini-batch, warm-up, steps, turns, layout, invalid penalty
SEARCH = {
    "search_verl_agent": (256, 4096, 512, 520, 0.1, None, 4, "turns", 0.01),
    "search_r1": (512, 2048, 2816, 320, 0.285, 1005, 3, "transcript", 0.0),
}


@pytest.mark.filterwarnings("ignore:Disabled critic")
@pytest.mark.parametrize("name", ["search_7b", "search_3b"])
@pytest.mark.parametrize("protocol", SEARCH)
def test_search_follows_its_published_protocols(name, protocol):
    from agent_loops.episode import EpisodeSettings

    config = compose(name, f"protocol={protocol}")
    assert protocol != "search_verl_agent" or config == compose(name), "the default"
    validate_config(config, need_reference_policy(config), need_critic(config))
    data, actor, rollout = config.data, config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    prompts, prompt, response, rows, warm_up, steps, turns, layout, penalty = SEARCH[protocol]
    assert (data.train_batch_size, rollout.n, actor.ppo_mini_batch_size * rollout.n) == (prompts, 5, rows)
    assert (data.max_prompt_length, data.max_response_length) == (prompt, response)
    assert rollout.max_model_len == prompt + response <= actor.ppo_max_token_len_per_gpu and actor.use_dynamic_bsz
    assert (actor.optim.lr, actor.optim.lr_warmup_steps_ratio) == (1e-6, warm_up)
    assert (config.trainer.total_training_steps, config.trainer.test_freq) == (steps, 50)
    assert (actor.use_kl_loss, actor.kl_loss_coef, actor.kl_loss_type) == (True, 0.001, "low_var_kl")
    assert (rollout.temperature, actor.entropy_coeff, actor.clip_ratio) == (1.0, 0, 0.2)
    episode = EpisodeSettings.from_config(OmegaConf.to_container(rollout.custom.episode, resolve=True))
    assert (episode.max_turns, episode.layout, episode.invalid_penalty) == (turns, layout, penalty)
    # the format is one thing: template and reader
    format = protocol.removeprefix("search_") if protocol != "search_r1" else protocol
    assert episode.prompt == f"search/{format}" and episode.action_format == f"agent_loops.search.formats:{format}"
    assert episode.stop_strings == ("</search>", "</answer>") and episode.observation_tokens == 500
    assert (episode.won_reward, episode.lost_reward, episode.read_action) == (1.0, 0.0, "first")
    assert rollout.custom.benchmark.top_k == 3 and rollout.custom.benchmark.url is None
    if layout == "transcript":  # every turn has its room
        shown = episode.observation_tokens * (turns - 1)
        assert episode.turn_tokens is not None and turns * episode.turn_tokens + shown + 200 <= response
    # three attempts end before the loop gives a step up, and turns before the trajectory
    assert 3 * rollout.custom.benchmark.timeout < episode.step_seconds
    assert (episode.trajectory_seconds or 0) >= 120 * turns


def test_searches_are_of_a_server_where_one_is_named(monkeypatch):
    monkeypatch.setenv("SEARCH_URL", "http://localhost:8000/retrieve")
    assert compose("search_3b").actor_rollout_ref.rollout.custom.benchmark.url == "http://localhost:8000/retrieve"


def test_swe_follows_deepswe():
    config = compose("swe_32b")
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert config.actor_rollout_ref.model.path != "Qwen/Qwen3-32B", "AEM_MODEL has its way"
    assert (config.data.train_batch_size, rollout.n, actor.ppo_mini_batch_size, actor.ppo_epochs) == (8, 8, 8, 1)
    assert (actor.optim.lr, actor.optim.lr_scheduler_type) == (1e-6, "constant")
    assert (actor.clip_ratio_low, actor.clip_ratio_high) == (0.2, 0.28)
    assert not actor.use_kl_loss and not config.algorithm.use_kl_in_reward and actor.entropy_coeff == 0
    assert not need_reference_policy(config) and not need_critic(config)
    assert (config.data.max_prompt_length, config.data.max_response_length) == (4096, 32768)
    assert rollout.max_model_len == 4096 + 32768 and config.data.apply_chat_template_kwargs.enable_thinking
    assert (rollout.temperature, rollout.top_p, rollout.top_k) == (1.0, 1, -1)
    episode, benchmark = rollout.custom.episode, rollout.custom.benchmark
    assert (episode.layout, episode.action_format, episode.max_turns) == ("transcript", "function_calls", 50)
    assert (episode.trajectory_seconds, benchmark.command_seconds, benchmark.reward_seconds) == (5400, 90, 300)
    # the loop gives a call up later than the sandbox a command, or the grader the tests, and earlier than a trajectory
    assert benchmark.command_seconds + benchmark.reward_seconds < episode.step_seconds < episode.trajectory_seconds
    assert (episode.won_reward, episode.lost_reward, episode.invalid_penalty) == (1.0, 0.0, 0.0)
    assert not episode.require_think and episode.turn_tokens is None and not episode.conclude
    assert (benchmark.validation, benchmark.sandbox.backend, benchmark.sandbox.unconfined) == (
        None,
        "bubblewrap",
        False,
    )
    assert config.trainer.total_training_steps == 250


def test_swes_default_method_is_aem_over_grpopp():
    """Compact filtering, the leave-one-out baseline over trajectories, and a constant length normaliser."""
    default, plain = compose("swe_32b"), compose("swe_32b", "method=grpopp")
    assert default == compose("swe_32b", "method=aem_grpopp")
    assert (default.algorithm.adv_estimator, default.algorithm.aem.base_estimator) == ("aem", "rloo")
    assert plain.algorithm.adv_estimator == "rloo_trajectories"
    for config in (default, plain):
        actor = config.actor_rollout_ref.actor
        assert config.actor_rollout_ref.rollout.custom.episode.compact_filtering
        assert (actor.loss_agg_mode, actor.loss_scale_factor) == ("seq-mean-token-sum-norm", 32768)


def test_swe_rejects_groups_of_one_outcome_and_samples_two_for_one():
    """verl's replay buffer is credited two prompts for each rejected one; a bound of one batch would hold them back."""
    from verl.trainer.ppo.v1 import replay_buffer

    groups = compose("swe_32b").algorithm.filter_groups
    assert (groups.enable, groups.metric, groups.max_inflight_gen_batches) == (True, "reward", 2)
    assert "refill_credit += 2 * dapo_count" in inspect.getsource(replay_buffer.ReplayBuffer.sample)


def test_swes_knobs(monkeypatch):
    monkeypatch.setenv("SWE_VALIDATION", "/data/verified.parquet")
    monkeypatch.setenv("SWE_BACKEND", "docker")
    config = compose("swe_32b", "++actor_rollout_ref.rollout.custom.benchmark.sandbox.options.network=none")
    benchmark = OmegaConf.to_container(config.actor_rollout_ref.rollout.custom.benchmark, resolve=True)
    assert (benchmark["tasks"], benchmark["validation"]) == ("/data/swe", "/data/verified.parquet")
    assert benchmark["sandbox"]["backend"] == "docker" and benchmark["sandbox"]["options"] == {"network": "none"}
    assert (config.data.train_files, config.data.val_files) == (
        "/parquet/swe/train.parquet",
        "/parquet/swe/validation.parquet",
    )


def test_swes_settings_are_the_sandboxs():

    from agent_loops.swe.sandbox import SandboxSettings

    given = OmegaConf.to_container(compose("swe_32b").actor_rollout_ref.rollout.custom.benchmark.sandbox, resolve=True)
    settings = SandboxSettings(**given)
    assert set(given) == set(asdict(settings)) and settings == SandboxSettings(), "the file shows the defaults"


@pytest.mark.parametrize(
    ("name", "files", "splits"),
    [
        ("alfworld_7b", "/parquet/alfworld", ["valid_seen", "valid_unseen"]),
        ("scienceworld_7b", "/parquet/scienceworld", ["dev", "test"]),
        ("textworld_express_7b", "/parquet/textworld_express", ["dev", "test"]),
    ],
)
def test_one_override_chooses_the_split_to_validate_on(name, files, splits):
    for split, given in zip(splits, [(), (f"data.val_split={splits[1]}",)], strict=True):
        config = compose(name, *given)
        assert (config.data.train_files, config.data.val_files) == (
            f"{files}/train.parquet",
            f"{files}/{split}.parquet",
        )
        tasks = hydra.utils.get_object(f"{config.actor_rollout_ref.rollout.custom.benchmark.target}Tasks")
        assert split in tasks.splits


@pytest.mark.parametrize(
    ("name", "by_std"),
    [
        *[("webshop_7b", False), ("webshop_demo", False)],
        *[("alfworld_7b", True), ("scienceworld_7b", True), ("textworld_express_7b", True), ("swe_32b", True)],
        *[("search_7b", True), ("search_3b", True)],
    ],
)
@pytest.mark.parametrize("method", ["gigpo", "aem_gigpo", "hgpo", "aem_hgpo", "ecpo", "aem_ecpo"])
def test_a_base_of_turns_divides_by_std_where_the_benchmark_says_so(name, method, by_std):
    import verl

    config, base = compose(name, f"method={method}"), method.removeprefix("aem_")
    registered = set(core_algos.ADV_ESTIMATOR_REGISTRY)
    assert check_config(config, registered, verl.__version__).blocks[base].by_std is by_std
    # ScienceWorld's points before the end of a task sum to 100, TextWorldExpress's to 1, where the outcome is 10
    scaled = {"scienceworld_7b": 0.1, "textworld_express_7b": 10.0}
    assert config.algorithm[base].step_rewards == scaled.get(name, 1.0)
    if base == "gigpo":
        similarity = check_config(config, registered, verl.__version__).blocks["gigpo"].similarity
        assert similarity == (0.9 if name.startswith("search") else None)
    other = compose(name, f"method={method}", f"algorithm.{base}.by_std={not by_std}")  # it needs no plus
    assert check_config(other, registered, verl.__version__).blocks[base].by_std is not by_std
