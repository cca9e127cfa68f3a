"""Several endpoints of one model."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from transforms.tei.client import TeiClient
from transforms.tei.errors import EndpointUnreachable, ModelChanged
from transforms.tei.handshake import KNOWN_SENTENCE

from .helpers import IDENTITY, bodies, check, clients, some_texts
from .server import HANG_UP, INFO, Asked, Says, honest, scripted, vector_of


def test_endpoints_share_the_work() -> None:
    with scripted() as one, scripted() as two, clients(one, two) as client:
        assert client.probe() == IDENTITY
        check(some_texts(2000), client.submit(some_texts(2000)).result())
        shares = [sum(len(body["input"]) for body in bodies(tei)) for tei in (one, two)]
    assert sum(shares) == 2000
    assert min(shares) > 300


def test_an_endpoint_that_fails_leaves_the_work_to_the_other() -> None:
    with scripted() as one, scripted() as two, clients(one, two, give_up_after=5) as client:
        client.probe()
        one.close()
        check(some_texts(1000), client.submit(some_texts(1000)).result())


def test_an_endpoint_that_is_down_at_first_is_used_once_it_is_up() -> None:
    down = {"down": True}
    with scripted(lambda _: HANG_UP if down["down"] else None) as one, scripted() as two, clients(one, two) as client:
        check(some_texts(300), client.submit(some_texts(300)).result())
        assert not bodies(one)
        down.clear()
        one.script = None
        for _ in range(50):
            client.submit(some_texts(300)).result()
            if bodies(one):
                break
        assert bodies(one)


@pytest.mark.parametrize("change", [{"model_sha": "new"}, {"model_id": "other"}])
def test_endpoints_of_different_models_are_refused(change: dict[str, Any]) -> None:
    with scripted() as one, scripted(**change) as two:
        for ask in (TeiClient.probe, TeiClient.info, lambda client: client.submit(some_texts(2000)).result()):
            with clients(one, two) as client, pytest.raises(ModelChanged, match=two.url):
                ask(client)


def test_endpoints_that_lie_about_being_the_same_are_found_out() -> None:
    with scripted() as one, scripted() as two, clients(one, two) as client:
        two.vectors = lambda text: vector_of("other " + text)
        with pytest.raises(ModelChanged, match="another vector"):
            client.probe()


def test_an_endpoint_that_would_not_truncate_is_asked_to_and_that_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with scripted() as one, scripted(auto_truncate=False) as two, clients(one, two) as client:
        client.submit(some_texts(1000)).result()
        assert {asked.path for asked in two.asked if asked.texts and asked.texts != [KNOWN_SENTENCE]} == {"/embed"}
        assert all(body["truncate"] for body in bodies(two))
        (told,) = [record.getMessage() for record in caplog.records if "/embed" in record.getMessage()]
    assert told.startswith(two.url)
    assert "auto_truncate is False and --overlong is truncate" in told


def test_one_endpoint_of_several_is_enough_to_start_but_not_to_pass_every_check() -> None:
    for dead_first in (True, False):
        with scripted(lambda _: HANG_UP) as dead, scripted() as well:
            servers = (dead, well) if dead_first else (well, dead)
            with clients(*servers, give_up_after=0.3) as client:
                assert client.probe() == IDENTITY
            with clients(*servers, give_up_after=0.3) as client, pytest.raises(EndpointUnreachable, match=dead.url):
                client.probe(every_url=True)


@pytest.mark.parametrize("most", [1, 5, 8])
def test_several_endpoints_share_what_may_be_in_flight(most: int) -> None:
    lock, now, peak = threading.Lock(), [0], [0]

    def script(asked: Asked) -> Says:
        with lock:
            now[0] += len(asked.texts)
            peak[0] = max(peak[0], now[0])
        says = honest(asked, INFO)
        with lock:
            now[0] -= len(asked.texts)
        return says

    with (
        scripted(script) as one,
        scripted(script) as two,
        scripted(script) as three,
        clients(one, two, three, max_in_flight=most) as client,
    ):
        check(some_texts(), client.submit(some_texts()).result())
    assert peak[0] <= most
