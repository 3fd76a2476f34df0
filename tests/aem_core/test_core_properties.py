"""Properties that must hold for every batch, on examples from hypothesis.

Not covered: float16 and bfloat16 (test_core_inputs), and λ beyond 5, where small coefficients underflow.
"""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aem_core import (
    Responses,
    aem,
    find_responses,
    modulation_coefficients,
    rescale_advantages,
    response_entropies,
)

check = settings(deadline=None)
lams = st.floats(0, 5)
directions = st.sampled_from(["forward", "reversed"])
scopes = st.sampled_from(["group", "trajectory", "batch"])
entropies = st.floats(0, 4, width=32)
advantages = st.floats(-3, 3, width=32, allow_subnormal=False)


@st.composite
def matrices(draw, elements, rows, tokens):
    flat = draw(st.lists(elements, min_size=rows * tokens, max_size=rows * tokens))
    return torch.tensor(flat).reshape(rows, tokens)


@st.composite
def batches(draw):
    """Keyword arguments of `aem` but for `responses`, and the mask they come from."""
    rows, tokens = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    labels = st.lists(st.integers(-2, 1), min_size=rows, max_size=rows)
    mask_BT = draw(matrices(st.integers(0, 1), rows, tokens))
    inputs = {
        "advantage_BT": draw(matrices(advantages, rows, tokens)),
        "entropy_BT": draw(matrices(entropies, rows, tokens)),
        "group_B": torch.tensor(draw(labels)),
        "trajectory_B": torch.tensor(draw(labels)),
        "lam": draw(lams),
        "direction": draw(directions),
        "scope": draw(scopes),
        "mean": draw(st.sampled_from(["response", "token"])),
    }
    return mask_BT, inputs


@st.composite
def groups_of_entropies(draw):
    """Entropies of one group, on a grid of 0.01 nats in float64, and a label for each."""
    steps = draw(st.lists(st.integers(0, 400), min_size=1, max_size=12))
    return torch.tensor(steps, dtype=torch.float64) / 100, torch.zeros(len(steps), dtype=torch.int64)


def bits(tensor):
    return tensor.view(torch.int32).tolist()


@check
@given(batches())
def test_signs_are_kept(batch):
    mask_BT, inputs = batch
    rescaled_BT, _ = aem(responses=find_responses(mask_BT), **inputs)
    assert torch.equal(rescaled_BT.sign(), inputs["advantage_BT"].sign())


@check
@given(batches(), st.none() | st.integers(0, 9), st.sampled_from([0.0, 0.1]))
def test_lam_zero_is_the_identity_bit_for_bit(batch, shuffle, min_range):
    mask_BT, inputs = batch
    odd_BT = torch.tensor([math.nan, math.inf, -math.inf, -0.0]).repeat(mask_BT.numel())[: mask_BT.numel()]
    advantage_BT = torch.where(mask_BT == 1, inputs.pop("advantage_BT"), odd_BT.view_as(mask_BT))
    advantage_BT = torch.where((mask_BT == 1) & (advantage_BT == 0), -0.0, advantage_BT)
    inputs["lam"] = 0
    rescaled_BT, _ = aem(
        advantage_BT, responses=find_responses(mask_BT), shuffle=shuffle, min_range=min_range, **inputs
    )
    assert bits(rescaled_BT) == bits(advantage_BT)


@check
@given(batches(), batches())
def test_a_group_depends_on_itself_alone(batch, other):
    """The group of row 0 is computed alone, beside the rest, and beside other rows: the bits are the same."""
    mask_BT, inputs = batch
    inputs["scope"] = "group" if inputs["scope"] == "batch" else inputs["scope"]
    mine_B = inputs["group_B"] == inputs["group_B"][0]
    rescaled_BT, _ = aem(responses=find_responses(mask_BT), **inputs)
    changed = dict(inputs)
    changed["entropy_BT"] = torch.where(mine_B[:, None], inputs["entropy_BT"], other[1]["entropy_BT"].max() + 1)
    changed["advantage_BT"] = torch.where(mine_B[:, None], inputs["advantage_BT"], -7.0)
    beside_BT, _ = aem(responses=find_responses(mask_BT), **changed)
    alone = {key: value[mine_B] if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
    alone_BT, _ = aem(responses=find_responses(mask_BT[mine_B]), **alone)
    assert torch.equal(rescaled_BT[mine_B], beside_BT[mine_B])
    assert torch.equal(rescaled_BT[mine_B], alone_BT)


@check
@given(batches(), st.randoms(use_true_random=False))
def test_rows_can_be_permuted(batch, rng):
    mask_BT, inputs = batch
    order = list(range(len(mask_BT)))
    rng.shuffle(order)
    rescaled_BT, _ = aem(responses=find_responses(mask_BT), **inputs)
    permuted = {key: value[order] if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
    # Another order of summation in a group's mean; where the product is subnormal, its rounding is absolute.
    permuted_BT, _ = aem(responses=find_responses(mask_BT[order]), **permuted)
    torch.testing.assert_close(permuted_BT, rescaled_BT[order], rtol=2e-6, atol=1e-30)


@check
@given(batches(), st.integers(1, 5), st.integers(0, 3))
def test_padding_changes_nothing(batch, columns, rows):
    """Columns to the right and rows below, all NaN; the new rows share a group with the old ones."""
    mask_BT, inputs = batch
    tokens = mask_BT.shape[1]
    rescaled_BT, stats = aem(responses=find_responses(mask_BT), **inputs)
    padded = dict(inputs)
    for name in ("advantage_BT", "entropy_BT"):
        padded[name] = torch.nn.functional.pad(inputs[name], (0, columns, 0, rows), value=math.nan)
    for name in ("group_B", "trajectory_B"):
        padded[name] = torch.cat([inputs[name], inputs[name][:1].repeat(rows)])
    mask_BT = torch.nn.functional.pad(mask_BT, (0, columns, 0, rows))
    padded_BT, padded_stats = aem(responses=find_responses(mask_BT), **padded)
    assert torch.equal(padded_BT[: len(rescaled_BT), :tokens], rescaled_BT)
    assert padded_BT[:, tokens:].isnan().all()
    assert padded_BT[len(rescaled_BT) :].isnan().all()
    assert torch.equal(padded_stats.alpha_N, stats.alpha_N)


@check
@given(batches())
def test_coefficients_average_one_in_each_modulated_set(batch):
    mask_BT, inputs = batch
    responses = find_responses(mask_BT)
    _, stats = aem(responses=responses, **inputs)
    for number, guarded in enumerate(stats.guarded_G.tolist()):
        members_N = stats.scope_N == number
        assert members_N.any()
        assert guarded == (stats.range_G[number].item() < torch.tensor(0.1).item())
        if guarded:
            assert stats.alpha_N[members_N].eq(1).all()
        else:
            count_N = responses.length_N[members_N] if inputs["mean"] == "token" else torch.ones(int(members_N.sum()))
            mean = (count_N * stats.alpha_N[members_N]).sum() / count_N.sum()
            torch.testing.assert_close(mean, torch.tensor(1.0), rtol=0, atol=1e-6)


@check
@given(batches(), st.integers(1, 10**12), st.integers(-(10**12), 10**12))
def test_labels_are_only_names(batch, scale, offset):
    mask_BT, inputs = batch
    rescaled_BT, _ = aem(responses=find_responses(mask_BT), **inputs)
    for name in ("group_B", "trajectory_B"):
        inputs[name] = inputs[name] * -scale + offset
    renamed_BT, _ = aem(responses=find_responses(mask_BT), **inputs)
    assert torch.equal(renamed_BT, rescaled_BT)


@check
@given(batches(), st.integers(0, 2**63 - 1))
def test_a_shuffle_keeps_each_sets_coefficients(batch, seed):
    mask_BT, inputs = batch
    responses = find_responses(mask_BT)
    _, stats = aem(responses=responses, **inputs)
    state = torch.get_rng_state()
    shuffled_BT, shuffled = aem(responses=responses, shuffle=seed, **inputs)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    again_BT, _ = aem(responses=responses, shuffle=seed, **inputs)
    assert torch.equal(shuffled_BT, again_BT)
    assert torch.equal(shuffled_BT, rescale_advantages(inputs["advantage_BT"], shuffled.alpha_N, responses))
    for number in range(len(stats.range_G)):
        members_N = stats.scope_N == number
        assert sorted(shuffled.alpha_N[members_N].tolist()) == sorted(stats.alpha_N[members_N].tolist())


def test_a_shuffle_moves_coefficients_and_seeds_differ():
    entropy_BT = torch.linspace(0, 3, 64).reshape(8, 8)
    responses = find_responses(torch.tensor([1, 0] * 4).repeat(8, 1))
    group_B = torch.tensor([0, 1] * 4)
    alphas = [
        aem(entropy_BT, entropy_BT, responses, group_B, shuffle=seed)[1].alpha_N.tolist() for seed in (None, 0, 1, 2)
    ]
    assert len({tuple(alpha_N) for alpha_N in alphas}) == 4


@check
@given(groups_of_entropies(), st.floats(0.5, 5), directions)
def test_coefficients_fall_with_entropy_and_rise_when_reversed(group, lam, direction):
    entropy_N, group_N = group
    alpha_N = modulation_coefficients(entropy_N, group_N, lam, min_range=0.0, direction=direction)
    difference_NN = entropy_N[:, None] - entropy_N[None, :]
    change_NN = alpha_N[:, None] - alpha_N[None, :]
    assert torch.equal(change_NN.sign(), difference_NN.sign() * (-1 if direction == "forward" else 1))


@check
@given(groups_of_entropies(), lams, directions)
def test_coefficients_stay_within_their_bounds(group, lam, direction):
    entropy_N, group_N = group
    alpha_N = modulation_coefficients(entropy_N, group_N, lam, direction=direction)
    assert (alpha_N >= math.exp(-lam) * (1 - 1e-12)).all()
    assert (alpha_N <= math.exp(lam) * (1 + 1e-12)).all()
    assert (alpha_N.max() / alpha_N.min()).item() <= math.exp(lam) * (1 + 1e-12)


@check
@given(groups_of_entropies(), lams, directions, st.floats(0, 50))
def test_a_constant_added_to_the_entropies_changes_nothing(group, lam, direction, constant):
    entropy_N, group_N = group
    # Half a grid step from the threshold, so that rounding in the shift cannot carry a group across the guard.
    settings_ = {"lam": lam, "direction": direction, "min_range": 0.105}
    alpha_N = modulation_coefficients(entropy_N, group_N, **settings_)
    shifted_N = modulation_coefficients(entropy_N + constant, group_N, **settings_)
    torch.testing.assert_close(shifted_N, alpha_N, rtol=0, atol=1e-9)


@check
@given(groups_of_entropies(), st.floats(0, 5))
def test_the_guard_decides_between_one_and_the_formula(group, min_range):
    entropy_N, group_N = group
    alpha_N = modulation_coefficients(entropy_N, group_N, min_range=min_range)
    range_ = (entropy_N.max() - entropy_N.min()).item()
    if range_ < min_range or range_ == 0:
        assert alpha_N.tolist() == [1.0] * len(alpha_N)
    else:
        torch.testing.assert_close(
            alpha_N.log() - alpha_N.log().mean(), -(entropy_N - entropy_N.mean()) / range_, rtol=0, atol=1e-9
        )


@check
@given(batches())
def test_aem_is_its_three_steps(batch):
    mask_BT, inputs = batch
    responses = find_responses(mask_BT)
    advantage_BT, entropy_BT, group_B = (inputs[name] for name in ("advantage_BT", "entropy_BT", "group_B"))
    entropy_N = response_entropies(entropy_BT, responses)
    weight_N = responses.length_N if inputs["mean"] == "token" else None
    alpha_N = modulation_coefficients(
        entropy_N, group_B[responses.row_N], inputs["lam"], direction=inputs["direction"], weight_N=weight_N
    )
    expected_BT = rescale_advantages(advantage_BT, alpha_N, responses)
    inputs["scope"] = "group"
    assert torch.equal(aem(responses=responses, **inputs)[0], expected_BT)


@check
@given(batches())
def test_runs_and_their_spans_are_the_same_responses(batch):
    mask_BT, _ = batch
    found = find_responses(mask_BT)
    spans = [[] for _ in range(len(mask_BT))]
    starts = {}
    for token, response in zip(found.token_M.tolist(), found.response_M.tolist(), strict=True):
        starts.setdefault(response, token % mask_BT.shape[1])
    for response, (row, length) in enumerate(zip(found.row_N.tolist(), found.length_N.tolist(), strict=True)):
        spans[row].append((starts[response], starts[response] + length))
    given_ = Responses.from_spans(spans, tuple(mask_BT.shape))
    for name in ("index_BT", "row_N", "length_N", "span_N", "token_M", "response_M"):
        assert torch.equal(getattr(found, name), getattr(given_, name)), name
    assert torch.equal(found.index_BT >= 0, mask_BT == 1)


@given(batches(), st.floats(0, 3))
def test_what_every_response_of_a_kind_has_in_common_changes_nothing(batch, constant):
    """Entropies that differ between kinds alone are no modulation, even without the guard."""
    mask_BT, inputs = batch
    responses = find_responses(mask_BT)
    kind_N = torch.arange(len(responses)) % 3
    flat_BT = torch.full_like(inputs["entropy_BT"], 0.7)
    flat_BT.view(-1)[responses.token_M] += constant * kind_N[responses.response_M]
    _, stats = aem(responses=responses, relative_to_N=kind_N, min_range=1e-5, **{**inputs, "entropy_BT": flat_BT})
    assert (stats.alpha_N == 1).all() and stats.guarded_N.all()


@given(batches())
def test_one_kind_is_no_kind_and_each_its_own_is_no_modulation(batch):
    mask_BT, inputs = batch
    responses = find_responses(mask_BT)
    plain = aem(responses=responses, **inputs)[1]
    one = aem(responses=responses, relative_to_N=torch.zeros(len(responses), dtype=torch.int64), **inputs)[1]
    sure_N = (plain.range_N - 0.1).abs() > 1e-4  # rounding may put a range on the guard's other side
    torch.testing.assert_close(one.alpha_N[sure_N], plain.alpha_N[sure_N], rtol=0, atol=1e-3)
    alone = aem(responses=responses, relative_to_N=torch.arange(len(responses)), min_range=0.0, **inputs)[1]
    assert (alone.alpha_N == 1).all() and (alone.range_N == 0).all()
