"""The report as one page that needs nothing else: no script, no font, no image from anywhere."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from pipeline.escaping import escaped
from pipeline.reporting.charts import endpoint_chart, latency_chart, rate_chart
from pipeline.reporting.explain import likely_cause
from pipeline.reporting.numbers import (
    count,
    dollars,
    duration,
    milliseconds,
    number,
    percent,
    rate,
    size,
    timestamp,
)
from pipeline.reporting.report import progress, truncated
from pipeline.reporting.schema import Report

_TEMPLATE = Path(__file__).with_name("page.html")
_MAX_ROWS = 500  # of the table of files; report.json has them all
_MAX_WORD = 30  # characters of a file's name or an option that the narrowest column has room for
_MIN_BUCKETS = 2  # one alone shows nothing that the mean does not
# Columns of the table of files that are there only where there is any such document, and their names on the page.
_RARE_COLUMNS = {"reused": "reused", "duplicates": "equal texts", "truncated": "truncated"}
_MANY_RETRIES = (10, 0.02)  # at least so many, and of all requests


def render(report: Report) -> str:
    """Return the page. Texts in a report may come from documents, so all of them are escaped."""
    charts = {"rate": None, "endpoint": None, "latency": None, **dict(_charts(report))}
    # What is not complete comes first: that is what one looks for in a long list.
    files = sorted(report.sources, key=lambda source: source.complete)
    columns = {"records": "records", "embedded": "embedded"}
    columns |= {name: label for name, label in _RARE_COLUMNS.items() if getattr(report.totals, name)}
    columns["dead_letters"] = "dead letters"
    return _template().render(
        report=report,
        charts=charts,
        remarks=list(_remarks(report)),
        columns=columns,
        files=files[:_MAX_ROWS],
        all_files=len(files),
    )


@functools.cache  # compiling it takes as long as rendering it
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_without_control_characters,
    )
    formats = (count, dollars, duration, milliseconds, number, percent, progress, rate, size, timestamp)
    environment.filters |= {function.__name__: function for function in formats}
    environment.filters |= {"breakable": _breakable, "call": _call, "moment": _moment}
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))


def _charts(report: Report) -> Iterator[tuple[str, Markup]]:
    course, latency = report.timeline, report.latency_ms
    time = (course.pauses_at, report.totals.seconds)
    if len(course.documents_per_second) >= _MIN_BUCKETS:
        yield "rate", Markup(rate_chart(course.documents_per_second, *time))
        if any(course.texts_in_flight):
            texts = (course.texts_in_flight, course.texts_in_queue)
            yield "endpoint", Markup(endpoint_chart(*texts, course.device_busy, *time))
    quantiles = {"p50": latency.p50, "p95": latency.p95, "p99": latency.p99}
    known = {name: bound for name, bound in quantiles.items() if bound is not None}
    if len(latency.histogram) > 1:
        yield "latency", Markup(latency_chart(latency.histogram, known))


def _remarks(report: Report) -> Iterator[str]:
    """Yield what a reader should look at, the most important first."""
    totals = report.totals
    if not report.complete:
        yield f"Not complete: {progress(report)}."
    if not report.balanced:
        yield "The ledger does not balance: run tayyar verify, which names the shards."
    if report.verified is not None and not report.verified.passed:
        findings = count(report.verified.findings, "finding")
        yield f"tayyar verify had {findings}: run it again to see {'it' if report.verified.findings == 1 else 'them'}."
    if totals.dead_letters:
        share = percent(totals.dead_letters / totals.records)
        cause = likely_cause(report.dead_letters)
        why = f"likely cause: {cause}" if cause else "their reasons are below"
        yield f"{count(totals.dead_letters, 'dead letter')} ({share} of the records); {why}."
    if sentence := truncated(report):
        yield f"Truncated: {sentence}."
    if totals.nan_lines:
        hold = "line holds" if totals.nan_lines == 1 else "lines hold"
        yield f"{totals.nan_lines:,} embedded {hold} NaN or Infinity, which strict JSON parsers refuse."
    if totals.retries >= max(_MANY_RETRIES[0], _MANY_RETRIES[1] * totals.requests):
        yield f"{totals.retries:,} requests had to be repeated, where {totals.requests:,} succeeded."
    if totals.seconds and totals.throttled_ms / 1000 > totals.seconds:
        throttled = duration(totals.throttled_ms / 1000)
        yield f"The endpoint asked the client to wait: {throttled}, summed over requests that waited side by side."


def _without_control_characters(value: object) -> object:
    """Return a text in which nothing reorders what is shown; it is not markup yet, which is made of such texts."""
    return escaped(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _breakable(text: str) -> Markup:
    """Return a path, a name or a call, escaped, that a narrow page breaks behind its separators and not in mid-word.

    Within a file's name or an option, it breaks only if that is long.
    """
    parts = re.split(r"(?<=[/,= ])(?=[^/,= ])", escaped(text))
    return Markup("<wbr>").join(
        escape(piece)
        for part in parts
        for piece in (re.split(r"(?<=[_.])(?=[^_.])", part) if len(part) > _MAX_WORD else [part])
    )


def _call(command: str) -> Markup:
    """Return a command line that breaks between its words, and not behind the hyphens of an option."""
    words = (
        Markup('<span class="option">{}</span>').format(word) if re.fullmatch(r"--\w+", word) else _breakable(word)
        for word in command.split(" ")
    )
    return Markup(" ").join(words)


def _moment(iso: str) -> str:
    return timestamp(datetime.fromisoformat(iso).timestamp())
