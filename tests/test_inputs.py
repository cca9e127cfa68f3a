"""Folders of records in the shapes that people have them: what is taken, what is refused, and what is reported."""

from __future__ import annotations

import bz2
import gzip
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

from tests.commands import tayyar_here
from tests.tei_simulator.clients import Simulator
from tests.tei_simulator.process import TeiSimulator

TEXTS = [f"a sentence {n} about rivers and ports" for n in range(4)]


def ndjson(texts: Iterable[str] = TEXTS, field: str = "content") -> bytes:
    return b"".join(json.dumps({"id": n, field: text}).encode() + b"\n" for n, text in enumerate(texts))


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def run(tei: str, folder: Path, *options: object, code: int = 0, out: str = "out") -> str:
    """Run over the folder and return all that is printed."""
    finished = tayyar_here(
        "run", "--input", folder, "--output", folder.parent / out, "--endpoint", tei, *options, code=code
    )
    return finished.stdout + finished.stderr


def refused(folder: Path, *options: object) -> str:
    """Run over the folder with an endpoint where nothing listens: who gets so far gets another exit code."""
    return run("http://127.0.0.1:9", folder, *options, code=2)


def outputs(folder: Path, out: str = "out") -> dict[str, list[dict[str, Any]]]:
    """Return the embedded records by file name."""
    root = folder.parent / out / "data"
    return {
        str(path.relative_to(root)): [
            json.loads(line.removeprefix(b"\xef\xbb\xbf")) for line in path.read_bytes().splitlines()
        ]
        for path in sorted(root.rglob("*.ndjson"))
    }


def test_records_are_known_by_their_bytes_whatever_their_names_are(hash_tei: str, tmp_path: Path) -> None:
    data = ndjson()
    folder = put(
        tmp_path / "in",
        {
            "B.JSONL": data,
            "part_000.gz": gzip.compress(data),
            "RC_2010-05.zst": zstd.compress(data),
            "C.NDJSON.BZ2": bz2.compress(data),
            "objects/2024-11-01T00": data,
            "firehose/stream-1-2024-11-01-00-00-00": gzip.compress(data),
            "year=2024/part.json": data,
            "_day=1/part.json": data,
            "plain_for_all_its_name.ndjson.gz": data,
            "gzip_for_all_its_name.ndjson": gzip.compress(data),
            "_SUCCESS": b"",
            "_temporary/0/part.json": data,
            ".ipynb_checkpoints/a.json": data,
            "._a.json": b"\0\5\x16\7",
            "README.md": b"# about these records",
            "picture.bin": os.urandom(100),
        },
    )
    printed = run(hash_tei, folder)
    taken = outputs(folder)
    assert sorted(taken) == [
        "B-00000.ndjson",
        "C-00000.ndjson",
        "RC_2010-05-00000.ndjson",
        "_day=1/part-00000.ndjson",
        "firehose/stream-1-2024-11-01-00-00-00-00000.ndjson",
        "gzip_for_all_its_name-00000.ndjson",
        "objects/2024-11-01T00-00000.ndjson",
        "part_000-00000.ndjson",
        "plain_for_all_its_name-00000.ndjson",
        "year=2024/part-00000.ndjson",
    ]
    assert all([record["content"] for record in records] == TEXTS for records in taken.values())
    assert "left out 6 files: 4 (hidden or staging): " in printed


def test_what_is_excluded_is_left_out_and_plan_lists_it(hash_tei: str, tmp_path: Path) -> None:
    names = ("a.ndjson", "old/b.ndjson", "x/old/c.ndjson", "x/d.ndjson", "x/y/e.ndjson")
    folder = put(tmp_path / "in", dict.fromkeys(names, ndjson()))
    options = ["--exclude", "**/old", "--exclude", "x/y/*"]
    printed = run(hash_tei, folder, *options)
    assert sorted(outputs(folder)) == ["a-00000.ndjson", "x/d-00000.ndjson"]
    assert "left out 3 files: 3 (excluded)" in printed
    planned = tayyar_here("plan", "--input", folder, "--endpoint", hash_tei, "--verbose", *options).stdout
    assert [line for line in planned.splitlines() if line.startswith("left out: ")] == [
        f"left out: {folder}/{name} (excluded)" for name in names[1:3] + names[4:]
    ]


def test_verify_matches_the_inputs_as_the_run_did(hash_tei: str, tmp_path: Path) -> None:
    folder = put(
        tmp_path / "in",
        {
            "a.ndjson": b'{"title":"t","body":["b","c"]}\n{"title":"t"}\n{"id":1}\n',
            "b": gzip.compress(b'{"body":"d"}\n' * 3),
            "notes.txt": b"notes",
            "old/c.ndjson": ndjson(),
        },
    )
    (folder / "link.ndjson").symlink_to("a.ndjson")
    options = ["--text_field", "title", "--text_field", "body", "--exclude", "old", "--max_dead_letter_ratio", 1]
    run(hash_tei, folder, "--input", f"{folder}/l*", *options)
    verify = ["verify", "--output", tmp_path / "out", "--max_dead_letter_ratio", 1]
    assert "6 records" in tayyar_here(*verify, code=0).stdout
    tayyar_here(*verify, "--sample", 4, "--endpoint", hash_tei, code=0)
    put(folder, {"later": ndjson()})
    assert f"{folder}/later: not embedded yet" in tayyar_here(*verify, code=5).stderr
    put(folder, {"later.json": b"[]"})
    found = tayyar_here(*verify, code=5).stderr
    assert found.count("the inputs cannot be matched again") == 1
    assert f"{folder}/later.json looks like a JSON array" in found


def test_a_file_and_its_links_are_one_file(hash_tei: str, tmp_path: Path) -> None:
    folder = put(tmp_path / "in", {"z/real.ndjson": ndjson()})
    (folder / "a.ndjson").symlink_to("z/real.ndjson")
    (folder / "b").symlink_to("z")
    assert "left out 2 files: 2 (another name of a file that is taken)" in run(hash_tei, folder)
    assert sorted(outputs(folder)) == ["z/real-00000.ndjson"]


def test_a_loop_of_links_is_refused_by_the_links_name(tmp_path: Path) -> None:
    folder = put(tmp_path / "in", {"x/a.ndjson": ndjson()})
    (folder / "x" / "loop").symlink_to(folder)
    assert f"{folder}/x/loop is a link to a folder that it lies in" in refused(folder)


@pytest.mark.parametrize(
    ("data", "what", "remedy"),
    [
        (ndjson().decode().encode("utf-16"), "UTF-16 text", "iconv -f UTF-16LE"),
        (ndjson().decode().encode("utf-16-be"), "UTF-16 text", "iconv -f UTF-16BE"),
        (ndjson().decode().encode("utf-32"), "UTF-32 text", "iconv -f UTF-32LE"),
        (b'[{"content": "a"}, {"content": "b"}]', "a JSON array", "jq -c '.[]'"),
        (b'[\n{"content": "a"},\n{"content": "b"}\n]\n', "a JSON array", "jq -c '.[]'"),
        (b'[{"content": "' + b"a" * 20_000 + b'"}]', "a JSON array", "jq -c '.[]'"),
        (json.dumps({"content": "a", "x": [1, 2]}, indent=2).encode(), "an indented JSON document", "jq -c ."),
        (b'{"content": "a"}{"content": "b"}', "JSON objects without a newline", "jq -c ."),
        (b'{"content": "a"} ' * 2000, "JSON objects without a newline", "jq -c ."),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "a Git LFS pointer", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html></html>\n", "an HTML page", "errors or of a login"),
        (b"PAR1" + bytes(50), "Parquet", "as NDJSON"),
        (b"Obj\x01" + bytes(50), "Avro", "as NDJSON"),
        (b"a/b".ljust(257, b"\0") + b"ustar\x0000", "a tar archive", "Unpack it"),
        (b"PK\x03\x04" + bytes(50), "a zip archive", "Unpack it"),
        (b"\xfd7zXZ\x00" + bytes(50), "compressed by xz", "zstd"),
        (b'"a"\n"b"\n', "JSON values that are not objects", "must be a JSON object"),
        (b"id,content\n1,a\n", "text or binary data, not JSON", "must be a JSON object"),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_file_of_a_wrong_kind_is_refused_with_its_remedy(
    tmp_path: Path, data: bytes, what: str, remedy: str, pack: Any
) -> None:
    folder = put(tmp_path / "in", {"a.ndjson": ndjson(), "b.json": pack(data)})
    said = refused(folder)
    assert f"{folder}/b.json looks like {what}" in said
    assert remedy in said


def test_ten_files_of_a_wrong_kind_are_named(tmp_path: Path) -> None:
    said = refused(put(tmp_path / "in", {f"{n:02d}.json": b"[]" for n in range(12)}))
    assert said.count("looks like a JSON array") == 10
    assert "and 2 more files of a wrong kind" in said


def test_a_text_field_that_no_record_has_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    folder = put(tmp_path / "in", {"a.ndjson": b'{"id": 1, "meta": {"body": "a"}}\n'})
    assert "--text_field content: no text there in the first 1 record looked at" in refused(folder)
    assert "Fields found: id, meta.body." in refused(folder)
    assert "For several fields, repeat the option." in refused(folder, "--text_field", "id,meta")


def test_a_shard_of_too_many_records_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    lines = b"".join(b'{"content":"%d"}\n' % n for n in range(10)) * 70_000
    folder = put(tmp_path / "in", {"a.ndjson": lines})
    said = refused(folder)
    assert "has lines of about 16 bytes, so about 700,000 records in a shard of --shard_bytes 16777216" in said
    assert "run with --shard_bytes 3200000" in said


@pytest.mark.parametrize("given", ["empty", "empty/", "nothing", "*.ndjson"])
def test_what_matches_nothing_is_one_sentence(tmp_path: Path, given: str) -> None:
    (tmp_path / "empty").mkdir()
    said = refused(tmp_path / given if not given.endswith("/") else Path(f"{tmp_path}/{given}"))
    assert "matches no file. Check the path; put quotes around a pattern" in said


def test_damaged_files_end_themselves_only(hash_tei: str, tmp_path: Path) -> None:
    texts = [f"{n} {os.urandom(200).hex()}" for n in range(1000)]
    packed = gzip.compress(ndjson(texts))
    files = {"a.ndjson.gz": packed, "b.ndjson.gz": packed[:-90_000], "c.ndjson.gz": packed, "d.json.zst": b""}
    folder = put(tmp_path / "in", {**files, "e.ndjson": ndjson()})
    said = run(hash_tei, folder, "--shard_bytes", 50_000, code=1)
    assert f"{folder}/b.ndjson.gz is truncated or corrupt" in said
    assert f"{folder}/d.json.zst is truncated or corrupt: the file is empty" in said
    assert f"of {len(files['b.ndjson.gz'])} in the file" in said
    taken = outputs(folder)
    of = {
        name: [r["content"] for key in sorted(taken) if key.startswith(f"{name}-") for r in taken[key]]
        for name in "abce"
    }
    assert of["a"] == of["c"] == texts
    assert of["e"] == TEXTS
    assert of["b"] == texts[: len(of["b"])]
    assert len(of["b"]) > 300
    # The whole file in its place, and the run goes on to the end.
    put(folder, {"b.ndjson.gz": packed, "d.json.zst": zstd.compress(ndjson())})
    run(hash_tei, folder, "--shard_bytes", 50_000)


def test_a_long_zstd_window_is_read(hash_tei: str, tmp_path: Path) -> None:
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 28, zstd.CompressionParameter.compression_level: 1}
    compressor = zstd.ZstdCompressor(options=options)
    packed = compressor.compress(ndjson()) + compressor.flush()
    assert packed[4] & 0x20 == 0  # the header has a window of its own
    folder = put(tmp_path / "in", {"a.ndjson.zst": packed})
    run(hash_tei, folder)
    assert [record["content"] for record in outputs(folder)["a-00000.ndjson"]] == TEXTS


def test_records_are_embedded_as_people_have_them(hash_tei: str, tmp_path: Path) -> None:
    lines = b'\xef\xbb\xbf{"title":"t","text":"","x":NaN}\n\xef\xbb\xbf{"title":"t","text":["a","b"],"x":1}\n'
    folder = put(tmp_path / "in", {"a.ndjson": lines})
    printed = run(hash_tei, folder, "--text_field", "title", "--text_field", "text")
    assert "total: embeddings = 2, documents = 2, dead letters = 0" in printed
    put(tmp_path / "joined", {"a.ndjson": ndjson(["t", "t\na\nb"])})
    run(hash_tei, tmp_path / "joined", out="joined_out")
    expected = [record["embedding"] for record in outputs(folder, "joined_out")["a-00000.ndjson"]]
    assert [record["embedding"] for record in outputs(folder)["a-00000.ndjson"]] == expected


def test_lines_with_nan_are_counted(tmp_path: Path) -> None:
    lines = [
        b'{"content":"%d","x":%s}' % (n, x) for n, x in enumerate((b"1", b"NaN", b"1e999", b"[-Infinity]", b"NaN"))
    ]
    folder = put(tmp_path / "in", {"a.ndjson": b"\n".join([*lines, b'{"content":"","x":NaN}'])})
    out = tmp_path / "out"

    def counted() -> tuple[int, int]:
        receipt = json.loads((out / "_job/receipts/a-00000.json").read_bytes())
        report = json.loads((out / "_job/report.json").read_bytes())
        return receipt["nan_lines"], report["totals"]["nan_lines"]

    with TeiSimulator() as server:
        server_faults = Simulator(server.url)
        server_faults.set_faults(refuse_marker="4")
        printed = run(server.url, folder, "--max_dead_letter_ratio", 1)
        assert "2 embedded lines hold NaN or Infinity, which strict JSON parsers refuse" in printed
        assert counted() == (2, 2)
        server_faults.set_faults()
        tayyar_here("redrive", "--output", out, "--endpoint", server.url)
    assert counted() == (3, 3)
    embedded = (out / "data/a-00000.ndjson").read_bytes().splitlines()
    assert all(found.startswith(line[:-1] + b",") for found, line in zip(embedded, lines, strict=True))
    verify = ("verify", "--output", out, "--max_dead_letter_ratio", 1)
    tayyar_here(*verify)
    receipt = out / "_job/receipts/a-00000.json"
    receipt.write_text(receipt.read_text().replace('"nan_lines": 3', '"nan_lines": 2'))
    assert "nan_lines is 2, but should be 3" in tayyar_here(*verify, code=5).stderr


def test_a_run_without_hope_ends_while_it_reads(hash_tei: str, tmp_path: Path) -> None:
    folder = put(tmp_path / "in", {"a.ndjson": ndjson() + b"{}\n" * 60_000})
    said = run(hash_tei, folder, code=4)
    assert (
        "50,000 of 50,004 records looked at so far are dead letters, more than --max_dead_letter_ratio 0.01 allows"
        in said
    )
    assert "50,000 of them are missing_text: the text is in another field: name it with --text_field" in said


def test_the_summary_tells_why_there_are_dead_letters(hash_tei: str, tmp_path: Path) -> None:
    folder = put(tmp_path / "in", {"a.ndjson": ndjson() + b'{"body":"b"}\n' * 9 + b"[]\n"})
    printed = run(hash_tei, folder, "--max_dead_letter_ratio", 1)
    place = len(ndjson())
    assert f"missing_text: 9, first at byte {place:,} of {folder}/a.ndjson: there is no field 'content'" in printed
    assert f"not_an_object: 1, first at byte {place + 9 * 13:,} of {folder}/a.ndjson" in printed
    assert printed.count("missing_text") == 1
    assert "likely cause: the text is in another field: name it with --text_field" in printed


@pytest.mark.parametrize("loader", ["datasets", "duckdb", "polars"])
def test_the_output_loads_as_it_is(hash_tei: str, tmp_path: Path, loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    module = pytest.importorskip(loader, reason=f"{loader} is not here; pip install '.[dev]'")
    folder = put(tmp_path / "in", {"a.ndjson": ndjson() + b"broken\n", "x/b.jsonl": ndjson()})
    run(hash_tei, folder, "--max_dead_letter_ratio", 1)
    assert [path.name for path in (tmp_path / "out" / "dead_letters").iterdir()] == ["a-00000.ndjson"]
    data = tmp_path / "out" / "data"
    assert _rows(module, data, tmp_path / "cache") == 8


def _rows(module: Any, data: Path, cache: Path) -> int:
    if module.__name__ == "datasets":
        return len(module.load_dataset("json", data_dir=str(data), split="train", cache_dir=str(cache)))
    if module.__name__ == "duckdb":
        query = f"SELECT count(embedding) FROM read_json('{data}/**/*.ndjson')"
        return int(module.connect().execute(query).fetchone()[0])
    return int(module.scan_ndjson(f"{data}/**/*.ndjson").collect().height)
