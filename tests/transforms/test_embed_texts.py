from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, is_empty
from apache_beam.transforms.window import FixedWindows, GlobalWindow, GlobalWindows, TimestampedValue

from tests.matchers import each_by, equal_in_any_order, local_pipeline
from tests.tei_simulator.clients import Simulator
from tests.tei_simulator.hash_model import expected_vector
from tests.tei_simulator.process import TeiSimulator
from transforms.elements import Reason, RequestStatistics
from transforms.embed_texts import (
    EmbedOrReject,
    EmbedTexts,
    RejectedText,
    _EmbedOrReject,
    find_problem,
    vectors_or_rejections,
)
from transforms.tei import sharing
from transforms.tei.client import TeiClient
from transforms.tei.errors import EndpointUnreachable, ModelChanged
from transforms.tei.settings import EndpointSettings, Overlong
from transforms.tei.tasks import Embeddings, Rejection
from transforms.tei.vector_space import VectorSpace

REFUSED = Rejection(Reason.REJECTED_BY_ENDPOINT, "no", 422, 2)


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    """A server process that refuses texts with the word BAD in them."""
    with TeiSimulator(["--faults", '{"refuse_marker": "BAD"}']) as server:
        yield Simulator(server.url)


def vectors_of(texts: Mapping[Any, str]) -> Callable[[list[Any]], None]:
    """Hold the elements against the vectors of these texts, by their keys."""

    def check(element: Any) -> None:
        key, vector = element
        assert vector.dtype == np.float32
        assert vector.tobytes() == expected_vector(texts[key]).tobytes()

    return each_by(lambda one: one[0], dict.fromkeys(texts, check))


def test_every_key_gets_the_vector_of_its_own_text_and_equal_texts_are_sent_once(simulator: Simulator) -> None:
    texts = {key: f"text {key} " + "w " * (key * 7 % 40) for key in range(1300)}
    texts |= dict.fromkeys(range(1300, 1700), "the same")
    simulator.reset_statistics()
    with local_pipeline() as pipeline:
        outputs = (
            pipeline | beam.Create(texts.items(), reshuffle=False) | EmbedTexts(EndpointSettings((simulator.url,)))
        )
        assert_that(outputs.vectors, vectors_of(texts))
        assert_that(outputs.dead_letters, is_empty(), label="no dead letters")
    # 1,300 different texts, and canaries and probes; "the same" once for each batch that it is in
    assert 1300 < simulator.statistics()["texts"] < 1400


def test_a_text_that_cannot_be_embedded_takes_no_neighbour_along(simulator: Simulator) -> None:
    texts = {
        "good": "a",
        "refused": "BAD",
        "long": "long " * 600,
        "none": None,
        "number": 7,
        "blank": " \n",
        "last": "b",
    }
    endpoint = EndpointSettings((simulator.url,), overlong=Overlong.DEAD_LETTER)
    with local_pipeline() as pipeline:
        outputs = pipeline | beam.Create(texts.items()) | EmbedTexts(endpoint)
        assert_that(outputs.vectors, vectors_of({"good": "a", "last": "b"}))
        rejected = outputs.dead_letters | beam.Map(lambda one: (one.key, one.reason, one.detail.split(":")[0]))
        expected = [
            ("refused", Reason.REJECTED_BY_ENDPOINT, "Input validation error"),
            ("long", Reason.OVERLONG_TEXT, "Input validation error"),
            ("none", Reason.MISSING_TEXT, "the text is missing or null"),
            ("number", Reason.MISSING_TEXT, "the text is a value of type int, not a string"),
            ("blank", Reason.EMPTY_TEXT, "the text is blank"),
        ]
        assert_that(rejected, equal_in_any_order(expected), label="dead letters")
        assert_that(
            outputs.dead_letters | beam.Map(type), equal_in_any_order([RejectedText] * len(expected)), label="types"
        )


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        ("a", None),
        ({"title": "a", "body": "b"}, None),
        ({"title": "a", "body": None}, (Reason.MISSING_TEXT, "body is missing or null")),
        ({"title": "", "body": None}, (Reason.EMPTY_TEXT, "title is empty")),
    ],
)
def test_what_need_not_be_sent(texts: Any, problem: tuple[Reason, str] | None) -> None:
    found = find_problem(texts)
    assert (found and (found.reason, found.detail)) == problem


def test_elements_of_several_texts_get_several_vectors_or_the_first_rejection() -> None:
    vectors = np.arange(10, dtype=np.float32).reshape(5, 2)
    elements: list[Any] = ["a", {"x": "b", "y": "c"}, {"x": "d", "y": "e"}]
    first, second, third = vectors_or_rejections(elements, Embeddings(vectors, {4: REFUSED}, RequestStatistics()))
    assert isinstance(first, np.ndarray)
    assert isinstance(second, dict)
    assert first.tolist() == [0, 1]
    assert first.base is None  # a vector keeps no batch alive
    assert {name: vector.tolist() for name, vector in second.items()} == {"x": [2, 3], "y": [4, 5]}
    assert third == Rejection(Reason.REJECTED_BY_ENDPOINT, "y: no", 422, 2)


def test_windows_and_timestamps_stay_with_their_elements(hash_tei: str) -> None:
    texts = [(key, "" if key % 100 == 50 else f"text {key}") for key in range(1200)]

    def with_times(element: Any, at: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam) -> Any:
        key = element.key if isinstance(element, RejectedText) else element[0]
        return key, float(at), float(window.start), float(window.end)

    def expected(keys: list[int]) -> list[tuple[int, float, float, float]]:
        return [(key, key, key // 60 * 60, key // 60 * 60 + 60) for key in keys]

    with local_pipeline() as pipeline:
        outputs = (
            pipeline
            | beam.Create(texts, reshuffle=False)
            | beam.Map(lambda pair: TimestampedValue(pair, pair[0]))
            | beam.WindowInto(FixedWindows(60))
            | EmbedTexts(EndpointSettings((hash_tei,)))
        )
        times, dead_times = (
            output | f"Times{place}" >> beam.Map(with_times) | f"Global{place}" >> beam.WindowInto(GlobalWindows())
            for place, output in enumerate(outputs)
        )
        rejected = list(range(50, 1200, 100))
        assert_that(times, equal_in_any_order(expected([key for key in range(1200) if key not in rejected])))
        assert_that(dead_times, equal_in_any_order(expected(rejected)), label="dead letters")


def test_worker_processes_take_the_space_that_one_of_them_found(simulator: Simulator) -> None:
    options = PipelineOptions(direct_running_mode="multi_processing", direct_num_workers=2)
    texts = {key: f"text {key}" for key in range(40)}
    simulator.reset_statistics()
    with local_pipeline(options) as pipeline:
        outputs = pipeline | beam.Create(texts.items()) | EmbedTexts(EndpointSettings((simulator.url,)))
        vectors = outputs.vectors | beam.Map(lambda one: (one[0], one[1].tobytes()))
        expected = [(key, expected_vector(text).tobytes()) for key, text in texts.items()]
        assert_that(vectors, equal_in_any_order(expected))
    # The first handshake, and one of each process: all of a process share its client.
    assert 2 <= simulator.statistics()["info_requests"] <= 3


def test_a_model_that_is_swapped_after_the_space_was_asked_for_fails_the_pipeline() -> None:
    with TeiSimulator() as server:
        simulator, endpoint = Simulator(server.url), EndpointSettings((server.url,))
        client = TeiClient(endpoint)
        client.probe()
        client.close()
        simulator.change_faults(swap_at=simulator.statistics()["texts"])  # behind the pipeline's first handshake
        pipeline = local_pipeline()
        _ = pipeline | beam.Create([("key", "text")]) | EmbedTexts(endpoint)
        with pytest.raises(ModelChanged, match="Another model"):
            pipeline.run()


def test_a_space_that_is_given_is_required(hash_tei: str) -> None:
    client = TeiClient(EndpointSettings((hash_tei,)))
    space = client.probe().space
    client.close()
    pipeline = local_pipeline()
    other = EndpointSettings((hash_tei,), space=VectorSpace.of(-space.vectors))
    _ = pipeline | beam.Create([("key", "text")]) | EmbedTexts(other)
    with pytest.raises(ModelChanged, match="Another model"):
        pipeline.run()


def test_an_endpoint_that_is_not_there_fails_the_pipeline() -> None:
    pipeline = local_pipeline()
    _ = (
        pipeline
        | beam.Create([("key", "text")])
        | EmbedTexts(EndpointSettings(("http://127.0.0.1:9",), give_up_after=0.2))
    )
    with pytest.raises(EndpointUnreachable):
        pipeline.run()


def space_of(url: str) -> VectorSpace:
    client = TeiClient(EndpointSettings((url,)))
    try:
        return client.probe().space
    finally:
        client.close()


def do_fn_outputs(do_fn: _EmbedOrReject, space: VectorSpace, texts: list[str]) -> list[tuple[Any, Any]]:
    outputs = [
        output
        for key, text in enumerate(texts)
        for output in do_fn.process((key, text), space, timestamp=0, window=GlobalWindow())
    ]
    return [output.value for output in [*outputs, *do_fn.finish_bundle()]]


def test_a_long_bundle_holds_few_texts_and_threads_share_one_client() -> None:
    threads, texts_each, budget = 3, 4000, 40
    with TeiSimulator(["--faults", json.dumps({"texts_per_second": 20_000})]) as server:
        simulator, space = Simulator(server.url), space_of(server.url)
        endpoint = EndpointSettings((server.url,), max_in_flight=budget)
        simulator.reset_statistics()
        most, looking = 0, threading.Event()

        def look() -> None:
            nonlocal most
            while not looking.wait(0.002):
                most = max(most, sharing.backlog.documents)

        def embed(number: int) -> int:
            do_fn = _EmbedOrReject(endpoint)
            try:
                return len(do_fn_outputs(do_fn, space, [f"{number}/{n}" for n in range(texts_each)]))
            finally:
                do_fn.teardown()

        watcher = threading.Thread(target=look)
        watcher.start()
        with ThreadPoolExecutor(threads) as pool:
            assert list(pool.map(embed, range(threads))) == [texts_each] * threads
        looking.set()
        watcher.join()
        statistics = simulator.statistics()
    assert sharing.backlog.documents == sharing.backlog.memory == 0
    # One batch that each thread waits for, and one that it has just submitted.
    assert 512 <= most <= threads * 2 * 512
    assert budget // 2 < statistics["peak_texts_in_flight"] <= budget
    assert statistics["info_requests"] == 1


def test_what_a_failed_bundle_left_is_not_in_the_next_one(hash_tei: str) -> None:
    space = space_of(hash_tei)
    do_fn = _EmbedOrReject(EndpointSettings((hash_tei,)))
    list(do_fn.process(("old", "old"), space, timestamp=0, window=GlobalWindow()))
    do_fn.start_bundle()
    try:
        assert [key for key, _ in do_fn_outputs(do_fn, space, ["a", "b"])] == [0, 1]
    finally:
        do_fn.teardown()


def test_counters_say_what_went_in_and_what_was_rejected(simulator: Simulator) -> None:
    pipeline = local_pipeline()
    texts = [("a", "one"), ("b", "BAD"), ("c", None)]
    _ = pipeline | beam.Create(texts) | EmbedOrReject(EndpointSettings((simulator.url,)))
    counters = {c.key.metric.name: c.result for c in pipeline.run().metrics().query()["counters"]}
    assert (counters["texts_in"], counters["texts_rejected"]) == (2, 2)
