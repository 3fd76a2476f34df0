"""Log-probability and mean entropy of responses, computed from tokens, in nats."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from aem_core import _checks as checks
from aem_core._segments import run_sum, working_dtype
from aem_core.responses import Responses, check_token_values, require_tokens, select_tokens

__all__ = ["response_entropies", "response_log_probs"]

_ENTROPY_FIX = (
    "Pass Shannon entropies in nats from the policy that sampled the tokens, aligned with them; negative ones suggest "
    "log-probabilities, non-finite ones a wrong mask or an overflow in the log-prob pass."
)
_LOG_PROB_FIX = (
    "Pass log-probabilities in nats of the sampled tokens, aligned with them; positive ones suggest entropies or a "
    "flipped sign, non-finite ones a wrong mask or an overflow in the log-prob pass."
)


def response_log_probs(
    log_prob_BT: Float[Tensor, "B T"], responses: Responses, *, validate: bool = True
) -> Float[Tensor, " N"]:
    """Compute the log-probability of each whole response.

        log π(a|s) = Σ_j log π(a_j | s, a_<j)

    Source: arXiv 2605.00425, where its negative is the response's surprisal S(a|s).

    Args:
        log_prob_BT: (B, T), log-probability of each sampled token, nats.
        responses: which tokens belong to which response.
        validate: check the values on responses (finite, not above 0 by more than 0.5 nats of rounding).

    Returns:
        (N,), nats; float32, or float64 for float64 input.

    Raises:
        AEMValueError: shape, dtype or device do not fit `responses`; bad values on a response.

    Examples:
        >>> import torch
        >>> from aem_core import find_responses
        >>> responses = find_responses(torch.tensor([[1, 1, 0, 1]]))
        >>> response_log_probs(torch.tensor([[-0.5, -1.0, float("nan"), -0.25]]), responses)
        tensor([-1.5000, -0.2500])
    """
    return _sum_tokens("log_prob_BT", log_prob_BT, responses, validate, _LOG_PROB_FIX, highest=checks.ROUNDING_NATS)


def response_entropies(
    entropy_BT: Float[Tensor, "B T"], responses: Responses, *, validate: bool = True
) -> Float[Tensor, " N"]:
    """Compute the mean token entropy of each response.

        H̄ = (1/n) Σ_j h_j,    h_j = −Σ_v π(v | s, a_<j) log π(v | s, a_<j)

    Source: arXiv 2605.00425, method: the response-level entropy that modulates the advantage.

    Args:
        entropy_BT: (B, T), entropy of the full next-token distribution at each token, nats.
        responses: which tokens belong to which response.
        validate: check the values on responses. They must be finite and not negative; values down to −0.5 nats are
            accepted and used unchanged, since an entropy computed in half precision may be off by that much.

    Returns:
        (N,), nats per token; float32, or float64 for float64 input.

    Raises:
        AEMValueError: shape, dtype or device do not fit `responses`; bad values on a response.

    Examples:
        >>> import torch
        >>> from aem_core import find_responses
        >>> responses = find_responses(torch.tensor([[1, 1, 0, 1]]))
        >>> response_entropies(torch.tensor([[0.5, 1.5, float("nan"), 0.25]]), responses)
        tensor([1.0000, 0.2500])
    """
    sum_N = _sum_tokens("entropy_BT", entropy_BT, responses, validate, _ENTROPY_FIX, lowest=-checks.ROUNDING_NATS)
    return sum_N / responses.length_N.to(sum_N.dtype)


def _sum_tokens(name: str, value_BT: Tensor, responses: Responses, validate: bool, fix: str, **bounds: float) -> Tensor:
    """Sum each response's tokens after checking the values."""
    require_tokens(name, value_BT, responses)
    value_M = select_tokens(value_BT, responses)
    if validate:
        check_token_values(name, value_M, responses, fix, **bounds)
    return run_sum(value_M.to(working_dtype(value_M.dtype)), responses.length_N)
