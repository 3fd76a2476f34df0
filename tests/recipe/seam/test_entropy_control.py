"""Entropy control: settings, state, weights, checkpoints, and its loss in the worker beside verl's and EPO's.

Not covered: the arithmetic of the rules (tests/aem_core/test_core_entropy_control.py), real processes and verl's engine
(test_epo_loss.py and tests/e2e/test_epo.py run the same loss with EPO).
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

pytest.importorskip("verl", reason="verl is not installed")

from verl.utils.metric import reduce_metrics
from verl.utils.py_functional import append_to_dict
from verl.workers.utils.losses import ppo_loss

from recipe.aem.batch import Batch
from recipe.aem.methods.entropy_control import ControlState, EntropyControlSettings, success_rates
from recipe.aem.methods.epo import EpoSettings, batch_weights
from recipe.aem.seam import loss_terms
from recipe.aem.seam.checks import check_terms
from recipe.aem.settings import SettingsError
from tests.helpers import term_loss
from tests.helpers.dumps import FAULT, make_batch
from tests.helpers.term_loss import CLOSE, EVERY, KEYS, ROWS, TinyModel, gradient_of, padded_mask

SKYWORK = EntropyControlSettings(enable=True, rule="skywork", target=0.5, delta=0.25, c_max=0.6)
AER_LIKE = EntropyControlSettings(enable=True, rule="aer_like", tau=0.5, eta=0.25, rho=1.0, c_max=0.6)
BOTH = pytest.mark.parametrize("control", [SKYWORK, AER_LIKE], ids=lambda control: control.rule)

# --- settings ---------------------------------------------------------------------------------------------------------

GOOD = {
    "algorithm": {"adv_estimator": "grpo", "entropy_control": {"enable": True}, "rollout_correction": {}},
    "actor_rollout_ref": {"actor": {"calculate_entropy": True, "entropy_coeff": 0}},
}


def changed(value, *path):
    config = copy.deepcopy(GOOD)
    *parents, last = path
    node = config
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    return config


def test_it_is_off_and_its_defaults_are_those_of_skyworks_scripts():
    for algorithm in ({}, {"entropy_control": None}, {"entropy_control": {}}):
        control = EntropyControlSettings.from_config(algorithm)
        assert (control.enable, control.rule, control.allow_missing_history) == (False, "skywork", False)
        assert (control.target, control.delta, control.c_max) == (0.2, 1e-4, 0.005)
        assert (control.tau, control.eta, control.rho) == (0.4, 1e-3, 1.0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rule", "aer", r"algorithm\.entropy_control\.rule='aer': expected one of \['skywork', 'aer_like'\]"),
        ("targt", 0.2, r"targt is not a setting .*did you mean `target`"),
        ("target", -0.2, r"algorithm\.entropy_control\.target=-0\.2: expected a finite number >= 0"),
        ("delta", math.inf, "expected a finite number >= 0"),
        ("tau", True, "expected a finite number >= 0"),
        ("eta", None, "expected a finite number >= 0"),
        ("c_max", "0.1", "expected a finite number >= 0"),
        ("rho", 0, r"algorithm\.entropy_control\.rho=0: expected a number > 0"),
        ("enable", 1, "expected true or false"),
    ],
)
def test_a_bad_setting_is_refused(key, value, message):
    with pytest.raises(SettingsError, match=message):
        check_terms(changed(value, "algorithm", "entropy_control", key), "0.9.1")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("algorithm", "rollout_correction", "bypass_mode"), True, r"entropies for algorithm\.entropy_control\.enable"),
        (("actor_rollout_ref", "actor", "calculate_entropy"), False, r"actor\.calculate_entropy=True"),
        (("distillation", "enabled"), True, r"distillation\.enabled=True would lose its own"),
    ],
)
def test_what_it_cannot_work_with_is_refused(path, value, message):
    with pytest.raises(SettingsError, match=message):
        check_terms(changed(value, *path), "0.9.1")


def test_it_goes_with_epo():
    terms = check_terms(changed({"enable": True}, "algorithm", "epo"), "0.9.1")
    assert [term.name for term in terms] == ["epo", "entropy_control"]


@pytest.mark.parametrize("rule", ["skywork", "aer_like"])
def test_the_shipped_settings_are_the_defaults(variables, rule):
    import hydra

    with hydra.initialize_config_module("recipe.aem.config", version_base=None):
        config = hydra.compose("webshop_7b", [f"method={rule}"])
    assert check_terms(config, "0.9.1") == [EntropyControlSettings(enable=True, rule=rule)]


# --- the state --------------------------------------------------------------------------------------------------------


def through_a_file(state: ControlState, step: int) -> ControlState:
    return state.control.start(json.loads(json.dumps(state.to_dict())), step)


def test_skyworks_coefficient_by_hand():
    state = SKYWORK.start()
    seen = []
    for step, entropy in enumerate((0.9, 0.1, 0.1, 0.1, 0.7, 0.5), start=1):
        state.add(step, entropy, 4)
        seen.append(state.coefficient)
    # what a step applies comes from the steps before it: up by 0.25 after each low one, cut at 0.6, down after 0.7
    assert seen == pytest.approx([0.0, 0.0, 0.25, 0.5, 0.6, 0.35])
    assert state.to_dict() == {"version": 1, "coefficient": pytest.approx(0.35), "initial": 0.9, "steps": 6}


def test_the_reconstructed_coefficient_by_hand():
    state = AER_LIKE.start()
    seen = []
    for step, entropy in enumerate((2.0, 0.2, 0.6, 3.0, 1.0), start=1):
        state.add(step, entropy, 4)
        seen.append(state.coefficient)
    # H* = 0.5 · 2: +0.25 · 0.8, then +0.25 · 0.4, then −0.25 · 2 cut at 0
    assert seen == pytest.approx([0.0, 0.0, 0.2, 0.3, 0.0])
    assert state.to_dict()["initial"] == 2.0


def test_a_step_of_several_batches_has_one_coefficient_and_their_mean_by_tokens():
    state = SKYWORK.start()
    state.add(1, 0.125, 1)
    state.add(1, 0.625, 3)  # mean 0.5: at the target
    assert state.completed() == (0.0, 0.5, 1)
    state.add(1, 0.1, 4)
    assert state.coefficient == 0.0 and state.completed() == (0.25, pytest.approx(0.3), 1)


def test_a_step_without_responses_is_no_step():
    state = AER_LIKE.start()
    state.add(1, 0.0, 0)
    state.add(2, 2.0, 5)
    state.add(3, 0.0, 0)
    assert state.completed() == (0.0, 2.0, 1)
    state.add(4, 0.2, 5)
    assert state.completed() == (pytest.approx(0.2), 2.0, 2)


@BOTH
@settings(deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.floats(-0.5, 4), st.integers(0, 9)), min_size=1, max_size=3), max_size=8), st.data()
)
def test_resumed_is_uninterrupted_and_both_are_a_plain_loop(control, steps, data):
    straight, resumed = control.start(), control.start()
    coefficient, initial = 0.0, None
    for number, batches in enumerate(steps, start=1):
        for entropy, tokens in batches:
            for state in (straight, resumed):
                state.add(number, entropy, tokens)
            assert straight.coefficient == resumed.coefficient == pytest.approx(coefficient, abs=1e-12)
        if sum(tokens for _, tokens in batches):
            mean = sum(h * n for h, n in batches) / sum(n for _, n in batches)
            mean = max(mean, 0.0)
            initial = mean if initial is None else initial
            gap = (control.tau * initial if control.rule == "aer_like" else control.target) - mean
            if abs(gap) < 1e-9:
                return  # rounding decides on which side of the target it is
            move = control.eta * gap if control.rule == "aer_like" else math.copysign(control.delta, gap)
            coefficient = min(max(coefficient + move, 0.0), control.c_max)
        if data.draw(st.booleans(), label="resumed here"):
            resumed = through_a_file(resumed, number)
    assert straight.to_dict() == resumed.to_dict()


def test_a_lower_maximum_holds_from_the_resume_on():
    state = SKYWORK.start({"version": 1, "coefficient": 0.6, "initial": 0.9, "steps": 3}, 3)
    lower = dataclasses.replace(SKYWORK, c_max=0.1)
    assert state.coefficient == 0.6 and lower.start(state.to_dict(), 3).coefficient == 0.1


# --- weights and numbers of a batch -----------------------------------------------------------------------------------

# prompt a: won and lost, b: lost twice, c: won. ρ = 1: d = 0.5, 1, 0 with mean 0.5
WON = {"a_0": 1.0, "a_1": 0.0, "b_0": 0.0, "b_1": 0.0, "c_0": 1.0, "padff_0": 0.0}
WEIGHT = {"a": 1.0, "b": 2.0, "c": 0.0}
TOKENS = {"a": 7, "b": 5, "c": 4}


def rows(entropy_BT=None, **faults):
    extra = [
        {"reward_extra_info": {"acc": WON[key.rsplit("_", 1)[0]]}, "fault": faults.get(key.rsplit("_", 1)[0], "")}
        for key in KEYS
    ]
    mask_BT = padded_mask()
    tokens = {"response_mask": mask_BT, "entropies": torch.rand(mask_BT.shape) if entropy_BT is None else entropy_BT}
    return Batch.from_columns(KEYS, tokens, extra, is_padding=[key.startswith("pad") for key in KEYS])


def filled(value):
    return torch.full(padded_mask().shape, value)


def weight_of(control, key):
    group = key[0]
    return 1 / 16 if control.rule == "skywork" else WEIGHT[group] / (3 * TOKENS[group])


@BOTH
def test_the_weights_by_hand(control):
    prepared = control.prepare(control.start(), rows(), 1, 10)
    for key, (_, mask), weight_T in zip(KEYS, ROWS, prepared.weight_BT, strict=True):
        expected = torch.tensor([on * weight_of(control, key) if not key.startswith("pad") else 0.0 for on in mask])
        torch.testing.assert_close(weight_T[: len(mask)], expected)
        assert not weight_T[len(mask) :].any()
    weights = {name: value for name, value in prepared.metrics.items() if "weight" in name}
    expected = {"entropy_control/weight/min": 0.0, "entropy_control/weight/max": 2.0}
    assert weights == ({} if control.rule == "skywork" else pytest.approx(expected))


def test_equal_success_rates_leave_the_mean_over_prompts(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "WON", dict.fromkeys(WON, 1.0))
    prepared = AER_LIKE.prepare(AER_LIKE.start(), rows(), 1, 10)
    assert prepared.metrics["entropy_control/weight/min"] == prepared.metrics["entropy_control/weight/max"] == 1.0
    assert prepared.weight_BT.sum().item() == pytest.approx(1.0)


@BOTH
def test_a_trajectory_with_a_fault_takes_no_part(control):
    # without a_1 prompt a has one trajectory, which is left out with it: b (d = 1) and c (d = 0) remain
    prepared = control.prepare(control.start(), rows(a_1=FAULT), 1, 10)
    assert not prepared.weight_BT[:3].any() and prepared.weight_BT[3:].any()
    group_b = 1 / 9 if control.rule == "skywork" else 2.0 / (2 * 5)
    assert prepared.weight_BT[3, 0].item() == pytest.approx(group_b)


def test_a_prompt_that_is_masked_whole_is_not_in_the_mean():
    # of b (d = 1) and c (d = 0) alone: weights 2 and 0, over two prompts of 5 and 4 tokens
    batch = rows()
    mask_BT = batch.mask_BT.clone()
    mask_BT[:3] = 0
    prepared = AER_LIKE.prepare(AER_LIKE.start(), batch.with_mask(mask_BT), 1, 10)
    assert prepared.weight_BT[:3].sum() == 0 and prepared.weight_BT[3, 0].item() == pytest.approx(2 / (2 * 5))
    assert prepared.metrics["entropy_control/weight/max"] == 2.0 and not prepared.weight_BT[6].any()


@BOTH
@pytest.mark.parametrize("layout", ["turns", "transcript"])
@pytest.mark.parametrize("seed", range(4))
def test_real_rows_against_a_plain_loop(control, layout, seed, monkeypatch):
    queue = make_batch(seed, layout=layout, faults=0.1)
    monkeypatch.setitem(sys.modules, "transfer_queue", queue)
    batch = Batch.from_queue(queue.batch, ["entropies"])
    prepared = control.prepare(control.start(), batch, 1, 10)
    live, won, tokens, total = list(batch.live.rows), {}, {}, []
    for row in live:
        group, name = batch.groups[row], batch.keys[row].rsplit("_", 1)[0]
        won.setdefault(group, {})[name] = batch.extra_fields[row]["reward_extra_info"]["acc"]
        mask = queue.columns["response_mask"][batch.keys[row]].tolist()
        tokens[group] = tokens.get(group, 0) + sum(mask)
        entropies = queue.columns["entropy"][batch.keys[row]].tolist()
        total += [h for h, on in zip(entropies, mask, strict=True) if on]
    assert prepared.metrics["entropy_control/entropy"] == pytest.approx(sum(total) / len(total), rel=1e-5)
    d = {group: 1 - sum(won[group].values()) / len(won[group]) for group in won if tokens[group]}
    w = {g: 1.0 if len(set(d.values())) == 1 else each / (sum(d.values()) / len(d)) for g, each in d.items()}
    for row in range(len(batch.keys)):
        mask = queue.columns["response_mask"][batch.keys[row]]
        group = batch.groups[row]
        share = (
            1 / len(total) if control.rule == "skywork" else w.get(group, 0) / (len(d) * max(tokens.get(group, 0), 1))
        )
        expected = mask * (share if row in live else 0.0)
        torch.testing.assert_close(prepared.weight_BT[row, : len(mask)], expected.float(), rtol=1e-5, atol=1e-8)


def test_success_is_counted_by_trajectories_not_rows():
    # a_0 has two rows and won, a_1 one and lost
    assert success_rates(rows().live).tolist() == [0.5, 0.0, 1.0]


def test_without_success_the_setting_is_named():
    batch = Batch.from_columns(KEYS, {"response_mask": padded_mask(), "entropies": filled(0.5)})
    with pytest.raises(RuntimeError, match=r"trajectory a_0 has no .*\['acc'\].*entropy_control\.rule=skywork"):
        AER_LIKE.prepare(AER_LIKE.start(), batch, 1, 10)
    assert SKYWORK.prepare(SKYWORK.start(), batch, 1, 10).weight_BT.any()


@BOTH
def test_a_batch_without_responses_has_no_weight_and_is_no_step(control):
    empty = Batch.from_columns(["u_0_0"], {"response_mask": torch.zeros(1, 3).long(), "entropies": torch.ones(1, 3)},
                               [{"reward_extra_info": {"acc": 0.0}}])  # fmt: skip
    state = control.start()
    prepared = control.prepare(state, empty, 1, 10)
    assert not prepared.weight_BT.any() and state.completed() == (0.0, None, 0)


def test_the_numbers_of_a_step_by_hand():
    """Target 0.5, δ 0.25: nothing after 0.9, 0.25 after 0.25, applied at 0.5; at 0.8 it is there but not applied."""
    state, seen = SKYWORK.start(), []
    for step, entropy in enumerate((0.9, 0.25, 0.5, 0.8), start=1):
        prepared = SKYWORK.prepare(state, rows(filled(entropy)), step, 10)
        seen.append([prepared.metrics[f"entropy_control/{name}"] for name in ("entropy", "coefficient", "applied")])
        assert prepared.numbers == {"coefficient": seen[-1][2]} and prepared.metrics["entropy_control/target"] == 0.5
    expected = [[0.9, 0.0, 0.0], [0.25, 0.0, 0.0], [0.5, 0.25, 0.25], [0.8, 0.25, 0.0]]
    assert seen == [pytest.approx(each) for each in expected]
    # below the target again, twice: the coefficient of 0 has not stopped it
    low = [SKYWORK.prepare(state, rows(filled(0.1)), step, 10).numbers["coefficient"] for step in (5, 6)]
    assert low == pytest.approx([0.0, 0.25])


def test_the_reconstructions_target_is_anchored_at_the_first_step():
    state = AER_LIKE.start()
    targets = [
        AER_LIKE.prepare(state, rows(filled(entropy)), step, 10).metrics["entropy_control/target"]
        for step, entropy in enumerate((2.0, 0.5, 3.0), start=1)
    ]
    assert targets == pytest.approx([1.0, 1.0, 1.0])
    # without a gate: 0.25 · 0.5 from the second step is applied in the third, whatever its entropy
    assert AER_LIKE.prepare(state, rows(filled(3.0)), 3, 10).numbers["coefficient"] == pytest.approx(0.125)


# --- the loss in the worker -------------------------------------------------------------------------------------------


def column(control):
    return {"entropy_control_weight": control.prepare(control.start(), rows(), 1, 10).weight_BT}


def sent(coefficient, mini_batches=1.0):
    return {"aem_entropy_control": {"coefficient": coefficient, "mini_batches": mini_batches}}


def train(model, control, split, coefficient=0.3, mini_batches=1.0, **keywords):
    data = term_loss.batch(**column(control))
    return term_loss.train(model, data, split, sent(coefficient, mini_batches), terms=[control], **keywords)


def verls(model, split, **keywords):
    return term_loss.train(model, term_loss.batch(), split, {}, ppo_loss, **keywords)


def by_hand(model, control):
    """Σ w h of the batch in loops, as a tensor with a graph."""
    sequences, total = term_loss.batch()["input_ids"].unbind(), torch.zeros((), dtype=torch.float64)
    for row, (prompt, mask) in enumerate(ROWS):
        for place, on in enumerate(mask):
            if on and not KEYS[row].startswith("pad"):
                probability = torch.softmax(model(sequences[row][prompt + place - 1]), -1)
                entropy = -sum(p * p.log() for p in probability)
                total = total + weight_of(control, KEYS[row]) * entropy
    return total


@BOTH
def test_value_and_gradient_are_those_of_plain_loops(control):
    model = TinyModel()
    entropy = by_hand(model, control)
    with_term, metrics = train(model, control, [[EVERY]])
    without, plain = verls(model, [[EVERY]])
    torch.testing.assert_close(with_term, without + gradient_of(model, -0.3 * entropy), **CLOSE)
    assert metrics["actor/entropy_control_entropy"] == pytest.approx(entropy.item(), rel=1e-5)
    assert metrics["actor/entropy_control_loss"] == pytest.approx(-0.3 * entropy.item(), rel=1e-5)
    assert metrics["actor/pg_loss"] == plain["actor/pg_loss"]
    assert (without - with_term) @ gradient_of(model, by_hand(model, control)) > 0, "descent raises the entropy"


def step_of(control, state, step, value, model):
    """The gradient of one step whose batch has this entropy everywhere, as the old policy reported it."""
    prepared = control.prepare(state, rows(filled(value)), step, 10)
    data = term_loss.batch(entropy_control_weight=prepared.weight_BT)
    numbers = {"aem_entropy_control": {**prepared.numbers, "mini_batches": 1.0}}
    return term_loss.train(model, data, [[EVERY]], numbers, terms=[control])[0]


def test_above_the_target_the_gradient_is_bit_for_bit_the_bases_and_the_bonus_comes_back():
    model, state = TinyModel(), SKYWORK.start({"version": 1, "coefficient": 0.5, "initial": 1.0, "steps": 4}, 4)
    base, _ = verls(model, [[EVERY]])
    entropies = (0.9, 0.8, 0.7, 0.1, 0.1, 0.9)
    # c: 0.5 and 0.25 are held but not applied, 0 and 0 (after the first low step), then 0.25, which 0.9 gates again
    same = [torch.equal(step_of(SKYWORK, state, step, h, model), base) for step, h in enumerate(entropies, start=5)]
    assert same == [True, True, True, True, False, True]
    assert state.coefficient == 0.5


def test_the_reconstruction_falls_to_the_bases_gradient_and_comes_back():
    model, state = TinyModel(), AER_LIKE.start({"version": 1, "coefficient": 0.3, "initial": 2.0, "steps": 4}, 4)
    base, _ = verls(model, [[EVERY]])
    # H* = 1; 3 nats take 0.5 off the 0.3 that the first of these steps still applies; 0.2 nats add 0.2
    entropies = (3.0, 3.0, 0.2, 0.2)
    same = [torch.equal(step_of(AER_LIKE, state, step, h, model), base) for step, h in enumerate(entropies, start=5)]
    assert same == [False, True, True, False]


@BOTH
@settings(deadline=None, max_examples=15)
@given(st.data())
def test_micro_batches_and_ranks_do_not_matter(control, data):
    mode = data.draw(st.sampled_from(["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"]))
    order = data.draw(st.permutations(EVERY))
    ranks = data.draw(st.sampled_from([1, 2, 4]))
    share = len(order) // ranks
    size = data.draw(st.sampled_from([each for each in (1, 2, 4, 8) if share % each == 0]))
    split = [
        [order[start : start + size] for start in range(rank * share, (rank + 1) * share, size)]
        for rank in range(ranks)
    ]
    model, config = TinyModel(), term_loss.actor_config(loss_agg_mode=mode)
    whole, expected = train(model, control, [[EVERY]], config=config)
    parts, metrics = train(model, control, split, config=config)
    torch.testing.assert_close(parts, whole, **CLOSE)
    for name in ("actor/entropy_control_entropy", "actor/entropy_control_loss", "actor/pg_loss"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-7)


@BOTH
@pytest.mark.parametrize("size", [1, 2, 4])
def test_over_the_mini_batches_of_a_batch_it_averages_to_the_batchs(control, size):
    model = TinyModel()
    entropy = by_hand(model, control)
    mini_batches = [EVERY[start : start + size] for start in range(0, len(EVERY), size)]
    gradients, metrics = [], {}
    for chosen in mini_batches:
        with_term, said = train(model, control, [[chosen]], mini_batches=float(len(mini_batches)))
        gradients.append(with_term - verls(model, [[chosen]])[0])
        append_to_dict(metrics, said)
    torch.testing.assert_close(torch.stack(gradients).mean(0), gradient_of(model, -0.3 * entropy), **CLOSE)
    assert reduce_metrics(metrics)["actor/entropy_control_entropy"] == pytest.approx(entropy.item(), rel=1e-5)


@BOTH
def test_beside_epo_and_verls_bonus_the_terms_add_up(control):
    model, epo = TinyModel(), EpoSettings(enable=True, coef=0.3, lower=0.9, upper=1.0, alpha=0.7)
    columns = {**column(control), "epo_weight": batch_weights(rows())[0]}
    numbers = {**sent(0.3), "aem_epo": {"reference": 1.8, "beta": 1.4, "mini_batches": 1.0}}
    config = term_loss.actor_config(entropy_coeff=0.1)

    def gradient(*terms):
        return term_loss.train(model, term_loss.batch(**columns), [[EVERY]], numbers, config=config, terms=terms)

    base, (both, metrics) = gradient()[0], gradient(epo, control)
    each = [gradient(term)[0] - base for term in (epo, control)]
    assert all(part.abs().max() > 1e-3 for part in each)
    torch.testing.assert_close(both - base, sum(each), **CLOSE)
    assert {"actor/epo_loss", "actor/entropy_control_loss"} <= set(metrics)


def test_off_and_without_weight_nothing_is_read():
    """Where c = 0 not even an infinite entropy reaches the loss; where a weight is 0 none reaches it either."""
    data = term_loss.batch(**column(AER_LIKE))
    part = term_loss.micro_batch(data, EVERY, EVERY, 1, sent(0.3))
    entropy_BT = torch.rand(padded_mask().shape)
    weight_BT = part["entropy_control_weight"].to_padded_tensor(0.0)
    spoilt_BT = torch.where(weight_BT == 0, torch.nan, entropy_BT)
    assert spoilt_BT.isnan().sum() > (padded_mask() == 0).sum(), "prompt c weighs nothing"
    for coefficient in (0.0, 0.3):
        values = [AER_LIKE.loss(h, weight_BT, {"coefficient": coefficient}, 1.0)[0] for h in (entropy_BT, spoilt_BT)]
        assert torch.equal(*values)
    added, _ = AER_LIKE.loss(
        torch.full_like(entropy_BT, math.inf).requires_grad_(), weight_BT, {"coefficient": 0.0}, 1.0
    )
    assert added.item() == 0 and not added.requires_grad


# --- round verl's methods ---------------------------------------------------------------------------------------------


def trainer(folder, step=1, **terms):
    config = {
        "algorithm": {"adv_estimator": "grpo", **terms},
        "actor_rollout_ref": {"actor": {"ppo_mini_batch_size": 1}, "rollout": {"n": 8}},
        "trainer": {"default_local_dir": str(folder), "resume_mode": "auto", "resume_from_path": None},
    }
    return SimpleNamespace(config=OmegaConf.create(config), global_steps=step, total_training_steps=10)


def load(subject, step):
    def original():
        subject.global_steps = step

    loss_terms.after_load(original, subject, (), {})
    return subject


BLOCK = {"enable": True, "rule": "aer_like", "tau": 2.0, "eta": 0.25, "c_max": 10.0}


def play(subject, step, monkeypatch):
    """A step through the wrapped update: what it sent, and its metrics."""
    queue = make_batch(step)
    queue.batch.extra_info = {"temperature": 0.7}
    monkeypatch.setitem(sys.modules, "transfer_queue", queue)
    subject.global_steps, metrics = step, {}
    batch = loss_terms.before_update(lambda batch, metrics: batch, subject, (queue.batch, metrics), {})
    return batch.extra_info, {name: value for name, value in metrics.items() if "timing" not in name}, queue


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, monkeypatch):
    terms = {"entropy_control": BLOCK, "epo": {"enable": True}}
    straight = load(trainer(tmp_path, **terms), 0)
    expected = [play(straight, step, monkeypatch)[:2] for step in range(1, 6)]
    applied = [metrics["entropy_control/applied"] for _, metrics in expected]
    assert applied[0] == 0 and len(set(applied)) > 3, "it moves"
    for last in range(1, 5):
        folder = tmp_path / str(last)
        first = load(trainer(folder, **terms), 0)
        seen = [play(first, step, monkeypatch)[:2] for step in range(1, last + 1)]
        loss_terms.before_save(lambda: None, first, (), {})
        files = {path.name for path in (folder / f"global_step_{last}").iterdir()}
        assert files == {"aem_epo.json", "aem_entropy_control.json"}
        second = load(trainer(folder, **terms), last)
        assert seen + [play(second, step, monkeypatch)[:2] for step in range(last + 1, 6)] == expected


def test_an_update_sends_weights_and_numbers_of_both_terms(tmp_path, monkeypatch):
    subject = load(trainer(tmp_path, entropy_control=BLOCK, epo={"enable": True}), 0)
    extra_info, metrics, queue = play(subject, 1, monkeypatch)
    assert extra_info["temperature"] == 0.7 and set(extra_info) == {"temperature", "aem_epo", "aem_entropy_control"}
    rows_ = len(queue.batch.keys)
    assert extra_info["aem_entropy_control"] == {"coefficient": 0.0, "mini_batches": rows_ / 8}
    assert {"epo_weight", "entropy_control_weight"} <= set(queue.columns)
    assert metrics["entropy_control/target"] == pytest.approx(2 * metrics["entropy_control/entropy"])


def saved(folder, step=2):
    subject = trainer(folder, step, entropy_control=BLOCK)
    subject.aem_terms = {"entropy_control": EntropyControlSettings(**BLOCK).start()}
    subject.aem_terms["entropy_control"].add(1, 1.0, 4)
    loss_terms.before_save(lambda: None, subject, (), {})
    return folder / f"global_step_{step}" / "aem_entropy_control.json"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "line 1 column 2"),
        ("[]", "not a mapping with the keys version, coefficient, initial, steps"),
        ({"version": 2}, r"version 2, this release reads version 1"),
        ({"coefficient": -0.1}, r"its coefficient is -0\.1, not a finite number >= 0"),
        ({"coefficient": True}, "its coefficient is True"),
        ({"initial": "1"}, "its initial is '1'"),
        ({"steps": 1.0}, r"its steps are 1\.0"),
        ({"steps": 0}, r"its steps are 0 with initial=1\.0"),
        ({"initial": None}, r"its steps are 1 with initial=None"),
        ({"rule": "skywork"}, "not a mapping with the keys"),
    ],
)
def test_a_damaged_state_is_an_error_that_names_the_file(tmp_path, content, why):
    path = saved(tmp_path)
    good = json.loads(path.read_text())
    assert good == {"version": 1, "coefficient": 0.25, "initial": 1.0, "steps": 1}
    path.write_text(content if isinstance(content, str) else json.dumps(good | content))
    with pytest.raises(SettingsError, match=rf"aem_entropy_control\.json holds no history of .*{why}"):
        load(trainer(tmp_path, entropy_control=BLOCK), 2)


def test_a_missing_state_is_an_error_unless_allowed(tmp_path):
    with pytest.raises(SettingsError, match=r"entropy_control\.allow_missing_history=True"):
        load(trainer(tmp_path, entropy_control=BLOCK), 4)
    subject = load(trainer(tmp_path, entropy_control={**BLOCK, "allow_missing_history": True}), 4)
    assert subject.aem_terms["entropy_control"].completed() == (0.0, None, 0)
