"""verl's agent loop over any environment of this package, in the **turns** layout: one row a turn.

Settings come from `actor_rollout_ref.rollout.custom`, verl's free slot: `benchmark` (`target`, what makes an
`agent_loops.environment.Benchmark`, and its arguments; opened once a process) and `episode`
(`agent_loops.episode.EpisodeSettings`). The task comes from the dataset's `extra_info.task`. The loop's name in verl is
`environment`.

What each row carries in `extra_fields`, for the estimators and for analysis:

* `response_spans`: [[start, stop)] offsets into the response, one a response of the agent;
* `turn_index`, `turn_rewards`, `turn_penalties`, `turn_valid`: one entry a span; penalties are <= 0;
* `trajectory_id`: the row's trajectory; `anchor`: the raw observation the turn answered;
* `fault`: empty, or why the environment failed: then the whole trajectory is masked and its reward is 0;
* `reward_extra_info`: `acc` (success), `task_score`, `turns`, `invalid_turns`, `fault`, for verl's validation.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import threading
import time
from typing import Any
from uuid import uuid4

import hydra.utils
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register

from agent_loops.environment import Benchmark
from agent_loops.episode import Episode, EpisodeSettings, Turn
from agent_loops.pool import EnvironmentPool

logger = logging.getLogger(__name__)


_PROMPT_ATTEMPTS = 8


@register("environment")
class EnvironmentAgentLoop(AgentLoopBase):
    """Plays one episode and returns a row a turn. It never raises for a fault of the environment."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> list[AgentLoopOutput]:  # type: ignore[override]
        benchmark, pool, settings = await asyncio.to_thread(open_benchmark, self.rollout_config.custom)
        rows = _Rows(kwargs)
        metrics = {"generate_sequences": 0.0, "tool_calls": 0.0}
        episode = Episode(benchmark.make(), settings)
        try:
            fault = await self._play(episode, kwargs["extra_info"]["task"], pool, rows, sampling_params, metrics)
        finally:  # a cancelled episode ends here too
            _close_quietly(episode)
        if not rows.rows:
            rows.add_placeholder(await self.ct_build_initial_tokens(list(kwargs["raw_prompt"])), self._end_token())
        return rows.outputs(episode, fault, AgentLoopMetrics(num_preempted=-1, **metrics))

    async def _play(
        self,
        episode: Episode,
        task: Any,
        pool: EnvironmentPool,
        rows: _Rows,
        sampling_params: dict[str, Any],
        metrics: dict[str, float],
    ) -> str:
        """Play to the end; returns the environment's fault, or an empty string."""
        seconds = episode.settings.step_seconds
        try:
            await pool.call(seconds, episode.reset, task)
        except Exception as error:  # any fault of foreign code: reported in the row, never raised into verl
            return _describe(error, "reset")
        while not episode.done:
            # a prompt that cannot fit is for the user to mend, and so is not a fault: it raises
            prompt_ids = await self._prompt_ids(episode)
            started = time.perf_counter()
            output = await self.server_manager.generate(
                request_id=uuid4().hex, prompt_ids=prompt_ids, sampling_params=dict(sampling_params)
            )
            generated = time.perf_counter()
            response_ids = list(output.token_ids)[: self.rollout_config.response_length]
            response = self.tokenizer.decode(response_ids, skip_special_tokens=True)  # type: ignore[attr-defined]
            anchor = episode.observation.text if episode.observation is not None else ""
            turn, fault = None, ""
            try:
                turn = await pool.call(seconds, episode.step, response)
            except Exception as error:  # as above
                fault = _describe(error, f"turn {len(episode.turns)}")
            metrics["generate_sequences"] += generated - started
            metrics["tool_calls"] += time.perf_counter() - generated
            rows.add(prompt_ids, response_ids, output, turn, anchor)
            if fault:
                return fault
        return ""

    async def _prompt_ids(self, episode: Episode) -> list[int]:
        """The coming turn's prompt, made shorter until verl has nothing to cut: it would cut the task away."""
        ids: list[int] = []
        for shorter in range(_PROMPT_ATTEMPTS):
            ids = list(await self.ct_build_initial_tokens([{"role": "user", "content": episode.prompt(shorter)}]))
            if len(ids) < self.rollout_config.prompt_length:
                return ids
        raise ValueError(
            f"the prompt fills data.max_prompt_length={self.rollout_config.prompt_length} tokens even with the "
            f"observation cut to 1/{2 ** (_PROMPT_ATTEMPTS - 2)}; raise data.max_prompt_length or shorten the template"
        )

    def _end_token(self) -> int:
        return int(self.tokenizer.eos_token_id)  # type: ignore[attr-defined]


class _Rows:
    """The rows of one trajectory while it is played."""

    def __init__(self, kwargs: dict[str, Any]):
        self.rows: list[dict[str, Any]] = []
        self.trajectory_id = f"{kwargs.get('uid', '')}_{kwargs.get('session_id', 0)}"
        self.global_steps = int(kwargs.get("global_steps", -1))

    def add(self, prompt_ids: list[int], response_ids: list[int], output: Any, turn: Turn | None, anchor: str) -> None:
        log_probs = list(output.log_probs)[: len(response_ids)] if output.log_probs else None
        self._append(prompt_ids, response_ids, [1] * len(response_ids), log_probs, output.extra_fields, turn, anchor)

    def add_placeholder(self, prompt_ids: list[int], end_token: int) -> None:
        """A row for an episode that never began: one masked token."""
        steps = {"min_global_steps": self.global_steps, "max_global_steps": self.global_steps}
        self._append(prompt_ids, [end_token], [0], [0.0], steps, None, "")

    def _append(self, prompt_ids, response_ids, mask, log_probs, extra, turn, anchor) -> None:
        self.rows.append(
            {
                "prompt_ids": prompt_ids,
                "response_ids": response_ids,
                "response_mask": mask,
                "response_logprobs": log_probs,
                "extra_fields": {
                    **extra,
                    "response_spans": [[0, len(response_ids)]],
                    "turn_index": [len(self.rows)],
                    "turn_rewards": [turn.reward if turn else 0.0],
                    "turn_penalties": [turn.penalty if turn else 0.0],
                    "turn_valid": [turn.action.valid if turn else False],
                    "trajectory_id": self.trajectory_id,
                    "anchor": anchor,
                    # verl's own loops leave these two, and its dumps read them
                    "turn_scores": [],
                    "tool_rewards": [],
                },
            }
        )

    def outputs(self, episode: Episode, fault: str, metrics: AgentLoopMetrics) -> list[AgentLoopOutput]:
        reward = 0.0 if fault else episode.outcome_reward
        info = {
            "acc": float(episode.won and not fault),
            "task_score": 0.0 if fault else float(episode.score),
            "turns": float(len(self.rows)),
            "invalid_turns": float(sum(not row["extra_fields"]["turn_valid"][0] for row in self.rows)),
            "fault": float(bool(fault)),
        }
        if fault:
            logger.error("episode %s: %s", self.trajectory_id, fault)
        outputs = []
        for row in self.rows:
            row["extra_fields"].update(fault=fault, reward_extra_info=dict(info))
            if fault:
                row["response_mask"] = [0] * len(row["response_mask"])
            outputs.append(AgentLoopOutput(reward_score=reward, num_turns=2 * len(self.rows), metrics=metrics, **row))
        return outputs


_OPENING = threading.Lock()


def open_benchmark(custom: Any) -> tuple[Benchmark, EnvironmentPool, EpisodeSettings]:
    """What `actor_rollout_ref.rollout.custom` names, opened once a process: a loop object lives for one episode only.

    Raises whatever is wrong with the settings or the data: that is the user's to mend, not a fault of an episode. The
    trainer calls it once before it starts anything.
    """
    settings = OmegaConf.to_container(custom, resolve=True) if custom else {}
    if not isinstance(settings, dict) or "benchmark" not in settings:
        raise ValueError(
            "actor_rollout_ref.rollout.custom.benchmark is not set: the agent loop `environment` needs to know what to "
            "play, e.g. {target: agent_loops.webshop.WebShop, data_dir: ...}"
        )
    with _OPENING:  # the cache alone would let every episode of the first batch open its own
        benchmark, pool = _opened_benchmark(json.dumps(settings["benchmark"], sort_keys=True))
    return benchmark, pool, EpisodeSettings.from_config(settings.get("episode") or {})


@functools.lru_cache(maxsize=8)
def _opened_benchmark(config: str) -> tuple[Benchmark, EnvironmentPool]:
    arguments = json.loads(config)
    # not `_target_`: verl instantiates its rollout configuration in every worker, which would open the benchmark there
    benchmark = hydra.utils.get_object(arguments.pop("target"))(**arguments)
    return benchmark, EnvironmentPool(thread_safe=type(benchmark.make()).thread_safe)


def _describe(error: Exception, where: str) -> str:
    return f"{where}: {type(error).__name__}: {error}"[:500]


def _close_quietly(episode: Episode) -> None:
    try:
        episode.environment.close()
    except Exception:  # the episode is over; what its environment does on the way out is only worth a line
        logger.warning("closing the environment failed", exc_info=True)
