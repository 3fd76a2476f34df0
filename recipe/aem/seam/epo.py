"""EPO (arXiv 2509.22576) beside any estimator: what the trainer does for it.

The loss itself runs in the worker (`epo_loss.py`). The trainer ships it what a worker, which sees micro-batches only,
cannot know: each token's weight in the batch's mean entropy (column `epo_weight`), and the step's history and schedule
(`extra_info["aem_epo"]`). It keeps the history, saves it with the checkpoint and restores it. `wraps.py` puts the
functions at the end of this file round verl's methods; without `algorithm.epo.enable` they call straight through.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aem_core.epo import EntropyHistory, epo_beta, epo_entropy, epo_token_weights
from agent_loops.files import write_json
from agent_loops.reading import parse_json, read_bytes, reason
from recipe.aem.batch import read_rows
from recipe.aem.rows import number_labels, responses_of_rows, trained_rows
from recipe.aem.settings import EpoSettings, SettingsError

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


def batch_weights(
    keys: Sequence[str],
    is_padding: Sequence[bool],
    extra_fields: Sequence[Mapping[str, Any] | None],
    mask_BT: Tensor,
) -> tuple[Tensor, int]:
    """The weight of each token in the batch's mean entropy, and the number of trajectories that hold a response.

    Responses are those of AEM: the loop's spans where it recorded them, else runs of the mask, never a token off the
    mask. A trajectory without a response (filtered, or rejected by rollout correction) does not count, nor does one
    with a fault, or one that faults left alone in its prompt group.

    Args:
        keys: `{uid}_{session}_{index}`, verl's name of a row.
        is_padding: rows that verl added to fill a mini-batch; the weights of all rows that do not count are 0.
        extra_fields: what the agent loop left with each row.
        mask_BT: response mask.

    Returns:
        (B, T) weights that sum to 1, or to 0 in a batch without responses; the number of trajectories.
    """
    live_L = trained_rows(keys, [key.rsplit("_", 2)[0] for key in keys], is_padding, extra_fields)
    responses = responses_of_rows([extra_fields[row] or {} for row in live_L], mask_BT[live_L])
    trajectory_N = number_labels([keys[row].rsplit("_", 1)[0] for row in live_L])[responses.row_N]
    weight_BT = torch.zeros(mask_BT.shape)
    weight_BT[live_L] = epo_token_weights(responses, trajectory_N)
    return weight_BT, len(torch.unique(trajectory_N))


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


def _with_terms(trainer: Any, settings: EpoSettings, batch: Any, metrics: dict) -> Any:
    import transfer_queue as tq
    from tensordict import TensorDict
    from verl.workers.utils.padding import response_to_nested

    from recipe.aem.seam.epo_loss import STEP_KEY, WEIGHT_COLUMN

    started = time.perf_counter()
    rows = read_rows(batch, ["entropy"], needed_by="EPO")
    weight_BT, trajectories = batch_weights(
        batch.keys, rows.is_padding, rows.extra_fields, rows.columns["response_mask"]
    )
    entropy = epo_entropy(rows.columns["entropy"], weight_BT).item()

    step = trainer.global_steps
    trainer.aem_epo.add(step, entropy, trajectories)
    reference = trainer.aem_epo.history.reference
    # a single step has no ⌊K/2⌋; its k is 0, where β is 2 whatever K
    beta = epo_beta(step - 1, settings.total_steps or max(trainer.total_training_steps, 2), settings.gamma)
    columns = TensorDict({WEIGHT_COLUMN: response_to_nested(weight_BT, rows.nested_mask)}, batch_size=len(batch.keys))
    stored = tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=columns)
    actor = trainer.config.actor_rollout_ref.actor
    mini_batch_rows = actor.ppo_mini_batch_size * trainer.config.actor_rollout_ref.rollout.n
    stored.extra_info = {
        **(batch.extra_info or {}),
        STEP_KEY: {"reference": reference, "beta": beta, "mini_batches": len(batch.keys) / mini_batch_rows},
    }
    metrics["epo/entropy"] = entropy
    metrics["epo/beta"] = beta
    if reference is not None:
        metrics["epo/reference"] = reference
    metrics["timing_s/epo"] = time.perf_counter() - started
    return stored


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
