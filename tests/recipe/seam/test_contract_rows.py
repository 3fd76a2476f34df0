"""What this project depends on in verl's rows, keys, tags and estimators, one test per name."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import NonTensorStack, TensorDict

pytest.importorskip("verl", reason="verl is not installed")

import verl_aem

verl_aem.load()

from transfer_queue import KVBatchMeta  # noqa: E402
from verl.trainer.ppo import core_algos, padding_utils, ray_trainer  # noqa: E402
from verl.trainer.ppo.utils import need_critic  # noqa: E402
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories  # noqa: E402

from tests.helpers.contract import nested, output, post_process, rows_of_two  # noqa: E402


def test_a_rows_key_is_uid_session_and_index(monkeypatch):
    info = {"reward_extra_info": {"acc": 1.0}}
    written = post_process(monkeypatch, [output(1.0, **info), output(1.0, **info)])
    assert written["keys"] == ["u_3_0", "u_3_1"], "recipe.aem.seam.advantage._rows takes keys apart"
    assert written["partition_id"] == "train"


def test_extra_fields_are_kept_with_the_row(monkeypatch):
    info = {"reward_extra_info": {"acc": 1.0}, "response_spans": [[0, 2]]}
    fields = post_process(monkeypatch, [output(1.0, **info), output(1.0, **info)])["fields"]
    assert [extra["response_spans"] for extra in fields.get("extra_fields").tolist()] == [[[0, 2]]] * 2


def test_every_row_of_a_trajectory_gets_the_last_ones_reward_and_extras(monkeypatch):
    rows = [output(7.0, reward_extra_info={"acc": 0.0}), output(1.0, reward_extra_info={"acc": 1.0})]
    fields = post_process(monkeypatch, rows)["fields"]
    assert [row.tolist() for row in fields["rm_scores"].unbind()] == [[0.0, 1.0], [0.0, 1.0]]
    assert [extra["reward_extra_info"] for extra in fields.get("extra_fields").tolist()] == [{"acc": 1.0}] * 2


def test_several_rows_need_reward_extra_info(monkeypatch):
    with pytest.raises(KeyError, match="reward_extra_info"):
        post_process(monkeypatch, [output(1.0), output(1.0)])


def test_a_rows_tag_carries_the_weights_version_of_the_loop(monkeypatch):
    row = output(1.0, reward_extra_info={}, min_global_steps=4, max_global_steps=5)
    (tag,) = post_process(monkeypatch, row)["tags"]
    assert (tag["min_global_steps"], tag["max_global_steps"], tag["seq_len"]) == (4, 5, 4)
    assert not tag.get("is_padding", False)


def test_padding_rows_have_keys_of_the_same_form_a_tag_and_no_mask(monkeypatch):
    source = {
        "response_mask": torch.tensor([1, 1]),
        "responses": torch.tensor([3, 4]),
        "position_ids": torch.arange(4),
        "extra_fields": {"response_spans": [[0, 2]]},
        "uid": "u",
    }
    written: dict = {}
    queue = SimpleNamespace(kv_batch_get=lambda **_: [source], kv_batch_put=lambda **given: written.update(given))
    monkeypatch.setattr(padding_utils, "tq", queue)
    batch = KVBatchMeta(keys=["u_0_0"], tags=[{"seq_len": 4}], partition_id="train")
    filled = padding_utils.upsample_batch_to_divisible_size(batch, 4, eos_token_id=0)
    assert [bool(tag.get("is_padding", False)) for tag in filled.tags] == [False, True, True, True]
    names = [key.rsplit("_", 2) for key in filled.keys]
    assert [len(name) for name in names] == [3] * 4 and all(name[2].isdigit() for name in names)
    assert len({name[0] for name in names[1:]}) == 1 and names[1][0] != "u"
    assert all(not row.any() for row in written["fields"]["response_mask"].unbind())
    # why the seam reads the tag before it reads the spans
    assert [extra["response_spans"] for extra in written["fields"].get("extra_fields").tolist()] == [[[0, 2]]] * 3


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(core_algos, "ADV_ESTIMATOR_REGISTRY", dict(core_algos.ADV_ESTIMATOR_REGISTRY))
    return core_algos.ADV_ESTIMATOR_REGISTRY


def test_compute_advantage_takes_what_the_seam_gives_it():
    names = list(inspect.signature(ray_trainer.compute_advantage).parameters)
    assert names == ["data", "adv_estimator", "gamma", "lam", "num_repeat", "norm_adv_by_std_in_grpo", "config"]


def test_a_registered_estimator_gets_rewards_mask_config_and_groups(registry):
    seen: dict = {}

    @core_algos.register_adv_est("spy")
    def spy(**given):
        seen.update(given)
        return given["token_level_rewards"] * 2, given["token_level_rewards"] * 3

    config = {"aem": {}}
    data = ray_trainer.compute_advantage(rows_of_two(), adv_estimator="spy", config=config)
    assert set(seen) == {"token_level_rewards", "response_mask", "config", "index"}
    assert seen["config"] is config and list(seen["index"]) == ["u", "u"]
    assert data.batch["advantages"].tolist() == [[0.0, 2.0], [0.0, 0.0]]
    assert data.batch["returns"].tolist() == [[0.0, 3.0], [0.0, 0.0]]


def test_several_rows_a_trajectory_reach_a_registered_estimator_one_by_one(registry):
    """Why bases.py puts the rows of a trajectory together; `grpo` is the one that verl treats so itself."""
    seen: dict = {}

    @core_algos.register_adv_est("spy")
    def spy(**given):
        seen.update(given)
        return given["token_level_rewards"], given["token_level_rewards"]

    compute_advantage_for_multi_trajectories(rows_of_two(), batch_keys=["u_0_0", "u_0_1"], adv_estimator="spy")
    assert len(seen["index"]) == 2


def test_the_registry_knows_the_bases_by_their_strings():
    from recipe.aem.seam.checks import BROKEN_ON_V1

    known = core_algos.ADV_ESTIMATOR_REGISTRY
    assert {"aem", "gae", "grpo", "rloo", "opo", "reinforce_plus_plus"} <= set(known)
    assert set(BROKEN_ON_V1) <= set(known), "a base refused by name is gone from verl"


def test_only_the_name_gae_turns_the_critic_on():
    def config(name, enable=None):
        return OmegaConf.create({"critic": {"enable": enable}, "algorithm": {"adv_estimator": name}})

    assert need_critic(config("gae"))
    with pytest.warns(UserWarning, match="Disabled critic"):
        assert not need_critic(config("aem"))
    assert need_critic(config("aem", enable=True))


def test_a_stacked_column_of_python_objects_comes_back_as_a_list():
    """tensordict, as `_fetch` uses it: `extra_fields` is a NonTensorStack, and nested columns pad to a rectangle."""
    data = TensorDict(
        {"entropy": nested([[0.5], [0.25, 0.75]]), "extra_fields": NonTensorStack({"a": 1}, {})}, batch_size=2
    )
    assert data.pop("extra_fields").tolist() == [{"a": 1}, {}]
    assert data.to_padded_tensor()["entropy"].tolist() == [[0.5, 0.0], [0.25, 0.75]]
