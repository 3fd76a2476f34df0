"""The page's tables, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import stdev

from evidence_parts.runs import PRIMARY, Difference, Run, apart, difference, holm, interval, values
from recipe.aem.tools.statistics import Estimate, mean_interval

BASELINE = "grpo"
WAYS = {
    "engine": "engine",
    "engine_second": "engine, second warm start",
    "replica": "replica",
    "replica_second": "replica, second warm start",
    "replica_many": "replica, a warm start a pair",
}
NAMES = {
    "grpo": "GRPO",
    "aem": "AEM",
    "aem_reversed": "AEM reversed",
    "aem_shuffled": "AEM shuffled",
    "aem_batch": "AEM, batch scope",
    "empg": "EMPG",
    "grpo_epo": "GRPO + EPO",
    "gigpo": "GiGPO",
    "aem_kind": "AEM within kinds of turn (exploratory)",
    "aem_anchor": "AEM within observations (exploratory)",
    "aem_of_kind": "AEM's mean α of each kind of turn (exploratory)",
}
CONTRASTS = (
    ("aem", "aem_shuffled"),
    ("aem", "aem_reversed"),
    ("aem", "aem_batch"),
    ("aem", "aem_kind"),
    ("aem", "aem_anchor"),
    ("aem", "aem_of_kind"),
    ("aem_kind", "aem_of_kind"),
)
COEFFICIENTS = ("alpha q05", "alpha q95", "guarded", "without variance", "between kinds", "between kinds by chance")
PUBLISHED = {
    "aem": "AEM paper, 1.5B over GRPO: WebShop +5.6, ALFWorld +8.8",
    "empg": "EMPG paper, 1.5B over GRPO: WebShop +2.6, ALFWorld +8.1",
    "grpo_epo": "EPO paper, 3B over GRPO: ALFWorld +12.5 converged (IID)",
    "gigpo": "GiGPO paper, 1.5B: ALFWorld 86.7, WebShop 67.4 (no base quoted here)",
}
Found = Sequence[Run]


def results(found: Found) -> str:
    """Tabulate each method's level and its difference from GRPO."""
    lines = [
        "| task | method | seeds | mean level, % | − GRPO, points | bootstrap | end, % | − GRPO, points |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for benchmark in _benchmarks(found):
        for method in NAMES:
            of = values(found, benchmark, method, PRIMARY)
            if not of:
                continue
            cells = [benchmark, NAMES[method], str(len(of)), _level(interval(found, benchmark, method, PRIMARY))]
            main, end = (_from_baseline(found, benchmark, method, measure) for measure in (PRIMARY, "end"))
            cells += [_points(main), _bootstrap(main), _level(interval(found, benchmark, method, "end")), _points(end)]
            lines.append(_row(cells))
    return "\n".join(lines)


def main_comparison(found: Found, pairs: int) -> str:
    """Tabulate AEM against GRPO, Holm-corrected over the tasks; a verdict where all the protocol's pairs exist."""
    of = {one: _from_baseline(found, one, "aem", PRIMARY) for one in _benchmarks(found)}
    tested = {name: one for name, one in of.items() if one is not None and one.p is not None}
    adjusted = dict(zip(tested, holm([one.p or 0.0 for one in tested.values()]), strict=True))
    lines = [
        "| task | pairs | AEM lower in | AEM − GRPO, mean level, points | p | p, Holm | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in of.items():
        base, aem = (values(found, name, method, PRIMARY) for method in (BASELINE, "aem"))
        shared = aem.keys() & base.keys()
        cells = [name, str(len(shared)), str(sum(aem[seed] < base[seed] for seed in shared)), _points(one)]
        cells += [f"{tested[name].p:.2f}", f"{adjusted[name]:.2f}"] if name in tested else ["", ""]
        lines.append(_row([*cells, verdict(one) if one and len(shared) >= pairs else "not finished"]))
    return "\n".join(lines)


def verdict(one: Difference) -> str:
    """Return the verdict in the protocol's words."""
    of = one.estimate
    if of.low is None or of.high is None or of.low <= 0 <= of.high:
        return "no difference shown"
    return "AEM better" if of.low > 0 else "AEM worse"


def contrasts(found: Found) -> str:
    """Tabulate α against its alternatives."""
    lines = ["| task | | pairs | mean level, points | bootstrap |", "|---|---|---|---|---|"]
    for benchmark in _benchmarks(found):
        for first, second in CONTRASTS:
            one = difference(*(values(found, benchmark, name, PRIMARY) for name in (first, second)))
            if one is not None:
                label = f"{NAMES[first]} − {NAMES[second]}"
                lines.append(_row([benchmark, label, str(one.estimate.n), _points(one), _bootstrap(one)]))
    return "\n".join(lines)


def agreement(first: Found, second: Found) -> str:
    """Tabulate whether runs of two origins learn alike: the level and the difference from GRPO, first − second."""
    lines = [
        "| task | method | runs | mean level, points | − GRPO, points |",
        "|---|---|---|---|---|",
    ]
    for benchmark in _benchmarks(first):
        for method in NAMES:
            levels = [values(of, benchmark, method, PRIMARY) for of in (first, second)]
            bases = [values(of, benchmark, BASELINE, PRIMARY) for of in (first, second)]
            gains = [
                [level[seed] - base[seed] for seed in level.keys() & base.keys()]
                for level, base in zip(levels, bases, strict=True)
            ]
            level, gain = apart(*(list(of.values()) for of in levels)), apart(*gains)
            if level is not None:
                counts = " and ".join(str(len(of)) for of in levels)
                said = _signed(gain, 100, 1) if gain is not None and method != BASELINE else ""
                lines.append(_row([benchmark, NAMES[method], counts, _signed(level, 100, 1), said]))
    return "\n".join(lines)


def together(first: Found, second: Found) -> str:
    """Tabulate AEM − GRPO over the pooled pairs of two origins; not in the protocol."""
    lines = ["| task | pairs | AEM lower in | AEM − GRPO, mean level, points |", "|---|---|---|---|"]
    for benchmark in _benchmarks(first):
        levels = [[values(of, benchmark, method, PRIMARY) for method in (BASELINE, "aem")] for of in (first, second)]
        gains = [aem[seed] - base[seed] for base, aem in levels for seed in aem.keys() & base.keys()]
        if (of := mean_interval(gains)) is not None:
            lower = sum(gain < 0 for gain in gains)
            lines.append(_row([benchmark, str(of.n), str(lower), _signed(of, 100, 1)]))
    return "\n".join(lines)


def spread(ways: Mapping[str, Found]) -> str:
    """Tabulate the standard deviation between equal runs, and between their differences from GRPO."""
    lines = ["| task | | method | runs | mean level, SD | − GRPO, SD |", "|---|---|---|---|---|---|"]
    for benchmark in _all_benchmarks(ways):
        for way, found in ways.items():
            base = values(found, benchmark, BASELINE, PRIMARY)
            for method in (BASELINE, "aem"):
                of = values(found, benchmark, method, PRIMARY)
                gains = [of[seed] - base[seed] for seed in of.keys() & base.keys()] if method != BASELINE else []
                if of:
                    levels = list(of.values())
                    lines.append(
                        _row([benchmark, WAYS[way], NAMES[method], str(len(of)), _deviation(levels), _deviation(gains)])
                    )
    return "\n".join(lines)


def entropy(found: Found) -> str:
    """Tabulate the policy's entropy early and late, as a difference from GRPO's, nats per token."""
    lines = [
        "| task | method | first third | − GRPO | last third | − GRPO |",
        "|---|---|---|---|---|---|",
    ]
    for benchmark in _benchmarks(found):
        for method in NAMES:
            if not values(found, benchmark, method, PRIMARY):
                continue
            cells = [benchmark, NAMES[method]]
            for measure in ("entropy, first third", "entropy, last third"):
                level = interval(found, benchmark, method, measure)
                cells += [
                    f"{level.mean:.3f}" if level else "",
                    _nats(_from_baseline(found, benchmark, method, measure)),
                ]
            lines.append(_row(cells))
    return "\n".join(lines)


def coefficients(found: Found) -> str:
    """Tabulate α, how often there was something to modulate, and how much of α the kind of turn explains."""
    lines = [
        "| task | method | α, 5 % | α, 95 % | groups guarded | without variance | α between kinds (by chance) |",
        "|---|---|---|---|---|---|---|",
    ]
    for benchmark in _benchmarks(found):
        for method in NAMES:
            of = {name: interval(found, benchmark, method, name) for name in COEFFICIENTS}
            low, high = of["alpha q05"], of["alpha q95"]
            if low is None or high is None:
                continue
            shares = [f"{one.mean:.0%}" if one else "" for one in list(of.values())[2:]]
            kinds = f"{shares[2]} ({shares[3]})" if shares[2] else ""
            lines.append(_row([benchmark, NAMES[method], f"{low.mean:.2f}", f"{high.mean:.2f}", *shares[:2], kinds]))
    return "\n".join(lines)


def overview(ways: Mapping[str, Found]) -> str:
    """Tabulate AEM against GRPO wherever both ran."""
    lines = [
        "| task | | pairs | GRPO's mean level, % | AEM − GRPO, points | of the end, points |",
        "|---|---|---|---|---|---|",
    ]
    for benchmark in _all_benchmarks(ways):
        for way, found in ways.items():
            main, end = (_from_baseline(found, benchmark, "aem", measure) for measure in (PRIMARY, "end"))
            if main is not None:
                base = _level(interval(found, benchmark, BASELINE, PRIMARY))
                lines.append(_row([benchmark, WAYS[way], str(main.estimate.n), base, _points(main), _points(end)]))
    return "\n".join(lines)


def published(ways: Mapping[str, Found]) -> str:
    """Tabulate differences of the last level next to what papers report."""
    benchmarks = _all_benchmarks(ways)
    lines = ["| method | published gain in final success, points | | " + " | ".join(benchmarks) + " |"]
    lines.append("|" + "---|" * (3 + len(benchmarks)))
    for method, words in PUBLISHED.items():
        label = [NAMES[method], words]
        for way, found in ways.items():
            cells = [_points(_from_baseline(found, one, method, "end")) for one in benchmarks]
            if any(cells):
                lines.append(_row([*label, WAYS[way], *cells]))
                label = ["", ""]
    return "\n".join(lines)


def overhead(found: Found) -> str:
    """Tabulate AEM's own share of a step."""
    parts = []
    for benchmark in _benchmarks(found):
        one = interval(found, benchmark, "aem", "share of step")
        if one is not None:
            parts.append(f"{benchmark} {one.mean:.2%} ({one.n} run{'s' * (one.n > 1)})")
    return "AEM's own share of a step: " + (", ".join(parts) or "no run yet") + "; the paper's: 1.1 %."


def missing(found: Found, benchmarks: Sequence[str], wanted: Mapping[str, int]) -> str:
    """List what the protocol asks for and the runs lack."""
    lacking = []
    for benchmark in benchmarks:
        for method, seeds in wanted.items():
            there = len(values(found, benchmark, method, PRIMARY))
            if there < seeds:
                lacking.append(f"{benchmark}/{NAMES[method]}: {there} of {seeds}")
    return "Not run yet: " + "; ".join(lacking) + "." if lacking else "Nothing is missing."


def _benchmarks(found: Found) -> list[str]:
    return list(dict.fromkeys(run.benchmark for run in found))


def _all_benchmarks(ways: Mapping[str, Found]) -> list[str]:
    return list(dict.fromkeys(name for found in ways.values() for name in _benchmarks(found)))


def _from_baseline(found: Found, benchmark: str, method: str, measure: str) -> Difference | None:
    if method == BASELINE:
        return None
    return difference(*(values(found, benchmark, name, measure) for name in (method, BASELINE)))


def _level(one: Estimate | None) -> str:
    if one is None:
        return ""
    if one.low is None or one.high is None:
        return f"{100 * one.mean:.1f}"
    return f"{100 * one.mean:.1f} ± {50 * (one.high - one.low):.1f}"


def _deviation(of: Sequence[float]) -> str:
    return f"{100 * stdev(of):.1f}" if len(of) > 1 else ""


def _points(one: Difference | None) -> str:
    return "" if one is None else _signed(one.estimate, 100, 1)


def _nats(one: Difference | None) -> str:
    return "" if one is None else _signed(one.estimate, 1, 3)


def _signed(of: Estimate, scale: float, digits: int) -> str:
    if of.low is None or of.high is None:
        return _minus(f"{scale * of.mean:+.{digits}f}")
    return _minus(f"{scale * of.mean:+.{digits}f} ({scale * of.low:+.{digits}f} to {scale * of.high:+.{digits}f})")


def _bootstrap(one: Difference | None) -> str:
    if one is None or one.bootstrap is None:
        return ""
    return _minus(f"{100 * one.bootstrap[0]:+.1f} to {100 * one.bootstrap[1]:+.1f}")


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
