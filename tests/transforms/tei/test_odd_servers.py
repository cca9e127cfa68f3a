"""Servers that change, break a route, or say what makes no sense."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import orjson
import pytest

from tests.tei_simulator.process import TeiSimulator
from transforms.tei.client import TeiClient
from transforms.tei.credentials import Credentials
from transforms.tei.error_table import no_reply
from transforms.tei.errors import EndpointError, EndpointRefused, ModelChanged
from transforms.tei.formats import OtherDimensions
from transforms.tei.handshake import Unavailable
from transforms.tei.settings import EndpointSettings
from transforms.tei.transport import HttpTransport, NoReply

from .helpers import check, clients, some_texts
from .server import Asked, Says, honest, scripted, vector_of

TOKEN = "ab+c/SECRET9"


def test_a_server_that_comes_back_with_another_model_is_noticed_before_it_is_believed() -> None:
    with TeiSimulator() as first:
        client = TeiClient(EndpointSettings((first.url,)))
        client.submit(some_texts(200)).result()
    port = first.url.rsplit(":", 1)[1]
    with TeiSimulator(["--faults", '{"model_seed": 1}', "--port", port]):
        with pytest.raises(ModelChanged):
            client.submit(some_texts(200)).result()
        client.close()


def test_a_server_that_comes_back_the_same_is_believed() -> None:
    with scripted() as tei, clients(tei) as client:
        client.submit(some_texts(200)).result()
        tei._server.hang_up()
        check(some_texts(200), client.submit(some_texts(200)).result())


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": {}},
        {"model_sha": {"a": 1}},
        {"model_type": {"embedding": {"pooling": []}}},
        {"model_id": "a\nverified: 3 records"},
        {"version": "1.9.3\x1b[2J"},
    ],
)
def test_an_info_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with scripted(**change) as tei, clients(tei) as client, pytest.raises(EndpointRefused, match="base URL"):
        client.info()


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1e999", "\u00b2"])
def test_numbers_that_make_no_sense_count_for_nothing(value: str) -> None:
    def script(asked: Asked) -> Says | None:
        names = ("x-compute-tokens", "x-queue-time", "x-inference-time")
        body = honest(asked, {}).body if asked.texts else b""
        return Says(200, body, dict.fromkeys(names, value)) if asked.texts else None

    with scripted(script) as tei, clients(tei) as client:
        statistics = client.submit(some_texts(3)).result().statistics
    assert (statistics.tokens, statistics.queue_ms, statistics.inference_ms) == (0, 0, 0)


def test_a_redirect_to_nowhere_that_can_be_read_is_refused() -> None:
    script = Says(307, b"", {"Location": "http://[bad/x"})
    with scripted(lambda _: script) as tei, clients(tei) as client, pytest.raises(EndpointRefused, match="redirects"):
        client.probe()


@pytest.mark.parametrize(
    "says",
    [
        Says(401, b'{"error":"bad auth Bearer ab\\u002Bc\\/SECRET9"}'),
        Says(401, f"Bearer {TOKEN}".encode()),
        Says(401, b"ab%2Bc%2fSECRET9 ab&#43;c&#x2F;SECRET9"),
        Says(202, f'{{"message": "{TOKEN}"}}'.encode()),
        Says(307, b"", {"Location": f"http://x/login/{TOKEN}"}),
    ],
)
def test_a_token_that_comes_back_is_not_shown(says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEI_TOKEN", TOKEN)
    with (
        scripted(lambda _: says) as tei,
        clients(tei, token="env:TEI_TOKEN") as client,
        pytest.raises(EndpointError) as raised,
    ):
        client.probe()
    assert "SECRET9" not in str(raised.value)


def test_a_reply_that_announces_too_much_is_none() -> None:
    with scripted(lambda _: Says(200, b"x" * 1000)) as tei, pytest.raises(NoReply, match="larger than vectors"):
        HttpTransport(Credentials(), 5).post(f"{tei.url}/embed", b"{}", max_reply_bytes=999)


def lists(asked: Asked) -> Says | None:
    if asked.path != "/v1/embeddings":
        return None
    rows = [{"index": index, "embedding": vector_of(text).tolist()} for index, text in enumerate(asked.texts)]
    return Says(body=orjson.dumps({"data": rows}))


def broken(asked: Asked) -> Says | None:
    return Says(500, b"no") if asked.path == "/v1/embeddings" else None


@pytest.mark.parametrize("known_before", [True, False])
@pytest.mark.parametrize("script", [lists, broken])
def test_a_route_that_is_broken_is_done_without(script: Any, known_before: bool) -> None:
    with scripted(None if known_before else script) as tei, clients(tei, give_up_after=5) as client:
        client.probe()
        tei.script = script
        check(some_texts(), client.submit(some_texts()).result())


def test_words_are_no_numbers() -> None:
    def script(asked: Asked) -> Says | None:
        rows = [[True] * 16] * len(asked.texts)
        return Says(body=orjson.dumps(rows)) if asked.documents and next(left) < 3 else None

    left = itertools.count()

    with scripted(script, auto_truncate=False) as tei, clients(tei) as client:
        check(some_texts(10), client.submit(some_texts(10)).result())


def test_an_endpoint_that_cuts_elsewhere_is_another() -> None:
    with (
        scripted() as one,
        scripted(max_input_length=128) as two,
        clients(one, two) as client,
        pytest.raises(ModelChanged, match="other vectors"),
    ):
        client.probe(every_url=True)


def test_failures_survive_a_pickle() -> None:
    assert pickle.loads(pickle.dumps(Unavailable(no_reply("gone")))).failure == no_reply("gone")
    assert pickle.loads(pickle.dumps(OtherDimensions(7))).dimensions == 7


def test_whoever_asks_a_client_that_is_over_gets_a_failure_of_its_own() -> None:
    with scripted() as tei, clients(tei) as client:
        client.close()
        failures = []
        for _ in range(2):
            with pytest.raises(EndpointError, match="closed") as raised:
                client.submit(["text"])
            failures.append(raised.value)
    assert failures[0] is not failures[1]
