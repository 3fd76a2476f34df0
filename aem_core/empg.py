"""EMPG, Entropy-Modulated Policy Gradients (arXiv 2509.09265): the method closest to AEM, for comparison.

Both scale advantages by exp(−k·entropy) over its mean. EMPG takes its statistics over the whole batch, has no guard for
a narrow range, adds a bonus for a certain next step, and centres the result, so that signs can change.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from aem_core import _checks as checks
from aem_core._segments import run_sum, working_dtype
from aem_core.groups import check_turns, order_of_turns
from aem_core.responses import Responses, check_token_values, require_tokens, select_tokens
from aem_core.surprisal import response_entropies

__all__ = ["EmpgStats", "empg"]

_EPSILON = 1e-8  # the paper's, in both denominators
_K_FIX = "Set it to 1 for the paper's; 0 leaves the entropies out."
_ZETA_FIX = "Set `zeta` (ζ) to 0.1 for the project page's; `bonus=False` leaves the bonus out."


@dataclass(frozen=True, eq=False)
class EmpgStats:
    """Intermediate results of `empg`: one value per response, except for the centre.

    Attributes:
        entropy_N: H̄, the response's mean token entropy, nats per token.
        unit_N: H̃, that entropy on the batch's scale from 0 to 1.
        scale_N: g, the factor of the response's advantages; 1 where scaling is off.
        bonus_N: ζ · f, the bonus for the next step; 0 at a trajectory's last step and where the bonus is off.
        centre: 0-dim, c, the value subtracted from every token; 0 where centring is off.

    Examples:
        >>> from aem_core import find_responses
        >>> responses = find_responses(torch.tensor([[1, 0, 1]]))
        >>> label_N, turn_N = torch.tensor([0, 0]), torch.tensor([0, 1])
        >>> _, stats = empg(torch.ones(1, 3), torch.tensor([[0.5, 0.0, 0.0]]), responses, label_N, turn_N)
        >>> stats.unit_N.tolist(), stats.bonus_N
        ([1.0, 0.0], tensor([0.1000, 0.0000]))
    """

    entropy_N: Float[Tensor, " N"]
    unit_N: Float[Tensor, " N"]
    scale_N: Float[Tensor, " N"]
    bonus_N: Float[Tensor, " N"]
    centre: Float[Tensor, ""]


def empg(
    advantage_BT: Float[Tensor, "B T"],
    entropy_BT: Float[Tensor, "B T"],
    responses: Responses,
    trajectory_N: Integer[Tensor, " N"],
    turn_N: Integer[Tensor, " N"],
    *,
    k: float = 1.0,
    k_future: float = 1.0,
    zeta: float = 0.1,
    scaling: bool = True,
    bonus: bool = True,
    recentre: bool = True,
    validate: bool = True,
) -> tuple[Float[Tensor, "B T"], EmpgStats]:
    """Scale advantages down where the policy was uncertain, and reward steps that lead to certain steps.

        A'_t = g · A_t + ζ · f − c          on the tokens t of a step (a response)

        H̃ = (H̄ − min H̄) / (max H̄ − min H̄ + 1e-8)          over all steps of the batch
        g = exp(−k H̃) / (mean exp(−k H̃) + 1e-8)              mean over all steps of the batch
        f = exp(−k′ H̃ of the trajectory's next step), 0 after its last
        c = mean over all steps of the step's g · A + ζ · f, with A the mean over the step's tokens

    The next step has the smallest larger turn index in the trajectory, wherever it is in the batch.

    Source: arXiv 2509.09265, with k = k′ = 1; ζ = 0.1 is from its project page. `scaling` and `bonus` are its
    ablations. There is no division by a standard deviation. Ours: every token of the step receives the bonus, and c
    uses the mean over a step's tokens where the base gives them different advantages.

    Args:
        advantage_BT: (B, T), the base estimator's advantages.
        entropy_BT: (B, T), entropy of the full next-token distribution at each token, nats.
        responses: which tokens belong to which response. Padding rows (copies that fill up the batch) must not hold
            any, because they would count in every statistic.
        trajectory_N: (N,), integer label of each response's trajectory, unique in the whole batch. From one label per
            row: `trajectory_B[responses.row_N]`.
        turn_N: (N,), integer index of each response's turn, in any numbering that grows with time.
        k: strength of the scaling.
        k_future: k′, strength of the next step's entropy in the bonus.
        zeta: ζ, the largest bonus, in units of the advantage.
        scaling: multiply by g.
        bonus: add ζ · f.
        recentre: subtract c. With all three off the result is the base advantages bit for bit.
        validate: check the values on responses, and that no turn occurs twice; waits for a GPU. Without it, nothing
            here waits, and of two turns with the same index the first in the batch counts as the earlier.

    Returns:
        The modulated advantages, (B, T), a new tensor, float32, or float64 for float64 advantages, equal to the input
        bit for bit outside of responses; and `EmpgStats`.

    Raises:
        AEMValueError: shapes, dtypes or devices do not fit; a setting negative or not finite; entropies on a response
            that are not finite or negative by more than 0.5 nats of rounding; advantages on a response that are not
            finite; a turn of a trajectory that occurs twice.

    Examples:
        >>> from aem_core import find_responses
        >>> responses = find_responses(torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]))
        >>> advantage_BT = torch.tensor([[1.0, 1.0, 0.0, 1.0], [-1.0, 0.0, 0.0, 0.0]])
        >>> entropy_BT = torch.tensor([[0.1, 0.3, 0.0, 1.2], [0.7, 0.0, 0.0, 0.0]])
        >>> trajectory_N, turn_N = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0])
        >>> modulated_BT, stats = empg(advantage_BT, entropy_BT, responses, trajectory_N, turn_N)
        >>> stats.scale_N, stats.bonus_N
        (tensor([1.5194, 0.5590, 0.9216]), tensor([0.0368, 0.0000, 0.0000]))
        >>> modulated_BT
        tensor([[ 1.1584,  1.1584,  0.0000,  0.1611],
                [-1.3195,  0.0000,  0.0000,  0.0000]])
    """
    require_tokens("advantage_BT", advantage_BT, responses)
    checks.require_labels("trajectory_N", trajectory_N, len(responses), responses.device, "response")
    checks.require_labels("turn_N", turn_N, len(responses), responses.device, "response")
    checks.require_setting("k", k, _K_FIX)
    checks.require_setting("k_future", k_future, _K_FIX)
    checks.require_setting("zeta", zeta, _ZETA_FIX)
    entropy_N = response_entropies(entropy_BT, responses, validate=validate)
    advantage_M = select_tokens(advantage_BT, responses)
    order_N = order_of_turns(trajectory_N, turn_N)
    if validate:
        fix = "Look at the base estimator and its rewards; `empg` cannot repair an advantage that is not a number."
        check_token_values("advantage_BT", advantage_M, responses, fix)
        check_turns(trajectory_N, turn_N, order_N)

    dtype = working_dtype(advantage_BT.dtype)
    unit_N = _unit_entropies(entropy_N)
    scale_N, bonus_N = torch.ones_like(unit_N), torch.zeros_like(unit_N)
    centre = advantage_M.new_zeros((), dtype=dtype)
    modulated_M = advantage_M.to(dtype)
    # A part that is off is skipped rather than made neutral: adding 0 would turn −0.0 into 0.0.
    if scaling:
        weight_N = _falling(k, unit_N)
        scale_N = weight_N / (weight_N.mean() + _EPSILON)
        modulated_M = modulated_M * scale_N.to(dtype)[responses.response_M]
    if bonus:
        bonus_N = float(zeta) * _next_in_trajectory(_falling(k_future, unit_N), trajectory_N, order_N)
        modulated_M = modulated_M + bonus_N.to(dtype)[responses.response_M]
    if recentre:
        # In float64, because a long response is a long sum.
        step_N = run_sum(modulated_M.double(), responses.length_N) / responses.length_N
        centre = (step_N.sum() / max(len(responses), 1)).to(dtype)
        modulated_M = modulated_M - centre
    modulated_BT = advantage_BT.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
    modulated_BT.view(-1).scatter_(0, responses.token_M, modulated_M)
    return modulated_BT, EmpgStats(entropy_N, unit_N, scale_N, bonus_N, centre)


def _unit_entropies(entropy_N: Tensor) -> Tensor:
    """Compute H̃; empty for a batch without responses, which has no extrema."""
    if not len(entropy_N):
        return entropy_N
    low, high = entropy_N.aminmax()
    return (entropy_N - low) / (high - low + _EPSILON)


def _falling(k: float, unit_N: Tensor) -> Tensor:
    """Compute exp(−k H̃); k is limited to the dtype's range, since it would become inf, and inf · 0 is NaN."""
    return torch.exp(-min(float(k), torch.finfo(unit_N.dtype).max) * unit_N)


def _next_in_trajectory(value_N: Tensor, trajectory_N: Tensor, order_N: Tensor) -> Tensor:
    """Return the value of each response's successor in `order_N`; 0 without a successor in the same trajectory."""
    trajectory_N = trajectory_N.to(torch.int64)[order_N]
    next_N = torch.where(trajectory_N[1:] == trajectory_N[:-1], value_N[order_N[1:]], 0.0)
    return torch.zeros_like(value_N).scatter_(0, order_N[:-1], next_N)
