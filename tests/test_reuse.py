"""Only what is new is sent: runs after changes, against runs from nothing."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.job.former_vectors import count_new, forget_former, index_former
from pipeline.job.ledger import Ledger, ReceiptCache
from pipeline.job.preparation import prepare
from pipeline.job.sharding import make_plan
from pipeline.job.spec import require_job
from tests.commands import output_files, started, tayyar_here, texts_embedded
from tests.documents import documents, write_ndjson
from tests.dying_folder import Dying, Killed
from tests.servers import wait_until
from tests.strategies import examples
from tests.tei_simulator.clients import Simulator
from tests.tei_simulator.process import TeiSimulator
from tests.test_end_to_end import HANDSHAKE_TEXTS
from transforms.elements import RequestStatistics
from transforms.embed_shards import assemble, merge_embeddings
from transforms.output.folder import OutputFolder
from transforms.read_shards import lines_by_shard, parse_shard
from transforms.reuse.index import IndexHandle
from transforms.reuse.partial import encode_partial
from transforms.reuse.reuse import distinct, find_vectors
from transforms.tei.tasks import Embeddings
from transforms.write_embedded import write_shard

SHARD_BYTES = 10_000
T = TypeVar("T")


def run(corpus: Path, output: Path, url: str, *options: object, code: int | None = 0) -> str:
    inputs = ("--input", f"{corpus}/**", "--output", output, "--endpoint", url)
    finished = tayyar_here("run", *inputs, "--shard_bytes", SHARD_BYTES, *options, code=code)
    return finished.stdout + finished.stderr


def sent(output: Path) -> int:
    """How many texts were sent for the shards that are there now, as their receipts say."""
    return sum(json.loads(path.read_bytes())["sent"] for path in (output / "_job/receipts").rglob("*.json"))


class Folder:
    """An output folder whose first run is done; `changed` runs again and says what was sent."""

    def __init__(self, corpus: Path, output: Path, url: str, *, begin: bool = True) -> None:
        self.corpus, self.output, self.url, self.report = corpus, output, url, ""
        if begin:
            run(corpus, output, url)

    def changed(self, *options: object) -> int:
        """Run again, hold the folder against one that is made from nothing, and return how many texts were sent."""
        before = texts_embedded(self.url)
        self.report = run(self.corpus, self.output, self.url, "--prune", *options)
        found = texts_embedded(self.url) - before
        nothing = self.output.parent / "nothing"
        shutil.rmtree(nothing, ignore_errors=True)
        run(self.corpus, nothing, self.url, *options)
        assert output_files(self.output) == output_files(nothing)
        tayyar_here("verify", "--output", self.output)
        assert not {"former", "partial", "reuse"} & {path.name for path in (self.output / "_job").iterdir()}
        return max(0, found - HANDSHAKE_TEXTS)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory, hash_tei: str) -> Path:
    """A corpus and the output of its first run, which are in `here`, and a copy of both in `kept`."""
    root = tmp_path_factory.mktemp("lived")
    for name, seed in (("a.ndjson", 1), ("b.ndjson", 2), ("c/d.ndjson", 3)):
        write_ndjson(root / "here/in" / name, documents(300, seed=seed))
    run(root / "here/in", root / "here/out", hash_tei)
    shutil.copytree(root / "here", root / "kept")
    return root


@pytest.fixture
def lived(first_run: Path, hash_tei: str) -> Folder:
    """The folder of the first run as it was after it: the same paths, bytes and times."""
    shutil.rmtree(first_run / "here")
    shutil.copytree(first_run / "kept", first_run / "here")
    return Folder(first_run / "here/in", first_run / "here/out", hash_tei, begin=False)


def lines_in(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def touch(corpus: Path) -> None:
    for path in corpus.rglob("*.ndjson"):
        os.utime(path, (1, 1))


def delete_lines(corpus: Path) -> None:
    lines = lines_in(corpus / "a.ndjson")
    (corpus / "a.ndjson").write_bytes(b"".join(lines[7:40] + lines[60:]))


def shuffle(corpus: Path) -> None:
    lines = [line for path in sorted(corpus.rglob("*.ndjson")) for line in lines_in(path)]
    random.Random(1).shuffle(lines)
    for number, path in enumerate(sorted(corpus.rglob("*.ndjson"))):
        path.write_bytes(b"".join(lines[300 * number : 300 * number + 300]))


def change_other_fields(corpus: Path) -> None:
    for path in corpus.rglob("*.ndjson"):
        records = [json.loads(line) | {"seen": number} for number, line in enumerate(lines_in(path))]
        write_ndjson(path, records)


def rename(corpus: Path) -> None:
    (corpus / "a.ndjson").rename(corpus / "z.ndjson")
    (corpus / "c/d.ndjson").rename(corpus / "d.ndjson")


def split(corpus: Path) -> None:
    lines = lines_in(corpus / "b.ndjson")
    (corpus / "b.ndjson").write_bytes(b"".join(lines[:100]))
    (corpus / "b2.ndjson").write_bytes(b"".join(lines[100:]))


def compress(corpus: Path) -> None:
    (corpus / "a.ndjson.gz").write_bytes(gzip.compress((corpus / "a.ndjson").read_bytes()))
    (corpus / "a.ndjson").unlink()


def copy(corpus: Path) -> None:
    shutil.copy(corpus / "a.ndjson", corpus / "copy_of_a.ndjson")


def move_into_folders(corpus: Path) -> None:
    (corpus / "c/e").mkdir()
    (corpus / "a.ndjson").rename(corpus / "c/e/a.ndjson")
    (corpus / "c/d.ndjson").rename(corpus / "c/a.ndjson")


def change_everything(corpus: Path) -> None:
    for change in (delete_lines, change_other_fields, shuffle, copy, split, move_into_folders, compress_by_others):
        change(corpus)


def compress_by_others(corpus: Path) -> None:
    bzip2, zst, *_ = sorted(corpus.rglob("*.ndjson"))
    bzip2.with_name(f"{bzip2.name}.bz2").write_bytes(bz2.compress(bzip2.read_bytes()))
    zst.with_name(f"{zst.name}.zst").write_bytes(zstd.compress(zst.read_bytes()))
    bzip2.unlink()
    zst.unlink()


CHANGES = [
    touch,
    delete_lines,
    shuffle,
    change_other_fields,
    rename,
    move_into_folders,
    split,
    compress,
    compress_by_others,
    copy,
    change_everything,
]


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_is_sent_when_no_text_is_new(lived: Folder, change: Callable[[Path], None]) -> None:
    change(lived.corpus)
    assert lived.changed() == 0
    assert "0 texts new among" in lived.report


def test_a_compressed_corpus_may_be_unpacked(lived: Folder) -> None:
    compress_by_others(lived.corpus)
    lived.changed()
    for path in lived.corpus.rglob("*.bz2"):
        path.with_suffix("").write_bytes(bz2.decompress(path.read_bytes()))
        path.unlink()
    assert lived.changed() == 0


def test_another_copy_of_the_corpus_sends_nothing(lived: Folder, tmp_path: Path) -> None:
    shutil.copytree(lived.corpus, tmp_path / "copy", copy_function=shutil.copyfile)  # at other times
    shutil.rmtree(lived.corpus)
    copied = Folder(tmp_path / "copy", lived.output, lived.url, begin=False)
    before = texts_embedded(lived.url)
    run(copied.corpus, lived.output, lived.url)
    assert texts_embedded(lived.url) - before <= HANDSHAKE_TEXTS
    assert sent(lived.output) == 0
    copied.changed()


def test_patterns_may_be_added_and_spelled_otherwise(lived: Folder, tmp_path: Path) -> None:
    corpus, before = lived.corpus, texts_embedded(lived.url)
    files = {path: path.stat().st_mtime_ns for path in (lived.output / "data").rglob("*.ndjson")}
    options = ("--output", lived.output, "--endpoint", lived.url, "--shard_bytes", SHARD_BYTES)
    write_ndjson(tmp_path / "more/e.ndjson", [{"content": "of another folder"}])
    for inputs in ([f"{corpus}/"], [corpus], [corpus, f"{corpus}/a.ndjson"], [f"{corpus}/", tmp_path / "more"]):
        tayyar_here("run", *(word for pattern in inputs for word in ("--input", pattern)), *options)
    assert {path: path.stat().st_mtime_ns for path in files} == files  # not one shard was done again
    assert texts_embedded(lived.url) - before <= 4 * HANDSHAKE_TEXTS + 1
    tayyar_here("verify", "--output", lived.output)


def test_another_text_field_with_the_same_texts_sends_nothing(tmp_path: Path, hash_tei: str) -> None:
    records: list[dict[str, object]] = [
        {"title": f"title {n}", "body": f"body {n}", "content": f"title {n}\nbody {n}"} for n in range(200)
    ]
    for record in records[:100]:
        record["copy"] = record["content"]
    write_ndjson(tmp_path / "in/a.ndjson", records)
    folder = Folder(tmp_path / "in", tmp_path / "out", hash_tei)
    before = texts_embedded(hash_tei)
    joined = ("--text_field", "title", "--text_field", "body")
    run(folder.corpus, folder.output, hash_tei, *joined)
    write_ndjson(tmp_path / "in/a.ndjson", records[:100])
    run(folder.corpus, folder.output, hash_tei, "--text_field", "copy")
    assert texts_embedded(hash_tei) - before <= 2 * HANDSHAKE_TEXTS
    assert sent(folder.output) == 0
    folder.changed("--text_field", "copy")
    folder.changed(*joined)


def test_a_wrong_text_field_does_not_lock_the_folder(tmp_path: Path, hash_tei: str) -> None:
    write_ndjson(tmp_path / "in/a.ndjson", ({"content": f"text {n}", "summary": ""} for n in range(50)))
    run(tmp_path / "in", tmp_path / "out", hash_tei, "--text_field", "summary", code=4)
    Folder(tmp_path / "in", tmp_path / "out", hash_tei).changed()


@pytest.mark.parametrize(
    "options",
    [("--shard_bytes", 3000), ("--shard_bytes", 1_000_000), ("--embedding_field", "vector")],
)
def test_nothing_is_sent_when_only_settings_change(lived: Folder, options: tuple[object, ...]) -> None:
    before = texts_embedded(lived.url)
    run(lived.corpus, lived.output, lived.url, *options)
    assert texts_embedded(lived.url) - before <= HANDSHAKE_TEXTS
    assert sent(lived.output) == 0
    lived.changed(*options)


def test_only_new_texts_are_sent(lived: Folder) -> None:
    lines = lines_in(lived.corpus / "a.ndjson")
    lines[3] = b'{"content": "edited"}\n'
    lines.insert(0, b'{"content": "inserted at the top"}\n')
    (lived.corpus / "a.ndjson").write_bytes(b"".join(lines) + b'{"content": "appended"}\n')
    write_ndjson(lived.corpus / "new.ndjson", documents(20, seed=9))
    report = run(lived.corpus, lived.output, lived.url)
    assert "23 texts new among" in report
    receipts = [json.loads(path.read_bytes()) for path in (lived.output / "_job/receipts").rglob("*.json")]
    redone = [one for one in receipts if one["shard"].startswith(("a-", "new-"))]
    assert sum(one["sent"] for one in redone) == 23
    assert sum(one["reused"] for one in redone) == 299
    assert all(one["embedded"] == one["sent"] + one["reused"] + one["duplicates"] for one in receipts)
    lived.changed()


def test_plan_finds_what_is_new_and_writes_its_estimate_alone(lived: Folder) -> None:
    with (lived.corpus / "a.ndjson").open("ab") as file:
        file.write(b'{"content": "appended"}\n')
    shutil.copy(lived.corpus / "b.ndjson", lived.corpus / "e.ndjson")
    before = {path: path.stat().st_mtime_ns for path in lived.output.rglob("*") if path.is_file()}
    job = ("--input", f"{lived.corpus}/**", "--endpoint", lived.url, "--shard_bytes", SHARD_BYTES)
    plan = ("plan", *job, "--price_per_hour", 1, "--max_in_flight", 8)
    said = tayyar_here(*plan, "--output", lived.output).stdout
    assert "of these, 600 documents are done; 1 text new among 601 documents to do: " in said
    estimate = lived.output / "_job/estimate.json"
    new = json.loads(estimate.read_bytes())["new"]
    assert (new["done"], new["texts"], new["documents"], new["exact"]) == (600, 1, 601, True)
    estimate.unlink()
    assert {path: path.stat().st_mtime_ns for path in lived.output.rglob("*") if path.is_file()} == before
    assert "to do" not in tayyar_here(*plan, "--output", lived.output, "--no_normalize").stdout  # another space
    report = run(lived.corpus, lived.output, lived.url)
    assert "600 documents done already; 1 text new among 601 documents to do" in report


@pytest.mark.parametrize("options", [(), ("--output_format", "parquet", "--column", "id")])
def test_plan_tolerates_a_folder_whose_job_cannot_be_read(lived: Folder, options: tuple[str, ...]) -> None:
    (lived.output / "_job/job.json").write_text("{")
    job = ("--input", f"{lived.corpus}/**", "--endpoint", lived.url, "--shard_bytes", SHARD_BYTES)
    said = tayyar_here("plan", *job, "--max_in_flight", 8, "--output", lived.output, *options).stdout
    assert "to do" not in said
    assert (lived.output / "_job/estimate.json").exists()


def test_plan_counts_what_other_folders_give(lived: Folder, tmp_path: Path) -> None:
    write_ndjson(tmp_path / "more/e.ndjson", documents(50, seed=9))
    run(tmp_path / "more", tmp_path / "second", lived.url)
    with (lived.corpus / "a.ndjson").open("ab") as file:
        file.write(b'{"content": "appended"}\n')
    shutil.copy(tmp_path / "more/e.ndjson", lived.corpus / "e.ndjson")
    others = ("--reuse", lived.output, "--reuse", tmp_path / "second")
    job = ("--input", f"{lived.corpus}/**", "--endpoint", lived.url, "--shard_bytes", SHARD_BYTES)
    plan = ("plan", *job, "--max_in_flight", 8)
    before = {folder: output_files(folder) for folder in (lived.output, tmp_path / "second")}
    assert "of these: 1 text new among 951 documents to do: " in tayyar_here(*plan, *others).stdout
    assert "of these: 51 texts new among 951 documents to do: " in tayyar_here(*plan, *others[:2]).stdout
    assert "of these: 1 text new among" in tayyar_here(*plan, *others, "--output", tmp_path / "third").stdout
    here = ("--output", lived.output, *others[2:])
    assert "of these, 600 documents are done; 1 text new among 351 documents" in tayyar_here(*plan, *here).stdout
    assert {folder: output_files(folder) for folder in before} == before
    assert not (tmp_path / "second/_job/estimate.json").exists()
    sent_before = texts_embedded(lived.url)
    said = tayyar_here(*plan, *others, "--no_normalize", code=2).stderr
    assert f"--reuse {lived.output} holds vectors of another space" in said
    assert texts_embedded(lived.url) - sent_before <= HANDSHAKE_TEXTS
    assert "new among" not in tayyar_here(*plan).stdout


def test_of_much_work_a_share_is_counted(lived: Folder) -> None:
    write_ndjson(lived.corpus / "a.ndjson", documents(300, seed=8))
    touch(lived.corpus)
    output = OutputFolder(str(lived.output), "plan")
    job = require_job(output)
    plan = make_plan([str(lived.corpus)], output.root, SHARD_BYTES)
    work = [shard for source in plan.sources for shard in plan.shards_of(source)]
    index = index_former(output, job, [], ReceiptCache())
    assert index is not None
    whole = count_new(work, plan, job, index)
    assert (whole.texts, whole.documents, whole.exact) == (300, 900, True)
    some = count_new(work, plan, job, index, 5 * SHARD_BYTES)
    assert not some.exact
    assert 0 < some.texts < some.documents < 900
    assert str(some).startswith("about ")


def test_equal_texts_within_a_shard_are_sent_once(tmp_path: Path, hash_tei: str) -> None:
    records = [{"id": number, "content": f"text {number % 7}"} for number in range(100)]
    write_ndjson(tmp_path / "in/a.ndjson", records)
    run(tmp_path / "in", tmp_path / "out", hash_tei)
    receipt = json.loads((tmp_path / "out/_job/receipts/a-00000.json").read_bytes())
    assert (receipt["embedded"], receipt["sent"], receipt["reused"], receipt["duplicates"]) == (100, 7, 0, 93)
    lines = [json.loads(line) for line in (tmp_path / "out/data/a-00000.ndjson").read_bytes().splitlines()]
    assert [line["id"] for line in lines] == list(range(100))
    assert all(line["embedding"] == lines[line["id"] % 7]["embedding"] for line in lines)
    assert len({tuple(line["embedding"]) for line in lines}) == 7
    verified = tayyar_here("verify", "--output", tmp_path / "out").stdout
    assert "100 embedded (7 sent, 93 of equal texts), each line unchanged" in verified
    path = tmp_path / "out/_job/receipts/a-00000.json"
    path.write_bytes(json.dumps(receipt | {"sent": 6, "duplicates": 94}).encode())
    found = tayyar_here("verify", "--output", tmp_path / "out", code=5).stderr
    assert "a-00000.json: duplicates is 94, but only 93 texts occur before" in found


def test_another_folder_of_the_same_space_gives_vectors_and_is_not_written_to(lived: Folder, tmp_path: Path) -> None:
    files = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in lived.output.rglob("*") if path.is_file()}
    run(lived.corpus, tmp_path / "second", lived.url, "--reuse", lived.output)
    assert sent(tmp_path / "second") == 0
    assert output_files(tmp_path / "second") == output_files(lived.output)
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in lived.output.rglob("*") if p.is_file()} == files
    report = run(lived.corpus, tmp_path / "third", lived.url, "--prompt_name", "query", "--reuse", lived.output, code=2)
    assert "holds vectors of another space" in report


def test_vectors_come_from_several_folders_and_the_folder_itself(lived: Folder, tmp_path: Path) -> None:
    others = []
    for name, seed in (("second", 8), ("third", 9)):
        write_ndjson(tmp_path / name / "in/x.ndjson", documents(100, seed=seed))
        run(tmp_path / name / "in", tmp_path / name / "out", lived.url)
        others += ["--reuse", tmp_path / name / "out"]
    paths = sorted([*tmp_path.rglob("in/*.ndjson"), *lived.corpus.rglob("*.ndjson")])
    lines = [line for path in paths for line in lines_in(path)]
    random.Random(3).shuffle(lines)
    (lived.corpus / "a.ndjson").write_bytes(b"".join([*lines, b'{"content": "new"}\n']))
    before = texts_embedded(lived.url)
    assert "1 text new among 1,101 documents to do" in run(lived.corpus, lived.output, lived.url, *others)
    assert texts_embedded(lived.url) - before <= HANDSHAKE_TEXTS + 1
    lived.changed()


@pytest.mark.parametrize(
    ("job", "words"),
    [(None, "is not an output folder of Tayyar"), (b'{"format": 1, "model": {"model_id": "m"}}', "first edition")],
)
def test_a_folder_without_known_vectors_is_no_source_of_them(
    tmp_path: Path, hash_tei: str, job: bytes | None, words: str
) -> None:
    write_ndjson(tmp_path / "in/a.ndjson", [{"content": "text"}])
    (tmp_path / "old/_job").mkdir(parents=True)
    if job is not None:
        (tmp_path / "old/_job/job.json").write_bytes(job)
    said = run(tmp_path / "in", tmp_path / "out", hash_tei, "--reuse", tmp_path / "old", code=2)
    assert words in said
    assert str(tmp_path / "old") in said


@pytest.mark.parametrize("damage", ["output", "keys", "forged keys"])
def test_a_damaged_former_file_leads_to_sending_and_never_to_a_wrong_vector(lived: Folder, damage: str) -> None:
    for path in (lived.output / "data").rglob("a-*.ndjson"):
        keys = lived.output / "_job/keys" / path.with_suffix(".u64").name
        if damage == "output":
            data = path.read_bytes()
            at = data.index(b'"embedding":[') + 20  # in a vector, and of the same length
            path.write_bytes(data[:at] + (b"1" if data[at : at + 1] != b"1" else b"2") + data[at + 1 :])
        elif damage == "keys":
            keys.write_bytes(keys.read_bytes()[:-3])
        else:
            keys.write_bytes(keys.read_bytes()[8:] + keys.read_bytes()[:8])
    touch(lived.corpus)
    run(lived.corpus, lived.output, lived.url)
    assert 290 <= sent(lived.output) <= 310
    run(lived.corpus, lived.output.parent / "nothing", lived.url)
    assert output_files(lived.output) == output_files(lived.output.parent / "nothing")


def test_truncated_texts_are_not_reused_where_they_must_become_dead_letters(tmp_path: Path, hash_tei: str) -> None:
    write_ndjson(tmp_path / "in/a.ndjson", [{"content": "word " * 600}, {"content": "short"}])
    output = tmp_path / "out"
    run(tmp_path / "in", output, hash_tei)
    run(tmp_path / "in", output, hash_tei, "--overlong", "dead_letter", code=4)
    assert json.loads((output / "_job/receipts/a-00000.json").read_bytes())["dead_letters"] == 1
    run(tmp_path / "in", output, hash_tei)
    assert json.loads((output / "_job/receipts/a-00000.json").read_bytes())["reused"] == 1
    assert json.loads((output / "_job/receipts/a-00000.json").read_bytes())["sent"] == 1


def test_truncated_texts_are_counted_and_their_places_are_named(tmp_path: Path, hash_tei: str) -> None:
    long, longer = "word " * 600, "word " * 900
    texts = ["short", long, "word " * 300, longer, long, *(f"a few words of number {number}" for number in range(100))]
    write_ndjson(tmp_path / "in/a.ndjson", [{"content": text} for text in texts])
    write_ndjson(tmp_path / "in/b.ndjson", [{"content": "short"}])
    said = run(tmp_path / "in", tmp_path / "out", hash_tei)
    offsets = [0]
    for line in lines_in(tmp_path / "in/a.ndjson"):
        offsets.append(offsets[-1] + len(line))
    report = json.loads((tmp_path / "out/_job/report.json").read_bytes())
    assert report["truncation"] == {
        "method": "tokens",
        "first": [{"source": str(tmp_path / "in/a.ndjson"), "offset": offsets[place]} for place in (1, 3, 4)],
    }
    assert [source["truncated"] for source in report["sources"]] == [3, 0]
    assert "truncated: about 3 documents of 105 sent, by the tokens of replies" in said
    run(tmp_path / "in", tmp_path / "refused", hash_tei, "--overlong", "dead_letter", code=4)
    report = json.loads((tmp_path / "refused/_job/report.json").read_bytes())
    assert (report["totals"]["truncated"], report["truncation"]["method"]) == (0, "refused")


def test_what_was_embedded_of_a_gone_source_goes_with_prune_alone(lived: Folder) -> None:
    (lived.corpus / "b.ndjson").unlink()
    report = run(lived.corpus, lived.output, lived.url)
    assert "1 input of former runs is not among the inputs of this run" in report
    assert "kept: 300 documents of 1 input that no longer exists" in report
    assert (lived.output / "data/b-00000.ndjson").exists()
    verified = tayyar_here("verify", "--output", lived.output).stdout
    assert "verified: 600 records in 2 files" in verified
    assert f"1 of 3 sources no longer exists ({lived.corpus}/b.ndjson): its 300 records were checked" in verified
    removed = f"--prune removes 300 documents of 1 input, {lived.corpus}/b.ndjson\n"
    assert removed in run(lived.corpus, lived.output, lived.url, "--prune")
    lived.changed()
    assert not [*lived.output.rglob("b-*")]


def test_a_corpus_may_move_with_its_output(lived: Folder, tmp_path: Path) -> None:
    shutil.copytree(lived.corpus, tmp_path / "moved/in")  # keeps the times
    lived.output.rename(tmp_path / "moved/out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "moved/out/data").rglob("*.ndjson")}
    run(tmp_path / "moved/in", tmp_path / "moved/out", lived.url)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "moved/out/data").rglob("*.ndjson")} == before


@pytest.fixture
def moved(tmp_path: Path) -> Iterator[Folder]:
    """A folder with dead letters, one of them in a compressed file, whose inputs are elsewhere since."""
    with TeiSimulator() as server:
        simulator = Simulator(server.url)
        simulator.set_faults(refuse_marker="1-7 ")
        write_ndjson(tmp_path / "in/a.ndjson", ({"content": f"{number}-7 text"} for number in range(300)))
        (tmp_path / "in/c").mkdir()
        (tmp_path / "in/c/d.ndjson.gz").write_bytes(gzip.compress((tmp_path / "in/a.ndjson").read_bytes()))
        run(tmp_path / "in", tmp_path / "out", server.url, "--max_dead_letter_ratio", 1)
        simulator.set_faults()
        shutil.copytree(tmp_path / "in", tmp_path / "elsewhere/now", copy_function=shutil.copyfile)
        shutil.rmtree(tmp_path / "in")
        yield Folder(tmp_path / "elsewhere/now", tmp_path / "out", server.url, begin=False)


def test_inputs_that_have_moved_are_verified_and_redriven_where_they_are_now(moved: Folder) -> None:
    here = ("--output", moved.output, "--input", f"{moved.corpus}/**")
    options = ("--max_dead_letter_ratio", 1)
    found = tayyar_here("verify", "--output", moved.output, *options, code=5).stderr
    assert "is gone, as are all sources, so there is nothing to compare with; if they have moved, give --input" in found
    said = tayyar_here("verify", *here, *options).stdout
    assert "verified: 600 records in 2 files" in said
    assert "gone" not in said
    refused = tayyar_here("redrive", "--output", moved.output, "--endpoint", moved.url, code=1).stderr
    assert "is gone now. Put it back and run again. If the inputs have moved, give their place with --input." in refused
    assert " dead letters sent again: " in tayyar_here("redrive", *here, "--endpoint", moved.url).stdout
    assert "+ 0 dead letters" in tayyar_here("verify", *here).stdout
    (moved.corpus / "new.ndjson").write_bytes(b'{"content": "new"}\n')
    assert "new.ndjson: not embedded yet; run again" in tayyar_here("verify", *here, code=5).stderr


def test_other_files_in_the_place_of_moved_inputs_are_found(moved: Folder) -> None:
    here = ("--output", moved.output, "--input", f"{moved.corpus}/**")
    path = moved.corpus / "a.ndjson"
    lines = lines_in(path)
    before = output_files(moved.output)
    # As many bytes and lines, but two lines have changed places.
    path.write_bytes(b"".join([*lines[:1], lines[11], *lines[1:11], *lines[12:]]))
    assert "does not hold that line" in tayyar_here("verify", *here, "--max_dead_letter_ratio", 1, code=5).stderr
    said = tayyar_here("redrive", *here, "--endpoint", moved.url, code=1).stderr
    assert "a.ndjson is not the file that was embedded" in said
    path.write_bytes(b"".join(lines) + b"{}\n")
    said = tayyar_here("verify", *here, "--max_dead_letter_ratio", 1, code=5).stderr
    assert f"{path} has {path.stat().st_size} bytes, but the embedded file had {path.stat().st_size - 3}" in said
    said = tayyar_here("redrive", *here, "--endpoint", moved.url, code=2).stderr
    assert "Give the files that were embedded" in said
    assert {name: data for name, data in output_files(moved.output).items() if "a-" in name} == {
        name: data for name, data in before.items() if "a-" in name
    }


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory, hash_tei: str) -> Path:
    """A folder of three shards, whose input has changed since: its first line moved to the end."""
    root = tmp_path_factory.mktemp("killed")
    write_ndjson(root / "in/a.ndjson", documents(60, seed=1))
    run(root / "in", root / "out", hash_tei)
    lines = lines_in(root / "in/a.ndjson")
    (root / "in/a.ndjson").write_bytes(b"".join([*lines[1:], lines[0]]))
    run(root / "in", root / "nothing", hash_tei)
    assert len(output_files(root / "nothing")) >= 2
    return root


def preparation(output: OutputFolder, corpus: Path) -> tuple[Ledger, IndexHandle | None]:
    job = require_job(output)
    return prepare(output, make_plan([str(corpus)], output.root, job.shard_bytes), job, [], ReceiptCache(), print)


@pytest.mark.parametrize("before", [True, False])
def test_a_death_at_any_step_of_the_preparation_loses_no_vector(
    changed: Path, tmp_path: Path, hash_tei: str, before: bool
) -> None:
    Dying.left, Dying.before = 1000, before
    shutil.copytree(changed / "out", tmp_path / "whole")
    preparation(Dying(str(tmp_path / "whole"), "dying"), changed / "in")
    steps = 1000 - Dying.left
    assert steps > 10
    for step in range(1, steps + 1):
        out = tmp_path / f"out{step}"
        shutil.copytree(changed / "out", out)
        for again in (step, steps // 2):  # and once more
            Dying.left = again
            with contextlib.suppress(Killed):
                preparation(Dying(str(out), "dying"), changed / "in")
        ledger, handle = preparation(OutputFolder(str(out), "last"), changed / "in")
        assert handle is not None
        plan = make_plan([str(changed / "in")], str(out), SHARD_BYTES)
        index = handle.open()
        assert index is not None
        assert count_new(ledger.work_left(), plan, require_job(OutputFolder(str(out), "x")), index).texts == 0
        if step % 4 == 0:
            run(changed / "in", out, hash_tei)
            assert sent(out) == 0
            assert output_files(out) == output_files(changed / "nothing")


@pytest.mark.parametrize("before", [True, False])
def test_a_death_at_any_step_of_writing_a_shard_loses_no_vector(
    changed: Path, tmp_path: Path, hash_tei: str, before: bool
) -> None:
    for step in range(1, 5):  # output, keys, receipt, and the vectors that were saved of the unfinished shard
        out = tmp_path / f"out{step}"
        shutil.copytree(changed / "out", out)
        ledger, handle = preparation(OutputFolder(str(out), "first"), changed / "in")
        job, index = require_job(OutputFolder(str(out), "first")), handle.open() if handle else None
        assert index is not None
        (read,) = (
            parse_shard(shard, lines, job.text_field, job.embedding_field)
            for shard, lines in lines_by_shard(ledger.work_left()[0], SHARD_BYTES)
        )
        once = distinct([document.text for document in read.documents])
        found = find_vectors(once.texts, index, job.space.dimensions)
        nothing = Embeddings(found.vectors[:0], {}, RequestStatistics())
        embeddings, reused, duplicates = assemble(once, found, nothing)
        embedded, _ = merge_embeddings(read, embeddings, time.time(), reused, duplicates)
        assert reused == len(read.documents) > 10
        Dying.left, Dying.before = step, before
        with pytest.raises(Killed):
            write_shard(embedded, Dying(str(out), "dying"), job.provenance, job.layout)
        run(changed / "in", out, hash_tei)
        assert sent(out) == 0
        assert output_files(out) == output_files(changed / "nothing")


def test_a_death_while_former_files_are_deleted_does_no_harm(changed: Path, tmp_path: Path, hash_tei: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(changed / "out", out)
    preparation(OutputFolder(str(out), "first"), changed / "in")
    former = tmp_path / "former"
    shutil.copytree(out / "_job/former", former)
    run(changed / "in", out, hash_tei)
    for left in range(3):
        shutil.copytree(former, out / "_job/former")
        Dying.left, Dying.before = left + 1, False
        with contextlib.suppress(Killed):
            forget_former(Dying(str(out), "dying"))
        run(changed / "in", out, hash_tei)
        assert not (out / "_job/former").exists()
        assert output_files(out) == output_files(changed / "nothing")


def test_kills_at_any_moment_of_runs_after_changes_lose_no_vector_that_was_paid_for(
    tmp_path: Path, hash_tei: str
) -> None:
    write_ndjson(tmp_path / "in/a.ndjson", documents(3000, seed=1))
    run(tmp_path / "in", tmp_path / "out", hash_tei)
    lines = lines_in(tmp_path / "in/a.ndjson")
    random.Random(2).shuffle(lines)
    (tmp_path / "in/a.ndjson").write_bytes(b"".join(lines) + b'{"content": "new"}\n')
    before = texts_embedded(hash_tei)
    options = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--endpoint", hash_tei)
    rng, kills = random.Random(7), 0
    for _ in range(5):
        with started("run", *options, "--shard_bytes", SHARD_BYTES) as process:
            deadline = time.monotonic() + 60
            while process.poll() is None and not (tmp_path / "out/_job/former").exists():
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(rng.random())
            kills += process.poll() is None
            process.kill()
    assert kills >= 2
    run(tmp_path / "in", tmp_path / "out", hash_tei)
    # What a shard sent that was not finished is at most its one new text, each time.
    assert texts_embedded(hash_tei) - before <= 6 * (HANDSHAKE_TEXTS + 1)
    run(tmp_path / "in", tmp_path / "nothing", hash_tei)
    assert output_files(tmp_path / "out") == output_files(tmp_path / "nothing")


@pytest.mark.parametrize("behind", [False, True])
def test_two_runs_at_once_after_a_change_do_no_harm(tmp_path: Path, hash_tei: str, behind: bool) -> None:
    write_ndjson(tmp_path / "in/a.ndjson", documents(3000, seed=1))
    run(tmp_path / "in", tmp_path / "out", hash_tei)
    lines = lines_in(tmp_path / "in/a.ndjson")
    random.Random(2).shuffle(lines)
    (tmp_path / "in/a.ndjson").write_bytes(b"".join(lines) + b'{"content": "new"}\n')
    where = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--endpoint", hash_tei)
    options = (*where, "--shard_bytes", SHARD_BYTES)
    with started("run", *options) as first:
        if behind:
            former = tmp_path / "out/_job/former"
            wait_until(lambda: former.exists() or first.poll() is not None, "former outputs")
        with started("run", *options) as second:
            for process in (first, second):
                said, _ = process.communicate(timeout=100)
                assert process.returncode == 0, said
    run(tmp_path / "in", tmp_path / "nothing", hash_tei)
    assert output_files(tmp_path / "out") == output_files(tmp_path / "nothing")
    tayyar_here("verify", "--output", tmp_path / "out")
    before = texts_embedded(hash_tei)
    run(tmp_path / "in", tmp_path / "out", hash_tei)  # of two that end together, each leaves the other what it may read
    assert texts_embedded(hash_tei) - before <= HANDSHAKE_TEXTS
    assert not {"former", "partial", "tmp", "run_markers"} & {path.name for path in (tmp_path / "out/_job").iterdir()}


def test_what_an_unfinished_shard_had_put_down_is_not_sent_again(tmp_path: Path, hash_tei: str) -> None:
    write_ndjson(tmp_path / "in/a.ndjson", documents(60, seed=1))
    run(tmp_path / "in", tmp_path / "nothing", hash_tei, "--shard_bytes", 1_000_000)
    records = [json.loads(line) for line in (tmp_path / "nothing/data/a-00000.ndjson").read_bytes().splitlines()]
    shutil.copytree(tmp_path / "nothing", tmp_path / "out")
    output = OutputFolder(str(tmp_path / "out"), "killed")
    job = require_job(output)
    for name in ("data/a-00000.ndjson", "_job/receipts/a-00000.json", "_job/keys/a-00000.u64"):
        (tmp_path / "out" / name).unlink()
    texts = [record["content"] for record in records[:40]]
    vectors = np.array([record["embedding"] for record in records[:40]], dtype=np.float32)
    output.write("_job/partial/x-killed", encode_partial("a-00000", job.space.digest, "truncate", texts, vectors))
    others = [record["content"] for record in records[40:]]  # of another space: they would be wrong here
    output.write("_job/partial/y-killed", encode_partial("a-00000", "another", "truncate", others, vectors[:20]))
    run(tmp_path / "in", tmp_path / "out", hash_tei, "--shard_bytes", 1_000_000)
    receipt = json.loads((tmp_path / "out/_job/receipts/a-00000.json").read_bytes())
    assert (receipt["sent"], receipt["reused"]) == (20, 40)
    assert output_files(tmp_path / "out") == output_files(tmp_path / "nothing")
    assert not (tmp_path / "out/_job/partial").exists()


@pytest.mark.timeout(300)
def test_a_kill_costs_the_endpoints_last_half_minute_alone(tmp_path: Path, hash_tei: str) -> None:
    write_ndjson(tmp_path / "in/a.ndjson", documents(600, seed=1))
    where = ("--output", tmp_path / "out")
    with TeiSimulator(["--texts_per_second", "4"]) as slow:
        inputs = ("--input", f"{tmp_path}/in/**", "--shard_bytes", 10_000_000)
        with started("run", *inputs, *where, "--endpoint", slow.url) as process:
            wait_until(
                lambda: list((tmp_path / "out/_job/partial").glob("*")) or process.poll() is not None,
                "vectors of an unfinished shard",
                seconds=90,
            )
            process.kill()
            assert process.wait() == -signal.SIGKILL
        computed = texts_embedded(slow.url)
    saved = json.loads(tayyar_here("status", "--json", *where).stdout)["partial"]
    assert 0 < saved <= computed
    run(tmp_path / "in", tmp_path / "out", hash_tei, "--shard_bytes", 10_000_000)
    assert sent(tmp_path / "out") == 600 - saved
    run(tmp_path / "in", tmp_path / "nothing", hash_tei, "--shard_bytes", 10_000_000)
    assert output_files(tmp_path / "out") == output_files(tmp_path / "nothing")


class _Drawn:
    """A corpus, and the settings of a run, that hypothesis draws again and again."""

    TEXTS = ("", *(f"text {number} " + "w " * (number % 30) for number in range(40)))  # a blank one is a dead letter
    LINES = st.lists(st.sampled_from(TEXTS), min_size=1, max_size=40)
    FORMATS = ((), ("--output_format", "parquet"), ("--output_format", "parquet", "--vector_type", "float16"))
    COMPRESS: ClassVar[dict[str, Callable[[bytes], bytes]]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress}

    def __init__(self, data: st.DataObject, corpus: Path) -> None:
        self.data, self.corpus = data, corpus

    def one_of(self, *values: T) -> T:
        return self.data.draw(st.sampled_from(values))

    def change_a_file(self) -> None:
        path = self.corpus / f"{self.one_of('a', 'b', 'c/d')}.ndjson"
        existing = {one for one in self.corpus.rglob("*.ndjson*") if one.is_file()}
        its = {one for one in existing if one.name.startswith(path.name)}
        for one in its:
            one.unlink()
        if not its or existing == its or self.one_of(True, False):
            write_ndjson(path, ({"content": text, "copy": text} for text in self.data.draw(self.LINES)))
            suffix = self.one_of(*self.COMPRESS)
            path.write_bytes(self.COMPRESS[suffix](path.read_bytes()))
            path.rename(f"{path}{suffix}")

    def settings(self) -> tuple[object, ...]:
        form = self.one_of(*self.FORMATS)
        return (
            *("--shard_bytes", self.one_of(200, 900, 100_000)),
            *("--embedding_field", self.one_of("embedding", "vector")),
            *("--text_field", self.one_of("content", "copy")),
            *form,
        )


@pytest.mark.timeout(600)  # some fifty jobs
@settings(max_examples=examples(6))
@given(st.data())
def test_random_sequences_of_changes_and_settings_give_what_a_run_from_nothing_gives(
    tmp_path_factory: pytest.TempPathFactory, hash_tei: str, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("sequence")
    drawn, plain = _Drawn(data, root / "in"), ("--max_dead_letter_ratio", 1)
    reuse: list[object] = []
    for name in ("former", "other"):
        write_ndjson(root / name / "in/b.ndjson", ({"content": text} for text in data.draw(drawn.LINES)))
        run(root / name / "in", root / name / "out", hash_tei, *plain, *drawn.one_of(*drawn.FORMATS))
        reuse += ["--reuse", root / name / "out"]
    for _ in range(data.draw(st.integers(2, 3))):
        drawn.change_a_file()
        options = (*plain, *drawn.settings())
        if (root / "out").exists() and drawn.one_of(True, False):
            Dying.left, Dying.before = data.draw(st.integers(1, 12)), drawn.one_of(True, False)
            with contextlib.suppress(Killed):
                preparation(Dying(str(root / "out"), "dying"), root / "in")
        run(root / "in", root / "out", hash_tei, "--prune", *options, *reuse[: drawn.one_of(0, 2, 4)])
        shutil.rmtree(root / "nothing", ignore_errors=True)
        run(root / "in", root / "nothing", hash_tei, *options)
        assert output_files(root / "out") == output_files(root / "nothing")
    tayyar_here("verify", "--output", root / "out", *plain)
