"""Where this package meets verl's trainers: every method of theirs that is wrapped is named here.

verl hands a registered estimator rewards, mask, config and uid only. `PPOTrainer._compute_advantage`, which the sync,
colocate_async and separate_async trainers share, is therefore wrapped: before the original runs, the batch's entropies
and `extra_fields` are fetched into a context variable, which the estimators registered here read. With any other
estimator the wrapper calls straight through. A batch without a token to learn from never reaches the original, whatever
the estimator (`updates.py`). With `algorithm.aem.dump_dir` the batch is then read back and written to a file
(`dump`). EPO's wraps are in `epo.py`; what is read of TransferQueue, in `queue.py`.
"""

from __future__ import annotations

import contextvars
import functools
import time
from typing import Any

import wrapt

from recipe.aem import epo, updates
from recipe.aem.dump import capture
from recipe.aem.settings import ESTIMATORS, GAE, OPO, Settings, SettingsError
from recipe.aem.startup import check_run

_SIDE: contextvars.ContextVar[Any] = contextvars.ContextVar("verl_aem_side_information", default=None)


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
        raise RuntimeError(
            f"algorithm.adv_estimator={name} was called without the rows of the batch (entropies, turns): this trainer "
            "does not pass through verl.trainer.ppo.v1.trainer_base.PPOTrainer._compute_advantage, which verl-aem "
            "wraps. Use trainer.use_v1=True with trainer_mode sync, colocate_async or separate_async; no estimator "
            "here ever falls back to its base"
        )
    from recipe.aem.advantage import compute_advantages

    return compute_advantages(side, token_level_rewards, response_mask, index, config)


def wrap_trainer(trainer_base: Any) -> None:
    """Post-import hook of `verl.trainer.ppo.v1.trainer_base`."""
    wrapt.wrap_function_wrapper(trainer_base, "PPOTrainer.__init__", _check_before_init)
    wrapt.wrap_function_wrapper(trainer_base, "PPOTrainer._compute_advantage", _with_side_information)
    wrapt.wrap_function_wrapper(trainer_base, "PPOTrainer._compute_metrics", updates.after_metrics)
    wrapt.wrap_function_wrapper(trainer_base, "PPOTrainer.fit", capture.around_fit)
    wrapt.wrap_function_wrapper(trainer_base, "PPOTrainer.init", epo.after_init)
    wrapt.wrap_function_wrapper(trainer_base, "PPOTrainer._update_actor", epo.before_update)
    wrapt.wrap_function_wrapper(trainer_base, "PPOTrainer._save_checkpoint", epo.before_save)
    wrapt.wrap_function_wrapper(trainer_base, "PPOTrainer._load_checkpoint", epo.after_load)


def wrap_engine(base: Any) -> None:
    """Post-import hook of `verl.workers.engine.base`."""
    wrapt.wrap_function_wrapper(base, "BaseEngine.train_batch", updates.around_mini_batch)


def refuse_legacy_trainer(ray_trainer: Any) -> None:
    """Post-import hook of `verl.trainer.ppo.ray_trainer`: its trainers drop the entropy before the advantage."""
    wrapt.wrap_function_wrapper(ray_trainer, "RayPPOTrainer.__init__", _refuse_before_init)


def _check_before_init(wrapped: Any, trainer: Any, args: tuple, kwargs: dict) -> Any:
    import verl
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

    config = args[0] if args else kwargs["config"]
    check_run(config, set(ADV_ESTIMATOR_REGISTRY), verl.__version__)
    rollout = config.actor_rollout_ref.rollout
    if rollout.agent.default_agent_loop == "environment":
        from agent_loops.loop import open_benchmark

        # a wrong path or setting shows here, and not after minutes of start-up in every episode
        open_benchmark(rollout.custom)
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
        from recipe.aem.queue import read_mask

        nested_mask, side = read_mask(batch), None
        if not nested_mask.values().any():
            result = updates.put_zero_advantages(batch, nested_mask, metrics, algorithm.use_kl_in_reward)
        elif algorithm.adv_estimator not in ESTIMATORS:
            result = wrapped(batch, metrics)
            if algorithm.adv_estimator == OPO:
                updates.clear_masked_advantages(batch)
        else:
            side = _fetch(batch, metrics, Settings.from_config(algorithm), trainer.global_steps)
            token = _SIDE.set(side)
            try:
                result = wrapped(batch, metrics)
            finally:
                _SIDE.reset(token)
        capture.take(trainer, batch, nested_mask, metrics, None if side is None else side.computed)
        return result

    return bound(*args, **kwargs)


def _fetch(batch: Any, metrics: dict, settings: Settings, step: int) -> Any:
    from recipe.aem.advantage import SideInfo
    from recipe.aem.queue import read_rows

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
