"""Only what is new is sent: runs after changes, against runs from nothing."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import output_files, tayyar_here, texts_embedded
from tests.documents import documents, write_ndjson
from tests.test_end_to_end import HANDSHAKE_TEXTS

SHARD_BYTES = 10_000


def run(corpus: Path, output: Path, url: str, *options: object, code: int | None = 0) -> str:
    inputs = ("--input", f"{corpus}/**", "--output", output, "--endpoint", url)
    finished = tayyar_here("run", *inputs, "--shard_bytes", SHARD_BYTES, *options, code=code)
    return finished.stdout + finished.stderr


def sent(output: Path) -> int:
    """How many texts were sent for the shards that are there now, as their receipts say."""
    return sum(json.loads(path.read_bytes())["sent"] for path in (output / "_job/receipts").rglob("*.json"))


class Folder:
    """An output folder whose first run is done; `changed` runs again and says what was sent."""

    def __init__(self, corpus: Path, output: Path, url: str) -> None:
        self.corpus, self.output, self.url = corpus, output, url
        run(corpus, output, url)

    def changed(self, *options: object) -> int:
        """Run again, hold the folder against one that is made from nothing, and return how many texts were sent."""
        before = texts_embedded(self.url)
        run(self.corpus, self.output, self.url, "--prune", *options)
        found = texts_embedded(self.url) - before
        nothing = self.output.parent / "nothing"
        shutil.rmtree(nothing, ignore_errors=True)
        run(self.corpus, nothing, self.url, *options)
        assert output_files(self.output) == output_files(nothing)
        tayyar_here("verify", "--output", self.output)
        assert not {"former", "partial", "reuse"} & {path.name for path in (self.output / "_job").iterdir()}
        return max(0, found - HANDSHAKE_TEXTS)


@pytest.fixture
def lived(tmp_path: Path, hash_tei: str) -> Folder:
    for name, seed in (("a.ndjson", 1), ("b.ndjson", 2), ("c/d.ndjson", 3)):
        write_ndjson(tmp_path / "in" / name, documents(300, seed=seed))
    return Folder(tmp_path / "in", tmp_path / "out", hash_tei)


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


@pytest.mark.parametrize("change", [touch, delete_lines, shuffle, change_other_fields, rename, split, compress, copy])
def test_nothing_is_sent_when_no_text_is_new(lived: Folder, change: Callable[[Path], None]) -> None:
    before = texts_embedded(lived.url)
    change(lived.corpus)
    report = run(lived.corpus, lived.output, lived.url, "--prune")
    assert texts_embedded(lived.url) - before <= HANDSHAKE_TEXTS
    assert "0 texts new among" in report
    assert sent(lived.output) <= 900
    lived.changed()


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
    tayyar_here("verify", "--output", tmp_path / "out")


def test_another_folder_of_the_same_space_gives_vectors_and_is_not_written_to(lived: Folder, tmp_path: Path) -> None:
    files = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in lived.output.rglob("*") if path.is_file()}
    run(lived.corpus, tmp_path / "second", lived.url, "--reuse", lived.output)
    assert sent(tmp_path / "second") == 0
    assert output_files(tmp_path / "second") == output_files(lived.output)
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in lived.output.rglob("*") if p.is_file()} == files
    report = run(lived.corpus, tmp_path / "third", lived.url, "--prompt_name", "query", "--reuse", lived.output, code=2)
    assert "holds vectors of another space" in report


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


def test_what_was_embedded_of_a_gone_source_goes_with_prune_alone(lived: Folder) -> None:
    (lived.corpus / "b.ndjson").unlink()
    report = run(lived.corpus, lived.output, lived.url)
    assert "1 inputs of former runs no longer exist" in report
    assert (lived.output / "data/b-00000.ndjson").exists()
    lived.changed()
    assert not [*lived.output.rglob("b-*")]


def test_a_corpus_may_move_with_its_output(lived: Folder, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "in", tmp_path / "moved/in")  # keeps the times
    lived.output.rename(tmp_path / "moved/out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "moved/out/data").rglob("*.ndjson")}
    run(tmp_path / "moved/in", tmp_path / "moved/out", lived.url)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "moved/out/data").rglob("*.ndjson")} == before
