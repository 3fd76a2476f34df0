"""The drift law against finite steps of tree policies in their tokens' logits."""

from __future__ import annotations

import math
import random

import torch

from aem_core.drift import entropy_drift
from mechanism_parts.exact import TreePolicy
from mechanism_parts.policies import TREES, Tree, TreeMaker
from mechanism_parts.tables import Row, share

STEPS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
F64 = torch.float64


def drift_rows(policies: int) -> list[Row]:
    """Tabulate the error of A (S − H) by step size, which is the largest change of a logit.

    Each policy has one sampled response and one sign of the advantage. The error is that of the slope (ΔH)/η.
    """
    rows: list[Row] = []
    for name, make in TREES:
        cases = [_case(name, make, seed) for seed in range(policies)]
        for size in STEPS:
            errors = [abs(_slope(*case, size) - _predicted(*case)) for case in cases]
            typical = sum(abs(_predicted(*case)) for case in cases) / len(cases)
            row: Row = {"family": name, "step": f"{size:g}", "policies": policies}
            rows.append(
                row | {"error_mean": sum(errors) / len(errors), "error_max": max(errors), "drift_mean": typical}
            )
    return rows


def plain_gradient_rows(policies: int) -> list[Row]:
    """Tabulate how often a small plain-gradient step in the logits moves the entropy against the law's direction."""
    rows: list[Row] = []
    for name, make in TREES:
        cases = [_case(name, make, seed) for seed in range(policies)]
        wrong = [_slope(*case, 1e-5, natural=False) * _predicted(*case) < 0 for case in cases]
        rows.append({"family": name, "policies": policies} | share(wrong, "other_sign"))
    return rows


def _case(name: str, make: TreeMaker, seed: int) -> tuple[Tree, tuple[int, ...], float]:
    rng = random.Random(f"drift {name} {seed}")
    tree = make(rng, 1.0)
    policy = TreePolicy(tree)
    leaf = rng.choices(policy.leaves, weights=policy.probability_W.tolist())[0]
    return tree, leaf, rng.choice((-1.0, 1.0))


def _predicted(tree: Tree, leaf: tuple[int, ...], advantage: float) -> float:
    policy = TreePolicy(tree)
    surprisal = policy.surprisal_W[policy.leaves.index(leaf)]
    one = torch.tensor([advantage], dtype=F64)
    return float(entropy_drift(one, surprisal.reshape(1), policy.entropy.reshape(1)))


def direction(tree: Tree, leaf: tuple[int, ...], advantage: float, natural: bool = True) -> Tree:
    """Return the change of every logit per unit of step.

    Plain: A (e_a − π) at each choice on the response's path, 0 elsewhere. The Fisher matrix of a tree has one block
    per choice, P(choice) (diag π − π πᵀ), so that the natural gradient is A e_a / P(choice and a), up to a constant
    at each choice, which moves nothing.
    """
    moved = {node: [0.0] * len(logits) for node, logits in tree.items()}
    reached = 1.0
    for depth, action in enumerate(leaf):
        node = leaf[:depth]
        probability_V = torch.softmax(torch.tensor(tree[node], dtype=F64), 0).tolist()
        reached *= probability_V[action]
        if natural:
            moved[node][action] = advantage / reached
        else:
            moved[node] = [advantage * ((other == action) - p) for other, p in enumerate(probability_V)]
    return moved


def _slope(tree: Tree, leaf: tuple[int, ...], advantage: float, size: float, natural: bool = True) -> float:
    """Return (H after − H before) / η of one step whose largest change of a logit is `size`."""
    moved = direction(tree, leaf, advantage, natural)
    step = size / max(math.fabs(value) for values in moved.values() for value in values)
    after = {node: [z + step * d for z, d in zip(tree[node], moved[node], strict=True)] for node in tree}
    return float(TreePolicy(after).entropy - TreePolicy(tree).entropy) / step
