from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import BOM
from transforms.elements import DeadLetter, Document, Reason, Stage
from transforms.ndjson.lines import Line
from transforms.ndjson.parse import LONG_LINE_KEPT_BYTES, is_blank, parse_line, parse_object

MOST = 1 << 20
SOURCE = "/in/wiki.ndjson"


def parsed(content: bytes, text_field: str = "content", offset: int = 7) -> Document | DeadLetter | None:
    return parse_line(Line(offset, content, len(content)), SOURCE, text_field, "embedding", MOST)


@pytest.mark.parametrize(
    ("content", "reason", "detail"),
    [
        (b'{"content": "\xff"}', Reason.INVALID_UTF8, "byte 13 of the line"),
        (b"\xff", Reason.INVALID_UTF8, "byte 0 of the line"),
        (b'{"content": "\xed\xa0\x80"}', Reason.INVALID_UTF8, "byte 13"),  # a surrogate is no UTF-8
        (b'{"content": "a"', Reason.INVALID_JSON, ""),
        (b'{"content": "a"} x', Reason.INVALID_JSON, ""),
        (b"{'content': 'a'}", Reason.INVALID_JSON, ""),
        (b'{"content": NaN}', Reason.MISSING_TEXT, "holds a number"),
        (b'{"content": "a\tb"}', Reason.INVALID_JSON, ""),
        (b'{"content": "a\x00b"}', Reason.INVALID_JSON, ""),
        (b'{"content":' + b"[" * 200_000, Reason.INVALID_JSON, ""),
        (b"[" * 200_000 + b"]" * 200_000, Reason.INVALID_JSON, ""),
        (b"{}{}", Reason.INVALID_JSON, ""),
        (b"[1]", Reason.NOT_AN_OBJECT, "an array"),
        (b'"content"', Reason.NOT_AN_OBJECT, "a text"),
        (b"1", Reason.NOT_AN_OBJECT, "a number"),
        (b"true", Reason.NOT_AN_OBJECT, "a boolean"),
        (b"null", Reason.NOT_AN_OBJECT, "null"),
        (b"{}", Reason.MISSING_TEXT, "no field 'content'"),
        (b'{"Content": "a"}', Reason.MISSING_TEXT, "no field 'content'"),
        (b'{"content": null}', Reason.MISSING_TEXT, "holds null, not a text"),
        (b'{"content": 5}', Reason.MISSING_TEXT, "holds a number, not a text"),
        (b'{"content": []}', Reason.MISSING_TEXT, "holds an array, not a text"),
        (b'{"content": ["a", 1]}', Reason.MISSING_TEXT, "holds an array, not a text"),
        (b'{"content": ["", " "]}', Reason.EMPTY_TEXT, "empty"),
        (b'{"content": {"content": "a"}}', Reason.MISSING_TEXT, "holds an object, not a text"),
        (b'{"content": "a", "content": false}', Reason.MISSING_TEXT, "holds a boolean, not a text"),
        (b'{"content": ""}', Reason.EMPTY_TEXT, "empty"),
        ('{"content": " \\n\u00a0\u2003"}'.encode(), Reason.EMPTY_TEXT, "blank"),
    ],
)
def test_a_line_that_is_no_document_says_why(content: bytes, reason: Reason, detail: str) -> None:
    letter = parsed(content)
    assert isinstance(letter, DeadLetter)
    assert (letter.reason, letter.stage, letter.source, letter.offset) == (reason, Stage.READ, SOURCE, 7)
    assert (letter.line, letter.http_status, letter.attempts) == (content, None, 0)
    assert detail in letter.detail
    assert letter.detail


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'{"content":"a"}', "a"),
        (BOM + b'{"content":"a"}', "a"),
        (b'{"content":["a",""," ","b"]}', "a\nb"),
        (b' \t{ "content" : "a" } \r', "a"),
        (b'{"content":"a","content":"b"}', "b"),
        (b'{"c\\u006fntent":"a"}', "a"),
        (b'{"content":"a","n":18446744073709551616}', "a"),
        (b'{"content":"a","n":' + b"9" * 10_000 + b"}", "a"),
        (b'{"content":"a","n":1e999}', "a"),
        (b'{"content":"\\ud83c\\udf0d"}', "\U0001f30d"),
        (b'{"content":"a\\ud800"}', "a\ud800"),
        (b'{"content":"a","\\udc00":"\\ud800"}', "a"),
        ('{"content":"\u0643\u062a\u0627\u0628"}'.encode(), "\u0643\u062a\u0627\u0628"),
        (b'{"content":"a\\u0000b"}', "a\x00b"),
        (b'{"content":" a "}', " a "),
    ],
)
def test_a_document_keeps_its_line_and_has_its_text(content: bytes, text: str) -> None:
    assert parsed(content) == Document(7, content, text, False)


@pytest.mark.parametrize("constant", [b"NaN", b"Infinity", b"-Infinity"])
def test_what_python_writes_and_json_lacks_is_noted(constant: bytes) -> None:
    content = b'{"content":"NaN","x":[{"y":%s}]}' % constant
    assert parsed(content) == Document(7, content, "NaN", False, has_nan=True)


def test_integers_stay_integers_beside_what_json_lacks() -> None:
    record, has_nan = parse_object(b'{"id":1234567890123456789,"far":-1,"huge":123456789012345678901,"x":NaN}')
    assert has_nan
    assert [(type(record[name]), record[name]) for name in ("id", "far", "huge")] == [
        (int, 1234567890123456789),
        (int, -1),
        (float, 123456789012345678901.0),
    ]


@pytest.mark.parametrize(
    ("content", "outcome"),
    [
        (b'{"meta":{"body":"a"}}', "a"),
        (b'{"meta":{"body":{"content":"a"}}}', Reason.MISSING_TEXT),
        (b'{"meta":"a"}', Reason.MISSING_TEXT),
        (b'{"meta":null}', Reason.MISSING_TEXT),
        (b'{"meta":[{"body":"a"}]}', Reason.MISSING_TEXT),
        (b'{"meta.body":"a"}', "a"),
        (b'{"meta":{"body":"b"},"meta.body":"a"}', "a"),
        (b'{"meta":{"body":" "}}', Reason.EMPTY_TEXT),
    ],
)
def test_a_dotted_field_is_a_nested_one(content: bytes, outcome: str | Reason) -> None:
    record = parsed(content, "meta.body")
    assert (record.text if isinstance(record, Document) else record and record.reason) == outcome


@pytest.mark.parametrize("content", [b"", b"\r", b" \t ", BOM, BOM + b"\r"])
def test_a_blank_line_is_no_record(content: bytes) -> None:
    assert parsed(content, offset=0) is None
    assert is_blank(Line(0, content, len(content)))


@pytest.mark.parametrize(
    ("content", "outcome"),
    [
        (b'{"title":"a","text":"b"}', "a\nb"),
        (b'{"text":"b","title":"a"}', "a\nb"),
        (b'{"title":"a","text":" "}', "a"),
        (b'{"title":null,"text":"b"}', "b"),
        (b'{"text":"b"}', "b"),
        (b'{"title":"a","text":["b","c"]}', "a\nb\nc"),
        (b'{"title":"","other":"b"}', Reason.EMPTY_TEXT),
        (b'{"text":"","other":"b"}', Reason.EMPTY_TEXT),
        (b'{"other":"b"}', Reason.MISSING_TEXT),
    ],
)
def test_several_fields_are_joined_in_their_order(content: bytes, outcome: str | Reason) -> None:
    record = parse_line(Line(0, content, len(content)), SOURCE, ("title", "text"), "embedding", MOST)
    assert (record.text if isinstance(record, Document) else record and record.reason) == outcome


def test_a_field_name_with_a_comma_gets_a_hint() -> None:
    letter = parsed(b'{"title":"a"}', "title,text")
    assert isinstance(letter, DeadLetter)
    assert letter.detail == "there is no field 'title,text'. For several fields, repeat --text_field"
    assert parsed(b'{"title,text":"a"}', "title,text") == Document(7, b'{"title,text":"a"}', "a", False)


def test_a_byte_order_mark_where_a_file_begins_stays_in_the_line() -> None:
    content = BOM + b'{"content":"a"}'
    assert parsed(content, offset=0) == Document(0, content, "a", False)


def test_a_line_that_is_too_long_keeps_its_beginning() -> None:
    content = b" " * MOST
    assert parse_line(Line(3, content, MOST), SOURCE, "content", "embedding", MOST) is None
    letter = parse_line(Line(3, content, MOST + 1), SOURCE, "content", "embedding", MOST)
    assert isinstance(letter, DeadLetter)
    assert letter.reason is Reason.LINE_TOO_LONG
    assert letter.line == b" " * LONG_LINE_KEPT_BYTES
    assert f"{MOST + 1} bytes, more than {MOST}" in letter.detail


def test_a_line_may_have_just_the_bytes_that_are_allowed() -> None:
    content = b'{"content":"a"}'
    line = Line(0, content, len(content))
    assert isinstance(parse_line(line, SOURCE, "content", "embedding", len(content)), Document)
    assert isinstance(parse_line(line, SOURCE, "content", "embedding", len(content) - 1), DeadLetter)


def test_the_reason_says_nothing_of_what_the_line_holds() -> None:
    for content in (
        b'{"content":["SECRET",1]}',
        b'{"SECRET":1}',
        b'{"content":"a","SECRET":tru}',
        b'"SECRET"',
        b"SECRET",
    ):
        letter = parsed(content)
        assert isinstance(letter, DeadLetter)
        assert "SECRET" not in letter.detail


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["content", "a", "\u00e9"]), _JSON), st.booleans())
def test_a_record_is_what_the_standard_library_says(record: dict[str, Any], ascii_only: bool) -> None:
    content = json.dumps(record, ensure_ascii=ascii_only).encode()
    outcome = parsed(content)
    text = record.get("content")
    if isinstance(text, list) and text and all(isinstance(part, str) for part in text):
        text = "\n".join(part for part in text if part.strip())
    if isinstance(text, str) and text.strip():
        assert outcome == Document(7, content, text, False)
    else:
        assert isinstance(outcome, DeadLetter)
        blank = isinstance(text, str)
        assert outcome.reason is (Reason.EMPTY_TEXT if blank else Reason.MISSING_TEXT)


@given(st.binary(max_size=40))
def test_no_line_raises(content: bytes) -> None:
    record = parsed(content)
    assert record is None or isinstance(record, DeadLetter)
    assert record is None or record.line == content
