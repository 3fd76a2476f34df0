"""What this project depends on in verl's trainers and replay buffer, one test per name.

An incompatible verl fails here and in the other test_contract_… files, with a hint. Not covered: whether the real
trainer behaves so with Ray, a real TransferQueue and vLLM (tests/e2e); what the shipped configurations say
(tests/recipe/configs).
"""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import NonTensorStack

pytest.importorskip("verl", reason="verl is not installed")

import verl_aem

verl_aem.load()

import transfer_queue  # noqa: E402
from transfer_queue import KVBatchMeta  # noqa: E402
from verl.experimental.agent_loop import agent_loop as verl_loop  # noqa: E402
from verl.trainer.ppo.v1 import agent_loop_tq, get_trainer_cls, replay_buffer, trainer_base  # noqa: E402

from tests.helpers.contract import Queue, nested, output, post_process, rows_of_two  # noqa: E402

MODES = ("sync", "colocate_async", "separate_async")


WRAPPED = {
    "_compute_advantage": ["batch", "metrics"],
    **{"fit": ["agent_loop_manager"], "_validate": [], "init": [], "_update_actor": ["batch", "metrics"]},
    **{"_save_checkpoint": [], "_load_checkpoint": []},
}


@pytest.mark.parametrize("mode", MODES)
def test_no_trainer_mode_has_its_own_of_a_wrapped_method(mode):
    trainer = get_trainer_cls(mode)
    for name, parameters in WRAPPED.items():
        own = [cls.__name__ for cls in trainer.__mro__ if name in vars(cls)]
        assert own == ["PPOTrainer"], f"{mode}'s {name} would bypass recipe.aem.seam.wraps"
        assert list(inspect.signature(getattr(trainer, name)).parameters) == ["self", *parameters]
    # our wrap passes the others on
    assert list(inspect.signature(trainer._compute_metrics).parameters)[:3] == ["self", "batch", "metrics"]
    assert "__init__" not in vars(trainer) or "super().__init__" in inspect.getsource(trainer.__init__), (
        # source: constructing these trainers needs a whole configuration
        f"{mode} would bypass the checks at start-up"
    )


@pytest.mark.parametrize("mode", MODES)
def test_every_trainer_asks_for_advantages_in_one_place_by_keyword(mode, monkeypatch):
    """What recipe.aem.seam.wraps._of_trained_rows is put round, and the names that it binds."""
    names = list(inspect.signature(trainer_base.compute_advantage_for_multi_trajectories).parameters)
    assert names[:3] == ["data", "batch_keys", "adv_estimator"] and names[-1] == "config"
    seen: list[dict] = []

    def compute(data, **given):
        seen.append({"data": data, **given})
        data.batch["advantages"] = data.batch["returns"] = data.batch["token_level_rewards"]
        return data

    monkeypatch.setattr(trainer_base, "compute_advantage_for_multi_trajectories", compute)
    scores = nested([[0.0, 1.0], [1.0]])
    uid = NonTensorStack("u", "u")
    queue = Queue(response_mask=nested([[1, 1], [1]]), rm_scores=scores, uid=uid, extra_fields=NonTensorStack({}, {}))
    monkeypatch.setattr(trainer_base, "tq", queue)
    monkeypatch.setitem(sys.modules, "transfer_queue", queue)
    trainer = trainer_base.PPOTrainer.__new__(get_trainer_cls(mode))
    trainer.global_steps = 1
    algorithm = {"adv_estimator": "rloo", "use_kl_in_reward": False, "gamma": 1.0, "lam": 1.0}
    trainer.config = OmegaConf.create({"algorithm": algorithm, "actor_rollout_ref": {"rollout": {"n": 2}}})
    trainer._compute_advantage(KVBatchMeta(keys=list(Queue.keys), tags=[{}, {}], partition_id="train"), {})
    (given,) = seen
    assert given["batch_keys"] == list(Queue.keys) and given["adv_estimator"] == "rloo"
    assert given["config"] is trainer.config.algorithm
    assert {"token_level_scores", "token_level_rewards", "response_mask"} <= set(given["data"].batch.keys())
    assert set(queue.put) == {"advantages", "returns"}


def test_some_rows_of_a_batch_can_be_selected_in_order():
    data = rows_of_two().select_idxs([1])
    assert data.batch["token_level_rewards"].tolist() == [[0.0, 0.0]] and list(data.non_tensor_batch["uid"]) == ["u"]


def test_a_mini_batchs_tokens_are_counted_in_a_copy_of_the_mask(monkeypatch):
    """Why recipe.aem.queue.put_mask writes both: the engines normalise by `loss_mask`."""
    fields = post_process(monkeypatch, output(1.0, reward_extra_info={}))["fields"]
    assert fields["loss_mask"][0].tolist() == fields["response_mask"][0].tolist()
    # source: an engine needs a model and a process group
    from verl.workers.engine.fsdp import transformer_impl

    assert 'data["loss_mask"].sum()' in inspect.getsource(transformer_impl)


def test_both_replay_buffers_have_the_one_group_filter_that_is_wrapped(monkeypatch):
    from recipe.aem.seam import filters

    base = replay_buffer.ReplayBuffer
    assert vars(base)["_dapo_filtered_keys"]._self_wrapper is filters.without_faults
    assert issubclass(replay_buffer.ReplayBufferAsync, base)
    assert "_dapo_filtered_keys" not in vars(replay_buffer.ReplayBufferAsync)
    assert list(inspect.signature(base._dapo_filtered_keys).parameters) == ["self", "partition_id"]
    # what recipe.aem.seam.filters reads and, for a group that faults leave alone, writes of the buffer
    buffer = base.__new__(base)
    buffer.filter_groups_metric = "reward"
    buffer.finished_keys, buffer.partitions = {"train": {"u", "v"}}, {"train": {"v_0_0": {}, "v_1_0": {}}}
    buffer._dapo_classification_cache = {"train": {"u": 3.0}}
    queue = Queue(rm_scores=nested([[0.0, 1.0], [2.0]]), extra_fields=NonTensorStack({"fault": "x"}, {}))
    monkeypatch.setattr(replay_buffer, "tq", queue)
    monkeypatch.setitem(sys.modules, "transfer_queue", queue)
    dropped, counts = buffer._dapo_filtered_keys("train")
    assert dropped == {"u", "v"} and counts[3.0] == 1 and sum(counts.values()) == 2


def test_verl_stops_on_a_batch_without_a_token():
    """Why empty_updates.py keeps such a batch from it; if this fails, see whether verl skips the update by itself."""
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_rejection_mask

    values = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="response_mask must contain at least one valid token"):
        compute_rollout_correction_and_rejection_mask(values, values, response_mask=values)


def old_policy_pass(monkeypatch, bypass: bool):
    # prompts of 2 and 1 tokens, responses of 2 and 3; the model's output at position t speaks of token t + 1
    queue = Queue(
        entropy=nested([[0.0, 0.1, 0.2, 9.0], [1.0, 1.1, 1.2, 9.0]]),
        log_probs=nested([[0.0, -0.1, -0.2, -9.0], [-1.0, -1.1, -1.2, -9.0]]),
        response_mask=nested([[1, 1], [1, 1, 1]]),
        rollout_log_probs=nested([[-1.0, -1.0], [-1.0, -1.0, -1.0]]),
    )
    monkeypatch.setattr(trainer_base, "tq", queue)
    trainer = trainer_base.PPOTrainer.__new__(get_trainer_cls("sync"))
    trainer.config = OmegaConf.create(
        {
            "algorithm": {"rollout_correction": {"bypass_mode": bypass}},
            "actor_rollout_ref": {
                "rollout": {"temperature": 1.0, "calculate_log_probs": False},
                "actor": {"loss_agg_mode": "token-mean", "loss_scale_factor": None},
            },
        }
    )
    trainer.actor_rollout_wg = SimpleNamespace(compute_log_prob=lambda batch: batch)
    batch = KVBatchMeta(keys=list(Queue.keys), tags=[{}, {}], partition_id="train")
    trainer._compute_old_log_prob(batch, {})
    return queue, batch


def test_the_old_policy_pass_leaves_entropies_beside_the_responses(monkeypatch):
    queue, batch = old_policy_pass(monkeypatch, bypass=False)
    assert batch.extra_info["calculate_entropy"] is True
    assert set(queue.put) == {"old_log_probs", "entropy"}
    rows = [row.tolist() for row in queue.put["entropy"].unbind()]
    assert rows == [pytest.approx([0.1, 0.2]), pytest.approx([1.0, 1.1, 1.2])]


def test_the_bypass_mode_that_is_refused_leaves_no_entropies(monkeypatch):
    queue, _ = old_policy_pass(monkeypatch, bypass=True)
    assert "entropy" not in queue.put, "settings.check_config refuses bypass_mode for this reason"


def test_the_queue_is_asked_by_keys_partition_and_fields():
    """What recipe.aem.queue calls; signatures, for a real call needs Ray."""
    assert list(inspect.signature(transfer_queue.kv_batch_get).parameters) == ["keys", "partition_id", "select_fields"]
    put = list(inspect.signature(transfer_queue.kv_batch_put).parameters)
    assert put[:3] == ["keys", "partition_id", "fields"]


def test_verl_reads_the_queue_that_the_seam_reads():
    assert trainer_base.tq is transfer_queue and replay_buffer.tq is transfer_queue


def test_one_module_imports_the_queue():
    root = Path(__file__).parents[3]
    ours = (path for folder in ("agent_loops", "recipe", "verl_aem") for path in (root / folder).rglob("*.py"))
    importing = re.compile(r"^\s*(import|from) transfer_queue", re.MULTILINE)
    found = [path.relative_to(root).as_posix() for path in ours if importing.search(path.read_text())]
    assert found == ["recipe/aem/queue.py"]


def test_the_replay_buffer_is_wrapped_where_it_chooses_waits_and_throws_away():
    from recipe.aem.seam import trajectory_wraps

    wrapped = {
        "_evict_terminal_groups": (trajectory_wraps.before_evict, ["global_steps", "partition_id", "eviction_reasons"]),
        "_select_prompt_uids": (trajectory_wraps.after_select, ["partition_id", "sampleable_keys", "batch_size"]),
        "_wait_for_next_poll": (trajectory_wraps.before_wait, ["partition_id", "last_debug_time"]),
    }
    for name, (wrapper, names) in wrapped.items():
        method = vars(replay_buffer.ReplayBuffer)[name]
        assert method._self_wrapper is wrapper and list(inspect.signature(method).parameters) == ["self", *names]
        assert name not in vars(replay_buffer.ReplayBufferAsync), f"{name} of the asynchronous buffer would go round it"
    one, other = replay_buffer.ReplayBuffer, replay_buffer.ReplayBufferAsync
    for method in (one.sample, getattr(other, "wait_for_sampleable", other.sample)):  # verl 0.9.0 waits in the latter
        called = inspect.unwrap(method).__code__.co_names
        assert {"_evict_terminal_groups", "_wait_for_next_poll"} <= set(called), "a loop of verl's waits unseen"
    for cls in (replay_buffer.ReplayBuffer, replay_buffer.ReplayBufferAsync):
        assert "_select_prompt_uids" in inspect.unwrap(cls.sample).__code__.co_names


def test_a_session_that_raises_leaves_no_row_and_a_failure():
    """Why recipe.aem.seam.trajectories counts; if this fails, see what verl now does with a session that raises."""
    put: list = []

    async def kv_put(**what):
        put.append(what)

    class Worker:
        config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"n": 3, "val_kwargs": {"n": 1}}}})
        played: ClassVar[list[int]] = []

        async def _run_agent_loop(self, sampling_params, trajectory, trace, session_id, **prompt):
            self.played.append(session_id)
            if session_id == 1:
                raise RuntimeError("the engine")

    run = agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class._run_prompt
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agent_loop_tq.tq, "async_kv_put", kv_put)
        asyncio.run(run(Worker(), {"uid": "u"}, {}, {"validate": False}))
        asyncio.run(run(Worker(), {"uid": "v", "__rollout_n__": 1}, {}, {"validate": False}))
    assert Worker.played == [0, 1, 2, 0], "`__rollout_n__` is how many sessions a prompt has"
    assert [(one["key"], one["tag"]["status"]) for one in put] == [
        *(("u", "running"), ("u", "failure"), ("v", "running"), ("v", "finished")),
    ]


def test_what_plays_is_where_the_watch_looks_for_it():
    """`recipe.aem.seam.liveness.watch_of`; verl's own actors are looked at in tests/e2e/test_faults.py."""
    from verl.workers.rollout.llm_server import LLMServerManager
    from verl.workers.rollout.replica import RolloutReplica

    manager = LLMServerManager.__new__(LLMServerManager)
    manager.rollout_replicas, manager.server_addresses = ["replica"], ["host:1"]
    assert manager.get_replicas() == ["replica"] and manager.get_addresses() == ["host:1"]
    assert {"servers", "replica_rank"} <= set(RolloutReplica.__init__.__code__.co_names)
    assert "agent_loop_workers" in verl_loop.AgentLoopManager._init_agent_loop_workers.__code__.co_names
    assert "llm_server_manager" in trainer_base.PPOTrainer._setup.__code__.co_names


def test_a_checkpoint_counts_when_its_tracker_is_written():
    """recipe.aem.seam.full_disk puts back the tracker, which verl empties before it writes it, last of all."""
    from recipe.aem.seam.full_disk import TRACKER

    source = inspect.getsource(trainer_base.PPOTrainer._save_checkpoint)
    assert f'"{TRACKER}"' in source and 'f"global_step_{self.global_steps}"' in source
    assert source.index("save_checkpoint(") < source.index("torch.save(") < source.index(TRACKER)
