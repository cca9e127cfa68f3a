"""A report's totals as Prometheus reads them from a text file."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.escaping import escaped
from pipeline.reporting.schema import Latency, Report
from transforms.output.folder import JOB

EXPOSITION = f"{JOB}/report.prom"
_TOTALS = {
    "records": ("tayyar_records", "Lines that are not blank, in the shards done."),
    "embedded": ("tayyar_documents_embedded", "Documents that have their vector."),
    "sent": ("tayyar_documents_sent", "Documents whose text the endpoint embedded."),
    "reused": ("tayyar_documents_reused", "Documents that took the vector of a former output."),
    "duplicates": ("tayyar_documents_duplicate", "Documents that took the vector of an equal text in their shard."),
    "truncated": ("tayyar_documents_truncated", "Documents sent that have more tokens than the model reads."),
    "shards": ("tayyar_shards_done", "Shards that have their receipt."),
    "shards_expected": ("tayyar_shards_expected", "Shards that there will be."),
    "output_bytes": ("tayyar_output_bytes", "Bytes of embedded documents written."),
    "tokens": ("tayyar_tokens", "Tokens, as the endpoint counted them."),
    "requests": ("tayyar_requests", "Requests that succeeded."),
    "retries": ("tayyar_retries", "Requests that were repeated."),
    "seconds": ("tayyar_work_seconds", "Time in which at least one shard was under way."),
    "dollars": ("tayyar_dollars", "Cost of the endpoint for the time of work."),
    "dollars_not_spent": ("tayyar_dollars_not_spent", "Reused and duplicate documents at the price of one sent."),
}
_MILLISECONDS = {
    "queue_ms": ("tayyar_queue_seconds", "Time in the endpoint's queue, summed over texts."),
    "inference_ms": ("tayyar_inference_seconds", "Time in the endpoint's device, summed over texts."),
    "flight_ms": ("tayyar_round_trip_seconds", "Time from sending to the reply, summed over texts."),
    "busy_ms": (
        "tayyar_device_busy_seconds",
        "Time in which the endpoint's device was at work, as far as replies show.",
    ),
    "slot_ms": ("tayyar_device_seconds", "Time of which tayyar_device_busy_seconds is the part at work."),
    "throttled_ms": (
        "tayyar_throttled_seconds",
        "Time waited because the endpoint asked for it, summed over requests.",
    ),
}

_MEANS = {
    "texts_in_flight": ("tayyar_texts_in_flight", "Texts sent and not answered, on average over the time of work."),
    "texts_in_queue": ("tayyar_texts_in_queue", "Texts in the endpoint's queue, on average over the time of work."),
    "device_busy": ("tayyar_device_busy_ratio", "Share of the time in which the endpoint's device was at work."),
}


def exposition(report: Report) -> bytes:
    """Return the totals in Prometheus' text format, for the textfile collector of its node exporter.

    The job is over when this is written, so every total is a gauge: a resumed job may well have less.
    """
    registry = CollectorRegistry()
    registry.register(_ReportCollector(report))
    return generate_latest(registry)


class _ReportCollector(Collector):
    """Gives a registry the metrics of one report."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        report, totals, model = self._report, self._report.totals, self._report.job.model
        yield GaugeMetricFamily("tayyar_complete", "Whether every shard is done.", int(report.complete))
        yield GaugeMetricFamily("tayyar_balanced", "Whether records = embedded + dead letters.", int(report.balanced))
        info = GaugeMetricFamily(
            "tayyar_job_info", "What the vectors are.", labels=("model", "sha", "dimensions", "space")
        )
        names = (model.model_id, model.sha or "", str(model.dimensions), report.job.space)
        info.add_metric([escaped(name) for name in names], 1)
        yield info
        for field, (name, about) in _TOTALS.items():
            if getattr(totals, field) is not None:
                yield GaugeMetricFamily(name, about, getattr(totals, field))
        for field, (name, about) in _MILLISECONDS.items():
            yield GaugeMetricFamily(name, about, getattr(totals, field) / 1000)
        for field, (name, about) in _MEANS.items():
            if getattr(report.bottleneck, field) is not None:
                yield GaugeMetricFamily(name, about, getattr(report.bottleneck, field))
        dead_letters = GaugeMetricFamily(
            "tayyar_dead_letters", "Records that could not be embedded.", labels=("reason",)
        )
        for reason, count in totals.dead_letters_by_reason.items():
            dead_letters.add_metric((reason,), count)
        yield dead_letters
        yield _histogram(report.latency_ms)


def _histogram(latency: Latency) -> HistogramMetricFamily:
    """Return the latencies; Prometheus wants each bucket with all those below it."""
    below, total = 0, 0.0
    buckets = []
    for bound, count in latency.histogram.items():
        below += count
        total += bound / 1000 * count
        buckets.append((str(bound / 1000), float(below)))
    return HistogramMetricFamily(
        "tayyar_request_latency_seconds",
        "Successful requests; the sum takes each at the upper bound of its bucket.",
        [*buckets, ("+Inf", float(below))],
        round(total, 3),
    )
