"""Folders of Parquet: everything works on them as on NDJSON, and one becomes the other without sending a text."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.job.spec import JobSpec, require_job
from tests.commands import output_files, started, tayyar_here, texts_embedded
from tests.documents import documents, write_ndjson
from tests.pipeline.commands.test_redrive import FAULTS
from tests.tei_simulator.clients import Simulator
from tests.tei_simulator.hash_model import expected_vectors
from tests.tei_simulator.process import TeiSimulator
from tests.test_end_to_end import HANDSHAKE_TEXTS
from transforms.output.folder import OutputFolder
from transforms.output.receipts import decode_receipt, encode_receipt
from transforms.storage.chunks import Crc32c

ROOT = Path(__file__).resolve().parent.parent
ARABIC = ROOT.parent / "shared/data/xquad-ar.ndjson"
PARQUET = ("--output_format", "parquet")
FLOAT16 = (*PARQUET, "--vector_type", "float16")
COLUMNS = (*PARQUET, "--column", "id", "--column", "meta.n", "--column", "meta.tags")


def run(place: Path, url: str, *options: object, output: str = "out", code: int | None = 0) -> str:
    where = ("--input", place / "in", "--output", place / output, "--endpoint", url)
    how = ("--shard_bytes", 10_000, "--max_dead_letter_ratio", 1)
    finished = tayyar_here("run", *where, *how, *options, code=code)
    return finished.stdout + finished.stderr


def verify(place: Path, *options: object, code: int = 0) -> str:
    finished = tayyar_here("verify", "--output", place / "out", "--max_dead_letter_ratio", 1, *options, code=code)
    return finished.stdout + finished.stderr


def data_of(place: Path, output: str = "out") -> dict[str, bytes]:
    return {name: data for name, data in output_files(place / output).items() if name.startswith("data/")}


def job_of(place: Path) -> JobSpec:
    return require_job(OutputFolder(str(place / "out"), "test"))


def table_of(place: Path, output: str = "out") -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted((place / output / "data").rglob("*.parquet"))])


def vectors_of(table: pa.Table) -> np.ndarray[Any, Any]:
    return np.stack(table.column("embedding").to_numpy())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    put_inputs(tmp_path)
    return tmp_path


def put_inputs(place: Path) -> None:
    """Write two files of records with an id, a number and tags, and lines that are none."""
    for name, seed in (("a.ndjson", 1), ("b/c.ndjson", 2)):
        records = [
            {"id": f"{seed}-{n}", "meta": {"n": n, "tags": ["x", n]}, **record}
            for n, record in enumerate(documents(120, seed=seed))
        ]
        write_ndjson(place / "in" / name, records)
    with (place / "in/a.ndjson").open("ab") as file:
        file.write(b'broken\n{"content": "\\ud800 surrogate"}\n{"content": ""}\n')


def run_with_values_that_do_not_fit(place: Path, url: str) -> None:
    """Run, add a record with values of other types than the sample's, and run again."""
    run(place, url, *COLUMNS)
    with (place / "in/a.ndjson").open("ab") as file:
        file.write(b'{"content": "odd", "id": 7, "meta": {"n": "seven"}}\n')
    run(place, url, *COLUMNS)


def source_lines(place: Path) -> list[bytes]:
    return [line for path in sorted((place / "in").rglob("*.ndjson")) for line in path.read_bytes().splitlines()]


def test_every_record_is_a_row_with_its_text_its_columns_and_its_vector(place: Path, hash_tei: str) -> None:
    run_with_values_that_do_not_fit(place, hash_tei)
    table = table_of(place)
    lines = [line for line in source_lines(place) if line not in (b"broken", b'{"content": ""}')]
    assert table.column("record").to_pylist() == [line.decode() for line in lines]
    records = [json.loads(line) for line in lines]
    texts = [record["content"].encode("utf-8", "replace").decode() for record in records]
    assert table.column("text").to_pylist() == texts
    assert np.array_equal(vectors_of(table), expected_vectors(texts))
    fitting = [record if record["content"] != "odd" else {} for record in records]
    assert table.column("id").to_pylist() == [record.get("id") for record in fitting]
    assert table.column("meta.n").to_pylist() == [record.get("meta", {}).get("n") for record in fitting]
    assert json.loads(table.column("meta.tags")[5].as_py()) == ["x", 5]
    assert table.schema.field("meta.n").type == pa.int64()
    found = verify(place, "--sample", 9, "--endpoint", hash_tei)
    assert "= 242 embedded" in found
    assert "embedded again: 9 documents" in found


def test_values_that_do_not_fit_are_counted(place: Path, hash_tei: str) -> None:
    run_with_values_that_do_not_fit(place, hash_tei)
    unfit: dict[str, int] = {}
    for path in (place / "out/_job/receipts").rglob("*.json"):
        for name, count in json.loads(path.read_bytes())["unfit"].items():
            unfit[name] = unfit.get(name, 0) + count
    assert unfit == {"id": 1, "meta.n": 1}
    report = json.loads((place / "out/_job/report.json").read_bytes())
    assert report["totals"]["unfit"] == unfit
    said = tayyar_here("report", "--output", place / "out").stdout
    assert "column meta.n: 1 value of another type, null there and whole in the record" in said
    verify(place)


def test_the_job_knows_what_its_files_are(place: Path, hash_tei: str) -> None:
    run(place, hash_tei, *COLUMNS, "--vector_type", "float16")
    job = job_of(place)
    assert (job.output_format, job.vector_type, job.pyarrow) == ("parquet", "float16", pa.__version__)
    assert [(column.name, column.type) for column in job.columns] == [
        ("id", "string"),
        ("meta.n", "int64"),
        ("meta.tags", "json"),
    ]


def test_columns_keep_their_types_in_later_runs(place: Path, hash_tei: str) -> None:
    run(place, hash_tei, *COLUMNS)
    before = data_of(place)
    write_ndjson(place / "in/d.ndjson", [{"content": f"text {n}", "id": n, "meta": {"n": "x"}} for n in range(1000)])
    run(place, hash_tei, *COLUMNS)
    assert job_of(place).columns[0].type == "string"
    assert before.items() <= data_of(place).items()
    verify(place)


@pytest.mark.timeout(300)  # sixteen runs
def test_every_conversion_sends_nothing_and_ends_as_if_it_had_been_the_first_run(place: Path, hash_tei: str) -> None:
    forms = {"ndjson": (), "parquet": PARQUET, "columns": COLUMNS, "float16": FLOAT16}
    for name, form in forms.items():
        run(place, hash_tei, *form, output=name)
    new = {name: output_files(place / name) for name in forms}

    def convert(*path: str) -> None:
        """Take the folder through forms, from that of a first run, and hold it against first runs after each step."""
        shutil.rmtree(place / "out", ignore_errors=True)
        shutil.copytree(place / path[0], place / "out")
        for name in path[1:]:
            before = texts_embedded(hash_tei)
            run(place, hash_tei, *forms[name])
            assert texts_embedded(hash_tei) - before <= HANDSHAKE_TEXTS, path
            assert output_files(place / "out") == new[name], path
            verify(place)
            assert not (place / "out/_job/former").exists()

    # Each form after each other one and after itself; float16 last, whose rounded numbers are none to go on from.
    convert("ndjson", "ndjson", "parquet", "parquet", "columns", "columns", "ndjson", "columns", "parquet", "ndjson")
    for first in ("ndjson", "parquet", "columns"):
        convert(first, "float16", "float16")


def test_another_folders_vectors_are_used_in_another_format(place: Path, hash_tei: str) -> None:
    run(place, hash_tei, *FLOAT16, output="old")
    before = texts_embedded(hash_tei)
    run(place, hash_tei, *FLOAT16, "--shard_bytes", 20_000, "--reuse", place / "old")
    assert texts_embedded(hash_tei) - before <= HANDSHAKE_TEXTS
    verify(place)


@pytest.mark.parametrize("then", [(), PARQUET])
def test_numbers_that_were_rounded_to_float16_are_not_used_for_float32(
    place: Path, hash_tei: str, then: tuple[str, ...]
) -> None:
    run(place, hash_tei, *FLOAT16)
    before = texts_embedded(hash_tei)
    run(place, hash_tei, *then)
    assert texts_embedded(hash_tei) - before >= 241
    run(place, hash_tei, *then, output="new")
    assert output_files(place / "out") == output_files(place / "new")


def test_float16_is_what_numpy_makes_of_the_float32(place: Path, hash_tei: str) -> None:
    run(place, hash_tei, *FLOAT16)
    table = table_of(place)
    assert table.schema.field("embedding").type.value_type == pa.float16()
    texts = table.column("text").to_pylist()
    assert vectors_of(table).tobytes() == expected_vectors(texts).astype(np.float16).tobytes()
    assert "embedded again: 50 documents" in verify(place, "--sample", 50, "--endpoint", hash_tei)


def test_vectors_that_float16_cannot_hold_are_dead_letters(place: Path) -> None:
    wrong = {"huge": 2.0**20, "tiny": 2.0**-24}
    records = [{"content": f"{name} {number}"} for number in range(40) for name in ("plain", "nulls", *wrong)]
    write_ndjson(place / "in/wrong.ndjson", map(dict[str, object], records))
    with TeiSimulator(["--faults", json.dumps({"null_marker": "nulls", "scales": wrong})]) as server:
        run(place, server.url, *FLOAT16, "--no_normalize")
        found = verify(place, "--sample", 300, "--endpoint", server.url)
        run(place, server.url, *PARQUET, "--no_normalize", output="float32")
    assert "= 281 embedded" in found
    lines = (place / "out/dead_letters").rglob("*.ndjson")
    letters = [json.loads(line) for path in lines for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [json.loads(letter["line"])["content"] for letter in letters if letter["reason"] == "invalid_vector"]
    assert sorted(texts) == sorted(str(record["content"]) for record in records if "plain" not in record["content"])
    details = {letter["detail"] for letter in letters if "huge" in letter["line"]}
    assert all(detail.startswith("the vector's numbers, of up to ") for detail in details)
    assert all(detail.endswith(" do not fit float16; run with --vector_type float32") for detail in details)
    rounded, exact = table_of(place), table_of(place, "float32")
    assert (len(rounded), len(exact)) == (281, 361)  # of which the nulls alone are missing
    vectors = dict(zip(exact.column("text").to_pylist(), vectors_of(exact), strict=True))
    for text, vector in zip(rounded.column("text").to_pylist(), vectors_of(rounded), strict=True):
        assert vector.tobytes() == vectors[text].astype(np.float16).tobytes()
        assert np.array_equal(vectors[text], 4 * expected_vectors([text])[0])  # not normalised


def test_two_runs_write_the_same_bytes_and_a_changed_source_changes_its_own_shards(place: Path, hash_tei: str) -> None:
    run(place, hash_tei, *PARQUET)
    run(place, hash_tei, *PARQUET, output="new")
    assert data_of(place) == data_of(place, "new")
    path = place / "in/b/c.ndjson"
    path.write_bytes(path.read_bytes() + b'{"content": "one more"}\n')
    before = texts_embedded(hash_tei)
    run(place, hash_tei, *PARQUET)
    assert texts_embedded(hash_tei) - before <= HANDSHAKE_TEXTS + 1
    assert len(table_of(place)) == 242
    verify(place)


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    write_ndjson(tmp_path / "in/a.ndjson", documents(2000, seed=3))
    with TeiSimulator(["--faults", '{"batch_seconds": 0.05}']) as server:
        options = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--endpoint", server.url, *PARQUET)
        with started("run", *options, "--shard_bytes", 10_000, "--max_in_flight", 64) as process:
            deadline = time.monotonic() + 60
            while len(list((tmp_path / "out/_job/receipts").rglob("*.json"))) < 5:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.kill()
            process.wait()
        before = texts_embedded(server.url)
        run(tmp_path, server.url, *PARQUET)
        assert texts_embedded(server.url) - before < 2000
        assert len(table_of(tmp_path)) == 2000
        verify(tmp_path)
        run(tmp_path, server.url, *PARQUET, output="new")
    assert data_of(tmp_path) == data_of(tmp_path, "new")
    assert not list((tmp_path / "out/_job").glob("tmp/*"))


def test_a_redrive_puts_rows_in_their_places(place: Path) -> None:
    with TeiSimulator() as server:
        simulator = Simulator(server.url)
        simulator.set_faults(**FAULTS)
        run(place, server.url, *COLUMNS)
        simulator.set_faults()
        assert len(table_of(place)) < 241
        tayyar_here("redrive", "--output", place / "out", "--endpoint", server.url)
        verify(place)
        run(place, server.url, *COLUMNS, output="new")
    assert data_of(place) == data_of(place, "new")
    receipts = [
        {
            path.relative_to(place / output): json.loads(path.read_bytes())["unfit"]
            for path in (place / output / "_job/receipts").rglob("*.json")
        }
        for output in ("out", "new")
    ]
    assert receipts[0] == receipts[1]


def rewritten(place: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Replace the first output by what a function makes of it, and let its receipt vouch for that."""
    path = place / "out/data/a-00000.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    receipt_path = place / "out/_job/receipts/a-00000.json"
    fields = json.loads(receipt_path.read_bytes())
    crc = Crc32c()
    crc.update(path.read_bytes())
    fields["output"] |= {"bytes": path.stat().st_size, "crc32c": crc.base64()}
    receipt_path.write_bytes(encode_receipt(decode_receipt(json.dumps(fields).encode())))
    (place / "out/_job/report.json").unlink(missing_ok=True)  # which names the sizes, too


def changed(name: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    """A change of one column of the third row."""

    def change(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index(name)
        values = table.column(index).to_pylist()
        values[2] = value(values) if callable(value) else value
        field = table.schema.field(index)
        return table.set_column(index, field, pa.array(values, field.type))

    return change


@pytest.fixture(scope="module")
def columns_run(tmp_path_factory: pytest.TempPathFactory, hash_tei: str) -> Path:
    """A place with the output of a run, which its copy beside it restores."""
    root = tmp_path_factory.mktemp("columns") / "place"
    put_inputs(root)
    run(root, hash_tei, *COLUMNS)
    rewritten(root, lambda table: table)
    verify(root)
    shutil.copytree(root, root.with_name("kept"))
    return root


@pytest.fixture
def embedded(columns_run: Path) -> Path:
    """The place as it was after the run."""
    shutil.rmtree(columns_run)
    shutil.copytree(columns_run.with_name("kept"), columns_run)
    return columns_run


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (changed("record", '{"content": "another"}'), "row 2: the record is not the source line (byte "),
        (changed("text", "another"), "row 2: the text is not the record's"),
        (changed("meta.n", 99), "row 2: the column 'meta.n' does not have the record's value"),
        (changed("id", None), "row 2: the column 'id' does not have the record's value"),
        (changed("embedding", [0.0] * 384), "row 2: the vector is all zeros"),
        (changed("embedding", [float("nan")] * 384), "row 2: the vector has numbers that no float32 holds"),
        (changed("embedding", [1.0] * 384), "row 2: the vector's norm is 19.5959"),
        (lambda table: table.slice(1), "row 0: the record is not the source line"),
        (lambda table: table.slice(0, len(table) - 1), "is missing"),
        (lambda table: pa.concat_tables([table, table.slice(0, 2)]), "2 lines more than the source has"),
        (lambda table: table.drop_columns(["id"]), "its columns are record string, text string, meta.n int64"),
        (lambda table: table.drop_columns(["embedding"]), "its column 'embedding' is missing"),
    ],
)
def test_what_was_tampered_with_is_found_even_with_a_receipt_that_fits(
    embedded: Path, change: Callable[[pa.Table], pa.Table], finding: str
) -> None:
    rewritten(embedded, change)
    assert finding in verify(embedded, code=5)


def test_vectors_at_other_texts_are_found_by_a_sample(place: Path, hash_tei: str) -> None:
    run(place, hash_tei, *PARQUET)

    def swapped(table: pa.Table) -> pa.Table:
        vectors = table.column("embedding").combine_chunks()
        order = pa.array([1, 0, *range(2, len(table))])
        return table.set_column(2, table.schema.field(2), vectors.take(order))

    rewritten(place, swapped)
    verify(place)
    found = verify(place, "--sample", 241, "--endpoint", hash_tei, code=5)
    assert "a-00000.parquet, line 1 (row 0): the vector is not that of its text" in found
    assert "it is that of line 2" in found
    assert "mixed up their order" in found


def test_vectors_that_many_texts_share_are_found(place: Path, hash_tei: str) -> None:
    run(place, hash_tei, *PARQUET)

    def shared(table: pa.Table) -> pa.Table:
        vectors = table.column("embedding").combine_chunks()
        return table.set_column(2, table.schema.field(2), vectors.take(pa.array([0] * len(table))))

    rewritten(place, shared)
    found = verify(place, code=5)
    assert "have different texts and the same vector" in found
    assert ".parquet, row " in found


def test_a_byte_that_was_changed_is_found_and_its_shard_is_not_used_again(place: Path, hash_tei: str) -> None:
    run(place, hash_tei, *PARQUET)
    path = place / "out/data/a-00000.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "a-00000.parquet: its checksum is " in verify(place, code=5)
    before = texts_embedded(hash_tei)
    count = json.loads((place / "out/_job/receipts/a-00000.json").read_bytes())["embedded"]
    assert "its texts are sent again" in run(place, hash_tei)
    assert count <= texts_embedded(hash_tei) - before <= count + HANDSHAKE_TEXTS
    verify(place)


def test_outputs_of_sources_that_are_gone_are_checked_whatever_their_columns(place: Path, hash_tei: str) -> None:
    run(place, hash_tei, *COLUMNS)
    shutil.rmtree(place / "in/b")
    run(place, hash_tei, *FLOAT16)
    assert {path.suffix for path in (place / "out/data").rglob("*.*")} == {".parquet"}
    assert "its 120 records were checked in the output alone" in verify(place)
    run(place, hash_tei)
    assert {path.suffix for path in (place / "out/data").rglob("*.*")} == {".parquet", ".ndjson"}
    assert "its 120 records were checked in the output alone" in verify(place)


def test_status_and_report_know_a_folder_of_parquet(place: Path, hash_tei: str) -> None:
    run(place, hash_tei, *PARQUET)
    assert "finished" in tayyar_here("status", "--output", place / "out").stdout
    assert "total: embeddings = 241" in tayyar_here("report", "--output", place / "out").stdout


@pytest.mark.skipif(not ARABIC.exists(), reason="needs the XQuAD paragraphs beside the checkout, in ../shared/data")
def test_the_size_beside_ndjson(tmp_path: Path, hash_tei: str) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(ARABIC, tmp_path / "in")
    sizes = []
    for options in ((), PARQUET, FLOAT16):
        run(tmp_path, hash_tei, *options, "--shard_bytes", 1 << 24, output="-".join(("out", *options)))
        sizes.append(sum(map(len, data_of(tmp_path, "-".join(("out", *options))).values())))
    ndjson, float32, float16 = sizes
    # Of texts that are all different, half of which is stored twice; the benchmark's texts compress better.
    assert float32 < 0.36 * ndjson
    assert float16 < 0.27 * ndjson


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--vector_type", "float16"), "--vector_type float16 is for Parquet. Add --output_format parquet"),
        (("--column", "id"), "--column id is for Parquet. Add --output_format parquet"),
        ((*PARQUET, "--column", "text"), "--column text is the name of a column that every Parquet output has"),
        ((*PARQUET, "--column", "a..b"), "--column 'a..b' has an empty part"),
        ((*PARQUET, "--column", "id", "--column", "id"), "--column id is given twice"),
        ((*PARQUET, "--embedding_field", "record"), "--embedding_field record is the name of another column"),
    ],
)
def test_options_that_contradict_each_other_are_refused(place: Path, options: tuple[str, ...], words: str) -> None:
    assert words in run(place, "http://127.0.0.1:9", *options, code=2)
