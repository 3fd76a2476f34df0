"""The corridor's training as table rows: curves, final values with paired differences, and the drift early and late."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from mechanism_parts.tables import Row, interval, share
from mechanism_parts.training import Run

# by world and method
Runs: TypeAlias = Mapping[tuple[str, str], Run]
PHASES = ("early", "middle", "late")
BINS = 20


def rate_rows(world: str, chosen: float, runs: Mapping[float, Run]) -> list[Row]:
    """Tabulate GRPO's final success by learning rate, and the rate chosen."""
    return [
        {"world": world, "rate": f"{rate:g}", "seeds": run.success.shape[1]}
        | interval(run.success[-1].tolist(), "success")
        | {"chosen": int(rate == chosen)}
        for rate, run in runs.items()
    ]


def curve_rows(runs: Runs, every: int) -> list[Row]:
    """Tabulate success and entropy by step, mean over seeds, and minus GRPO's with the 95 % t interval."""
    rows: list[Row] = []
    for (world, method), run in runs.items():
        for step in range(0, len(run.success), every):
            row: Row = {"world": world, "method": method, "step": step}
            for measure in ("success", "entropy"):
                own_R, base_R = getattr(run, measure)[step], getattr(runs[world, "grpo"], measure)[step]
                row |= {measure: float(own_R.mean())} | interval((own_R - base_R).tolist(), f"{measure}_gain")
            rows.append(row)
    return rows


def end_rows(runs: Runs) -> list[Row]:
    """Tabulate final and average (`auc`: mean over steps) success and entropy, and their differences from GRPO's."""
    rows: list[Row] = []
    for (world, method), run in runs.items():
        base = runs[world, "grpo"]
        for measure in ("success", "entropy"):
            own_SR, base_SR = getattr(run, measure), getattr(base, measure)
            for when in ("start", "end", "auc"):
                own_R, base_R = _at(own_SR, when), _at(base_SR, when)
                row: Row = {"world": world, "method": method, "measure": f"{measure}_{when}", "seeds": len(own_R)}
                row |= interval(own_R.tolist(), "mean")
                rows.append(row | interval((own_R - base_R).tolist(), "difference"))
    return rows


def drift_rows(runs: Runs) -> list[Row]:
    """Tabulate by thirds of the training the drift against the base, as the law predicts it and as measured.

    `predicted` and `measured` are sums over the third's steps, means over seeds; `up` is the share of seeds in which
    the predicted sum is positive; `same_sign` the share of single steps in which the law has the sign of the plain
    gradient's effect; `push_good` and `push_bad` the means of |A| (S − H)² where A > 0 and where A < 0; `state_share`
    the part of α's variance that lies between states; `relation` the mean r of α − 1 and H − S.
    """
    rows: list[Row] = []
    for (world, method), run in runs.items():
        if method == "grpo":
            continue
        for phase, part in zip(PHASES, torch.arange(len(run.predicted)).tensor_split(len(PHASES)), strict=True):
            predicted_SR, measured_SR = run.predicted[part], run.measured[part]
            active_SR = predicted_SR.abs() > 1e-15
            row: Row = {"world": world, "method": method, "phase": phase}
            row |= interval(predicted_SR.sum(0).tolist(), "predicted")
            row |= interval(measured_SR.sum(0).tolist(), "measured")
            row |= share((predicted_SR.sum(0) > 0).tolist(), "up")
            row |= interval(run.advantage[part].mean(0).tolist(), "advantage")
            row["state_share"] = float(run.state_share[part].nanmean())
            row |= {"push_good": float(run.push_good[part].mean()), "push_bad": float(run.push_bad[part].mean())}
            row["relation"] = float(run.relation[part].nanmean())
            agree_SR = predicted_SR * measured_SR > 0
            row["same_sign"] = float(agree_SR[active_SR].double().mean())
            rows.append(row | {"steps": int(active_SR.sum())})
    return rows


def drift_curve_rows(runs: Runs) -> list[Row]:
    """Return for the figure the predicted and measured drift against the base per step, in bins of steps."""
    rows: list[Row] = []
    for (world, method), run in runs.items():
        if method == "grpo":
            continue
        for part in torch.arange(len(run.predicted)).tensor_split(min(BINS, len(run.predicted))):
            row: Row = {"world": world, "method": method, "step": int(part[0])}
            row |= interval(run.predicted[part].mean(0).tolist(), "predicted")
            rows.append(row | {"measured": float(run.measured[part].mean())})
    return rows


def _at(value_SR: Tensor, when: str) -> Tensor:
    if when == "auc":
        return torch.trapezoid(value_SR, dim=0) / (len(value_SR) - 1)
    return value_SR[-1 if when == "end" else 0]
