"""The simulated device: its speed, its queue, and what is counted of both."""

from __future__ import annotations

import http.client
import time
from concurrent.futures import ThreadPoolExecutor

import orjson
import pytest

from tests.tei_simulator.clients import Simulator, address


def _texts(count: int) -> list[str]:
    return [f"text {k}" for k in range(count)]


def test_texts_per_second_and_overhead_add_up(simulator: Simulator) -> None:
    simulator.set_faults(texts_per_second=40, batch_seconds=0.1)
    started = time.perf_counter()
    reply = simulator.embed(_texts(32))
    took = time.perf_counter() - started
    # Two batches of 16 texts, 0.4 s and 0.1 s each.
    assert took > 0.95  # how much more depends on what else the machine does
    counts = simulator.statistics()
    assert counts["batches"] == 2
    assert counts["busy_seconds"] == pytest.approx(1.0)
    # Means over the texts: half of them wait 0.5 s, and each batch takes 0.5 s.
    assert int(reply.headers["x-queue-time"]) == pytest.approx(250, abs=60)
    assert int(reply.headers["x-inference-time"]) == pytest.approx(500, abs=60)


def test_its_speed_is_exact_over_many_short_batches(simulator: Simulator) -> None:
    simulator.set_faults(texts_per_second=400)
    with ThreadPoolExecutor(4) as threads:
        started = time.perf_counter()
        replies = list(threads.map(simulator.embed, [_texts(8)] * 50))
        took = time.perf_counter() - started
    assert {reply.status_code for reply in replies} == {200}
    assert took > 0.95  # how much more depends on what else the machine does
    counts = simulator.statistics()
    assert counts["busy_seconds"] == pytest.approx(1.0, abs=0.01)
    assert counts["texts_computed"] == counts["texts_delivered"] == 400


def test_a_new_speed_holds_for_the_rest_of_the_running_batch(simulator: Simulator) -> None:
    simulator.set_faults(texts_per_second=0.05)
    with ThreadPoolExecutor(1) as threads:
        started = time.perf_counter()
        reply = threads.submit(simulator.embed, ["a"])
        simulator.wait_for("batches", 1)
        time.sleep(0.5)
        # A fortieth of the text is done, and the rest takes 0.2 s instead of 19.5 s.
        simulator.change_faults(texts_per_second=5)
        assert reply.result().status_code == 200
        took = time.perf_counter() - started
    assert 0.65 < simulator.statistics()["busy_seconds"] < took
    assert took < 15


def test_a_change_leaves_other_faults_and_the_script_alone(simulator: Simulator) -> None:
    simulator.script("ok", "reject", batch_seconds=0.01)
    simulator.embed(["a"])
    simulator.change_faults(texts_per_second=1000)
    assert simulator.embed(["a"]).status_code == 429
    assert simulator.embed(["a"]).status_code == 200


def test_texts_of_closed_connections_are_not_computed(simulator: Simulator) -> None:
    simulator.set_faults(texts_per_second=40)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(simulator.embed, _texts(16))
        simulator.wait_for("batches", 1)
        waiting = http.client.HTTPConnection(*address(simulator.url), timeout=5)
        waiting.request("POST", "/embed", orjson.dumps({"inputs": _texts(8)}), {"content-type": "application/json"})
        simulator.wait_for("queue_length", 8)
        waiting.close()
        simulator.wait_for("texts_dropped", 8)
        assert running.result().status_code == 200
    counts = simulator.statistics()
    assert [counts[name] for name in ("texts", "texts_computed", "texts_delivered")] == [24, 16, 16]
    assert counts["max_queue_length"] == 8
    assert 0 < counts["mean_queue_length"] < 8


def test_texts_of_a_running_batch_are_computed_and_not_delivered(simulator: Simulator) -> None:
    simulator.set_faults(texts_per_second=20)
    connection = http.client.HTTPConnection(*address(simulator.url), timeout=5)
    connection.request("POST", "/embed", orjson.dumps({"inputs": _texts(4)}), {"content-type": "application/json"})
    simulator.wait_for("batches", 1)
    connection.close()
    simulator.wait_for("texts_computed", 4)
    assert simulator.statistics()["texts_delivered"] == 0


def test_the_time_without_work_is_idle(simulator: Simulator) -> None:
    simulator.set_faults(batch_seconds=0.1)
    started = time.perf_counter()
    simulator.embed(["a"])
    time.sleep(0.3)
    simulator.embed(["a"])
    took = time.perf_counter() - started
    assert 0.3 < simulator.statistics()["idle_seconds"] < took - 0.19


def test_the_network_takes_time_and_the_device_does_not_notice(simulator: Simulator) -> None:
    simulator.set_faults(latency_seconds=0.5, texts_per_second=1000)
    with ThreadPoolExecutor(4) as threads:
        started = time.perf_counter()
        replies = list(threads.map(simulator.embed, [_texts(16)] * 4))
        took = time.perf_counter() - started
    assert 0.5 < took < 2  # four in a row take longer
    assert all(int(reply.headers["x-queue-time"]) < 400 for reply in replies)
    assert simulator.statistics()["busy_seconds"] == pytest.approx(0.064, abs=0.01)


@pytest.mark.parametrize(("kept", "times"), [("zero", ("0", "0")), ("none", (None, None))])
def test_a_gateway_hides_the_times(simulator: Simulator, kept: str, times: tuple[str | None, str | None]) -> None:
    simulator.set_faults(batch_seconds=0.01, time_headers=kept)
    headers = simulator.embed(["a"]).headers
    assert (headers.get("x-queue-time"), headers.get("x-inference-time")) == times
    assert ("x-compute-tokens" in headers) == (kept == "zero")
