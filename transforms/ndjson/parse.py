"""One line to one document, or to the reason why it is none. Plain functions."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import orjson

from transforms.elements import DeadLetter, Document, Reason, Stage
from transforms.ndjson.lines import Line

BOM = b"\xef\xbb\xbf"
# A dead letter of an endless line keeps its beginning only: the source and the offset say where the whole is.
LONG_LINE_KEPT_BYTES = 1 << 16


class Unusable(Exception):
    """A line that is no document, and why."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def parse_line(
    line: Line, source: str, text_field: str, embedding_field: str, max_line_bytes: int
) -> Document | DeadLetter | None:
    """Return the document or the dead letter of one line; None for a blank line, which is no record.

    Args:
        line: as cut; a byte order mark at the beginning of the source is no part of its JSON.
        source: the source's path, for a dead letter.
        text_field: the field to embed; `meta.body` is the field `body` of the object in the field `meta`.
        embedding_field: the field that gets the vector.
        max_line_bytes: a longer line is a dead letter.
    """
    try:
        if line.length > max_line_bytes:
            raise Unusable(
                Reason.LINE_TOO_LONG,
                f"the line has {line.length} bytes, more than {max_line_bytes}; only its beginning is kept here",
            )
        record = _parse_object(_json_of(line))
        return Document(line.offset, line.content, _text_of(record, text_field), embedding_field in record)
    except Unusable as unusable:
        if is_blank(line):
            return None
        kept = line.content[:LONG_LINE_KEPT_BYTES] if unusable.reason is Reason.LINE_TOO_LONG else line.content
        return DeadLetter(source, line.offset, Stage.READ, unusable.reason, unusable.detail, kept)


def is_blank(line: Line) -> bool:
    """Whether a line is no record: nothing but white space, or a byte order mark alone."""
    return line.length == len(line.content) and not _json_of(line).strip()


def _json_of(line: Line) -> bytes:
    """Return a line without the byte order mark that a source may begin with."""
    return line.content[len(BOM) :] if line.offset == 0 and line.content.startswith(BOM) else line.content


def _parse_object(content: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        value = _parse_leniently(content, error)
    if not isinstance(value, dict):
        raise Unusable(Reason.NOT_AN_OBJECT, f"the line holds {_kind(value)}, not an object")
    return value


def _parse_leniently(content: bytes, error: orjson.JSONDecodeError) -> Any:
    """Parse what orjson refuses although the grammar of JSON allows it, such as a lone surrogate or a huge number."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as invalid:
        raise Unusable(Reason.INVALID_UTF8, f"byte {invalid.start} of the line: {invalid.reason}") from error
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_int=float)
    except (ValueError, RecursionError):
        raise Unusable(Reason.INVALID_JSON, str(error)) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _text_of(record: dict[str, Any], text_field: str) -> str:
    value: Any = record
    for name in text_field.split("."):
        if not isinstance(value, dict) or name not in value:
            raise Unusable(Reason.MISSING_TEXT, f"there is no field {text_field!r}")
        value = value[name]
    if not isinstance(value, str):
        raise Unusable(Reason.MISSING_TEXT, f"the field {text_field!r} holds {_kind(value)}, not a text")
    if not value.strip():
        raise Unusable(Reason.EMPTY_TEXT, f"the field {text_field!r} is {'blank' if value else 'empty'}")
    return value


def _kind(value: object) -> str:
    """Name the kind of a JSON value, without its content."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "an array", dict: "an object"}
    return names.get(type(value), "null")
