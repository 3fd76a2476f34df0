"""The trainer's part of EPO (arXiv 2509.22576), which can be combined with any estimator.

The loss itself runs in the worker (`epo_loss.py`), which sees only micro-batches. The trainer therefore sends it each
token's weight in the batch's mean entropy (column `epo_weight`), and the step's history and schedule
(`extra_info["aem_epo"]`). It keeps the history, saves it with the checkpoint and restores it. `wraps.py` wraps verl's
methods with the functions at the end of this file; without `algorithm.epo.enable` they just call the original.
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
    """The history, which advances once per training step, however many batches a step has.

    verl's separate_async trainer updates the actor several times per step; all these updates see the previous steps.

    Attributes:
        history: of the steps before `step`.
        step: verl's global step for which batches were last added.
        weighted: Σ mean entropy · trajectories over this step's batches, nats.
        trajectories: the number of trajectories in that sum.
    """

    history: EntropyHistory = field(default_factory=EntropyHistory)
    step: int = 0
    weighted: float = 0.0
    trajectories: int = 0

    def add(self, step: int, entropy: float, trajectories: int) -> None:
        """Add a batch's mean entropy; the first batch of a new step completes the previous step."""
        if step != self.step:
            self.history, self.step, self.weighted, self.trajectories = self.completed(), step, 0.0, 0
        self.weighted += entropy * trajectories
        self.trajectories += trajectories

    def completed(self) -> EntropyHistory:
        """Return the history including the current step, as the next step and a checkpoint need it."""
        return self.history.add(self.weighted / self.trajectories) if self.trajectories else self.history


# --- wraps of verl's methods ------------------------------------------------------------------------------------------


def after_init(wrapped: Any, trainer: Any, args: tuple, kwargs: dict) -> Any:
    """Wrap `PPOTrainer.init`; give the workers EPO's loss, built from the actor's settings as verl builds its loss."""
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
    """Wrap `PPOTrainer._update_actor`; attach EPO's weights and the step's numbers, then add the batch to the history.

    This happens here and not at the advantage, because only here the mask is final (rollout correction changes it at
    the advantage), and because steps that only warm up the critic, and leave the policy unchanged, must not enter the
    history.
    """
    settings = EpoSettings.from_config(trainer.config.algorithm)
    if not settings.enable:
        return wrapped(*args, **kwargs)

    def bound(batch: Any, metrics: dict) -> Any:
        return wrapped(_with_terms(trainer, settings, batch, metrics), metrics)

    return bound(*args, **kwargs)


def before_save(wrapped: Any, trainer: Any, args: tuple, kwargs: dict) -> Any:
    """Wrap `PPOTrainer._save_checkpoint`; write the history first: verl's last file makes the checkpoint valid."""
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
    # ⌊K/2⌋ is 0 for a single step; its k is 0, where β is 2 for any K
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
    """Return the batch whose advantages were just computed, with its final mask; otherwise fetch it."""
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
    """Write the history atomically: a reader finds the old file or the new file, never a part of it."""
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
