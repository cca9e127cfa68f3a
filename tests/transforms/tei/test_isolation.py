"""One bad text costs itself, not its neighbours."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import orjson
import pytest

from transforms.elements import Reason
from transforms.tei.errors import EndpointUnreachable
from transforms.tei.settings import Overlong

from .helpers import bodies, check, clients, some_texts, when
from .server import DIMENSIONS, HANG_UP, Asked, Says, error, scripted, vector_of


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("status", [413, 422])
def test_a_bad_text_is_found_and_its_neighbours_embedded(status: int, flat: bool) -> None:
    script = when(lambda asked: any("bad" in text for text in asked.texts), error(status, "tokenizer error", flat=flat))
    texts = some_texts(100)
    texts[5] = texts[77] = "bad"
    with scripted(script) as tei, clients(tei) as client:
        embeddings = client.submit(texts).result()
    check(texts, embeddings, {5, 77})
    assert {rejection.reason for rejection in embeddings.rejections.values()} == {Reason.REJECTED_BY_ENDPOINT}
    assert embeddings.rejections[5].detail == "tokenizer error"
    assert embeddings.rejections[5].http_status == status


def test_a_device_that_fails_for_a_while_costs_no_text() -> None:
    with (
        scripted(when(lambda _: True, error(424, "Backend error: out of memory", "Backend"), times=40)) as tei,
        clients(tei) as client,
    ):
        embeddings = client.submit(some_texts(64)).result()
    check(some_texts(64), embeddings)
    assert embeddings.statistics.retries == 40


def test_a_text_that_fails_the_device_alone_again_and_again_is_blamed() -> None:
    script = when(lambda asked: "poison" in asked.texts, error(424, "Backend error: out of memory", "Backend"))
    texts = some_texts(31)
    texts[9] = "poison"
    with scripted(script) as tei, clients(tei) as client:
        embeddings = client.submit(texts).result()
        alone = [asked for asked in tei.asked if asked.documents == ["poison"]]
    check(texts, embeddings, {9})
    assert embeddings.rejections[9].http_status == 424
    assert len(alone) >= 5
    assert embeddings.rejections[9].attempts > len(alone)


def test_a_device_that_always_fails_is_no_texts_fault() -> None:
    with scripted() as tei, clients(tei, give_up_after=0.5) as client:
        client.probe()
        tei.script = lambda asked: error(424, "Backend error: device lost", "Backend") if asked.texts else None
        with pytest.raises(EndpointUnreachable, match="device lost"):
            client.submit(["one text"]).result()


def test_a_model_that_gives_only_nulls_is_no_texts_fault() -> None:
    with scripted() as tei, clients(tei, give_up_after=0.5) as client:
        client.probe()
        tei.vectors = lambda _: np.full(DIMENSIONS, np.nan, np.float32)
        with pytest.raises(EndpointUnreachable):
            client.submit(some_texts(3)).result()


@pytest.mark.parametrize("normalize", [True, False], ids=["base64", "json"])
@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_a_row_that_is_bad_once_is_asked_for_again_alone(value: float, normalize: bool) -> None:
    damaged: set[str] = set()

    def vectors(text: str) -> Any:
        if text in ("text 3 ووو", "text 50 و") and text not in damaged:
            damaged.add(text)
            return np.full(DIMENSIONS, value, np.float32)
        return vector_of(text)

    with scripted() as tei, clients(tei, normalize=normalize, request_timeout=60) as client:
        client.probe()
        tei.vectors = vectors
        embeddings = client.submit(some_texts(64)).result()
        alone = sorted(asked.documents for asked in tei.asked if len(asked.documents) == 1)
        assert alone == [["text 3 ووو"], ["text 50 و"]]
    check(some_texts(64), embeddings)
    assert embeddings.statistics.retries == 2


def test_a_row_that_is_always_bad_is_an_invalid_vector() -> None:
    def vectors(text: str) -> Any:
        return np.full(DIMENSIONS, np.nan, np.float32) if text == "text 3 ووو" else vector_of(text)

    with scripted() as tei, clients(tei) as client:
        client.probe()
        tei.vectors = vectors
        embeddings = client.submit(some_texts(64)).result()
    check(some_texts(64), embeddings, {3})
    assert embeddings.rejections[3].reason is Reason.INVALID_VECTOR
    assert embeddings.rejections[3].attempts > 4


def test_a_short_reply_is_believed_in_nothing() -> None:
    def script(asked: Asked) -> Says | None:
        if asked.documents and next(left) < 5:
            rows = [vector_of(text).tolist() for text in asked.texts[1:]]
            return Says(body=orjson.dumps(rows))
        return None

    left = itertools.count()
    with scripted(script, auto_truncate=False) as tei, clients(tei) as client:
        check(some_texts(64), client.submit(some_texts(64)).result())


def test_an_empty_text_is_rejected_alone() -> None:
    says = error(400, "Input validation error: `inputs` cannot be empty", "Empty")
    with scripted(when(lambda asked: "" in asked.texts, says)) as tei, clients(tei) as client:
        texts = [*some_texts(20), ""]
        check(texts, client.submit(texts).result(), {20})


def test_a_smaller_batch_limit_is_taken_on() -> None:
    def script(asked: Asked) -> Says | None:
        if len(asked.texts) > 5:
            tei.info["max_client_batch_size"] = 5
            return error(422, f"batch size {len(asked.texts)} > maximum allowed batch size 5")
        return None

    with scripted(script) as tei, clients(tei) as client:
        check(some_texts(300), client.submit(some_texts(300)).result())
        check(some_texts(300), client.submit(some_texts(300)).result())
        sizes = [len(body["input"]) for body in bodies(tei)]
    assert max(sizes[-60:]) == 5  # four documents and the canary


def test_a_batch_limit_that_is_not_told_is_found() -> None:
    def script(asked: Asked) -> Says | None:
        too_many = len(asked.texts) > 30
        return error(422, f"batch size {len(asked.texts)} > maximum allowed batch size 30") if too_many else None

    with scripted(script) as tei, clients(tei) as client:
        check(some_texts(100), client.submit(some_texts(100)).result())


def test_a_smaller_byte_limit_is_found() -> None:
    texts = [f"{index} " + "س" * 2000 for index in range(64)]
    script = when(lambda asked: len(asked.body) > 50_000, Says(413, b"<html>413 Request Entity Too Large</html>"))
    with scripted(script) as tei, clients(tei) as client:
        check(texts, client.submit(texts).result())


@pytest.mark.parametrize("overlong", list(Overlong))
def test_a_text_that_no_body_can_hold(overlong: Overlong) -> None:
    script = when(lambda asked: len(asked.body) > 50_000, Says(413, b"length limit exceeded"))
    with scripted(script) as tei, clients(tei, overlong=overlong) as client:
        embeddings = client.submit(["س" * 60_000, "short"]).result()
    np.testing.assert_array_equal(embeddings.vectors[1], vector_of("short"))
    if overlong is Overlong.TRUNCATE:
        assert not embeddings.rejections
    else:
        assert embeddings.rejections[0].reason is Reason.OVERLONG_TEXT


@pytest.mark.parametrize("overlong", list(Overlong))
def test_a_text_in_a_small_body_that_is_refused_is_not_called_too_long(overlong: Overlong) -> None:
    texts = [*some_texts(20), "bad"]
    script = when(lambda asked: "bad" in asked.texts, Says(413, b"<html>413 Request Entity Too Large</html>"))
    with scripted(script) as tei, clients(tei, overlong=overlong) as client:
        embeddings = client.submit(texts).result()
    check(texts, embeddings, {20})
    assert embeddings.rejections[20].reason is Reason.REJECTED_BY_ENDPOINT


@pytest.mark.parametrize("overlong", list(Overlong))
def test_texts_that_no_body_can_hold_where_each_goes_alone(overlong: Overlong) -> None:
    script = when(lambda asked: len(asked.body) > 50_000, Says(413, b"length limit exceeded"), times=20)
    with scripted(script, max_client_batch_size=1) as tei, clients(tei, overlong=overlong) as client:
        embeddings = client.submit(["س" * 60_000, "s" * 59_000, "ص" * 58_000, "short"]).result()
        assert sum(len(asked.body) > 50_000 for asked in tei.asked) < 10  # not until the script ends
    np.testing.assert_array_equal(embeddings.vectors[3], vector_of("short"))
    rejected = {index: rejection.reason for index, rejection in embeddings.rejections.items()}
    if overlong is Overlong.TRUNCATE:
        assert not rejected
        assert set(embeddings.truncated) == {0, 1, 2}
    else:
        assert rejected == dict.fromkeys(range(3), Reason.OVERLONG_TEXT)
        assert not embeddings.vectors[:3].any()


@pytest.mark.parametrize("overlong", list(Overlong))
def test_a_byte_limit_that_a_batch_meets_is_none_for_a_text_alone(overlong: Overlong) -> None:
    texts = [f"{index} " + "y" * 30_000 for index in range(10)]
    script = when(lambda asked: len(asked.body) > 40_000, Says(413, b"length limit exceeded"))
    with scripted(script) as tei, clients(tei, overlong=overlong) as client:
        check(texts, client.submit(texts).result())


def test_a_text_is_cut_only_if_one_of_its_size_was_refused_alone() -> None:
    texts = ["s" * 30_000, "m" * 39_000, "b" * 60_000]
    script = when(lambda asked: len(asked.body) > 40_000, Says(413, b"length limit exceeded"))
    with scripted(script) as tei, clients(tei) as client:
        embeddings = client.submit(texts).result()
        again = client.submit(texts).result()
    for vectors in (embeddings.vectors, again.vectors):
        np.testing.assert_array_equal(vectors[:2], [vector_of(text) for text in texts[:2]])
        assert vectors[2].any()


def test_a_server_that_hangs_up_on_a_large_body_gets_a_smaller_one_but_not_in_an_outage() -> None:
    text = "س" * 1_100_000
    options: dict[str, Any] = {"max_input_length": 10**7}
    with scripted(when(lambda asked: len(asked.body) > 2_000_000, HANG_UP), **options) as tei, clients(tei) as client:
        assert not client.submit([text]).result().rejections
        assert 1_000_000 < min(len(asked.body) for asked in tei.asked if asked.documents) < 2_000_000

    outage = itertools.count()

    def hangs_up_on_all(asked: Asked) -> Says | None:
        return HANG_UP if asked.texts and next(outage) < 12 else None

    with scripted(**options) as tei, clients(tei) as client:
        client.probe()
        tei.script = hangs_up_on_all
        check([text], client.submit([text]).result())


@pytest.mark.parametrize("status", [400, 415, 422])
def test_a_gateways_page_for_every_request_costs_no_text(status: int) -> None:
    left = itertools.count()

    def script(asked: Asked) -> Says | None:
        return Says(status, b"<html>Bad Request</html>") if asked.texts and next(left) < 60 else None

    with scripted() as tei, clients(tei) as client:
        client.probe()
        tei.script = script
        check(some_texts(64), client.submit(some_texts(64)).result())


def test_a_text_that_is_refused_with_a_page_while_others_are_taken_is_rejected() -> None:
    script = when(lambda asked: "bad" in asked.texts, Says(415, b"<html>no</html>"))
    with scripted(script) as tei, clients(tei) as client:
        texts = [*some_texts(20), "bad"]
        check(texts, client.submit(texts).result(), {20})


@pytest.mark.parametrize(
    "says",
    [
        error(500, "panicked", "Backend"),
        Says(504, b"<html>Gateway Time-out</html>"),
        Says(200, b"<html>blocked</html>"),
        HANG_UP,
    ],
    ids=["500", "504", "a page", "cut off"],
)
def test_a_text_that_always_brings_the_endpoint_down_costs_itself_alone(says: Says) -> None:
    script = when(lambda asked: "bad" in asked.texts, says)
    texts = some_texts(20)
    texts[7] = "bad"
    with scripted(script) as tei, clients(tei) as client:
        embeddings = client.submit(texts).result()
    check(texts, embeddings, {7})
    assert embeddings.rejections[7].reason is Reason.REJECTED_BY_ENDPOINT


def test_a_text_that_always_hangs_the_server_costs_itself_alone() -> None:
    ended = threading.Event()

    def script(asked: Asked) -> Says | None:
        return HANG_UP if "bad" in asked.texts and ended.wait(60) else None

    texts = some_texts(20)
    texts[7] = "bad"
    with scripted(script) as tei, clients(tei, request_timeout=0.2) as client:
        embeddings = client.submit(texts).result()
        alone = [asked for asked in tei.asked if asked.documents == ["bad"]]
        ended.set()
    check(texts, embeddings, {7})
    assert embeddings.rejections[7].reason is Reason.REJECTED_BY_ENDPOINT
    assert embeddings.rejections[7].http_status is None
    assert len(alone) >= 5


def test_a_server_that_hangs_whatever_it_is_sent_blames_no_text() -> None:
    ended = threading.Event()
    with scripted() as tei, clients(tei, request_timeout=0.2, give_up_after=2) as client:
        client.probe()
        tei.script = lambda _: HANG_UP if ended.wait(60) else None
        with pytest.raises(EndpointUnreachable):
            client.submit(some_texts(3)).result()
        ended.set()


@pytest.mark.parametrize("status", [403, 404, 406])
def test_a_filter_that_objects_to_one_text_does_not_end_the_job(status: int) -> None:
    script = when(lambda asked: "bad" in asked.texts, Says(status, b"<html>blocked</html>"))
    texts = some_texts(20)
    texts[7] = "bad"
    with scripted(script) as tei, clients(tei, normalize=False) as client:
        embeddings = client.submit(texts).result()
    check(texts, embeddings, {7})
    assert embeddings.rejections[7].http_status == status


def test_a_text_for_which_the_batch_is_too_large_also_alone_is_rejected() -> None:
    script = when(lambda asked: "bad" in asked.texts, error(422, "batch size 9 > maximum allowed batch size 4"))
    texts = [*some_texts(2), "bad"]
    with scripted(script) as tei, clients(tei, give_up_after=20) as client:
        check(texts, client.submit(texts).result(), {2})


def test_a_batch_limit_that_the_refusal_tells_is_found_at_once() -> None:
    script = when(
        lambda asked: len(asked.texts) > 4, error(422, "batch size 32 > maximum allowed batch size 4"), times=16
    )
    with scripted(script) as tei, clients(tei) as client:
        check(some_texts(31), client.submit(some_texts(31)).result())
        first, *others = [len(body["input"]) for body in bodies(tei)]
    assert first == 32
    assert max(others) == 4
