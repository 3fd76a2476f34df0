"""Every kind of input tensor: dtypes, strides, gradients, padding, emptiness, devices.

Not covered: a real GPU. The absence of synchronisation is tested on the meta device, which has no values, so that any
query to the device raises; this does not show copies that a CUDA driver makes by itself.
"""

import math
import pickle

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

MASK_BT = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 1]])
ADVANTAGE_BT = torch.tensor([1.5, -0.5, 2.0, -1.0])[:, None].expand(4, 5).contiguous()
ENTROPY_BT = torch.linspace(0, 2, 20).reshape(4, 5)
LOG_PROB_BT = -torch.linspace(2, 0, 20).reshape(4, 5)
GROUP_B = torch.tensor([3, 3, 8, 8])


def everything(advantage_BT, entropy_BT, log_prob_BT, responses, group_B):
    """Every tensor that the package returns for one batch."""
    entropy_N = response_entropies(entropy_BT, responses)
    alpha_N = modulation_coefficients(entropy_N, group_B[responses.row_N])
    rescaled_BT, stats = aem(advantage_BT, entropy_BT, responses, group_B, shuffle=1)
    return {
        "entropy_N": entropy_N,
        "alpha_N": alpha_N,
        "log_prob_N": response_log_probs(log_prob_BT, responses),
        "by_alpha_BT": rescale_advantages(advantage_BT, alpha_N, responses),
        "rescaled_BT": rescaled_BT,
        "stats_alpha_N": stats.alpha_N,
        "stats_entropy_N": stats.entropy_N,
        "stats_range_N": stats.range_N,
        "stats_range_G": stats.range_G,
    }


BASELINE = everything(ADVANTAGE_BT, ENTROPY_BT, LOG_PROB_BT, find_responses(MASK_BT), GROUP_B)


@pytest.mark.parametrize(
    ("dtype", "result", "tolerance"),
    [
        (torch.float64, torch.float64, 1e-6),
        (torch.float32, torch.float32, 0),
        (torch.float16, torch.float32, 4e-3),
        (torch.bfloat16, torch.float32, 4e-2),
    ],
)
def test_results_are_float32_or_wider(dtype, result, tolerance):
    """The tolerance is the rounding of the input; sums of it lose nothing more (next test)."""
    inputs = (ADVANTAGE_BT.to(dtype), ENTROPY_BT.to(dtype), LOG_PROB_BT.to(dtype))
    for name, tensor in everything(*inputs, find_responses(MASK_BT), GROUP_B).items():
        assert tensor.dtype == result, name
        torch.testing.assert_close(tensor, BASELINE[name].to(result), rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    # 1,000 tokens of 0.5 and one of 0.25: a bfloat16 sum stalls at 128, a float16 sum drops the quarter.
    entropy_BT = torch.full((1, 1001), 0.5, dtype=dtype)
    entropy_BT[0, -1] = 0.25
    responses = find_responses(torch.ones(1, 1001))
    assert response_log_probs(-entropy_BT, responses).item() == -500.25
    assert response_entropies(entropy_BT, responses).item() == pytest.approx(500.25 / 1001, rel=1e-6)


def test_lam_zero_returns_half_precision_advantages_exactly():
    advantage_BT = ADVANTAGE_BT.to(torch.bfloat16) / 3
    rescaled_BT, _ = aem(advantage_BT, ENTROPY_BT, find_responses(MASK_BT), GROUP_B, lam=0)
    assert torch.equal(rescaled_BT, advantage_BT.to(torch.float32))


def test_the_advantages_decide_the_result_dtype():
    responses = find_responses(MASK_BT)
    assert aem(ADVANTAGE_BT, ENTROPY_BT.double(), responses, GROUP_B)[0].dtype == torch.float32
    assert aem(ADVANTAGE_BT.double(), ENTROPY_BT.half(), responses, GROUP_B)[0].dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.float16, torch.float64, torch.uint16])
def test_a_mask_may_have_any_dtype(dtype):
    assert torch.equal(find_responses(MASK_BT.to(dtype)).index_BT, find_responses(MASK_BT).index_BT)
    spans = [[(0, 5)]] * 4
    cut = Responses.from_spans(spans, (4, 5), MASK_BT.to(dtype))
    assert torch.equal(cut.index_BT, Responses.from_spans(spans, (4, 5), MASK_BT).index_BT)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32])
def test_labels_may_have_any_integer_dtype(dtype):
    rescaled_BT, _ = aem(ADVANTAGE_BT, ENTROPY_BT, find_responses(MASK_BT), GROUP_B.to(dtype), shuffle=1)
    assert torch.equal(rescaled_BT, BASELINE["rescaled_BT"])


def strided(tensor):
    """The same values, every second element of a larger tensor that is NaN elsewhere."""
    wide = torch.full([2 * size for size in tensor.shape], -99).to(tensor.dtype)
    if tensor.is_floating_point():
        wide = torch.full_like(wide, math.nan)
    view = wide[tuple(slice(None, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)


def transposed(tensor):
    return tensor.t().contiguous().t()


@pytest.mark.parametrize("layout", [strided, transposed])
def test_layout_does_not_matter(layout):
    inputs = [layout(tensor) for tensor in (ADVANTAGE_BT, ENTROPY_BT, LOG_PROB_BT)]
    assert not any(tensor.is_contiguous() for tensor in inputs)
    group_B = strided(GROUP_B)
    for name, tensor in everything(*inputs, find_responses(layout(MASK_BT)), group_B).items():
        assert torch.equal(tensor, BASELINE[name]), name


def test_an_expanded_advantage_is_not_written_through():
    advantage_BT = torch.tensor([[1.5], [-0.5], [2.0], [-1.0]]).expand(4, 5)
    rescaled_BT, _ = aem(advantage_BT, ENTROPY_BT, find_responses(MASK_BT), GROUP_B, shuffle=1)
    assert torch.equal(rescaled_BT, BASELINE["rescaled_BT"])
    assert advantage_BT[:, 0].tolist() == [1.5, -0.5, 2.0, -1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_inputs_are_left_alone_and_outputs_are_new(dtype):
    inputs = [tensor.to(dtype) for tensor in (ADVANTAGE_BT, ENTROPY_BT, LOG_PROB_BT)]
    mask_BT, group_B = MASK_BT.clone(), GROUP_B.clone()
    before = [tensor.clone() for tensor in (*inputs, mask_BT, group_B)]
    responses = find_responses(mask_BT)
    kept = pickle.loads(pickle.dumps(responses))
    outputs = everything(*inputs, responses, group_B)
    for tensor in outputs.values():
        tensor.fill_(-5)
    for tensor, copy in zip((*inputs, mask_BT, group_B), before, strict=True):
        assert torch.equal(tensor, copy)
    for name in ("index_BT", "row_N", "length_N", "span_N", "token_M", "response_M"):
        assert torch.equal(getattr(responses, name), getattr(kept, name)), name


def test_an_empty_batch_is_copied_too():
    responses = find_responses(torch.zeros(4, 5))
    rescaled_BT, _ = aem(ADVANTAGE_BT, ENTROPY_BT, responses, GROUP_B)
    assert rescaled_BT.data_ptr() != ADVANTAGE_BT.data_ptr()


def test_outputs_are_detached():
    inputs = [tensor.clone().requires_grad_() for tensor in (ADVANTAGE_BT, ENTROPY_BT, LOG_PROB_BT)]
    for name, tensor in everything(*inputs, find_responses(MASK_BT), GROUP_B).items():
        assert not tensor.requires_grad, name


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, -1e30])
def test_what_stands_off_a_response_never_matters(odd):
    off_BT = MASK_BT == 0
    inputs = [tensor.masked_fill(off_BT, odd) for tensor in (ADVANTAGE_BT, ENTROPY_BT, LOG_PROB_BT)]
    for name, tensor in everything(*inputs, find_responses(MASK_BT), GROUP_B).items():
        expected = BASELINE[name].masked_fill(off_BT, odd) if name.endswith("BT") else BASELINE[name]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (3, 0), (0, 0)])
@pytest.mark.parametrize("scope", ["group", "trajectory", "batch"])
def test_a_batch_without_responses(shape, scope):
    advantage_BT = torch.randn(shape)
    labels_B = torch.arange(shape[0])
    for responses in (find_responses(torch.zeros(shape)), Responses.from_spans([[]] * shape[0], shape)):
        rescaled_BT, stats = aem(
            advantage_BT,
            torch.full(shape, math.nan),
            responses,
            labels_B,
            scope=scope,
            trajectory_B=labels_B,
            shuffle=0,
        )
        assert len(responses) == 0
        assert torch.equal(rescaled_BT, advantage_BT)
        for name in ("alpha_N", "entropy_N", "scope_N", "range_N", "guarded_N", "range_G", "guarded_G"):
            assert getattr(stats, name).shape == (0,), name
        assert response_log_probs(advantage_BT, responses).shape == (0,)
    assert modulation_coefficients(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_a_small_negative_entropy_passes_as_it_is():
    responses = find_responses(torch.tensor([[1, 1]]))
    assert response_entropies(torch.tensor([[-0.25, 0.75]]), responses).item() == 0.25


def test_many_responses_in_one_set_average_one():
    """The mean in float32 over far more responses than a batch has."""
    generator = torch.Generator().manual_seed(0)
    entropy_N = torch.rand(100_000, generator=generator) * 3
    alpha_N = modulation_coefficients(entropy_N, torch.zeros(100_000, dtype=torch.int64))
    assert alpha_N.double().mean().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("scope", ["group", "trajectory", "batch"])
def test_nothing_asks_the_device_without_validation(scope):
    responses = find_responses(MASK_BT).to("meta")
    advantage_BT, entropy_BT, log_prob_BT, group_B = (
        tensor.to("meta") for tensor in (ADVANTAGE_BT, ENTROPY_BT, LOG_PROB_BT, GROUP_B)
    )
    rescaled_BT, stats = aem(
        advantage_BT, entropy_BT, responses, group_B, scope=scope, trajectory_B=group_B, validate=False
    )
    assert rescaled_BT.shape == (4, 5)
    assert stats.alpha_N.shape == (len(responses),)
    assert response_log_probs(log_prob_BT, responses, validate=False).is_meta
    alpha_N = modulation_coefficients(stats.entropy_N, stats.scope_N, validate=False)
    assert rescale_advantages(advantage_BT, alpha_N, responses, validate=False).is_meta
    with pytest.raises(RuntimeError, match="meta"):
        aem(advantage_BT, entropy_BT, responses, group_B, validate=True)


def test_responses_move_between_devices():
    responses = find_responses(MASK_BT)
    assert responses.to("meta").device.type == "meta"
    assert responses.device.type == "cpu"
    assert torch.equal(responses.to("cpu").index_BT, responses.index_BT)
    assert repr(responses) == "Responses(5 responses, 9 tokens, shape=(4, 5), device=cpu)"


def test_results_pickle():
    rescaled_BT, stats = aem(ADVANTAGE_BT, ENTROPY_BT, find_responses(MASK_BT), GROUP_B)
    again_BT, again = pickle.loads(pickle.dumps((rescaled_BT, stats)))
    assert torch.equal(again_BT, rescaled_BT)
    assert torch.equal(again.alpha_N, stats.alpha_N)


def test_without_validation_a_mask_counts_everything_but_zero():
    responses = find_responses(torch.tensor([[2.0, 0.0, -1.0]]), validate=False)
    assert responses.index_BT.tolist() == [[0, -1, 1]]
