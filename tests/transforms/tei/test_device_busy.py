"""How busy the client keeps a real server's device, by the device's own counts."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest

from tests.tei_simulator.clients import Simulator
from tests.tei_simulator.process import TeiSimulator
from transforms.tei.client import TeiClient
from transforms.tei.settings import EndpointSettings


def embed(client: TeiClient, documents: int, server: Simulator) -> tuple[dict[str, Any], Any]:
    """Embed so many documents; return the server's counts and the client's own, from the first request to the last."""
    client.probe()
    server.reset_statistics()
    embeddings = client.submit([f"text {index}" for index in range(documents)]).result()
    assert not embeddings.rejections
    return server.statistics(), embeddings.statistics


@pytest.mark.parametrize("time_headers", ["true", "zero", "none"])
def test_a_device_is_busy_and_its_queue_short(time_headers: str) -> None:
    with TeiSimulator(
        ["--max_batch_requests", "8", "--texts_per_second", "300", "--time_headers", f'"{time_headers}"']
    ) as tei:
        client = TeiClient(EndpointSettings((tei.url,)))
        counts, own = embed(client, 1240, Simulator(tei.url))
        client.close()
    assert counts["busy_share"] > 0.97
    assert counts["mean_queue_length"] < 2 * 32 + 32
    assert counts["rejected"] == counts["texts_dropped"] == own.retries == 0
    assert counts["texts_computed"] == 1240 + own.requests  # a canary each
    assert 40 <= own.requests <= 42  # full ones, but where a machine so busy that the queue ran dry has split one
    if time_headers == "true":
        assert own.busy_ms > 0.95 * own.slot_ms


@pytest.mark.parametrize("time_headers", ["true", "none"])
def test_a_slow_device_computes_nothing_for_nothing(time_headers: str) -> None:
    """A tenth of the time: 40 texts/s and 6 s instead of 4 texts/s and 60 s."""
    with TeiSimulator(
        ["--max_batch_requests", "4", "--texts_per_second", "40", "--time_headers", f'"{time_headers}"']
    ) as tei:
        client = TeiClient(EndpointSettings((tei.url,), request_timeout=6))
        counts, own = embed(client, 240, Simulator(tei.url))
        client.close()
    assert counts["texts_computed"] == counts["texts_delivered"]
    assert counts["texts_dropped"] == own.retries == 0
    assert counts["busy_share"] > 0.97
    assert counts["max_queue_length"] < 100


def test_a_device_that_waits_for_its_client_shows_in_the_clients_own_figures() -> None:
    """Eight texts may be in flight over a long way: the device has nothing to do for most of the time."""
    with TeiSimulator(["--texts_per_second", "200", "--latency_seconds", "0.1"]) as tei:
        client = TeiClient(EndpointSettings((tei.url,), max_in_flight=8))
        counts, own = embed(client, 100, Simulator(tei.url))
        client.close()
    assert own.busy_ms / own.slot_ms == pytest.approx(counts["busy_share"], abs=0.15)
    assert counts["busy_share"] < 0.6


def test_eight_endpoints_are_busy_in_one_process_and_no_number_of_threads_is_the_most() -> None:
    with contextlib.ExitStack() as stack:
        arguments = ["--max_batch_requests", "8", "--texts_per_second", "30"]
        servers = [Simulator(stack.enter_context(TeiSimulator(arguments)).url) for _ in range(8)]
        client = TeiClient(EndpointSettings(tuple(server.url for server in servers)))
        stack.callback(client.close)
        client.submit([f"first {index}" for index in range(8 * 62)]).result()  # all have had their handshake
        for server in servers:
            server.reset_statistics()
        pending = client.submit([f"text {index}" for index in range(8 * 310)])
        while pending.so_far()[1].sum() < 8 * 200:
            threading.Event().wait(0.05)
        counts = [server.statistics() for server in servers]  # before the last requests, which are not evenly spread
        workers = [thread for thread in threading.enumerate() if thread.name.startswith("tei-")]
        pending.result()
    assert min(count["busy_share"] for count in counts) > 0.95
    assert sum(count["busy_share"] for count in counts) / 8 > 0.97
    assert len(workers) >= 16
