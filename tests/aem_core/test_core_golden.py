"""Values computed by hand, each with its derivation."""

import math

import pytest
import torch

from aem_core import (
    Responses,
    aem,
    find_responses,
    modulation_coefficients,
    rescale_advantages,
    response_entropies,
    response_log_probs,
)

# H = 0.2, 0.7, 1.2 gives H̃ = 0, 0.5, 1 and, with λ = 1, weights 1, e^-0.5 = 0.6065307, e^-1 = 0.3678794.
# Their sum is 1.9744101, their mean 0.6581367, and α = weight / mean.
ENTROPY_N = torch.tensor([0.2, 0.7, 1.2])
ONE_GROUP_N = torch.tensor([4, 4, 4])
ALPHA_N = torch.tensor([1.5194411, 0.9215877, 0.5589711])


def test_coefficients_of_one_group():
    torch.testing.assert_close(modulation_coefficients(ENTROPY_N, ONE_GROUP_N), ALPHA_N, rtol=0, atol=2e-7)


def test_coefficients_with_a_stronger_lam():
    # λ = 2: weights 1, e^-1 = 0.3678794, e^-2 = 0.1353353; sum 1.5032147; mean 0.5010716.
    expected_N = torch.tensor([1.9957228, 0.7341854, 0.2700917])
    torch.testing.assert_close(modulation_coefficients(ENTROPY_N, ONE_GROUP_N, lam=2.0), expected_N, rtol=0, atol=2e-7)


def test_coefficients_reversed():
    # exp(+λH̃)/mean = exp(-λ(1-H̃))/mean, and 1-H̃ = 1, 0.5, 0: the forward coefficients, mirrored.
    alpha_N = modulation_coefficients(ENTROPY_N, ONE_GROUP_N, direction="reversed")
    torch.testing.assert_close(alpha_N, ALPHA_N.flip(0), rtol=0, atol=2e-7)


def test_coefficients_with_a_mean_over_tokens():
    # Weights 1, e^-0.5 = 0.6065307, e^-1 = 0.3678794 as above, on 1, 2 and 5 tokens:
    # mean (1 + 2 * 0.6065307 + 5 * 0.3678794) / 8 = 0.5065573.
    expected_N = torch.tensor([1.9741104, 1.1973585, 0.7262346])
    alpha_N = modulation_coefficients(ENTROPY_N, ONE_GROUP_N, weight_N=torch.tensor([1, 2, 5]))
    torch.testing.assert_close(alpha_N, expected_N, rtol=0, atol=3e-7)


def test_groups_are_normalised_apart_and_guarded_apart():
    # Group 4 is the one above. Group -1 has range 0.09 < 0.1: exactly 1. Group 9 has two values, H̃ = 0 and 1:
    # α = 2/(1+e^-1) = 1.4621172 and 2e^-1/(1+e^-1) = 0.5378828. Group 5 has one response, range 0: exactly 1.
    entropy_N = torch.tensor([0.2, 1.00, 3.0, 0.7, 1.09, 1.0, 1.2, 0.3])
    group_N = torch.tensor([4, -1, 9, 4, -1, 9, 4, 5])
    expected_N = torch.tensor([1.5194411, 1.0, 0.5378828, 0.9215877, 1.0, 1.4621172, 0.5589711, 1.0])
    alpha_N = modulation_coefficients(entropy_N, group_N)
    torch.testing.assert_close(alpha_N, expected_N, rtol=0, atol=3e-7)
    assert alpha_N[[1, 4, 7]].tolist() == [1.0, 1.0, 1.0]


def test_guard_is_strict():
    # 0.375 - 0.25 = 0.125 exactly, in binary too: at the threshold a group is modulated, just below it is not.
    entropy_N, group_N = torch.tensor([0.25, 0.375]), torch.tensor([0, 0])
    assert modulation_coefficients(entropy_N, group_N, min_range=0.125).tolist() != [1.0, 1.0]
    assert modulation_coefficients(entropy_N, group_N, min_range=0.126).tolist() == [1.0, 1.0]


def test_equal_entropies_without_a_guard():
    # H̃ is 0/0, which we define as 0 for all: equal weights, α = 1.
    entropy_N, group_N = torch.tensor([0.3, 0.3, 0.3]), torch.tensor([1, 1, 1])
    for direction in ("forward", "reversed"):
        assert modulation_coefficients(entropy_N, group_N, min_range=0.0, direction=direction).tolist() == [1.0] * 3


def test_a_huge_lam_neither_overflows_nor_divides_zero_by_zero():
    # All weight on the most certain of three: its weight is 1, the others' 0, the mean 1/3.
    for lam in (1e3, 1e38, 1e300):
        assert modulation_coefficients(ENTROPY_N, ONE_GROUP_N, lam=lam).tolist() == [3.0, 0.0, 0.0]
        assert modulation_coefficients(ENTROPY_N, ONE_GROUP_N, lam=lam, direction="reversed").tolist() == [
            0.0,
            0.0,
            3.0,
        ]


def test_the_mean_runs_over_responses_not_tokens():
    # H̄ = 0 (one token) and (0.5 + 1.0 + 1.5)/3 = 1 (three tokens); weights 1 and e^-1.
    # Over responses the mean is (1 + e^-1)/2 = 0.6839397, α = 1.4621172 and 0.5378828.
    # Over tokens it would be (1 + 3e^-1)/4 = 0.5259096, and the first α 1.9014675.
    responses = find_responses(torch.tensor([[1, 0, 0], [1, 1, 1]]))
    entropy_BT = torch.tensor([[0.0, 9.0, 9.0], [0.5, 1.0, 1.5]])
    advantage_BT = torch.tensor([[2.0, 0.0, 0.0], [-1.0, -1.0, -1.0]])
    rescaled_BT, stats = aem(advantage_BT, entropy_BT, responses, torch.tensor([0, 0]))
    torch.testing.assert_close(stats.alpha_N, torch.tensor([1.4621172, 0.5378828]), rtol=0, atol=2e-7)
    expected_BT = torch.tensor([[2.9242343, 0.0, 0.0], [-0.5378828, -0.5378828, -0.5378828]])
    torch.testing.assert_close(rescaled_BT, expected_BT, rtol=0, atol=4e-7)
    assert stats.entropy_N.tolist() == [0.0, 1.0]


# Six responses of one token. Group 0: trajectory 1 in rows 0 and 1 (H̄ = 0, 1 and 0.5), trajectory 2 in row 2 (2).
# Group 1: a trajectory labelled 1 as well, in row 3 (1 and 3). Row 4 is padding.
SCOPE_RESPONSES = find_responses(torch.tensor([[1, 0, 1], [1, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0]]))
SCOPE_ENTROPY_BT = torch.tensor([[0.0, 7, 1.0], [0.5, 7, 7], [7, 2.0, 7], [1.0, 7, 3.0], [7, 7, 7]])
SCOPE_GROUP_B = torch.tensor([0, 0, 0, 1, 1])
SCOPE_TRAJECTORY_B = torch.tensor([1, 1, 2, 1, 8])


def over_its_mean(*exponents):
    weights = [math.exp(exponent) for exponent in exponents]
    return [weight * len(weights) / sum(weights) for weight in weights]


@pytest.mark.parametrize(
    ("scope", "expected_N", "scope_N", "range_G", "guarded_G"),
    [
        # H̃ = 0, 0.5, 0.25, 1 in group 0 (range 2), 0 and 1 in group 1 (range 2).
        (
            "group",
            [*over_its_mean(0, -0.5, -0.25, -1), *over_its_mean(0, -1)],
            [0, 0, 0, 0, 1, 1],
            [2.0, 2.0],
            [False, False],
        ),
        # H̃ = 0, 1, 0.5 (range 1); a single response (range 0, guarded); 0 and 1 (range 2), apart although its label is
        # that of group 0's first trajectory.
        (
            "trajectory",
            [*over_its_mean(0, -1, -0.5), 1.0, *over_its_mean(0, -1)],
            [0, 0, 0, 1, 2, 2],
            [1.0, 0.0, 2.0],
            [False, True, False],
        ),
        # H̃ = H̄/3 over all six.
        ("batch", over_its_mean(0, -1 / 3, -0.5 / 3, -2 / 3, -1 / 3, -1), [0] * 6, [3.0], [False]),
    ],
)
def test_scopes(scope, expected_N, scope_N, range_G, guarded_G):
    _, stats = aem(
        torch.ones(5, 3),
        SCOPE_ENTROPY_BT,
        SCOPE_RESPONSES,
        SCOPE_GROUP_B,
        scope=scope,
        trajectory_B=SCOPE_TRAJECTORY_B,
    )
    torch.testing.assert_close(stats.alpha_N, torch.tensor(expected_N), rtol=0, atol=5e-7)
    assert stats.scope_N.tolist() == scope_N
    assert stats.range_G.tolist() == range_G
    assert stats.guarded_G.tolist() == guarded_G
    assert stats.range_N.tolist() == [range_G[number] for number in scope_N]
    assert stats.guarded_N.tolist() == [guarded_G[number] for number in scope_N]


def test_response_sums_and_means():
    # Row 0 holds tokens 0-1 and 3, row 1 token 2. The values between them are never read.
    responses = find_responses(torch.tensor([[1, 1, 0, 1], [0, 0, 1, 0]]))
    log_prob_BT = torch.tensor([[-0.5, -1.25, 50.0, -2.0], [50.0, 50.0, -0.125, 50.0]])
    entropy_BT = torch.tensor([[0.25, 0.75, -50.0, 1.5], [-50.0, -50.0, 0.5, -50.0]])
    assert response_log_probs(log_prob_BT, responses).tolist() == [-1.75, -2.0, -0.125]
    assert response_entropies(entropy_BT, responses).tolist() == [0.5, 1.5, 0.5]


def test_rescaling():
    responses = find_responses(torch.tensor([[1, 1, 0, 1]]))
    advantage_BT = torch.tensor([[2.0, -4.0, 3.0, 8.0]])
    rescaled_BT = rescale_advantages(advantage_BT, torch.tensor([0.5, 2.0]), responses)
    assert rescaled_BT.tolist() == [[1.0, -2.0, 3.0, 16.0]]


def test_runs_of_a_mask():
    # A run may begin and end at the row's edges, and does not reach over into the next row.
    responses = find_responses(torch.tensor([[1, 1, 0, 0, 1], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]))
    assert responses.index_BT.tolist() == [[0, 0, -1, -1, 1], [2, -1, 3, 3, -1], [-1] * 5, [4] * 5]
    assert responses.row_N.tolist() == [0, 0, 1, 1, 3]
    assert responses.span_N.tolist() == [0, 1, 0, 1, 0]
    assert responses.length_N.tolist() == [2, 1, 1, 2, 5]
    assert responses.token_M.tolist() == [0, 1, 4, 5, 7, 8, 15, 16, 17, 18, 19]
    assert responses.response_M.tolist() == [0, 0, 1, 2, 3, 3, 4, 4, 4, 4, 4]
    assert len(responses) == 5
    assert responses.shape == (4, 5)


def test_spans_meet_the_mask():
    # Row 0: spans given out of order; (0, 2) and (2, 4) touch, which a mask alone could not tell from one response.
    # Row 1: (0, 2) is masked away and no response; (2, 6) keeps tokens 2 and 5, with a hole.
    # Row 2: no spans, though its mask has ones.
    mask_BT = torch.tensor([[1, 1, 1, 1, 0, 1], [0, 0, 1, 0, 0, 1], [1, 1, 0, 0, 0, 0]])
    spans = [[(2, 4), (0, 2), (5, 6)], [(0, 2), (2, 6)], []]
    responses = Responses.from_spans(spans, (3, 6), mask_BT)
    assert responses.index_BT.tolist() == [[0, 0, 1, 1, -1, 2], [-1, -1, 3, -1, -1, 3], [-1] * 6]
    assert responses.row_N.tolist() == [0, 0, 0, 1]
    assert responses.span_N.tolist() == [1, 0, 2, 1]
    assert responses.length_N.tolist() == [2, 2, 1, 2]
    assert len(find_responses(mask_BT)) == 5


def test_spans_without_a_mask():
    responses = Responses.from_spans([[(0, 1), (1, 3)], [], [(2, 4)]], shape=(3, 4))
    assert responses.index_BT.tolist() == [[0, 1, 1, -1], [-1] * 4, [-1, -1, 2, 2]]
    assert responses.row_N.tolist() == [0, 0, 2]
    assert responses.span_N.tolist() == [0, 1, 0]
