"""Trouble that passes costs time, never a text."""

from __future__ import annotations

import time

import orjson
import pytest

from transforms.tei.errors import EndpointUnreachable

from .helpers import check, clients, some_texts, when
from .server import HANG_UP, Asked, Says, ScriptedTei, error, scripted


@pytest.mark.parametrize(
    "says",
    [
        Says(429, b"slow down", {"Retry-After": "0"}),
        error(429, "Model is overloaded", "Overloaded"),
        Says(500, b""),
        Says(502, b"<html>"),
        Says(503, b"", {"Retry-After": "0"}),
        Says(504, b"<html>"),
        HANG_UP,
        Says(200, b"x" * 1000, cut=100),
        Says(200, b"<html>welcome</html>"),
        Says(200, orjson.dumps([])),
    ],
    ids=lambda says: f"{says.status} {says.body[:20]!r}",
)
def test_trouble_that_passes_costs_no_text(says: Says) -> None:
    with scripted(when(lambda _: True, says, times=30)) as tei, clients(tei) as client:
        embeddings = client.submit(some_texts(100)).result()
    check(some_texts(100), embeddings)
    assert embeddings.statistics.retries >= 15  # libcurl repeats some by itself, where a connection was closed


def test_time_that_the_server_asks_for_is_counted() -> None:
    says = Says(429, b"", {"Retry-After": "0.2"})
    with scripted(when(lambda _: True, says, times=1)) as tei, clients(tei) as client:
        began = time.monotonic()
        embeddings = client.submit(["text"]).result()
        assert time.monotonic() - began >= 0.2
    assert embeddings.statistics.throttled_ms == pytest.approx(200, abs=5)


def test_an_endpoint_that_is_down_is_given_up_after_a_while() -> None:
    with scripted() as tei, clients(tei, give_up_after=0.4) as client:
        client.probe()
        pending = client.submit(some_texts(5))
        pending.result()
        tei.close()
        first, second = client.submit(some_texts(100)), client.submit(some_texts(100))
        for pending in (first, second):
            with pytest.raises(EndpointUnreachable, match=r"waits no longer than 0\.4 s"):
                pending.result()
        with pytest.raises(EndpointUnreachable):
            client.submit(["more"])


def test_an_endpoint_that_was_never_there_is_given_up_too() -> None:
    tei = ScriptedTei()
    tei.close()
    with clients(tei, give_up_after=0.3) as client, pytest.raises(EndpointUnreachable, match="connect"):
        client.probe()


def test_a_silence_longer_than_patience_ends_with_it() -> None:
    with scripted() as tei, clients(tei, give_up_after=0.4) as client:
        client.probe()
        tei.script = when(lambda _: True, Says(503, b"", {"Retry-After": "300"}))
        with pytest.raises(EndpointUnreachable, match="503"):
            client.submit(["text"]).result()


def test_the_first_contact_keeps_the_silence_that_is_asked_for() -> None:
    left = iter([Says(429, b"", {"Retry-After": "0.3"})])
    with scripted(lambda _: next(left, None)) as tei, clients(tei) as client:
        began = time.monotonic()
        client.probe()
        assert time.monotonic() - began >= 0.3


def test_the_first_contact_under_overload_asks_each_question_by_itself() -> None:
    refused: dict[str, int] = {}

    def script(asked: Asked) -> Says | None:
        key = f"{asked.path} {asked.texts}"
        refused[key] = refused.get(key, 0) + 1
        return Says(429) if refused[key] % 4 and asked.texts else None

    with scripted(script) as tei, clients(tei) as client:
        client.probe()
        assert sum(asked.path == "/info" for asked in tei.asked) == 1
