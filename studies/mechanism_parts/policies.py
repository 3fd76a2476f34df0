"""Families of explicit policies, and groups of 64 responses sampled from them, with everything known exactly.

A family is a rule for random trees. In single-state families all 64 responses answer the same state. In families of
turns they are 8 trajectories of 8 turns, each turn in a different state, and the turn's index is its kind.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mechanism_parts.exact import TreePolicy

Tree = dict[tuple[int, ...], list[float]]
TreeMaker = Callable[[random.Random, float], Tree]

RESPONSES, TRAJECTORIES = 64, 8
ACTIONS = 3
DRAWS = (8, 64)  # draws per state of the Monte-Carlo estimates of H_resp


@dataclass(frozen=True)
class Family:
    """A rule for random policies.

    Attributes:
        name: as shown in the tables.
        tree: maps a generator and the spread of the turn's kind to a tree's logits.
        length: number of iid tokens after the first action (`LongPolicy`), instead of a tree.
        turns: whether the group is 8 × 8 turns, each in its own state, instead of 64 responses to one state.
        kind_spread: standard deviation over the kinds of the log of their logit scale.
    """

    name: str
    tree: TreeMaker | None = None
    length: int = 0
    turns: bool = False
    kind_spread: float = 0.0


@dataclass(frozen=True)
class Group:
    """64 responses. `estimate_N` maps the number of draws to a Monte-Carlo estimate of `expected_N`.

    Attributes:
        mean_entropy_N, entropy_sum_N: H̄ and Σh of each response, nats.
        surprisal_N, expected_N: S, and H_resp of its state, nats.
        kind_N, trajectory_N: int64 labels.
        leading: whether H_resp − S rises with −H̄ over all responses of the first state (exact covariance above 0);
            None where either is constant there.
    """

    mean_entropy_N: Tensor
    entropy_sum_N: Tensor
    surprisal_N: Tensor
    expected_N: Tensor
    estimate_N: dict[int, Tensor]
    kind_N: Tensor
    trajectory_N: Tensor
    leading: bool | None


def independent(rng: random.Random, spread: float, depth: int = 3, stop: float = 0.0) -> Tree:
    """Return independent N(0, spread²) logits; below the root, a node ends the response with probability `stop`."""
    tree: Tree = {(): [rng.gauss(0, spread) for _ in range(ACTIONS)]}
    for length in range(1, depth):
        for node in itertools.product(range(ACTIONS), repeat=length):
            if node[:-1] in tree and rng.random() >= stop:
                tree[node] = [rng.gauss(0, spread) for _ in range(ACTIONS)]
    return tree


def ragged(rng: random.Random, spread: float) -> Tree:
    """Return independent logits, with responses of one to four actions."""
    return independent(rng, spread, depth=4, stop=0.3)


def branching(rng: random.Random, spread: float, depth: int = 3, stop: float = 0.0) -> Tree:
    """Return logits whose spread after the first action depends on that action: scaled by exp(N(0, 1))."""
    tree: Tree = {(): [rng.gauss(0, spread) for _ in range(ACTIONS)]}
    for branch in range(ACTIONS):
        scale = spread * math.exp(rng.gauss(0, 1))
        for length in range(depth - 1):
            for rest in itertools.product(range(ACTIONS), repeat=length):
                node = (branch, *rest)
                if node[:-1] in tree and (length == 0 or rng.random() >= stop):
                    tree[node] = [rng.gauss(0, scale) for _ in range(ACTIONS)]
    return tree


def branching_ragged(rng: random.Random, spread: float) -> Tree:
    """Return logits as `branching` does, with responses of two to four actions."""
    return branching(rng, spread, depth=4, stop=0.3)


FAMILIES = (
    Family("independent", independent),
    Family("branching", branching),
    Family("ragged", ragged),
    Family("branching_ragged", branching_ragged),
    Family("turns_independent", independent, turns=True),
    Family("turns_branching", branching, turns=True),
    Family("kinds_independent", independent, turns=True, kind_spread=1.0),
    Family("kinds_branching", branching, turns=True, kind_spread=1.0),
    *(Family(f"long_{length}", length=length) for length in (4, 16, 64, 256)),
    Family("turns_long_64", length=64, turns=True),
    Family("kinds_long_64", length=64, turns=True, kind_spread=1.0),
)
# name and rule of the single-state families that are trees
TREES = tuple((one.name, one.tree) for one in FAMILIES if one.tree is not None and not one.turns)
RAGGED = ("ragged", "branching_ragged")  # the families in which mean and sum of the entropies are not equivalent


class LongPolicy:
    """A policy whose first action decides the distribution of `length` independent tokens: confused or sure.

    Args:
        rng: for its logits: N(0, spread²) for the first action, N(0, scale²) after it with
            scale = spread exp(N(0, 1)).
        spread: of the turn's kind.
        length: n.
    """

    def __init__(self, rng: random.Random, spread: float, length: int) -> None:
        self.length = length
        self.first_A = _log_softmax([rng.gauss(0, spread) for _ in range(ACTIONS)])
        scales = [spread * math.exp(rng.gauss(0, 1)) for _ in range(ACTIONS)]
        self.token_AV = torch.stack([_log_softmax([rng.gauss(0, scale) for _ in range(ACTIONS)]) for scale in scales])
        first = -(self.first_A.exp() * self.first_A).sum()
        tail_A = -(self.token_AV.exp() * self.token_AV).sum(1)
        self.entropy_sum_A = first + length * tail_A
        self.expected_A = -self.first_A + length * tail_A  # E S, given the first action
        self.entropy = (self.first_A.exp() * self.expected_A).sum()

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Sample responses; return their H̄, Σh and S."""
        first_N = torch.multinomial(self.first_A.exp(), count, replacement=True, generator=generator)
        # inverse transform sampling: torch.multinomial is slow for many rows
        uniform_NT = torch.rand(count, self.length, generator=generator, dtype=torch.float64)
        below_NV = self.token_AV.exp().cumsum(1)[first_N, :-1].contiguous()
        token_NT = torch.searchsorted(below_NV, uniform_NT)
        surprisal_N = -self.first_A[first_N] - self.token_AV[first_N].gather(1, token_NT).sum(1)
        entropy_sum_N = self.entropy_sum_A[first_N]
        return entropy_sum_N / (1 + self.length), entropy_sum_N, surprisal_N

    def covariance(self) -> float:
        """Return the covariance of H̄ and S; given the first action H̄ is constant."""
        probability_A = self.first_A.exp()
        mean = (probability_A * self.entropy_sum_A).sum()
        return float((probability_A * (self.entropy_sum_A - mean) * self.expected_A).sum()) / (1 + self.length)


class ShortPolicy:
    """A tree policy with the same methods."""

    def __init__(self, tree: Tree) -> None:
        self.policy = TreePolicy(tree)
        self.entropy = self.policy.entropy

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Sample responses; return their H̄, Σh and S."""
        leaf_N = torch.multinomial(self.policy.probability_W, count, replacement=True, generator=generator)
        policy = self.policy
        return policy.mean_entropy_W[leaf_N], policy.entropy_sum_W[leaf_N], policy.surprisal_W[leaf_N]

    def covariance(self) -> float:
        """Return the covariance of H̄ and S."""
        return float(self.policy.covariance(self.policy.mean_entropy_W, self.policy.surprisal_W))


def sample_group(family: Family, seed: int) -> Group:
    """Sample random policies of a family and 64 responses from them; the same seed gives the same group."""
    rng = random.Random(f"{family.name} {seed}")
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    turns = RESPONSES // TRAJECTORIES
    spreads = [math.exp(rng.gauss(0, family.kind_spread)) if family.kind_spread else 1.0 for _ in range(turns)]
    index_N = torch.arange(RESPONSES)
    if family.turns:
        trajectory_N, kind_N = index_N // turns, index_N % turns
        policies = [_policy(family, rng, spreads[kind]) for kind in kind_N.tolist()]
        each = 1
    else:
        trajectory_N, kind_N = index_N, torch.zeros_like(index_N)
        policies = [_policy(family, rng, 1.0)]
        each = RESPONSES
    parts = [_draw(policy, each, generator) for policy in policies]
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    estimates: dict[int, Tensor] = dict(zip(DRAWS, columns[4:], strict=True))
    return Group(columns[0], columns[1], columns[2], columns[3], estimates, kind_N, trajectory_N, _leading(policies[0]))


def _policy(family: Family, rng: random.Random, spread: float) -> ShortPolicy | LongPolicy:
    if family.tree is None:
        return LongPolicy(rng, spread, family.length)
    return ShortPolicy(family.tree(rng, spread))


def _draw(policy: ShortPolicy | LongPolicy, responses: int, generator: torch.Generator) -> list[Tensor]:
    drawn = policy.draw(responses, generator)
    ones_N = torch.ones(responses, dtype=torch.float64)
    estimates = [ones_N * policy.draw(count, generator)[2].mean() for count in DRAWS]
    return [*drawn, ones_N * policy.entropy, *estimates]


def _leading(policy: ShortPolicy | LongPolicy) -> bool | None:
    covariance = policy.covariance()
    return covariance > 0 if abs(covariance) > 1e-12 else None


def _log_softmax(logits: list[float]) -> Tensor:
    return torch.log_softmax(torch.tensor(logits, dtype=torch.float64), 0)
