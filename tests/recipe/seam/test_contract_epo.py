"""What EPO depends on inside verl, one test per name; the other test_contract_… files have what AEM depends on.

Not covered: the engine around the loss with Ray and a real TransferQueue (tests/e2e/test_epo.py).
"""

from __future__ import annotations

import asyncio
import inspect
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict

pytest.importorskip("verl", reason="verl is not installed")

import verl_aem

verl_aem.load()

from transfer_queue import KVBatchMeta  # noqa: E402
from verl.single_controller.base.decorator import MAGIC_ATTR, Dispatch  # noqa: E402
from verl.trainer.ppo.v1 import trainer_base  # noqa: E402
from verl.utils import tensordict_utils as tu  # noqa: E402
from verl.utils.metric import AggregationType, Metric, reduce_metrics  # noqa: E402
from verl.utils.py_functional import append_to_dict  # noqa: E402
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker  # noqa: E402


def nested(rows):
    return torch.nested.as_nested_tensor([torch.as_tensor(row) for row in rows], layout=torch.jagged)


# --- the trainer ------------------------------------------------------------------------------------------------------


def original(name):
    return inspect.unwrap(getattr(trainer_base.PPOTrainer, name))


def test_workers_exist_and_the_checkpoint_is_loaded_before_init_ends():
    calls = []
    trainer = SimpleNamespace(_setup=lambda: calls.append("setup"), on_init_end=lambda: calls.append("end"))
    original("init")(trainer)
    assert calls == ["setup", "end"]
    # source: `_setup` makes Ray workers
    setup = inspect.getsource(original("_setup"))
    assert setup.index("self.actor_rollout_wg.init_model()") < setup.index("self._load_checkpoint()")


def test_a_step_is_counted_from_one_and_is_the_same_for_all_of_its_updates():
    """Source: `fit` needs a whole run. β's k is global_steps − 1, and the history advances where global_steps does."""
    fit, step = inspect.getsource(original("fit")), inspect.getsource(original("step"))
    assert fit.index("self.global_steps += 1") < fit.index("while current_epoch") < fit.rindex("self.global_steps += 1")
    assert fit.count("self.global_steps += 1") == 2 and "global_steps +=" not in step
    assert "for trigger_idx in range(self.parameter_sync_step)" in step and "self._step_once(" in step
    assert fit.index("self._save_checkpoint()") < fit.rindex("self.global_steps += 1")
    assert "self.total_training_steps = " in inspect.getsource(original("_init_dataloader"))


class Worker(SimpleNamespace):
    def update_actor(self, batch):
        self.seen = batch
        metrics = {"actor/epo_entropy": [1.0, 3.0], "mfu": [0.0]}
        return tu.get_tensordict({}, {"metrics": metrics})


def test_an_update_keeps_what_is_in_the_batchs_extra_info_and_returns_the_batch():
    actor = {
        "ppo_mini_batch_size": 2,
        "calculate_entropy": True,
        "entropy_coeff": 0.0,
        "ppo_epochs": 1,
        "shuffle": False,
    }
    config = {
        "actor_rollout_ref": {"actor": actor | {"data_loader_seed": 1}, "rollout": {"n": 3, "temperature": 1.0}},
        "distillation": {"enabled": False},
    }
    trainer = SimpleNamespace(config=OmegaConf.create(config), actor_rollout_wg=Worker())
    batch, metrics = (
        KVBatchMeta(keys=["u_0_0"], tags=[{}], partition_id="train", extra_info={"aem_epo": {"beta": 1.5}}),
        {},
    )
    assert original("_update_actor")(trainer, batch, metrics) is batch
    seen = trainer.actor_rollout_wg.seen.extra_info
    assert seen["aem_epo"] == {"beta": 1.5}
    assert seen["calculate_entropy"] is True
    assert seen["mini_batch_size"] == seen["global_batch_size"] == 6, (
        "rows of a mini-batch, as recipe.aem.seam.loss_terms counts them"
    )
    assert metrics["actor/epo_entropy"] == 2.0, "mini-batches are averaged"


def test_a_batch_is_filled_up_to_whole_mini_batches():
    actor = {"ppo_mini_batch_size": 2}
    config = {"actor_rollout_ref": {"actor": actor, "rollout": {"n": 3}}, "trainer": {"critic_warmup": 0}}
    trainer = SimpleNamespace(config=OmegaConf.create(config), use_critic=False, global_steps=1)
    assert original("_get_required_batch_multiple")(trainer, dp_size=4) == 12


def test_a_checkpoint_is_a_folder_named_after_its_step(tmp_path, monkeypatch):
    workers = SimpleNamespace(
        save_checkpoint=lambda path, *_, **__: saved.append(path), load_checkpoint=lambda **_: None
    )
    loader = SimpleNamespace(state_dict=dict, load_state_dict=lambda _: None)
    given = {"default_local_dir": str(tmp_path), "default_hdfs_dir": None, "resume_mode": "auto"}
    config = {"trainer": given | {"del_local_ckpt_after_load": False}, "actor_rollout_ref": {"actor": {}}}
    saved = []
    trainer = SimpleNamespace(
        config=OmegaConf.create(config), global_steps=4, actor_rollout_wg=workers, train_dataloader=loader,
        use_critic=False, trainer_mode="sync",
        checkpoint_callback=SimpleNamespace(on_save=lambda **_: None),
    )  # fmt: skip
    original("_save_checkpoint")(trainer)
    assert saved == [str(tmp_path / "global_step_4" / "actor")]
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "4"
    trainer.global_steps = None
    original("_load_checkpoint")(trainer)
    assert trainer.global_steps == 4
    trainer.config.trainer.resume_mode, trainer.config.trainer.resume_from_path = (
        "resume_path",
        f"{tmp_path}/global_step_4",
    )
    trainer.global_steps = None
    original("_load_checkpoint")(trainer)
    assert trainer.global_steps == 4
    trainer.config.trainer.resume_mode = "disable"
    original("_load_checkpoint")(trainer)
    assert trainer.global_steps == 0


# --- from the trainer to the worker -----------------------------------------------------------------------------------


def test_a_put_answers_with_a_batch_that_names_its_columns():
    import transfer_queue

    # its signature and words: a real call needs Ray (tests/e2e)
    names = list(inspect.signature(transfer_queue.kv_batch_put).parameters)
    assert names[:3] == ["keys", "partition_id", "fields"]
    batch = KVBatchMeta(keys=["u_0_0"], tags=[{}], partition_id="train", fields=["entropy", "epo_weight"])
    batch.extra_info = {"a": 1}
    assert batch.extra_info == {"a": 1} and "epo_weight" in batch.fields


def test_extra_info_reaches_the_loss_as_it_was_sent(monkeypatch):
    """Through the bridge, the split into mini-batches and both splits into micro-batches."""
    from verl.utils import transferqueue_utils
    from verl.workers.engine.utils import prepare_micro_batches

    stored = {
        "input_ids": nested([[1, 2], [3, 4, 5], [6, 7], [8, 9]]),
        "epo_weight": nested([[0.5], [0.1, 0.2], [0.2], [0.0]]),
    }

    class Client:
        async def async_get_data(self, meta):
            return TensorDict(stored, batch_size=4)

    sent = {"reference": None, "beta": 1.5, "mini_batches": 2.0}
    monkeypatch.setattr(transferqueue_utils.tq, "get_client", Client)
    meta = SimpleNamespace(extra_info={"aem_epo": sent}, size=4)
    data = asyncio.run(transferqueue_utils._async_meta_to_realdata(meta))
    seen = []
    for settings in (
        {"use_dynamic_bsz": True, "max_token_len_per_gpu": 4},
        {"use_dynamic_bsz": False, "micro_batch_size_per_gpu": 1},
    ):
        for mini_batch in tu.make_iterator(
            data, mini_batch_size=2, epochs=1, seed=1, dataloader_kwargs={"shuffle": False}
        ):
            tu.assign_non_tensor(mini_batch, dp_size=2, **settings)
            for micro_batch in prepare_micro_batches(mini_batch)[0]:
                assert tu.get_non_tensor_data(micro_batch, "aem_epo", None) == sent
                assert micro_batch["dp_size"] == 2 and "epo_weight" in micro_batch
                seen += micro_batch["epo_weight"].to_padded_tensor(0.0).sum(1).tolist()
    assert sorted(seen) == pytest.approx(sorted([0.5, 0.3, 0.2, 0.0] * 2))
    assert tu.get_non_tensor_data(data, "absent", None) is None


def test_a_loss_is_set_on_every_worker():
    for worker in (ActorRolloutRefWorker, TrainingWorker):
        assert list(inspect.signature(worker.set_loss_fn).parameters) == ["self", "loss_fn"]
        assert getattr(worker.set_loss_fn, MAGIC_ATTR)["dispatch_mode"] is Dispatch.ONE_TO_ALL
    assert getattr(ActorRolloutRefWorker.set_loss_fn, MAGIC_ATTR)["blocking"] is True
    inner = SimpleNamespace(set_loss_fn=lambda loss_fn: setattr(inner, "loss", loss_fn))
    inspect.unwrap(ActorRolloutRefWorker.set_loss_fn)(SimpleNamespace(actor=inner), "mine")
    assert inner.loss == "mine"


def test_verl_makes_its_own_loss_the_same_way():
    """Source: making it needs a model. A loss of another kind, or over other settings, would be replaced wrongly."""
    source = inspect.getsource(inspect.unwrap(ActorRolloutRefWorker.init_model))
    assert "actor_config: ActorConfig = omega_conf_to_dataclass(self.config.actor)" in source
    assert "self.loss_fn = partial(ppo_loss, config=actor_config)" in source
    assert source.count("self.loss_fn = ") == 2 and "partial(\n                    distillation_ppo_loss" in source


def test_the_engine_calls_the_loss_and_scales_as_the_loss_expects():
    """Source: an engine needs a process group. Each is named in `term_loss.loss_with_terms`."""
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine, FSDPEngineWithLMHead

    step = inspect.getsource(FSDPEngineWithLMHead.forward_step)
    assert "model_output=model_output, data=micro_batch, dp_group=self.get_data_parallel_group()" in step
    batch = inspect.getsource(FSDPEngine.forward_backward_batch)
    assert "tu.assign_non_tensor(data, dp_size=self.get_data_parallel_size())" in batch
    assert "loss.backward()" in batch and "loss /" not in batch, "the engine divides by micro-batches now"
    outputs = inspect.getsource(FSDPEngineWithLMHead.prepare_model_outputs)
    assert 'model_output["entropy"] = entropy' in outputs


def test_verls_loss_takes_what_ours_hands_on():
    from verl.workers.utils.losses import ppo_loss

    assert list(inspect.signature(ppo_loss).parameters) == ["config", "model_output", "data", "dp_group"]


def test_the_models_output_is_cut_to_the_responses_one_token_early():
    from verl.workers.utils.padding import no_padding_2_padding, response_to_nested

    data = tu.get_tensordict({"prompts": nested([[1, 2], [3]]), "responses": nested([[4], [5, 6]])})
    output = nested([[0.0, 0.1, 0.2], [1.0, 1.1, 1.2]])
    assert no_padding_2_padding(output, data).tolist() == [
        [pytest.approx(0.1), 0.0],
        [pytest.approx(1.0), pytest.approx(1.1)],
    ]
    weights = response_to_nested(torch.tensor([[0.5, 9.0], [0.2, 0.3]]), nested([[1], [1, 1]]))
    assert [row.tolist() for row in weights.unbind()] == [[0.5], [pytest.approx(0.2), pytest.approx(0.3)]]


def test_sums_over_micro_batches_mean_over_ranks_and_over_mini_batches():
    ranks = []
    for values in ((1.0, 2.0), (3.0, 4.0)):
        metrics = {}
        for value in values:
            append_to_dict(metrics, Metric.from_dict({"actor/epo_entropy": value}, AggregationType.SUM))
        ranks.append(metrics["actor/epo_entropy"])
    assert Metric.aggregate_dp(ranks) == 5.0
    names = ("actor/epo_entropy", "actor/epo_smoothing", "actor/epo_loss")
    # the names hold no `min` or `max`, which would take an extreme instead
    assert reduce_metrics({name: [5.0, 7.0] for name in names}) == dict.fromkeys(names, 6.0)


def test_the_shipped_numbers_are_averaged_over_the_updates_of_a_step():
    from verl.trainer.ppo.v1.utils import MetricsAggregator

    aggregator = MetricsAggregator()
    names = ("epo/entropy", "epo/beta", "epo/reference", "actor/epo_entropy", "actor/epo_smoothing", "actor/epo_loss")
    for value in (1.0, 3.0):
        aggregator.add_step_metrics(dict.fromkeys(names, value), sample_count=8)
    assert aggregator.get_aggregated_metrics() == dict.fromkeys(names, 2.0)
