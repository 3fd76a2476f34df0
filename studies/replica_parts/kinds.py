"""What α is on each kind of turn, among the responses that a gradient hears of."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from aem_core import AemStats
from recipe.aem.advantage import Computed
from replica_parts.rollout import Row


class Response(NamedTuple):
    """One response: its turn's kind, H̄ in nats a token, α, and the base's advantage."""

    kind: str
    entropy: float
    alpha: float
    advantage: float


def responses(rows: Sequence[Row], computed: Computed) -> list[Response]:
    """Those of a batch whose advantage is not 0; a row is a response here."""
    assert isinstance(computed.stats, AemStats)
    row_N = computed.responses.row_N.tolist()
    values = zip(
        row_N,
        computed.stats.entropy_N.tolist(),
        computed.stats.alpha_N.tolist(),
        computed.base_LT[computed.responses.row_N, 0].tolist(),
        strict=True,
    )
    return [
        Response(rows[row].extra["turn_kinds"][0], entropy, alpha, advantage)
        for row, entropy, alpha, advantage in values
        if advantage != 0
    ]


def by_kind(seen: Sequence[Response]) -> dict[str, float]:
    """Means of entropy and α and the share of responses, of each kind and of each sign of the advantage."""
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
