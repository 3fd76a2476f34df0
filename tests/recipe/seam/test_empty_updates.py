"""Updates without a token, through verl's own worker, engine, losses and optimiser step, on one rank without Ray.

A table of next-token logits replaces the model. The trainer's side is in test_wraps.py. Not covered: FSDP itself,
several real ranks, Ray.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("verl", reason="verl is not installed")

import verl_aem

verl_aem.load()

from verl.utils import tensordict_utils as tu  # noqa: E402
from verl.utils.metric import reduce_metrics  # noqa: E402
from verl.workers.config import FSDPActorConfig, PolicyLossConfig  # noqa: E402
from verl.workers.engine.base import BaseEngine  # noqa: E402
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine  # noqa: E402
from verl.workers.engine_workers import TrainingWorker  # noqa: E402
from verl.workers.utils.losses import ppo_loss  # noqa: E402

from recipe.aem.seam import empty_updates  # noqa: E402

MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")
LOSSES = ("vanilla", "gspo")
LIVE, MASKED = (1, 1, 0, 1), (0, 0, 0)


@pytest.fixture(autouse=True, scope="module")
def _one_rank_on_the_cpu(tmp_path_factory):
    from verl.plugin.platform import get_platform, set_platform

    from recipe.aem.cpu.platform import PlatformCPU

    platform = get_platform()
    set_platform(PlatformCPU())
    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    set_platform(platform)


class Engine(FSDPEngine):
    """verl's engine but for its model: forward, and what a mesh of devices would say."""

    ulysses_sequence_parallel_size = 1
    optimizer_config = SimpleNamespace(clip_grad=1.0)
    _qat_enabled = False

    def __init__(self):
        torch.manual_seed(0)
        self.module = nn.Embedding(7, 7).double()
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=0.1, weight_decay=0.1)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0 / (1 + step))

    def forward_step(self, micro_batch, loss_function, forward_only):
        ids = micro_batch["input_ids"]
        log_prob = torch.log_softmax(self.module(ids.values()), -1)
        entropy = -(log_prob.exp() * log_prob).sum(-1)
        chosen = log_prob.gather(-1, ids.values().roll(-1)[:, None])[:, 0]
        rows = partial(torch.nested.nested_tensor_from_jagged, offsets=ids.offsets())
        output = {"log_probs": rows(chosen), "entropy": rows(entropy)}
        loss, metrics = loss_function(model_output=output, data=micro_batch, dp_group=None)
        return loss, {"model_output": output, "loss": loss.detach().item(), "metrics": metrics}

    def train_mode(self, **_):
        return contextlib.nullcontext()

    def get_data_parallel_group(self):
        return torch.distributed.group.WORLD

    def get_data_parallel_size(self):
        return 1

    def get_data_parallel_rank(self):
        return 0

    def is_mp_src_rank_with_outputs(self):
        return True

    def _gradient_sync_context(self, is_last_micro_batch):
        return contextlib.nullcontext()

    @property
    def state(self) -> dict:
        """The weights and Adam's moments and count, copied."""
        (moments,) = self.optimizer.state_dict()["state"].values() or [{}]
        return {name: value.clone() for name, value in {"weights": self.module.weight.data, **moments}.items()}


def nested(rows):
    return torch.nested.as_nested_tensor([torch.as_tensor(row) for row in rows], layout=torch.jagged)


def rows_of(masks):
    """A batch as a worker gets it; each row has a prompt of two tokens, and the same numbers wherever it stands."""
    columns: dict[str, list] = {}
    for number, mask in enumerate(masks):
        generator = torch.Generator().manual_seed(number)
        ids = torch.randint(7, (2 + len(mask),), generator=generator)
        old = -torch.rand(len(mask), generator=generator, dtype=torch.float64) - 1
        row = {
            "input_ids": ids, "prompts": ids[:2], "responses": ids[2:], "response_mask": mask, "loss_mask": mask,
            "old_log_probs": old, "advantages": torch.tensor(mask) * (1.0 + number), "ref_log_prob": old - 0.1,
        }  # fmt: skip
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return tu.get_tensordict({name: nested(values) for name, values in columns.items()})


def train(engine, masks, mini_batch=2, micro_batch=2, mode="token-mean", loss_mode="vanilla"):
    """One step of verl's `train_mini_batch` in the batch's order; its metrics as verl's trainer reduces them."""
    config = FSDPActorConfig(
        strategy="fsdp2", rollout_n=1, use_dynamic_bsz=True, loss_agg_mode=mode, use_kl_loss=True, entropy_coeff=0.01,
        loss_scale_factor=16 if mode == "seq-mean-token-sum-norm" else None,
        policy_loss=PolicyLossConfig(loss_mode=loss_mode),
    )  # fmt: skip
    worker = SimpleNamespace(
        engine=engine,
        loss_fn=partial(ppo_loss, config=config),
        model_config={},
        engine_config=SimpleNamespace(
            forward_only=False, use_dynamic_bsz=False, max_token_len_per_gpu=None, micro_batch_size_per_gpu=micro_batch,
            use_fused_kernels=False,
        ),
        flops_counter=None,
        device_name="cpu",
        profiler=SimpleNamespace(step=lambda: None),
    )  # fmt: skip
    for name in ("train_batch", "_postprocess_output"):
        setattr(worker, name, partial(inspect.unwrap(getattr(TrainingWorker, name)), worker))
    data = rows_of(masks)
    tu.assign_non_tensor(
        data, mini_batch_size=mini_batch, global_batch_size=mini_batch, epochs=1, seed=1, calculate_entropy=True,
        dataloader_kwargs={"shuffle": False},
    )  # fmt: skip
    output = inspect.unwrap(TrainingWorker.train_mini_batch)(worker, data)
    return reduce_metrics(tu.get(output, "metrics"))


@pytest.fixture
def without_guard(monkeypatch):
    monkeypatch.setattr(BaseEngine, "train_batch", inspect.unwrap(BaseEngine.train_batch))


def same(ours: dict, theirs: dict) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def finite(metrics: dict) -> bool:
    return all(math.isfinite(value) for value in metrics.values())


# --- what verl does by itself: where one of these fails, verl has changed and the guard may go ---------------------


@pytest.mark.parametrize("mode", MODES)
def test_verl_alone_moves_the_weights_on_an_empty_mini_batch_and_logs_nan_as_its_token_mean(without_guard, mode):
    engine = Engine()
    train(engine, [LIVE, LIVE], mode=mode)
    before = engine.state
    metrics = train(engine, [MASKED, MASKED], mode=mode)
    assert metrics["grad_norm"] == 0.0
    assert not same(engine.state, before), "momentum and weight decay"
    assert [name for name, value in metrics.items() if math.isnan(value)] == [
        *(("actor/pg_loss", "actor/entropy_loss", "kl_loss", "loss") if mode == "token-mean" else ())
    ]


@pytest.mark.parametrize("loss_mode", LOSSES)
@pytest.mark.parametrize("mode", MODES)
def test_verl_alone_is_right_about_an_empty_micro_batch(without_guard, mode, loss_mode):
    masks = [LIVE, MASKED, MASKED, LIVE]
    together, apart = Engine(), Engine()
    expected = train(together, masks, mini_batch=4, micro_batch=4, mode=mode, loss_mode=loss_mode)
    metrics = train(apart, masks, mini_batch=4, micro_batch=1, mode=mode, loss_mode=loss_mode)
    assert finite(metrics)
    for name in ("loss", "actor/pg_loss", "actor/entropy_loss", "kl_loss", "grad_norm"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-6)
    assert torch.allclose(apart.state["weights"], together.state["weights"], atol=1e-12)


# --- the guard --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_mode", LOSSES)
@pytest.mark.parametrize("mode", MODES)
def test_an_empty_mini_batch_changes_neither_weights_nor_optimiser_and_the_others_do_as_ever(mode, loss_mode):
    guarded, alone = Engine(), Engine()
    metrics = train(guarded, [LIVE, LIVE, MASKED, MASKED, LIVE, MASKED], mode=mode, loss_mode=loss_mode)
    assert finite(metrics) and metrics["skipped_updates"] == pytest.approx(1 / 3)
    for masks in ([LIVE, LIVE, MASKED, MASKED], [MASKED] * 4 + [LIVE, MASKED]):
        expected = train(alone, masks, mode=mode, loss_mode=loss_mode)
        alone.lr_scheduler.last_epoch, alone.optimizer.param_groups[0]["lr"] = 0, 0.1  # one step, not two
    assert guarded.state["step"] == 2 and same(guarded.state, alone.state)
    assert expected["skipped_updates"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("mode", MODES)
def test_a_step_without_a_token_leaves_all_but_the_learning_rate_as_it_was(mode):
    engine = Engine()
    train(engine, [LIVE, LIVE], mode=mode)
    before, rate = engine.state, engine.lr_scheduler.get_last_lr()[0]
    metrics = train(engine, [MASKED] * 4, mode=mode)
    assert same(engine.state, before)
    # the schedule is laid out over the run's steps, of which this is one
    assert rate == pytest.approx(0.1 / 2) and metrics["lr"] == pytest.approx(0.1 / 3)
    assert finite(metrics) and metrics["skipped_updates"] == 1.0 and metrics["loss"] == 0.0
    assert "grad_norm" not in metrics and "actor/pg_loss" not in metrics

    after = train(engine, [LIVE, LIVE], mode=mode)
    assert after["skipped_updates"] == 0.0 and not same(engine.state, before) and finite(after)


def test_with_a_token_everywhere_the_guard_changes_nothing(monkeypatch):
    ours, verls = Engine(), Engine()
    metrics = train(ours, [LIVE, MASKED, LIVE, LIVE])
    monkeypatch.setattr(BaseEngine, "train_batch", inspect.unwrap(BaseEngine.train_batch))
    expected = train(verls, [LIVE, MASKED, LIVE, LIVE])
    assert same(ours.state, verls.state)
    assert metrics.pop("skipped_updates") == 0.0
    memory = {name for name in metrics if name.startswith("perf/")}
    assert {name: metrics[name] for name in metrics.keys() - memory} == pytest.approx(
        {name: expected[name] for name in expected.keys() - memory}
    )


def test_the_ranks_decide_together(monkeypatch):
    """A rank without a token goes on where another has one: it would be missed in the sum of the gradients."""
    engine, asked = Engine(), []

    def original(data, loss_function):
        return {"metrics": {"seen": [1.0]}}

    def skipped(mask, elsewhere):
        def with_another_rank(count, op=None, group=None):
            asked.append(group)
            count += elsewhere

        monkeypatch.setattr(torch.distributed, "all_reduce", with_another_rank)
        metrics = empty_updates.around_mini_batch(original, engine, (rows_of([mask]),), {"loss_function": None})[
            "metrics"
        ]
        assert ("seen" in metrics) == (metrics["skipped_updates"] == [0.0])
        return metrics["skipped_updates"] == [1.0]

    assert skipped(MASKED, 0) and not skipped(MASKED, 3) and not skipped(LIVE, 0)
    assert asked == [engine.get_data_parallel_group()] * 3


def test_the_mask_that_counts_is_the_one_after_rejection_sampling():
    data = rows_of([LIVE, LIVE])
    data["response_mask"] = nested([[0] * 4] * 2)  # verl leaves `loss_mask` as it was
    output = empty_updates.around_mini_batch(None, Engine(), (data, None), {})
    assert output["metrics"]["skipped_updates"] == [1.0]


def test_fine_tuning_has_no_such_mask_and_is_left_alone():
    data = tu.get_tensordict({"loss_mask": nested([MASKED])})
    assert empty_updates.around_mini_batch(lambda *given: given, None, (data, "loss"), {}) == (data, "loss")


def test_no_engine_of_verls_has_a_training_step_of_its_own():
    import verl.workers.engine  # noqa: F401
    from verl.workers.engine.base import EngineRegistry

    assert list(inspect.signature(BaseEngine.train_batch).parameters) == ["self", "data", "loss_function"]
    engines = {
        engine
        for of_backend in EngineRegistry._engines.values()
        for of_device in of_backend.values()
        for engine in _classes(of_device)
    }
    assert FSDPEngine in {base for engine in engines for base in engine.__mro__}
    for engine in engines:
        own = [cls.__name__ for cls in engine.__mro__ if "train_batch" in vars(cls)]
        assert own == ["BaseEngine"], f"{engine.__name__} would go round recipe.aem.seam.empty_updates"


def _classes(node):
    if isinstance(node, dict):
        for value in node.values():
            yield from _classes(value)
    else:
        yield node


# --- the trainer's metrics --------------------------------------------------------------------------------------------


def logged(metrics, **found):
    def compute(batch, metrics, timing, global_steps):
        metrics.update(found)

    empty_updates.after_metrics(compute, None, ("batch", metrics, {}), {"global_steps": 1})
    return metrics


NAN = float("nan")


@pytest.mark.parametrize("role", ["actor", "critic"])
def test_a_step_that_was_skipped_logs_no_nan_and_no_utilisation(role):
    given = {f"{role}/skipped_updates": 1.0, f"perf/mfu/{role}": 9e5, "actor/lr": 1e-6}
    assert logged(given, **{"critic/advantages/mean": NAN, "critic/score/mean": 0.0}) == {
        f"{role}/skipped_updates": 1.0, "actor/lr": 1e-6, "critic/score/mean": 0.0,
    }  # fmt: skip


def test_a_nan_that_has_another_reason_stays_in_sight():
    metrics = logged({"actor/skipped_updates": 0.5, "perf/mfu/actor": 9.0, "actor/pg_loss": NAN}, other=NAN)
    assert math.isnan(metrics["actor/pg_loss"]) and math.isnan(metrics["other"])
    assert "perf/mfu/actor" not in metrics, "time over mini-batches of which half did nothing"
    whole = logged({"actor/skipped_updates": 0.0, "perf/mfu/actor": 0.4})
    assert whole == {"actor/skipped_updates": 0.0, "perf/mfu/actor": 0.4}


def test_several_updates_of_a_step_are_averaged_by_verl():
    from verl.trainer.ppo.v1.utils import MetricsAggregator

    aggregator = MetricsAggregator()
    for skipped in (1.0, 0.0):
        aggregator.add_step_metrics({"actor/skipped_updates": skipped}, sample_count=8)
    assert aggregator.get_aggregated_metrics() == {"actor/skipped_updates": 0.5}
