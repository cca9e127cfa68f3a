from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.ml.rag.types import Chunk, Content, EmbeddableItem, Embedding
from apache_beam.ml.transforms.base import MLTransform
from apache_beam.testing.util import assert_that

from tests.matchers import equal_in_any_order, local_pipeline
from tests.tei_simulator.clients import Simulator
from tests.tei_simulator.hash_model import expected_vector
from tests.tei_simulator.process import TeiSimulator
from transforms.ml_transform import NotEmbedded, TeiTextEmbeddings, take_texts, with_vectors
from transforms.tei.client import TeiClient
from transforms.tei.errors import EndpointUnreachable, ModelChanged
from transforms.tei.settings import EndpointSettings, Overlong

BOOKS = [
    {"id": 1, "title": "The Nile", "body": "It is long."},
    {"id": 2, "title": "النيل", "body": "نهر طويل."},
    {"id": 3, "title": "The sea", "body": "It is long."},
]


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    """A server process that refuses texts with the word BAD in them."""
    with TeiSimulator(["--faults", '{"refuse_marker": "BAD"}']) as server:
        yield Simulator(server.url)


def vector(text: str) -> list[float]:
    """What the text must get, as Beam's sinks take it: the 32-bit floats, exactly."""
    numbers: list[float] = expected_vector(text).tolist()
    return numbers


def embedded(book: dict[str, Any], *columns: str) -> dict[str, Any]:
    return {**book, **{column: vector(book[column]) for column in columns}}


def reason_of(row: beam.Row) -> tuple[Any, str, bool]:
    """What an error's row says: whose it is, why, and whether it has the place in the code."""
    return row.element, row.msg.split(":")[0], "with_vectors" in row.stack


def test_the_columns_of_dicts_and_the_artifacts_of_a_former_pipeline(
    hash_tei: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "the-secret-itself")
    artifacts = tmp_path / "artifacts"
    expected = equal_in_any_order([embedded(book, "title", "body") for book in BOOKS])
    embeddings = TeiTextEmbeddings(
        hash_tei, columns=["title", "body"], token="env:SOME_TOKEN", overlong=Overlong.DEAD_LETTER
    )
    with local_pipeline() as pipeline:
        transform = MLTransform(write_artifact_location=str(artifacts)).with_transform(embeddings)
        assert_that(pipeline | beam.Create(BOOKS) | transform, expected)
    with local_pipeline() as pipeline:
        transform = MLTransform(read_artifact_location=str(artifacts)).with_exception_handling()
        good, bad = pipeline | beam.Create([*BOOKS, {"id": 4, "title": "long " * 600, "body": "b"}]) | transform
        assert_that(good, expected)
        assert_that(
            bad | beam.Map(lambda row: (row.element["id"], row.msg.split(":")[0])),
            equal_in_any_order([(4, "NotEmbedded('overlong_text")]),
            label="errors",
        )
    [saved] = json.loads((artifacts / "attributes.json").read_text())
    assert saved["settings"]["token"] == "env:SOME_TOKEN"
    assert "the-secret-itself" not in json.dumps(saved)


def test_a_record_that_cannot_be_embedded_is_an_error_and_its_neighbours_are_not(
    simulator: Simulator, tmp_path: Path
) -> None:
    bad_books = [
        {"id": 10, "title": "fine", "body": "BAD"},
        {"id": 11, "title": " ", "body": "fine"},
        {"id": 12, "title": "no body"},
        {"id": 13, "title": "fine", "body": 13},
    ]
    records = [BOOKS[0], bad_books[0], BOOKS[1], *bad_books[1:], BOOKS[2]]
    with local_pipeline() as pipeline:
        transform = (
            MLTransform(write_artifact_location=str(tmp_path))
            .with_transform(TeiTextEmbeddings(simulator.url, columns=["title", "body"]))
            .with_exception_handling()
        )
        good, bad = pipeline | beam.Create(records) | transform
        assert_that(good, equal_in_any_order([embedded(book, "title", "body") for book in BOOKS]))
        reasons = ["rejected_by_endpoint", "empty_text", "missing_text", "missing_text"]
        expected = [(book, f"NotEmbedded('{reason}", True) for book, reason in zip(bad_books, reasons, strict=True)]
        assert_that(bad | beam.Map(reason_of), equal_in_any_order(expected), label="errors")


def test_without_exception_handling_such_a_record_fails_the_pipeline(simulator: Simulator, tmp_path: Path) -> None:
    transform = MLTransform(write_artifact_location=str(tmp_path)).with_transform(
        TeiTextEmbeddings(simulator.url, columns=["body"])
    )
    pipeline = local_pipeline()
    _ = pipeline | beam.Create([{"body": "BAD"}]) | transform
    with pytest.raises(NotEmbedded, match="rejected_by_endpoint: body: Input validation error"):
        pipeline.run()


def test_more_errors_than_the_threshold_fail_the_pipeline(simulator: Simulator, tmp_path: Path) -> None:
    transform = MLTransform(write_artifact_location=str(tmp_path)).with_transform(
        TeiTextEmbeddings(simulator.url, columns=["body"])
    )
    pipeline = local_pipeline()
    records = [{"body": "BAD"}] * 2 + [{"body": "good"}] * 2
    _ = pipeline | beam.Create(records) | transform.with_exception_handling(threshold=0.4)
    with pytest.raises(ValueError, match=r"0\.5 > 0\.4"):
        pipeline.run()


def test_a_failure_of_the_endpoint_is_no_error_of_a_record(tmp_path: Path) -> None:
    transform = MLTransform(write_artifact_location=str(tmp_path)).with_transform(
        TeiTextEmbeddings("http://127.0.0.1:9", columns=["body"], give_up_after=0.2)
    )
    pipeline = local_pipeline()
    _ = pipeline | beam.Create([{"body": "text"}]) | transform.with_exception_handling()
    with pytest.raises(EndpointUnreachable):
        pipeline.run()


def test_items_of_rag_get_their_embedding_and_keep_all_else(simulator: Simulator, tmp_path: Path) -> None:
    sparse = Embedding(sparse_embedding=([1, 7], [0.5, 0.25]))
    chunks = [
        Chunk(content=Content(text="The Nile is long."), id="a", index=3, metadata={"lang": "en"}),
        Chunk(content=Content(text="النيل نهر طويل."), id="b", embedding=sparse),
    ]
    image = EmbeddableItem.from_image("gs://bucket/nile.jpg", id="c")
    refused = EmbeddableItem.from_text("BAD", id="d")
    first, second = (vector(str(chunk.content.text)) for chunk in chunks)
    expected = [
        Chunk(content=chunks[0].content, id="a", index=3, metadata={"lang": "en"}, embedding=Embedding(first)),
        Chunk(content=chunks[1].content, id="b", embedding=Embedding(second, sparse.sparse_embedding)),
    ]
    with local_pipeline() as pipeline:
        transform = (
            MLTransform(write_artifact_location=str(tmp_path))
            .with_transform(TeiTextEmbeddings(simulator.url))
            .with_exception_handling()
        )
        good, bad = pipeline | beam.Create([chunks[0], image, refused, chunks[1]]) | transform
        assert_that(good, equal_in_any_order(expected))
        assert good.element_type is EmbeddableItem
        errors = [(image, "NotEmbedded('missing_text", True), (refused, "NotEmbedded('rejected_by_endpoint", True)]
        assert_that(bad | beam.Map(reason_of), equal_in_any_order(errors), label="errors")


def test_rows_and_two_embeddings_in_a_row(hash_tei: str, tmp_path: Path) -> None:
    rows = [beam.Row(**book) for book in BOOKS]
    with local_pipeline() as pipeline:
        transform = (
            MLTransform(write_artifact_location=str(tmp_path))
            .with_transform(TeiTextEmbeddings(hash_tei, columns=["title"]))
            .with_transform(TeiTextEmbeddings(hash_tei, columns=["body"]))
        )
        expected = [beam.Row(**embedded(book, "title", "body")) for book in BOOKS]
        assert_that(pipeline | beam.Create(rows) | transform, equal_in_any_order(expected))


def test_a_space_in_the_artifacts_is_required_of_a_later_endpoint(hash_tei: str, tmp_path: Path) -> None:
    client = TeiClient(EndpointSettings((hash_tei,)))
    space = client.probe().space
    client.close()
    with TeiSimulator() as server:
        embeddings = TeiTextEmbeddings(server.url, columns=["body"], space=space)
        with local_pipeline() as pipeline:
            transform = MLTransform(write_artifact_location=str(tmp_path)).with_transform(embeddings)
            _ = pipeline | beam.Create(BOOKS) | transform
        Simulator(server.url).change_faults(model_seed=1)
        pipeline = local_pipeline()
        _ = pipeline | beam.Create(BOOKS) | MLTransform(read_artifact_location=str(tmp_path))
        with pytest.raises(ModelChanged, match="Another model"):
            pipeline.run()


def test_a_record_is_copied_and_not_changed() -> None:
    numbers = np.array([0.1, 0.2], np.float32)
    item = EmbeddableItem.from_text("text", id="a")
    book = {"title": "text"}
    assert with_vectors((item, numbers)).dense_embedding == numbers.tolist()
    assert with_vectors((book, {"title": numbers})) == {"title": numbers.tolist()}
    assert (item.embedding, book) == (None, {"title": "text"})


def test_records_of_another_kind_are_a_mistake_in_the_pipeline() -> None:
    with pytest.raises(TypeError, match="must be an EmbeddableItem, not of type dict"):
        take_texts({"title": "text"}, None)
    with pytest.raises(TypeError, match="must be a dict or a Row, not of type Content"):
        with_vectors((Content(text="a"), {"text": np.zeros(2, np.float32)}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": "title"}, "columns is 'title'; it must be a list of names"),
        ({"columns": []}, r"columns is \[\]"),
        ({"token": "hf_secret"}, "must be named, not written out"),
        ({"max_in_flight": 0}, "max_in_flight is 0"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TeiTextEmbeddings("http://127.0.0.1:8080", **options)


def test_run_inference_is_no_way_in() -> None:
    with pytest.raises(NotImplementedError, match="use it with MLTransform"):
        TeiTextEmbeddings("http://127.0.0.1:8080", columns=["title"]).get_model_handler()
