"""Synthetic batches that run through verl's own `_compute_advantage` with a fake TransferQueue, and their dumps."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import NonTensorStack, TensorDict

import verl_aem
from recipe.aem.dump.reader import read_step
from recipe.aem.dump.step import Step
from recipe.aem.dump.writer import write_step

verl_aem.load()

from verl.trainer.ppo.v1 import trainer_base  # noqa: E402

AEM = {"adv_estimator": "aem", "aem": {"base_estimator": "grpo_rows"}}
EMPG = {"adv_estimator": "empg", "empg": {"base_estimator": "grpo_rows"}}
ALGORITHM = {"gamma": 0.95, "lam": 0.9, "use_kl_in_reward": False, "norm_adv_by_std_in_grpo": True}
FAULT = "turn 0: OSError: the machine is gone"
NESTED = ("prompts", "responses", "response_mask", "rm_scores", "old_log_probs", "entropy", "values", "advantages")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Each once: a record may reach pytest's handler twice."""
    return list({id(record): record.getMessage() for record in caplog.records}.values())


class Batch(SimpleNamespace):
    """The used part of verl's `KVBatchMeta`."""

    def __len__(self) -> int:
        return len(self.keys)


class Queue:
    """The two used calls of TransferQueue, over one value per key and column; `asked` lists what was fetched."""

    def __init__(self, columns: Mapping[str, Sequence[Any]], batch: Batch):
        self.batch, self.asked = batch, []
        self.columns = {name: dict(zip(batch.keys, values, strict=True)) for name, values in columns.items()}

    def kv_batch_get(self, keys, partition_id, select_fields):
        self.asked.append(list(select_fields))
        chosen = {}
        for name in select_fields:
            if name in self.columns:
                values = [self.columns[name][key] for key in keys]
                nested = isinstance(values[0], torch.Tensor)
                chosen[name] = (
                    torch.nested.as_nested_tensor(values, layout=torch.jagged) if nested else NonTensorStack(*values)
                )
        return TensorDict(chosen, batch_size=len(keys))

    def kv_batch_put(self, keys, partition_id, fields):
        for name in fields.keys():  # noqa: SIM118
            self.columns.setdefault(name, {}).update(zip(keys, fields[name].unbind(0), strict=True))
        return self.batch


class Shelf:
    """A writer that keeps the steps in memory."""

    def __init__(self) -> None:
        self.stopped: Exception | bool = False
        self.steps: list[Step] = []

    def put(self, step: Step) -> bool:
        self.steps.append(step)
        return True

    def stop(self, error: Exception) -> None:
        raise error


def make_batch(
    seed: int, layout: str = "turns", groups: int = 3, recorded: bool = True, masked: float = 0.1, faults: float = 0.0
) -> Queue:
    """Return a batch of `groups` prompt groups of four trajectories, in mixed order, and a padding row.

    Args:
        seed: seed of all random choices.
        layout: `turns`, one row per turn, or `transcript`, many responses per row.
        groups: number of prompt groups.
        recorded: whether the loop recorded spans and the fields that belong to them.
        masked: how often a whole trajectory is masked.
        faults: how often its environment fails.
    """
    chance = random.Random(seed)
    trouble = random.Random(f"{seed} trouble")  # separate, so that faults change nothing else in a batch
    doing = random.Random(f"{seed} doing")
    rows: list[dict[str, Any]] = []
    # rows of all groups, each with four trajectories
    for group in range(groups):
        kind = chance.choice(("look", "heat"))
        for session in range(4):
            won, lost, count = chance.random() < 0.5, chance.random() < masked, chance.randint(1, 5)
            info = {"acc": float(won), "task_score": chance.random(), f"acc/{kind}": float(won), "turns": 3.0}
            fault = FAULT if trouble.random() < faults else ""
            shared = {"fault": fault, "cut": "turns" if lost else "", "reward_extra_info": info}
            turns = [(turn, chance.randint(1, 6), f"page {chance.randint(0, 2)}") for turn in range(count)]
            parts = [[turn] for turn in turns] if layout == "turns" else [turns]
            for place, of_row in enumerate(parts):
                mask: list[int] = []
                spans = []
                for _, length, _ in of_row:
                    spans.append([len(mask), len(mask) + length])
                    mask += [1] * length + [0] * chance.randint(1, 3)
                extra = {
                    "response_spans": spans,
                    "turn_index": [turn for turn, *_ in of_row],
                    "turn_rewards": [trouble.choice((0.0, 0.0, 0.5)) for _ in spans],
                    "turn_penalties": [-chance.choice((0.0, 0.1)) for _ in spans],
                    "turn_valid": [chance.random() < 0.9 for _ in spans],
                    "turn_kinds": [anchor.replace(" ", "") for *_, anchor in of_row],
                    "anchors": [anchor for *_, anchor in of_row],
                    "actions": [f"go {doing.randint(0, 1)}" for _ in of_row],
                    **shared,
                }
                rows.append(
                    {
                        "key": f"g{group}_{session}_{place}",
                        "uid": f"g{group}",
                        "mask": [0] * len(mask) if lost or fault else mask,
                        "reward": 0.0 if fault else 10.0 * won,
                        "extra": extra if recorded else {},
                    }
                )
    chance.shuffle(rows)
    padding = {"key": "padff_0_0", "uid": "padff", "mask": [0], "reward": 0.0, "extra": rows[0]["extra"]}
    # verl appends padding rows, then balances the batch
    rows.insert(chance.randrange(len(rows)), padding)
    # verl's columns, with random values
    random_state = torch.Generator().manual_seed(seed)
    lengths = [len(row["mask"]) for row in rows]

    def noise(low: float, high: float) -> list[torch.Tensor]:
        return [torch.rand(n, generator=random_state) * (high - low) + low for n in lengths]

    columns = {
        "prompts": [torch.arange(chance.randint(1, 9)) for _ in rows],
        "responses": [torch.arange(100, 100 + n) for n in lengths],
        "response_mask": [torch.tensor(row["mask"]) for row in rows],
        "rm_scores": [torch.tensor([0.0] * (n - 1) + [row["reward"]]) for n, row in zip(lengths, rows, strict=True)],
        "old_log_probs": noise(-2.0, 0.0),
        "entropy": noise(0.0, 2.0),
        "values": noise(-1.0, 1.0),
        "ref_log_prob": noise(-2.0, 0.0),
        "uid": [row["uid"] for row in rows],
        "extra_fields": [row["extra"] for row in rows],
    }
    keys = [row["key"] for row in rows]
    tags = [{"is_padding": key.startswith("pad")} for key in keys]
    return Queue(columns, Batch(keys=keys, partition_id="train", tags=tags))


def make_trainer(algorithm: Mapping[str, Any], step: int = 3, **attributes: Any) -> Any:
    """Return a trainer that can compute advantages and nothing else."""
    trainer = trainer_base.PPOTrainer.__new__(trainer_base.PPOTrainer.__subclasses__()[0])
    trainer.global_steps = step
    trainer.config = OmegaConf.create(
        {
            "algorithm": {**ALGORITHM, **algorithm},
            "actor_rollout_ref": {
                "actor": {"loss_agg_mode": "token-mean"},
                "rollout": {"n": 4, "custom": {"benchmark": {"target": "shop"}}, "temperature": 1.0},
                "model": {"path": "my/model", "tokenizer_path": None},
            },
            "data": {"train_files": ["train.parquet"]},
            "trainer": {"project_name": "project", "experiment_name": "experiment"},
        }
    )
    for name, value in attributes.items():
        setattr(trainer, name, value)
    return trainer


def advance(trainer: Any, queue: Queue, metrics: dict[str, Any] | None = None) -> dict[str, Any]:
    """Call verl's `_compute_advantage` once and return the metrics."""
    metrics = {} if metrics is None else metrics
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_base, "tq", queue)
        # patch only this entry: mock.patch.dict briefly empties sys.modules, and the dump's thread may import meanwhile
        patch.setitem(sys.modules, "transfer_queue", queue)
        trainer._compute_advantage(queue.batch, metrics)
    return metrics


def dump(queue: Queue, algorithm: Mapping[str, Any], directory: Path, step: int = 3, **settings: Any) -> Path:
    """Dump one step and return its file."""
    written = {**algorithm, "dump": {"dir": str(directory), **settings}}
    trainer = make_trainer(written, step, aem_dump=(shelf := Shelf()))
    advance(trainer, queue)
    directory.mkdir(exist_ok=True, parents=True)
    (one,) = shelf.steps
    return write_step(one, directory)


def dumped(queue: Queue, algorithm: Mapping[str, Any], directory: Path, **settings: Any) -> Step:
    """Dump one step and return it as read back."""
    return read_step(dump(queue, algorithm, directory, **settings))
