"""How far a job is, by receipts and a run marker that are made up."""

from __future__ import annotations

import socket
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest

from pipeline.job.ledger import Ledger, SourceLedger
from pipeline.job.run_marker import RunMarker
from pipeline.job.sharding import Plan
from pipeline.reporting.status import State, Status, decide_state, render_status, status_of
from tests.pipeline.job.test_spec import JOB
from tests.shards import receipt
from transforms.elements import RequestStatistics, Source

NOW = 1_767_323_045.0 + 3600
ELSEWHERE = RunMarker("elsewhere", 7, "2026-01-02T03:04:05+00:00")  # an hour before NOW
GONE = RunMarker(socket.gethostname(), 2**22 + 1, ELSEWHERE.since)  # no machine has a process of so high a number
REMOTE = replace(GONE, runner="DataflowRunner")
SOURCE = Source("/in/wiki.ndjson", "wiki", size=1000, version="1.0")


def ledger(*finished: float, seconds: float = 10.0, complete: bool = False) -> Ledger:
    """Shards of 100 bytes and 50 documents, each finished at one of these times and begun `seconds` before."""
    statistics = RequestStatistics(
        tokens=500, requests=5, retries=1, queue_ms=200, inference_ms=100, throttled_ms=400, flight_ms=350_000,
        busy_ms=984, slot_ms=1000,
    )  # fmt: skip
    receipts = {
        index: receipt(
            index, SOURCE, records=50, embedded=50, started_at=end - seconds, finished_at=end, statistics=statistics
        )
        for index, end in enumerate(finished)
    }
    return Ledger(Plan((SOURCE,), 100), (SourceLedger(SOURCE, receipts, complete),))


def at(now: float, by: RunMarker | None, *finished: float, seconds: float = 10.0, complete: bool = False) -> Status:
    return status_of(ledger(*finished, seconds=seconds, complete=complete), JOB, by, now)


@pytest.mark.parametrize(
    ("by", "finished", "seconds", "complete", "state", "words"),
    [
        (None, [NOW], 10, True, State.FINISHED, "every shard"),
        (ELSEWHERE, [NOW], 10, True, State.FINISHED, "every shard"),
        (None, [NOW], 10, False, State.STOPPED, "the same run command continues"),
        (GONE, [NOW], 10, False, State.STOPPED, "is gone"),
        (ELSEWHERE, [NOW - 599], 10, False, State.RUNNING, "elsewhere"),
        (ELSEWHERE, [NOW - 601], 10, False, State.STALLED, "no shard for 10 min 01 s"),
        (ELSEWHERE, [NOW - 601], 250, False, State.RUNNING, "elsewhere"),
        (ELSEWHERE, [NOW - 751], 250, False, State.STALLED, "limit 12 min 30 s"),
        (REMOTE, [NOW - 599], 10, False, State.RUNNING, "is gone, but shards are being finished"),
        (REMOTE, [NOW - 601], 10, False, State.STOPPED, "is gone; the same run command continues"),
        (ELSEWHERE, [], 10, False, State.RUNNING, "has finished no shard yet"),
    ],
)
def test_how_the_state_is_judged(
    by: RunMarker | None, finished: list[float], seconds: float, complete: bool, state: State, words: str
) -> None:
    found, why = decide_state(complete, list(ledger(*finished, seconds=seconds).receipts()), by, NOW)
    assert found is state
    assert words in why


@pytest.mark.parametrize(("path", "shown"), [("gs://b/wiki.ndjson", True), ("/in/wiki.ndjson", False)])
def test_a_job_of_a_template_may_be_running_without_a_marker_where_a_service_can_read(path: str, shown: bool) -> None:
    one = receipt(0, replace(SOURCE, path=path), started_at=NOW - 10, finished_at=NOW - 5)
    state, why = decide_state(False, [one], None, NOW)
    assert state is State.STOPPED
    assert ("(last shard 5 s ago; a job started from a template may still be running)" in why) is shown


def test_a_finished_job_without_records_has_no_rate_to_wait_for() -> None:
    assert "rate: nothing was sent" in render_status(at(NOW, None, complete=True))


def test_a_run_that_has_just_begun_in_an_old_folder_is_running() -> None:
    yesterday = NOW - 86_400
    assert at(ELSEWHERE.since_seconds + 5, ELSEWHERE, yesterday).state is State.RUNNING


def test_what_a_status_holds() -> None:
    found = at(NOW, ELSEWHERE, NOW - 400, NOW - 200, NOW - 195, NOW)
    assert (found.sources, found.sources_done, found.shards, found.shards_done) == (1, 0, 10, 4)
    assert (found.records, found.records_expected, found.embedded) == (200, 500, 200)
    assert found.recent_rate == pytest.approx(150 / 300)
    assert found.overall_rate == pytest.approx(200 / 35, abs=0.01)
    assert found.seconds_left == pytest.approx(300 / 0.5)
    assert (found.tokens, found.requests, found.retries, found.throttled_seconds) == (2000, 20, 4, 1.6)
    assert (found.queue_ms, found.inference_ms) == (4.0, 2.0)
    assert (found.texts_in_flight, found.texts_in_queue, found.device_busy) == (40.0, 0.02, 0.984)


def test_the_time_left_counts_dead_letters_as_done() -> None:
    half = receipt(0, SOURCE, records=50, embedded=25, dead_letters=25, started_at=NOW - 10, finished_at=NOW)
    found = status_of(Ledger(Plan((SOURCE,), 100), (SourceLedger(SOURCE, {0: half}, False),)), JOB, None, NOW)
    assert (found.overall_rate, found.records_expected) == (2.5, 500)
    assert found.seconds_left == pytest.approx(450 / 5)


def of_one_shard(**statistics: Any) -> list[str]:
    one = receipt(0, SOURCE, started_at=NOW - 10, finished_at=NOW, statistics=RequestStatistics(**statistics))
    return list(
        render_status(status_of(Ledger(Plan((SOURCE,), 100), (SourceLedger(SOURCE, {0: one}, True),)), JOB, None, NOW))
    )


def test_the_endpoint_is_shown_by_what_it_had_to_do() -> None:
    lines = of_one_shard(requests=20, queue_ms=310_000, inference_ms=9_000, flight_ms=640_000, busy_ms=98, slot_ms=100)
    assert lines[-1] == (
        "endpoint: 64 texts in flight, 31 waiting in its queue, device busy 98%; 20 requests, 0 repeated"
    )


def test_an_endpoint_that_reports_no_times_is_not_called_idle() -> None:
    lines = of_one_shard(requests=20, retries=1, flight_ms=640_000, slot_ms=10_000)
    assert lines[-1] == (
        "endpoint: 64 texts in flight, times in its queue and its device not reported; 20 requests, 1 repeated"
    )


def test_the_rate_is_the_endpoints_and_the_time_left_counts_reused_documents() -> None:
    one = receipt(
        0, SOURCE, records=50, embedded=50, sent=10, reused=35, duplicates=5, started_at=NOW - 10, finished_at=NOW
    )
    half = Ledger(Plan((SOURCE,), 100), (SourceLedger(SOURCE, {0: one}, False),))
    began = datetime.fromtimestamp(NOW - 400, timezone.utc).isoformat()
    found = status_of(half, JOB, replace(ELSEWHERE, since=began), NOW, partial=12)
    assert (found.sent, found.reused, found.duplicates, found.partial) == (10, 35, 5, 12)
    assert found.recent_rate == pytest.approx(10 / 300, abs=0.005)
    assert found.overall_rate == pytest.approx(10 / 10)
    assert found.seconds_left == pytest.approx(450 / (50 / 300))
    assert any("over the last minutes, 1 documents sent/s over 10 s" in line for line in render_status(found))
    assert "not sent: 35 took a former output's vector, 5 that of an equal text" in render_status(found)
    assert "saved: 12 vectors of unfinished shards" in render_status(found)


def test_where_all_vectors_are_reused_there_is_no_rate() -> None:
    one = receipt(0, SOURCE, records=50, embedded=50, sent=0, reused=50)
    whole = Ledger(Plan((SOURCE,), 100), (SourceLedger(SOURCE, {0: one}, True),))
    assert "rate: nothing was sent" in render_status(status_of(whole, JOB, None, NOW))


def test_where_nothing_was_sent_there_is_no_line_of_the_endpoint() -> None:
    assert not any(line.startswith("endpoint") for line in of_one_shard())


def test_requests_and_repeated_ones_are_counts_of_their_own() -> None:
    assert any("20 requests, 4 repeated" in line for line in render_status(at(NOW, None, NOW, NOW, NOW, NOW)))


def test_a_run_has_no_recent_rate_of_its_own_before_it_has_worked_that_long() -> None:
    """Its start, and the shards that are under way, would make it look slower than the rate of all work."""
    began = ELSEWHERE.since_seconds
    found = at(began + 20, ELSEWHERE, began - 100, began + 10, began + 20)
    assert found.recent_rate is None
    assert "last minutes" not in "".join(render_status(found))
    assert at(began + 301, ELSEWHERE, began - 100, began + 10, began + 20).recent_rate == pytest.approx(
        100 / 300, abs=0.005
    )


def test_nothing_is_divided_by_nothing() -> None:
    found = at(NOW, None)
    assert (found.recent_rate, found.overall_rate, found.seconds_left, found.queue_ms) == (None, None, None, None)
    assert "rate: not known yet" in render_status(found)
    assert "rate: not known yet" in render_status(at(NOW, ELSEWHERE))


def test_of_a_compressed_file_the_number_of_shards_is_not_known_before_its_end() -> None:
    packed = Source("/in/wiki.ndjson.gz", "wiki", size=1000, version="1.0", compressed=True)
    one = {0: receipt(0, packed)}
    assert Ledger(Plan((packed,), 100), (SourceLedger(packed, one, False),)).shards_expected is None
    assert Ledger(Plan((packed,), 100), (SourceLedger(packed, one, True),)).shards_expected == 1


def test_before_the_first_shard_the_estimate_of_the_plan_counts() -> None:
    unknown, planned = status_of(ledger(), JOB, None, NOW), status_of(ledger(), JOB, None, NOW, 500)
    assert (unknown.records_expected, planned.records_expected) == (None, 500)
    assert "records: 0 of about 500 (0%); 0 of 10 shards, 0 of 1 file" in render_status(planned)
    assert "records: 0 so far; how many there are is not known yet; 0 of 10 shards, 0 of 1 file" in render_status(
        unknown
    )


@pytest.mark.parametrize("by", [None, GONE])
def test_a_stopped_job_says_so_in_a_line(by: RunMarker | None) -> None:
    _, why = decide_state(False, list(ledger(NOW - 5).receipts()), by, NOW)
    assert len(why.split()) <= 25


def test_the_rate_names_the_time_that_it_is_of() -> None:
    assert "rate: 5 documents/s over 10 s of work" in render_status(at(NOW, None, NOW, complete=True))
