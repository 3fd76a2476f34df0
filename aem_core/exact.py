"""Policies small enough to enumerate, where the statements of the theory are equalities between numbers.

Axis suffixes here: V actions of one choice, L leaves of a tree (whole responses). Everything is float64, is checked
always, and is differentiable with respect to what it was made from: this module serves tests and teaching, not
training, and walks its trees in Python.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Mapping, Sequence
from typing import SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from aem_core import _checks as checks

__all__ = [
    "TreePolicy",
    "entropy_derivative",
    "euclidean_gradient_direction",
    "natural_gradient_direction",
]

_TREE_FIX = "Pass {(): root's logits, (1,): logits after action 1, (1, 0): after actions 1 and 0, …}."


class TreePolicy:
    """An autoregressive softmax policy over a finite tree, with all its responses enumerated.

        π(a) = Π_j softmax(z(a_<j))[a_j],    S(a) = −log π(a),    H_resp = E S

    A node is the tuple of actions that leads to it. A node with logits is a choice, with as many actions as logits; one
    without is a leaf, the end of a response. Leaves may stand at any depth, also right below the root.

    Source: ours, for the claims of arXiv 2605.00425.

    Args:
        logits: for each choice its logits, finite. float64 tensors are used as they are, with their gradients.

    Attributes:
        leaves: the L responses, as tuples of actions, in lexicographic order.
        surprisal_L: S of each, nats.
        entropy_sum_L: Σ_j h_j, the entropies of the choices along its way, summed, nats.

    Raises:
        AEMValueError: no root, a choice that no actions lead to, logits that are empty or not finite.

    Examples:
        >>> stop_or_three = TreePolicy({(): [0.0, math.log(3)], (1,): [0.0, 0.0, 0.0]})
        >>> stop_or_three.leaves
        ((0,), (1, 0), (1, 1), (1, 2))
        >>> stop_or_three.probability_L
        tensor([0.2500, 0.2500, 0.2500, 0.2500], dtype=torch.float64)
        >>> stop_or_three.entropy_sum_L
        tensor([0.5623, 1.6609, 1.6609, 1.6609], dtype=torch.float64)
    """

    def __init__(self, logits: Mapping[tuple[int, ...], Tensor | Sequence[float]]) -> None:
        choices = _checked_tree(logits)
        leaves: list[tuple[int, ...]] = []
        surprisals: list[Tensor] = []
        entropy_sums: list[Tensor] = []
        zero = torch.zeros((), dtype=torch.float64)
        pending: list[tuple[tuple[int, ...], Tensor, Tensor]] = [((), zero, zero)]
        while pending:
            node, surprisal, entropy_sum = pending.pop()
            if node not in choices:
                leaves.append(node)
                surprisals.append(surprisal)
                entropy_sums.append(entropy_sum)
                continue
            surprisal_V = -torch.log_softmax(choices[node], dim=0)
            entropy_sum = entropy_sum + (torch.exp(-surprisal_V) * surprisal_V).sum()
            # Last action first: the stack then gives the leaves in order.
            for action in reversed(range(len(surprisal_V))):
                pending.append(((*node, action), surprisal + surprisal_V[action], entropy_sum))
        self.leaves = tuple(leaves)
        self.surprisal_L: Float[Tensor, " L"] = torch.stack(surprisals)
        self.entropy_sum_L: Float[Tensor, " L"] = torch.stack(entropy_sums)

    @property
    def probability_L(self) -> Float[Tensor, " L"]:
        """π of each response."""
        return torch.exp(-self.surprisal_L)

    @property
    def mean_entropy_L(self) -> Float[Tensor, " L"]:
        """H̄, the mean token entropy of each response, nats a token: what AEM's α is made from."""
        length_L = torch.tensor([len(leaf) for leaf in self.leaves], dtype=torch.float64)
        return self.entropy_sum_L / length_L

    @property
    def entropy(self) -> Float[Tensor, ""]:
        """H_resp, the entropy of the whole response, nats."""
        return self.mean(self.surprisal_L)

    def mean(self, value_L: Float[Tensor, " L"]) -> Float[Tensor, ""]:
        """The expectation under the policy."""
        return (self.probability_L * value_L).sum()

    def covariance(self, value_L: Float[Tensor, " L"], other_L: Float[Tensor, " L"]) -> Float[Tensor, ""]:
        """The covariance under the policy."""
        return self.mean((value_L - self.mean(value_L)) * (other_L - self.mean(other_L)))

    def variance(self, value_L: Float[Tensor, " L"]) -> Float[Tensor, ""]:
        """The variance under the policy."""
        return self.covariance(value_L, value_L)


def natural_gradient_direction(
    probability_V: Float[Tensor, " V"], action: int, advantage: float
) -> Float[Tensor, " V"]:
    """The direction on the simplex in which the natural gradient of one sampled action moves the probabilities.

        d = A (e_a − π)

    Source: arXiv 2605.00425, theory: steepest ascent of A log π_a in the Fisher–Rao metric.

    Args:
        probability_V: (V,), π, above 0, summing to 1.
        action: a, the sampled action.
        advantage: A.

    Returns:
        (V,), float64; sums to 0.

    Raises:
        AEMValueError: not a distribution with full support, no such action, an advantage that is not finite.

    Examples:
        >>> natural_gradient_direction(torch.tensor([0.5, 0.25, 0.25]), action=1, advantage=2.0)
        tensor([-1.0000,  1.5000, -0.5000], dtype=torch.float64)
    """
    probability_V, indicator_V, advantage = _checked_update(probability_V, action, advantage)
    return advantage * (indicator_V - probability_V)


def euclidean_gradient_direction(
    probability_V: Float[Tensor, " V"], action: int, advantage: float
) -> Float[Tensor, " V"]:
    """The direction on the simplex in which the plain gradient of the logits moves the probabilities.

        g = ∇_z A log π_a = A (e_a − π),    d = (diag π − π πᵀ) g = π ⊙ (g − E_π g)

    Source: ours, for comparison: the drift law is not about this direction.

    Args:
        probability_V: (V,), π, above 0, summing to 1.
        action: a, the sampled action.
        advantage: A.

    Returns:
        (V,), float64; sums to 0.

    Raises:
        AEMValueError: not a distribution with full support, no such action, an advantage that is not finite.

    Examples:
        >>> euclidean_gradient_direction(torch.tensor([0.5, 0.5]), action=1, advantage=2.0)
        tensor([-0.5000,  0.5000], dtype=torch.float64)
    """
    probability_V, indicator_V, advantage = _checked_update(probability_V, action, advantage)
    gradient_V = advantage * (indicator_V - probability_V)
    return probability_V * (gradient_V - (probability_V * gradient_V).sum())


def entropy_derivative(probability_V: Float[Tensor, " V"], direction_V: Float[Tensor, " V"]) -> Float[Tensor, ""]:
    """The derivative of a distribution's entropy along a direction on the simplex.

        dH(π)[d] = −Σ_v d_v log π_v,    Σ_v d_v = 0

    Source: ours, elementary; the remaining term −Σ_v d_v is 0.

    Args:
        probability_V: (V,), π, above 0, summing to 1.
        direction_V: (V,), d, summing to 0.

    Returns:
        A float64 scalar, nats per unit of step.

    Raises:
        AEMValueError: not a distribution with full support; a direction that is not finite or leaves the simplex.

    Examples:
        >>> probability_V = torch.tensor([0.75, 0.25])
        >>> entropy_derivative(probability_V, torch.tensor([-1.0, 1.0]))  # log 0.75 − log 0.25 = log 3
        tensor(1.0986, dtype=torch.float64)
    """
    probability_V = _checked_distribution(probability_V)
    fix = "Pass a change of probabilities, such as `natural_gradient_direction` returns."
    checks.require_tensor("direction_V", direction_V, 1, checks.FLOAT_DTYPES, fix)
    checks.require_shape("direction_V", direction_V, tuple(probability_V.shape), probability_V.device, fix)
    total = float(direction_V.detach().double().sum())
    if not abs(total) <= 1e-6 * (1 + float(direction_V.detach().double().abs().sum())):
        raise checks.invalid("direction_V", f"values that sum to {total:g}", "finite values that sum to 0", fix)
    return -(direction_V.double() * probability_V.log()).sum()


def _checked_tree(logits: Mapping[tuple[int, ...], Tensor | Sequence[float]]) -> dict[tuple[int, ...], Tensor]:
    if not isinstance(logits, Mapping) or () not in logits:
        raise checks.invalid("logits", checks.describe(logits), "a mapping that holds the root, ()", _TREE_FIX)
    choices: dict[tuple[int, ...], Tensor] = {}
    for node, value in logits.items():
        logit_V = torch.as_tensor(value, dtype=torch.float64)
        if logit_V.dim() != 1 or not len(logit_V) or not bool(logit_V.isfinite().all()):
            got = f"{checks.describe(value)} at node {node}"
            raise checks.invalid("logits", got, "one finite logit an action", "Leave leaves out of the mapping.")
        choices[node] = logit_V
    for node in choices:
        if node and (node[:-1] not in choices or not 0 <= node[-1] < len(choices[node[:-1]])):
            raise checks.invalid("logits", f"node {node}", "a node that its parent's actions lead to", _TREE_FIX)
    return choices


def _checked_distribution(probability_V: Tensor) -> Tensor:
    fix = "Pass probabilities, not logits: the softmax of them."
    checks.require_tensor("probability_V", probability_V, 1, checks.FLOAT_DTYPES, fix)
    total = float(probability_V.detach().double().sum())
    # What float32 can do to a sum of 1; half precision would not be exact.
    if not abs(total - 1) <= 1e-6 or not bool((probability_V > 0).all()):
        got = f"{checks.describe(probability_V)}, with sum {total:g}"
        raise checks.invalid("probability_V", got, "values above 0 that sum to 1", fix)
    return probability_V.double()


def _checked_update(probability_V: Tensor, action: int, advantage: float) -> tuple[Tensor, Tensor, float]:
    """π, e_a and A."""
    probability_V = _checked_distribution(probability_V)
    actions = len(probability_V)
    number = -1
    if isinstance(action, SupportsIndex) and not isinstance(action, bool | Tensor):
        number = operator.index(action)
    if not 0 <= number < actions:
        fix = f"`probability_V` has {actions} actions; count them from 0."
        raise checks.invalid("action", checks.describe(action), f"an integer in [0, {actions})", fix)
    finite = isinstance(advantage, numbers.Real) and not isinstance(advantage, bool) and math.isfinite(advantage)
    if not finite:
        raise checks.invalid("advantage", checks.describe(advantage), "a finite number", "Pass one advantage.")
    indicator_V = torch.zeros_like(probability_V)
    indicator_V[number] = 1.0
    return probability_V, indicator_V, float(advantage)
