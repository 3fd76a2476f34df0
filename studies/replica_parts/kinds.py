"""The values of α on each kind of turn, and AEM reduced to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

import torch

from aem_core import AemStats
from recipe.aem.seam.advantage import Computed
from replica_parts.rollout import Row


class Response(NamedTuple):
    """One response: its turn's kind, H̄ in nats per token, α, and the base's advantage."""

    kind: str
    entropy: float
    alpha: float
    advantage: float


def responses(rows: Sequence[Row], computed: Computed) -> list[Response]:
    """Return the responses of a batch whose advantage is not 0; each row is one response here."""
    assert isinstance(computed.stats, AemStats)
    row_N = computed.batch.live.responses.row_N.tolist()
    values = zip(
        row_N,
        computed.stats.entropy_N.tolist(),
        computed.stats.alpha_N.tolist(),
        computed.base_BT[computed.batch.live.responses.row_N, 0].tolist(),
        strict=True,
    )
    return [
        Response(rows[row].extra["turn_kinds"][0], entropy, alpha, advantage)
        for row, entropy, alpha, advantage in values
        if advantage != 0
    ]


def of_the_kind(rows: Sequence[Row], computed: Computed) -> AemStats:
    """Return the statistics with each α replaced by its mean over the group's responses of the same kind of turn.

    This is the complement of `algorithm.aem.relative_to=turn_kind`: it removes what α says of the rollout and keeps
    what it says of the kind of turn. A group's mean stays 1.
    """
    assert isinstance(computed.stats, AemStats)
    of = [(rows[row].group, rows[row].extra["turn_kinds"][0]) for row in computed.batch.live.responses.row_N.tolist()]
    together: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, name in enumerate(of):
        together[name].append(number)
    alpha_N = torch.empty_like(computed.stats.alpha_N)
    for numbers in together.values():
        alpha_N[numbers] = computed.stats.alpha_N[numbers].mean()
    return replace(computed.stats, alpha_N=alpha_N)


def by_kind(seen: Sequence[Response]) -> dict[str, float]:
    """Return means of entropy and α and the share of responses, for each kind and each sign of the advantage."""
    parts = {f"kind {kind}": [one for one in seen if one.kind == kind] for kind in sorted({one.kind for one in seen})}
    parts |= {"A > 0": [one for one in seen if one.advantage > 0], "A < 0": [one for one in seen if one.advantage < 0]}
    found = {}
    for name, of in parts.items():
        if of:
            found |= {
                f"share, {name}": len(of) / len(seen),
                f"entropy, {name}": fmean(one.entropy for one in of),
                f"alpha, {name}": fmean(one.alpha for one in of),
                f"advantage, {name}": fmean(one.advantage for one in of),
            }
    return found
