"""A smoke run of every contestant that is installed, and of each measurement that takes no minutes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.embedded_tei.models.registry import Encoded
from tests.benchmark import compare, corpus, gpu, process, table
from tests.benchmark.check import Wrong, check
from tests.benchmark.endpoint import Endpoint
from tests.benchmark.gpu_server import full_batches
from tests.benchmark.registry import CONTESTANTS, FLOOR, Contestant
from tests.commands import call

_DOCUMENTS = 200
_SLOW_TO_START = {"Ray Data"}  # half a minute of imports where the machine is busy

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the benchmark is for Linux")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    corpus.write_corpus(folder, [_DOCUMENTS - 50, 50])
    return folder


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as running:
        yield running


@pytest.mark.parametrize(
    "contestant",
    [
        pytest.param(each, id=each.name, marks=[pytest.mark.slow] if each.name in _SLOW_TO_START else [])
        for each in CONTESTANTS
        if not each.missing
    ],
)
def test_a_contestant_does_the_work(contestant: Contestant, source: Path, endpoint: Endpoint, tmp_path: Path) -> None:
    measured = compare.run(contestant, source, tmp_path, endpoint)
    assert measured.documents == _DOCUMENTS
    assert measured.usage.cpu > 0
    assert 10 < measured.usage.peak_mb <= measured.usage.together_mb + 1


@pytest.fixture
def output(source: Path, endpoint: Endpoint, tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    with compare.replies(source, tmp_path) as url:
        process.measure(FLOOR.command(source, folder, url))
    assert check(source, folder) == _DOCUMENTS
    return folder


@pytest.mark.parametrize("what", ["missing", "twice", "changed", "swapped", "rounded"])
def test_the_check_finds(what: str, source: Path, output: Path) -> None:
    path = output / "wiki_00.ndjson"
    documents = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    first, second = documents[:2]
    if what == "missing":
        documents.pop()
    elif what == "twice":
        documents.append(first)
    elif what == "changed":
        first["meta"]["title"] += "!"
    elif what == "swapped":
        first["embedding"], second["embedding"] = second["embedding"], first["embedding"]
    else:
        first["embedding"] = [round(number, 6) for number in first["embedding"]]
    path.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    with pytest.raises(Wrong):
        check(source, output)


def test_the_tutorial_s_corpus_has_its_sizes() -> None:
    counts = corpus.tutorial_counts()
    assert sum(counts) == corpus.TUTORIAL_DOCUMENTS
    assert len(counts) == corpus.TUTORIAL_FILES
    assert max(counts) == counts[0] == corpus.TUTORIAL_LARGEST


def test_documents_are_of_the_tutorial_s_lengths_and_all_different() -> None:
    texts = [document["content"] for document in corpus.documents(2000)]
    assert len(set(texts)) == 2000
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) >= corpus.LEAST_WORDS
    assert max(lengths) <= corpus.MOST_WORDS
    assert texts == [document["content"] for document in corpus.documents(2000)]


def test_what_a_process_leaves_behind_is_counted_and_ended() -> None:
    busy = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ntime.sleep(600)"
    start = f"subprocess.Popen([sys.executable, '-c', {busy!r}], stdout=subprocess.PIPE).stdout.readline()"
    usage = process.measure(process.program(f"import subprocess, sys; {start}"))
    assert usage.cpu > 0.3
    assert usage.wall < 60


def test_a_process_that_fails_is_an_error() -> None:
    with pytest.raises(process.Failed, match="no such thing"):
        process.measure(process.program("raise SystemExit('no such thing')"))


def test_receipts_are_read_from_a_bucket_in_parallel(tmp_path: Path) -> None:
    folders = ("--work", tmp_path, "--results", tmp_path)
    call(process.module("tests.benchmark", *folders, "receipts", "--receipts", 300, "--latency", 0.02))
    together, one_by_one = json.loads((tmp_path / "receipts.json").read_text(encoding="utf-8"))["rows"]
    assert one_by_one["requests"] == 300
    assert 300 <= together["requests"] < 310  # a few may be asked for again


def test_a_shard_is_written_in_each_format(tmp_path: Path) -> None:
    folders = ("--work", tmp_path / "work", "--results", tmp_path)
    call(process.module("tests.benchmark", *folders, "write", "--documents", 100, "--rounds", 1))
    ndjson, float32, float16 = json.loads((tmp_path / "write.json").read_text(encoding="utf-8"))["rows"]
    assert ndjson["bytes/document"] > float32["bytes/document"] > 384 * 3
    assert float32["bytes/document"] > float16["bytes/document"] > 384 * 1.5


def test_a_shard_is_measured_with_and_without_reuse(tmp_path: Path) -> None:
    call(process.module("tests.benchmark", "--work", tmp_path, "--results", tmp_path, "reuse", "--documents", 500))
    without, with_it, added = json.loads((tmp_path / "reuse.json").read_text(encoding="utf-8"))["rows"]
    assert without["CPU µs/document"] > 0
    assert added["CPU µs/document"] != 0
    assert {row["documents"] for row in (without, with_it, added)} == {500}
    assert not (tmp_path / "reuse").exists()


@pytest.mark.timeout(300)  # five commands, one after another
def test_a_gpu_s_server_is_measured_without_a_gpu(tmp_path: Path) -> None:
    setup = gpu.Setup("hash", documents=_DOCUMENTS, files=2, replicas=2, seconds=0.2)
    _, rows = gpu.measure(tmp_path, setup)
    assert [row[""] for row in rows] == ["bare loop", "HTTP without Tayyar", "Tayyar, ndjson", "Tayyar, parquet"]
    assert rows[0]["share of the bare loop"] == 1
    for row in rows:
        share, busy = row["share of the bare loop"], row["model at work"]
        assert isinstance(share, float)
        assert isinstance(busy, float)
        assert 0 < share <= 1
        assert 0 < busy <= 1


def test_batches_of_a_gpu() -> None:
    batches = [gpu.Batch(40, 0.0, 1.0), gpu.Batch(30, 2.0, 4.0), gpu.Batch(20, 3.0, 3.5), gpu.Batch(10, 3.5, 5.0)]
    assert gpu.busy_seconds(batches) == 4
    assert gpu.after_handshake(batches) == batches[2:]
    texts = [Encoded("", name, tokens, tokens) for name, tokens in (("a", 3), ("b", 3), ("c", 9), ("d", 1), ("e", 5))]
    assert [[text.text for text in batch] for batch in full_batches(texts, 6)] == [["a", "b"], ["c"], ["d", "e"]]


def test_a_table_and_its_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[table.Row] = [{"name": "Tayyar", "µs": 12.3456}, {"name": "another", "µs": 1234.5}]
    table.publish(tmp_path, "one", rows, ["a note"])
    assert "| another | 1,234 |" in capsys.readouterr().out.replace("1,235", "1,234")
    assert json.loads((tmp_path / "one.json").read_text(encoding="utf-8"))["rows"][1]["µs"] == 1234.5
    table.draw(tmp_path / "one.svg", "title <&>", {"Tayyar": 12.0, "another": 1234.5}, "µs")
    assert (tmp_path / "one.svg").read_text(encoding="utf-8").count("<rect") == 3


def test_the_benchmark_starts_where_only_its_extra_is_installed() -> None:
    program = "import sys; sys.modules['pytest'] = None; import tests.benchmark.__main__"
    call([sys.executable, "-c", program])
