"""The table of docs/methods_compared.md: a row a method of studies/methods.yaml."""

from __future__ import annotations

from collections.abc import Sequence

from evidence_parts.runs import PRIMARY, Run, difference, interval, values
from recipe.aem.tools.statistics import Estimate

BENCHMARK, BASELINE = "shop", "grpo"
OTHER_ENTROPY = {"drgrpo", "grpopp", "aem_grpopp"}
"""Methods whose `actor/entropy` is not per token: verl aggregates it as the loss, here a sum over a fixed length."""
HEAD = (
    *("method", "seeds", "before, %", "after, %", "mean level, %", "− GRPO, points"),
    *("entropy at the end, nats", "s a step", "own share"),
)


def compared(found: Sequence[Run], methods: Sequence[str], seeds: Sequence[int]) -> str:
    """Tabulate the methods that have a run, in the study's order, and list the cells that are still to be run."""
    if not found:
        return "No cell has been run yet."
    rows = [_cells(found, method) for method in methods if values(found, BENCHMARK, method, PRIMARY)]
    lines = [_row(HEAD), _row(["---"] + ["---:"] * (len(HEAD) - 1)), *map(_row, rows)]
    lacking = {
        method: len(seeds) - len(values(found, BENCHMARK, method, PRIMARY).keys() & set(seeds)) for method in methods
    }
    todo = [f"`{method}` ({count} of {len(seeds)} seeds)" for method, count in lacking.items() if count]
    if not todo:
        said = f"All methods have run with all {len(seeds)} seeds."
    elif len(set(lacking.values())) == 1:
        said = f"All methods have run with {len(seeds) - max(lacking.values())} of {len(seeds)} seeds so far."
    else:
        said = f"Not run yet: {', '.join(todo)}."
    return "\n".join([*lines, "", said])


def _cells(found: Sequence[Run], method: str) -> list[str]:
    levels = values(found, BENCHMARK, method, PRIMARY)
    of = {
        name: interval(found, BENCHMARK, method, name)
        for name in ("before", "after", PRIMARY, "entropy, last third", "seconds", "method's share of step")
    }
    gain = None if method == BASELINE else difference(levels, values(found, BENCHMARK, BASELINE, PRIMARY))
    return [
        f"`{method}`",
        str(len(levels)),
        _mean(of["before"], ".0%"),
        _mean(of["after"], ".0%"),
        _mean(of[PRIMARY], ".1%"),
        "" if gain is None else _points(gain.estimate),
        "–" if method in OTHER_ENTROPY else _mean(of["entropy, last third"], ".2f"),
        _mean(of["seconds"], ".1f"),
        _mean(of["method's share of step"], ".2%") or "–",
    ]


def _mean(of: Estimate | None, form: str) -> str:
    return "" if of is None else format(of.mean, form).removesuffix("%") + (" %" if form == ".2%" else "")


def _points(of: Estimate) -> str:
    said = f"{100 * of.mean:+.1f}"
    if of.low is not None and of.high is not None:
        said += f" ({100 * of.low:+.1f} to {100 * of.high:+.1f})"
    return said.replace("-", "−")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
