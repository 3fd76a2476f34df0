"""The effect of one outlier on all α of a group: min–max as in AEM, and quantiles instead."""

from __future__ import annotations

import torch

from aem_core import modulation_coefficients
from mechanism_parts.tables import Row

SIZES = (8, 64, 512)
DISTANCES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
WIDTH = 0.5  # nats: the other entropies are spaced evenly from WIDTH to 2 × WIDTH
QUANTILES = (0.05, 0.95)


def outlier_rows() -> list[Row]:
    """Tabulate α of the outlier, and the smallest and largest other α, by group size and distance above the others.

    `minmax` is AEM's. `quantile` is hypothetical and ours: entropies beyond the 5 % and 95 % quantiles of the group
    count as those quantiles.
    """
    rows: list[Row] = []
    for size in SIZES:
        for distance in DISTANCES:
            others_N = torch.linspace(WIDTH, 2 * WIDTH, size - 1, dtype=torch.float64)
            entropy_N = torch.cat([others_N, others_N.new_tensor([2 * WIDTH + distance])])
            low, high = torch.quantile(entropy_N, torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
            for scale, used_N in (("minmax", entropy_N), ("quantile", entropy_N.clamp(low, high))):
                alpha_N = modulation_coefficients(used_N, torch.zeros(size, dtype=torch.int64))
                least, most = float(alpha_N[:-1].min()), float(alpha_N[:-1].max())
                row: Row = {"scale": scale, "size": size, "distance": f"{distance:g}"}
                row |= {"outlier": float(alpha_N[-1]), "others_least": least, "others_most": most}
                rows.append(row | {"others_range": most - least})
    return rows
