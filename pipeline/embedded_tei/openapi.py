"""The API in OpenAPI's terms, written down so that it can be tested; what TEI's own description gets wrong is right.

Bodies that are no JSON, or of the wrong type, are answered in text/plain; unknown fields are ignored everywhere.
"""

from __future__ import annotations

from typing import Any

from pipeline.embedded_tei.limits import ServerLimits
from pipeline.embedded_tei.models.registry import EmbeddingModel

_Schema = dict[str, Any]

_ID: _Schema = {"type": "integer", "minimum": 0, "maximum": 4294967295}
_IDS: _Schema = {"type": "array", "items": _ID, "minItems": 1}
_TEXT: _Schema = {"type": "string", "minLength": 1}
_NULLABLE_STRING: _Schema = {"type": ["string", "null"]}
_ITEM: _Schema = {"anyOf": [_TEXT, _IDS]}
_DIRECTION: _Schema = {"type": "string", "enum": ["left", "right", "Left", "Right"]}
_TIMES = ("x-compute-time", "x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time")
_COUNTS = ("x-compute-characters", "x-compute-tokens")


def describe(model: EmbeddingModel, limits: ServerLimits) -> _Schema:
    """Gives the description that `/api-doc/openapi.json` serves."""
    batch = limits.max_client_batch_size
    inputs = {"anyOf": [_TEXT, _IDS, _list(_ITEM, batch)]}
    prompt = {"enum": [*model.prompts, None]}
    dimensions = {"type": ["integer", "null"], "minimum": 1, "maximum": model.dimensions}
    rows, openai_reply = _rows(model.dimensions), _openai_reply(model.dimensions)
    embed = _operation(_embed_request(inputs, prompt, dimensions), rows, _NATIVE_ERROR, _HEADERS)
    openai = _operation(_openai_request(inputs, dimensions), openai_reply, _OPENAI_ERROR, _HEADERS)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Text Embeddings Inference", "version": limits.version},
        "paths": {
            "/embed": {"post": embed},
            "/v1/embeddings": {"post": openai},
            "/tokenize": {"post": _operation(_tokenize_request(batch, prompt), _TOKENS, _NATIVE_ERROR)},
            "/decode": {"post": _operation(_decode_request(batch), _TEXTS, _NATIVE_ERROR)},
            "/info": {"get": {"responses": {"200": _json("what is served", _info()), "401": _NO_KEY}}},
            "/health": {"get": {"responses": {"200": {"description": "healthy"}, "503": _json("not", _NATIVE_ERROR)}}},
            "/metrics": {"get": {"responses": {"200": {"description": "Prometheus", "content": {"text/plain": {}}}}}},
        },
    }


def _operation(request: _Schema, reply: _Schema, error: _Schema, headers: _Schema | None = None) -> _Schema:
    plain = {"text/plain": {"schema": {"type": "string"}}}
    either = {"application/json": {"schema": error}, **plain}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": {
            "200": {**_json("done", reply), "headers": headers or {}},
            "400": {"description": "empty input (JSON), or no JSON (text)", "content": either},
            "401": _NO_KEY,
            "413": {"description": "body too long (text), or invalid before 1.9 (JSON)", "content": either},
            "415": {"description": "another content type", "content": plain},
            "422": {"description": "invalid input (JSON), or of the wrong type (text)", "content": either},
            "424": _json("the device failed", error),
            "429": _json("no permit is free", error),
        },
    }


def _json(description: str, schema: _Schema) -> _Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _object(required: _Schema, optional: _Schema | None = None) -> _Schema:
    return {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}


def _list(items: _Schema, most: int) -> _Schema:
    return {"type": "array", "items": items, "minItems": 1, "maxItems": most}


def _embed_request(inputs: _Schema, prompt: _Schema, dimensions: _Schema) -> _Schema:
    optional = {
        "truncate": {"type": ["boolean", "null"]},
        "truncation_direction": _DIRECTION,
        "prompt_name": prompt,
        "normalize": {"type": "boolean"},
        "dimensions": dimensions,
    }
    return _object({"inputs": inputs}, optional)


def _openai_request(inputs: _Schema, dimensions: _Schema) -> _Schema:
    optional = {
        "model": _NULLABLE_STRING,
        "user": _NULLABLE_STRING,
        "encoding_format": {"type": "string", "enum": ["float", "base64"]},
        "dimensions": dimensions,
    }
    return _object({"input": inputs}, optional)


def _tokenize_request(batch: int, prompt: _Schema) -> _Schema:
    optional = {"add_special_tokens": {"type": "boolean"}, "prompt_name": prompt}
    return _object({"inputs": {"anyOf": [_TEXT, _list(_TEXT, batch)]}}, optional)


def _decode_request(batch: int) -> _Schema:
    ids = {"anyOf": [_IDS, _list(_IDS, batch)]}
    return _object({"ids": ids}, {"skip_special_tokens": {"type": "boolean"}})


def _row(dimensions: int) -> _Schema:
    return {"type": "array", "items": {"type": ["number", "null"]}, "minItems": 1, "maxItems": dimensions}


def _rows(dimensions: int) -> _Schema:
    return {"type": "array", "items": _row(dimensions), "minItems": 1}


def _openai_reply(dimensions: int) -> _Schema:
    item = _object(
        {
            "object": {"const": "embedding"},
            "embedding": {"anyOf": [_row(dimensions), {"type": "string", "contentEncoding": "base64"}]},
            "index": {"type": "integer", "minimum": 0},
        }
    )
    count: _Schema = {"type": "integer", "minimum": 0}
    return _object(
        {
            "object": {"const": "list"},
            "data": {"type": "array", "items": item, "minItems": 1},
            "model": {"type": "string"},
            "usage": _object({"prompt_tokens": count, "total_tokens": count}),
        }
    )


def _info() -> _Schema:
    count: _Schema = {"type": "integer", "minimum": 1}
    return _object(
        {
            "model_id": {"type": "string"},
            "model_sha": _NULLABLE_STRING,
            "model_dtype": {"type": "string"},
            "model_type": {"type": "object", "minProperties": 1, "maxProperties": 1},
            "max_concurrent_requests": count,
            "max_input_length": count,
            "max_batch_tokens": count,
            "max_batch_requests": {"type": ["integer", "null"], "minimum": 1},
            "max_client_batch_size": count,
            "auto_truncate": {"type": "boolean"},
            "tokenization_workers": count,
            "version": {"type": "string"},
            "sha": _NULLABLE_STRING,
            "docker_label": _NULLABLE_STRING,
        },
        {"served_model_name": {"type": "string"}},
    )


_NO_KEY: _Schema = {"description": "no key, or a wrong one"}
_NATIVE_ERROR = _object({"error": {"type": "string"}, "error_type": {"type": "string"}})
_OPENAI_ERROR = _object({"message": {"type": "string"}, "code": {"type": "integer"}, "type": {"type": "string"}})
_OFFSET: _Schema = {"type": ["integer", "null"], "minimum": 0}
_TOKEN = _object(
    {"id": _ID, "text": {"type": "string"}, "special": {"type": "boolean"}, "start": _OFFSET, "stop": _OFFSET}
)
_TOKENS: _Schema = {"type": "array", "items": {"type": "array", "items": _TOKEN}}
_TEXTS: _Schema = {"type": "array", "items": {"type": "string"}}
_HEADERS: _Schema = {
    "x-compute-type": {"required": True, "schema": {"type": "string"}},
    **{name: {"required": True, "schema": {"type": "integer", "minimum": 0}} for name in (*_TIMES, *_COUNTS)},
}
