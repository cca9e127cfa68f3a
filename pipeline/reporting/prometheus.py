"""A report's totals as Prometheus reads them from a text file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transforms.output.folder import JOB

NAME = f"{JOB}/report.prom"
_TOTALS = {
    "records": ("tayyar_records", "Lines that are not blank, in the shards done."),
    "embedded": ("tayyar_documents_embedded", "Documents that have their vector."),
    "shards": ("tayyar_shards_done", "Shards that have their receipt."),
    "output_bytes": ("tayyar_output_bytes", "Bytes of embedded documents written."),
    "tokens": ("tayyar_tokens", "Tokens, as the endpoint counted them."),
    "requests": ("tayyar_requests", "Requests that succeeded."),
    "retries": ("tayyar_retries", "Requests that were repeated."),
    "seconds": ("tayyar_work_seconds", "Time in which at least one shard was under way."),
    "dollars": ("tayyar_dollars", "Cost of the endpoint for the time of work."),
}
_MILLISECONDS = {
    "queue_ms": ("tayyar_queue_seconds", "Time in the endpoint's queue, summed over texts."),
    "inference_ms": ("tayyar_inference_seconds", "Time in the endpoint's device, summed over texts."),
    "throttled_ms": ("tayyar_throttled_seconds", "Time waited because the endpoint said to, summed over requests."),
}


def exposition(report: Mapping[str, Any]) -> str:
    """Return the totals in Prometheus' text format, for the textfile collector of its node exporter.

    The job is over when this is written, so every total is a gauge: a resumed job may well have less.

    Args:
        report: what report.json holds.
    """
    return "".join(f"{line}\n" for line in _lines(report))


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    totals, model = report["totals"], report["job"]["model"]
    yield from _gauge("tayyar_complete", "Whether every shard is done.", int(report["complete"]))
    yield from _gauge("tayyar_balanced", "Whether records = embedded + dead letters.", int(report["balanced"]))
    yield from _head("tayyar_job_info", "What the vectors are.", "gauge")
    labels = {"model": model["model_id"], "sha": model["sha"] or "", "dimensions": str(model["dimensions"])}
    yield f"tayyar_job_info{_labels(labels)} 1"
    for field, (name, about) in _TOTALS.items():
        if totals[field] is not None:
            yield from _gauge(name, about, totals[field])
    for field, (name, about) in _MILLISECONDS.items():
        yield from _gauge(name, about, totals[field] / 1000)
    yield from _head("tayyar_dead_letters", "Records set aside.", "gauge")
    for reason, count in totals["dead_letters_by_reason"].items():
        yield f"tayyar_dead_letters{_labels({'reason': reason})} {count}"
    yield from _histogram(report["latency_ms"]["histogram"])


def _histogram(histogram: Mapping[str, int]) -> Iterator[str]:
    name = "tayyar_request_latency_seconds"
    yield from _head(name, "Successful requests; the sum takes each at the upper bound of its bucket.", "histogram")
    below, total = 0, 0.0
    for bound, count in histogram.items():
        below += count
        total += int(bound) / 1000 * count
        yield f"{name}_bucket{_labels({'le': str(int(bound) / 1000)})} {below}"
    yield f'{name}_bucket{{le="+Inf"}} {below}'
    yield f"{name}_sum {round(total, 3)}"
    yield f"{name}_count {below}"


def _gauge(name: str, about: str, value: float) -> Iterator[str]:
    yield from _head(name, about, "gauge")
    yield f"{name} {value}"


def _head(name: str, about: str, kind: str) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
