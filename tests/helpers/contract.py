"""Rows, batches and queues as verl has them, for the contract tests."""

from __future__ import annotations

import asyncio

import pytest
import torch
from tensordict import TensorDict

pytest.importorskip("verl", reason="verl is not installed")

import verl_aem

verl_aem.load()

from transfer_queue import KVBatchMeta  # noqa: E402
from verl import DataProto  # noqa: E402
from verl.experimental.agent_loop import agent_loop as verl_loop  # noqa: E402
from verl.trainer.ppo.v1 import agent_loop_tq  # noqa: E402


def nested(values):
    return torch.nested.as_nested_tensor([torch.as_tensor(value) for value in values], layout=torch.jagged)


class Queue:
    """TransferQueue's calls over a dictionary of columns; keeps what was put."""

    def __init__(self, **columns):
        self.columns, self.put = columns, {}

    def kv_batch_get(self, keys, partition_id, select_fields=None):
        names = self.columns if select_fields is None else [name for name in select_fields if name in self.columns]
        return TensorDict({name: self.columns[name] for name in names}, batch_size=len(self.keys))

    def kv_batch_put(self, keys, partition_id, fields, tags=None):
        self.put.update({name: fields[name] for name in fields.keys()})  # noqa: SIM118
        return KVBatchMeta(keys=list(keys), tags=tags or [{} for _ in keys], partition_id=partition_id)

    keys = ("u_0_0", "u_1_0")


def post_process(monkeypatch, outputs, **columns):
    written: dict = {}

    async def put(**arguments):
        written.update(arguments)

    monkeypatch.setattr(agent_loop_tq.tq, "async_kv_batch_put", put)
    cls = agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class
    worker = cls.__new__(cls)
    worker.reward_loop_worker_handles, worker.distillation_enabled, worker.processor = None, False, None
    arguments = {"uid": "u", "session_id": 3, "global_steps": 5, **columns}
    asyncio.run(worker._agent_loop_postprocess(outputs, False, **arguments))
    return written


def output(reward=None, **extra_fields):
    return verl_loop.AgentLoopOutput(
        prompt_ids=[1, 2],
        response_ids=[3, 4],
        response_mask=[1, 1],
        response_logprobs=[-0.5, -0.5],
        reward_score=reward,
        num_turns=2,
        metrics=verl_loop.AgentLoopMetrics(generate_sequences=0.0, tool_calls=0.0, num_preempted=-1),
        extra_fields=extra_fields,
    )


def rows_of_two():
    tensors = {"token_level_rewards": torch.tensor([[0.0, 1.0], [0.0, 0.0]]), "response_mask": torch.ones(2, 2)}
    return DataProto.from_dict(tensors, non_tensors={"uid": ["u", "u"]})
