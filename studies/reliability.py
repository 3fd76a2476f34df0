"""How far α follows a response's own uncertainty, by length of response, number of responses and true differences.

    python studies/reliability.py [--out studies/results/reliability.csv] [--figure docs/evidence/reliability.png]

The entropy of token j of response i is h_ij = f_i · e_ij. f_i is what AEM is after, a factor of the whole response:
log-normal with mean 1. e_ij is the token's own part, four of five near 0.02 nats and the others Gamma(2, 0.6), as in
models that are sure of most tokens; with `run` > 1, so many neighbours share one. Then

    reliability = Var(f m) / (Var(f m) + E[f²] v run/n)        m, v: mean and variance of e; n: tokens of a response

is known, and compared with what `aem_core.aem_effect` estimates from the entropies alone, and with the correlation of α
with f. One core, about a minute, a fixed seed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
from mechanism_parts.tables import as_csv
from torch import Tensor

from aem_core import Responses, aem, aem_effect

ROOT = Path(__file__).resolve().parents[1]
LENGTHS, RESPONSES, SPREADS, RUNS = (4, 8, 16, 32, 64, 128, 256, 512), (8, 64), (0.0, 0.1, 0.2, 0.4), (1, 4)
GROUPS = 100
SURE, SURE_MEAN, SURE_SD = 0.8, 0.02, 0.01
SHAPE, SCALE = 2.0, 0.6
MEAN = SURE * SURE_MEAN + (1 - SURE) * SHAPE * SCALE
VARIANCE = SURE * (SURE_MEAN**2 + SURE_SD**2) + (1 - SURE) * SHAPE * (SHAPE + 1) * SCALE**2 - MEAN**2


@dataclass(frozen=True)
class Setting:
    """One cell of the sweep.

    Attributes:
        length: tokens of each response.
        responses: of each group.
        spread: standard deviation of log f.
        run: how many neighbouring tokens share their own part.
    """

    length: int
    responses: int
    spread: float
    run: int


@dataclass(frozen=True)
class Row(Setting):
    """What came out, as means over groups.

    Attributes:
        reliability: the true one.
        estimate: that of `aem_effect`.
        estimate_sd: its standard deviation between groups.
        by_tokens: what the variance of each response's tokens says instead (`reliability_by_tokens`).
        r: correlation of α with f; −1 where α is f's mirror image.
        range: of H̄ within a group, nats; AEM leaves a group alone below 0.1.
    """

    reliability: float
    estimate: float
    estimate_sd: float
    by_tokens: float
    r: float
    range: float


def true_reliability(setting: Setting) -> float:
    """Return the share of the variance of H̄ that is due to f."""
    of_f = math.exp(setting.spread**2) - 1
    between = of_f * MEAN**2
    within = (1 + of_f) * VARIANCE * setting.run / setting.length
    return between / (between + within)


def simulate(setting: Setting, groups: int, seed: int) -> Row:
    """Draw groups, and let AEM look at them."""
    generator = torch.Generator().manual_seed(seed)
    rows, draws = groups * setting.responses, setting.length // setting.run
    shape = (rows, draws)
    normal_BT = torch.randn(shape, generator=generator).mul_(SURE_SD).add_(SURE_MEAN).clamp_(min=0)
    # the sum of two exponentials is Gamma(2)
    open_BT = -SCALE * sum(torch.rand(shape, generator=generator).clamp_(min=1e-12).log() for _ in range(int(SHAPE)))
    own_BT = torch.where(torch.rand(shape, generator=generator) < SURE, normal_BT, open_BT)
    factor_B = torch.exp(setting.spread * torch.randn(rows, generator=generator) - setting.spread**2 / 2)
    entropy_BT = (factor_B[:, None] * own_BT).repeat_interleave(setting.run, dim=1)
    responses = Responses.from_spans([[(0, setting.length)]] * rows, (rows, setting.length))
    group_B = torch.arange(rows) // setting.responses
    nothing_BT = torch.zeros_like(entropy_BT)
    _, stats = aem(nothing_BT, entropy_BT, responses, group_B, min_range=0.0)
    effect = aem_effect(nothing_BT[:, 0], stats, entropy_BT, responses)
    estimate_G = effect.reliability_N.view(groups, -1)[:, 0]
    entropy_GN = stats.entropy_N.view(groups, -1)
    r_G = correlation(stats.alpha_N.view(groups, -1).double(), factor_B.view(groups, -1).double())
    return Row(
        **asdict(setting),
        reliability=true_reliability(setting),
        estimate=float(estimate_G.mean()),
        estimate_sd=float(estimate_G.std()),
        by_tokens=float(reliability_by_tokens(entropy_BT.view(groups, setting.responses, -1)).mean()),
        r=float(r_G.mean()),
        range=float((entropy_GN.amax(1) - entropy_GN.amin(1)).mean()),
    )


def reliability_by_tokens(entropy_GNT: Tensor) -> Tensor:
    """Return for each group 1 − mean (s²/n) / Var H̄, clipped at 0, with s² the variance of a response's n tokens.

    s²/n is the noise of H̄ if tokens are independent. It is too little where neighbours are alike.
    """
    entropy_GNT = entropy_GNT.double()
    noise_G = entropy_GNT.var(2).mean(1) / entropy_GNT.shape[2]
    return (1 - noise_G / entropy_GNT.mean(2).var(1)).clamp(min=0)


def correlation(one_GN: Tensor, other_GN: Tensor) -> Tensor:
    """Return Pearson's r of each group, 0 where either side is constant."""
    one_GN, other_GN = (value_GN - value_GN.mean(1, keepdim=True) for value_GN in (one_GN, other_GN))
    scale_G = (one_GN.square().sum(1) * other_GN.square().sum(1)).sqrt()
    return torch.where(scale_G > 1e-12, (one_GN * other_GN).sum(1) / scale_G.clamp(min=1e-12), 0.0)


def sweep(groups: int) -> Iterable[Row]:
    """Simulate every setting."""
    for seed, (length, responses, spread, run) in enumerate(product(LENGTHS, RESPONSES, SPREADS, RUNS)):
        yield simulate(Setting(length, responses, spread, run), groups, seed)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw, by length, the estimate beside the truth (dashed), and the correlation of α with f."""
    from palette import reduce_colours

    from recipe.aem.tools.report.style import COLOURS, drawing

    with drawing() as plt:
        figure, (independent, alike, right) = plt.subplots(1, 3, figsize=(11, 3.4))
        for colour, spread in zip(COLOURS, SPREADS, strict=False):
            for axes, run in ((independent, 1), (alike, 4)):
                line = [row for row in rows if (row.responses, row.spread, row.run) == (64, spread, run)]
                lengths = [row.length for row in line]
                axes.plot(lengths, [row.reliability for row in line], color=colour, lw=1, ls="--")
                axes.plot(lengths, [row.estimate for row in line], "o", color=colour)
                axes.plot(lengths, [row.by_tokens for row in line], "x", color=colour)
                if run == 1:
                    right.plot(lengths, [-row.r for row in line], "o-", color=colour, label=f"{spread:g}")
        titles = {
            independent: "reliability, independent tokens",
            alike: "the same, runs of four tokens",
            right: "−r of α with f",
        }
        for axes, title in titles.items():
            axes.set(xscale="log", xlabel="tokens of a response", ylim=(-0.08, 1.03))
            axes.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
            axes.minorticks_off()
            axes.set_title(title, fontsize=10, loc="left")
        right.legend(title="spread of log f")
        figure.savefig(path, dpi=100)
        plt.close(figure)
    reduce_colours(path)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "studies" / "results" / "reliability.csv")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "evidence" / "reliability.png")
    parser.add_argument("--groups", type=int, default=GROUPS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = list(sweep(chosen.groups))
    chosen.out.write_text(as_csv([asdict(row) for row in rows]), encoding="utf-8")
    draw(rows, chosen.figure)


if __name__ == "__main__":
    main()
