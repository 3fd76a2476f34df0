"""The trajectories that a step lacks, and those that a fault spoiled: counted, said, and too many of them refused.

verl 0.9.1 plays `rollout.n` sessions a prompt. One that raises leaves no row, its prompt ends as `failure`, and the
batch is trained on without it (trainer/ppo/v1/agent_loop_tq.py:130, replay_buffer.py:122); the asynchronous modes throw
the whole prompt group away and play another. Either way only a line of the log says so, and with a dead engine a few
trajectories make an update and a checkpoint, from which a resume begins.

`seam.py` puts these functions round verl's replay buffer, trainer and metrics; `Trajectories` is what they share.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from aem_core.errors import AEMError
from recipe.aem.seam.liveness import RolloutDied, Watch
from recipe.aem.settings import Block

# below verl's own logger, which has a handler of its own: in its trainer the root logger lets errors through only
logger = logging.getLogger(f"verl.{__name__}")

MISSING = "training/trajectories/missing"
FAULTS = "training/trajectories/faults"
SHORTENED = "training/trajectories/shortened"
SUSPICIOUS = "training/trajectories/suspicious"
VALIDATION_MISSING = "validation/trajectories/missing"
_NAMED = 20  # sessions in one line of the log


class MissingTrajectories(AEMError, RuntimeError):
    """So many trajectories of a step are missing that it is not trained on."""


class RolloutStalled(AEMError, RuntimeError):
    """Nothing has arrived for longer than any trajectory may take."""


@dataclass(frozen=True)
class TrajectorySettings(Block):
    """`algorithm.trajectories`, which holds for every estimator.

    Attributes:
        max_missing: the largest share of a step's trajectories that may be missing, from 0 to 1; a step that lacks more
            is refused, which ends the run.
        stall_seconds: how long the trainer waits with no trajectory arriving; null: what `stall_seconds` below makes of
            the episode's own limits, and without such limits for ever.
    """

    name: ClassVar = "trajectories"
    numbers: ClassVar = ("max_missing",)

    max_missing: float = 0.1
    stall_seconds: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_missing > 1:
            self.refuse("max_missing", "a share from 0 to 1")
        seconds = self.stall_seconds
        if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds <= 0):
            self.refuse("stall_seconds", "null or a number > 0")


def missing_sessions(expected: Mapping[str, int], keys: Iterable[str]) -> dict[str, list[int]]:
    """The sessions without a row.

    Args:
        expected: how many sessions each prompt group has, by uid.
        keys: of the rows, `{uid}_{session}_{row}`.

    Returns:
        Session numbers by uid, for the groups that lack any.

    Examples:
        >>> missing_sessions({"a": 2, "b": 3, "c": 1}, ["a_0_0", "a_0_1", "a_1_0", "b_1_0"])
        {'b': [0, 2], 'c': [0]}
    """
    present = sessions_of(keys)
    lost = {uid: [one for one in range(n) if one not in present.get(uid, ())] for uid, n in expected.items()}
    return {uid: sessions for uid, sessions in lost.items() if sessions}


def sessions_of(keys: Iterable[str]) -> dict[str, set[int]]:
    """The sessions that rows belong to, by uid.

    Examples:
        >>> sessions_of(["a_0_0", "a_0_1", "b_7_0"])
        {'a': {0}, 'b': {7}}
    """
    present: dict[str, set[int]] = defaultdict(set)
    for key in keys:
        uid, session, _ = key.rsplit("_", 2)
        present[uid].add(int(session))
    return dict(present)


@dataclass
class Count:
    """Of how many trajectories which are missing: session numbers by uid."""

    of: int = 0
    missing: dict[str, list[int]] = field(default_factory=dict)

    @property
    def number(self) -> int:
        return sum(map(len, self.missing.values()))

    def add(self, expected: Mapping[str, int], keys: Iterable[str]) -> None:
        self.of += sum(expected.values())
        self.missing.update(missing_sessions(expected, keys))

    def names(self) -> str:
        """Which are missing, in words; the first few of many."""
        words, left = [], _NAMED
        for uid, sessions in self.missing.items():
            if shown := sessions[:left]:
                words.append(f"{uid} (sessions {', '.join(map(str, shown))})")
            left -= len(shown)
        return "; ".join(words) + (f" and {self.number - _NAMED} more" if self.number > _NAMED else "")


class Trajectories:
    """What one trainer is owed, and what it got.

    Args:
        settings: `algorithm.trajectories`.
        n: sessions a prompt in training.
        prompts: of one batch; 0 where that is not known.
        stall_seconds: as in the settings, with null worked out; None for no limit.
        watch: over the processes that generate.

    Attributes:
        started: a trainer has been made that fetches batches from a replay buffer.
    """

    def __init__(
        self,
        settings: TrajectorySettings,
        n: int,
        prompts: int = 0,
        stall_seconds: float | None = None,
        watch: Watch | None = None,
    ):
        self.settings = settings
        self.watch = watch or Watch()
        self.started = False
        self._n, self._prompts, self._stall_seconds = n, prompts, stall_seconds
        self._expected: dict[str, int] = {}
        self._batch: Count | None = None
        self._evicted = Count()
        self._validation = 0
        self._waiting: tuple[Any, float] | None = None

    @classmethod
    def of(cls, trainer: Any) -> Trajectories:
        """The trainer's, made at the first call."""
        known = getattr(trainer, "aem_trajectories", None)
        if known is None:
            known = trainer.aem_trajectories = cls.from_config(trainer.config)
        return known

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Trajectories:
        settings = TrajectorySettings.from_config(config["algorithm"])
        rollout = config["actor_rollout_ref"]["rollout"]
        v1 = (config.get("trainer") or {}).get("v1") or {}
        mode = v1.get(v1.get("trainer_mode", "")) or {}
        prompts = int((config.get("data") or {}).get("train_batch_size") or 0) // int(
            mode.get("parameter_sync_step") or 1
        )
        return cls(settings, int(rollout["n"]), prompts, settings.stall_seconds or stall_seconds(rollout))

    # ------------------------------------------------------------------------------------------- what is to come

    def expect(self, uids: Sequence[str], sessions: Sequence[int]) -> None:
        """Note prompts that are about to be played, and in how many sessions each."""
        self._expected.update(zip(uids, map(int, sessions), strict=True))

    def evict(self, uids: Collection[str], failed: Collection[str], keys: Collection[str]) -> None:
        """Note training groups that are thrown away; those that failed count as far as they have no row.

        Raises:
            MissingTrajectories: too many, of a batch and what was thrown away for it: a rollout in which everything
                fails would be played again for ever.
        """
        expected = {uid: self._expected.pop(uid, self._n) for uid in uids}
        failures = {uid: n for uid, n in expected.items() if uid in failed}
        if failures:
            self._evicted.add(failures, keys)
            self._refuse(Count(self._evicted.of + self._prompts * self._n, self._evicted.missing))

    def take(self, uids: Sequence[str], keys: Collection[str], validation: bool = False) -> None:
        """Count a batch that was chosen.

        Args:
            uids: its prompt groups.
            keys: rows, of these and of other groups.
            validation: it is one of validation, where a missing trajectory counts as 0 anyway.

        Raises:
            MissingTrajectories: too many are missing; in validation: all.
        """
        self._waiting = None
        present = sessions_of(keys)
        # a group from before a resume has all that it had: only whole ones are kept there
        expected = {uid: self._expected.pop(uid, len(present.get(uid, ()))) for uid in uids}
        count = Count() if validation else self._evicted
        count.add(expected, keys)
        if validation:
            self._validation += count.number
            self._say(count, "validation")
            self._refuse(count, validation=True)
            return
        self._batch, self._evicted = count, Count()
        self._say(count, "training")
        self._refuse(count)

    def count(self, batch: Any, extra_fields: Sequence[Mapping[str, Any] | None]) -> dict[str, float]:
        """The metrics of a training batch whose advantages are about to be computed.

        Args:
            batch: verl's `KVBatchMeta`.
            extra_fields: of its rows.

        Raises:
            MissingTrajectories: too many are missing.
        """
        live = [row for row, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]
        keys = [batch.keys[row] for row in live]
        if self._batch is None:  # a sampler of the user's own chose it
            uids = list(sessions_of(keys))
            if self.started:  # nothing names a group that is missing whole
                uids += [f"a prompt without any trajectory ({number})" for number in range(self._prompts - len(uids))]
            count = Count()
            count.add({uid: self._expected.pop(uid, self._n) for uid in uids}, keys)
            self._say(count, "training")
            if self.started:  # otherwise no run stands behind the batch, and it may be a part of one
                self._refuse(count)
        else:
            count, self._batch = self._batch, None
        faults: dict[str, str] = {}
        for row, key in zip(live, keys, strict=True):
            if fault := (extra_fields[row] or {}).get("fault"):
                faults[key.rsplit("_", 1)[0]] = str(fault)
        if faults:
            played = len({key.rsplit("_", 1)[0] for key in keys})
            (reason, times), *_ = Counter(faults.values()).most_common(1)
            logger.log(
                logging.ERROR if len(faults) == played else logging.WARNING,
                "%d of %d trajectories of this batch ended in a fault and train nothing, %d of them with: %s",
                *(len(faults), played, times, reason),
            )
        shortened = {
            key.rsplit("_", 1)[0]
            for row, key in zip(live, keys, strict=True)
            if any((extra_fields[row] or {}).get("prompt_shortened", ()))
        }
        found = {MISSING: float(count.number), FAULTS: float(len(faults)), SHORTENED: float(len(shortened))}
        infos = [
            (key, ((extra_fields[row] or {}).get("reward_extra_info") or {}))
            for row, key in zip(live, keys, strict=True)
        ]
        suspicious = {key.rsplit("_", 1)[0]: info["suspicious"] for key, info in infos if "suspicious" in info}
        if suspicious:  # software engineering alone
            found[SUSPICIOUS] = float(sum(bool(one) for one in suspicious.values()))
        return found

    def validated(self) -> int:
        """How many trajectories of validation were missing since the last call."""
        number, self._validation = self._validation, 0
        return number

    # ---------------------------------------------------------------------------------------------- what is waited for

    def wait(self, arrived: Any, running: Collection[str], now: float) -> None:
        """Check, while nothing can be trained on, that something still can come.

        Args:
            arrived: what has come so far; it changes with every trajectory.
            running: uids that are being played.
            now: seconds of a clock that only goes forward.

        Raises:
            RolloutDied: a process that generates is dead.
            RolloutStalled: nothing has come for too long.
        """
        if dead := self.watch.dead:
            raise RolloutDied(f"{dead}. Its trajectories will not come, so the run ends here")
        if self._waiting is None or self._waiting[0] != arrived:
            self._waiting = (arrived, now)
        waited = now - self._waiting[1]
        if self._stall_seconds is not None and waited > self._stall_seconds:
            raise RolloutStalled(
                f"no trajectory has arrived for {waited:.0f} s, and {len(running)} prompts are unfinished: "
                f"{', '.join(sorted(running)[:5])}{' …' if len(running) > 5 else ''}. No session may take so long, so "
                "the engine, an environment or an agent loop worker hangs. Allowed are algorithm.trajectories."
                f"stall_seconds={self._stall_seconds:g}; where that is null, episode.trajectory_seconds and "
                "episode.step_seconds give it"
            )

    def _say(self, count: Count, where: str) -> None:
        if count.number:
            logger.warning("%d of %d trajectories of %s are missing: %s", count.number, count.of, where, count.names())

    def _refuse(self, count: Count, validation: bool = False) -> None:
        share = self.settings.max_missing
        if count.number <= share * count.of or (validation and count.number < count.of):
            return
        dead = self.watch.look()
        raise MissingTrajectories(
            f"{count.number} of the {count.of} trajectories of a {'validation' if validation else 'training'} batch "
            f"are missing, {count.number / count.of:.0%}; the largest share that may be is algorithm.trajectories."
            f"max_missing={share:g}. The batch is refused"
            + ("" if validation else ": nothing is learned from it, and this step leaves no checkpoint")
            + (f". The cause: {dead}" if dead else "")
            + ". verl drops a session that raises; the log has the causes below `Error in _run_prompt for uid=…`: "
            + count.names()
        )


def stall_seconds(rollout: Mapping[str, Any]) -> float | None:
    """How long nothing may arrive: twice what a trajectory of our agent loop may take, and a worker's start.

        2 · (trajectory_seconds + 4 · step_seconds) + 300

    The four calls are `reset`, a step that began in time, `conclude` and `close`. Twice, since calls to an environment
    that is not thread-safe wait for each other. None for other loops, and without `episode.trajectory_seconds`.

    Args:
        rollout: verl's `actor_rollout_ref.rollout`.
    """
    custom = rollout.get("custom") or {}
    if "benchmark" not in custom or (rollout.get("agent") or {}).get("default_agent_loop") != "environment":
        return None
    from agent_loops.episode import EpisodeSettings
    from agent_loops.workers import START_SECONDS

    episode = EpisodeSettings.from_config(custom.get("episode") or {})
    if episode.trajectory_seconds is None:
        return None
    return 2 * (episode.trajectory_seconds + 4 * episode.step_seconds) + START_SECONDS


# --- round verl's methods ---------------------------------------------------------------------------------------------


def after_init(wrapped: Any, trainer: Any, args: tuple, kwargs: dict) -> Any:
    """Round `PPOTrainer.__init__`, which makes the replay buffer."""
    result = wrapped(*args, **kwargs)
    trainer.replay_buffer.aem_trajectories = Trajectories.of(trainer)
    Trajectories.of(trainer).started = True
    return result


def around_fit(wrapped: Any, trainer: Any, args: tuple, kwargs: dict) -> Any:
    """Round `PPOTrainer.fit`: note every prompt that is handed out."""

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


def after_validate(wrapped: Any, trainer: Any, args: tuple, kwargs: dict) -> Any:
    """Round `PPOTrainer._validate`."""
    owed = Trajectories.of(trainer)
    owed.validated()
    metrics = wrapped(*args, **kwargs)
    metrics[VALIDATION_MISSING] = float(owed.validated())
    return metrics


def before_evict(wrapped: Any, buffer: Any, args: tuple, kwargs: dict) -> Any:
    """Round `ReplayBuffer._evict_terminal_groups`."""

    def bound(global_steps: int, partition_id: str, eviction_reasons: tuple) -> Any:
        stale, filtered, failed, _ = eviction_reasons
        if partition_id == "train" and (owed := getattr(buffer, "aem_trajectories", None)) is not None:
            owed.evict(stale | filtered | failed, failed, buffer.partitions[partition_id])
        return wrapped(global_steps, partition_id, eviction_reasons)

    return bound(*args, **kwargs)


def after_select(wrapped: Any, buffer: Any, args: tuple, kwargs: dict) -> Any:
    """Round `ReplayBuffer._select_prompt_uids`, before verl itself looks at what it chose."""

    def bound(partition_id: str, sampleable_keys: set[str], batch_size: int) -> Any:
        chosen = wrapped(partition_id, sampleable_keys, batch_size)
        if (owed := getattr(buffer, "aem_trajectories", None)) is not None:
            owed.take(chosen[0], list(chosen[1]), validation=partition_id == "val")
        return chosen

    return bound(*args, **kwargs)


def before_wait(wrapped: Any, buffer: Any, args: tuple, kwargs: dict) -> Any:
    """Round `ReplayBuffer._wait_for_next_poll`."""

    def bound(partition_id: str, last_debug_time: float) -> Any:
        if (owed := getattr(buffer, "aem_trajectories", None)) is not None:
            unfinished = buffer.pending_keys[partition_id] | buffer.running_keys[partition_id]
            arrived = (partition_id, len(buffer.partitions[partition_id]), frozenset(unfinished))
            owed.wait(arrived, unfinished, time.monotonic())
        return wrapped(partition_id, last_debug_time)

    return bound(*args, **kwargs)


def add_sums(wrapped: Any, aggregator: Any, args: tuple, kwargs: dict) -> Any:
    """Round `MetricsAggregator._init_aggregation_rules`: a step of several batches lacks what they lack together."""
    rules = wrapped(*args, **kwargs)
    rules["sum"] += [MISSING, FAULTS, SHORTENED, SUSPICIOUS]
    return rules
