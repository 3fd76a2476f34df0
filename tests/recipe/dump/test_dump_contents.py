"""What a dump of `algorithm.dump.dir` holds.

Batches go through verl's own `_compute_advantage` over a fake queue (dumps.py). Not covered: the real engine
(tests/e2e/test_training.py); whether replaying gives the same advantages (test_replay.py).
"""

from __future__ import annotations

import dataclasses
import json
import random
import string
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")

import pyarrow.parquet as pq

from recipe.aem.columns import QUEUE_COLUMNS
from recipe.aem.dump import provenance, schema
from recipe.aem.dump.reader import read_step
from recipe.aem.settings import DumpSettings
from tests.helpers.dumps import AEM, EMPG, Shelf, advance, dump, make_batch, make_trainer

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("layout", ["turns", "transcript"])
def test_every_row_as_the_queue_has_it(layout, tmp_path):
    queue, given = (make_batch(5, layout, masked=0.4) for _ in range(2))
    path = dump(queue, AEM, tmp_path)
    assert path == tmp_path / "step_000003.parquet" and [one.name for one in tmp_path.iterdir()] == [path.name]
    rows = pq.read_table(path).to_pylist()
    keys = queue.batch.keys
    assert [row["key"] for row in rows] == keys
    for row, key in zip(rows, keys, strict=True):
        for theirs, ours in [(theirs, ours) for ours, names in QUEUE_COLUMNS.items() for theirs in names]:
            if theirs in queue.columns:
                stored = torch.tensor(row[ours], dtype=torch.float32)
                assert torch.equal(stored, queue.columns[theirs][key].float()), ours
        extra = given.columns["extra_fields"][key]
        assert [[span["start"], span["stop"]] for span in row["spans"]] == extra["response_spans"]
        for name in schema.TURNS:
            assert row[name] == extra[name], name
        assert (row["fault"], row["cut"]) == (extra["fault"], extra["cut"])
        info = extra["reward_extra_info"]
        assert (row["success"], row["task_score"]) == (info["acc"], info["task_score"])
        assert f"acc/{row['kind']}" in info
        assert row["group"] == queue.columns["uid"][key] and row["spans_recorded"]
        assert f"{row['trajectory']}_{row['place']}" == key
        assert row["is_padding"] == key.startswith("pad") and row["masked"] == (not any(row["response_mask"]))
    assert any(row["masked"] and not row["is_padding"] for row in rows)


@pytest.mark.parametrize("algorithm", [AEM, EMPG], ids=["aem", "empg"])
@pytest.mark.parametrize("layout", ["turns", "transcript"])
def test_base_times_weight_is_the_advantage(algorithm, layout, tmp_path):
    path = dump(make_batch(5, layout), algorithm, tmp_path)
    meta = read_step(path).meta
    name = algorithm["adv_estimator"]
    assert meta.weights == {"aem": "alpha", "empg": "scale"}[name]
    assert (meta.centre is not None) == (name == "empg")
    counted = 0
    for row in pq.read_table(path).to_pylist():
        if row["masked"]:
            assert set(row["weights"]) <= {None} and not any(row["advantages"])
            continue
        bonuses = row["bonuses"] or [0.0] * len(row["spans"])
        for span, weight, bonus in zip(row["spans"], row["weights"], bonuses, strict=True):
            first = span["start"]
            expected = row["base_advantages"][first] * weight + bonus - (meta.centre or 0.0)
            assert row["advantages"][first] == pytest.approx(expected, abs=1e-6)
            counted += 1
    assert counted > 20


@pytest.mark.parametrize("name", ["grpo_rows", "gigpo", "hgpo", "ecpo", "rloo_trajectories", "grpo", "rloo"])
def test_without_a_modulation_the_base_is_the_advantage(name, tmp_path):
    read = read_step(dump(make_batch(5), {"adv_estimator": name}, tmp_path))
    assert torch.equal(read.tokens["base_advantages"].values, read.tokens["advantages"].values)
    assert read.weights is None and read.meta.weights is None and read.tokens["advantages"].values.any()


def test_what_the_file_says_about_itself(tmp_path):
    queue = make_batch(5)
    algorithm = {**AEM, "aem": {"base_estimator": "rloo", "lam": 0.5}, "use_kl_in_reward": False}
    path = dump(queue, algorithm, tmp_path, step=12)
    meta = read_step(path).meta
    assert (meta.step, meta.part, meta.parts, meta.estimator) == (12, 0, 1, "aem")
    assert meta.settings["aem"]["lam"] == 0.5 and meta.settings["aem"]["min_range"] == 0.1
    assert meta.algorithm["gamma"] == 0.95 and meta.algorithm["aem"]["base_estimator"] == "rloo"
    assert meta.run == {
        "project": "project",
        "experiment": "experiment",
        "model": "my/model",
        "tokenizer": "my/model",
        "temperature": 1.0,
        "loss_agg_mode": "token-mean",
    }
    assert meta.data == {"train_files": ["train.parquet"], "benchmark": {"target": "shop"}}
    assert meta.packages["torch"] == provenance.versions()["torch"] and meta.machine["threads"] >= 1
    assert meta.width == max(len(mask) for mask in queue.columns["response_mask"].values())
    assert (meta.groups, meta.rows, meta.rows_left_out) == (3, len(queue.batch.keys) - 1, 0)
    assert json.loads(pq.read_metadata(path).metadata[schema.METADATA_KEY])["schema"] == 2


def test_rows_without_what_the_loop_leaves(tmp_path):
    """verl's own loops: no spans, no turns; the runs of the mask stand in for the spans."""
    queue = make_batch(5, "transcript", recorded=False)
    rows = pq.read_table(dump(queue, AEM, tmp_path)).to_pylist()
    for row in rows:
        assert not row["spans_recorded"] and row["anchors"] is None and row["turn_index"] is None
        inside = {token for span in row["spans"] for token in range(span["start"], span["stop"])}
        assert inside == {token for token, on in enumerate(row["response_mask"]) if on}
        assert len(row["weights"]) == len(row["spans"])
    assert "response_spans" not in read_step(tmp_path / "step_000003.parquet").extra_fields[0]


def test_columns_that_a_run_has_not_are_empty(tmp_path):
    queue = make_batch(5)
    for name in ("entropy", "values", "old_log_probs", "prompts", "extra_fields"):
        del queue.columns[name]
    path = dump(queue, {"adv_estimator": "grpo"}, tmp_path)
    table = pq.read_table(path)
    for name in ("entropies", "values", "old_log_probs", "prompt_ids", "success", "fault"):
        assert table[name].null_count == len(table)
    assert set(read_step(path).tokens) == {"response_ids", "response_mask", "rewards", "base_advantages", "advantages"}


def test_kl_in_the_reward_is_in_the_rewards(tmp_path):
    """What verl writes back is dumped; of a batch without a token, too, which no estimator sees."""
    controller = SimpleNamespace(value=0.1, update=lambda **_: None)
    algorithm = {"adv_estimator": "grpo_rows", "use_kl_in_reward": True, "kl_penalty": "kl", "dump": {"dir": "x"}}
    for masked in (0.0, 1.0):
        queue = make_batch(5, masked=masked)
        advance(make_trainer(algorithm, aem_dump=(shelf := Shelf()), kl_ctrl_in_reward=controller), queue)
        for row, key in zip(shelf.steps[0].tokens["rewards"].rows(), queue.batch.keys, strict=True):
            assert torch.equal(row, queue.columns["token_level_rewards"][key])
        scores = torch.cat([queue.columns["rm_scores"][key] for key in queue.batch.keys])
        assert torch.equal(shelf.steps[0].tokens["rewards"].values, scores) == bool(masked)


def test_half_precision_is_kept_exactly(tmp_path):
    queue = make_batch(5)
    queue.columns["entropy"] = {key: value.bfloat16() for key, value in queue.columns["entropy"].items()}
    read = read_step(dump(queue, AEM, tmp_path))
    assert torch.equal(read.tokens["entropies"].rows()[0], queue.columns["entropy"][queue.batch.keys[0]].float())


@hypothesis.settings(deadline=None, max_examples=15)
@hypothesis.given(st.integers(0, 2**31), st.sampled_from(["turns", "transcript"]), st.booleans(), st.booleans())
def test_what_is_read_is_what_was_collected(seed, layout, recorded, empg):
    algorithm = EMPG if empg else AEM
    trainer = make_trainer({**algorithm, "dump": {"dir": "x"}}, aem_dump=(shelf := Shelf()))
    advance(trainer, make_batch(seed, layout, recorded=recorded, masked=0.3))
    (given,) = shelf.steps
    read = schema.from_table(schema.to_table(given), "file")
    assert read.meta == given.meta and read.meta.digest
    assert (read.keys, read.groups, read.is_padding) == (given.keys, given.groups, given.is_padding)
    assert set(read.tokens) == set(given.tokens)
    for name, column in given.tokens.items():
        assert read.tokens[name].length_B.tolist() == column.length_B.tolist()
        assert torch.equal(read.tokens[name].values, column.values.to(read.tokens[name].values.dtype))
    for ours, theirs in zip(read.extra_fields, given.extra_fields, strict=True):
        info = dict(theirs.get("reward_extra_info", {}))
        info.pop("turns", None)
        assert ours == ({**theirs, "reward_extra_info": info} if theirs else {})
    f32 = lambda rows: [[None if x is None else torch.tensor(x).item() for x in row] for row in rows]  # noqa: E731
    assert read.weights == f32(given.weights)
    assert (read.bonuses is None) == (given.bonuses is None)


def test_a_text_that_many_turns_answered_is_stored_once(tmp_path):
    queue = make_batch(5, groups=20)
    text = "".join(random.Random(0).choices(string.printable, k=20_000))
    for extra in queue.columns["extra_fields"].values():
        extra["anchors"] = [text] * len(extra["response_spans"])
    with_text = dump(queue, AEM, tmp_path / "a").stat().st_size
    for extra in queue.columns["extra_fields"].values():
        extra["anchors"] = ["short"] * len(extra["response_spans"])
    assert with_text - dump(queue, AEM, tmp_path / "b").stat().st_size < 1.5 * len(text)


def test_docs_name_every_column_and_setting(step):
    page = (ROOT / "docs" / "dump.md").read_text()
    for name in schema.to_table(step).column_names:
        assert f"`{name}`" in page, name
    for field in dataclasses.fields(step.meta):
        assert f"`{field.name}`" in page, field.name
    assert f"Version {schema.VERSION}." in page
    for field in dataclasses.fields(DumpSettings):
        assert f"| `{field.name}` |" in page
