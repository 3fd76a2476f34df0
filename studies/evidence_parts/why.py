"""The tables of update directions, as Markdown, from the lines of studies/gradients.py."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from statistics import fmean

from gradients import Line

from evidence_parts.tables import BASELINE, NAMES
from recipe.aem.tools.statistics import mean_interval, paired_difference

KIND = "share, kind "
SEEN = 0.05
"""The largest share of a kind that the table leaves out; a model that errs has a kind for every wrong word."""


def gains(lines: Sequence[Line]) -> str:
    """Tabulate each method's gain next to GRPO's, summed over a run's policies."""
    out = [
        "| task | runs | method | cosine with GRPO's | gain, % of GRPO's | with Adam's scaling |",
        "|---|---|---|---|---|---|",
    ]
    for benchmark, of in _benchmarks(lines):
        steps = {line.step for line in of}
        for method in _methods(of):
            cosines = [line.value for line in of if (line.method, line.measure) == (method, "cosine")]
            cells = [_relative(of, method, suffix, steps) for suffix in ("", " adam")]
            runs = len(_by_run(of, BASELINE, "gain", steps))
            cosine = f"{fmean(cosines):.2f}"
            out.append(f"| {benchmark} | {runs} | {NAMES[method]} | {cosine} | {' | '.join(cells)} |")
    return "\n".join(out)


def steps(lines: Sequence[Line]) -> str:
    """Tabulate the same gains by step."""
    columns = sorted({line.step for line in lines})
    out = _head("method", columns)
    for benchmark, of in _benchmarks(lines):
        for method in _methods(of):
            cells = [_relative(of, method, "", {step}) for step in columns]
            out.append(f"| {benchmark} | {NAMES[method]} | {' | '.join(cells)} |")
    return "\n".join(out)


def _relative(lines: Sequence[Line], method: str, suffix: str, at: Collection[int]) -> str:
    """Return 100 Σ gain / Σ GRPO's gain with the t interval of the runs' differences; for GRPO, of its own gain."""
    base, own = (_by_run(lines, name, f"gain{suffix}", at) for name in (BASELINE, method))
    level, apart = mean_interval(list(base.values())), paired_difference(own, base)
    if level is None or apart is None:
        return ""
    of = level if method == BASELINE else apart
    share = f"{100 * (1 + apart.mean / level.mean):.0f}"
    if of.low is None or of.high is None:
        return share
    half = f"± {50 * (of.high - of.low) / abs(level.mean):.0f}"
    return f"{share} ({half})" if method == BASELINE else f"{share} {half}"


def _by_run(lines: Sequence[Line], method: str, measure: str, at: Collection[int]) -> dict[int, float]:
    """Return by seed the sum over these steps, for each run that was measured at all of them."""
    of = {(line.seed, line.step): line.value for line in lines if (line.method, line.measure) == (method, measure)}
    seeds = sorted({seed for seed, _ in of})
    return {seed: sum(of[seed, step] for step in at) for seed in seeds if all((seed, step) in of for step in at)}


def kinds(lines: Sequence[Line]) -> str:
    """Tabulate entropy and α of each kind of turn over all runs, one column per step."""
    columns = sorted({line.step for line in lines})
    out = _head("turn", columns)
    for benchmark, of in _benchmarks(lines):
        found = {(line.seed, line.step, line.measure): line.value for line in of}
        policies = {(seed, step) for seed, step, name in found if name.startswith("share, ")}
        names = sorted({name.removeprefix(KIND) for _, _, name in found if name.startswith(KIND)})
        rows = {}
        for name in [*(f"kind {name}" for name in names), "A > 0", "A < 0"]:
            rows[name] = []
            for step in columns:
                seeds = [seed for seed, at in policies if at == step]
                share = {seed: found.get((seed, step, f"share, {name}"), 0.0) for seed in seeds}
                means = [
                    sum(share[seed] * found[seed, step, f"{what}, {name}"] for seed in seeds if share[seed])
                    / (sum(share.values()) or 1.0)
                    for what in ("entropy", "alpha")
                ]
                rows[name].append((fmean(share.values()) if share else 0.0, *means))
        for name, cells in rows.items():
            if max(share for share, _, _ in cells) > SEEN:
                said = [f"{share:.0%}: {entropy:.2f}, {alpha:.2f}" if share else "" for share, entropy, alpha in cells]
                out.append(f"| {benchmark} | {name.removeprefix('kind ')} | {' | '.join(said)} |")
    return "\n".join(out)


def _head(second: str, steps: Sequence[int]) -> list[str]:
    columns = " | ".join(f"step {step}" for step in steps)
    return [f"| task | {second} | {columns} |", "|---|---|" + "---|" * len(steps)]


def _methods(lines: Sequence[Line]) -> list[str]:
    there = {line.method for line in lines if line.measure == "cosine"}
    return [method for method in NAMES if method in there]


def _benchmarks(lines: Sequence[Line]) -> list[tuple[str, list[Line]]]:
    names = dict.fromkeys(line.benchmark for line in lines)
    return [(name, [line for line in lines if line.benchmark == name]) for name in names]
