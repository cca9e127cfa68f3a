"""No vector of another space, and none of another text, is ever given out, whatever stands behind the URL."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tei_simulator.clients import Simulator
from tests.tei_simulator.hash_model import expected_vectors
from tests.tei_simulator.process import TeiSimulator
from transforms.tei.client import PendingEmbeddings, TeiClient
from transforms.tei.errors import EndpointError, EndpointRefused, ModelChanged, PairingBroken, VectorsDoubtful
from transforms.tei.settings import EndpointSettings
from transforms.tei.vector_space import MIN_COSINE, MIN_TOLERANCE, cosine

WHAT_TO_LOOK_AT = r"replicas, a rolling update, a balancer|deployed or restarted|whatever its name"
SHARDS, TEXTS = 4, 400


@contextmanager
def client_of(url: str, **options: Any) -> Iterator[TeiClient]:
    settings = EndpointSettings((url,), **{"give_up_after": 20, "request_timeout": 5, **options})
    client = TeiClient(settings, pace=0.02, rng=random.Random(1))
    try:
        yield client
    finally:
        client.close()


@pytest.fixture(scope="module", params=[1, 8, 32], ids=["one text", "8 texts", "32 texts"])
def sized_process(request: pytest.FixtureRequest) -> Iterator[tuple[Simulator, int]]:
    with TeiSimulator(["--max_client_batch_size", str(request.param)]) as tei:
        yield Simulator(tei.url), request.param


@pytest.fixture
def sized(sized_process: tuple[Simulator, int]) -> Iterator[tuple[Simulator, int]]:
    """A server without faults, and how many texts it takes in a request."""
    yield sized_process
    sized_process[0].set_faults()


@pytest.fixture(scope="module")
def plain_process() -> Iterator[Simulator]:
    with TeiSimulator() as tei:
        yield Simulator(tei.url)


@pytest.fixture
def plain(plain_process: Simulator) -> Iterator[Simulator]:
    """A server without faults."""
    yield plain_process
    plain_process.set_faults()


def shards_of(seed: int) -> list[list[str]]:
    return [[f"text {index} of shard {shard}, {seed}" for index in range(TEXTS)] for shard in range(SHARDS)]


def embed_until_it_ends(
    client: TeiClient, shards: list[list[str]], *, exact: bool = True, prompt: str = ""
) -> EndpointError | None:
    """Embed; check all that was stored, of shards that the run's end cut off too; return what ended the run."""
    settled_before = client.settled
    pending: list[PendingEmbeddings] = []
    failure: EndpointError | None = None
    try:
        pending.extend(map(client.submit, shards))
    except EndpointError:
        if not pending:
            raise
        # The client has failed meanwhile: the shards that it has taken give the reason.
    for each in pending:
        try:
            each.result()
        except EndpointError as error:
            failure = failure or error
    settled, stored = client.settled - settled_before, 0
    for shard, each in zip(shards, pending, strict=False):
        vectors, there = each.so_far()
        assert vectors[there].any(axis=1).all()
        stored += int(there.sum())
        expected = expected_vectors(shard, prompt=prompt)
        if exact:
            np.testing.assert_array_equal(vectors[there], expected[there])
        assert failure or there.all()
    assert settled <= stored  # no text was rejected
    return failure


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("faults", [{"mix": 0.3}, {"mix": 0.05}, {"mix": 0.02}, {"swap_at": 900}], ids=str)
def test_another_model_in_some_replies_ends_the_run_before_any_of_its_vectors_is_kept(
    sized: tuple[Simulator, int], faults: dict[str, Any], seed: int
) -> None:
    simulator, batch = sized
    # Where every text is a request of its own, a reply cannot show which of two models it came from; that there are
    # two shows in the canary's own replies, and ends the run.
    provable = batch > 1 or "swap_at" in faults
    with client_of(simulator.url) as client:
        client.probe()
        simulator.set_faults(seed=seed, same_name=True, **faults)
        failure = embed_until_it_ends(client, shards_of(seed), exact=provable)
    if "swap_at" in faults or faults["mix"] >= 0.3:  # the rarer ones may not have had two wrong replies yet
        assert isinstance(failure, (ModelChanged, PairingBroken, VectorsDoubtful))
        assert isinstance(failure, VectorsDoubtful) is (batch == 1)
        assert failure.args[0].startswith(simulator.url)
        with pytest.raises(EndpointError, match=WHAT_TO_LOOK_AT):
            raise failure


@pytest.mark.parametrize("known", [True, False], ids=["same process", "next run"])
def test_a_server_that_comes_back_with_another_model_under_the_same_name_is_refused(known: bool) -> None:
    with TeiSimulator() as tei, client_of(tei.url) as client:
        server, space = Simulator(tei.url), client.probe().space
        if known:
            assert embed_until_it_ends(client, shards_of(0)) is None
        server.set_faults(model_seed=7, same_name=True)
        with client_of(tei.url, space=space) as other:
            used = client if known else other
            with pytest.raises(ModelChanged, match="whatever its name"):
                used.submit(["text"] * 40).result()


def test_rows_in_each_others_places_end_the_run(plain: Simulator) -> None:
    with client_of(plain.url) as client:
        client.probe()
        plain.set_faults(permuted=1.0)
        failure = embed_until_it_ends(client, shards_of(3))
        assert isinstance(failure, VectorsDoubtful)
        plain.set_faults()


@pytest.mark.parametrize("fault", ["shuffled", "swapped"])
def test_rows_that_change_places_put_all_in_doubt_once_the_canary_was_among_them(plain: Simulator, fault: str) -> None:
    with client_of(plain.url) as client:
        client.probe()
        plain.set_faults(**{fault: 1.0})
        failure = None
        for seed in range(10):
            failure = failure or embed_until_it_ends(client, shards_of(seed), exact=False)
            if failure is not None:
                break
    assert isinstance(failure, VectorsDoubtful)


@pytest.mark.parametrize("cache", ["body", "first_text"])
@pytest.mark.parametrize("known", [True, False], ids=["later", "from the start"])
def test_a_proxy_that_caches_never_mispairs(plain: Simulator, cache: str, known: bool) -> None:
    with client_of(plain.url, give_up_after=2) as client:
        if known:
            client.probe()
        plain.set_faults(cache=cache)
        failure: EndpointError | None = None
        try:
            for _ in range(2):
                failure = embed_until_it_ends(client, shards_of(5))
                assert failure is None or isinstance(failure, (PairingBroken, VectorsDoubtful))
        except PairingBroken as error:  # at the handshake
            failure = error
            assert not known
        assert isinstance(failure, (PairingBroken, VectorsDoubtful)) or cache == "body" or known


def test_a_prompt_that_a_server_puts_before_texts_without_saying_so_is_another_space(plain: Simulator) -> None:
    with client_of(plain.url) as client:
        space = client.probe().space
    plain.set_faults(default_prompt="passage: ")
    with client_of(plain.url, space=space) as client, pytest.raises(ModelChanged, match="worst cosine"):
        client.submit(["text"])
    with client_of(plain.url) as client:  # a folder of its own may have it
        assert embed_until_it_ends(client, shards_of(6), prompt="passage: ") is None


def test_float16_is_the_same_space(plain: Simulator) -> None:
    with client_of(plain.url) as client:
        space = client.probe().space
    plain.set_faults(noise="float16")
    with client_of(plain.url, space=space) as client:
        assert embed_until_it_ends(client, shards_of(7), exact=False) is None
        assert client.probe().space.min_cosine == MIN_COSINE


def test_a_quantized_server_gets_the_tolerance_that_it_shows(plain: Simulator) -> None:
    plain.set_faults(noise="quantized")
    with client_of(plain.url) as client:
        space = client.probe().space
        assert MIN_TOLERANCE <= space.min_cosine < MIN_COSINE
        pending = client.submit(shards_of(8)[0])
        vectors = pending.result().vectors
        expected = expected_vectors(shards_of(8)[0])
        assert min(cosine(one, other) for one, other in zip(vectors, expected, strict=True)) > 0.99
    plain.set_faults(model_seed=1, noise="quantized", same_name=True)
    with client_of(plain.url, space=space) as client, pytest.raises(ModelChanged):
        client.probe()


def test_where_texts_go_one_by_one_the_canary_goes_before_and_after_each_group() -> None:
    with TeiSimulator(["--max_client_batch_size", "1"]) as tei, client_of(tei.url) as client:
        server = Simulator(tei.url)
        client.probe()
        server.reset_statistics()
        embeddings = client.submit([f"text {index}" for index in range(310)]).result()
        assert embeddings.statistics.requests == 310
        assert server.statistics()["texts"] == 310 + 2 * 10
        assert embeddings.statistics.tokens == sum(4 for _ in range(310))


# --- dimensions, headers, strangers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False], ids=["/v1/embeddings", "/embed"])
def test_fewer_dimensions_are_asked_for_on_both_routes(plain: Simulator, normalize: bool) -> None:
    texts = shards_of(9)[0]
    with client_of(plain.url, dimensions=96, normalize=normalize) as client:
        embeddings = client.submit(texts).result()
        assert ("/v1/" in client.probe().wire.format.value) is normalize
    assert embeddings.vectors.shape == (TEXTS, 96)
    expected = expected_vectors(texts, dimensions=96)
    norms = np.linalg.norm(embeddings.vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(embeddings.vectors / norms, expected, atol=1e-6)


def test_dimensions_that_a_model_or_server_cannot_give_are_refused_in_words(plain: Simulator) -> None:
    with client_of(plain.url, dimensions=1000) as client, pytest.raises(EndpointRefused, match="--dimensions 1000"):
        client.probe()
    plain.set_faults(info_fields={"version": "1.7.2"})
    with client_of(plain.url, dimensions=96) as client, pytest.raises(EndpointRefused, match="ignores --dimensions"):
        client.probe()


def test_a_header_that_a_gateway_wants_is_sent(plain: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_KEY", "key-12345")
    plain.set_faults(required_header="x-api-key: key-12345")
    with client_of(plain.url, headers=(("X-Api-Key", "env:GATEWAY_KEY"),)) as client:
        assert embed_until_it_ends(client, shards_of(10)) is None
    monkeypatch.setenv("GATEWAY_KEY", "key-54321")
    with (
        client_of(plain.url, headers=(("X-Api-Key", "env:GATEWAY_KEY"),)) as client,
        pytest.raises(EndpointRefused, match="--header X-Api-Key") as raised,
    ):
        client.probe()
    assert "54321" not in str(raised.value)


def test_a_token_that_expires_is_read_again_from_its_file_but_not_from_the_environment(
    plain: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "token"
    path.write_text("token-0001")
    plain.set_faults(token_file=str(path), expire_after=40)
    with client_of(plain.url, token=f"file:{path}") as client:
        for number in range(2, 5):
            assert embed_until_it_ends(client, [[f"{number} {index}" for index in range(300)]]) is None
            path.write_text(f"token-000{number}")  # as a sidecar that renews it does
    monkeypatch.setenv("TEI_TOKEN", path.read_text())
    plain.set_faults(token_file=str(path), expire_after=40)
    with client_of(plain.url, token="env:TEI_TOKEN") as client:
        pending = client.submit([f"text {index}" for index in range(3000)])
        with pytest.raises(EndpointRefused, match="env:TEI_TOKEN"):
            pending.result()


def test_what_does_not_speak_teis_protocol_is_named(plain: Simulator) -> None:
    plain.set_faults(no_info=True)
    with client_of(plain.url) as client, pytest.raises(EndpointRefused, match="path prefix of a gateway"):
        client.probe()
    plain.set_faults(no_info=True, openai_only=True)
    with client_of(plain.url) as client, pytest.raises(EndpointRefused, match=r"OpenAI-compatible.*not supported yet"):
        client.probe()
