"""EPO (arXiv 2509.22576) beside any estimator: what the trainer does for it.

The loss itself runs in the worker (`epo_loss.py`). The trainer ships it what a worker, which sees micro-batches only,
cannot know: each token's weight in the batch's mean entropy (column `epo_weight`), and the step's history and schedule
(`extra_info["aem_epo"]`). It keeps the history, saves it with the checkpoint and restores it. `wraps.py` puts the
functions at the end of this file round verl's methods; without `algorithm.epo.enable` they call straight through.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aem_core.epo import EntropyHistory, epo_beta, epo_entropy
from agent_loops.files import write_json
from agent_loops.reading import parse_json, read_bytes, reason
from recipe.aem.batch import Batch
from recipe.aem.columns import put_columns
from recipe.aem.methods.epo import EpoSettings, batch_weights
from recipe.aem.settings import SettingsError

HISTORY_FILE = "aem_epo.json"


@dataclass
class EpoState:
    """The history, which advances once a training step, however many batches a step has.

    verl's separate_async trainer updates the actor several times a step; all of them see the steps before this one.

    Attributes:
        history: of the steps before `step`.
        step: verl's global step that batches were last added for.
        weighted: Σ mean entropy · trajectories over this step's batches, nats.
        trajectories: how many trajectories that is.
    """

    history: EntropyHistory = field(default_factory=EntropyHistory)
    step: int = 0
    weighted: float = 0.0
    trajectories: int = 0

    def add(self, step: int, entropy: float, trajectories: int) -> None:
        """A batch's mean entropy; the first one of another step closes the step before it."""
        if step != self.step:
            self.history, self.step, self.weighted, self.trajectories = self.completed(), step, 0.0, 0
        self.weighted += entropy * trajectories
        self.trajectories += trajectories

    def completed(self) -> EntropyHistory:
        """The history with the current step in it: what the next step sees, and what a checkpoint holds."""
        return self.history.add(self.weighted / self.trajectories) if self.trajectories else self.history


# --- round verl's methods ---------------------------------------------------------------------------------------------


def after_init(wrapped: Any, trainer: Any, args: tuple, kwargs: dict) -> Any:
    """Wrap `PPOTrainer.init`: the workers get EPO's loss, made over the actor's settings as verl makes its own."""
    result = wrapped(*args, **kwargs)
    settings = EpoSettings.from_config(trainer.config.algorithm)
    if settings.enable:
        from functools import partial

        from verl.utils.config import omega_conf_to_dataclass

        from recipe.aem.seam.epo_loss import epo_loss

        actor = omega_conf_to_dataclass(trainer.config.actor_rollout_ref.actor)
        trainer.actor_rollout_wg.set_loss_fn(partial(epo_loss, config=actor, settings=settings))
    return result


def before_update(wrapped: Any, trainer: Any, args: tuple, kwargs: dict) -> Any:
    """Wrap `PPOTrainer._update_actor`: the batch gets its weights and the step's numbers, the history this batch.

    Here and not at the advantage: the mask is final (rollout correction changes it there), and steps that warm up the
    critic alone, which leave the policy as it is, stay out of the history.
    """
    settings = EpoSettings.from_config(trainer.config.algorithm)
    if not settings.enable:
        return wrapped(*args, **kwargs)

    def bound(batch: Any, metrics: dict) -> Any:
        return wrapped(_with_terms(trainer, settings, batch, metrics), metrics)

    return bound(*args, **kwargs)


def before_save(wrapped: Any, trainer: Any, args: tuple, kwargs: dict) -> Any:
    """Wrap `PPOTrainer._save_checkpoint`. Written first: verl ends with the file that makes the checkpoint count."""
    if EpoSettings.from_config(trainer.config.algorithm).enable:
        folder = Path(trainer.config.trainer.default_local_dir) / f"global_step_{trainer.global_steps}"
        _write(folder / HISTORY_FILE, trainer.aem_epo.completed())
    return wrapped(*args, **kwargs)


def after_load(wrapped: Any, trainer: Any, args: tuple, kwargs: dict) -> Any:
    """Wrap `PPOTrainer._load_checkpoint`, which verl calls in every run, resumed or not."""
    result = wrapped(*args, **kwargs)
    settings = EpoSettings.from_config(trainer.config.algorithm)
    if settings.enable:
        history = EntropyHistory()
        if trainer.global_steps > 0:
            history = _read(_resumed_folder(trainer) / HISTORY_FILE, settings.allow_missing_history)
        trainer.aem_epo = EpoState(history, step=trainer.global_steps)
    return result


def _with_terms(trainer: Any, settings: EpoSettings, meta: Any, metrics: dict) -> Any:
    from recipe.aem.seam.epo_loss import STEP_KEY, WEIGHT_COLUMN  # imports verl

    started = time.perf_counter()
    batch = _last_batch(trainer, meta)
    batch.require(["entropies"], needed_by="EPO")
    weight_BT, trajectories = batch_weights(batch)
    entropy = epo_entropy(batch.padded("entropies"), weight_BT).item()

    step = trainer.global_steps
    trainer.aem_epo.add(step, entropy, trajectories)
    reference = trainer.aem_epo.history.reference
    # a single step has no ⌊K/2⌋; its k is 0, where β is 2 whatever K
    beta = epo_beta(step - 1, settings.total_steps or max(trainer.total_training_steps, 2), settings.gamma)
    stored = put_columns(meta, {WEIGHT_COLUMN: batch.ragged(weight_BT).nested()})
    actor = trainer.config.actor_rollout_ref.actor
    mini_batch_rows = actor.ppo_mini_batch_size * trainer.config.actor_rollout_ref.rollout.n
    stored.extra_info = {
        **(meta.extra_info or {}),
        STEP_KEY: {"reference": reference, "beta": beta, "mini_batches": len(meta.keys) / mini_batch_rows},
    }
    metrics["epo/entropy"] = entropy
    metrics["epo/beta"] = beta
    if reference is not None:
        metrics["epo/reference"] = reference
    metrics["timing_s/epo"] = time.perf_counter() - started
    return stored


def _last_batch(trainer: Any, meta: Any) -> Batch:
    """The batch whose advantages were computed just now, with the mask that is final there; else it is fetched."""
    batch, trainer.aem_batch = getattr(trainer, "aem_batch", None), None
    if batch is not None and list(batch.keys) == list(meta.keys):
        return batch
    return Batch.from_queue(meta, ["entropies"])


def _resumed_folder(trainer: Any) -> Path:
    given = trainer.config.trainer
    if given.resume_mode == "resume_path":
        return Path(given.resume_from_path)
    return Path(given.default_local_dir) / f"global_step_{trainer.global_steps}"


def _write(path: Path, history: EntropyHistory) -> None:
    """Atomic: a reader finds the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, history.to_dict())


def _read(path: Path, allow_missing: bool) -> EntropyHistory:
    try:
        return EntropyHistory.from_dict(parse_json(read_bytes(path)))
    except FileNotFoundError:
        if allow_missing:
            return EntropyHistory()
        raise SettingsError(
            f"{path.absolute()} is missing: the checkpoint was saved without EPO, whose history of entropies is not in "
            "it. Set algorithm.epo.allow_missing_history=True to start the history anew from this step"
        ) from None
    except (OSError, ValueError, OverflowError) as error:  # broken JSON, or no history (AEMValueError)
        raise SettingsError(f"{path.absolute()} holds no history of EPO: {reason(error)}") from error
