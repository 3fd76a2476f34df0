"""verl's agent loop over any environment of this package, in two layouts (`episode.layout`): **turns**, one row a turn,
and **transcript**, one row a trajectory (docs/conversations.md shows both).

Settings come from `actor_rollout_ref.rollout.custom`, verl's free slot: `benchmark` (`target`, what makes an
`agent_loops.environment.Benchmark`, and its arguments; opened once a process), `workers` (how many subprocesses host
environments that are not thread-safe, see `agent_loops.workers`), `threads` (how many calls to thread-safe ones run at
once in a process; null: four a core, at most 32) and `episode` (`agent_loops.episode.EpisodeSettings`). The task comes
from the dataset's `extra_info.task`. The loop's name in verl is `environment`.

What each row carries in `extra_fields`, for the estimators and for analysis:

* `response_spans`: [[start, stop)] offsets into the response part, one a response of the agent: the mask is 1 there and
  0 elsewhere;
* `turn_index`, `turn_rewards`, `turn_penalties`, `turn_valid`: one entry a span. Rewards are the environment's own
  (`Step.reward`); penalties are <= 0 (a broken format, and `EpisodeSettings.overlong`);
* `turn_kinds`: what sort of turn each span is (`agent_loops.episode.Turn.kind`), for reports and `aem.relative_to`;
* `anchors`: the raw observation that each span answered; `trajectory_id`: the row's trajectory;
* `prompt_shortened`: for each span, what of its prompt was shortened last to make it fit, empty where it is whole:
  `history`, `observation`, `instruction` (the task) or `actions` (`agent_loops.shortening`);
* `fault`: empty, or what of the environment, a template or a text failed: then the whole trajectory is masked, its
  reward is 0, and training leaves it out of every statistic of its group and batch;
* `cut`: empty, or what cut the trajectory short: `response` (the last generation stopped at its token limit, or the
  next message would have left no room for an answer), `turns` (`max_turns`), `truncated` (the environment's own limit)
  or `time` (`trajectory_seconds` are over; or a call to the environment outlasted `step_seconds`, which is a fault
  too). Under `episode.compact_filtering` such a trajectory is masked whole, and keeps its reward: it trains nothing,
  but stays in the group's baseline;
* `reward_extra_info`: `acc` (success), `task_score`, `turns`, `invalid_turns`, `fault`, `cut`, `shortened_turns`,
  for verl's validation.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
import json
import logging
import math
import threading
import time
from typing import Any
from uuid import uuid4

import hydra.utils
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register

from agent_loops.arguments import mapping, text
from agent_loops.chat_template import builder_type, follow, template_of
from agent_loops.environment import Benchmark
from agent_loops.episode import Episode, EpisodeSettings
from agent_loops.layouts import ROWS, Rows
from agent_loops.pool import Call, EnvironmentPool, EnvironmentTimeout, contained
from agent_loops.workers import DEFAULT_WORKERS, WorkerPool, check_workers

logger = logging.getLogger(__name__)


@register("environment")
class EnvironmentAgentLoop(AgentLoopBase):
    """Plays one episode and returns its rows.

    Nothing of an environment, a template or a text raises: that is a fault, which the rows carry. What the engine
    raises does, and so does a benchmark that cannot be opened: verl then has no row of this session, and
    `recipe.aem.seam.trajectories` counts it.
    """

    def __init__(
        self,
        trainer_config: Any,
        server_manager: Any,
        tokenizer: Any,
        processor: Any,
        *given: Any,
        hf_model_type: str | None = None,
        **more: Any,
    ) -> None:
        known = builder_type(tokenizer, processor, hf_model_type)
        super().__init__(trainer_config, server_manager, tokenizer, processor, *given, hf_model_type=known, **more)
        template = template_of(tokenizer, self.apply_chat_template_kwargs, self.config.actor_rollout_ref.get("model"))
        self.continuous_token_builder = follow(self.continuous_token_builder, template)

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> list[AgentLoopOutput]:  # type: ignore[override]
        _, pool, settings = await asyncio.to_thread(open_benchmark, self.rollout_config.custom)
        rows = ROWS[settings.layout](self, settings, bool(sampling_params.get("logprobs")), kwargs)
        metrics = {"generate_sequences": 0.0, "tool_calls": 0.0}
        seat = pool.open()
        episode = Episode(seat.environment, settings)
        try:
            fault = await self._play(episode, kwargs["extra_info"]["task"], seat.call, rows, sampling_params, metrics)
        finally:  # a cancelled episode ends here too
            await _close(episode)
        if not rows.rows:
            await rows.add_placeholder(list(kwargs["raw_prompt"]))
        return rows.outputs(episode, fault, AgentLoopMetrics(num_preempted=-1, **metrics))

    async def _play(
        self,
        episode: Episode,
        task: Any,
        call: Call,
        rows: Rows,
        sampling_params: dict[str, Any],
        metrics: dict[str, float],
    ) -> str:
        """Play to the end; returns the fault, or an empty string."""
        settings = episode.settings
        seconds = settings.step_seconds
        try:
            await call(seconds, episode.reset, task)
        except Exception as error:  # any fault of foreign code: reported in the row, never raised into verl
            rows.timed_out = isinstance(error, EnvironmentTimeout)
            return _describe(error, "reset")
        deadline = time.perf_counter() + (settings.trajectory_seconds or math.inf)
        # a worker process that is given up takes other episodes with it
        can_give_up = type(episode.environment).thread_safe
        busy = False
        request_id = uuid4().hex  # one a trajectory: verl keeps it on the server whose cache knows its beginning
        while not episode.done and not rows.out_of_time:
            if time.perf_counter() >= deadline:
                rows.out_of_time = True
                break
            where = f"turn {len(episode.turns)}"
            try:
                room = await rows.ask(episode)
            except Exception as error:  # a template, a text that the tokenizer refuses, a prompt that cannot fit
                return _describe(error, f"the prompt of {where}")
            if not room:
                break
            started = time.perf_counter()
            anchor = episode.observation.text if episode.observation is not None else ""
            output = await self._generate(
                deadline - started,
                request_id=request_id,
                prompt_ids=rows.rows[-1].ids,
                sampling_params={**sampling_params, **rows.ends.stop_at(sampling_params), "max_tokens": room},
            )
            generated = time.perf_counter()
            metrics["generate_sequences"] += generated - started
            if output is None:
                rows.out_of_time = True
                rows.withdraw(anchor)
                break
            response_ids = list(output.token_ids)[:room]
            left = deadline - generated if can_give_up else math.inf
            turn, fault = None, ""
            try:
                response = rows.text_of(response_ids)
                if left > 0:
                    turn = await call(min(seconds, left), episode.step, response, rows.thought_open)
                    overlong = settings.overlong(len(response_ids), room)
                    turn = dataclasses.replace(turn, penalty=turn.penalty + overlong)
                else:
                    rows.out_of_time = True
            except EnvironmentTimeout as error:
                busy = True
                rows.out_of_time = left < seconds
                rows.timed_out = not rows.out_of_time
                fault = _describe(error, where) if rows.timed_out else ""
            except Exception as error:  # as above
                fault = _describe(error, where)
            metrics["tool_calls"] += time.perf_counter() - generated
            try:
                await rows.add(response_ids, output, room, turn, anchor)
            except Exception as error:  # as above
                rows.withdraw(anchor)
                fault = fault or _describe(error, f"the response of {where}")
            if fault:
                return fault
        if settings.conclude and not busy and episode.end not in ("terminated", "truncated"):
            try:
                await call(seconds, episode.conclude)
            except Exception as error:  # as above
                rows.timed_out = isinstance(error, EnvironmentTimeout)
                return _describe(error, "the end")
        return ""

    async def _generate(self, seconds: float, **request: Any) -> Any:
        """verl's TokenOutput, or None where the time is up first; the engine then ends the request unheard."""
        limit = asyncio.timeout(None if math.isinf(seconds) else seconds)
        try:
            async with limit:
                return await self.server_manager.generate(**request)
        except TimeoutError:
            if not limit.expired():
                raise
            return None


_OPENING = threading.Lock()


def open_benchmark(custom: Any) -> tuple[Benchmark, EnvironmentPool | WorkerPool, EpisodeSettings]:
    """What `actor_rollout_ref.rollout.custom` names, opened once a process: a loop object lives for one episode only.

    Its environments run in threads where they are thread-safe, and in worker processes otherwise; those start with
    their first episode.

    Raises whatever is wrong with the settings or the data: that is the user's to mend, not a fault of an episode. The
    trainer calls it once before it starts anything.
    """
    settings = OmegaConf.to_container(custom, resolve=True) if custom else {}
    if not isinstance(settings, dict) or "benchmark" not in settings:
        raise ValueError(
            "actor_rollout_ref.rollout.custom.benchmark is not set: the agent loop `environment` needs to know what to "
            "play, e.g. {target: agent_loops.webshop.WebShop, data_dir: ...}"
        )
    place = "actor_rollout_ref.rollout.custom.benchmark"
    text(f"{place}.target", mapping(place, settings["benchmark"]).get("target"))
    workers = settings.get("workers", DEFAULT_WORKERS)
    check_workers(workers)
    threads = settings.get("threads")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ValueError(
            f"actor_rollout_ref.rollout.custom.threads={threads!r}: expected null or a whole number from 1 on"
        )
    with _OPENING:  # the cache alone would let every episode of the first batch open its own
        benchmark, pool = _opened_benchmark(json.dumps(settings["benchmark"], sort_keys=True), workers, threads)
    return benchmark, pool, EpisodeSettings.from_config(settings.get("episode") or {})


@functools.lru_cache(maxsize=8)
def _opened_benchmark(config: str, workers: int, threads: int | None) -> tuple[Benchmark, EnvironmentPool | WorkerPool]:
    arguments = json.loads(config)
    target = arguments.pop("target")
    # not `_target_`: verl instantiates its rollout configuration in every worker, which would open the benchmark there
    make = hydra.utils.get_object(target)
    try:
        inspect.signature(make).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"actor_rollout_ref.rollout.custom.benchmark, for {target}: {error}") from None
    benchmark = make(**arguments)
    if type(benchmark.make()).thread_safe:
        return benchmark, EnvironmentPool(benchmark.make, threads)
    return benchmark, WorkerPool(target, arguments, workers)


def _describe(error: Exception, where: str) -> str:
    text = f"{where}: {type(error).__name__}: {error}"[:500]
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # it may quote the text that could not be encoded


async def _close(episode: Episode) -> None:
    """The episode is over; what its environment does on the way out is only worth a line."""
    seconds = episode.settings.step_seconds
    try:
        await asyncio.wait_for(asyncio.to_thread(contained, episode.environment.close), seconds)
    except TimeoutError:  # its own too: there is nothing more to wait for
        logger.warning("the environment was not closed within %g s (episode.step_seconds); it is left", seconds)
    except Exception:  # whatever it raises: the episode is over, and its outcome stands
        logger.warning("closing the environment failed", exc_info=True)
