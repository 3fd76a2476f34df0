"""The wraps of verl's replay buffer, trainer and metrics that feed `trajectories.Trajectories` (which says why)."""

from __future__ import annotations

import time
from typing import Any

from recipe.aem.seam.liveness import Guard, watch_of
from recipe.aem.seam.trajectories import FAULTS, MISSING, SHORTENED, SUSPICIOUS, VALIDATION_MISSING, Trajectories


def after_init(wrapped: Any, trainer: Any, args: tuple, kwargs: dict) -> Any:
    """Wrap `PPOTrainer.__init__`, which creates the replay buffer."""
    result = wrapped(*args, **kwargs)
    trainer.replay_buffer.aem_trajectories = Trajectories.of(trainer)
    Trajectories.of(trainer).started = True
    return result


def note_prompts(wrapped: Any, trainer: Any, args: tuple, kwargs: dict) -> Any:
    """Wrap `PPOTrainer.fit`; record every prompt that is sent out."""

    def bound(agent_loop_manager: Any) -> Any:
        generate, owed = agent_loop_manager.generate_sequences, Trajectories.of(trainer)
        rollout = trainer.config.actor_rollout_ref.rollout

        def noting(prompts: Any, *more: Any, **named: Any) -> Any:
            uids = list(prompts["uid"])
            n = rollout.val_kwargs.n if "validate" in prompts and bool(prompts["validate"]) else rollout.n
            sessions = list(prompts["__rollout_n__"]) if "__rollout_n__" in prompts else [n] * len(uids)
            owed.expect(uids, sessions)
            return generate(prompts, *more, **named)

        agent_loop_manager.generate_sequences = noting
        return wrapped(agent_loop_manager)

    return bound(*args, **kwargs)


def guard_rollout(wrapped: Any, trainer: Any, args: tuple, kwargs: dict) -> Any:
    """Wrap `PPOTrainer.fit`; watch the processes that generate for it."""

    def bound(agent_loop_manager: Any) -> Any:
        watch = watch_of(trainer, agent_loop_manager)
        Trajectories.of(trainer).watch = watch
        with Guard(watch):
            return wrapped(agent_loop_manager)

    return bound(*args, **kwargs)


def after_validate(wrapped: Any, trainer: Any, args: tuple, kwargs: dict) -> Any:
    """Wrap `PPOTrainer._validate`; add the number of missing trajectories to its metrics."""
    owed = Trajectories.of(trainer)
    owed.validated()
    metrics = wrapped(*args, **kwargs)
    metrics[VALIDATION_MISSING] = float(owed.validated())
    return metrics


def before_evict(wrapped: Any, buffer: Any, args: tuple, kwargs: dict) -> Any:
    """Wrap `ReplayBuffer._evict_terminal_groups`; record the groups that it discards."""

    def bound(global_steps: int, partition_id: str, eviction_reasons: tuple) -> Any:
        stale, filtered, failed, _ = eviction_reasons
        if partition_id == "train" and (owed := getattr(buffer, "aem_trajectories", None)) is not None:
            owed.evict(stale | filtered | failed, failed, buffer.partitions[partition_id])
        return wrapped(global_steps, partition_id, eviction_reasons)

    return bound(*args, **kwargs)


def after_select(wrapped: Any, buffer: Any, args: tuple, kwargs: dict) -> Any:
    """Wrap `ReplayBuffer._select_prompt_uids`; count the batch before verl itself inspects its choice."""

    def bound(partition_id: str, sampleable_keys: set[str], batch_size: int) -> Any:
        chosen = wrapped(partition_id, sampleable_keys, batch_size)
        if (owed := getattr(buffer, "aem_trajectories", None)) is not None:
            owed.take(chosen[0], list(chosen[1]), validation=partition_id == "val")
        return chosen

    return bound(*args, **kwargs)


def before_wait(wrapped: Any, buffer: Any, args: tuple, kwargs: dict) -> Any:
    """Wrap `ReplayBuffer._wait_for_next_poll`; check that trajectories can still arrive."""

    def bound(partition_id: str, last_debug_time: float) -> Any:
        if (owed := getattr(buffer, "aem_trajectories", None)) is not None:
            unfinished = buffer.pending_keys[partition_id] | buffer.running_keys[partition_id]
            arrived = (partition_id, len(buffer.partitions[partition_id]), frozenset(unfinished))
            owed.wait(arrived, unfinished, time.monotonic())
        return wrapped(partition_id, last_debug_time)

    return bound(*args, **kwargs)


def add_sums(wrapped: Any, aggregator: Any, args: tuple, kwargs: dict) -> Any:
    """Wrap `MetricsAggregator._init_aggregation_rules`; sum these counts over the batches of a step."""
    rules = wrapped(*args, **kwargs)
    rules["sum"] += [MISSING, FAULTS, SHORTENED, SUSPICIOUS]
    return rules
