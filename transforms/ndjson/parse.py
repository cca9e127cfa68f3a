"""One line to one document, or to the reason why it is none. Plain functions."""

from __future__ import annotations

import json
from typing import Any

import orjson

from transforms.elements import DeadLetter, Document, Reason, Stage
from transforms.ndjson.lines import Line

BOM = b"\xef\xbb\xbf"
# A dead letter of an endless line keeps its beginning only: the source and the offset say where the whole is.
LONG_LINE_KEPT_BYTES = 1 << 16

TextField = str | tuple[str, ...]


class Unusable(Exception):
    """A line that is no document, and why."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def parse_line(
    line: Line, source: str, text_field: TextField, embedding_field: str, max_line_bytes: int
) -> Document | DeadLetter | None:
    """Return the document or the dead letter of one line; None for a blank line, which is no record.

    Args:
        line: as cut; a byte order mark at its beginning, as concatenated files have, is no part of its JSON.
        source: the source's path, for a dead letter.
        text_field: the field to embed; `meta.body` is the field of that name, or else the field `body` of the object
            in the field `meta`. Of several fields, those that are not blank are joined by newlines, in this order.
        embedding_field: the field that gets the vector.
        max_line_bytes: a longer line is a dead letter.
    """
    try:
        if line.length > max_line_bytes:
            raise Unusable(
                Reason.LINE_TOO_LONG,
                f"the line has {line.length} bytes, more than {max_line_bytes}; only its beginning is kept here",
            )
        record, has_nan = parse_object(_json_of(line))
        return Document(line.offset, line.content, text_of(record, text_field), embedding_field in record, has_nan)
    except Unusable as unusable:
        if is_blank(line):
            return None
        kept = line.content[:LONG_LINE_KEPT_BYTES] if unusable.reason is Reason.LINE_TOO_LONG else line.content
        return DeadLetter(source, line.offset, Stage.READ, unusable.reason, unusable.detail, kept)


def is_blank(line: Line) -> bool:
    """Return whether a line is no record: nothing but white space, or a byte order mark alone."""
    return line.length == len(line.content) and not _json_of(line).strip()


def _json_of(line: Line) -> bytes:
    """Return a line without the byte order mark that it may begin with."""
    return line.content.removeprefix(BOM)


def parse_object(content: bytes) -> tuple[dict[str, Any], bool]:
    """Return the object that a line holds, and whether NaN or Infinity is in it.

    Raises:
        Unusable: if it holds anything else, saying why.
    """
    has_nan = False
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        value, has_nan = _parse_leniently(content, error)
    if not isinstance(value, dict):
        raise Unusable(Reason.NOT_AN_OBJECT, f"the line holds {_kind(value)}, not an object")
    return value, has_nan


def _parse_leniently(content: bytes, error: orjson.JSONDecodeError) -> tuple[Any, bool]:
    """Parse what orjson refuses: lone surrogates and huge numbers, which JSON allows, and NaN, which Python writes."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as invalid:
        raise Unusable(Reason.INVALID_UTF8, f"byte {invalid.start} of the line: {invalid.reason}") from error
    has_nan = False

    def constant(name: str) -> float:
        nonlocal has_nan
        has_nan = True
        return float(name)

    try:
        value = json.loads(text, parse_int=_integer, parse_constant=constant)
    except (ValueError, RecursionError):
        raise Unusable(Reason.INVALID_JSON, str(error)) from error
    return value, has_nan


def _integer(digits: str) -> int | float:
    """Return an integer of at most 64 bits as such, and a longer one as a float, as orjson does."""
    value = float(digits)
    return int(digits) if abs(value) < 1 << 64 else value


def text_of(record: dict[str, Any], text_field: TextField) -> str:
    """Return the text to embed.

    Raises:
        Unusable: if there is none, saying why.
    """
    if isinstance(text_field, str):
        return _text_in(record, text_field)
    texts, problem = [], None
    for field in text_field:
        try:
            texts.append(_text_in(record, field))
        except Unusable as unusable:
            # A field that is blank explains an empty text better than one that is not there.
            if problem is None or unusable.reason is Reason.EMPTY_TEXT:
                problem = unusable
    if problem is not None and not texts:
        raise problem
    return "\n".join(texts)


def _text_in(record: dict[str, Any], field: str) -> str:
    # A key that holds a dot itself is meant before the path that it spells.
    value = record[field] if field in record else _at_path(record, field)
    if type(value) is list and value and all(type(part) is str for part in value):
        value = "\n".join(part for part in value if part.strip())
    if not isinstance(value, str):
        raise Unusable(Reason.MISSING_TEXT, f"the field {field!r} holds {_kind(value)}, not a text")
    if not value or value.isspace():
        raise Unusable(Reason.EMPTY_TEXT, f"the field {field!r} is {'blank' if value else 'empty'}")
    return value


def value_of(record: dict[str, Any], field: str) -> Any:
    """Return the value of the field of just this name, or else of the path that its dots spell; None for no field."""
    if field in record:
        return record[field]
    try:
        return _at_path(record, field)
    except Unusable:
        return None


def _at_path(record: dict[str, Any], path: str) -> Any:
    value: Any = record
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            hint = ". For several fields, repeat --text_field" if "," in path else ""
            raise Unusable(Reason.MISSING_TEXT, f"there is no field {path!r}{hint}")
        value = value[name]
    return value


def _kind(value: object) -> str:
    """Name the kind of a JSON value, without its content."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "an array", dict: "an object"}
    return names.get(type(value), "null")
