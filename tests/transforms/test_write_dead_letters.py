from __future__ import annotations

import base64
import json
from pathlib import Path

import apache_beam as beam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.matchers import local_pipeline
from tests.shards import SOURCE, folder, letter
from transforms.elements import DeadLetter, Reason, Shard, ShardDeadLetters, Stage
from transforms.write_dead_letters import (
    WriteDeadLetters,
    decode_dead_letter,
    encode_dead_letter,
)

LETTERS = st.builds(
    DeadLetter,
    source=st.text(),
    offset=st.integers(0, 1 << 50),
    stage=st.sampled_from(Stage),
    reason=st.sampled_from(Reason),
    detail=st.text(),
    line=st.binary() | st.text().map(str.encode),
    http_status=st.none() | st.integers(100, 599),
    attempts=st.integers(0, 99),
)


@given(LETTERS)
def test_a_dead_letter_is_one_line_and_is_read_as_it_was_written(one: DeadLetter) -> None:
    line = encode_dead_letter(one)
    assert line.index(b"\n") == len(line) - 1
    assert decode_dead_letter(line) == one
    assert decode_dead_letter(line[:-1]) == one


def test_the_fields_of_a_dead_letter() -> None:
    text = "\u0643\u062a\u0627\u0628"
    one = letter(7, text.encode(), stage=Stage.EMBED, reason=Reason.REJECTED_BY_ENDPOINT, http_status=422, attempts=3)
    assert json.loads(encode_dead_letter(one)) == {
        "source": SOURCE.path,
        "offset": 7,
        "stage": "embed",
        "reason": "rejected_by_endpoint",
        "detail": one.detail,
        "http_status": 422,
        "attempts": 3,
        "line": text,
    }


def test_a_line_that_is_not_utf8_is_kept_as_base64() -> None:
    fields = json.loads(encode_dead_letter(letter(0, b'"\xff"\r')))
    assert "line" not in fields
    assert base64.b64decode(fields["line_base64"]) == b'"\xff"\r'


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"5",
        b"[]",
        b"{}",
        b"{",
        encode_dead_letter(letter(0)).replace(b'"line":', b'"lime":'),
        encode_dead_letter(letter(0)).replace(b'"offset":', b'"offsets":'),
        encode_dead_letter(letter(0)).replace(b'"offset":0', b'"offset":"0"'),
        encode_dead_letter(letter(0)).replace(b'"attempts":0', b'"attempts":null'),
        encode_dead_letter(letter(0)).replace(b"missing_text", b"no_such_reason"),
        encode_dead_letter(letter(0)).replace(b'"read"', b'"write"'),
        encode_dead_letter(letter(0)).replace(b'"line":"{}"', b'"line":5'),
        encode_dead_letter(letter(0, b"\xff")).replace(b'"/w=="', b'"/"'),
    ],
)
def test_what_is_no_dead_letter_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="not a dead letter"):
        decode_dead_letter(line)


def test_each_shard_gets_its_file(tmp_path: Path) -> None:
    shards = [
        ShardDeadLetters(Shard(SOURCE, index, 100 * index, 100 * index + 100), (letter(5), letter(9, b"\xff")))
        for index in range(2)
    ]
    with local_pipeline() as pipeline:
        _ = pipeline | beam.Create(shards) | WriteDeadLetters(folder(tmp_path))
    files = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    expected = b"".join(map(encode_dead_letter, shards[0].dead_letters))
    assert files == {"dead_letters/wiki-00000.ndjson": expected, "dead_letters/wiki-00001.ndjson": expected}
