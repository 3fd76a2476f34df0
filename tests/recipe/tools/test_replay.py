"""Replay of dumps: it reproduces the training's own advantages, and other methods match the estimators themselves.

The dumps are made by verl's own `_compute_advantage` over a fake queue (dumps.py). Not covered: the real engine
(tests/e2e/test_training.py), the command line (test_cli_replay.py), the file format (tests/recipe/dump).
"""

from __future__ import annotations

import dataclasses
import math
import re
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")

from recipe.aem.columns import Ragged
from recipe.aem.dump import digest, schema
from recipe.aem.dump.reader import read_step
from recipe.aem.dump.step import DumpError
from recipe.aem.methods.outcomes import OUTCOME_BASES
from recipe.aem.settings import SettingsError
from recipe.aem.tools.replay.advantages import check, compute
from recipe.aem.tools.replay.comparison import Replay
from recipe.aem.tools.replay.methods import parse_method
from tests.helpers.dumps import ALGORITHM, advance, dump, dumped, make_batch, make_trainer

OURS = [
    {"adv_estimator": "grpo_rows"},
    {"adv_estimator": "grpo_rows", "norm_adv_by_std_in_grpo": False},
    {"adv_estimator": "gigpo", "gigpo": {"gamma": 0.9, "by_std": False}},
    {"adv_estimator": "empg", "empg": {"base_estimator": "grpo_rows"}},
    {"adv_estimator": "aem", "aem": {"base_estimator": "grpo_rows"}},
    {"adv_estimator": "aem", "aem": {"base_estimator": "gigpo", "scope": "batch", "mean": "token"}},
    {"adv_estimator": "aem", "aem": {"base_estimator": "rloo", "lam": 0.3, "proxy": "surprisal"}},
    {"adv_estimator": "aem", "aem": {"base_estimator": "grpo", "shuffle": 5, "direction": "reversed"}},
    {"adv_estimator": "aem", "aem": {"base_estimator": "grpo_rows", "relative_to": "anchor", "min_range": 0.0}},
    {"adv_estimator": "aem", "aem": {"base_estimator": "gae"}},
    {"adv_estimator": "aem", "aem": {"base_estimator": "hgpo"}},
    {"adv_estimator": "hgpo", "hgpo": {"history_length": 3, "trajectory_term": True}},
    {"adv_estimator": "ecpo", "ecpo": {"kappa": 1.0, "weight": 0.5}},
    {"adv_estimator": "empg", "empg": {"base_estimator": "ecpo"}},
    *({"adv_estimator": f"{base}_trajectories"} for base in OUTCOME_BASES),
    {"adv_estimator": "gigpo", "gigpo": {"similarity": 0.6}},
]
# without verl's own grpo_passk, which refuses groups of one row, and so every padding row
VERLS = [{"adv_estimator": name} for name in (*OUTCOME_BASES, "gae") if name != "grpo_passk"]


def named(algorithm):
    block = algorithm.get(algorithm["adv_estimator"], {})
    return " ".join([algorithm["adv_estimator"], *(f"{key}={value}" for key, value in block.items())])


@pytest.mark.parametrize("algorithm", OURS + VERLS, ids=named)
@hypothesis.settings(deadline=None, max_examples=5)
@hypothesis.given(
    seed=st.integers(0, 2**31),
    layout=st.sampled_from(["turns", "transcript"]),
    groups=st.integers(1, 4),
    masked=st.sampled_from([0.0, 0.4]),
    faults=st.sampled_from([0.0, 0.4]),
)
# one group is masked whole; and one is left with one trajectory by faults
@hypothesis.example(seed=1, layout="transcript", groups=2, masked=0.4, faults=0.0)
@hypothesis.example(seed=6, layout="turns", groups=3, masked=0.0, faults=0.6)
def test_the_trainings_advantages_come_back_bit_for_bit(algorithm, seed, layout, groups, masked, faults):
    queue = make_batch(seed, layout, groups, masked=masked, faults=faults)
    with tempfile.TemporaryDirectory() as folder:
        step = dumped(queue, algorithm, Path(folder))
    checked = check(step)
    assert checked.exact and checked.reasons == [] and checked.step == 3
    # against the queue itself, which no file has touched
    trained = torch.cat([queue.columns["advantages"][key] for key in step.keys])
    again = compute(step, parse_method(algorithm["adv_estimator"], step.meta.algorithm)).advantages.values
    assert torch.equal(again, trained.to(again.dtype))


@pytest.mark.parametrize("layout", ["turns", "transcript"])
def test_without_recorded_spans_too(layout, tmp_path):
    step = dumped(make_batch(1, layout, recorded=False), OURS[4], tmp_path)
    assert check(step).exact and step.tokens["advantages"].values.any()


def test_a_batch_in_which_nothing_counts(tmp_path):
    step = dumped(make_batch(1, masked=1.0), OURS[4], tmp_path)
    assert check(step).exact and not step.tokens["advantages"].values.any()
    replayed = Replay(["gigpo", "rloo"])
    replayed.add(step)
    summary = replayed.summary()
    assert summary["responses"] == 0 and summary["methods"]["gigpo"]["weight"] is None


@pytest.mark.parametrize(
    "name", ["grpo_rows", "gigpo", "hgpo", "ecpo", "empg", "aem", "rloo_trajectories", "grpo", "rloo"]
)
def test_another_method_is_what_training_with_it_gives(name, tmp_path):
    """The same batch trained with it; a modulator takes the run's base."""
    step = dumped(make_batch(7), {"adv_estimator": "aem", "aem": {"base_estimator": "grpo_rows"}}, tmp_path)
    block = {name: {"base_estimator": "grpo_rows"}} if name in ("aem", "empg") else {}
    queue = make_batch(7)
    advance(make_trainer({"adv_estimator": name, **block}), queue)
    trained = torch.cat([queue.columns["advantages"][key] for key in step.keys])
    result = compute(step, parse_method(name, step.meta.algorithm))
    assert torch.equal(result.advantages.values, trained.to(result.advantages.values.dtype)) and trained.any()


# --- what cannot come back --------------------------------------------------------------------------------------------


def test_rows_left_out_do_not_matter_inside_a_group(tmp_path):
    step = dumped(make_batch(2, groups=4), OURS[4], tmp_path, rows=30)
    assert 0 < step.meta.groups_left_out < 4 and step.meta.rows_left_out == step.meta.rows - len(step.keys)
    assert check(step).exact


@pytest.mark.parametrize(
    ("algorithm", "reason"),
    [
        ({"adv_estimator": "aem", "aem": {"base_estimator": "grpo_rows", "scope": "batch"}}, r"aem\.scope=batch"),
        ({"adv_estimator": "aem", "aem": {"base_estimator": "grpo_rows", "shuffle": 1}}, r"aem\.shuffle"),
        ({"adv_estimator": "empg", "empg": {"base_estimator": "grpo_rows"}}, "empg takes"),
        ({"adv_estimator": "reinforce_plus_plus_trajectories"}, "reinforce_plus_plus takes"),
    ],
)
def test_rows_left_out_of_a_batch_that_is_one_scope_are_the_reason(algorithm, reason, tmp_path):
    checked = check(dumped(make_batch(2, groups=4), algorithm, tmp_path, rows=30))
    assert not checked.exact and checked.differing and checked.largest > 1e-4
    (said,) = checked.reasons
    assert said.startswith("algorithm.dump.rows left out ") and "of 4 prompt groups" in said
    assert re.search(reason, said), said


def test_one_bit_is_enough_and_another_version_is_named(tmp_path):
    step = dumped(make_batch(3), OURS[4], tmp_path)
    values = step.tokens["advantages"].values.clone()
    place = int(values.abs().argmax())
    values[place] = torch.nextafter(values[place], torch.tensor(math.inf))
    meta = dataclasses.replace(step.meta, packages={**step.meta.packages, "torch": "2.0.0"})
    tokens = {**step.tokens, "advantages": Ragged(values, step.tokens["advantages"].length_B)}
    checked = check(dataclasses.replace(step, meta=meta, tokens=tokens))
    assert not checked.exact and checked.differing == 1 and 0 < checked.largest < 1e-5
    (reason,) = checked.reasons
    assert reason.startswith("torch: ") and reason.endswith("2.0.0 in the training")
    same = check(dataclasses.replace(step, tokens=tokens))
    assert same.reasons == ["the same versions were at work: the file, or this package, has a fault"]


def test_an_estimator_of_someone_elses_cannot_be_checked(tmp_path):
    step = dumped(make_batch(3), {"adv_estimator": "grpo"}, tmp_path)
    foreign = {**step.meta.algorithm, "adv_estimator": "mine"}
    checked = check(dataclasses.replace(step, meta=dataclasses.replace(step.meta, algorithm=foreign, estimator="mine")))
    assert not checked.exact and checked.largest is None and "mine is none of the estimators" in checked.reasons[0]


@pytest.mark.parametrize(
    ("method", "column", "said"),
    [
        ("aem", "entropies", "aem needs entropies, which the dump of step 3 has not; aem:proxy=surprisal needs none"),
        ("empg", "entropies", "empg needs entropies"),
        ("aem:proxy=surprisal", "old_log_probs", "needs old_log_probs"),
        ("gae", "values", "gae needs values"),
        ("aem:base_estimator=gae", "values", "needs values"),
    ],
)
def test_what_a_method_needs_and_the_dump_lacks(method, column, said, tmp_path):
    step = dumped(make_batch(3), {"adv_estimator": "grpo_rows"}, tmp_path)
    step = dataclasses.replace(step, tokens={k: v for k, v in step.tokens.items() if k != column})
    with pytest.raises(DumpError, match=said.replace("(", r"\(")):
        compute(step, parse_method(method, step.meta.algorithm))
    assert check(step).exact


def test_gigpo_without_anchors_says_so(tmp_path):
    step = dumped(make_batch(3, recorded=False), {"adv_estimator": "grpo_rows"}, tmp_path)
    with pytest.raises(DumpError, match=r"gigpo, step 3: gigpo compares turns .*anchors"):
        compute(step, parse_method("gigpo", step.meta.algorithm))
    with pytest.raises(DumpError, match=r"hgpo, step 3: hgpo compares turns .*anchors"):
        compute(step, parse_method("hgpo", step.meta.algorithm))


def test_a_file_from_before_actions_were_recorded_is_read_and_ecpo_says_so(tmp_path):
    step = dumped(make_batch(3), {"adv_estimator": "gigpo"}, tmp_path)
    table = schema.to_table(step).drop_columns("actions")
    meta = table.schema.metadata[schema.METADATA_KEY]
    whole = {schema.METADATA_KEY: meta, digest.METADATA_KEY: digest.digest_of(table, meta)}
    old = schema.from_table(table.replace_schema_metadata(whole), "old")
    assert not any("actions" in extra for extra in old.extra_fields) and all(old.extra_fields)
    assert check(old).exact
    with pytest.raises(
        DumpError, match=r"ecpo, step 3: ecpo compares the actions .*version 1 .*extra_fields\['actions'\]"
    ):
        compute(old, parse_method("ecpo", old.meta.algorithm))


# --- the grammar ------------------------------------------------------------------------------------------------------

RUN = {**ALGORITHM, "adv_estimator": "aem", "aem": {"base_estimator": "gigpo", "lam": 0.5}, "gigpo": {"gamma": 0.8}}


def test_what_is_not_given_is_the_runs():
    assert parse_method("aem", RUN).used == {
        "aem.base_estimator": "gigpo",
        "aem.lam": 0.5,
        "aem.min_range": 0.1,
        "aem.scope": "group",
        "aem.direction": "forward",
        "aem.mean": "response",
        "aem.relative_to": None,
        "aem.shuffle": None,
        "aem.proxy": "entropy",
        "gigpo.weight": 1.0,
        "gigpo.gamma": 0.8,
        "gigpo.by_std": True,
        "gigpo.over": "responses",
        "gigpo.step_rewards": 1.0,
        "gigpo.similarity": None,
        "norm_adv_by_std_in_grpo": True,
        "gamma": 0.95,
        "lam": 0.9,
    }
    assert parse_method("empg", RUN).settings.base == "gigpo"
    assert parse_method("aem", {"adv_estimator": "rloo_trajectories"}).settings.base == "rloo"
    assert parse_method("aem", {"adv_estimator": "mine"}).settings.base == "grpo"


def test_keys_are_of_the_methods_block_of_another_or_of_the_algorithm():
    method = parse_method("aem:lam=2,scope=batch,gigpo.gamma=0.1,shuffle=null,norm_adv_by_std_in_grpo=false", RUN)
    aem, gigpo = (method.settings.blocks[name] for name in ("aem", "gigpo"))
    assert (aem.lam, aem.scope, gigpo.gamma) == (2, "batch", 0.1)
    assert aem.shuffle is None and method.algorithm["norm_adv_by_std_in_grpo"] is False
    assert parse_method("gae:lam=0.5", RUN).algorithm["lam"] == 0.5
    for written, similarity in (("0.9", 0.9), ("null", None)):
        assert parse_method(f"gigpo:similarity={written}", RUN).used["gigpo.similarity"] == similarity
    assert RUN["aem"] == {"base_estimator": "gigpo", "lam": 0.5} and RUN["adv_estimator"] == "aem"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("emgp", r"'emgp' is not a method; did you mean `empg`\?; there are aem, empg"),
        ("aem:lamb=1", r"aem:lamb=1: 'lamb' is not a setting; did you mean `lam`\?"),
        ("aem:lam", r"aem:lam: 'lam' is not key=value"),
        ("aem:lam=strong", r"aem:lam=strong: algorithm\.aem\.lam='strong': expected a finite number"),
        ("aem:scope=row", r"expected one of \['group', 'trajectory', 'batch'\]"),
        ("aem:dump_dir=x", "'dump_dir' is not a setting"),
        ("aem:base_estimator=grop", r"base_estimator='grop' is not registered"),
        ("aem:base_estimator=empg", "empg"),
        ("grpo_rows:lamm=1", r"did you mean `lam`\?"),
        ("gigpo:gigpo.gama=1", r"did you mean `gigpo\.gamma`\?"),
    ],
)
def test_what_is_not_a_method(text, said):
    with pytest.raises(SettingsError, match=said):
        parse_method(text, {**RUN, "aem": {}})


# --- comparing --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dump")
    replayed = Replay(["grpo_rows", "aem", "aem:lam=0", "empg", "gigpo"])
    for number in (1, 2):
        queue = make_batch(number, "transcript" if number == 2 else "turns")
        replayed.add(
            read_step(dump(queue, {"adv_estimator": "aem", "aem": {"base_estimator": "grpo_rows"}}, folder, number))
        )
    return replayed.summary(), folder


def by_hand(folder, method):
    """(base, advantage, turn, length, success, −log π, Σ h, alpha) of each response, in loops."""
    responses = []
    for path in sorted(folder.glob("*.parquet")):
        step = read_step(path)
        result = compute(step, parse_method(method, step.meta.algorithm))
        rows = {name: column.rows() for name, column in step.tokens.items()} | {"got": result.advantages.rows()}
        for row, extra in enumerate(step.extra_fields):
            if step.is_padding[row]:
                continue
            for span, (start, stop) in enumerate(extra["response_spans"]):
                if rows["response_mask"][row][start:stop].any():
                    responses.append(
                        {
                            "base": rows["base_advantages"][row][start].item(),
                            "advantage": rows["got"][row][start].item(),
                            "turn": extra["turn_index"][span] + 1,
                            "length": stop - start,
                            "success": extra["reward_extra_info"]["acc"],
                            "surprisal": -rows["old_log_probs"][row][start:stop].double().sum().item(),
                            "entropy": rows["entropies"][row][start:stop].double().sum().item(),
                            "weight": step.weights[row][span],
                        }
                    )
    return responses


def push(responses):
    total = sum(abs(one["base"]) for one in responses)
    return sum(one["advantage"] * np.sign(one["base"]) for one in responses) / total if total else None


@pytest.mark.parametrize("method", ["grpo_rows", "aem", "empg", "gigpo"])
def test_the_summary_is_what_a_loop_computes(method, summary):
    got, folder = summary
    responses = by_hand(folder, method)
    of = got["methods"][method]
    assert got["responses"] == len(responses) > 40
    assert of["weight"] == pytest.approx(push(responses))
    assert of["flipped"] == pytest.approx(np.mean([one["advantage"] * one["base"] < 0 for one in responses]))
    assert of["mean"] == pytest.approx(np.mean([one["advantage"] for one in responses]))
    drift = [one["advantage"] * (one["surprisal"] - one["entropy"]) for one in responses]
    assert of["drift"] == pytest.approx(np.mean(drift), rel=1e-4, abs=1e-5)
    for row in of["weight_by_turn"]:
        inside = [one for one in responses if row["from"] <= one["turn"] <= row["to"]]
        assert row["responses"] == len(inside) > 0 and row["weight"] == pytest.approx(push(inside))
    assert [row["from"] for row in of["weight_by_turn"]] == [1, 2, 3, 5]
    assert sum(row["responses"] for row in of["weight_by_length"]) == len(responses)
    for row in of["weight_by_success"]:
        inside = [one for one in responses if (one["success"] > 0) == (row["outcome"] == "success")]
        assert row["responses"] == len(inside) and row["weight"] == pytest.approx(push(inside))
    assert len(of["weight_by_success"]) == 2
    base = [one["base"] for one in responses]
    advantage = [one["advantage"] for one in responses]
    assert got["correlation"]["base"][method] == pytest.approx(np.corrcoef(base, advantage)[0, 1])


def test_alpha_is_the_dumps_own(summary):
    got, folder = summary
    weights = [one["weight"] for one in by_hand(folder, "aem")]
    alpha = got["methods"]["aem"]["alpha"]
    assert alpha["min"] == pytest.approx(min(weights)) and alpha["max"] == pytest.approx(max(weights))
    assert alpha["q50"] == pytest.approx(np.median(weights)) and alpha["q05"] < alpha["q95"]
    assert got["methods"]["aem:lam=0"]["alpha"]["min"] == got["methods"]["aem:lam=0"]["alpha"]["max"] == 1.0
    assert got["methods"]["gigpo"]["alpha"] is None and got["methods"]["grpo_rows"]["guarded"] is None
    assert got["methods"]["aem"]["guarded"] == 0.0 and got["reproduced"]["exact"]
    assert got["methods"]["grpo_rows"]["weight"] == 1.0 and got["methods"]["aem"]["flipped"] == 0.0


def test_methods_that_mean_different_things_in_two_runs_are_refused(tmp_path):
    replayed = Replay(["aem"])
    for lam in (1.0, 0.5):
        step = dumped(make_batch(1), {"adv_estimator": "aem", "aem": {"lam": lam}}, tmp_path)
        if lam == 1.0:
            replayed.add(step)
    with pytest.raises(DumpError, match="aem means something else in step 3"):
        replayed.add(step)


def test_turns_are_counted_where_the_loop_did_not(tmp_path):
    step = dumped(make_batch(1, "transcript"), {"adv_estimator": "grpo_rows"}, tmp_path)
    bare = [{key: value for key, value in extra.items() if key != "turn_index"} for extra in step.extra_fields]
    counts = []
    for one in (step, dataclasses.replace(step, extra_fields=bare)):
        replayed = Replay(["grpo_rows"])
        replayed.add(one)
        counts.append(replayed.summary()["methods"]["grpo_rows"]["weight_by_turn"])
    assert counts[0] == counts[1]
