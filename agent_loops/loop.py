"""verl's agent loop over any environment of this package, in two layouts (`episode.layout`): **turns**, one row a turn,
and **transcript**, one row a trajectory (docs/conversations.md shows both).

Settings come from `actor_rollout_ref.rollout.custom`, verl's free slot: `benchmark` (`target`, what makes an
`agent_loops.environment.Benchmark`, and its arguments; opened once a process) and `episode`
(`agent_loops.episode.EpisodeSettings`). The task comes from the dataset's `extra_info.task`. The loop's name in verl is
`environment`.

What each row carries in `extra_fields`, for the estimators and for analysis:

* `response_spans`: [[start, stop)] offsets into the response part, one a response of the agent: the mask is 1 there and
  0 elsewhere;
* `turn_index`, `turn_rewards`, `turn_penalties`, `turn_valid`: one entry a span; penalties are <= 0 (a broken format,
  and `EpisodeSettings.overlong`);
* `anchors`: the raw observation that each span answered; `trajectory_id`: the row's trajectory;
* `fault`: empty, or why the environment failed: then the whole trajectory is masked and its reward is 0;
* `cut`: empty, or what cut the trajectory short: `response` (the last generation stopped at its token limit, or the
  next message would have left no room for an answer), `turns` (`max_turns`), `truncated` (the environment's own limit)
  or `time` (a call to the environment outlasted `step_seconds`, a fault too). Under `episode.compact_filtering` such a
  trajectory is masked whole, and keeps its reward: it trains nothing, but stays in the group's baseline;
* `reward_extra_info`: `acc` (success), `task_score`, `turns`, `invalid_turns`, `fault`, `cut`, for verl's validation.
"""

from __future__ import annotations

import asyncio
import dataclasses
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
from agent_loops.episode import Episode, EpisodeSettings
from agent_loops.pool import EnvironmentPool, EnvironmentTimeout
from agent_loops.rows import ROWS, Rows

logger = logging.getLogger(__name__)


@register("environment")
class EnvironmentAgentLoop(AgentLoopBase):
    """Plays one episode and returns its rows. It never raises for a fault of the environment."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> list[AgentLoopOutput]:  # type: ignore[override]
        benchmark, pool, settings = await asyncio.to_thread(open_benchmark, self.rollout_config.custom)
        rows = ROWS[settings.layout](self, settings, bool(sampling_params.get("logprobs")), kwargs)
        metrics = {"generate_sequences": 0.0, "tool_calls": 0.0}
        episode = Episode(benchmark.make(), settings)
        try:
            fault = await self._play(episode, kwargs["extra_info"]["task"], pool, rows, sampling_params, metrics)
        finally:  # a cancelled episode ends here too
            _close_quietly(episode)
        if not rows.rows:
            await rows.add_placeholder(list(kwargs["raw_prompt"]))
        return rows.outputs(episode, fault, AgentLoopMetrics(num_preempted=-1, **metrics))

    async def _play(
        self,
        episode: Episode,
        task: Any,
        pool: EnvironmentPool,
        rows: Rows,
        sampling_params: dict[str, Any],
        metrics: dict[str, float],
    ) -> str:
        """Play to the end; returns the environment's fault, or an empty string."""
        seconds = episode.settings.step_seconds
        try:
            await pool.call(seconds, episode.reset, task)
        except Exception as error:  # any fault of foreign code: reported in the row, never raised into verl
            rows.timed_out = isinstance(error, EnvironmentTimeout)
            return _describe(error, "reset")
        request_id = uuid4().hex  # one a trajectory: verl keeps it on the server whose cache knows its beginning
        # a prompt that cannot fit is for the user to mend, and so is not a fault: `ask` raises
        while not episode.done and (room := await rows.ask(episode)):
            started = time.perf_counter()
            output = await self.server_manager.generate(
                request_id=request_id,
                prompt_ids=rows.rows[-1].ids,
                sampling_params={**sampling_params, "max_tokens": room},
            )
            generated = time.perf_counter()
            response_ids = list(output.token_ids)[:room]
            response = self.tokenizer.decode(response_ids, skip_special_tokens=True)  # type: ignore[attr-defined]
            anchor = episode.observation.text if episode.observation is not None else ""
            turn, fault = None, ""
            try:
                turn = await pool.call(seconds, episode.step, response)
                overlong = episode.settings.overlong(len(response_ids), room)
                turn = dataclasses.replace(turn, penalty=turn.penalty + overlong)
            except Exception as error:  # as above
                rows.timed_out = isinstance(error, EnvironmentTimeout)
                fault = _describe(error, f"turn {len(episode.turns)}")
            metrics["generate_sequences"] += generated - started
            metrics["tool_calls"] += time.perf_counter() - generated
            await rows.add(response_ids, output, room, turn, anchor)
            if fault:
                return fault
        return ""


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
