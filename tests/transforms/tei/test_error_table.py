from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import orjson
import pytest

from transforms.elements import Reason
from transforms.tei.error_table import Action, classify

HTML = b"<html><head><title>502 Bad Gateway</title></head></html>"
TOO_LONG = "Input validation error: `inputs` must have less than 512 tokens. Given: 1038"
NO_PROMPT = "Input validation error: `default-prompt-name` is set to `x` but no prompts were found"
NOT_EMBEDDING = "Backend error: Model is not an embedding model"
NOT_FOR_SPLADE = "Backend error: `normalize` is not available for SPLADE models"
OUT_OF_MEMORY = "Backend error: CUDA out of memory"
LIMIT_EXCEEDED = b"Failed to buffer the request body: length limit exceeded"
BAD_JSON = b"Failed to parse the request body as JSON: inputs: EOF while parsing at line 1 column 9"
ENDPOINT_ERROR = "Bad Request: Your endpoint is in error, check its status on endpoints.huggingface.co"


def native(message: str, kind: str) -> bytes:
    return orjson.dumps({"error": message, "error_type": kind})


def flat(message: str, kind: str, status: int) -> bytes:
    return orjson.dumps({"message": message, "code": status, "type": kind})


def nested(message: str) -> bytes:
    return orjson.dumps({"error": {"message": message}})


ROWS: list[tuple[int, bytes, Action]] = [
    (429, native("Model is overloaded", "Overloaded"), Action.SLOW_DOWN),
    (429, flat("Model is overloaded", "Overloaded", 429), Action.SLOW_DOWN),
    (429, HTML, Action.SLOW_DOWN),
    (429, b"", Action.SLOW_DOWN),
    (424, native(OUT_OF_MEMORY, "Backend"), Action.RETRY),
    (424, flat(OUT_OF_MEMORY, "Backend", 424), Action.RETRY),
    (424, b"", Action.RETRY),
    (424, native(NOT_EMBEDDING, "Backend"), Action.STOP),
    (424, flat(NOT_FOR_SPLADE, "Backend", 424), Action.STOP),
    (424, native("Backend error: Model is not a classifier model", "Backend"), Action.STOP),
    (424, native("Backend error: model is not a re-ranker model", "Backend"), Action.STOP),
    (422, native("batch size 64 > maximum allowed batch size 32", "Validation"), Action.SHRINK),
    (413, native("batch size 64 > maximum allowed batch size 32", "Validation"), Action.SHRINK),
    (422, flat("batch size 64 > maximum allowed batch size 32", "Validation", 422), Action.SHRINK),
    (422, native(NO_PROMPT, "Validation"), Action.STOP),
    (413, native(NO_PROMPT, "Validation"), Action.STOP),
    (422, native(TOO_LONG, "Validation"), Action.SPLIT),
    (413, native(TOO_LONG, "Validation"), Action.SPLIT),
    (422, native("tokenizer error: bad", "Tokenizer"), Action.SPLIT),
    (422, b"Failed to deserialize the JSON body into the target type: inputs", Action.SPLIT),
    (413, native("anything else", "Validation"), Action.SPLIT),
    (413, LIMIT_EXCEEDED, Action.SPLIT_BYTES),
    (413, HTML, Action.SPLIT_BYTES),
    (413, b"", Action.SPLIT_BYTES),
    (400, native("Input validation error: `inputs` cannot be empty", "Empty"), Action.SPLIT),
    (400, BAD_JSON, Action.SPLIT),
    (400, native("Bad Request: Invalid state", ""), Action.STOP),
    (400, nested("Bad Request: Invalid state"), Action.STOP),
    (400, b"Bad Request: Invalid state", Action.STOP),
    (400, native(ENDPOINT_ERROR, ""), Action.STOP),
    (401, b"", Action.STOP),
    (403, HTML, Action.STOP),
    (404, b"", Action.STOP),
    (405, b"", Action.STOP),
    (415, b"Expected request with `Content-Type: application/json`", Action.SPLIT),
    (301, b"", Action.STOP),
    (307, HTML, Action.STOP),
    (500, HTML, Action.WAIT),
    (502, HTML, Action.WAIT),
    (503, b"", Action.WAIT),
    (503, native("unhealthy", "Unhealthy"), Action.WAIT),
    (504, HTML, Action.WAIT),
    (524, HTML, Action.WAIT),
    (408, b"", Action.WAIT),
]


@pytest.mark.parametrize(("status", "body", "action"), ROWS)
def test_what_is_seen_decides_what_is_done(status: int, body: bytes, action: Action) -> None:
    verdict = classify(status, {}, body)
    assert verdict.action is action
    assert verdict.status == status


@pytest.mark.parametrize("unit", ["tokens", "characters"])
def test_a_text_that_is_too_long_is_rejected_for_that(unit: str) -> None:
    said = f"Input validation error: `inputs` must have less than 9 {unit}. Given: 10"
    assert classify(422, {}, native(said, "Validation")).reason is Reason.OVERLONG_TEXT
    assert classify(422, {}, native("tokenizer error", "Tokenizer")).reason is Reason.REJECTED_BY_ENDPOINT


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT", "date": "today"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2999 07:28:00 GMT"}, 600.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT", "date": "Wed, 21 Oct 2026 07:27:56 GMT"}, 4.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT", "date": "Wed, 21 Oct 2026 07:29:00 GMT"}, 0.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e9"}, 600.0),
    ],
)
def test_a_gateway_can_say_how_long_to_wait(headers: Mapping[str, str], seconds: float | None) -> None:
    assert classify(503, headers, b"").retry_after == seconds


def test_a_date_without_another_is_measured_by_our_own_clock() -> None:
    in_a_minute = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=60), usegmt=True)
    seconds = classify(503, {"retry-after": in_a_minute}, b"").retry_after
    assert seconds == pytest.approx(60, abs=20)


def test_a_message_is_shown_on_one_line() -> None:
    assert classify(400, {}, native("no\nverified: 3\r\n records", "Validation")).message == "no verified: 3 records"
    assert classify(502, {}, b"bad\n gateway\n").message == "bad gateway"


def test_a_page_is_shown_in_part() -> None:
    assert len(classify(502, {}, b"x" * 10_000).message) == 300
