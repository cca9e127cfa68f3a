"""Request bodies in, response bodies out, as axum and serde read and write them."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from pipeline.embedded_tei.models.registry import Vectors
from pipeline.embedded_tei.refusals import PlainRefusal

_DIRECTIONS = {"right": False, "Right": False, "left": True, "Left": True}


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """The body of a request to `/embed` or `/v1/embeddings`.

    Attributes:
        inputs: texts.
        is_batch: whether they came as a list, which older versions of TEI treat otherwise than a single text.
        truncate: None for the server's setting.
        left: whether truncation cuts at the left.
        prompt_name: None for the server's setting.
        normalize: whether rows have unit norm.
        dimensions: how many components are kept; None for all.
        base64: whether rows are rendered in base64.
    """

    inputs: Sequence[str]
    is_batch: bool
    truncate: bool | None = None
    left: bool = False
    prompt_name: str | None = None
    normalize: bool = True
    dimensions: int | None = None
    base64: bool = False


@dataclass(frozen=True, slots=True)
class TokenizeRequest:
    """The body of a request to `/tokenize`."""

    inputs: Sequence[str]
    special_tokens: bool
    prompt_name: str | None


def parse_json(body: bytes) -> Body:
    """Parse a body; like serde's reader it ignores what follows the value.

    Raises:
        PlainRefusal: 400 if it is not JSON, 422 if it is not an object.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        value = _parse_first_value(body, error)
    if not isinstance(value, dict):
        raise _mismatch(f"invalid type: {_kind(value)}, expected struct", len(body))
    return Body(value, len(body))


def _parse_first_value(body: bytes, error: orjson.JSONDecodeError) -> Any:
    """Parse a value that trailing bytes follow, after the fast parser refused the body."""
    try:
        value, _ = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode(body.decode().lstrip(" \t\r\n"))
        orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)  # refuses lone surrogates, which serde refuses too
    except (ValueError, TypeError, RecursionError):
        message = f"Failed to parse the request body as JSON: {error.msg} at line {error.lineno} column {error.colno}"
        raise PlainRefusal(400, message) from None
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


@dataclass(frozen=True, slots=True)
class Body:
    """A JSON object and its length in bytes."""

    fields: Mapping[str, Any]
    size: int

    def required(self, name: str) -> Any:
        """Return a field that must be there."""
        if name not in self.fields:
            raise _mismatch(f"missing field `{name}`", self.size)
        return self.fields[name]

    def boolean(self, name: str, default: bool) -> bool:
        """Return a boolean that may be absent, but not null."""
        value = self.fields.get(name, default)
        if not isinstance(value, bool):
            raise _mismatch(f"{name}: invalid type: {_kind(value)}, expected a boolean", self.size)
        return value

    def optional_boolean(self, name: str) -> bool | None:
        """Return a boolean that may be absent or null."""
        return None if self.fields.get(name) is None else self.boolean(name, False)

    def optional_string(self, name: str) -> str | None:
        """Return a string that may be absent or null."""
        value = self.fields.get(name)
        if value is not None and not isinstance(value, str):
            raise _mismatch(f"{name}: invalid type: {_kind(value)}, expected a string", self.size)
        return value

    def optional_size(self, name: str) -> int | None:
        """Return an unsigned integer that may be absent or null."""
        value = self.fields.get(name)
        if value is not None and not (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64):
            raise _mismatch(f"{name}: invalid type: {_kind(value)}, expected usize", self.size)
        return value

    def choice(self, name: str, choices: Mapping[str, bool], default: str) -> bool:
        """Return what a string of an enum stands for; it may be absent, but not null."""
        value = self.fields.get(name, default)
        if not isinstance(value, str) or value not in choices:
            expected = " or ".join(f"`{choice}`" for choice in choices)
            raise _mismatch(f"{name}: unknown variant `{value}`, expected {expected}", self.size)
        return choices[value]

    def inputs(self, name: str) -> tuple[list[str], bool]:
        """Return a text or a list of texts, and whether it is a list. `[]` is one empty text, as it is to TEI."""
        value = self.required(name)
        if isinstance(value, str) or value == []:
            return [value or ""], False
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value, True
        raise _mismatch(f"{name}: data did not match any variant of untagged enum Input", self.size)


def parse_embed(body: Body) -> EmbedRequest:
    """Read `/embed`'s fields; unknown ones are ignored."""
    inputs, is_batch = body.inputs("inputs")
    return EmbedRequest(
        inputs=inputs,
        is_batch=is_batch,
        truncate=body.optional_boolean("truncate"),
        left=body.choice("truncation_direction", _DIRECTIONS, "right"),
        prompt_name=body.optional_string("prompt_name"),
        normalize=body.boolean("normalize", True),
        dimensions=body.optional_size("dimensions"),
    )


def parse_openai(body: Body) -> EmbedRequest:
    """Read `/v1/embeddings`' fields; `model` and `user` are checked and ignored."""
    inputs, is_batch = body.inputs("input")
    body.optional_string("model")
    body.optional_string("user")
    return EmbedRequest(
        inputs=inputs,
        is_batch=is_batch,
        dimensions=body.optional_size("dimensions"),
        base64=body.choice("encoding_format", {"float": False, "base64": True}, "float"),
    )


def parse_tokenize(body: Body) -> TokenizeRequest:
    """Read `/tokenize`'s fields."""
    value = body.required("inputs")
    inputs = [value] if isinstance(value, str) else value
    if not isinstance(inputs, list) or not all(isinstance(item, str) for item in inputs):
        raise _mismatch("inputs: data did not match any variant of untagged enum TokenizeInput", body.size)
    return TokenizeRequest(inputs, body.boolean("add_special_tokens", True), body.optional_string("prompt_name"))


def render_rows(vectors: Vectors) -> bytes:
    """Return `/embed`'s body: shortest decimals of the float32, null for NaN and infinities."""
    return orjson.dumps(vectors, option=orjson.OPT_SERIALIZE_NUMPY)


def render_each(vectors: Vectors) -> list[bytes]:
    """Return every row as a JSON list."""
    return [orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) for row in vectors]


def render_base64(vectors: Vectors) -> list[bytes]:
    """Return every row as a JSON string: base64 of little-endian float32."""
    return [b'"' + base64.b64encode(row) + b'"' for row in vectors.astype("<f4", copy=False)]


def render_openai(rows: Sequence[bytes], model: str, tokens: int) -> bytes:
    """Return `/v1/embeddings`' body around rows that are JSON already."""
    data = b",".join(
        [b'{"object":"embedding","embedding":%b,"index":%d}' % (row, index) for index, row in enumerate(rows)]
    )
    tail = orjson.dumps({"model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
    return b'{"object":"list","data":[%b],%b' % (data, tail[1:])


def normalized(vectors: Vectors) -> Vectors:
    """Scale rows to unit norm, summing in float64 as TEI does; a row of zeros becomes NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 1.0 / np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=1, keepdims=True))
        rows: Vectors = vectors * scale.astype(np.float32)
    return rows


def _mismatch(message: str, size: int) -> PlainRefusal:
    whole = f"Failed to deserialize the JSON body into the target type: {message} at line 1 column {size}"
    return PlainRefusal(422, whole)


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return f"boolean `{str(value).lower()}`"
        case int():
            return f"integer `{value}`"
        case float():
            return f"floating point `{value}`"
        case str():
            return f"string {json.dumps(value, ensure_ascii=False)}"
        case list():
            return "sequence"
        case _:
            return "map"
