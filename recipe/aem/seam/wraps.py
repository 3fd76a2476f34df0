"""Where this package meets verl's trainers: every method of theirs that is wrapped is named here.

verl hands a registered estimator rewards, mask, config and uid only. `PPOTrainer._compute_advantage`, which the sync,
colocate_async and separate_async trainers share, is therefore wrapped: before the original runs, the batch's entropies
and `extra_fields` are fetched into a context variable, which the estimators registered here read.

Whatever the estimator, trajectories with a fault, and what faults left alone in its prompt group, take no part
(`rows.trained_rows`): before the original runs they are masked in TransferQueue, so that no term of the loss learns
from them, and `compute_advantage_for_multi_trajectories`, which the original calls, gets the other rows only. Where KL
is taken off the rewards, a trajectory's KL is brought together there (`bases.kl_on_last_rows`). Without faults and KL
another estimator is called straight through. DAPO's filter leaves faults out too (`filters.py`). The trajectories that
a batch lacks are counted where verl chooses it (`trajectories.py`), and the processes that play them are looked after
(`liveness.py`).

A batch without a token to learn from never reaches the original (`empty_updates.py`). With `algorithm.aem.dump_dir` the
batch is then read back and written to a file (`dump`). EPO's wraps are in `epo.py`; what is read of TransferQueue, in
`batch.py`. The folders that a run writes to are held (`output_locks.py`), and a full disk is met (`full_disk.py`).
"""

from __future__ import annotations

import contextvars
import functools
import logging
import time
from typing import Any

import wrapt

from aem_core.errors import AEMRuntimeError
from recipe.aem.seam import capture, empty_updates, epo, filters, full_disk, liveness, output_locks, trajectories
from recipe.aem.seam.checks import cautions, check_run, check_template
from recipe.aem.settings import ESTIMATORS, GAE, OPO, Settings, SettingsError, shares_return

_LOGGER = logging.getLogger(__name__)
_SIDE: contextvars.ContextVar[Any] = contextvars.ContextVar("verl_aem_side_information", default=None)
_DROPPED: contextvars.ContextVar[frozenset[int]] = contextvars.ContextVar("verl_aem_dropped_rows", default=frozenset())
"""The rows of the batch that faults keep out of training."""


def register_estimators(core_algos: Any) -> None:
    """Post-import hook of `verl.trainer.ppo.core_algos`."""
    for name in ESTIMATORS:
        core_algos.register_adv_est(name)(functools.partial(_estimate, name))


def _estimate(
    name: str,
    token_level_rewards: Any,
    response_mask: Any,
    config: Any = None,
    index: Any = None,
    batch: Any = None,
    non_tensor_batch: Any = None,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """What verl looks up as `aem`, `empg` …; it works only inside the wrapped trainer, which fetches the rows."""
    side = _SIDE.get()
    if side is None:
        raise AEMRuntimeError(
            f"algorithm.adv_estimator={name} was called without the rows of the batch (entropies, turns): this trainer "
            "does not pass through verl.trainer.ppo.v1.trainer_base.PPOTrainer._compute_advantage, which verl-aem "
            "wraps. Use trainer.use_v1=True with trainer_mode sync, colocate_async or separate_async; no estimator "
            "here ever falls back to its base"
        )
    from recipe.aem.seam.advantage import compute_advantages

    return compute_advantages(side, token_level_rewards, response_mask, index, config)


def wrap_trainer(trainer_base: Any) -> None:
    """Post-import hook of `verl.trainer.ppo.v1.trainer_base`."""
    wrapt.wrap_function_wrapper(trainer_base, "PPOTrainer.__init__", trajectories.after_init)
    wrapt.wrap_function_wrapper(trainer_base, "PPOTrainer.__init__", _check_before_init)
    wrapt.wrap_function_wrapper(trainer_base, "PPOTrainer._compute_advantage", _with_side_information)
    wrapt.wrap_function_wrapper(trainer_base, "compute_advantage_for_multi_trajectories", _of_trained_rows)
    wrapt.wrap_function_wrapper(trainer_base, "PPOTrainer._compute_metrics", empty_updates.after_metrics)
    wrapt.wrap_function_wrapper(trainer_base, "PPOTrainer.fit", capture.around_fit)
    wrapt.wrap_function_wrapper(trainer_base, "PPOTrainer.fit", trajectories.around_fit)
    wrapt.wrap_function_wrapper(trainer_base, "PPOTrainer.fit", liveness.around_fit)
    wrapt.wrap_function_wrapper(trainer_base, "PPOTrainer._validate", trajectories.after_validate)
    wrapt.wrap_function_wrapper(trainer_base, "PPOTrainer.init", epo.after_init)
    wrapt.wrap_function_wrapper(trainer_base, "PPOTrainer._update_actor", epo.before_update)
    wrapt.wrap_function_wrapper(trainer_base, "PPOTrainer._save_checkpoint", epo.before_save)
    wrapt.wrap_function_wrapper(trainer_base, "PPOTrainer._save_checkpoint", full_disk.around_save)
    wrapt.wrap_function_wrapper(trainer_base, "PPOTrainer._load_checkpoint", epo.after_load)


def wrap_replay_buffer(replay_buffer: Any) -> None:
    """Post-import hook of `verl.trainer.ppo.v1.replay_buffer`."""
    wrapt.wrap_function_wrapper(replay_buffer, "ReplayBuffer._dapo_filtered_keys", filters.without_faults)
    wrapt.wrap_function_wrapper(replay_buffer, "ReplayBuffer._evict_terminal_groups", trajectories.before_evict)
    wrapt.wrap_function_wrapper(replay_buffer, "ReplayBuffer._select_prompt_uids", trajectories.after_select)
    wrapt.wrap_function_wrapper(replay_buffer, "ReplayBuffer._wait_for_next_poll", trajectories.before_wait)


def wrap_metrics(utils: Any) -> None:
    """Post-import hook of `verl.trainer.ppo.v1.utils`."""
    wrapt.wrap_function_wrapper(utils, "MetricsAggregator._init_aggregation_rules", trajectories.add_sums)


def wrap_engine(base: Any) -> None:
    """Post-import hook of `verl.workers.engine.base`."""
    wrapt.wrap_function_wrapper(base, "BaseEngine.train_batch", empty_updates.around_mini_batch)


def refuse_legacy_trainer(ray_trainer: Any) -> None:
    """Post-import hook of `verl.trainer.ppo.ray_trainer`: its trainers drop the entropy before the advantage."""
    wrapt.wrap_function_wrapper(ray_trainer, "RayPPOTrainer.__init__", _refuse_before_init)


def _check_before_init(wrapped: Any, trainer: Any, args: tuple, kwargs: dict) -> Any:
    import verl
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

    config = args[0] if args else kwargs["config"]
    settings, epo_settings = check_run(config, set(ADV_ESTIMATOR_REGISTRY), verl.__version__)
    for caution in cautions(config, settings, epo_settings):
        _LOGGER.warning("%s: %s; %s", caution.title, caution.detail, caution.remedy)
    rollout = config.actor_rollout_ref.rollout
    if rollout.agent.default_agent_loop == "environment":
        from agent_loops.loop import open_benchmark

        # a wrong path or setting shows here, and not after minutes of start-up in every episode
        _, _, episode = open_benchmark(rollout.custom)
        check_template(config, episode.layout)
    output_locks.hold_outputs(config)
    return wrapped(*args, **kwargs)


def _refuse_before_init(wrapped: Any, trainer: Any, args: tuple, kwargs: dict) -> Any:
    config = args[0] if args else kwargs["config"]
    if config.algorithm.adv_estimator in ESTIMATORS:
        raise SettingsError(
            f"algorithm.adv_estimator={config.algorithm.adv_estimator} does not run on {type(trainer).__name__}, which "
            "drops the entropies before the advantage is computed. Set trainer.use_v1=True (sync, colocate_async or "
            "separate_async)"
        )
    if epo.EpoSettings.from_config(config.algorithm).enable:
        raise SettingsError(
            f"algorithm.epo.enable=True does not run on {type(trainer).__name__}, whose update EPO's loss does not "
            "reach. Set trainer.use_v1=True (sync, colocate_async or separate_async), or algorithm.epo.enable=False"
        )
    return wrapped(*args, **kwargs)


def _with_side_information(wrapped: Any, trainer: Any, args: tuple, kwargs: dict) -> Any:
    algorithm = trainer.config.algorithm

    def bound(batch: Any, metrics: dict) -> Any:
        from recipe.aem.batch import read_mask

        nested_mask, extra_fields = read_mask(batch)
        metrics.update(trajectories.Trajectories.of(trainer).count(batch, extra_fields))
        nested_mask, dropped = _mask_dropped(batch, nested_mask, extra_fields)
        side = None
        if not nested_mask.values().any():
            result = empty_updates.put_zero_advantages(batch, nested_mask, metrics, algorithm.use_kl_in_reward)
        else:
            if algorithm.adv_estimator in ESTIMATORS:
                side = _fetch(batch, metrics, Settings.from_config(algorithm), trainer.global_steps)
            tokens = _SIDE.set(side), _DROPPED.set(dropped)
            try:
                result = wrapped(batch, metrics)
            finally:
                _SIDE.reset(tokens[0])
                _DROPPED.reset(tokens[1])
            if algorithm.adv_estimator == OPO:
                empty_updates.clear_masked_advantages(batch)
        capture.take(trainer, batch, nested_mask, metrics, None if side is None else side.computed)
        return result

    return bound(*args, **kwargs)


def _mask_dropped(batch: Any, nested_mask: Any, extra_fields: Any) -> tuple[Any, frozenset[int]]:
    """The batch's mask without the rows that faults keep out of training, in TransferQueue too; and these rows."""
    import torch

    from recipe.aem.batch import put_mask
    from recipe.aem.rows import trained_rows

    padding = [bool(tag.get("is_padding", False)) for tag in batch.tags]
    groups = [key.rsplit("_", 2)[0] for key in batch.keys]
    trained = set(trained_rows(batch.keys, groups, padding, extra_fields))
    dropped = frozenset(row for row, is_padding in enumerate(padding) if not is_padding and row not in trained)
    rows = nested_mask.unbind(0)
    if any(rows[row].any() for row in dropped):
        rows = [torch.zeros_like(mask) if row in dropped else mask for row, mask in enumerate(rows)]
        nested_mask = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
        put_mask(batch, nested_mask)
    return nested_mask, dropped


def _of_trained_rows(wrapped: Any, instance: Any, args: tuple, kwargs: dict) -> Any:
    """Round `compute_advantage_for_multi_trajectories` as the trainer calls it."""

    def bound(data: Any, batch_keys: list[str], adv_estimator: Any, *, config: Any, **more: Any) -> Any:
        from recipe.aem.seam.bases import kl_on_last_rows, of_some_rows

        if config.get("use_kl_in_reward", False) and shares_return(config):
            data.batch["token_level_rewards"] = kl_on_last_rows(
                data.batch["token_level_rewards"], data.batch["token_level_scores"], batch_keys
            )
        compute = functools.partial(wrapped, adv_estimator=adv_estimator, config=config, **more)
        # those of this package see the whole batch, as their side information does, and leave the rows out themselves
        dropped = frozenset() if adv_estimator in ESTIMATORS else _DROPPED.get()
        return of_some_rows(compute, data, batch_keys, [row for row in range(len(batch_keys)) if row not in dropped])

    return bound(*args, **kwargs)


def _fetch(batch: Any, metrics: dict, settings: Settings, step: int) -> Any:
    from recipe.aem.batch import read_rows
    from recipe.aem.seam.advantage import SideInfo

    started = time.perf_counter()
    measure = settings.measure
    columns = [name for name in (measure, "values" if settings.base == GAE else None) if name]
    rows = read_rows(batch, columns, needed_by=f"adv_estimator={settings.estimator}")
    measure_BT = rows.columns[measure].float() if measure else None
    return SideInfo(
        settings=settings,
        keys=list(batch.keys),
        is_padding=rows.is_padding,
        extra_fields=rows.extra_fields,
        # a surprisal is −log π
        measure_BT=-measure_BT if measure_BT is not None and measure == "old_log_probs" else measure_BT,
        value_BT=rows.columns["values"].float() if "values" in columns else None,
        step=step,
        metrics=metrics,
        seconds=time.perf_counter() - started,
    )
