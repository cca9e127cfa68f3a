"""Every fault alone and in pairs, against the simulator: nothing lost or mispaired, only bad texts rejected."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import orjson
import pytest
import requests

from tests.tei_simulator.hash_model import expected_vectors
from tests.tei_simulator.process import TeiSimulator
from transforms.elements import Reason, Vectors
from transforms.tei.client import TeiClient
from transforms.tei.errors import ModelChanged, PairingBroken
from transforms.tei.settings import EndpointSettings
from transforms.tei.tasks import Embeddings

TEXTS = 400
FAULTS: dict[str, dict[str, Any]] = {
    "reject": {"reject": 0.2},
    "backend": {"backend": 0.1},
    "throttle": {"throttle": 0.2, "retry_after": 0.01},
    "bad_gateway": {"bad_gateway": 0.2},
    "unavailable": {"unavailable": 0.2, "retry_after": 0.01},
    "gateway_timeout": {"gateway_timeout": 0.2},
    "reset": {"reset": 0.2},
    "cut": {"cut": 0.2},
    "end_early": {"end_early": 0.2},
    "hang": {"hang": 0.05},
    "short_reply": {"short_reply": 0.1},
    "wrong_dimensions": {"wrong_dimensions": 0.1},
    "drip": {"drip": 0.05},
    "null_rows": {"null_rows": 0.02},
    "null_marker": {"null_marker": "NULLS"},
    "refuse_marker": {"refuse_marker": "REFUSED"},
    "poison_marker": {"poison_marker": "POISON"},
    "crash": {"script": ["ok"] * 12 + ["crash"], "crash_seconds": 0.3},
}
MARKERS = {
    "null_marker": ("NULLS", Reason.INVALID_VECTOR),
    "refuse_marker": ("REFUSED", Reason.REJECTED_BY_ENDPOINT),
    "poison_marker": ("POISON", Reason.REJECTED_BY_ENDPOINT),
}
PAIRS = [random.Random(seed).sample(sorted(FAULTS), 2) for seed in range(12)]


class Simulator:
    def __init__(self, url: str) -> None:
        self.url = url

    def set(self, **faults: Any) -> None:
        reply = requests.post(f"{self.url}/simulator/faults", data=orjson.dumps(faults), timeout=10)
        assert reply.status_code == 200, reply.text
        requests.post(f"{self.url}/simulator/statistics", timeout=10)

    def statistics(self) -> dict[str, Any]:
        told: dict[str, Any] = requests.get(f"{self.url}/simulator/statistics", timeout=10).json()
        return told

    def vectors(self, texts: list[str]) -> Vectors:
        return expected_vectors(texts)


def simulated(*arguments: str) -> TeiSimulator:
    return TeiSimulator(["--max_client_batch_size", "16", *arguments])


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with simulated() as tei:
        yield Simulator(tei.url)


@pytest.fixture
def client(simulator: Simulator) -> Iterator[TeiClient]:
    settings = EndpointSettings(urls=(simulator.url,), request_timeout=0.5, give_up_after=20)
    client = TeiClient(settings, pace=0.02, rng=random.Random(1), canary_every=5)
    yield client
    client.close()


def corpus(names: list[str], seed: int) -> list[str]:
    rng = random.Random(seed)
    texts = [f"text {index} of {seed} " + "كلمة " * rng.randrange(40) for index in range(TEXTS)]
    for name in names:
        if name in MARKERS:
            for index in rng.sample(range(TEXTS), 3):
                texts[index] += MARKERS[name][0]
    return texts


def check(simulator: Simulator, texts: list[str], names: list[str], embeddings: Embeddings) -> None:
    bad = {
        index: {MARKERS[name][1] for name in names if name in MARKERS and MARKERS[name][0] in text}
        for index, text in enumerate(texts)
    }
    assert {index for index, reasons in bad.items() if reasons} == set(embeddings.rejections)
    assert all(rejection.reason in bad[index] for index, rejection in embeddings.rejections.items())
    good = [index for index, reasons in bad.items() if not reasons]
    expected = simulator.vectors([texts[index] for index in good])
    np.testing.assert_array_equal(embeddings.vectors[good], expected)
    assert not embeddings.vectors[sorted(embeddings.rejections)].any()


def run(simulator: Simulator, client: TeiClient, names: list[str], seed: int) -> Embeddings:
    simulator.set()
    client.probe()
    faults: dict[str, Any] = {"seed": seed}
    for name in names:
        faults |= FAULTS[name]
    simulator.set(**faults)
    texts = corpus(names, seed)
    try:
        embeddings = client.submit(texts).result()
    finally:
        simulator.set()
    check(simulator, texts, names, embeddings)
    return embeddings


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_costs_no_text_that_is_good(simulator: Simulator, client: TeiClient, name: str) -> None:
    embeddings = run(simulator, client, [name], seed=7)
    assert embeddings.statistics.retries > 0


@pytest.mark.parametrize(("names", "seed"), list(zip(PAIRS, count(100), strict=False)), ids=lambda value: str(value))
def test_two_faults_cost_no_text_that_is_good(
    simulator: Simulator, client: TeiClient, names: list[str], seed: int
) -> None:
    run(simulator, client, names, seed)


def test_a_healthy_endpoint_is_asked_once_for_each_text(simulator: Simulator, client: TeiClient) -> None:
    simulator.set()
    client.probe()
    simulator.set()
    texts = corpus([], 1)
    embeddings = client.submit(texts).result()
    check(simulator, texts, [], embeddings)
    assert embeddings.statistics.retries == 0
    canaries = simulator.statistics()["texts"] - TEXTS
    assert canaries == math.ceil(embeddings.statistics.requests / 5)


def test_another_model_in_mid_run_stops_it(simulator: Simulator, client: TeiClient) -> None:
    simulator.set()
    client.submit(corpus([], 1)).result()
    simulator.set(model_seed=1, script=["crash"], crash_seconds=0.1)
    try:
        with pytest.raises(ModelChanged, match="sha"):
            client.submit(corpus([], 2)).result()
    finally:
        simulator.set()


def test_another_model_is_noticed_without_any_failure(simulator: Simulator, client: TeiClient) -> None:
    simulator.set()
    client.submit(corpus([], 1)).result()
    simulator.set(model_seed=1)
    try:
        with pytest.raises(ModelChanged, match="sha"):
            client.submit(corpus([], 2)).result()
    finally:
        simulator.set()


def test_rows_in_each_others_places_stop_the_run(simulator: Simulator, client: TeiClient) -> None:
    simulator.set()
    client.probe()
    simulator.set(permuted=1.0)
    try:
        with pytest.raises(PairingBroken, match="cannot be trusted"):
            client.submit(corpus([], 3)).result()
    finally:
        simulator.set()


def submit_all(client: TeiClient, shards: list[list[str]]) -> list[Callable[[], Embeddings]]:
    return [client.submit(shard).result for shard in shards]


def test_several_shards_at_once_keep_their_own(simulator: Simulator, client: TeiClient) -> None:
    simulator.set()
    client.probe()
    simulator.set(reset=0.05, null_rows=0.01, reject=0.1)
    shards = [corpus([], seed)[: 1 + seed * 37] for seed in range(8)]
    try:
        results = [result() for result in submit_all(client, shards)]
    finally:
        simulator.set()
    for shard, embeddings in zip(shards, results, strict=True):
        assert not embeddings.rejections
        np.testing.assert_array_equal(embeddings.vectors, simulator.vectors(shard))


def test_the_older_generation_says_413_and_lets_batches_wait() -> None:
    names = ["refuse_marker", "poison_marker", "null_marker", "reset"]
    with simulated("--generation", "1.8", "--max_concurrent_requests", "64") as tei:
        old = Simulator(tei.url)
        client = TeiClient(EndpointSettings(urls=(tei.url,), request_timeout=5, give_up_after=20), pace=0.02)
        run(old, client, names, seed=3)
        client.close()


def test_several_clients_of_one_small_server_get_all_their_texts() -> None:
    with simulated("--max_concurrent_requests", "48") as tei:
        small = Simulator(tei.url)
        crowd = [TeiClient(EndpointSettings(urls=(tei.url,)), pace=0.05) for _ in range(4)]
        small.set(batch_seconds=0.005)
        shards = [corpus([], seed) for seed in range(4)]
        pending = [client.submit(shard) for client, shard in zip(crowd, shards, strict=True)]
        results = [each.result() for each in pending]
        for client, shard, embeddings in zip(crowd, shards, results, strict=True):
            client.close()
            check(small, shard, [], embeddings)
        assert small.statistics()["rejected"] > 0
