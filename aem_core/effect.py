"""What AEM does to a group of responses: how far it moves the advantages, and whether α is more than noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from aem_core import _checks as checks
from aem_core._segments import run_sum, segment_mean, segment_sum, working_dtype
from aem_core.aem import AemStats
from aem_core.responses import Responses, check_token_values, require_per_response, require_tokens, select_tokens

__all__ = ["AemEffect", "aem_effect"]

_ENTROPY_FIX = "Pass what `aem` got: entropies in nats, or −log π of the sampled tokens."
_ADVANTAGE_FIX = "Look at the base estimator and its rewards."


@dataclass(frozen=True, eq=False)
class AemEffect:
    """Numbers of each set of responses that AEM compares (`AemStats.scope_N`), repeated for its responses.

    Attributes:
        shift_N: the mean of α A less the mean of A: how far AEM moves the set's mean advantage.
        net_N: Σ A over the set's responses, of the base's advantages.
        reliability_N: the share of the variance of H̄ in the set that the halves of the responses agree on, from 0 to 1;
            NaN where that cannot be told: equal entropies, or fewer than two responses of two tokens.
    """

    shift_N: Float[Tensor, " N"]
    net_N: Float[Tensor, " N"]
    reliability_N: Float[Tensor, " N"]


def aem_effect(
    advantage_N: Float[Tensor, " N"],
    stats: AemStats,
    entropy_BT: Float[Tensor, "B T"],
    responses: Responses,
    *,
    validate: bool = True,
) -> AemEffect:
    """Compute what AEM does to each set of responses, and how reliable the entropies are from which it does so.

        shift       = mean (α A) − mean A = Cov(α, A)          (where mean α = 1)
        reliability = 1 − noise / Var H̄, from 0 to 1
        noise       = mean_i of  n₁ n₂ / n² · (d_i − d̄)² · M / (M − 1)

    d_i is the mean entropy of the first ⌊n/2⌋ tokens of response i less that of the others (n₁ + n₂ = n tokens), d̄ the
    mean of d over the M responses of the set that have two tokens or more, and Var H̄ the unbiased variance of H̄ over
    the set. If a response's tokens were drawn from one distribution, independently or in runs much shorter than half of
    it, the noise is the variance of H̄ between draws: a reliability near 0 means that α is noise. What all responses
    have in common, such as a sure beginning, does not count. Responses that rise where others fall do, so with kinds of
    turn that differ in this the reliability is rather too low. A response of one token counts with the others' noise of
    one.

    Source: ours (docs/theory.md).

    Args:
        advantage_N: (N,), A, the base advantage of each response.
        stats: of `aem`, for the same responses.
        entropy_BT: (B, T), what `aem` computed H̄ from, nats.
        responses: which tokens belong to which response.
        validate: check that advantages and entropies on responses are finite.

    Returns:
        `AemEffect`, in float64.

    Raises:
        AEMValueError: shapes, dtypes or devices do not fit; values that are not finite.

    Examples:
        Two responses with H̄ = 0.2 and 0.8, and d = −0.2 and 0.2: the noise is 0.02, and Var H̄ is 0.18.

        >>> from aem_core import aem, find_responses
        >>> responses = find_responses(torch.tensor([[1, 1, 0, 1, 1]]))
        >>> entropy_BT = torch.tensor([[0.1, 0.3, 0.0, 0.9, 0.7]])
        >>> _, stats = aem(torch.ones(1, 5), entropy_BT, responses, torch.tensor([0]))
        >>> effect = aem_effect(torch.tensor([1.0, -1.0]), stats, entropy_BT, responses)
        >>> [round(float(value_N[0]), 4) for value_N in (effect.shift_N, effect.net_N, effect.reliability_N)]
        [0.4621, 0.0, 0.8889]
    """
    require_tokens("entropy_BT", entropy_BT, responses)
    require_per_response("advantage_N", advantage_N, responses)
    require_per_response("stats.alpha_N", stats.alpha_N, responses)
    value_M = select_tokens(entropy_BT, responses)
    advantage_N = advantage_N.detach().double()
    if validate:
        check_token_values("entropy_BT", value_M, responses, _ENTROPY_FIX)
        checks.check_response_values("advantage_N", advantage_N, _ADVANTAGE_FIX, lowest=-torch.inf)
    slots, set_N = len(responses), stats.scope_N
    shift_G = segment_mean((stats.alpha_N.double() - 1) * advantage_N, set_N, slots)
    net_G = segment_sum(advantage_N, set_N, slots)

    half_N = responses.length_N // 2
    length_N2 = torch.stack([half_N, responses.length_N - half_N], dim=1)
    sum_N2 = run_sum(value_M.to(working_dtype(value_M.dtype)), length_N2.flatten()).double().view(-1, 2)
    length_N2, mean_N = length_N2.double(), stats.entropy_N.double()
    first_N, second_N = (sum_N2 / length_N2.clamp(min=1)).unbind(1)
    split_N = (half_N > 0).double()
    splits_G = segment_sum(split_N, set_N, slots)
    common_G = segment_sum(split_N * (first_N - second_N), set_N, slots) / splits_G.clamp(min=1)
    apart_N = split_N * (first_N - second_N - common_G[set_N]) ** 2
    length_N = length_N2.sum(1)
    # NaN for fewer than two responses that can be split: 0/0
    noise_N = length_N2.prod(1) / length_N**2 * apart_N * (splits_G / (splits_G - 1))[set_N]
    of_one_token_G = segment_sum(noise_N * length_N, set_N, slots) / splits_G
    noise_G = segment_mean(torch.where(half_N > 0, noise_N, of_one_token_G[set_N]), set_N, slots)

    size_G = segment_sum(torch.ones_like(mean_N), set_N, slots)
    square_N = (mean_N - segment_mean(mean_N, set_N, slots)[set_N]) ** 2
    spread_G = segment_sum(square_N, set_N, slots) / (size_G - 1)
    reliability_G = torch.where((size_G > 1) & (spread_G > 0), 1 - noise_G / spread_G, torch.nan).clamp(0, 1)
    return AemEffect(shift_G[set_N], net_G[set_N], reliability_G[set_N])
