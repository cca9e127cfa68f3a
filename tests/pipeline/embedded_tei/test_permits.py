"""Permits, queue and batches, with requests that are really under way at once."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import orjson
import pytest

from tests.tei_simulator.clients import Simulator, address, embed, post
from tests.tei_simulator.process import TeiSimulator

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def eight_permits() -> Iterator[Simulator]:
    arguments = ["--max_concurrent_requests", "8", "--max_batch_tokens", "12"]
    with TeiSimulator([*arguments]) as server:
        yield Simulator(server.url)


@pytest.fixture
def tight(eight_permits: Simulator) -> Simulator:
    eight_permits.set_faults()
    eight_permits.reset_statistics()
    return eight_permits


def test_a_permit_is_one_text_and_a_request_takes_all_or_none(tight: Simulator) -> None:
    tight.hold()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(tight.embed, ["a", "b", "c", "d"])
        tight.wait_for("texts_in_flight", 4)
        refused = tight.embed(["e"] * 5)
        assert refused.status_code == 429
        assert refused.json() == {"error": "Model is overloaded", "error_type": "Overloaded"}
        assert "retry-after" not in refused.headers
        flat = post(tight.url, "/v1/embeddings", {"input": ["e"] * 5})
        assert flat.json() == {"message": "Model is overloaded", "code": 429, "type": "Overloaded"}
        second = pool.submit(tight.embed, ["e"] * 4)
        tight.wait_for("texts_in_flight", 8)
        tight.set_faults()
        assert [reply.result().status_code for reply in (first, second)] == [200, 200]
    statistics = tight.statistics()
    assert (statistics["rejected"], statistics["peak_texts_in_flight"]) == (2, 9)


def test_more_texts_than_permits_never_pass(tight: Simulator) -> None:
    assert tight.embed(["a"] * 9).status_code == 429
    assert tight.embed(["a"] * 8).status_code == 200


@pytest.mark.parametrize("inputs", [[], "", ["a", ""], ["a"] * 8])
def test_permits_come_back_after_every_answer(tight: Simulator, inputs: object) -> None:
    for _ in range(10):
        post(tight.url, "/embed", {"inputs": inputs})
        post(tight.url, "/embed", {"inputs": inputs, "prompt_name": "unknown"})
    assert tight.embed(["a"] * 8).status_code == 200


def test_an_empty_text_needs_a_permit_first(tight: Simulator) -> None:
    tight.hold()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(tight.embed, ["a"] * 8)
        tight.wait_for("texts_in_flight", 8)
        assert post(tight.url, "/embed", {"inputs": ""}).status_code == 429
        assert post(tight.url, "/embed", {"inputs": ["a"] * 33}).status_code == 422
        assert post(tight.url, "/tokenize", {"inputs": "a"}).status_code == 200
        tight.set_faults()
        assert first.result().status_code == 200


def test_a_batch_holds_no_more_tokens_than_it_may(tight: Simulator) -> None:
    # three tokens a text, twelve in a batch
    assert tight.embed(["a"] * 8).status_code == 200
    assert (tight.statistics()["batches"], tight.statistics()["tokens"]) == (2, 24)


def test_a_batch_holds_no_more_texts_than_it_may() -> None:
    with TeiSimulator(["--max_batch_requests", "3"]) as server:
        simulator = Simulator(server.url)
        assert simulator.embed(["a"] * 7).status_code == 200
        assert simulator.statistics()["batches"] == 3


def test_texts_of_different_requests_share_a_batch(tight: Simulator) -> None:
    tight.hold()
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(tight.embed, [f"text{k}"]) for k in range(8)]
        tight.wait_for("texts_in_flight", 8)
        tight.set_faults()
        replies = [future.result() for future in futures]
    assert [reply.status_code for reply in replies] == [200] * 8
    # one on the device, and seven in batches of four
    assert tight.statistics()["batches"] == 3
    assert [reply.json()[0] for reply in replies] == tight.embed([f"text{k}" for k in range(8)]).json()


def test_the_permits_of_a_client_that_left_come_back(tight: Simulator) -> None:
    tight.hold()
    connection = http.client.HTTPConnection(*address(tight.url), timeout=5)
    # One text is on the device and seven wait: what waits is dropped at once, and never computed.
    connection.request("POST", "/embed", orjson.dumps({"inputs": ["a"]}), JSON)
    tight.wait_for("batches", 1)
    waiting = http.client.HTTPConnection(*address(tight.url), timeout=5)
    waiting.request("POST", "/embed", orjson.dumps({"inputs": ["c"] * 7}), JSON)
    tight.wait_for("texts_in_flight", 8)
    assert tight.embed(["d"]).status_code == 429
    waiting.close()
    tight.wait_for("texts_in_flight", 1)
    with ThreadPoolExecutor(1) as pool:
        last = pool.submit(tight.embed, ["d"] * 7)
        tight.wait_for("texts_in_flight", 8)
        tight.set_faults()
        assert last.result().status_code == 200
    assert connection.getresponse().status == 200
    connection.close()
    counts = tight.statistics()
    assert [counts[name] for name in ("texts_computed", "texts_delivered", "texts_dropped")] == [8, 8, 7]
    assert counts["max_queue_length"] == 7


def test_requests_at_once_each_get_their_own_vectors(simulator: Simulator) -> None:
    texts = [[f"{worker} {text}" for text in range(16)] for worker in range(12)]
    simulator.hold()
    with ThreadPoolExecutor(12) as pool:
        futures = [pool.submit(simulator.embed, batch) for batch in texts]
        # 64 permits are four requests of 16 texts
        simulator.wait_for("rejected", 8)
        simulator.set_faults()
        replies = [future.result() for future in futures]
    assert sorted(reply.status_code for reply in replies) == [200] * 4 + [429] * 8
    for batch, reply in zip(texts, replies, strict=True):
        if reply.status_code == 200:
            assert reply.json() == simulator.embed(batch).json()


def test_the_older_generation_lets_batches_wait_and_refuses_single_texts() -> None:
    arguments = ["--generation", "1.8", "--max_concurrent_requests", "4"]
    with TeiSimulator([*arguments]) as server, ThreadPoolExecutor(3) as pool:
        old = Simulator(server.url)
        old.hold()
        first = pool.submit(old.embed, ["a", "b", "c", "d"])
        old.wait_for("texts_in_flight", 4)
        assert post(old.url, "/embed", {"inputs": "single"}).status_code == 429
        others = [pool.submit(old.embed, [f"e{k}" for k in range(6)]) for _ in range(2)]
        old.wait_for("texts_in_flight", 16)
        old.set_faults()
        assert [reply.result().status_code for reply in (first, *others)] == [200] * 3
        assert len(embed(old.url, ["a"] * 20)) == 20
