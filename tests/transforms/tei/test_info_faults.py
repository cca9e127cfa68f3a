"""Every fault of `/info`, at the first handshake and later: it is waited out, and nobody is believed without one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import requests

from tests.tei_simulator.clients import Simulator
from transforms.tei.client import TeiClient
from transforms.tei.errors import EndpointUnreachable, ModelChanged
from transforms.tei.settings import EndpointSettings

from .test_faults import check, corpus, reset, simulated

FAULTS = [
    "reject",
    "throttle",
    "backend",
    "bad_gateway",
    "unavailable",
    "gateway_timeout",
    "reset",
    "cut",
    "end_early",
    "hang",
    "drip",
]
DOWN = 0.5  # seconds: the client must have come meanwhile, on a busy machine too, or it sees no crash
DRAWN = [fault for fault in FAULTS if fault != "backend"]  # whose chance is a device batch's


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with simulated() as tei:
        yield Simulator(tei.url)


@contextmanager
def client_of(simulator: Simulator, give_up_after: float = 30.0) -> Iterator[TeiClient]:
    settings = EndpointSettings(urls=(simulator.url,), request_timeout=0.3, give_up_after=give_up_after)
    client = TeiClient(settings, pace=0.02)
    try:
        yield client
    finally:
        client.close()
        reset(simulator)


def crash(simulator: Simulator) -> None:
    with pytest.raises(requests.ConnectionError):
        requests.post(f"{simulator.url}/simulator/crash", timeout=10)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_first_contact_is_waited_out(simulator: Simulator, fault: str) -> None:
    reset(simulator, script=[fault] * 3, info=True, embed=False, retry_after=0.01)
    texts = corpus([], 1)
    with client_of(simulator) as client:
        embeddings = client.submit(texts).result()
        check(texts, [], embeddings)
        assert simulator.statistics()["info_faults"] == 3


@pytest.mark.parametrize("fault", DRAWN)
def test_a_fault_that_stays_stops_the_run_before_anything_is_embedded(simulator: Simulator, fault: str) -> None:
    reset(simulator, **{fault: 1.0}, info=True, embed=False, retry_after=0.01)
    with client_of(simulator, give_up_after=0.5) as client:
        with pytest.raises(EndpointUnreachable):
            client.submit(corpus([], 2)).result()
        told = simulator.statistics()
        assert told["info_faults"] > 0
        assert told["requests"] == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_a_reconnect_is_waited_out(simulator: Simulator, fault: str) -> None:
    with client_of(simulator) as client:
        reset(simulator)
        client.submit(corpus([], 3)).result()
        texts = corpus([], 4)
        reset(simulator, script=[fault] * 3, info=True, embed=False, crash_seconds=DOWN, retry_after=0.01)
        crash(simulator)
        embeddings = client.submit(texts).result()
        check(texts, [], embeddings)
        assert simulator.statistics()["info_faults"] == 3


@pytest.mark.parametrize("fault", DRAWN)
def test_a_fault_of_both_routes_costs_no_text(simulator: Simulator, fault: str) -> None:
    with client_of(simulator) as client:
        reset(simulator, **{fault: 0.15}, info=True, retry_after=0.01)
        first = corpus([], 5)
        check(first, [], client.submit(first).result())
        second = corpus([], 6)
        reset(simulator, **{fault: 0.15}, info=True, crash_seconds=DOWN, retry_after=0.01, seed=1)
        crash(simulator)
        embeddings = client.submit(second).result()
        check(second, [], embeddings)
        assert simulator.statistics()["info_requests"] > 0
        assert embeddings.statistics.retries > 0


@pytest.mark.parametrize("fault", FAULTS)
def test_another_model_behind_a_fault_stops_the_run(simulator: Simulator, fault: str) -> None:
    with client_of(simulator) as client:
        reset(simulator)
        client.submit(corpus([], 7)).result()
        reset(simulator, model_seed=1, script=[fault] * 3, info=True, embed=False, crash_seconds=DOWN, retry_after=0.01)
        crash(simulator)
        pending = client.submit(corpus([], 8))
        with pytest.raises(ModelChanged, match="whatever its name"):
            pending.result()
