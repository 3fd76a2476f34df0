"""Which way a response's update moves the policy's entropy: the drift law of AEM's theory, and the sign quadrants.

`aem_core.exact` holds what the law can be checked against on policies small enough to enumerate; docs/theory.md has
the proofs.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from aem_core import _checks as checks
from aem_core._segments import working_dtype

__all__ = ["Quadrant", "entropy_drift", "sign_quadrants"]

_ADVANTAGE_FIX = "Look at the base estimator and its rewards."
_SURPRISAL_FIX = "Pass S = −log π(a|s) in nats, the negative of `response_log_probs`."
_EXPECTED_FIX = "Pass H_resp(s) = E S in nats, or Σ_j h_j in its place; negative values suggest log-probabilities."


class Quadrant(IntEnum):
    """Signs of a response's base advantage A and of α − 1; the names are those of the `aem/quadrant/*` metrics.

    "Good" and "bad" are the signs of A. "Certain" means a lower entropy than elsewhere in the group as α measures it:
    α > 1.

    Examples:
        >>> Quadrant(3).name.lower()
        'bad_certain'
    """

    NONE = 0
    GOOD_CERTAIN = 1
    GOOD_UNCERTAIN = 2
    BAD_CERTAIN = 3
    BAD_UNCERTAIN = 4


def entropy_drift(
    advantage_N: Float[Tensor, " N"],
    surprisal_N: Float[Tensor, " N"],
    expected_surprisal_N: Float[Tensor, " N"],
    *,
    validate: bool = True,
) -> Float[Tensor, " N"]:
    """How fast the policy's response entropy changes along the natural gradient of each response.

        D H_resp(s) = A(a, s) · (S(a|s) − H_resp(s))

    Source: arXiv 2605.00425, theory: the derivative along the Fisher–Rao direction of A log π(a|s), at the state s of
    the response, with the distribution of states held fixed. Other directions, the Euclidean gradient of the logits
    among them, can have the other sign. With Σ_j h_j of the response for H_resp(s), of which one sample shows nothing
    else, the last factor is `relative_surprisal`; that estimate is ours.

    Args:
        advantage_N: (N,), A, the advantage of each response: the base's, or α · A for that under AEM.
        surprisal_N: (N,), S, its surprisal −log π(a|s), nats.
        expected_surprisal_N: (N,), H_resp(s), the entropy of all responses in its state, nats.
        validate: check the values: finite, surprisals not below 0 by more than 0.5 nats of rounding.

    Returns:
        (N,), nats per unit of step; positive: the entropy rises. float32, or float64 where an input is float64.

    Raises:
        AEMValueError: shapes, dtypes or devices do not fit; bad values.

    Examples:
        >>> entropy_drift(torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.5]), torch.tensor([2.0, 2.0]))
        tensor([-1.5000,  1.5000])
    """
    _require_alike("advantage_N", advantage_N, advantage_N)
    _require_alike("surprisal_N", surprisal_N, advantage_N)
    _require_alike("expected_surprisal_N", expected_surprisal_N, advantage_N)
    dtype = advantage_N.dtype
    for value_N in (surprisal_N, expected_surprisal_N):
        dtype = torch.promote_types(dtype, value_N.dtype)
    dtype = working_dtype(dtype)
    advantage_N, surprisal_N, expected_surprisal_N = (
        value_N.detach().to(dtype) for value_N in (advantage_N, surprisal_N, expected_surprisal_N)
    )
    if validate:
        lowest = -checks.ROUNDING_NATS
        checks.check_response_values("advantage_N", advantage_N, _ADVANTAGE_FIX, lowest=-math.inf)
        checks.check_response_values("surprisal_N", surprisal_N, _SURPRISAL_FIX, lowest=lowest)
        checks.check_response_values("expected_surprisal_N", expected_surprisal_N, _EXPECTED_FIX, lowest=lowest)
    return advantage_N * (surprisal_N - expected_surprisal_N)


def sign_quadrants(
    advantage_N: Float[Tensor, " N"], alpha_N: Float[Tensor, " N"], *, validate: bool = True
) -> Integer[Tensor, " N"]:
    """Which `Quadrant` each response is in.

        1  good_certain    A > 0, α > 1        2  good_uncertain  A > 0, α < 1
        3  bad_certain     A < 0, α > 1        4  bad_uncertain   A < 0, α < 1
        0  none            A = 0 or α = 1

    Where α − 1 has the sign of H_resp − S, as AEM means it to have, the response's own update lowers the entropy in 1
    and 4 and raises it in 2 and 3, and AEM's α lowers it against the base update in 1 and 2, raises it in 3 and 4.

    Source: arXiv 2605.00425, theory, for the signs; names and numbers are ours. docs/theory.md derives the sentence
    above from the drift law.

    Args:
        advantage_N: (N,), A, the base advantage of each response.
        alpha_N: (N,), α, of `modulation_coefficients`.
        validate: check the values: finite, α not negative.

    Returns:
        (N,), int64, values of `Quadrant`.

    Raises:
        AEMValueError: shapes, dtypes or devices do not fit; bad values.

    Examples:
        >>> sign_quadrants(torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0]), torch.tensor([1.5, 0.5, 1.5, 0.5, 1.5]))
        tensor([1, 2, 3, 4, 0])
    """
    _require_alike("advantage_N", advantage_N, advantage_N)
    _require_alike("alpha_N", alpha_N, advantage_N)
    advantage_N, alpha_N = advantage_N.detach(), alpha_N.detach()
    if validate:
        checks.check_response_values("advantage_N", advantage_N, _ADVANTAGE_FIX, lowest=-math.inf)
        fix = "Pass the α of `modulation_coefficients`, not α − 1 or log α."
        checks.check_response_values("alpha_N", alpha_N, fix, lowest=0.0)
    good_N = torch.where(alpha_N > 1, int(Quadrant.GOOD_CERTAIN), int(Quadrant.GOOD_UNCERTAIN))
    bad_N = torch.where(alpha_N > 1, int(Quadrant.BAD_CERTAIN), int(Quadrant.BAD_UNCERTAIN))
    none_N = (advantage_N == 0) | (alpha_N == 1)
    return torch.where(advantage_N > 0, good_N, bad_N).masked_fill(none_N, int(Quadrant.NONE))


def _require_alike(name: str, value_N: Tensor, first_N: Tensor) -> None:
    checks.require_tensor(name, value_N, 1, checks.FLOAT_DTYPES, "Pass one value a response.")
    checks.require_shape(name, value_N, (len(first_N),), first_N.device, "Pass one value for each response.")
