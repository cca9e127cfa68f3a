"""What no retry can mend stops the run, in words that a person can act on."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from transforms.tei.errors import EndpointError, EndpointRefused, ModelChanged, VectorsDoubtful
from transforms.tei.handshake import CANARY_TEXT
from transforms.tei.vector_space import VectorSpace

from .helpers import bodies, check, clients, some_texts, when
from .server import DIMENSIONS, HANG_UP, Asked, Says, ScriptedTei, error, honest, scripted, vector_of


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (Says(401), "401.*--token"),
        (Says(403, b"<html>"), "403.*no right"),
        (Says(405), "405.*base URL"),
        (Says(301, b"", {"Location": "https://tei.example/embed?key=1"}), "301.*https://tei.example/embed:"),
        (error(400, "Bad Request: Invalid state"), "400.*resume"),
        (error(424, "Backend error: Model is not an embedding model", "Backend"), "424.*not an embedding model"),
        (error(422, "Input validation error: `default-prompt-name` is set to `x` but no"), "422.*--prompt_name"),
        (Says(451), "451"),
    ],
)
def test_what_no_retry_can_mend_stops_at_once(says: Says, words: str) -> None:
    with scripted() as tei, clients(tei, normalize=False) as client:
        client.probe()
        tei.script = lambda asked: says if asked.texts else None
        pending = client.submit(some_texts(500))
        with pytest.raises(EndpointRefused, match=f"(?s){tei.url}/embed.*{words}") as raised:
            pending.result()
        assert "key=1" not in str(raised.value)
        with pytest.raises(EndpointRefused):
            client.submit(["more"])
        assert len(bodies(tei)) <= 16


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[]", b'{"model_id": "x"}', b"7"])
def test_a_url_of_something_else_is_refused(body: bytes) -> None:
    with (
        scripted(lambda _: Says(200, body)) as tei,
        clients(tei) as client,
        pytest.raises(EndpointRefused, match="base URL"),
    ):
        client.info()


def test_a_gateways_page_in_mid_run_is_waited_for() -> None:
    left = itertools.count()

    def script(asked: Asked) -> Says | None:
        if asked.path == "/info":
            return Says(200, b"<html>starting</html>") if next(left) < 3 else None
        return None

    with scripted() as tei, clients(tei) as client:
        client.probe()
        hang_up = when(lambda _: True, HANG_UP, times=4)
        tei.script = lambda asked: hang_up(asked) or script(asked)
        check(some_texts(), client.submit(some_texts()).result())
        assert next(left) > 3


@pytest.mark.parametrize("prompt_name", [None, "query"])
def test_a_server_that_refuses_a_probe_sentence_refuses_the_job(prompt_name: str | None) -> None:
    says = error(422, "Input validation error: `inputs` must have less than 8 tokens. Given: 9")
    with (
        scripted(lambda asked: says if asked.texts else None) as tei,
        clients(tei, prompt_name=prompt_name) as client,
        pytest.raises(EndpointRefused, match=r"422.*8 tokens"),
    ):
        client.probe()


def test_a_model_that_does_not_embed_is_refused() -> None:
    with (
        scripted(model_type={"reranker": {"id2label": {}}}) as tei,
        clients(tei) as client,
        pytest.raises(EndpointRefused, match="reranker"),
    ):
        client.probe()


OTHER_NAMES: dict[str, Any] = {
    "model_id": "/repository",
    "model_sha": None,
    "model_dtype": "float16",
    "version": "1.8.0",
}


def space_of(tei: ScriptedTei) -> VectorSpace:
    with clients(tei) as client:
        return client.probe().space


def test_the_same_vectors_under_other_names_are_the_same_space() -> None:
    with scripted() as first, scripted(**OTHER_NAMES) as second, clients(second, space=space_of(first)) as client:
        check(["text"], client.submit(["text"]).result())
        assert client.probe().identity.model_id == "/repository"


def test_other_vectors_under_the_same_names_are_refused_before_anything_is_sent() -> None:
    with scripted() as first, scripted() as second:
        second.vectors = lambda text: vector_of("prompt: " + text)
        with clients(second, space=space_of(first)) as client:
            with pytest.raises(ModelChanged, match=r"hash, revision abc, TEI 1\.9\.3.*worst cosine is -?0\."):
                client.submit(["text"])
            assert not bodies(second)


def test_other_dimensions_than_the_jobs_are_noticed_at_the_handshake() -> None:
    with scripted() as first, scripted() as second:
        second.vectors = lambda text: vector_of(text, DIMENSIONS + 1)
        with (
            clients(second, space=space_of(first)) as client,
            pytest.raises(ModelChanged, match="vectors of 17 dimensions; those of this job have 16"),
        ):
            client.submit(["text"])


@pytest.mark.parametrize("change", [{"model_sha": "new"}, {}], ids=["told", "not told"])
def test_a_model_that_changes_behind_a_failure_is_noticed(change: dict[str, Any]) -> None:
    with scripted() as tei, clients(tei) as client:
        client.submit(some_texts()).result()
        tei.info |= change
        tei.vectors = lambda text: vector_of("other " + text)
        tei.script = when(lambda _: True, HANG_UP, times=3)
        with pytest.raises(ModelChanged):
            client.submit(some_texts()).result()


def test_a_model_of_other_dimensions_is_noticed_without_a_failure() -> None:
    with scripted() as tei, clients(tei) as client:
        client.submit(some_texts()).result()
        tei.vectors = lambda text: vector_of(text, DIMENSIONS - 1)
        with pytest.raises(ModelChanged, match="15 dimensions"):
            client.submit(some_texts()).result()


@pytest.mark.parametrize("normalize", [True, False], ids=["base64", "json"])
def test_vectors_in_each_others_places_stop_the_run(normalize: bool) -> None:
    def turned(asked: Asked) -> Says | None:
        if len(asked.texts) < 2:
            return None
        order = dict(zip(asked.texts, [*asked.texts[1:], asked.texts[0]], strict=True))
        return honest(asked, {}, lambda text: vector_of(order[text]))

    with (
        scripted() as tei,
        clients(tei, normalize=normalize) as client,
    ):
        client.probe()
        tei.script = turned
        with pytest.raises(VectorsDoubtful, match="mixes up rows"):
            client.submit(some_texts(200)).result()


@pytest.mark.parametrize("batch", [4, 32], ids=["several requests", "one request"])
def test_models_of_two_sizes_behind_one_address_stop_the_run(batch: int) -> None:
    count = itertools.count()

    def in_turn(asked: Asked) -> Says | None:
        dimensions = DIMENSIONS - next(count) % 2
        return honest(asked, {}, lambda text: vector_of(text, dimensions)) if asked.texts else None

    with (
        scripted(in_turn, max_client_batch_size=batch) as tei,
        clients(tei) as client,
        pytest.raises(EndpointError, match="two models answer there"),
    ):
        client.submit(some_texts()).result()


def test_the_canary_is_at_a_random_place_of_every_request() -> None:
    with scripted(max_client_batch_size=8) as tei, clients(tei) as client:
        check(some_texts(400), client.submit(some_texts(400)).result())
        places = {body["input"].index(CANARY_TEXT) for body in bodies(tei)}
        assert max(len(body["input"]) for body in bodies(tei)) == 8
    assert places == set(range(1, 8))  # never the first: see `Exchange.carry_out`


def test_a_probe_that_is_too_large_stops_at_once() -> None:
    with (
        scripted(lambda asked: Says(413, b"too large") if asked.texts else None) as tei,
        clients(tei) as client,
        pytest.raises(EndpointRefused, match="413"),
    ):
        client.probe()
