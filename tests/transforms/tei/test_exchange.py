"""What is sent, and in which format."""

from __future__ import annotations

import itertools
import logging
import time
from typing import Any

import numpy as np
import pytest

from transforms.elements import Reason
from transforms.tei.errors import VectorsDoubtful
from transforms.tei.formats import WireFormat
from transforms.tei.handshake import CANARY_TEXT
from transforms.tei.settings import Overlong

from .helpers import bodies, check, clients, some_texts, when
from .server import DIMENSIONS, Asked, Says, error, honest, scripted, tokens_of, vector_of


def test_texts_come_back_in_order_whatever_they_are_cut_into() -> None:
    texts = some_texts(1000)
    with scripted(max_client_batch_size=7) as tei, clients(tei) as client:
        embeddings = client.submit(texts).result()
        assert max(len(asked.texts) for asked in tei.asked) == 7
    check(texts, embeddings)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_small_shards(number: int) -> None:
    with scripted() as tei, clients(tei) as client:
        embeddings = client.submit(some_texts(number)).result()
    assert embeddings.vectors.shape == (number, DIMENSIONS)
    assert embeddings.vectors.dtype == np.float32


def test_the_sums_are_the_shards_own() -> None:
    texts = some_texts(64)
    with scripted(max_client_batch_size=10) as tei, clients(tei) as client:
        client.probe()
        results = [pending.result() for pending in [client.submit(texts), client.submit(texts[:10])]]
        sent = bodies(tei)
        assert all(body["input"].count(CANARY_TEXT) == 1 for body in sent)
    for embeddings, own in zip(results, [texts, texts[:10]], strict=True):
        assert embeddings.statistics.tokens == sum(map(tokens_of, own))
        assert embeddings.statistics.queue_ms == 3 * len(own)
        assert embeddings.statistics.inference_ms == 5 * len(own)
        assert embeddings.statistics.retries == 0
        assert sum(embeddings.statistics.latency_ms.values()) == embeddings.statistics.requests
    assert sum(embeddings.statistics.requests for embeddings in results) == len(sent)


def test_texts_that_fill_the_models_limit_are_counted_where_they_show() -> None:
    texts = ["w " * 6] * 40 + ["w"] * 40
    with scripted(max_client_batch_size=10, max_input_length=8) as tei, clients(tei) as client:
        assert client.submit(texts).result().truncated == list(range(40))


def test_never_more_texts_in_flight_than_the_server_permits() -> None:
    with scripted(max_concurrent_requests=24, max_client_batch_size=10) as tei, clients(tei) as client:
        client.submit(some_texts(500)).result()
        assert tei.most_in_flight <= 24
        assert max(len(asked.texts) for asked in tei.asked) == 10


def test_the_user_can_ask_for_less_in_flight() -> None:
    with scripted() as tei, clients(tei, max_in_flight=8) as client:
        client.submit(some_texts(200)).result()
        assert tei.most_in_flight <= 8


def test_a_request_never_holds_more_than_all_permits() -> None:
    with scripted(max_concurrent_requests=4) as tei, clients(tei) as client:
        check(some_texts(30), client.submit(some_texts(30)).result())
        assert max(len(asked.texts) for asked in tei.asked) == 4


@pytest.mark.parametrize(
    ("settings", "info", "expected"),
    [
        ({}, {}, WireFormat.OPENAI_BASE64),
        ({}, {"auto_truncate": False}, WireFormat.EMBED_JSON),
        ({"overlong": Overlong.DEAD_LETTER}, {"auto_truncate": False}, WireFormat.OPENAI_BASE64),
        ({"overlong": Overlong.DEAD_LETTER}, {}, WireFormat.EMBED_JSON),
        ({"normalize": False}, {}, WireFormat.EMBED_JSON),
        ({"prompt_name": "query"}, {}, WireFormat.EMBED_JSON),
        ({}, {"version": "1.2.3"}, WireFormat.EMBED_JSON),
        ({}, {"version": "unknown"}, WireFormat.EMBED_JSON),
        ({}, {"auto_truncate": None}, WireFormat.EMBED_JSON),
    ],
)
def test_base64_only_where_it_means_the_same(
    settings: dict[str, Any], info: dict[str, Any], expected: WireFormat, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with scripted(**info) as tei, clients(tei, **settings) as client:
        check(some_texts(), client.submit(some_texts()).result())
        paths = {asked.path for asked in tei.asked if asked.documents}
        assert paths == {"/embed" if expected is WireFormat.EMBED_JSON else "/v1/embeddings"}
    assert caplog.text.count(expected.value) == 1


def test_every_setting_is_sent() -> None:
    with scripted() as tei, clients(tei, prompt_name="query", normalize=False) as client:
        client.submit(["text"]).result()
        assert bodies(tei) == [
            {"inputs": ["text", CANARY_TEXT], "truncate": True, "normalize": False, "prompt_name": "query"}
        ]


def test_a_server_without_the_other_route_is_asked_at_its_own() -> None:
    with scripted(lambda asked: Says(404) if "v1" in asked.path else None) as tei, clients(tei) as client:
        check(some_texts(), client.submit(some_texts()).result())


def test_a_route_that_goes_away_is_done_without() -> None:
    with scripted() as tei, clients(tei) as client:
        client.probe()
        tei.script = lambda asked: Says(404) if "v1" in asked.path else None
        check(some_texts(), client.submit(some_texts()).result())


def test_a_format_that_gives_other_vectors_is_not_used() -> None:
    def script(asked: Asked) -> Says | None:
        if "v1" not in asked.path:
            return None
        return honest(asked, {}, lambda text: vector_of("prompt: " + text))

    with scripted(script) as tei, clients(tei) as client:
        check(some_texts(), client.submit(some_texts()).result())


def test_lone_surrogates_are_replaced() -> None:
    with scripted() as tei, clients(tei) as client:
        embeddings = client.submit(["fine", "broken \ud83d half"]).result()
    check(["fine", "broken ? half"], embeddings)


def test_overlong_texts_are_cut_before_they_are_sent() -> None:
    with scripted(max_input_length=2) as tei, clients(tei) as client:
        check(["ab" * 250, "x"], client.submit(["ab" * 10_000, "x"]).result())


def test_bodies_stay_below_what_servers_take() -> None:
    texts = [f"{index}" + "ن\n" * 300_000 for index in range(3)] + ["short"]
    with scripted(max_input_length=10**6, auto_truncate=False) as tei, clients(tei) as client:
        embeddings = client.submit(texts).result()
        assert max(len(asked.body) for asked in tei.asked) < 2_000_000
        assert not embeddings.rejections
        np.testing.assert_array_equal(embeddings.vectors[3], vector_of("short"))


def test_overlong_texts_can_be_dead_letters() -> None:
    says = error(422, "Input validation error: `inputs` must have less than 8 tokens. Given: 9")
    script = when(lambda asked: any(len(text.split()) > 8 for text in asked.texts), says)
    texts = [*some_texts(40), "a b c d e f g h i", "z" * 2001]
    with scripted(script, max_input_length=8) as tei, clients(tei, overlong=Overlong.DEAD_LETTER) as client:
        embeddings = client.submit(texts).result()
        assert all(body["truncate"] is False for body in bodies(tei))
        assert not any(texts[41] in body["inputs"] for body in bodies(tei))
    check(texts, embeddings, {40, 41})
    assert [embeddings.rejections[index].reason for index in (40, 41)] == [Reason.OVERLONG_TEXT] * 2
    assert [embeddings.rejections[index].http_status for index in (40, 41)] == [422, None]
    assert embeddings.rejections[40].attempts > 1
    assert embeddings.rejections[41].attempts == 0


def test_a_shard_of_overlong_texts_alone_ends() -> None:
    with scripted(max_input_length=1) as tei, clients(tei, overlong=Overlong.DEAD_LETTER) as client:
        assert len(client.submit(["z" * 251] * 3).result().rejections) == 3


def test_where_texts_go_one_by_one_each_reply_shows_that_the_endpoint_is_there() -> None:
    seconds, canaries = 0, itertools.count()

    def clock() -> float:
        return time.monotonic() + seconds

    def script(asked: Asked) -> Says | None:
        nonlocal seconds
        seconds += 2  # that a text takes
        # The canary behind the texts, once.
        return Says(503, b"") if asked.texts == [CANARY_TEXT] and next(canaries) == 1 else None

    with scripted(max_client_batch_size=1) as tei, clients(tei, give_up_after=15, clock=clock) as client:
        client.probe()
        tei.script = script
        check(some_texts(10), client.submit(some_texts(10)).result())
        assert next(canaries) > 2


def test_where_texts_go_one_by_one_nothing_is_kept_until_the_canary_behind_them_is_right() -> None:
    canaries = itertools.count()

    def other_model_behind_the_texts(asked: Asked) -> Says | None:
        if asked.documents or asked.texts != [CANARY_TEXT] or next(canaries) == 0:
            return None
        return honest(asked, {}, lambda text: vector_of(f"other {text}"))

    with scripted(max_client_batch_size=1) as tei, clients(tei) as client:
        client.probe()
        tei.script = other_model_behind_the_texts
        pending = client.submit(some_texts(10))
        with pytest.raises(VectorsDoubtful):
            pending.result()
        assert sum(bool(asked.documents) for asked in tei.asked) == 10
        assert not any(rows.any() for rows in pending.so_far())
        assert client.settled == 0
