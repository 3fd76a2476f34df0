"""The tables and the map of docs/where_aem_helps.md, made from the committed CSVs of the second study alone.

    python studies/replica.py studies/market_rates.yaml --out outputs/rates --csv studies/results/market_rates.csv
    python studies/replica.py studies/market.yaml --out outputs/market --csv studies/results/market_seed11.csv --only …
    aem study run studies/market.yaml --out outputs/market_engine --only …
    aem study table studies/market.yaml --out outputs/market_engine --csv studies/results/market_engine.csv
    python studies/where_aem_helps.py

All `studies/results/market_seed*.csv` count, so that pairs can be run on different machines.

Each table stands in the page between `<!-- NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from evidence_parts.runs import PRIMARY, Run, difference, interval, mean_of, runs_of, values
from palette import reduce_colours

from recipe.aem.tools.report.style import COLOURS, drawing
from recipe.aem.tools.statistics import Estimate, mean_interval

ROOT = Path(__file__).resolve().parents[1]
RESULTS, RUNS, RATES = ROOT / "studies" / "results", "market_seed*.csv", "market_rates.csv"
ENGINE = "market_engine.csv"
PAGE = ROOT / "docs" / "where_aem_helps.md"
FIGURE = ROOT / "docs" / "evidence" / "where_aem_helps.png"
LENGTHS = {"short": 12, "middle": 36, "long": 102}
"""Tokens of a response; waiting takes one more."""
FRESH = 27
"""The first seed of the fresh pairs, which the protocol's change 8 names; those before it are the map's."""
BOTH = {"AEM − GRPO": ("aem", "grpo"), "AEM − shuffled α": ("aem", "aem_shuffled")}
MAPPED = BOTH | {
    "AEM − GRPO over trajectories": ("aem_trajectories", "grpo_trajectories"),
    "AEM − GRPO with KL": ("aem_kl", "grpo_kl"),
    "AEM − GRPO in groups of 16": ("aem_16", "grpo_16"),
}
ON_FRESH_PAIRS = BOTH | {
    "reversed α − GRPO": ("aem_reversed", "grpo"),
    "reversed α − AEM": ("aem_reversed", "aem"),
    "α of the kind of turn − GRPO": ("aem_of_kind", "grpo"),
    "AEM's entropy by a bonus − GRPO": ("entropy_of_aem", "grpo"),
    "AEM − GRPO over trajectories": MAPPED["AEM − GRPO over trajectories"],
}
"""What is compared with what: by the map's pairs, and by the fresh ones."""
COMPARISONS = MAPPED | ON_FRESH_PAIRS
PRIMARY_COMPARISON = {("AEM − GRPO", "long")}
CONFIRMATIONS = {("AEM − shuffled α", "middle"), ("AEM − GRPO over trajectories", "middle")}
"""Those that the protocol named before their runs: of the map's pairs, and of the fresh ones."""
SEEDS = 2
"""Held-apart seeds of each learning rate."""
RATE_NAMES = {"low": "2.5e-4", "middle": "5e-4", "high": "1e-3"}
SEEN = ("entropy", "aem/reliability/mean", "aem/groups/shift_mean")
"""Of the columns of a method's levels, the series that are averaged over steps and runs."""
FINGERPRINT = "validation/fingerprint"
NOTHING = "No run of the study has been made yet."
NOTHING_IN_VERL = "Not run yet."


def check_clones(found: Sequence[Run]) -> None:
    """Refuse to compare runs that did not begin from the same clone: those that won other tasks before training.

    Runs that no comparison sets against each other may come from different machines, and so from different clones.

    Raises:
        ValueError: names the first such pair.
    """
    of = {(run.benchmark, run.seed, run.method): run.series[FINGERPRINT] for run in found}
    for length, seed in dict.fromkeys((run.benchmark, run.seed) for run in found):
        for pair in COMPARISONS.values():
            first, second = (of.get((length, seed, method)) for method in pair)
            if first and second and first != second:
                raise ValueError(
                    f"{length}/seed{seed}: {pair[0]} and {pair[1]} won other tasks before training, so "
                    "they began from different clones; make both on one machine"
                )


def differences(found: Sequence[Run], length: str) -> dict[str, Estimate]:
    """Return the differences of mean level at a length, of the comparisons for which there is a pair."""
    of = {
        name: difference(*(values(found, length, method, PRIMARY) for method in pair))
        for name, pair in COMPARISONS.items()
    }
    return {name: one.estimate for name, one in of.items() if one is not None}


def comparisons(found: Sequence[Run], names: Iterable[str]) -> str:
    """Tabulate the differences of mean level, in points, with intervals and numbers of pairs.

    Lengths that have no run are left out; "not run" stands for a comparison without a pair.
    """
    of = {length: differences(found, length) for length in LENGTHS if any(run.benchmark == length for run in found)}
    if not of:
        return NOTHING
    lines = [_row(["", *(f"{LENGTHS[length]} tokens" for length in of)]), _row(["---"] + ["---:"] * len(of))]
    lines += [_row([name, *(_points(one.get(name)) or "not run" for one in of.values())]) for name in names]
    return "\n".join(lines)


def entropy_followed(found: Sequence[Run]) -> str:
    """Say how far entropies were from those of the pair's AEM run, in nats a step, with the bonus and without."""
    of = {(run.benchmark, run.seed, run.method): dict(run.series["entropy"]) for run in found}
    pairs = [key[:2] for key in of if key[2] == "entropy_of_aem"]
    if not pairs:
        return NOTHING

    def distance(method: str) -> float:
        steps = [(of[*pair, method], of[*pair, "aem"]) for pair in pairs]
        return fmean(fmean(abs(own[step] - aem[step]) for step in own) for own, aem in steps)

    bonus, alone = distance("entropy_of_aem"), distance("grpo")
    return (
        f"Mean distance from the entropy of the pair's AEM run, {len(pairs)} pairs: "
        f"{bonus:.2f} nats a step with the bonus, {alone:.2f} with GRPO alone."
    )


def levels(found: Sequence[Run]) -> str:
    """Tabulate for each method and length the mean level, and what AEM saw."""
    if not found:
        return NOTHING
    head = ("method", "tokens", "runs", "before, %", "mean level, %", "end, %", "entropy, nats", "reliability", "shift")
    lines = [_row(head), _row(["---"] + ["---:"] * (len(head) - 1))]
    for method in dict.fromkeys(run.method for run in found):
        for length, tokens in LENGTHS.items():
            level = interval(found, length, method, PRIMARY)
            if level is None:
                continue
            of = [run for run in found if (run.benchmark, run.method) == (length, method)]
            before, end = (interval(found, length, method, name) for name in ("before", "end"))
            cells = [f"`{method}`", str(tokens), str(level.n), _percent(before), _percent(level), _percent(end)]
            lines.append(_row([*cells, *(_mean(of, name) for name in SEEN)]))
    return "\n".join(lines)


def chosen(found: Sequence[Run]) -> dict[tuple[str, str], str]:
    """Return the learning rate of each length and method by the protocol's rule: the highest mean of mean levels."""
    best = {}
    for length in LENGTHS:
        for method in ("grpo", "aem"):
            of = {
                rate: level.mean
                for name, rate in RATE_NAMES.items()
                if (level := interval(found, length, f"{method}_{name}", PRIMARY)) is not None and level.n == SEEDS
            }
            if len(of) == len(RATE_NAMES):
                best[length, method] = max(of, key=lambda rate: of[rate])
    return best


def rates(found: Sequence[Run]) -> str:
    """Tabulate the mean levels by learning rate, the chosen one bold."""
    if not found:
        return NOTHING
    best = chosen(found)
    lines = [_row(["method", "tokens", "seeds", *RATE_NAMES.values()]), _row(["---", *["---:"] * 5])]
    for length, tokens in LENGTHS.items():
        for method in ("grpo", "aem"):
            of = [interval(found, length, f"{method}_{name}", PRIMARY) for name in RATE_NAMES]
            if not any(of):
                continue
            said = [
                f"**{_plain(one)}**" if best.get((length, method)) == rate else _plain(one)
                for one, rate in zip(of, RATE_NAMES.values(), strict=True)
            ]
            lines.append(_row([f"`{method}`", str(tokens), str(min(one.n if one else 0 for one in of)), *said]))
    return "\n".join(lines)


def engine(found: Sequence[Run], replica: Sequence[Run]) -> str:
    """Tabulate the differences of mean level in verl, beside those of the same seeds in the replica, and each pair."""
    if not found:
        return NOTHING_IN_VERL
    lines = [_row(["", "tokens", "in", "difference", "pair by pair"]), _row(["---", "---:", "---", "---:", "---"])]
    for length, tokens in LENGTHS.items():
        for name in differences(found, length):
            seeds = {run.seed for run in found if (run.benchmark, run.method) == (length, COMPARISONS[name][0])}
            same = [run for run in replica if run.seed in seeds]
            for place, runs in (("verl", found), ("the replica", same)):
                first, second = (values(runs, length, method, PRIMARY) for method in COMPARISONS[name])
                pairs = [_signed(first[seed] - second[seed]) for seed in sorted(first.keys() & second.keys())]
                one = difference(first, second)
                lines.append(_row([name, str(tokens), place, _points(one and one.estimate), ", ".join(pairs)]))
    return "\n".join(lines)


@dataclass(frozen=True)
class Found:
    """What the committed CSVs hold: the study's runs in the replica and in verl, and those of its learning rates."""

    replica: Sequence[Run]
    engine: Sequence[Run]
    rates: Sequence[Run]

    @classmethod
    def read(cls, folder: Path = RESULTS) -> Found:
        return cls(*(runs_of(folder, pattern) for pattern in (RUNS, ENGINE, RATES)))

    @property
    def mapped(self) -> Sequence[Run]:
        return [run for run in self.replica if run.seed < FRESH]

    @property
    def fresh(self) -> Sequence[Run]:
        return [run for run in self.replica if run.seed >= FRESH]


TABLES: Mapping[str, Callable[[Found], str]] = {
    "comparisons": lambda found: comparisons(found.mapped, MAPPED),
    "fresh": lambda found: comparisons(found.fresh, ON_FRESH_PAIRS),
    "entropy": lambda found: entropy_followed(found.fresh),
    "engine": lambda found: engine(found.engine, found.mapped),
    "levels": lambda found: levels(found.mapped),
    "fresh levels": lambda found: levels(found.fresh),
    "rates": lambda found: rates(found.rates),
}


def fill(page: str, found: Found) -> str:
    """Return the page with its tables filled in."""
    for name, table in TABLES.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        page = block.sub(lambda block, table=table: f"{block[1]}{table(found)}\n{block[2]}", page)
    return page


def draw(found: Found, path: Path) -> None:
    """Draw the differences of mean level with their intervals: a line a comparison, a panel a length.

    Below the map's comparisons stand those of the fresh pairs. What was named before its runs is in colour.
    """
    parts = (
        (found.mapped, MAPPED, "", PRIMARY_COMPARISON),
        (found.fresh, ON_FRESH_PAIRS, "fresh pairs: ", CONFIRMATIONS),
    )
    names = [mark + name for runs, names, mark, _ in parts if runs for name in names]
    with drawing() as plt:
        figure, panels = plt.subplots(
            1, len(LENGTHS), figsize=(10.5, 1.2 + 0.34 * len(names)), sharey=True, sharex=True
        )
        for panel, (length, tokens) in zip(panels, LENGTHS.items(), strict=True):
            panel.axvline(0, color="0.6", linewidth=0.8)
            for runs, _, mark, named in parts:
                for name, of in differences(runs, length).items():
                    colour, place = COLOURS[0] if (name, length) in named else "0.45", names.index(mark + name)
                    if of.low is not None and of.high is not None:
                        panel.plot([100 * of.low, 100 * of.high], [place] * 2, color=colour, linewidth=1.6)
                    panel.plot([100 * of.mean], [place], "o", color=colour, markersize=5)
            panel.set_title(f"{tokens} tokens", fontsize=10, loc="left")
            panel.set(xlabel="mean level, points")
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.5, -0.5)
        figure.savefig(path, dpi=110)
        plt.close(figure)
    reduce_colours(path)


def _points(of: Estimate | None) -> str:
    if of is None:
        return ""
    said = _signed(of.mean)
    if of.low is not None and of.high is not None:
        said += f" ({_signed(of.low)} to {_signed(of.high)})"
    return f"{said}, {of.n}"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _plain(of: Estimate | None) -> str:
    """Return a mean without its interval, which two seeds make as wide as the scale."""
    return "" if of is None else f"{100 * of.mean:.1f}"


def _percent(of: Estimate | None) -> str:
    if of is None:
        return ""
    half = "" if of.low is None or of.high is None else f" ± {50 * (of.high - of.low):.1f}"
    return f"{100 * of.mean:.1f}{half}"


def _mean(of: Sequence[Run], name: str) -> str:
    found = [value for run in of if (value := mean_of(name)(run)) is not None]
    estimate = mean_interval(found)
    return "" if estimate is None else f"{round(estimate.mean, 2) + 0.0:.2f}".replace("-", "−")  # no −0.00


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    found = Found.read()
    check_clones(found.replica)
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    print(f"{PAGE}: {len(found.replica)} runs, {len(found.engine)} in verl, {len(found.rates)} of learning rates")
    for (length, method), rate in chosen(found.rates).items():
        print(f"{length}: RATE_{method.upper()} is {rate}")
    if found.replica:
        draw(found, FIGURE)


if __name__ == "__main__":
    main()
