"""Style of the page's charts, and their conversion to SVG inside HTML."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIZE = (4.6, 3.1)
"""Inches. On a telephone a chart is about 340 px wide, so 10 pt text stays readable."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#8B6F00", "#000000")
"""Okabe and Ito's, darkened where a thin line would be pale; distinct to colour-blind readers."""
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P")
FADED = "#6b6b6b"

SETTINGS: dict[Any, Any] = {
    "figure.figsize": SIZE,
    "figure.constrained_layout.use": True,
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FADED,
    "axes.labelcolor": "#333333",
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a run's name may contain a $
}


@contextmanager
def drawing() -> Iterator[Any]:
    """Yield matplotlib's pyplot in this style; it draws only into files, whatever display there is."""
    import matplotlib

    with matplotlib.rc_context(SETTINGS):
        matplotlib.use("Agg", force=True)
        import matplotlib.pyplot as plt

        yield plt


def signed(value: float, form: str) -> str:
    """Format a number with its sign, using a minus as wide as the plus.

    Examples:
        >>> signed(0.25, ".2f"), signed(-0.25, ".2f"), signed(-0.001, ".2f")
        ('+0.25', '−0.25', '0.00')
    """
    text = format(value, form)
    if not float(text):
        return text.removeprefix("-")
    return f"+{text}" if value > 0 else text.replace("-", "−", 1)


def look(number: int) -> dict[str, Any]:
    """Return the n-th run's colour and dash pattern, so that neither alone must distinguish runs."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number % len(LINES)]}


def legend(axes: Any, runs: int) -> None:
    """Put a legend above the chart, where it hides nothing; none for a single line."""
    handles, labels = axes.get_legend_handles_labels()
    if runs > 1 and handles:
        axes.figure.legend(handles, labels, loc="outside upper left", ncols=3, handlelength=2.2, columnspacing=1.2)


def to_svg(figure: Any, name: str) -> str:
    """Return the figure as an HTML element: without a size, so that the page sets it, and with unique ids."""
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    return text.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
