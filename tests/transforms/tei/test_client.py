"""The client's own life: threads, several shards, mistakes, the end."""

from __future__ import annotations

import threading

import pytest

from tests.servers import wait_until
from transforms.tei.client import TeiClient
from transforms.tei.credentials import Credentials
from transforms.tei.errors import EndpointError
from transforms.tei.settings import EndpointSettings
from transforms.tei.tasks import Embeddings
from transforms.tei.transport import HttpTransport, Reply

from .helpers import Clock, check, clients, some_texts
from .server import Asked, Says, ScriptedTei, scripted


def test_close_does_not_wait_for_requests_that_hang(caplog: pytest.LogCaptureFixture) -> None:
    clock, others = Clock(), set(threading.enumerate())
    asked_for, release = threading.Event(), threading.Event()
    released: list[bool] = []

    def script(asked: Asked) -> Says | None:
        if asked.documents:
            asked_for.set()
            released.append(release.wait(20))
        return None

    def client_s_threads() -> list[threading.Thread]:
        return [one for one in threading.enumerate() if one.name.startswith("tei-") and one not in others]

    with scripted(script) as tei, clients(tei, request_timeout=60, give_up_after=600, clock=clock) as client:
        pending = client.submit(some_texts(1000))
        assert asked_for.wait(5)
        clock.now += 100
        client.close()
        wait_until(lambda: not client_s_threads(), "the end of the client's threads", 20)
        assert not released  # no reply was waited for
        assert not caplog.messages  # what the client itself ends is no failure of the endpoint's
        release.set()
        with pytest.raises(EndpointError, match="closed"):
            pending.result()
        with pytest.raises(EndpointError, match="closed"):
            client.submit(["more"])


def test_close_does_not_wait_for_an_endpoint_that_is_down() -> None:
    tei = ScriptedTei()
    tei.close()
    with clients(tei, give_up_after=600) as client:
        failures: list[EndpointError] = []

        def ask() -> None:
            with pytest.raises(EndpointError, match="closed") as raised:
                client.submit(["text"])
            failures.append(raised.value)

        thread = threading.Thread(target=ask)
        thread.start()
        client.close()
        thread.join()
    assert len(failures) == 1


def test_a_mistake_of_our_own_leaves_nobody_waiting() -> None:
    class Mistaken(HttpTransport):
        def post(self, url: str, body: bytes, timeout: float | None = None, max_reply_bytes: int = 1 << 24) -> Reply:
            if b"mistake" in body:
                raise ZeroDivisionError
            return super().post(url, body, timeout, max_reply_bytes)

    with scripted() as tei:
        client = TeiClient(EndpointSettings(urls=(tei.url,)), transport=lambda _: Mistaken(Credentials(), 5))
        check(["fine"], client.submit(["fine"]).result())
        with pytest.raises(ZeroDivisionError):
            client.submit(["mistake"]).result()
        client.close()


def test_several_threads_may_submit() -> None:
    shards = [[f"shard {shard} {index}" for index in range(137)] for shard in range(8)]
    results: dict[int, Embeddings] = {}
    with scripted(max_client_batch_size=8) as tei, clients(tei) as client:

        def embed(number: int) -> None:
            results[number] = client.submit(shards[number]).result()

        threads = [threading.Thread(target=embed, args=(number,)) for number in range(len(shards))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    for number, shard in enumerate(shards):
        check(shard, results[number])


def test_earlier_shards_go_first() -> None:
    with scripted(max_concurrent_requests=8, max_client_batch_size=8) as tei, clients(tei) as client:
        client.probe()
        pending = [client.submit([f"shard {shard} {index}" for index in range(64)]) for shard in range(4)]
        pending[0].result()
        later = [text for asked in tei.asked for text in asked.documents][:56]
        later = [text for text in later if not text.startswith("shard 0")]
        for each in pending:
            each.result()
    assert not later
