"""The drift law's functions, the quadrants, and the exact policies, as code; test_theory.py holds the theory itself.

Not covered: a real GPU (the meta device stands for it).
"""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aem_core import AEMValueError, aem, find_responses
from aem_core.drift import Quadrant, entropy_drift, sign_quadrants
from aem_core.exact import (
    TreePolicy,
    entropy_derivative,
    euclidean_gradient_direction,
    natural_gradient_direction,
)
from recipe.aem.methods.aem import aem_metrics

check = settings(deadline=None)
F64 = torch.float64

ADVANTAGE_N = torch.tensor([2.0, 2.0, -1.0, -1.0, 0.0])
SURPRISAL_N = torch.tensor([3.0, 0.5, 3.0, 0.5, 3.0])
EXPECTED_N = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0])
ALPHA_N = torch.tensor([1.5, 0.5, 1.5, 0.0, 1.5])

# Half of the responses stop at once; the others choose twice between two, the second time 1 : 3 after (1, 0).
RAGGED = {(): [0.0, 0.0], (1,): [0.0, 0.0], (1, 0): [0.0, math.log(3)]}


def test_drift_by_hand():
    # A (S - H): 2·2, 2·(-0.5), -2, 0.5, 0.
    assert entropy_drift(ADVANTAGE_N, SURPRISAL_N, EXPECTED_N).tolist() == [4.0, -1.0, -2.0, 0.5, 0.0]


def test_quadrants_by_hand():
    advantage_N = torch.tensor([2.0, 2.0, -1.0, -1.0, 0.0, 0.0, 3.0, -3.0, -0.0])
    alpha_N = torch.tensor([1.5, 0.5, 1.5, 0.0, 1.5, 0.5, 1.0, 1.0, 1.0])
    assert sign_quadrants(advantage_N, alpha_N).tolist() == [1, 2, 3, 4, 0, 0, 0, 0, 0]
    names = ["none", "good_certain", "good_uncertain", "bad_certain", "bad_uncertain"]
    assert [quadrant.name.lower() for quadrant in Quadrant] == names


triples = st.lists(st.tuples(*[st.floats(-5, 5, width=32), *[st.floats(0, 9, width=32)] * 2]), max_size=12)


@check
@given(triples)
def test_against_loops(rows):
    advantage_N, surprisal_N, expected_N = torch.tensor(rows, dtype=F64).reshape(-1, 3).unbind(1)
    expected = [a * (s - h) for a, s, h in rows]
    assert entropy_drift(advantage_N, surprisal_N, expected_N).tolist() == expected
    alpha_N = surprisal_N / 4
    codes = []
    for a, s, _ in rows:
        if a == 0 or s == 4:
            codes.append(Quadrant.NONE)
        else:
            name = f"{'GOOD' if a > 0 else 'BAD'}_{'CERTAIN' if s > 4 else 'UNCERTAIN'}"
            codes.append(Quadrant[name])
    assert sign_quadrants(advantage_N, alpha_N).tolist() == codes


@check
@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 30)), min_size=1, max_size=12))
def test_quadrants_are_those_of_the_metrics(rows):
    """Advantages repeat 0 and entropies repeat values, so that every quadrant and none are met."""
    advantage_N = torch.tensor([float(a) for a, _ in rows])
    responses = find_responses(torch.ones(len(rows), 1))
    group_N = torch.zeros(len(rows), dtype=torch.int64)
    entropy_BT = torch.tensor([[h / 10] for _, h in rows])
    _, stats = aem(advantage_N[:, None], entropy_BT, responses, group_N)
    metrics = aem_metrics(stats, advantage_N, group_N)
    code_N = sign_quadrants(advantage_N, stats.alpha_N)
    for quadrant in list(Quadrant)[1:]:
        share = (code_N == quadrant).float().mean().item()
        assert metrics[f"aem/quadrant/{quadrant.name.lower()}"] == pytest.approx(share)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_dtypes(dtype):
    inputs = [value_N.to(dtype) for value_N in (ADVANTAGE_N, SURPRISAL_N, EXPECTED_N)]
    drift_N = entropy_drift(*inputs)
    assert drift_N.dtype == torch.promote_types(dtype, torch.float32)
    assert drift_N.tolist() == [4.0, -1.0, -2.0, 0.5, 0.0]
    codes = sign_quadrants(inputs[0], ALPHA_N.to(dtype))
    assert codes.dtype == torch.int64
    assert codes.tolist() == [1, 2, 3, 4, 0]


def test_half_precision_is_subtracted_in_float32():
    # 512.25 is not a bfloat16, and neither is 513 - 0.75.
    drift_N = entropy_drift(*[torch.tensor([value], dtype=torch.bfloat16) for value in (1.0, 512.0, 0.75)])
    assert drift_N.item() == 511.25


def test_the_widest_input_decides_the_dtype():
    for place in range(3):
        inputs = [ADVANTAGE_N, SURPRISAL_N.half(), EXPECTED_N.bfloat16()]
        inputs[place] = inputs[place].double()
        assert entropy_drift(*inputs).dtype == F64


def test_outputs_are_new_and_detached_and_inputs_left_alone():
    inputs = [value_N.clone().requires_grad_() for value_N in (ADVANTAGE_N, SURPRISAL_N, EXPECTED_N)]
    outputs = [entropy_drift(*inputs), sign_quadrants(inputs[0], inputs[1])]
    for output in outputs:
        assert not output.requires_grad
        output.fill_(-9)
    for value_N, original_N in zip(inputs, (ADVANTAGE_N, SURPRISAL_N, EXPECTED_N), strict=True):
        assert torch.equal(value_N, original_N)


def test_strides_and_emptiness():
    wide = torch.stack([ADVANTAGE_N, SURPRISAL_N, EXPECTED_N], dim=1)
    expected_N = entropy_drift(ADVANTAGE_N, SURPRISAL_N, EXPECTED_N)
    assert torch.equal(entropy_drift(*wide.unbind(1)), expected_N)
    assert entropy_drift(*[torch.zeros(0)] * 3).shape == (0,)
    assert sign_quadrants(torch.zeros(0), torch.zeros(0)).dtype == torch.int64


def test_nothing_asks_the_device_without_validation():
    inputs = [value_N.to("meta") for value_N in (ADVANTAGE_N, SURPRISAL_N, EXPECTED_N)]
    assert entropy_drift(*inputs, validate=False).is_meta
    assert sign_quadrants(*inputs[:2], validate=False).is_meta
    with pytest.raises(RuntimeError, match="meta"):
        entropy_drift(*inputs)


# ---- exact policies


def test_a_tree_by_hand():
    # Leaves (0) 1/2; (1, 0, 0) 1/2·1/2·1/4 = 1/16; (1, 0, 1) 3/16; (1, 1) 1/4.
    policy = TreePolicy(RAGGED)
    assert policy.leaves == ((0,), (1, 0, 0), (1, 0, 1), (1, 1))
    probability_L = torch.tensor([1 / 2, 1 / 16, 3 / 16, 1 / 4], dtype=F64)
    torch.testing.assert_close(policy.probability_L, probability_L)
    torch.testing.assert_close(policy.surprisal_L, -probability_L.log())
    # h is log 2 at the first two choices and log 4 - ¾ log 3 at the last.
    two, last = math.log(2), math.log(4) - 0.75 * math.log(3)
    sums_L = torch.tensor([two, 2 * two + last, 2 * two + last, 2 * two], dtype=F64)
    torch.testing.assert_close(policy.entropy_sum_L, sums_L)
    torch.testing.assert_close(policy.mean_entropy_L, sums_L / torch.tensor([1, 3, 3, 2]))
    # H_resp = log 2 + ½ log 2 + ¼ h, by the chain rule.
    assert policy.entropy.item() == pytest.approx(1.5 * two + last / 4)
    assert policy.mean(torch.tensor([1.0, 0, 0, 3], dtype=F64)).item() == pytest.approx(1.25)
    # E x² - (E x)² = ½ + 9/4 - 25/16; E xy - E x E y = 0 - 5/4 · 1/16 with y the second leaf's indicator.
    values_L = torch.tensor([1.0, 0, 0, 3], dtype=F64)
    assert policy.variance(values_L).item() == pytest.approx(1.1875)
    indicator_L = torch.tensor([0.0, 1, 0, 0], dtype=F64)
    assert policy.covariance(values_L, indicator_L).item() == pytest.approx(-5 / 64)


def test_a_tree_of_one_leaf():
    policy = TreePolicy({(): [3.0]})
    assert policy.leaves == ((0,),)
    assert policy.entropy.item() == 0.0


@check
@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 10**6))
def test_trees_against_products(depth, arity, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = {
        node: torch.randn(arity, generator=generator, dtype=F64)
        for length in range(depth)
        for node in itertools.product(range(arity), repeat=length)
    }
    policy = TreePolicy(logits)
    assert policy.leaves == tuple(itertools.product(range(arity), repeat=depth))
    assert policy.probability_L.sum().item() == pytest.approx(1)
    for leaf, surprisal, entropy_sum in zip(policy.leaves, policy.surprisal_L, policy.entropy_sum_L, strict=True):
        choices = [torch.softmax(logits[leaf[:length]], 0) for length in range(depth)]
        product = math.prod(choice[action].item() for choice, action in zip(choices, leaf, strict=True))
        assert math.exp(-surprisal.item()) == pytest.approx(product)
        entropies = [-sum(p * math.log(p) for p in choice.tolist()) for choice in choices]
        assert entropy_sum.item() == pytest.approx(sum(entropies))


def test_a_tree_is_differentiable():
    logits = [torch.tensor(value, dtype=F64, requires_grad=True) for value in RAGGED.values()]
    assert torch.autograd.gradcheck(
        lambda *values: TreePolicy(dict(zip(RAGGED, values, strict=True))).surprisal_L, logits
    )


@st.composite
def distributions(draw):
    logits = draw(st.lists(st.floats(-3, 3), min_size=1, max_size=7))
    probability_V = torch.softmax(torch.tensor(logits, dtype=F64), 0)
    return probability_V, draw(st.integers(0, len(logits) - 1)), draw(st.floats(-3, 3))


def test_directions_by_hand():
    probability_V = torch.tensor([0.5, 0.25, 0.25])
    natural_V = natural_gradient_direction(probability_V, 0, -2.0)
    assert natural_V.tolist() == [-1.0, 0.5, 0.5]
    # g = -2 (0.5, -0.25, -0.25) has mean -0.25: d = π (g + 0.25).
    assert euclidean_gradient_direction(probability_V, 0, -2.0).tolist() == [-0.375, 0.1875, 0.1875]
    # -(-1 log ½ + 2 · ½ log ¼) = -log 2 + log 4
    assert entropy_derivative(probability_V, natural_V).item() == pytest.approx(math.log(2))


@check
@given(distributions())
def test_directions_are_what_they_are_called(case):
    """The Euclidean one is a logit step's effect; the natural one inverts the Fisher matrix; both leave Σ π = 1."""
    probability_V, action, advantage = case
    natural_V = natural_gradient_direction(probability_V, action, advantage)
    euclidean_V = euclidean_gradient_direction(probability_V, action, advantage)
    assert natural_V.sum().item() == pytest.approx(0, abs=1e-12)
    assert euclidean_V.sum().item() == pytest.approx(0, abs=1e-12)
    logit_V = probability_V.log()

    def objective(z_V):
        return advantage * torch.log_softmax(z_V, 0)[action]

    gradient_V = torch.autograd.functional.jacobian(objective, logit_V)
    # For a softmax the Fisher matrix of the logits equals its Jacobian dπ/dz.
    jacobian_VV = torch.autograd.functional.jacobian(lambda z_V: torch.softmax(z_V, 0), logit_V)
    torch.testing.assert_close(euclidean_V, jacobian_VV @ gradient_V, rtol=1e-9, atol=1e-12)
    step_V = torch.linalg.pinv(jacobian_VV, rtol=1e-9, hermitian=True) @ gradient_V
    torch.testing.assert_close(natural_V, jacobian_VV @ step_V, rtol=1e-6, atol=1e-9)


@check
@given(distributions(), st.integers(0, 10**6))
def test_entropy_derivative_is_autograds(case, seed):
    probability_V, _, _ = case
    direction_V = torch.randn(len(probability_V), generator=torch.Generator().manual_seed(seed), dtype=F64)
    direction_V -= direction_V.mean()
    leaf_V = probability_V.clone().requires_grad_()
    (-(leaf_V * leaf_V.log()).sum()).backward()
    expected = (leaf_V.grad * direction_V).sum().item()
    assert entropy_derivative(probability_V, direction_V).item() == pytest.approx(expected, abs=1e-9)


HALF_V = torch.tensor([0.5, 0.5])

CASES = {
    "drift: too few surprisals": (
        lambda: entropy_drift(ADVANTAGE_N, SURPRISAL_N[:2], EXPECTED_N),
        r"surprisal_N: got a tensor of shape \(2,\).*expected shape \(5,\)\. Pass one value for each response",
    ),
    "drift: too few expectations": (
        lambda: entropy_drift(ADVANTAGE_N, SURPRISAL_N, EXPECTED_N[:2]),
        r"expected_surprisal_N: .*\(2,\).*\(5,\)",
    ),
    "drift: advantages of tokens": (
        lambda: entropy_drift(ADVANTAGE_N[None], SURPRISAL_N, EXPECTED_N),
        r"advantage_N: .*\(1, 5\).*1 dimension",
    ),
    "drift: advantage NaN": (
        lambda: entropy_drift(ADVANTAGE_N * math.nan, SURPRISAL_N, EXPECTED_N),
        r"advantage_N: got nan at response 0 \(5 such responses\).*base estimator",
    ),
    "drift: log-probabilities": (
        lambda: entropy_drift(ADVANTAGE_N, -SURPRISAL_N, EXPECTED_N),
        r"surprisal_N: got -3\.0 at response 0 \(3 such responses\); .*at least -0\.5.*negative of `response_log",
    ),
    "drift: negative expectation": (
        lambda: entropy_drift(ADVANTAGE_N, SURPRISAL_N, -EXPECTED_N),
        r"expected_surprisal_N: got -1\.0",
    ),
    "drift: another device": (
        lambda: entropy_drift(ADVANTAGE_N, SURPRISAL_N.to("meta"), EXPECTED_N),
        r"surprisal_N: .*on meta; expected device cpu",
    ),
    "quadrants: α − 1": (
        lambda: sign_quadrants(ADVANTAGE_N, ALPHA_N - 1),
        r"alpha_N: got -0\.5 at response 1 .*not α − 1",
    ),
    "quadrants: advantage inf": (lambda: sign_quadrants(ADVANTAGE_N / 0, ALPHA_N), r"advantage_N: got inf"),
    "quadrants: integers": (lambda: sign_quadrants(ADVANTAGE_N.int(), ALPHA_N), r"advantage_N: .*int32"),
    "quadrants: too few": (lambda: sign_quadrants(ADVANTAGE_N, ALPHA_N[1:]), r"alpha_N: .*\(4,\).*\(5,\)"),
    "tree: no root": (lambda: TreePolicy({(0,): [1.0]}), r"logits: got .*expected a mapping that holds the root, \(\)"),
    "tree: a list": (lambda: TreePolicy([1.0]), r"logits: got \[1\.0\] \(list\)"),
    "tree: an orphan": (lambda: TreePolicy({(): [0.0, 0.0], (1, 0): [0.0]}), r"logits: got node \(1, 0\); expected"),
    "tree: no such action": (lambda: TreePolicy({(): [0.0, 0.0], (2,): [0.0]}), r"logits: got node \(2,\)"),
    "tree: negative action": (lambda: TreePolicy({(): [0.0, 0.0], (-1,): [0.0]}), r"logits: got node \(-1,\)"),
    "tree: infinite logit": (lambda: TreePolicy({(): [0.0, -math.inf]}), r"logits: got .* at node \(\); expected one"),
    "tree: no logits": (lambda: TreePolicy({(): []}), r"logits: got \[\] \(list\) at node \(\)"),
    "direction: logits": (
        lambda: natural_gradient_direction(torch.tensor([1.0, 2.0]), 0, 1.0),
        r"probability_V: got .*with sum 3; expected values above 0 that sum to 1\. Pass probabilities, not logits",
    ),
    "direction: a zero": (
        lambda: euclidean_gradient_direction(torch.tensor([1.0, 0.0]), 0, 1.0),
        r"probability_V: .*values above 0",
    ),
    "direction: no such action": (
        lambda: natural_gradient_direction(HALF_V, 2, 1.0),
        r"action: got 2 \(int\); expected an integer in \[0, 2\)",
    ),
    "direction: negative action": (lambda: natural_gradient_direction(HALF_V, -1, 1.0), r"action: got -1"),
    "direction: a tensor": (lambda: natural_gradient_direction(HALF_V, torch.tensor(0), 1.0), r"action: got a tensor"),
    "direction: advantage NaN": (
        lambda: natural_gradient_direction(HALF_V, 0, math.nan),
        r"advantage: got nan \(float\); expected a finite number",
    ),
    "derivative: leaves the simplex": (
        lambda: entropy_derivative(HALF_V, torch.tensor([1.0, 0.0])),
        r"direction_V: got values that sum to 1; expected finite values that sum to 0",
    ),
    "derivative: NaN": (lambda: entropy_derivative(HALF_V, torch.tensor([math.nan, 0])), r"direction_V: .*nan"),
    "derivative: another size": (lambda: entropy_derivative(HALF_V, torch.zeros(3)), r"direction_V: .*\(3,\).*\(2,\)"),
}


@pytest.mark.parametrize(("call", "message"), CASES.values(), ids=CASES.keys())
def test_refusals(call, message):
    with pytest.raises(AEMValueError, match=message):
        call()
