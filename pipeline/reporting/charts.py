"""The report's charts: drawn by matplotlib as SVG, in the colours of the page that shows them."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from transforms.elements import BUCKETS_PER_DOUBLING

# Colours that nothing else has stand for the page's own, which differ between light and dark.
_COLOURS = {"#0a0b01": "var(--muted)", "#0a0b02": "var(--grid)", "#0a0b03": "var(--accent)", "#0a0b04": "var(--mark)"}
_MUTED, _GRID, _ACCENT, _MARK = _COLOURS
_SIZE = (4.8, 2.4)  # inches: a phone shows it almost as large
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "font.size": 10.5,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "grid.color": _GRID,
    "text.color": _MUTED,
}


def rate_chart(per_second: Sequence[float], bucket_seconds: float, pauses_at: Sequence[float]) -> str:
    """Draw documents a second over the time of work; dashed lines stand where a pause was cut out."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": "rate"}):
        figure, axes = _axes()
        unit, seconds = ("min", 60.0) if bucket_seconds * len(per_second) > 120 else ("s", 1.0)
        edges = [index * bucket_seconds / seconds for index in range(len(per_second) + 1)]
        axes.stairs(per_second, edges, fill=True, color=_ACCENT, alpha=0.25)
        axes.stairs(per_second, edges, color=_ACCENT, linewidth=1.6, baseline=None)
        for pause in pauses_at:
            axes.axvline(pause / seconds, color=_MARK, linewidth=1, linestyle="--")
        axes.set_xlim(0, edges[-1])
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"{unit} of work")
        axes.yaxis.set_major_formatter(FuncFormatter(_with_commas))
        return _svg(figure)


def latency_chart(histogram: Mapping[int, int], quantiles: Mapping[str, int]) -> str:
    """Draw requests by latency in milliseconds, and lines at its quantiles."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": "latency"}):
        figure, axes = _axes()
        bounds = sorted(histogram)
        below = [bound / 2 ** (1 / BUCKETS_PER_DOUBLING) for bound in bounds]
        widths = [upper - lower for lower, upper in zip(below, bounds, strict=True)]
        axes.bar(below, [histogram[bound] for bound in bounds], widths, align="edge", color=_ACCENT, alpha=0.75)
        axes.set_xscale("log", base=2)
        for value in sorted(set(quantiles.values())):
            names = [name for name, other in quantiles.items() if other == value]
            axes.axvline(value, color=_MARK, linewidth=1.2, linestyle="--")
            # The last one's name stands right of its line: quantiles are often close together.
            side = "left" if "p99" in names else "right"
            axes.text(value, 1.02, " ".join(names), transform=axes.get_xaxis_transform(), ha=side, color=_MARK)
        axes.set_xlabel("ms a request")
        axes.xaxis.set_major_formatter(FuncFormatter(_with_commas))
        axes.yaxis.set_major_formatter(FuncFormatter(_with_commas))
        return _svg(figure)


def _axes() -> tuple[Figure, mpl.axes.Axes]:
    figure = Figure(_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.locator_params(axis="y", nbins=5)
    return figure, axes


def _with_commas(value: float, _position: int) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def _svg(figure: Figure) -> str:
    """Return a figure as an element for a page: as wide as its place, with the page's colours and font."""
    file = io.StringIO()
    figure.patch.set_visible(False)
    figure.axes[0].patch.set_visible(False)
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    FigureCanvasSVG(figure).print_svg(file, metadata=metadata)  # type: ignore[no-untyped-call]
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would hold for the whole page
    svg = re.sub(r'<svg [^>]*(viewBox="[^"]*")[^>]*>', r"<svg \1>", svg)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, variable)
    return svg
