"""How numbers are shown to people: one form for counts, sizes, times, rates and prices, in texts and on the page.

Every function takes None for a value that is not known and returns UNKNOWN then. No imports of ours, so that commands,
runners and planning can use it.
"""

from __future__ import annotations

import math
from datetime import datetime, timezone

UNKNOWN = "unknown"
_UNITS = ("kB", "MB", "GB", "TB", "PB")


def number(value: float | None) -> str:
    """Return a number with at most three significant digits below 100 and none after the point above: 1,311 and 1.3."""
    if value is None:
        return UNKNOWN
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    if not value:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def count(value: int | None, noun: str, plural: str | None = None) -> str:
    """Return how many there are of something: 1 file, 12,000 files, 2 dead letters, an unknown number of shards."""
    if value is None:
        return f"an unknown number of {plural or noun + 's'}"
    return f"{value:,} {noun if value == 1 else plural or noun + 's'}"


def size(value: float | None) -> str:
    """Return bytes in decimal units: 34 bytes, 1.23 kB, 60 MB."""
    if value is None:
        return UNKNOWN
    if value < 1000:
        return count(round(value), "byte")
    for unit in _UNITS:
        value /= 1000
        if value < 999.5 or unit == _UNITS[-1]:
            break
    return f"{number(float(value))} {unit}"


def duration(seconds: float | None) -> str:
    """Return a time in the two largest units that it has: 0.04 s, 47 s, 3 min 05 s, 2 h 04 min, 3 d 04 h."""
    if seconds is None:
        return UNKNOWN
    if 0 < seconds < 0.005:
        return "<0.01 s"
    if round(seconds, 1) < 10:
        return f"{number(round(seconds, 1 if seconds >= 1 else 2))} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def milliseconds(value: float | None) -> str:
    """Return a short time: 1.1 ms, 2,300 ms; from ten seconds on as `duration` does."""
    if value is None:
        return UNKNOWN
    return f"{number(float(value))} ms" if value < 10_000 else duration(value / 1000)


def rate(per_second: float | None, noun: str = "documents") -> str:
    """Return how many a second: 1.3 documents/s, 1,311 documents/s."""
    return UNKNOWN if per_second is None else f"{number(float(per_second))} {noun}/s"


def dollars(value: float | None) -> str:
    """Return a price or a cost; one of less than a cent has two significant digits: $0.00031, $1.30, $1,250."""
    if value is None:
        return UNKNOWN
    if not value:
        return "$0"
    if value < 0.01:
        return f"${value:.{1 - math.floor(math.log10(value))}f}"
    return f"${value:,.2f}" if value < 1000 else f"${value:,.0f}"


def percent(share: float | None) -> str:
    """Return a share, rounded down so that only a whole is 100%: 12%, 0.3%, 99.9%."""
    if share is None:
        return UNKNOWN
    if 0 < share < 0.001:
        return "<0.1%"
    tenths = math.floor(share * 1000 + 1e-9)
    return f"{tenths / 10:.1f}%" if tenths % 10 and (tenths < 100 or 990 <= tenths < 1000) else f"{tenths // 10}%"


def timestamp(seconds: float | None) -> str:
    """Return a moment in seconds since the epoch as date and time: 2026-01-02 03:04 UTC."""
    return UNKNOWN if seconds is None else f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M} UTC"
