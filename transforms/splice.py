"""A vector into its source line, without touching any other byte. Plain functions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

import orjson

from transforms.records import Document, Vectors

# A JSON string, with the colon that makes it a key, or a bracket; numbers, literals and commas lie between the matches.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"(\s*:)?|[{}\[\]]', re.DOTALL)
_LITERAL = re.compile(rb"[^\s,}\]]+")
_SPACE = re.compile(rb"\s*")
_ROWS_AT_ONCE = 64  # of the vectors' text: enough to share the cost of a call, few enough to stay in the cache


def json_key(field: str) -> bytes:
    """Return a field's name as a JSON string, quotes included."""
    return orjson.dumps(field)


def split_at_vector(line: bytes, key: bytes) -> tuple[bytes, bytes]:
    """Return what stands before and behind the vector in a line's output.

    A line without the field gets it as its last one; a line that has it, at its top level, keeps its place and loses
    its value (of a doubled field the last, which is the one that parsers believe).

    Args:
        line: a JSON object with at least one field, white space around it allowed.
        key: the embedding field's name as `json_key` gives it.
    """
    # A name can also be written with \u escapes; only then is it not found as it stands.
    if key in line or b"\\u" in line:
        span = _last_value_of(line, key)
        if span is not None:
            return line[: span[0]], line[span[1] :]
    end = line.rindex(b"}")
    return line[:end] + b"," + key + b":", line[end:]


def _last_value_of(line: bytes, key: bytes) -> tuple[int, int] | None:
    """Return where the value of the object's last field of this name begins and ends."""
    depth, behind_key = 0, None
    for token in _TOKEN.finditer(line):
        first = line[token.start()]
        if first == 0x22:  # a quotation mark
            if depth == 1 and token[1] is not None and _is_key(token[0][: -len(token[1])], key):
                behind_key = token.end()
        else:
            depth += 1 if first in b"{[" else -1
    if behind_key is None:
        return None
    start = _end_of(_SPACE, line, behind_key)
    return start, _value_end(line, start)


def _is_key(token: bytes, key: bytes) -> bool:
    # Not orjson: it refuses the escape of a lone surrogate, which a name may hold.
    return token == key or (b"\\" in token and bool(json.loads(token) == json.loads(key)))


def _value_end(line: bytes, start: int) -> int:
    if line[start] not in b'{["':
        return _end_of(_LITERAL, line, start)
    depth = 0
    for token in _TOKEN.finditer(line, start):
        first = line[token.start()]
        if first != 0x22:
            depth += 1 if first in b"{[" else -1
        if depth == 0:
            return token.end()
    raise ValueError("the line is no JSON object")


def _end_of(pattern: re.Pattern[bytes], line: bytes, start: int) -> int:
    match = pattern.match(line, start)
    return start if match is None else match.end()


def encode_vectors(vectors: Vectors) -> Iterator[bytes]:
    """Yield each row as a JSON array of the shortest decimals that give back the same float32.

    Args:
        vectors: float32[n, dimensions], finite, C-contiguous; dimensions > 0.
    """
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        rows = orjson.dumps(vectors[start : start + _ROWS_AT_ONCE], option=orjson.OPT_SERIALIZE_NUMPY)
        yield from rows[1:-1].replace(b"],[", b"]\n[").split(b"\n")


def embedded_lines(documents: Sequence[Document], vectors: Vectors, key: bytes) -> Iterator[bytes]:
    """Yield each document's line with its vector, newline included.

    Args:
        documents: n documents.
        vectors: float32[n, dimensions].
        key: the embedding field's name as `json_key` gives it.
    """
    for document, vector in zip(documents, encode_vectors(vectors), strict=True):
        before, behind = split_at_vector(document.line, key)
        yield b"".join((before, vector, behind, b"\n"))
