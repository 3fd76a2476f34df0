"""EPO on the trainer's side: settings, errors, weights, history, checkpoints; the loss is in test_epo_loss.py.

Not covered: the real TransferQueue, Ray and workers (tests/e2e/test_epo.py).
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from recipe.aem.batch import Batch
from recipe.aem.methods.epo import EpoSettings, EpoState, batch_weights
from recipe.aem.seam import full_disk, loss_terms
from recipe.aem.seam.checks import check_terms
from recipe.aem.settings import SettingsError

# --- settings ---------------------------------------------------------------------------------------------------------

GOOD = {
    "algorithm": {"adv_estimator": "grpo", "epo": {"enable": True}, "rollout_correction": {"bypass_mode": False}},
    "actor_rollout_ref": {"actor": {"calculate_entropy": True, "entropy_coeff": 0}},
    "distillation": {"enabled": False},
}


def changed(path, value, config=GOOD):
    config = copy.deepcopy(config)
    *parents, last = path.split(".")
    node = config
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    return config


def test_the_papers_settings_are_the_defaults_and_epo_is_off():
    for algorithm in ({}, {"epo": None}, {"epo": {}}):
        settings = EpoSettings.from_config(algorithm)
        assert not settings.enable
        assert (settings.coef, settings.lower, settings.upper, settings.alpha) == (0.001, 0.0, 2.0, 0.1)
        assert (settings.gamma, settings.total_steps, settings.allow_missing_history) == (3.0, None, False)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("coeff", 0.1, r"algorithm\.epo\.coeff is not a setting .*did you mean `coef`"),
        ("allow_missing_history", 1, "expected true or false"),
        ("coef", -0.001, r"algorithm\.epo\.coef=-0\.001: expected a finite number >= 0"),
        ("lower", 2.5, r"algorithm\.epo\.lower=2\.5: expected at most algorithm\.epo\.upper=2\.0"),
        ("total_steps", 1, r"algorithm\.epo\.total_steps=1: expected null .* or an integer >= 2"),
        ("total_steps", True, "an integer >= 2"),
    ],
)
def test_a_bad_setting_is_refused_also_where_epo_is_off(key, value, message):
    with pytest.raises(SettingsError, match=message):
        check_terms(changed(f"algorithm.epo.{key}", value, changed("algorithm.epo.enable", False)), "0.9.1")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("algorithm.rollout_correction.bypass_mode", True, r"bypass_mode=True skips the old-policy pass.*set it to F"),
        ("actor_rollout_ref.actor.calculate_entropy", False, r"set actor_rollout_ref\.actor\.calculate_entropy=True"),
        ("distillation.enabled", True, r"distillation\.enabled=True would lose its own"),
    ],
)
def test_what_it_cannot_work_with_is_refused_only_where_it_is_on(path, value, message):
    config = changed(path, value)
    with pytest.raises(SettingsError, match=message):
        check_terms(config, "0.9.1")
    assert not check_terms(changed("algorithm.epo.enable", False, config), "0.9.1")


def test_verls_entropy_bonus_brings_the_entropies_too():
    config = changed("actor_rollout_ref.actor.calculate_entropy", False)
    assert check_terms(changed("actor_rollout_ref.actor.entropy_coeff", 0.01, config), "0.9.1")


def test_another_verl_is_refused_unless_allowed():
    with pytest.raises(SettingsError, match=r"verl 0\.10\.0 is installed.*algorithm\.untested_verl=True"):
        check_terms(GOOD, "0.10.0")
    assert check_terms(changed("algorithm.untested_verl", True), "0.10.0")


# --- weights ----------------------------------------------------------------------------------------------------------


def test_the_weights_are_the_mean_over_tokens_then_turns_then_trajectories():
    # trajectory a: two rows, of one and of two responses (tokens 2 | 1, 2 of which one is masked); b: one row; padding
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    extra = [{"response_spans": [[0, 2]]}, {"response_spans": [[0, 1], [1, 3]]}, None, {"response_spans": [[0, 2]]}]
    keys, padding = ["a_0_0", "a_0_1", "a_1_0", "padff_0_0"], [False, False, False, True]
    weight, trajectories = batch_weights(Batch.from_columns(keys, {"response_mask": mask}, extra, is_padding=padding))
    assert trajectories == 2
    turn = 1 / 2 / 3
    expected = [[turn / 2, turn / 2, 0, 0], [turn, 0, turn, 0], [1 / 8] * 4, [0] * 4]
    torch.testing.assert_close(weight, torch.tensor(expected))
    torch.testing.assert_close(weight.sum(), torch.tensor(1.0))


def test_padding_rows_and_masked_trajectories_take_no_part():
    mask = torch.tensor([[1, 1], [0, 0], [1, 1]])
    # a padding row is known by its tag: what stands in its mask and its copied spans is never read
    weight, trajectories = batch_weights(
        Batch.from_columns(["u_0_0", "u_1_0", "p_0_0"], {"response_mask": mask}, is_padding=[False, False, True])
    )
    assert trajectories == 1
    assert weight.tolist() == [[0.5, 0.5], [0.0, 0.0], [0.0, 0.0]]


def test_a_batch_without_responses_has_no_weight():
    weight, trajectories = batch_weights(
        Batch.from_columns(["u_0_0"], {"response_mask": torch.zeros(1, 3, dtype=torch.long)})
    )
    assert (weight.tolist(), trajectories) == ([[0.0] * 3], 0)


# --- the history ------------------------------------------------------------------------------------------------------


def test_the_history_advances_once_a_step_weighted_by_trajectories():
    state = EpoState()
    state.add(1, 1.0, 3)
    assert state.history.reference is None, "a step does not see itself"
    state.add(1, 2.0, 1)
    assert state.history.reference is None, "nor its second batch the first"
    state.add(2, 3.0, 4)
    assert (state.history.reference, state.history.count) == (1.25, 1)
    assert state.completed().count == 2 and state.completed().reference == pytest.approx((1.25 + 3.0) / 2)
    state.add(3, 9.0, 1)
    assert (state.history.reference, state.history.count) == (pytest.approx(2.125), 2)


def test_a_step_without_responses_is_no_step_of_the_history():
    state = EpoState()
    state.add(1, 1.5, 2)
    state.add(2, 0.0, 0)
    state.add(3, 1.0, 1)
    assert (state.history.reference, state.history.count) == (1.5, 1)


@given(
    st.lists(st.lists(st.tuples(st.floats(0, 12), st.integers(1, 64)), min_size=1, max_size=4), min_size=1, max_size=6),
    st.data(),
)
def test_the_reference_is_the_mean_of_the_steps_before_however_they_are_saved(steps, data):
    means, state = [], EpoState()
    for number, batches in enumerate(steps, start=1):
        for entropy, trajectories in batches:
            state.add(number, entropy, trajectories)
            expected = sum(means) / len(means) if means else None
            assert state.history.reference == (None if expected is None else pytest.approx(expected))
        means.append(sum(h * n for h, n in batches) / sum(n for _, n in batches))
        if data.draw(st.booleans(), label="resumed here"):
            state = EpoState(state.completed(), step=number)
    assert state.completed().reference == pytest.approx(sum(means) / len(means))


# --- round verl's methods ---------------------------------------------------------------------------------------------


def nested(values):
    return torch.nested.as_nested_tensor([torch.as_tensor(value) for value in values], layout=torch.jagged)


class FakeQueue:
    """The two calls of TransferQueue that are made, over nested columns."""

    def __init__(self):
        from tensordict import NonTensorStack

        self.columns = {
            "response_mask": nested([[1, 1, 1], [1, 1], [0]]),
            "entropy": nested([[0.5, 1.0, 1.5], [2.0, 4.0], [9.0]]),
            "extra_fields": NonTensorStack({"response_spans": [[0, 1], [1, 3]]}, {}, {"response_spans": [[0, 2]]}),
        }
        self.batch_fields: list[str] = []

    def kv_batch_get(self, keys, partition_id, select_fields):
        from tensordict import TensorDict

        assert partition_id == "train"
        return TensorDict({name: self.columns[name] for name in select_fields if name in self.columns}, len(keys))

    def kv_batch_put(self, keys, partition_id, fields):
        from transfer_queue import KVBatchMeta

        self.columns.update({name: fields[name] for name in fields.keys()})  # noqa: SIM118
        return KVBatchMeta(keys=keys, tags=TAGS, partition_id=partition_id, fields=list(self.columns))


KEYS = ["u_0_0", "u_1_0", "padff_0_0"]
TAGS: list[dict] = [{}, {}, {"is_padding": True}]


def trainer(folder="/nowhere", step=1, mode="auto", **settings):
    config = {
        "algorithm": {"adv_estimator": "grpo", "epo": {"enable": True, **settings}},
        "actor_rollout_ref": {"actor": {"ppo_mini_batch_size": 1}, "rollout": {"n": 3}},
        "trainer": {"default_local_dir": str(folder), "resume_mode": mode, "resume_from_path": None},
    }
    terms = {"epo": EpoState()} if settings.get("enable", True) else {}
    return SimpleNamespace(config=OmegaConf.create(config), global_steps=step, total_training_steps=10, aem_terms=terms)


def update(monkeypatch, trainer, queue=None):
    """What the original `_update_actor` was called with, and the metrics."""
    pytest.importorskip("verl", reason="verl is not installed")
    from transfer_queue import KVBatchMeta

    queue = queue or FakeQueue()
    monkeypatch.setitem(sys.modules, "transfer_queue", SimpleNamespace(**vars(sys.modules["transfer_queue"])))
    for name in ("kv_batch_get", "kv_batch_put"):
        monkeypatch.setattr(sys.modules["transfer_queue"], name, getattr(queue, name))
    batch = KVBatchMeta(keys=KEYS, tags=TAGS, partition_id="train", extra_info={"temperature": 0.7})
    seen, metrics = [], {}

    def original(batch, metrics):
        seen.append(batch)
        return batch

    returned = loss_terms.before_update(original, trainer, (batch,), {"metrics": metrics})
    assert seen == [returned]
    return returned, metrics, queue


def test_an_update_ships_weights_and_the_steps_numbers(monkeypatch):
    subject = trainer()
    batch, metrics, queue = update(monkeypatch, subject)
    rows = [row.tolist() for row in queue.columns["epo_weight"].unbind()]
    assert rows == [[0.25, 0.125, 0.125], [0.25, 0.25], [0.0]]
    assert batch.extra_info["aem_epo"] == {"reference": None, "beta": 2.0, "mini_batches": 1.0}
    assert batch.extra_info["temperature"] == 0.7 and "epo_weight" in batch.fields
    # ((0.5 + (1 + 1.5) / 2) / 2 + (2 + 4) / 2) / 2
    assert metrics["epo/entropy"] == pytest.approx((0.875 + 3.0) / 2)
    assert metrics["epo/beta"] == 2.0 and "epo/reference" not in metrics
    assert metrics["timing_s/aem_method"] == metrics["timing_s/epo"] > 0

    subject.global_steps = 2
    batch, metrics, _ = update(monkeypatch, subject)
    beta = 1 + math.exp(-3 * 1 / 5)
    assert batch.extra_info["aem_epo"] == {
        "reference": pytest.approx(1.9375), "beta": pytest.approx(beta), "mini_batches": 1.0,
    }  # fmt: skip
    assert metrics["epo/reference"] == pytest.approx(1.9375)


def test_the_number_of_mini_batches_counts_rows_as_verl_does(monkeypatch):
    subject = trainer()
    subject.config.actor_rollout_ref.rollout.n = 1
    batch, _, _ = update(monkeypatch, subject)
    assert batch.extra_info["aem_epo"]["mini_batches"] == 3.0


def test_the_schedule_is_laid_out_for_the_setting_else_for_the_trainers_steps(monkeypatch):
    batch, _, _ = update(monkeypatch, trainer(step=3, total_steps=4))
    assert batch.extra_info["aem_epo"]["beta"] == pytest.approx(1 + math.exp(-3 * 2 / 2))
    single = trainer()
    single.total_training_steps = 1
    batch, _, _ = update(monkeypatch, single)
    assert batch.extra_info["aem_epo"]["beta"] == 2.0


def test_a_batch_without_entropies_is_refused(monkeypatch):
    queue = FakeQueue()
    del queue.columns["entropy"]
    with pytest.raises(RuntimeError, match="the batch holds no entropy"):
        update(monkeypatch, trainer(), queue)


def test_verls_own_loops_have_no_extra_fields(monkeypatch):
    queue = FakeQueue()
    del queue.columns["extra_fields"]
    update(monkeypatch, trainer(), queue)
    assert queue.columns["epo_weight"].unbind()[0].tolist() == [pytest.approx(1 / 6)] * 3


def test_switched_off_everything_is_called_straight_through(tmp_path):
    off, sentinel = trainer(tmp_path, enable=False), object()
    for wrapper in (loss_terms.after_init, loss_terms.before_update, loss_terms.before_save, loss_terms.after_load):
        assert wrapper(lambda *args, **kwargs: (sentinel, args, kwargs), off, (1,), {"a": 2}) == (
            sentinel, (1,), {"a": 2},
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_the_workers_get_a_loss_that_can_be_sent_to_them():
    pytest.importorskip("verl", reason="verl is not installed")
    import pickle

    subject, given, order = trainer(coef=0.5), [], []
    actor = {"_target_": "verl.workers.config.FSDPActorConfig", "strategy": "fsdp2", "rollout_n": 3}
    actor |= {"use_dynamic_bsz": True, "clip_ratio": 0.3}
    subject.config.actor_rollout_ref.actor = OmegaConf.create(actor)
    subject.actor_rollout_wg = SimpleNamespace(set_loss_fn=lambda loss: (order.append("loss"), given.append(loss)))
    loss_terms.after_init(lambda: order.append("init"), subject, (), {})
    assert order == ["init", "loss"], "verl's own loss would be set after it"
    sent = pickle.loads(pickle.dumps(given[0]))
    from recipe.aem.seam.term_loss import loss_with_terms

    assert sent.func is loss_with_terms and sent.keywords["terms"] == [EpoSettings(enable=True, coef=0.5)]
    assert sent.keywords["config"].clip_ratio == 0.3


# --- checkpoints ------------------------------------------------------------------------------------------------------


def saved(tmp_path, step=2):
    subject = trainer(tmp_path, step=step)
    subject.aem_terms["epo"].add(1, 1.0, 1)
    subject.aem_terms["epo"].add(2, 2.0, 1)
    seen = []
    loss_terms.before_save(lambda: seen.extend(tmp_path.glob("*/*")), subject, (), {})
    path = tmp_path / f"global_step_{step}" / "aem_epo.json"
    assert seen == [path], "verl's file that makes the checkpoint count is written last"
    return path


def load(subject, step):
    def original():
        subject.global_steps = step

    loss_terms.after_load(original, subject, (), {})
    return subject.aem_terms["epo"]


def test_a_resumed_history_goes_on_where_it_was(tmp_path):
    saved(tmp_path)
    state = load(trainer(tmp_path), step=2)
    state.add(3, 7.0, 1)
    assert (state.history.reference, state.history.count) == (1.5, 2)


def test_a_run_from_scratch_starts_without_history(tmp_path):
    saved(tmp_path)
    assert load(trainer(tmp_path), step=0).history.count == 0


def test_a_checkpoint_is_found_by_its_path_too(tmp_path):
    path = saved(tmp_path / "elsewhere")
    subject = trainer(tmp_path, mode="resume_path")
    subject.config.trainer.resume_from_path = str(path.parent)
    assert load(subject, step=2).history.reference == 1.5


def test_a_missing_history_is_an_error_that_names_file_and_setting(tmp_path):
    with pytest.raises(SettingsError, match=r"global_step_4/aem_epo\.json is missing.*allow_missing_history=True"):
        load(trainer(tmp_path), step=4)
    assert load(trainer(tmp_path, allow_missing_history=True), step=4).history.count == 0


def test_the_permission_to_start_anew_does_not_throw_a_history_away(tmp_path):
    saved(tmp_path)
    assert load(trainer(tmp_path, allow_missing_history=True), step=2).history.count == 2


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 9, "total": 1.0, "count": 1}', ""])
def test_a_damaged_history_is_an_error_that_names_the_file(tmp_path, text):
    saved(tmp_path).write_text(text)
    with pytest.raises(SettingsError, match=r"global_step_2/aem_epo\.json holds no history of algorithm\.epo"):
        load(trainer(tmp_path, allow_missing_history=True), step=2)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = saved(tmp_path)
    before = path.read_text()

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    subject = trainer(tmp_path, step=2)
    subject.aem_terms["epo"].add(2, 9.0, 1)
    with pytest.raises(OSError, match="disk full"):
        loss_terms.before_save(lambda: None, subject, (), {})
    assert path.read_text() == before and json.loads(before)["count"] == 2


# --- the trainer of verl ----------------------------------------------------------------------------------------------


@pytest.fixture
def verl_trainer():
    pytest.importorskip("verl", reason="verl is not installed")
    import verl_aem

    verl_aem.load()
    from verl.trainer.ppo.v1 import get_trainer_cls

    return get_trainer_cls("sync")


def test_every_method_is_wrapped(verl_trainer):
    wrapped = {"init": loss_terms.after_init, "_update_actor": loss_terms.before_update}
    wrapped |= {"_save_checkpoint": loss_terms.before_save, "_load_checkpoint": loss_terms.after_load}
    for name, wrapper in wrapped.items():
        around, wrappers = getattr(verl_trainer, name), []
        while hasattr(around, "_self_wrapper"):
            wrappers.append(around._self_wrapper)
            around = around.__wrapped__
        assert wrapper in wrappers
        # whatever fails in it, EPO's history included, the last checkpoint is spared
        assert name != "_save_checkpoint" or wrappers[0] is full_disk.around_save


def test_what_is_refused_stops_the_trainer_before_it_starts(verl_trainer):
    with pytest.raises(SettingsError, match="calculate_entropy=True"):
        verl_trainer(OmegaConf.create(changed("actor_rollout_ref.actor.calculate_entropy", False)))


def test_the_legacy_trainer_refuses_before_it_starts(verl_trainer):
    from verl.trainer.ppo.ray_trainer import RayPPOTrainer

    with pytest.raises(SettingsError, match=r"algorithm\.epo\.enable=True does not run on RayPPOTrainer"):
        RayPPOTrainer(OmegaConf.create({"algorithm": GOOD["algorithm"]}), None, {}, None)


def test_the_shipped_settings_are_all_of_them(variables):
    import hydra

    with hydra.initialize_config_module("recipe.aem.config", version_base=None):
        config = hydra.compose("webshop_7b", ["method=aem_epo", "algorithm.epo.coef=0.01"])
    assert check_terms(config, "0.9.1") == [EpoSettings(enable=True, coef=0.01)]
    assert set(config.algorithm.epo) == {field.name for field in dataclasses.fields(EpoSettings)}
