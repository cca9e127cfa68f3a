"""The report as one page that needs nothing else: no script, no font, no image from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.reporting.charts import latency_chart, rate_chart
from pipeline.reporting.report import minutes

_TEMPLATE = Path(__file__).with_name("page.html")
_MOST_ROWS = 500


def render(report: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        report: what report.json holds. All of it may come from documents, so all of it is escaped.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"count": _count, "minutes": minutes, "bytes": _bytes, "time": _time, "dollars": _dollars}
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(report=report, rate_chart=_rate(report), latency_chart=_latency(report), most=_MOST_ROWS)


def _rate(report: Mapping[str, Any]) -> Markup | None:
    timeline = report["timeline"]
    if not timeline["documents_per_second"]:
        return None
    return Markup(rate_chart(timeline["documents_per_second"], timeline["bucket_seconds"], timeline["pauses_at"]))


def _latency(report: Mapping[str, Any]) -> Markup | None:
    latency = report["latency_ms"]
    histogram = {int(bound): count for bound, count in latency["histogram"].items()}
    if not histogram:
        return None
    return Markup(latency_chart(histogram, {name: latency[name] for name in ("p50", "p95", "p99")}))


def _count(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _dollars(value: float | None) -> str:
    if value is None:
        return "–"
    return f"${value:,.2f}" if value >= 0.1 or not value else f"${value:.4f}"


def _bytes(value: float | None) -> str:
    if value is None:
        return "–"
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def _time(seconds: float | None) -> str:
    return "–" if seconds is None else f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M} UTC"
