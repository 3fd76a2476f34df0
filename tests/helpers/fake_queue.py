"""verl's sync trainer without its workers: the queue is a dictionary, the rollouts are scripted answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import NonTensorStack, TensorDict

pytest.importorskip("verl", reason="verl is not installed")

import verl_aem

verl_aem.load()

from verl.trainer.ppo.v1 import replay_buffer, trainer_base  # noqa: E402

from tests.helpers.scripted import run  # noqa: E402

WRONG, RIGHT = "<action>guess[3]</action>", "<action>guess[7]</action>"


class Queue:
    """What TransferQueue does for the trainer, in a dictionary: key → (tag, row)."""

    def __init__(self):
        self.tags: dict[str, dict] = {}
        self.rows: dict[str, dict] = {}

    def add(self, uid: str, trajectories: list[list]) -> None:
        """A finished prompt group: for each trajectory the rows that the agent loop made of it."""
        self.tags[uid] = {"is_prompt": True, "status": "finished", "global_steps": 1}
        for session, outputs in enumerate(trajectories):
            for place, output in enumerate(outputs):
                row = output.as_dict()
                row |= {"uid": uid, "old_log_probs": row["rollout_log_probs"]}
                del row["rollout_log_probs"]  # else verl compares the two, which is not what is tested here
                self.rows[f"{uid}_{session}_{place}"] = row
                self.tags[f"{uid}_{session}_{place}"] = {}

    def kv_list(self) -> dict:
        return {"train": dict(self.tags)}

    def kv_batch_get(self, keys, partition_id, select_fields) -> TensorDict:
        rows = [self.rows[key] for key in keys]
        columns: dict[str, Any] = {}
        for name in (name for name in select_fields if name in rows[0]):
            values = [row[name] for row in rows]
            if isinstance(values[0], torch.Tensor):
                columns[name] = torch.nested.as_nested_tensor(values, layout=torch.jagged)
            else:
                columns[name] = NonTensorStack(*values)
        return TensorDict(columns, batch_size=len(keys))

    def kv_batch_put(self, keys, partition_id, fields) -> Batch:
        for name in fields.keys():  # noqa: SIM118  (a TensorDict is not a mapping of its keys)
            for key, value in zip(keys, fields[name].unbind(), strict=True):
                self.rows[key][name] = value
        return Batch(self, keys)

    def kv_clear(self, partition_id, keys) -> None:
        for key in keys:
            self.tags.pop(key)
            self.rows.pop(key, None)


class Batch:
    partition_id = "train"

    def __init__(self, queue: Queue, keys: list[str]):
        self.keys, self.tags = list(keys), [queue.tags[key] for key in keys]

    def __len__(self) -> int:
        return len(self.keys)


def trainer_of(config: Any, monkeypatch, queue: Queue) -> Any:
    """verl's sync trainer without its workers."""
    for module in (trainer_base, replay_buffer):
        monkeypatch.setattr(module, "tq", queue)
    monkeypatch.setitem(__import__("sys").modules, "transfer_queue", queue)
    from verl.trainer.ppo.v1 import get_trainer_cls

    cls = get_trainer_cls(config.trainer.v1.trainer_mode)
    trainer = cls.__new__(cls)
    trainer.config, trainer.trainer_mode, trainer.global_steps = config, config.trainer.v1.trainer_mode, 1
    return trainer


def play(config: Any, answers: list[str]) -> list:
    """The rows that the loop makes of these answers under the method's settings of an episode."""
    settings = OmegaConf.to_container(config.actor_rollout_ref.rollout.custom.episode, resolve=True)
    assert isinstance(settings, Mapping)
    rows, _ = run(answers, episode={**settings, "max_turns": 2})
    return rows
