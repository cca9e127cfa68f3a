from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
import requests
from apache_beam.testing.util import assert_that, is_empty

from tests.matchers import each_by, local_pipeline
from tests.shards import LAYOUT, MADE, documents, folder, letter
from tests.tei_simulator.process import TeiSimulator
from transforms.early_stop import TooManyDeadLetters, early_limit
from transforms.elements import (
    DocumentShard,
    EmbeddedShard,
    Reason,
    RequestStatistics,
    Shard,
    ShardDeadLetters,
    Source,
    Stage,
    Vectors,
)
from transforms.embed_shards import EmbedShards, _EmbedShard, merge_embeddings
from transforms.ndjson.lines import split_lines
from transforms.read_shards import parse_shard
from transforms.tei import sharing
from transforms.tei.client import TeiClient
from transforms.tei.errors import EndpointError, EndpointUnreachable, ModelChanged
from transforms.tei.settings import EndpointSettings, Overlong
from transforms.tei.tasks import Embeddings, Rejection
from transforms.tei.vector_space import VectorSpace
from transforms.write_embedded import WriteEmbedded

SOURCE = Source("/in/wiki.ndjson", "wiki", 1000, "1.5")
STATISTICS = RequestStatistics(tokens=9, requests=1)


def shard_of(texts: Sequence[str], index: int = 0, broken: int = 0) -> DocumentShard:
    lines = [b'{"content":"%s"}' % text.encode() for text in texts] + [b"broken"] * broken
    data = b"\n".join(lines)
    return parse_shard(
        Shard(SOURCE, index, index * 100, index * 100 + 100), split_lines([data], 0, 1 << 20), "content", "embedding"
    )


def rejection(reason: Reason = Reason.REJECTED_BY_ENDPOINT) -> Rejection:
    return Rejection(reason, "the endpoint said no", 422, 2)


def test_without_rejections_every_document_has_its_row() -> None:
    read = DocumentShard(Shard(SOURCE, 0, 0, 100), documents(3), (), 3)
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    embedded, dead = merge_embeddings(read, Embeddings(vectors, {}, STATISTICS), 12.5)
    assert embedded.documents == read.documents
    assert embedded.vectors is vectors
    assert (embedded.records, embedded.statistics, embedded.started_at) == (3, STATISTICS, 12.5)
    assert dead == ShardDeadLetters(read.shard, ())


def test_a_rejected_text_takes_its_own_row_along_and_no_other() -> None:
    read = DocumentShard(Shard(SOURCE, 0, 0, 100), documents(4), (letter(10), letter(70)), 6)
    vectors = np.arange(8, dtype=np.float32).reshape(4, 2)
    rejections = {3: rejection(Reason.INVALID_VECTOR), 1: rejection()}
    embedded, dead = merge_embeddings(read, Embeddings(vectors, rejections, STATISTICS), 0.0)
    assert embedded.documents == (read.documents[0], read.documents[2])
    assert embedded.vectors.tolist() == [[0, 1], [4, 5]]
    assert [(one.offset, one.stage) for one in dead.dead_letters] == [
        (10, Stage.READ),
        (20, Stage.EMBED),
        (60, Stage.EMBED),
        (70, Stage.READ),
    ]
    assert embedded.dead_letters == dead.dead_letters
    assert embedded.records == 6
    first = dead.dead_letters[1]
    assert (first.reason, first.detail, first.http_status, first.attempts) == (
        Reason.REJECTED_BY_ENDPOINT,
        "the endpoint said no",
        422,
        2,
    )
    assert (first.line, first.source) == (read.documents[1].line, SOURCE.path)


def test_a_shard_may_lose_every_document() -> None:
    read = DocumentShard(Shard(SOURCE, 0, 0, 100), documents(2), (), 2)
    vectors = np.zeros((2, 2), dtype=np.float32)
    embedded, dead = merge_embeddings(read, Embeddings(vectors, {0: rejection(), 1: rejection()}, STATISTICS), 0.0)
    assert embedded.documents == ()
    assert embedded.vectors.shape == (0, 2)
    assert len(dead.dead_letters) == 2


@pytest.fixture(scope="module")
def space(hash_tei: str) -> VectorSpace:
    client = TeiClient(EndpointSettings((hash_tei,)))
    try:
        return client.probe().space
    finally:
        client.close()


def settings(url: str, space: VectorSpace | None, **options: object) -> EndpointSettings:
    return EndpointSettings((url,), space=space, **options)  # type: ignore[arg-type] # a test's own options


def vectors_of(url: str, texts: Sequence[str]) -> Vectors:
    """What a request for one text at a time gets."""
    rows = [requests.post(f"{url}/embed", json={"inputs": text}, timeout=10).json()[0] for text in texts]
    return np.array(rows, dtype=np.float32)


TEXTS = [[f"shard {shard}, text {n} " + "w " * (n * 7 % 40) for n in range(45)] for shard in range(3)]


def test_every_document_gets_the_vector_of_its_own_text(hash_tei: str, space: VectorSpace) -> None:
    shards = [shard_of(texts, index, broken=index) for index, texts in enumerate(TEXTS)]

    def check(embedded: EmbeddedShard) -> None:
        index = embedded.shard.index
        assert [document.text for document in embedded.documents] == TEXTS[index]
        assert embedded.vectors.dtype == np.float32
        assert embedded.vectors.tobytes() == vectors_of(hash_tei, TEXTS[index]).tobytes()
        assert (embedded.records, len(embedded.dead_letters)) == (45 + index, index)
        assert embedded.statistics.requests >= 2
        assert embedded.statistics.tokens > 45
        assert time.time() - 60 < embedded.started_at <= time.time()

    def check_dead(dead: ShardDeadLetters) -> None:
        assert [one.reason for one in dead.dead_letters] == [Reason.INVALID_JSON] * dead.shard.index

    with local_pipeline() as pipeline:
        outputs = pipeline | beam.Create(shards) | EmbedShards(settings(hash_tei, space, max_in_flight=32))
        assert_that(outputs.documents, each_by(lambda one: one.shard.index, dict.fromkeys(range(3), check)))
        # a shard without dead letters has no element on this side
        dead_checks = dict.fromkeys([1, 2], check_dead)
        assert_that(outputs.dead_letters, each_by(lambda one: one.shard.index, dead_checks), label="dead letters")


def test_a_text_that_is_too_long_becomes_a_dead_letter_if_that_is_wanted(hash_tei: str, space: VectorSpace) -> None:
    texts = ["short", "long " * 600, "short again"]

    def check(embedded: EmbeddedShard) -> None:
        assert [document.text for document in embedded.documents] == ["short", "short again"]
        assert embedded.vectors.tobytes() == vectors_of(hash_tei, ["short", "short again"]).tobytes()
        assert [one.reason for one in embedded.dead_letters] == [Reason.OVERLONG_TEXT]

    with local_pipeline() as pipeline:
        endpoint = settings(hash_tei, space, overlong=Overlong.DEAD_LETTER)
        outputs = pipeline | beam.Create([shard_of(texts)]) | EmbedShards(endpoint)
        assert_that(outputs.documents, each_by(lambda one: one.shard.index, {0: check}))


def test_a_text_that_no_utf8_can_hold_is_embedded_all_the_same(hash_tei: str, space: VectorSpace) -> None:
    shard = parse_shard(
        Shard(SOURCE, 0, 0, 9), split_lines([b'{"content":"a\\ud800"}'], 0, 1 << 20), "content", "embedding"
    )

    def check(embedded: EmbeddedShard) -> None:
        assert embedded.vectors.tobytes() == vectors_of(hash_tei, ["a?"]).tobytes()

    with local_pipeline() as pipeline:
        outputs = pipeline | beam.Create([shard]) | EmbedShards(settings(hash_tei, space))
        assert_that(outputs.documents, each_by(lambda one: one.shard.index, {0: check}))
        assert_that(outputs.dead_letters, is_empty(), label="no dead letters")


def test_an_empty_shard_goes_through(hash_tei: str, space: VectorSpace) -> None:
    def check(embedded: EmbeddedShard) -> None:
        assert (embedded.documents, embedded.records, len(embedded.vectors)) == ((), 0, 0)

    with local_pipeline() as pipeline:
        outputs = pipeline | beam.Create([shard_of([])]) | EmbedShards(settings(hash_tei, space))
        assert_that(outputs.documents, each_by(lambda one: one.shard.index, {0: check}))


@pytest.mark.parametrize(
    ("ratio", "limit"), [(0.0, 0.0), (0.01, 0.1), (0.04, 0.4), (0.05, 0.5), (0.3, 0.5), (0.6, 0.6), (1.0, 1.0)]
)
def test_a_run_stops_early_only_without_hope(ratio: float, limit: float) -> None:
    assert early_limit(ratio) == pytest.approx(limit)


@pytest.mark.parametrize(("broken", "hopeless"), [(100, False), (101, True)])
def test_a_run_without_hope_ends_behind_the_shard_that_shows_it(
    hash_tei: str, space: VectorSpace, tmp_path: Path, broken: int, hopeless: bool
) -> None:
    shards = [shard_of(["text"] * (1000 - broken), broken=broken), shard_of(["text"], 1)]
    pipeline = local_pipeline()
    embedded = pipeline | beam.Create(shards, reshuffle=False) | EmbedShards(settings(hash_tei, space), 0.01)
    _ = embedded.documents | WriteEmbedded(folder(tmp_path), MADE, LAYOUT)
    if hopeless:
        with pytest.raises(TooManyDeadLetters, match=r"101 of 1,000 records looked at so far .* 101 of them are"):
            pipeline.run()
    else:
        pipeline.run()
    assert len(folder(tmp_path).list("_job/receipts")) == (1 if hopeless else 2)


def test_an_endpoint_that_serves_another_model_ends_the_run(hash_tei: str, space: VectorSpace) -> None:
    other = VectorSpace.of(-space.vectors)
    pipeline = local_pipeline()
    _ = pipeline | beam.Create([shard_of(TEXTS[0])]) | EmbedShards(settings(hash_tei, other))
    with pytest.raises(ModelChanged, match="Another model"):
        pipeline.run()


def test_an_endpoint_that_is_not_there_ends_the_run(space: VectorSpace) -> None:
    pipeline = local_pipeline()
    endpoint = settings("http://127.0.0.1:9", space, give_up_after=0.2)
    _ = pipeline | beam.Create([shard_of(TEXTS[0])]) | EmbedShards(endpoint)
    with pytest.raises(EndpointUnreachable):
        pipeline.run()


def test_after_a_pipeline_no_client_is_left(hash_tei: str, space: VectorSpace) -> None:
    endpoint = settings(hash_tei, space, max_in_flight=7)
    with local_pipeline() as pipeline:
        _ = pipeline | beam.Create([shard_of(TEXTS[0])]) | EmbedShards(endpoint)
    client = sharing.acquire(endpoint)
    try:
        assert client.max_in_flight == 0  # a new one, which has not met the endpoint
    finally:
        sharing.release(client)
    with pytest.raises(EndpointError):
        client.submit(["too late"])


def test_counters_tell_what_went_in_and_out_and_how_long_the_endpoint_made_it_wait(space: VectorSpace) -> None:
    faults = json.dumps({"script": ["ok"] * 8 + ["throttle"] * 4, "retry_after": 2})
    with TeiSimulator(["--faults", faults]) as server:
        pipeline = local_pipeline()
        shards = [shard_of([f"{index}, text {n}" for n in range(300)], index, broken=index) for index in range(2)]
        _ = pipeline | beam.Create(shards) | EmbedShards(settings(server.url, space))
        counters = {c.key.metric.name: c.result for c in pipeline.run().metrics().query()["counters"]}
    assert counters["documents_in"] == counters["documents_out"] == 600
    assert counters["dead_letters_out"] == 1
    assert counters["cumulativeThrottlingSeconds"] > 0


def test_threads_of_a_runner_share_one_client_and_one_budget(space: VectorSpace) -> None:
    budget, threads = 40, 4
    with TeiSimulator(["--faults", '{"batch_seconds": 0.02}']) as server:
        endpoint = settings(server.url, space, max_in_flight=budget)
        together = threading.Barrier(threads)

        def embed(number: int) -> list[EmbeddedShard]:
            do_fn = _EmbedShard(endpoint, max_dead_letter_ratio=1.0)
            do_fn.setup()
            try:
                together.wait(timeout=30)
                do_fn.start_bundle()
                shards = [shard_of([f"{number}/{index}/{n}" for n in range(60)], index) for index in range(3)]
                outputs = [output for shard in shards for output in do_fn.process(shard)]
                outputs += [output.value for output in do_fn.finish_bundle()]
                return [output.value for output in outputs]
            finally:
                do_fn.teardown()

        with ThreadPoolExecutor(threads) as pool:
            results = list(pool.map(embed, range(threads)))
        stats = requests.get(f"{server.url}/simulator/statistics", timeout=10).json()
        for number, shards in enumerate(results):
            assert [shard.shard.index for shard in shards] == [0, 1, 2]
            for index, shard in enumerate(shards):
                expected = vectors_of(server.url, [f"{number}/{index}/{n}" for n in range(0, 60, 20)])
                assert np.array_equal(shard.vectors[::20], expected)
    assert budget // 2 < stats["peak_texts_in_flight"] <= budget
    assert stats["rejected"] == 0


def test_the_backlog_is_bounded_for_a_process_and_not_for_each_of_its_threads(space: VectorSpace) -> None:
    threads, shards_each = 6, 8
    with TeiSimulator(["--faults", '{"batch_seconds": 0.05}']) as server:
        endpoint = settings(server.url, space, max_in_flight=20)
        most = 0
        together, looking = threading.Barrier(threads), threading.Event()

        def look() -> None:
            nonlocal most
            while not looking.wait(0.002):
                most = max(most, sharing.backlog.documents)

        def embed(number: int) -> int:
            do_fn = _EmbedShard(endpoint, max_dead_letter_ratio=1.0)
            do_fn.setup()
            try:
                together.wait(timeout=30)
                do_fn.start_bundle()
                shards = [shard_of([f"{number}/{index}/{n}" for n in range(20)], index) for index in range(shards_each)]
                outputs = [output for shard in shards for output in do_fn.process(shard)]
                return len(outputs + list(do_fn.finish_bundle()))
            finally:
                do_fn.teardown()

        watcher = threading.Thread(target=look)
        watcher.start()
        with ThreadPoolExecutor(threads) as pool:
            assert list(pool.map(embed, range(threads))) == [shards_each] * threads
        looking.set()
        watcher.join()
    assert sharing.backlog.documents == sharing.backlog.memory == 0
    # One shard that each thread has in its hands, and what keeps the endpoint busy, once. A limit for each thread
    # would let 6 * (20 + 40) documents wait.
    assert most <= threads * 20 + 2 * 20 + 20
    assert most >= 40


def test_a_bundle_that_fails_leaves_nothing_in_the_backlog(space: VectorSpace) -> None:
    do_fn = _EmbedShard(settings("http://127.0.0.1:9", space, give_up_after=0.2), max_dead_letter_ratio=1.0)
    do_fn.setup()
    do_fn.start_bundle()
    with pytest.raises(EndpointUnreachable):
        list(do_fn.process(shard_of(TEXTS[0])))
    do_fn.start_bundle()
    do_fn.teardown()
    assert sharing.backlog.documents == sharing.backlog.memory == 0
