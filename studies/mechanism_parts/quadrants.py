"""The four quadrants of (A, α − 1): the direction in which each moves the entropy, by the law, as sampled."""

from __future__ import annotations

import torch
from torch import Tensor

from aem_core import entropy_drift, grpo_advantages
from mechanism_parts.correlation import Groups, alpha_of, relative
from mechanism_parts.policies import Group
from mechanism_parts.tables import Row, interval, share

# docs/theory.md 6.3: the sign of the response's own drift, and of its drift against the base's; the names are those of
# the metrics `aem/quadrant/…`
CLAIMED = {
    "good_certain": (-1, -1),
    "good_uncertain": (+1, -1),
    "bad_certain": (+1, +1),
    "bad_uncertain": (-1, +1),
}


def sign_quadrants(advantage_N: Tensor, alpha_N: Tensor) -> Tensor:
    """Return each response's index in `CLAIMED`: good means A > 0, certain α > 1; −1 where A = 0 or α = 1.

    Examples:
        >>> sign_quadrants(torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0]), torch.tensor([1.5, 0.5, 1.5, 0.5, 1.5]))
        tensor([ 0,  1,  2,  3, -1])
    """
    code_N = 2 * (advantage_N < 0).long() + (alpha_N < 1).long()
    return code_N.masked_fill((advantage_N == 0) | (alpha_N == 1), -1)


def quadrant_rows(groups: Groups) -> list[Row]:
    """Tabulate by family and quadrant the share of responses with the claimed signs, and the summed drift.

    A trajectory succeeds with probability ½, independent of its actions; the advantages are GRPO's.
    """
    rows: list[Row] = []
    for family, sampled in groups.items():
        parts = [_measured(group, seed) for seed, group in enumerate(sampled)]
        for place, (quadrant, (own_sign, against_sign)) in enumerate(CLAIMED.items()):
            chosen = [(part, part[0] == place) for part in parts]
            chosen = [(part, in_N) for part, in_N in chosen if bool(in_N.any())]
            own = [own_sign * part[1][in_N] for part, in_N in chosen]
            against = [against_sign * part[2][in_N] for part, in_N in chosen]
            told = [part[3][in_N] for part, in_N in chosen]
            row: Row = {"family": family, "quadrant": quadrant, "groups": len(chosen)}
            row |= {"own": _sign(own_sign), "against_base": _sign(against_sign)}
            row |= interval([_part(value > 0) for value in own], "holds")
            row["own_if_told"] = _part(torch.cat(own)[torch.cat(told)] > 0)
            row["against_if_told"] = _part(torch.cat(against)[torch.cat(told)] > 0)
            row |= share([bool(value.sum() > 0) for value in own], "own_sum_holds")
            row |= share([bool(value.sum() > 0) for value in against], "against_sum_holds")
            row |= interval([own_sign * float(value.mean()) for value in own], "own_drift")
            rows.append(row | interval([against_sign * float(value.mean()) for value in against], "against_drift"))
    return rows


def _measured(group: Group, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return quadrant, drift under αA, that minus the base's, and whether α − 1 has the sign of H − S; guard at 0.1."""
    generator = torch.Generator().manual_seed(seed)
    trajectories = int(group.trajectory_N.max()) + 1
    won_I = torch.zeros(trajectories, dtype=torch.float64)
    while won_I.min() == won_I.max():  # a group of equal outcomes has no advantages
        won_I = torch.randint(2, (trajectories,), generator=generator).double()
    advantage_N = grpo_advantages(
        won_I[group.trajectory_N],
        torch.zeros_like(group.kind_N),
        over="trajectories",
        trajectory_N=group.trajectory_N,
    )
    alpha_N = alpha_of(group, min_range=0.1)
    own_N = entropy_drift(alpha_N * advantage_N, group.surprisal_N, group.expected_N)
    against_N = own_N - entropy_drift(advantage_N, group.surprisal_N, group.expected_N)
    told_N = (alpha_N - 1) * relative(group) > 0
    return sign_quadrants(advantage_N, alpha_N), own_N, against_N, told_N


def _part(hit_N: Tensor) -> float:
    return float(hit_N.double().mean())


def _sign(sign: int) -> str:
    return "raises" if sign > 0 else "lowers"
