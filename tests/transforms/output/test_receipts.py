from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shards import JOB, MADE, SOURCE, folder, put, receipt
from transforms.elements import Reason, RequestStatistics, Shard
from transforms.output.receipts import (
    MAX_TRUNCATED_PLACES,
    Provenance,
    Receipt,
    decode_receipt,
    encode_receipt,
    is_done,
)
from transforms.storage.api import FileStat, WrittenFile

NAMES = st.text(min_size=1)
COUNTS = st.integers(0, 1 << 50)
SECONDS = st.floats(0, 4e9)


@st.composite
def receipts(draw: st.DrawFn) -> Receipt:
    index = draw(st.integers(0, 10**6))
    names = st.from_regex(r"[^/\\\0]{1,20}", fullmatch=True).filter(lambda name: name not in (".", ".."))
    name = draw(names)
    shard = f"{name}-{index:05d}"
    output = draw(st.none() | st.builds(WrittenFile, st.just(f"data/{shard}.ndjson"), COUNTS, NAMES))
    letters = draw(st.none() | st.builds(WrittenFile, st.just(f"dead_letters/{shard}.ndjson"), COUNTS, NAMES))
    return draw(
        st.builds(
            Receipt,
            shard=st.just(shard),
            source=NAMES,
            index=st.just(index),
            start=COUNTS,
            end=st.none() | COUNTS,
            last=st.booleans(),
            source_size=COUNTS,
            source_version=st.text(),
            records=COUNTS,
            embedded=COUNTS,
            sent=COUNTS,
            reused=COUNTS,
            duplicates=COUNTS,
            nan_lines=COUNTS,
            dead_letters=COUNTS,
            reasons=st.dictionaries(st.sampled_from([reason.value for reason in Reason]), COUNTS),
            truncated=COUNTS,
            truncated_at=st.lists(COUNTS, max_size=MAX_TRUNCATED_PLACES).map(tuple),
            started_at=SECONDS,
            finished_at=SECONDS,
            output=st.just(output),
            dead_letter_output=st.just(letters),
            statistics=st.builds(
                RequestStatistics,
                latency_ms=st.dictionaries(st.integers(1, 1 << 40), st.integers(1, 1 << 40)).map(Counter),
                **{field.name: COUNTS for field in dataclasses.fields(RequestStatistics) if field.name != "latency_ms"},
            ),
            run=names,
            provenance=st.builds(
                Provenance,
                space=st.text(max_size=20),
                settings=st.text(max_size=20),
                model=NAMES,
                server_version=NAMES,
                text_field=NAMES | st.lists(NAMES, min_size=1).map(tuple),
                embedding_field=NAMES,
                overlong=st.sampled_from(["truncate", "dead_letter"]),
            ),
        )
    )


SHARD = Shard(SOURCE, 1, 100, 200)
DEAD = WrittenFile("dead_letters/wiki-00001.ndjson", 5, "AAAAAA==")


@given(receipts())
def test_a_receipt_is_read_as_it_was_written(one: Receipt) -> None:
    assert decode_receipt(encode_receipt(one)) == one


def test_a_receipt_is_one_flat_object_for_people_and_programs() -> None:
    fields = json.loads(encode_receipt(receipt()))
    assert fields["output"] == {"path": "data/wiki-00000.ndjson", "bytes": 10, "crc32c": "AAAAAA=="}
    assert fields["latency_ms"] == {"16": 1, "23": 1}
    assert (fields["tokens"], fields["records"], fields["source_version"]) == (30, 3, SOURCE.version)


def _without(name: str) -> bytes:
    fields = json.loads(encode_receipt(receipt()))
    del fields[name]
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"null",
        b"[1]",
        b"5",
        encode_receipt(receipt())[:-10],
        *map(_without, ["shard", "output", "tokens", "latency_ms"]),
        encode_receipt(receipt()).replace(b'"crc32c"', b'"md5"'),
        encode_receipt(receipt()).replace(b'"16"', b'"x"'),
        encode_receipt(receipt()).replace(b'"space"', b'"spice"'),
        *(
            json.dumps(json.loads(encode_receipt(receipt())) | change).encode()
            for change in (
                {"shard": "../../wiki-00000"},
                {"shard": "wiki-00001"},
                {"shard": "wiki"},
                {"index": -1},
                {"index": 10**12},
                {"embedded": -3},
                {"embedded": 3.0},
                {"truncated": -1},
                {"truncated_at": [-1]},
                {"truncated_at": list(range(11))},
                {"truncated_at": 5},
                {"sent": True},
                {"records": 1 << 54},
                {"end": -1},
                {"tokens": 1 << 60},
                {"latency_ms": {"-1": 1}},
                {"latency_ms": {"1": None}},
                {"reasons": {"nonsense": 1}},
                {"reasons": {"empty_text": "1"}},
                {"started_at": -1},
                {"finished_at": 1e300},
                {"output": {"path": "_job/job.json", "bytes": 10, "crc32c": "AAAAAA=="}},
                {"output": {"path": "data/other-00000.ndjson", "bytes": 10, "crc32c": "AAAAAA=="}},
                {"output": {"path": "data/wiki-00000.ndjson", "bytes": -10, "crc32c": "AAAAAA=="}},
                {"dead_letter_output": {"path": "data/wiki-00000.ndjson", "bytes": 1, "crc32c": "AAAAAA=="}},
                {"text_field": [1]},
                {"settings": "x" * 1000},
            )
        ),
    ],
)
def test_what_is_no_receipt_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"receipt|literal"):
        decode_receipt(data)


@pytest.mark.parametrize(
    ("fields", "balances"),
    [
        ({}, True),
        ({"records": 4}, False),
        ({"embedded": 4}, False),
        ({"sent": 2}, False),
        ({"sent": 1, "reused": 1, "duplicates": 1}, True),
        ({"records": 4, "dead_letters": 1}, False),
        ({"records": 4, "reasons": {"empty_text": 1}}, False),
        ({"records": 6, "dead_letters": 3, "reasons": {"empty_text": 1, "invalid_json": 2}}, True),
    ],
)
def test_a_receipt_balances_if_nothing_is_lost(fields: dict[str, Any], balances: bool) -> None:
    assert receipt(**fields).balances is balances


@pytest.mark.parametrize(
    "change",
    [
        {"shard": "wiki-00002"},
        {"source_size": 251},
        {"source_version": SOURCE.version + "1"},
        {"start": 101},
        {"provenance": dataclasses.replace(MADE, space="another")},
        {"provenance": dataclasses.replace(MADE, settings="another")},
    ],
)
def test_a_receipt_is_of_one_shard_one_state_of_its_source_and_one_job(change: dict[str, Any]) -> None:
    assert receipt(1).is_of(SHARD, JOB)
    assert not receipt(1, **change).is_of(SHARD, JOB)


@pytest.mark.parametrize(
    ("sizes", "there"),
    [
        ({"data/wiki-00001.ndjson": 10, DEAD.path: 5, "other": 1}, True),
        ({"data/wiki-00001.ndjson": 10}, False),
        ({DEAD.path: 5}, False),
        ({"data/wiki-00001.ndjson": 9, DEAD.path: 5}, False),
        ({"data/wiki-00001.ndjson": 10, DEAD.path: 6}, False),
    ],
)
def test_the_files_of_a_receipt_must_have_its_sizes(sizes: dict[str, int], there: bool) -> None:
    files = {name: FileStat(name, size, 0.0, "1") for name, size in sizes.items()}
    assert receipt(1, dead_letter_output=DEAD).files_are_there(files) is there


def test_a_receipt_without_files_needs_none() -> None:
    assert receipt(output=None).files_are_there({})


def test_a_shard_is_done_when_everything_is_there(tmp_path: Path) -> None:
    output = folder(tmp_path)
    assert not is_done(output, SHARD, JOB)
    put(output, receipt(1, dead_letter_output=DEAD))
    assert is_done(output, SHARD, JOB)
    assert not is_done(output, dataclasses.replace(SHARD, index=2, start=200), JOB)
    assert not is_done(output, SHARD, "another job")
    changed = dataclasses.replace(SHARD, source=dataclasses.replace(SOURCE, version="another"))
    assert not is_done(output, changed, JOB)


@pytest.mark.parametrize("name", ["_job/receipts/wiki-00001.json", "data/wiki-00001.ndjson", DEAD.path])
@pytest.mark.parametrize("damage", ["gone", "empty", "longer"])
def test_a_shard_of_which_anything_is_missing_is_not_done(tmp_path: Path, name: str, damage: str) -> None:
    output, path = folder(tmp_path), tmp_path / name
    put(output, receipt(1, dead_letter_output=DEAD))
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else path.read_bytes() + b"x")
    assert not is_done(output, SHARD, JOB)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "data/../../x", "data//x", "data/\0"])
@pytest.mark.parametrize("field", ["shard", "output", "dead_letter_output"])
def test_what_names_a_file_outside_the_folder_is_no_receipt(field: str, name: str) -> None:
    value = name if field == "shard" else WrittenFile(name, 1, "AAAAAA==")
    with pytest.raises(ValueError, match="this is not a receipt"):
        decode_receipt(encode_receipt(receipt(**{field: value})))


def test_a_link_is_no_output(tmp_path: Path) -> None:
    output = folder(tmp_path)
    vouched = receipt(1, output=output.write("data/wiki-00001.ndjson", [b"0123456789"]), dead_letter_output=None)
    output.write(output.receipt(SHARD.name), [encode_receipt(vouched)])
    assert is_done(output, SHARD, vouched.job)
    (tmp_path / "data/wiki-00001.ndjson").rename(tmp_path / "theirs_")
    (tmp_path / "data/wiki-00001.ndjson").symlink_to("../theirs_")  # a name of ten bytes, as many as the file has
    assert not vouched.files_are_there(output.list())
    assert not is_done(output, SHARD, vouched.job)
