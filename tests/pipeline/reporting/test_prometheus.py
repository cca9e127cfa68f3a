from __future__ import annotations

import dataclasses

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.reporting.prometheus import exposition
from pipeline.reporting.schema import Report
from tests.pipeline.reporting.reports import SCRIPT, nasty_report


def parsed(report: Report) -> dict[tuple[str, str], float]:
    """Samples by name and the value of their only label, or of the model's."""
    families = list(text_string_to_metric_families(exposition(report).decode()))
    assert all(family.documentation and family.type != "unknown" for family in families)
    return {
        (sample.name, sample.labels.get("model") or next(iter(sample.labels.values()), "")): sample.value
        for family in families
        for sample in family.samples
    }


def test_prometheus_reads_what_the_report_holds() -> None:
    report = nasty_report()
    found = parsed(report)
    assert found["tayyar_documents_embedded", ""] == report.totals.embedded == 228
    assert found["tayyar_dead_letters", "overlong_text"] == 8
    assert found["tayyar_dead_letters", "invalid_json"] == 4
    assert found["tayyar_queue_seconds", ""] == 36.0
    assert found["tayyar_device_busy_seconds", ""] / found["tayyar_device_seconds", ""] == pytest.approx(2950 / 3000)
    assert found["tayyar_texts_in_flight", ""] == report.bottleneck.texts_in_flight
    assert found["tayyar_texts_in_queue", ""] == report.bottleneck.texts_in_queue
    assert found["tayyar_device_busy_ratio", ""] == report.bottleneck.device_busy
    assert found["tayyar_dollars", ""] == report.totals.dollars
    assert found["tayyar_dollars_not_spent", ""] == report.totals.dollars_not_spent
    sent, reused, duplicates = (found[f"tayyar_documents_{name}", ""] for name in ("sent", "reused", "duplicate"))
    assert sent + reused + duplicates == report.totals.embedded
    assert found["tayyar_complete", ""] == 1
    assert found["tayyar_job_info", SCRIPT] == 1


def test_what_hides_or_reorders_text_is_an_escape() -> None:
    report = nasty_report()
    model = dataclasses.replace(report.job.model, model_id="a\x1b[2J\u202eb")
    report = dataclasses.replace(report, job=dataclasses.replace(report.job, model=model))
    assert parsed(report)["tayyar_job_info", "a\\x1b[2J\\u202eb"] == 1


def test_the_histogram_counts_up() -> None:
    found = parsed(nasty_report())
    bounds = ("0.016", "0.064", "0.091", "0.256", "+Inf")
    assert [found["tayyar_request_latency_seconds_bucket", bound] for bound in bounds] == [20, 180, 228, 240, 240]
    assert found["tayyar_request_latency_seconds_count", ""] == 240
    assert found["tayyar_request_latency_seconds_sum", ""] == pytest.approx(
        20 * 0.016 + 160 * 0.064 + 48 * 0.091 + 12 * 0.256, abs=0.001
    )


def test_what_is_not_known_is_left_out() -> None:
    report = nasty_report()
    model = dataclasses.replace(report.job.model, sha='a"b\\c\nd')
    report = dataclasses.replace(
        report,
        totals=dataclasses.replace(report.totals, dollars=None),
        bottleneck=dataclasses.replace(report.bottleneck, device_busy=None),
        job=dataclasses.replace(report.job, model=model),
    )
    families = {family.name: family for family in text_string_to_metric_families(exposition(report).decode())}
    assert "tayyar_dollars" not in families
    assert "tayyar_device_busy_ratio" not in families
    assert families["tayyar_job_info"].samples[0].labels["sha"] == 'a"b\\c\nd'
