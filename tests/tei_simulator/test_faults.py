from __future__ import annotations

import http.client
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import orjson
import pytest
import requests

from tests.tei_simulator.clients import Simulator, address, embed, embed_base64, post
from tests.tei_simulator.faults import Fault, Faults
from tests.tei_simulator.hash_model import expected_vectors
from tests.tei_simulator.process import TeiSimulator

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("fault", "status", "body", "kind"),
    [
        ("reject", 429, '{"error":"Model is overloaded","error_type":"Overloaded"}', "application/json"),
        ("throttle", 429, "<html>", "text/html"),
        (
            "backend",
            424,
            '{"error":"Backend error: Inference error: out of memory","error_type":"Backend"}',
            "application/json",
        ),
        ("bad_gateway", 502, "<html>", "text/html"),
        ("unavailable", 503, "<html>", "text/html"),
        ("gateway_timeout", 504, "<html>", "text/html"),
        ("unauthorized", 401, "", None),
        ("forbidden", 403, "<html>", "text/html"),
        ("not_found", 404, "<html>", "text/html"),
        ("paused", 400, '{"error":"Bad Request: Invalid state"}', "application/json"),
    ],
)
def test_a_scripted_answer_comes_once(
    simulator: Simulator, fault: str, status: int, body: str, kind: str | None
) -> None:
    simulator.script(fault)
    reply = simulator.embed(["a"])
    assert reply.status_code == status
    assert reply.text.startswith(body)
    assert reply.headers.get("content-type", "").partition(";")[0] == (kind or "")
    assert simulator.embed(["a"]).status_code == 200


def test_a_script_is_followed_in_order_and_information_is_no_step_of_it(simulator: Simulator) -> None:
    simulator.script("ok", "bad_gateway", "reject", "ok")
    statuses = []
    for _ in range(5):
        assert requests.get(f"{simulator.url}/info", timeout=5).status_code == 200
        statuses.append(simulator.embed(["a"]).status_code)
    assert statuses == [200, 502, 429, 200, 200]


def test_a_script_for_information_leaves_embeddings_alone(simulator: Simulator) -> None:
    simulator.script("bad_gateway", "reject", "short_reply", "unauthorized", info=True, embed=False)
    statuses = []
    for _ in range(5):
        assert simulator.embed(["a"]).status_code == 200
        statuses.append(requests.get(f"{simulator.url}/info", timeout=5).status_code)
    assert statuses == [502, 429, 200, 401, 200]


def test_a_script_for_both_is_followed_in_the_order_in_which_they_come(simulator: Simulator) -> None:
    simulator.script("bad_gateway", "reject", info=True)
    assert requests.get(f"{simulator.url}/info", timeout=5).status_code == 502
    assert simulator.embed(["a"]).status_code == 429


@pytest.mark.parametrize("fault", ["reset", "cut", "end_early", "crash"])
def test_a_connection_that_breaks(simulator: Simulator, fault: str) -> None:
    simulator.script(fault, crash_seconds=0)
    connection = http.client.HTTPConnection(*address(simulator.url), timeout=5)
    connection.request("POST", "/embed", orjson.dumps({"inputs": ["a"] * 8}), JSON)
    expected = {"reset": ConnectionResetError, "crash": ConnectionResetError, "end_early": http.client.IncompleteRead}
    with pytest.raises(expected.get(fault, (ConnectionResetError, http.client.IncompleteRead))):
        connection.getresponse().read()
    connection.close()
    _wait_until_it_answers(simulator.url)
    assert simulator.embed(["a"]).status_code == 200


def test_a_reply_that_is_cut_has_begun(simulator: Simulator) -> None:
    simulator.script("end_early")
    connection = http.client.HTTPConnection(*address(simulator.url), timeout=5)
    connection.request("POST", "/embed", orjson.dumps({"inputs": ["a"] * 8}), JSON)
    response = connection.getresponse()
    assert response.status == 200
    with pytest.raises(http.client.IncompleteRead) as caught:
        response.read()
    length = int(response.headers["content-length"])
    assert abs(len(caught.value.partial) - length / 2) <= 1
    connection.close()


def test_a_request_that_hangs_ends_when_the_client_leaves(simulator: Simulator) -> None:
    simulator.script("hang")
    with pytest.raises(requests.Timeout):
        requests.post(f"{simulator.url}/embed", json={"inputs": "a"}, timeout=0.2)
    simulator.wait_for("texts_in_flight", 0)


def test_a_crash_refuses_connections_for_a_while_and_the_port_stays(simulator: Simulator) -> None:
    simulator.set_faults(crash_seconds=0.5)
    idle = http.client.HTTPConnection(*address(simulator.url), timeout=5)
    idle.request("GET", "/health")
    idle.getresponse().read()
    started = time.monotonic()
    with pytest.raises(requests.ConnectionError):
        post(simulator.url, "/simulator/crash", None)
    with pytest.raises(ConnectionResetError):
        idle.sock.recv(1)
    with pytest.raises(requests.ConnectionError, match="refused"):
        requests.get(f"{simulator.url}/health", timeout=5)
    _wait_until_it_answers(simulator.url)
    assert time.monotonic() - started >= 0.5
    assert simulator.embed(["a"]).status_code == 200


def _wait_until_it_answers(url: str) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            requests.get(f"{url}/health", timeout=5)
        except requests.ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        else:
            return


def test_retry_after_is_told_by_gateways_only(simulator: Simulator) -> None:
    simulator.script("throttle", "unavailable", "reject", "bad_gateway", retry_after=7)
    told = [simulator.embed(["a"]).headers.get("retry-after") for _ in range(4)]
    assert told == ["7", "7", None, None]


def test_an_endpoint_that_sleeps_is_woken_by_its_first_request(simulator: Simulator) -> None:
    simulator.set_faults(wake_seconds=1)
    started = time.monotonic()
    assert requests.get(f"{simulator.url}/info", timeout=5).status_code == 503
    assert simulator.embed(["a"]).status_code == 503
    assert post(simulator.url, "/embed", {"inputs": "a"}, **{"x-scale-up-timeout": "0.1"}).status_code == 503
    assert post(simulator.url, "/embed", {"inputs": "a"}, **{"x-scale-up-timeout": "60"}).status_code == 200
    assert time.monotonic() - started >= 1
    assert simulator.embed(["a"]).status_code == 200


def test_a_redirect_keeps_the_path(simulator: Simulator) -> None:
    simulator.set_faults(redirect="http://127.0.0.1:9")
    reply = simulator.embed(["a"])
    assert (reply.status_code, reply.headers["location"]) == (307, "http://127.0.0.1:9/embed")


def test_short_replies_and_wrong_dimensions(simulator: Simulator) -> None:
    simulator.script("short_reply", "wrong_dimensions", "short_reply", "wrong_dimensions")
    assert embed(simulator.url, ["a", "b", "c"]).shape == (2, 384)
    assert embed(simulator.url, ["a", "b", "c"]).shape == (3, 383)
    assert embed_base64(simulator.url, ["a", "b", "c"]).shape == (2, 384)
    assert embed_base64(simulator.url, ["a", "b", "c"]).shape == (3, 383)


def test_rows_in_each_others_places(simulator: Simulator) -> None:
    texts = ["a", "b", "c"]
    right = embed(simulator.url, texts)
    simulator.script("permuted")
    np.testing.assert_array_equal(embed(simulator.url, texts), right[[2, 0, 1]])


def test_a_reply_that_drips_never_gets_whole_and_ends_when_the_client_leaves(simulator: Simulator) -> None:
    simulator.script("drip")
    connection = http.client.HTTPConnection(*address(simulator.url), timeout=5)
    connection.request("POST", "/embed", orjson.dumps({"inputs": ["a"]}), JSON)
    response = connection.getresponse()
    assert response.status == 200
    assert response.read(3).startswith(b"[[")
    connection.close()
    assert simulator.embed(["a"]).status_code == 200


def test_marked_texts_have_nulls_and_their_neighbours_do_not(simulator: Simulator) -> None:
    simulator.set_faults(null_marker="☢")
    reply = simulator.embed(["a", "b ☢", "c"])
    assert reply.status_code == 200
    assert reply.json()[1] == [None] * 384
    assert np.isnan(embed_base64(simulator.url, ["b ☢"])).all()
    simulator.set_faults()
    assert reply.json()[0::2] == simulator.embed(["a", "c"]).json()


def test_marked_texts_have_vectors_of_another_norm(simulator: Simulator) -> None:
    simulator.set_faults(scales={"×4": 4, "×½": 0.5})
    vectors = embed(simulator.url, ["a", "b ×4", "c ×½"])
    assert np.array_equal(vectors, expected_vectors(["a", "b ×4", "c ×½"]) * np.array([[1], [4], [0.5]], np.float32))


def test_rows_are_null_by_chance_and_in_one_component(simulator: Simulator) -> None:
    simulator.set_faults(null_rows=0.25, seed=3)
    nulls = np.isnan(np.concatenate([embed(simulator.url, [f"{k}"] * 32) for k in range(8)])).sum(axis=1)
    assert set(nulls) == {0, 1}
    assert 0.15 < nulls.mean() < 0.35


def test_a_refused_text_fails_alone_and_with_its_neighbours_as_422(simulator: Simulator) -> None:
    simulator.set_faults(refuse_marker="☠")
    assert simulator.embed(["a"]).status_code == 200
    for inputs in (["☠"], ["a", "b ☠", "c"]):
        reply = simulator.embed(inputs)
        assert (reply.status_code, reply.json()["error_type"]) == (422, "Validation")


def test_a_poisoned_text_fails_the_requests_that_share_its_batch(simulator: Simulator) -> None:
    simulator.set_faults(poison_marker="☠", batch_seconds=60)
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(simulator.embed, ["runs alone"])
        simulator.wait_for("batches", 1)
        poisoned = pool.submit(simulator.embed, ["☠"])
        innocent = pool.submit(simulator.embed, ["shares its batch"])
        simulator.wait_for("texts_in_flight", 3)
        simulator.set_faults(poison_marker="☠")
        assert [reply.result().status_code for reply in (running, poisoned, innocent)] == [200, 424, 424]
    assert simulator.embed(["a", "☠"]).status_code == 424


def test_health_follows_the_last_batch(simulator: Simulator) -> None:
    simulator.set_faults(backend=1)
    assert simulator.embed(["a"]).status_code == 424
    sick = requests.get(f"{simulator.url}/health", timeout=5)
    assert (sick.status_code, sick.json()) == (503, {"error": "unhealthy", "error_type": "Unhealthy"})
    simulator.set_faults()
    assert requests.get(f"{simulator.url}/health", timeout=5).status_code == 200


def test_another_model_has_another_sha_and_other_vectors(simulator: Simulator) -> None:
    def sha() -> str:
        told: str = requests.get(f"{simulator.url}/info", timeout=5).json()["model_sha"]
        return told

    before, vectors = sha(), embed(simulator.url, "a")
    simulator.set_faults(model_seed=1)
    assert sha() != before
    assert (embed(simulator.url, "a") != vectors).mean() > 0.9
    simulator.set_faults()
    assert sha() == before
    np.testing.assert_array_equal(embed(simulator.url, "a"), vectors)


def test_chances_are_drawn_from_the_seed(simulator: Simulator) -> None:
    def statuses(seed: int) -> list[int]:
        simulator.set_faults(reject=0.3, unavailable=0.3, seed=seed)
        return [simulator.embed(["a"]).status_code for _ in range(40)]

    first = statuses(1)
    assert {200, 429, 503} == set(first)
    assert first == statuses(1)
    assert first != statuses(2)


def test_the_device_takes_its_time(simulator: Simulator) -> None:
    # eight tokens in 0.4 s, and 0.1 s for the batch
    simulator.set_faults(tokens_per_second=20, batch_seconds=0.1)
    started = time.perf_counter()
    reply = simulator.embed(["a b", "c d"])
    assert time.perf_counter() - started >= 0.45
    assert int(reply.headers["x-inference-time"]) >= 450
    statistics = simulator.statistics()
    assert statistics["busy_seconds"] == pytest.approx(0.5)
    assert 0.3 < statistics["busy_share"] <= 1


def test_the_device_is_busy_while_texts_wait_and_idle_while_none_do(simulator: Simulator) -> None:
    simulator.set_faults(batch_seconds=0.1)
    requests.post(f"{simulator.url}/simulator/statistics", timeout=5)
    for _ in range(3):
        simulator.embed(["a"])
        time.sleep(0.1)
    assert simulator.statistics()["busy_share"] < 0.75
    requests.post(f"{simulator.url}/simulator/statistics", timeout=5)
    with ThreadPoolExecutor(8) as threads:
        assert {reply.status_code for reply in threads.map(simulator.embed, [["a"]] * 60)} == {200}
    told = simulator.statistics()
    assert told["busy_share"] > 0.9
    assert told["busy_seconds"] <= told["ended_at"] - told["started_at"]  # one batch at a time


def test_counting_begins_at_once_where_something_is_under_way(simulator: Simulator) -> None:
    simulator.set_faults(batch_seconds=0.5)
    with ThreadPoolExecutor(1) as threads:
        under_way = threads.submit(simulator.embed, ["a"])
        while not simulator.statistics()["texts_in_flight"]:
            time.sleep(0.01)
        told = requests.post(f"{simulator.url}/simulator/statistics", timeout=5).json()
        assert told["texts_in_flight"] == 1
        assert told["started_at"] is not None
        assert under_way.result().status_code == 200
    told = simulator.statistics()
    assert 0 < told["busy_seconds"] < 0.5
    assert 0.8 < told["busy_share"] <= 1


def test_statistics_count_texts(simulator: Simulator) -> None:
    simulator.embed(["a", "b", "a"])
    simulator.embed(["b", "c"])
    simulator.set_faults(paused=True)
    simulator.embed(["d"])
    told = simulator.statistics()
    names = ("requests", "answered", "rejected", "texts", "texts_repeated", "texts_in_flight", "peak_texts_in_flight")
    assert [told[name] for name in names] == [3, 2, 0, 6, 2, 0, 3]
    assert (told["batches"], told["tokens"]) == (2, 15)


def test_the_control_routes_need_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEI_KEY", "k")
    arguments = ["--faults", '{"script": ["reject"]}', "--api_key", "env:TEI_KEY"]
    with TeiSimulator(arguments) as server:
        assert requests.get(f"{server.url}/simulator/statistics", timeout=5).status_code == 200
        assert requests.get(f"{server.url}/simulator/faults", timeout=5).json()["script"] == ["reject"]
        assert requests.get(f"{server.url}/info", timeout=5).status_code == 401
        assert post(server.url, "/embed", {"inputs": "a"}, authorization="Bearer k").status_code == 429


@pytest.mark.parametrize("faults", [[], {"rejects": 1}, {"reject": -1}, {"script": ["nothing"]}, {"reject": "much"}])
def test_faults_that_are_none_are_refused(simulator: Simulator, faults: object) -> None:
    assert post(simulator.url, "/simulator/faults", faults).status_code == 422


def test_faults_survive_json() -> None:
    faults = Faults(script=(Fault.RESET, Fault.OK), reject=0.5, null_marker="☢", tokens_per_second=7.5)
    assert Faults.from_json(faults.to_json()) == faults
