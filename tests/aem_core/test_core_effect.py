"""What AEM does to its sets: values by hand, plain formulas, properties, simulated noise, refusals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aem_core import AEMValueError, Responses, aem, aem_effect, find_responses

check = settings(deadline=None)

# Group 5: H̄ = 0.2, 0.8 and, of one token, 0.5. Group 7: one response.
MASK_BT = torch.tensor([[1, 1, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]])
ENTROPY_BT = torch.tensor([[0.1, 0.3, math.nan, 0.7, 0.8, 0.9], [0.5] + [9.0] * 5, [0.4, 0.6] + [9.0] * 4])
GROUP_B = torch.tensor([5, 5, 7])
ADVANTAGE_N = torch.tensor([1.0, -2.0, 4.0, 3.0])
RESPONSES = find_responses(MASK_BT)


def effect_of(advantage_N=ADVANTAGE_N, entropy_BT=ENTROPY_BT, responses=RESPONSES, group_B=GROUP_B, **options):
    _, stats = aem(torch.zeros(responses.shape), entropy_BT, responses, group_B, **options)
    return aem_effect(advantage_N, stats, entropy_BT, responses), stats


def test_by_hand():
    effect, _ = effect_of()
    # H̃ = 0, 1, ½: weights 1, e^−1, e^−½, α = 3 w / Σ w
    weights = [1.0, math.exp(-1), math.exp(-0.5)]
    alpha = [3 * weight / sum(weights) for weight in weights]
    shift = (alpha[0] * 1 - alpha[1] * 2 + alpha[2] * 4) / 3 - 1
    assert effect.shift_N[:3].tolist() == pytest.approx([shift] * 3, abs=1e-6)
    assert effect.net_N.tolist() == [3.0, 3.0, 3.0, 3.0] and effect.shift_N[3] == 0
    # d = −0.2 and 0.7 − 0.85 = −0.15, each 0.025 from their mean; times 1·1/2², 1·2/3² and M/(M − 1) = 2;
    # for the one token the mean of 2 noise and 3 noise; Var H̄ = (0.3² + 0.3² + 0)/2 = 0.09
    two, three = 2 * 0.025**2 / 4, 2 * 0.025**2 * 2 / 9
    noise = (two + three + (2 * two + 3 * three) / 2) / 3
    assert effect.reliability_N[:3].tolist() == pytest.approx([1 - noise / 0.09] * 3, abs=1e-6)
    assert effect.reliability_N[3].isnan()
    assert all(value_N.dtype == torch.float64 for value_N in vars(effect).values())


def test_what_cannot_be_told_is_nan():
    responses = find_responses(torch.ones(3, 1))
    single = torch.tensor([[0.1], [0.5], [0.9]])
    effect, _ = effect_of(torch.ones(3), single, responses, torch.zeros(3, dtype=torch.int64))
    assert effect.reliability_N.isnan().all()  # no response of two tokens
    responses = find_responses(torch.tensor([[1, 1], [1, 0]]))
    effect, _ = effect_of(torch.ones(2), torch.tensor([[0.1, 0.2], [0.9, 0.0]]), responses, torch.tensor([0, 0]))
    assert effect.reliability_N.isnan().all()  # one response of two tokens
    equal = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    effect, _ = effect_of(torch.ones(2), equal, find_responses(torch.ones(2, 2)), torch.tensor([0, 0]))
    assert effect.reliability_N.isnan().all()  # equal entropies


def test_tokens_that_are_constant_within_responses_are_wholly_reliable():
    entropy_BT = torch.tensor([[0.2] * 4, [0.9] * 4, [0.6] * 4])
    effect, _ = effect_of(torch.ones(3), entropy_BT, find_responses(torch.ones(3, 4)), torch.tensor([0, 0, 0]))
    assert effect.reliability_N.tolist() == pytest.approx([1.0] * 3, abs=1e-6)


@pytest.mark.parametrize("length", [8, 64, 512])
def test_independent_tokens_are_noise_and_a_factor_of_the_response_is_not(length):
    """Entropies as in long thoughts: 80 % near 0.02, the rest from Γ(2, 0.6); the guard does not bite at 8 tokens."""
    generator = torch.Generator().manual_seed(length)
    shape = 400, length
    gamma = -0.6 * (torch.rand(shape, generator=generator) * torch.rand(shape, generator=generator)).log()
    certain = torch.rand(shape, generator=generator) < 0.8
    noise_BT = torch.where(certain, 0.02, gamma)
    responses, group_B = find_responses(torch.ones(shape)), torch.zeros(400, dtype=torch.int64)
    effect, stats = effect_of(torch.ones(400), noise_BT, responses, group_B)
    assert effect.reliability_N[0] < 0.2
    # α has its full strength all the same
    assert not stats.guarded_N.any() and stats.alpha_N.std() > 0.1
    factor_B = torch.randn(400, 1, generator=generator).exp()
    effect, _ = effect_of(torch.ones(400), noise_BT * factor_B, responses, group_B)
    assert effect.reliability_N[0] > (0.3 if length == 8 else 0.7)


@st.composite
def batches(draw):
    """Rows with one or two responses of 1 to 4 tokens each: spans, entropies, groups, and advantages."""
    lengths = draw(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=2), min_size=1, max_size=8))
    spans = [[(5 * place, 5 * place + length) for place, length in enumerate(row)] for row in lengths]
    responses = Responses.from_spans(spans, shape=(len(spans), 10))
    values = draw(st.lists(st.integers(0, 40), min_size=10 * len(spans), max_size=10 * len(spans)))
    advantage = draw(st.lists(st.integers(-8, 8), min_size=len(responses), max_size=len(responses)))
    groups = draw(st.lists(st.integers(-2, 1), min_size=len(spans), max_size=len(spans)))
    entropy_BT = torch.tensor(values, dtype=torch.float64).reshape(len(spans), 10) / 20
    return torch.tensor(advantage, dtype=torch.float64) / 4, entropy_BT, responses, torch.tensor(groups)


@check
@given(batches(), st.sampled_from(["group", "batch"]))
def test_the_numbers_are_those_of_the_plain_formulas(batch, scope):
    advantage_N, entropy_BT, responses, _ = batch
    effect, stats = effect_of(*batch, scope=scope)
    for number in set(stats.scope_N.tolist()):
        of_set = (stats.scope_N == number).nonzero()[:, 0].tolist()
        alpha, base = stats.alpha_N[of_set], advantage_N[of_set]
        covariance = ((alpha - alpha.mean()) * (base - base.mean())).mean()
        assert effect.shift_N[of_set].tolist() == pytest.approx([covariance.item()] * len(of_set), abs=1e-9)
        assert effect.net_N[of_set].tolist() == pytest.approx([base.sum().item()] * len(of_set), abs=1e-9)
        tokens = [entropy_BT[responses.index_BT == one] for one in of_set]
        halves = [(one[: len(one) // 2], one[len(one) // 2 :]) for one in tokens if len(one) > 1]
        apart = [(first.mean() - second.mean()).item() for first, second in halves]
        spread = stats.entropy_N[of_set].var().item() if len(of_set) > 1 else 0.0
        if len(halves) < 2:
            assert effect.reliability_N[of_set].isnan().all()
            continue
        if spread < 1e-20:
            continue
        factor = len(apart) / (len(apart) - 1)
        common = sum(apart) / len(apart)
        noise = [
            len(first) * len(second) / (len(first) + len(second)) ** 2 * (one - common) ** 2 * factor
            for (first, second), one in zip(halves, apart, strict=True)
        ]
        sizes = [len(first) + len(second) for first, second in halves]
        of_one = sum(value * size for value, size in zip(noise, sizes, strict=True)) / len(noise)
        noise += [of_one] * (len(tokens) - len(halves))
        expected = min(max(1 - sum(noise) / len(noise) / spread, 0.0), 1.0)
        assert effect.reliability_N[of_set].tolist() == pytest.approx([expected] * len(of_set), abs=1e-9)


@check
@given(batches())
def test_without_strength_nothing_moves(batch):
    effect, _ = effect_of(*batch, lam=0.0)
    assert not effect.shift_N.any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"advantage_N": torch.ones(3)}, r"advantage_N: got .*\(3,\).*expected shape \(4,\)"),
        ({"advantage_N": torch.tensor([1.0, math.nan, 0.0, 0.0])}, "advantage_N: got nan at response 1"),
        ({"entropy_BT": torch.ones(2, 6)}, r"entropy_BT: got .*\(2, 6\)"),
        ({"entropy_BT": torch.full((3, 6), math.inf)}, "entropy_BT: got inf at row 0, column 0"),
    ],
)
def test_refusals(changed, message):
    _, stats = effect_of()
    given = {"advantage_N": ADVANTAGE_N, "stats": stats, "entropy_BT": ENTROPY_BT, "responses": RESPONSES}
    with pytest.raises(AEMValueError, match="^" + message):
        aem_effect(**{**given, **changed})
