"""Several endpoints of one model."""

from __future__ import annotations

import threading

import pytest

from transforms.tei.client import TeiClient
from transforms.tei.errors import EndpointUnreachable, ModelChanged

from .helpers import IDENTITY, bodies, check, clients, some_texts
from .server import HANG_UP, INFO, Asked, Says, honest, scripted, vector_of


def test_endpoints_share_the_work() -> None:
    with scripted() as one, scripted() as two, clients(one, two) as client:
        assert client.probe().identity == IDENTITY
        check(some_texts(2000), client.submit(some_texts(2000)).result())
        shares = [sum(len(asked.documents) for asked in tei.asked) for tei in (one, two)]
    assert sum(shares) == 2000
    assert min(shares) > 100  # the second one has its handshake while the first one works


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


def test_endpoints_of_one_space_may_have_different_names() -> None:
    with scripted() as one, scripted(model_id="/repository", model_sha=None) as two, clients(one, two) as client:
        client.probe(every_url=True)
        check(some_texts(1000), client.submit(some_texts(1000)).result())
        assert bodies(two)


def test_endpoints_of_different_spaces_are_refused_whatever_their_names() -> None:
    with scripted() as one, scripted() as two:
        two.vectors = lambda text: vector_of("other " + text)
        for ask in (TeiClient.probe, lambda client: client.submit(some_texts(4000)).result()):
            with clients(one, two) as client, pytest.raises(ModelChanged, match=f"{two.url}.*worst cosine"):
                ask(client)


def test_each_endpoint_is_asked_in_its_own_format() -> None:
    with scripted() as one, scripted(auto_truncate=False) as two, clients(one, two) as client:
        check(some_texts(1000), client.submit(some_texts(1000)).result())
        assert {asked.path for asked in one.asked if asked.documents} == {"/v1/embeddings"}
        assert {asked.path for asked in two.asked if asked.documents} == {"/embed"}
        assert all(body["truncate"] for body in bodies(two))


def test_one_endpoint_of_several_is_enough_to_start_but_not_to_pass_every_check() -> None:
    for dead_first in (True, False):
        with scripted(lambda _: HANG_UP) as dead, scripted() as well:
            servers = (dead, well) if dead_first else (well, dead)
            with clients(*servers, give_up_after=0.3) as client:
                assert client.probe().identity == IDENTITY
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
