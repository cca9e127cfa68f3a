"""The report's charts: drawn by matplotlib as SVG, in the colours of the page that shows them."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from pipeline.reporting.numbers import number
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
_STRIP = 0.2  # of a chart's height: the device's share busy
_UNITS = (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
_STEPS = (1, 2, 5, 10)
_LABEL_WIDTH = 0.12  # of the axis, which a quantile's name takes


def rate_chart(per_second: Sequence[float], pauses_at: Sequence[float], total: float) -> str:
    """Draw documents a second over the time of work; dashed lines stand where a pause was cut out.

    Args:
        per_second: one value a bucket.
        pauses_at: seconds of work.
        total: seconds of work, which the buckets divide.
    """
    with mpl.rc_context({**_STYLE, "svg.hashsalt": "rate"}):
        figure, axes = _axes()
        edges = _time_axis(axes, len(per_second), pauses_at, total)
        axes.stairs(per_second, edges, fill=True, color=_ACCENT, alpha=0.25, linewidth=0)
        axes.stairs(per_second, edges, color=_ACCENT, linewidth=1.6, baseline=None)
        axes.set_ylim(bottom=0)
        return _svg(figure)


def endpoint_chart(
    in_flight: Sequence[float],
    in_queue: Sequence[float],
    busy: Sequence[float | None],
    pauses_at: Sequence[float],
    total: float,
) -> str:
    """Draw what the endpoint had to do over the time of work.

    Above are the texts in flight, and filled those of them that waited in its queue; in a strip below, the share of
    the time in which its device was busy, where it is known.

    Args:
        in_flight: one value a bucket.
        in_queue: likewise.
        busy: likewise, from 0 to 1; None where it is not known.
        pauses_at: seconds of work.
        total: seconds of work, which the buckets divide.
    """
    with mpl.rc_context({**_STYLE, "svg.hashsalt": "endpoint"}):
        if all(share is None for share in busy):
            figure, axes = _axes()
        else:
            figure = Figure(_SIZE, layout="constrained")
            axes, strip = figure.subplots(2, 1, height_ratios=(1 - _STRIP, _STRIP))
            _set_up(axes)
            _set_up(strip)
            edges = _time_axis(strip, len(busy), pauses_at, total)
            shares = [math.nan if share is None else 100 * share for share in busy]
            strip.stairs(shares, edges, fill=True, color=_ACCENT, alpha=0.55, linewidth=0)
            strip.set_ylim(0, 100)
            strip.yaxis.set_major_locator(FixedLocator([100]))
            strip.yaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:.0f}%"))
        edges = _time_axis(axes, len(in_flight), pauses_at, total)
        if len(figure.axes) > 1:
            axes.set_xlabel("")
            axes.xaxis.set_major_formatter(NullFormatter())
        axes.stairs(in_queue, edges, fill=True, color=_MARK, alpha=0.35, linewidth=0)
        axes.stairs(in_flight, edges, color=_ACCENT, linewidth=1.6, baseline=None)
        axes.set_ylim(bottom=0)
        return _svg(figure)


def latency_chart(histogram: Mapping[int, int], quantiles: Mapping[str, int]) -> str:
    """Draw requests by latency in milliseconds, and lines at its quantiles."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": "latency"}):
        figure, axes = _axes()
        edges, heights = _steps(histogram)
        # One outline instead of a bar for each bucket, whose edges would show as seams.
        axes.stairs(heights, edges, fill=True, color=_ACCENT, alpha=0.75, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        _mark_quantiles(axes, quantiles, math.log2(edges[-1] / edges[0]))
        axes.set_xlabel("ms a request")
        octaves = range(math.ceil(math.log2(edges[0])), math.floor(math.log2(edges[-1])) + 1)
        step = max(1, len(octaves) // 6)
        axes.xaxis.set_major_locator(FixedLocator([2.0**octave for octave in octaves[::step]]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(_label))
        return _svg(figure)


def _steps(histogram: Mapping[int, int]) -> tuple[list[float], list[int]]:
    """Return the edges of a histogram's buckets and their heights, empty buckets between them included."""
    edges: list[float] = []
    heights: list[int] = []
    for bound in sorted(histogram):
        lower = bound / 2 ** (1 / BUCKETS_PER_DOUBLING)
        # Bounds are whole milliseconds, so neighbours meet only about; a gap of less than half a bucket is none.
        if not edges:
            edges.append(lower)
        elif lower > edges[-1] * 2 ** (0.5 / BUCKETS_PER_DOUBLING):
            edges.append(lower)
            heights.append(0)
        edges.append(float(bound))
        heights.append(histogram[bound])
    return edges, heights


def _mark_quantiles(axes: Axes, quantiles: Mapping[str, int], octaves: float) -> None:
    """Draw a line at each quantile, with names that stand one above the other where they would collide."""
    row, former = 0, -math.inf
    for value in sorted(set(quantiles.values())):
        names = " ".join(name for name, other in quantiles.items() if other == value)
        place = math.log2(value) / octaves
        row = row + 1 if place - former < _LABEL_WIDTH * (1 + len(names) / 4) else 0
        former = place
        axes.axvline(value, color=_MARK, linewidth=1.2, linestyle="--")
        axes.text(value, 1.02 + 0.1 * row, names, transform=axes.get_xaxis_transform(), ha="right", color=_MARK)


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(_SIZE, layout="constrained")
    axes = figure.add_subplot()
    _set_up(axes)
    return figure, axes


def _set_up(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, steps=_STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(_label))


def _time_axis(axes: Axes, buckets: int, pauses_at: Sequence[float], total: float) -> list[float]:
    """Set up the axis of time, and return the buckets' edges on it."""
    unit, seconds = next((pair for pair in _UNITS if total >= 2 * pair[1]), _UNITS[-1])
    edges = [index * total / buckets / seconds for index in range(buckets + 1)]
    for pause in pauses_at:
        axes.axvline(pause / seconds, color=_MARK, linewidth=1, linestyle="--")
    axes.set_xlim(0, edges[-1])
    axes.set_xlabel(f"{unit} of work")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(_label))
    return edges


def _label(value: float, _position: int) -> str:
    # The noughts of both axes would stand in one corner; where the axes meet is clear without them.
    return number(float(value)) if value else ""


def _svg(figure: Figure) -> str:
    """Return a figure as an element for a page: as wide as its place, with the page's colours and font."""
    file = io.StringIO()
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    FigureCanvasSVG(figure).print_svg(file, metadata=metadata)  # type: ignore[no-untyped-call]
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would hold for the whole page
    svg = re.sub(r'<svg [^>]*(viewBox="[^"]*")[^>]*>', r"<svg \1>", svg)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, variable)
    return svg
