"""Where this package meets verl: every name of verl that is wrapped or read is here (one more in `advantage.py`).

verl hands a registered estimator rewards, mask, config and uid only. `PPOTrainer._compute_advantage`, which the sync,
colocate_async and separate_async trainers share, is therefore wrapped: before the original runs, the batch's entropies
and `extra_fields` are fetched into a context variable, which the estimator registered as `aem` reads. With any other
estimator the wrapper calls straight through.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Mapping
from typing import Any

import wrapt

from recipe.aem.settings import ESTIMATOR, GAE, AemSettings, SettingsError, check_config

_SIDE: contextvars.ContextVar[Any] = contextvars.ContextVar("verl_aem_side_information", default=None)


def register_estimator(core_algos: Any) -> None:
    """Post-import hook of `verl.trainer.ppo.core_algos`."""
    core_algos.register_adv_est(ESTIMATOR)(estimator)


def estimator(
    token_level_rewards: Any,
    response_mask: Any,
    config: Any = None,
    index: Any = None,
    batch: Any = None,
    non_tensor_batch: Any = None,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """The estimator that verl looks up as `aem`. It works only inside the wrapped trainer, which fetches entropies."""
    side = _SIDE.get()
    if side is None:
        raise RuntimeError(
            "algorithm.adv_estimator=aem was called without the entropies of the batch: this trainer does not pass "
            "through verl.trainer.ppo.v1.trainer_base.PPOTrainer._compute_advantage, which verl-aem wraps. "
            "Use trainer.use_v1=True with trainer_mode sync, colocate_async or separate_async; the estimator never "
            "falls back to its base"
        )
    from recipe.aem.advantage import modulated_advantages

    return modulated_advantages(side, token_level_rewards, response_mask, index, config)


def wrap_trainer(trainer_base: Any) -> None:
    """Post-import hook of `verl.trainer.ppo.v1.trainer_base`."""
    wrapt.wrap_function_wrapper(trainer_base, "PPOTrainer.__init__", _check_before_init)
    wrapt.wrap_function_wrapper(trainer_base, "PPOTrainer._compute_advantage", _with_side_information)


def refuse_legacy_trainer(ray_trainer: Any) -> None:
    """Post-import hook of `verl.trainer.ppo.ray_trainer`: its trainers drop the entropy before the advantage."""
    wrapt.wrap_function_wrapper(ray_trainer, "RayPPOTrainer.__init__", _refuse_before_init)


def _check_before_init(wrapped: Any, trainer: Any, args: tuple, kwargs: dict) -> Any:
    import verl
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

    config = args[0] if args else kwargs["config"]
    if config.algorithm.adv_estimator == ESTIMATOR:
        check_config(config, set(ADV_ESTIMATOR_REGISTRY), verl.__version__)
    rollout = config.actor_rollout_ref.rollout
    if rollout.agent.default_agent_loop == "environment":
        from agent_loops.loop import open_benchmark

        # a wrong path or setting shows here, and not after minutes of start-up in every episode
        open_benchmark(rollout.custom)
    return wrapped(*args, **kwargs)


def _refuse_before_init(wrapped: Any, trainer: Any, args: tuple, kwargs: dict) -> Any:
    config = args[0] if args else kwargs["config"]
    if config.algorithm.adv_estimator == ESTIMATOR:
        raise SettingsError(
            f"algorithm.adv_estimator=aem does not run on {type(trainer).__name__}, which drops the entropies before "
            "the advantage is computed. Set trainer.use_v1=True (sync, colocate_async or separate_async)"
        )
    return wrapped(*args, **kwargs)


def _with_side_information(wrapped: Any, trainer: Any, args: tuple, kwargs: dict) -> Any:
    algorithm = trainer.config.algorithm
    if algorithm.adv_estimator != ESTIMATOR:
        return wrapped(*args, **kwargs)

    def bound(batch: Any, metrics: dict) -> Any:
        token = _SIDE.set(_fetch(batch, metrics, AemSettings.from_config(algorithm), trainer.global_steps))
        try:
            return wrapped(batch, metrics)
        finally:
            _SIDE.reset(token)

    return bound(*args, **kwargs)


def _fetch(batch: Any, metrics: dict, settings: AemSettings, step: int) -> Any:
    import transfer_queue as tq

    from recipe.aem.advantage import SideInfo

    started = time.perf_counter()
    # the mask comes along so that padding to a rectangle gives the width that verl's own padding gives
    fields = ["entropy", "extra_fields", "response_mask"] + (["values"] if settings.base_estimator == GAE else [])
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
    missing = {"entropy", "response_mask"} - set(data.keys())
    if missing:
        raise RuntimeError(
            f"the batch holds no {' and no '.join(sorted(missing))}: AEM needs the old-policy pass "
            "(algorithm.rollout_correction.bypass_mode=False)"
        )
    extra: list[Mapping[str, Any] | None] = [None] * len(batch.keys)
    if "extra_fields" in data.keys():  # noqa: SIM118  (a TensorDict is not a mapping of its keys)
        extra = data.pop("extra_fields").tolist()
    padded = data.to_padded_tensor()
    return SideInfo(
        settings=settings,
        keys=list(batch.keys),
        is_padding=[bool(tag.get("is_padding", False)) for tag in batch.tags],
        extra_fields=extra,
        entropy_BT=padded["entropy"].float(),
        values_BT=padded["values"].float() if "values" in fields else None,
        step=step,
        metrics=metrics,
        seconds=time.perf_counter() - started,
    )
