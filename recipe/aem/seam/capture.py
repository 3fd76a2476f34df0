"""Collecting a step in verl's trainer. `wraps.py` calls `take` behind the advantages, and puts `around_fit` round
verl's `fit`. Nothing here may stop a training: an error ends the dump, with one warning."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.aem.dump.provenance import machine, versions
from recipe.aem.settings import AemSettings, Settings, SettingsError

if TYPE_CHECKING:
    from torch import Tensor

    from recipe.aem.seam.advantage import Computed

SECONDS = "timing_s/aem_dump"
DROPPED = "aem/dump/dropped"
COLUMNS = {
    "prompts": "prompt_ids",
    "responses": "response_ids",
    "response_mask": "response_mask",
    "rm_scores": "rewards",
    # where KL is taken off the rewards; read after `rm_scores`, whose place it takes
    "token_level_rewards": "rewards",
    "old_log_probs": "old_log_probs",
    "entropy": "entropies",
    "values": "values",
    "advantages": "advantages",
}
"""verl's columns, and the format's."""


def take(trainer: Any, batch: Any, nested_mask: Tensor, metrics: dict[str, Any], computed: Computed | None) -> None:
    """Dump a step, if the settings want it, whose advantages stand in TransferQueue.

    The rows are fetched here and now, since verl clears them at the end of the step; the rest is the writer's.

    Args:
        trainer: verl's; keeps the writer.
        batch: its `KVBatchMeta`.
        nested_mask: the response mask before the advantages: its width is what the estimator saw.
        metrics: of the step; gets the seconds that training waited, and whether the step was dropped.
        computed: how the advantages came about, where an estimator of this package made them.
    """
    settings = AemSettings.from_config(trainer.config.algorithm)
    if settings.dump_dir is None or trainer.global_steps % settings.dump_every:
        return
    from recipe.aem.dump.writer import Writer

    if getattr(trainer, "aem_dump", None) is None:
        trainer.aem_dump = Writer(Path(settings.dump_dir))
    writer = trainer.aem_dump
    if writer.stopped:
        return
    started = time.perf_counter()
    try:
        step = _collect(trainer, batch, nested_mask, settings.dump_rows, computed)
        metrics[DROPPED] = float(not writer.put(step))
    except Exception as error:
        writer.stop(error)
    metrics[SECONDS] = time.perf_counter() - started


def around_fit(wrapped: Any, trainer: Any, args: tuple, kwargs: dict) -> Any:
    """Wrap `PPOTrainer.fit`: however it ends, what waits is written."""
    try:
        return wrapped(*args, **kwargs)
    finally:
        if (writer := getattr(trainer, "aem_dump", None)) is not None:
            writer.close()


def choose_rows(groups: Sequence[str], limit: int | None, step: int) -> list[int]:
    """The rows of whole prompt groups, at most `limit`; which groups, is drawn anew at each step.

    Raises:
        SettingsError: not one group fits.

    Examples:
        >>> choose_rows(["a", "b", "a", "b", "b"], 4, step=1)
        [0, 2]
    """
    if limit is None or len(groups) <= limit:
        return list(range(len(groups)))
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    fitting = {group: of_one for group, of_one in rows.items() if len(of_one) <= limit}
    if not fitting:
        raise SettingsError(
            f"algorithm.aem.dump_rows={limit} leaves no room for a prompt group: those of step {step} have "
            f"{min(map(len, rows.values()))} to {max(map(len, rows.values()))} rows"
        )
    chosen: list[int] = []
    # drawn, and up to the first that does not fit: whoever goes on with smaller ones prefers short episodes
    for group in random.Random(step).sample(sorted(fitting), len(fitting)):
        if len(chosen) + len(rows[group]) > limit:
            break
        chosen += rows[group]
    return sorted(chosen)


def _collect(trainer: Any, batch: Any, nested_mask: Tensor, limit: int | None, computed: Computed | None) -> Any:
    import transfer_queue as tq

    from recipe.aem.dump.step import Meta, Ragged, Step

    padding = [bool(tag.get("is_padding", False)) for tag in batch.tags]
    live = [row for row, is_padding in enumerate(padding) if not is_padding]
    groups = [batch.keys[row].rsplit("_", 2)[0] for row in live]
    chosen = [live[place] for place in choose_rows(groups, limit, trainer.global_steps)]
    # padding rows matter to nobody but to verl's own estimators, which see them
    kept = list(range(len(padding))) if len(chosen) == len(live) else chosen
    keys = [batch.keys[row] for row in kept]
    data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=[*COLUMNS, "uid", "extra_fields"])
    names = set(data.keys())
    tokens = {ours: Ragged.from_rows(list(data[name].unbind(0))) for name, ours in COLUMNS.items() if name in names}
    extra_fields = data.pop("extra_fields").tolist() if "extra_fields" in names else [None] * len(kept)

    width = max((len(row) for row in nested_mask.unbind(0)), default=0)
    tokens["base_advantages"] = _base(computed, kept, tokens["advantages"]) if computed else tokens["advantages"]
    config = trainer.config
    algorithm = _plain(config.algorithm)
    stats: Any = None if computed is None else computed.stats
    meta = Meta(
        step=int(trainer.global_steps),
        part=int(getattr(trainer, "local_trigger_step", 0)),
        parts=int(getattr(trainer, "parameter_sync_step", 1)),
        width=width,
        rows=len(live),
        groups=len(set(groups)),
        rows_left_out=len(live) - len(chosen),
        groups_left_out=len(set(groups)) - len({batch.keys[row].rsplit("_", 2)[0] for row in chosen}),
        estimator=str(algorithm["adv_estimator"]),
        settings=dataclasses.asdict(Settings.from_config(algorithm)),
        algorithm=algorithm,
        weights="alpha" if hasattr(stats, "alpha_N") else "scale" if hasattr(stats, "scale_N") else None,
        centre=float(stats.centre) if hasattr(stats, "centre") else None,
        run=_run(config),
        data=_data(config),
        packages=versions(),
        machine=machine(),
        written=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    step = Step(
        meta=meta,
        keys=keys,
        groups=[str(uid) for uid in data.pop("uid").tolist()],
        is_padding=[padding[row] for row in kept],
        extra_fields=[extra or {} for extra in extra_fields],
        tokens=tokens,
    )
    return _with_weights(step, kept, computed)


def _base(computed: Computed, kept: Sequence[int], advantages: Any) -> Any:
    """The base's advantages in the rows of the dump: 0 in padding rows, which take no part."""
    from recipe.aem.dump.step import Ragged

    place = {row: number for number, row in enumerate(computed.live_L)}
    rows = []
    for row, final in zip(kept, advantages.rows(), strict=True):
        zero = final.new_zeros(len(final), dtype=computed.base_LT.dtype)
        rows.append(computed.base_LT[place[row], : len(final)] if row in place else zero)
    return Ragged.from_rows(rows)


def _with_weights(step: Any, kept: Sequence[int], computed: Computed | None) -> Any:
    from recipe.aem.dump.schema import all_spans

    stats: Any = None if computed is None else computed.stats
    if computed is None or stats is None:
        return step
    place = {row: number for number, row in enumerate(kept)}
    spans = [len(of_row) for of_row in all_spans(step)]

    def in_rows(value_N: Tensor) -> list[list[float | None]]:
        values: list[list[float | None]] = [[None] * count for count in spans]
        responses = computed.responses
        for row, span, value in zip(responses.row_N.tolist(), responses.span_N.tolist(), value_N.tolist(), strict=True):
            if (number := place.get(computed.live_L[row])) is not None:
                values[number][span] = value
        return values

    weight_N = stats.alpha_N if hasattr(stats, "alpha_N") else stats.scale_N
    bonuses = in_rows(stats.bonus_N) if hasattr(stats, "bonus_N") else None
    return dataclasses.replace(step, weights=in_rows(weight_N), bonuses=bonuses)


def _plain(config: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else dict(config)  # type: ignore[return-value]


def _select(config: Any, path: str) -> Any:
    from omegaconf import OmegaConf

    found = OmegaConf.select(config, path)
    return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found


def _run(config: Any) -> Mapping[str, Any]:
    model = _select(config, "actor_rollout_ref.model.path")
    return {
        "project": _select(config, "trainer.project_name"),
        "experiment": _select(config, "trainer.experiment_name"),
        "model": model,
        "tokenizer": _select(config, "actor_rollout_ref.model.tokenizer_path") or model,
        "temperature": _select(config, "actor_rollout_ref.rollout.temperature"),
    }


def _data(config: Any) -> Mapping[str, Any]:
    return {
        "train_files": _select(config, "data.train_files"),
        "benchmark": _select(config, "actor_rollout_ref.rollout.custom.benchmark"),
    }
