"""Every fault alone and in pairs, against the simulator: nothing lost or mispaired, only bad texts rejected."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest

from tests.tei_simulator.clients import Simulator
from tests.tei_simulator.hash_model import expected_vectors
from tests.tei_simulator.process import TeiSimulator
from transforms.elements import Reason
from transforms.tei.client import TeiClient
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


def simulated(*arguments: str) -> TeiSimulator:
    return TeiSimulator(["--max_client_batch_size", "17", *arguments])


def reset(simulator: Simulator, **faults: object) -> None:
    """Replace the faults and start the counts again."""
    simulator.set_faults(**faults)
    simulator.reset_statistics()


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with simulated() as tei:
        yield Simulator(tei.url)


@pytest.fixture
def client(simulator: Simulator) -> Iterator[TeiClient]:
    settings = EndpointSettings(urls=(simulator.url,), request_timeout=0.5, give_up_after=20)
    client = TeiClient(settings, pace=0.02, rng=random.Random(1))
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


def check(texts: list[str], names: list[str], embeddings: Embeddings) -> None:
    bad = {
        index: {MARKERS[name][1] for name in names if name in MARKERS and MARKERS[name][0] in text}
        for index, text in enumerate(texts)
    }
    assert {index for index, reasons in bad.items() if reasons} == set(embeddings.rejections)
    assert all(rejection.reason in bad[index] for index, rejection in embeddings.rejections.items())
    good = [index for index, reasons in bad.items() if not reasons]
    expected = expected_vectors([texts[index] for index in good])
    np.testing.assert_array_equal(embeddings.vectors[good], expected)
    assert not embeddings.vectors[sorted(embeddings.rejections)].any()


def run(simulator: Simulator, client: TeiClient, names: list[str], seed: int) -> Embeddings:
    reset(simulator)
    client.probe()
    faults: dict[str, Any] = {"seed": seed}
    for name in names:
        faults |= FAULTS[name]
    reset(simulator, **faults)
    texts = corpus(names, seed)
    try:
        embeddings = client.submit(texts).result()
    finally:
        reset(simulator)
    check(texts, names, embeddings)
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
    reset(simulator)
    client.probe()
    reset(simulator)
    texts = corpus([], 1)
    embeddings = client.submit(texts).result()
    check(texts, [], embeddings)
    assert embeddings.statistics.retries == 0
    assert embeddings.statistics.requests == TEXTS / 16
    assert simulator.statistics()["texts"] == TEXTS + embeddings.statistics.requests  # a canary each


def submit_all(client: TeiClient, shards: list[list[str]]) -> list[Callable[[], Embeddings]]:
    return [client.submit(shard).result for shard in shards]


def test_several_shards_at_once_keep_their_own(simulator: Simulator, client: TeiClient) -> None:
    reset(simulator)
    client.probe()
    reset(simulator, reset=0.05, null_rows=0.01, reject=0.1)
    shards = [corpus([], seed)[: 1 + seed * 37] for seed in range(8)]
    try:
        results = [result() for result in submit_all(client, shards)]
    finally:
        reset(simulator)
    for shard, embeddings in zip(shards, results, strict=True):
        assert not embeddings.rejections
        np.testing.assert_array_equal(embeddings.vectors, expected_vectors(shard))


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
        small.set_faults(batch_seconds=0.005)
        shards = [corpus([], seed) for seed in range(4)]
        pending = [client.submit(shard) for client, shard in zip(crowd, shards, strict=True)]
        results = [each.result() for each in pending]
        for client, shard, embeddings in zip(crowd, shards, results, strict=True):
            client.close()
            check(shard, [], embeddings)
        assert small.statistics()["rejected"] > 0
