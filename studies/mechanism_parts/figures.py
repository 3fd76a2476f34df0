"""The figures, drawn only from the tables' rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from palette import reduce_colours

from mechanism_parts.correlation import PAPER_AGREE, PAPER_R, PAPER_STATES
from mechanism_parts.tables import Row

# Okabe and Ito's palette; line styles and markers distinguish the lines in print
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
STYLES = ("-", "--", "-.", ":", (0, (3, 1, 1, 1)), (0, (6, 2)), (0, (1, 2)))
MARKERS = "osD^vPX*"

Tables = dict[str, list[Row]]


def draw(tables: Tables, folder: Path) -> list[Path]:
    """Write one picture per part into an existing folder."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    paths = []
    for name, (make, columns, size) in FIGURES.items():
        figure, panels = pyplot.subplots(*columns, figsize=size, squeeze=False, layout="constrained")
        make(tables, panels)
        for panel in panels.flat:
            panel.spines[["top", "right"]].set_visible(False)
        paths.append(folder / f"mechanism_{name}.png")
        figure.savefig(paths[-1], dpi=100)
        pyplot.close(figure)
        reduce_colours(paths[-1])
    return paths


def _drift(tables: Tables, panels: Any) -> None:
    panel = panels[0][0]
    for number, family in enumerate(_values(tables["drift"], "family")):
        rows = _where(tables["drift"], family=family)
        x = [float(row["step"]) for row in rows]
        panel.plot(x, _column(rows, "error_mean"), color=COLOURS[number], marker=MARKERS[number], label=family)
    x = [float(row["step"]) for row in tables["drift"]]
    x = [min(x), max(x)]
    panel.plot(x, x, color="0.6", linestyle=":", label="error = step")
    panel.set(xscale="log", yscale="log", xlabel="largest change of a logit", ylabel="mean error of the slope, nats")
    panel.set_title("Drift law: error by size of step", fontsize="medium")
    panel.legend(frameon=False, fontsize="small")


def _correlation(tables: Tables, panels: Any) -> None:
    families = _values(tables["groups"], "family")
    limits = ("r", PAPER_R, "r of α − 1 and H − S"), ("agree", PAPER_AGREE / PAPER_STATES, "share with the same sign")
    for panel, (name, paper, title) in zip(panels[0], limits, strict=True):
        values = [[float(row[name]) for row in _where(tables["groups"], family=family)] for family in families]
        boxes = panel.boxplot(
            values, orientation="horizontal", tick_labels=families, patch_artist=True, whis=(5, 95), sym=""
        )
        for number, box in enumerate(boxes["boxes"]):
            box.set(facecolor=COLOURS[4 if families[number].startswith(("turns", "kinds")) else 0], alpha=0.6)
        for line in boxes["medians"]:
            line.set_color("black")
        panel.axvline(paper, color=COLOURS[1], linestyle="--", label=f"the paper's {paper:.2f}")
        panel.axvline(0 if name == "r" else 0.5, color="0.6", linewidth=0.8)
        panel.set_title(f"{title}, a group of 64\n(box: quartiles, whiskers: 5 and 95 %)", fontsize="small")
        panel.invert_yaxis()
        panel.legend(frameon=False, fontsize="small")
    panels[0][1].set_yticklabels([])


def _training(tables: Tables, panels: Any) -> None:
    worlds = _values(tables["training_curves"], "world")
    for column, world in enumerate(worlds):
        rows = _where(tables["training_curves"], world=world)
        for number, method in enumerate(_values(rows, "method")):
            of = _where(rows, method=method)
            if method == "grpo":
                for name, style in (("success", "-"), ("entropy", ":")):
                    label = "success" if name == "success" else "H_resp, nats"
                    panels[0][column].plot(*_columns(of, "step", name), color="black", linestyle=style, label=label)
                continue
            for line, name in enumerate(("success_gain", "entropy_gain"), start=1):
                _band(panels[line][column], of, name, number, method)
            drift = _where(tables["training_drift_curve"], world=world, method=method)
            _band(panels[3][column], drift, "predicted", number, method)
            panels[3][column].plot(*_columns(drift, "step", "measured"), color=COLOURS[number], linewidth=0.7)
        panels[0][column].set_title(f"a wrong turn: {world}", fontsize="medium")
        for line in (1, 2, 3):
            panels[line][column].axhline(0, color="0.6", linewidth=0.8)
        panels[3][column].set_xlabel("step")
    labels = ("GRPO", "success\nminus GRPO's", "H_resp minus\nGRPO's, nats", "drift against GRPO,\nnats a step")
    for line, label in enumerate(labels):
        panels[line][0].set_ylabel(label)
    panels[3][0].set_title("thick: the law; thin: done by the step", fontsize="small")
    for line in (0, 1):
        panels[line][0].legend(frameon=False, fontsize="x-small")


def _outlier(tables: Tables, panels: Any) -> None:
    for panel, scale in zip(panels[0], ("minmax", "quantile"), strict=True):
        rows = _where(tables["outlier"], scale=scale)
        for number, size in enumerate(_values(rows, "size")):
            of = _where(rows, size=size)
            x = [float(row["distance"]) for row in of]
            colour, style = COLOURS[number], STYLES[number]
            panel.fill_between(x, _column(of, "others_least"), _column(of, "others_most"), color=colour, alpha=0.15)
            for end in ("others_least", "others_most"):
                label = f"{size} responses" if end == "others_most" else None
                panel.plot(x, _column(of, end), color=colour, linestyle=style, label=label)
        panel.axhline(1, color="0.6", linewidth=0.8)
        panel.set(xlabel="outlier above the others, nats", ylim=(0.4, 1.9))
        name = "AEM's min–max" if scale == "minmax" else "hypothetical, ours: 5–95 % quantiles"
        panel.set_title(name, fontsize="medium")
    panels[0][0].set_ylabel("range of the others' α")
    panels[0][0].legend(frameon=False, fontsize="small")


FIGURES: dict[str, tuple[Callable[[Tables, Any], None], tuple[int, int], tuple[float, float]]] = {
    "drift": (_drift, (1, 1), (5.2, 3.6)),
    "correlation": (_correlation, (1, 2), (9.0, 3.8)),
    "training": (_training, (4, 3), (11.0, 9.5)),
    "outlier": (_outlier, (1, 2), (9.0, 3.4)),
}


def _band(panel: Any, rows: Sequence[Row], name: str, number: int, label: str) -> None:
    x = _column(rows, "step")
    panel.plot(x, _column(rows, name), color=COLOURS[number], linestyle=STYLES[number], label=label)
    panel.fill_between(
        x, _column(rows, f"{name}_low"), _column(rows, f"{name}_high"), color=COLOURS[number], alpha=0.12, linewidth=0
    )


def _values(rows: Sequence[Row], name: str) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in rows))


def _where(rows: Sequence[Row], **wanted: object) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def _columns(rows: Sequence[Row], *names: str) -> list[list[float]]:
    return [_column(rows, name) for name in names]


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [float(row[name]) for row in rows]
