"""The `te_*` metrics, in Prometheus' text format. Durations are in seconds."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict

_DURATION_BOUNDS = [1.5e-5 * 1.5**power for power in range(35)]
_SIZE_BOUNDS = [float(2**power) for power in range(20)]

Labels = tuple[tuple[str, str], ...]


class _Histogram:
    """Observations by upper bound."""

    def __init__(self, bounds: list[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def lines(self, name: str) -> list[str]:
        lines, total = [f"# TYPE {name} histogram"], 0
        for bound, count in zip([*map(repr, self.bounds), "+Inf"], self.counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{name}_sum {self.sum!r}", f"{name}_count {total}"]


class Metrics:
    """Counters, gauges and histograms by name; empty until something is measured, as TEI's are."""

    def __init__(self) -> None:
        self._counters: defaultdict[str, defaultdict[Labels, int]] = defaultdict(lambda: defaultdict(int))
        self._gauges: dict[str, float] = {}
        self._histograms: dict[str, _Histogram] = {}

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """Adds to a counter."""
        if amount:
            self._counters[name][tuple(labels.items())] += amount

    def set(self, name: str, value: float) -> None:
        """Sets a gauge."""
        self._gauges[name] = value

    def observe(self, name: str, value: float, times: int = 1) -> None:
        """Adds to a histogram."""
        histogram = self._histograms.get(name)
        if histogram is None:
            bounds = _DURATION_BOUNDS if name.endswith("_duration") else _SIZE_BOUNDS
            histogram = self._histograms[name] = _Histogram(bounds)
        histogram.observe(value, times)

    def render(self) -> str:
        """Gives the page that `/metrics` serves."""
        lines = []
        for name, series in sorted(self._counters.items()):
            lines.append(f"# TYPE {name} counter")
            for labels, value in sorted(series.items()):
                told = ",".join(f'{key}="{text}"' for key, text in labels)
                lines.append(f"{name}{{{told}}} {value}" if told else f"{name} {value}")
        for name, gauge in sorted(self._gauges.items()):
            lines += [f"# TYPE {name} gauge", f"{name} {gauge:g}"]
        for name, histogram in sorted(self._histograms.items()):
            lines += histogram.lines(name)
        return "".join(f"{line}\n" for line in lines)
