"""The tables of where updates point, as Markdown, from the lines of studies/gradients.py."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from gradients import Line

from evidence_parts.tables import BASELINE, NAMES

KIND = "share, kind "
SEEN = 0.05
"""The largest share of a kind that the table leaves out; a model that errs has a kind for every wrong word."""


def gains(lines: Sequence[Line]) -> str:
    """Each method's gain beside GRPO's: the sum over the policies, and twice its standard error."""
    out = [
        "| task | method | cosine with GRPO's | gain, % of GRPO's | with Adam's scaling |",
        "|---|---|---|---|---|",
    ]
    for benchmark in _in_order(line.benchmark for line in lines):
        of = [line for line in lines if line.benchmark == benchmark]
        for method in NAMES:
            cosines = [line.value for line in of if (line.method, line.measure) == (method, "cosine")]
            if cosines:
                cells = [_relative(of, method, suffix) for suffix in ("", " adam")]
                cosine = f"{sum(cosines) / len(cosines):.2f}"
                out.append(f"| {benchmark} | {NAMES[method]} | {cosine} | {' | '.join(cells)} |")
    return "\n".join(out)


def _relative(lines: Sequence[Line], method: str, suffix: str) -> str:
    """100 Σ gain / Σ GRPO's gain; for GRPO itself, how well that is known."""
    base = _total(lines, BASELINE, f"gain{suffix}")
    if method == BASELINE:
        return f"100 (± {100 * 2 * base[1] / abs(base[0]):.0f})"
    apart = _total(lines, method, f"difference{suffix}")
    return f"{100 * (1 + apart[0] / base[0]):.0f} ± {100 * 2 * apart[1] / abs(base[0]):.0f}"


def _total(lines: Sequence[Line], method: str, measure: str) -> tuple[float, float]:
    of = [line for line in lines if (line.method, line.measure) == (method, measure)]
    return sum(line.value for line in of), math.sqrt(sum((line.error or 0.0) ** 2 for line in of))


def kinds(lines: Sequence[Line]) -> str:
    """Entropy and α of each kind of turn, a policy a pair of columns."""
    out = []
    for benchmark in _in_order(line.benchmark for line in lines):
        of = {(line.step, line.measure): line.value for line in lines if line.benchmark == benchmark}
        steps = sorted({step for step, _ in of})
        if not out:
            out.append("| task | turn | " + " | ".join(f"step {step}" for step in steps) + " |")
            out.append("|---|---|" + "---|" * len(steps))
        names = sorted(
            {name.removeprefix(KIND) for (_, name), share in of.items() if name.startswith(KIND) and share > SEEN}
        )
        for name in [*(f"kind {name}" for name in names), "A > 0", "A < 0"]:
            cells = []
            for step in steps:
                share, entropy, alpha = (of.get((step, f"{what}, {name}")) for what in ("share", "entropy", "alpha"))
                cells.append("" if share is None else f"{share:.0%}: {entropy:.2f}, {alpha:.2f}")
            out.append(f"| {benchmark} | {name.removeprefix('kind ')} | {' | '.join(cells)} |")
    return "\n".join(out)


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
