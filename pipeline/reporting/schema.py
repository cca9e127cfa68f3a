"""The form of report.json: the typed value, and the JSON schema that is generated from it.

`python -m pipeline.reporting.schema > pipeline/reporting/report.schema.json` writes the schema that is shipped; a test
compares the two. The docstring of a class describes each field, and the schema repeats it.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union

import orjson

# Fields are added without a new version; a field that goes, or changes its meaning, makes one.
REPORT_VERSION: Literal[2] = 2

Verdict = Literal["endpoint", "client", "balanced", "unknown"]


@dataclass(frozen=True, slots=True)
class Model:
    """The model, as the endpoint described it.

    Attributes:
        model_id: its name.
        sha: its revision; null if the endpoint does not report one.
        dtype: the number format that it computes in.
        pooling: how token vectors become one; null if the endpoint does not report it.
        dimensions: numbers in a vector.
        server_version: of TEI.
    """

    model_id: str
    sha: str | None
    dtype: str | None
    pooling: str | None
    dimensions: int
    server_version: str


@dataclass(frozen=True, slots=True)
class ModelNames:
    """The names that a server gave the model.

    Attributes:
        model_id: the model's name or path.
        sha: its revision; null if the endpoint did not report one.
        dtype: the number format that it computed in.
        server_version: of TEI.
        prompt_name: the prompt in front of each text; null for the server's default.
        since: when a run first found them, ISO 8601 with its time zone.
    """

    model_id: str
    sha: str | None
    dtype: str
    server_version: str
    prompt_name: str | None
    since: str


@dataclass(frozen=True, slots=True)
class JobSettings:
    """What shapes the vectors, from job.json.

    Attributes:
        model: the model, by the names of the last run.
        history: all names that it went by, oldest first; their vectors are of one space.
        space: digest of the vector space, which every receipt carries.
        inputs: the patterns of the inputs.
        text_fields: the fields whose text is embedded, joined by newlines if there are several.
        embedding_field: the field that holds the vector.
        prompt_name: the prompt in front of each text; null for the server's default.
        normalize: whether vectors have length 1.
        overlong: what happens to texts of more tokens than the model reads.
        wire_format: how vectors came over the wire.
        version: of Tayyar.
    """

    model: Model
    history: tuple[ModelNames, ...]
    space: str
    inputs: tuple[str, ...]
    text_fields: tuple[str, ...]
    embedding_field: str
    prompt_name: str | None
    normalize: bool
    overlong: Literal["truncate", "dead_letter"]
    wire_format: str
    version: str


@dataclass(frozen=True, slots=True)
class Period:
    """From when to when, pauses between runs included.

    Attributes:
        started_at: when the first text could be sent, in seconds since the epoch; null before any shard is done.
        finished_at: when the last receipt was written, likewise.
    """

    started_at: float | None
    finished_at: float | None


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the shards that have their receipt.

    Attributes:
        sources: input files.
        sources_complete: input files all of whose shards are done.
        shards: shards that have their receipt.
        shards_expected: shards that there will be; null while those of a compressed file cannot be counted.
        records: lines that are not blank, in the shards done.
        records_expected: an estimate of all of them, by bytes or from `tayyar plan`; null where nothing is known.
        embedded: documents that have their vector.
        sent: documents whose text the endpoint embedded.
        reused: documents that took the vector of a former output.
        duplicates: documents that took the vector of an equal text in their shard.
        truncated: documents whose text was sent and has more tokens than the model reads, as far as `truncation` says.
        nan_lines: embedded lines that hold NaN or Infinity, which strict JSON parsers refuse.
        unfit: values that do not fit their column and are null there, by the column's name; of Parquet.
        dead_letters: records that could not be embedded.
        dead_letters_by_reason: the same by reason.
        output_bytes: of embedded documents.
        seconds: of work, in which at least one shard was under way; pauses between runs do not count.
        documents_per_second: embedded documents by these seconds.
        dollars: these seconds at price_per_hour.
        dollars_per_document: of a document that was sent; of former runs if none was; null if it is not known.
        dollars_not_spent: reused and duplicate documents at that price.
        tokens: as the endpoint counted them, after truncation, special tokens included.
        requests: that succeeded.
        retries: requests that were repeated.
        queue_ms: in the endpoint's queue (x-queue-time), summed over texts.
        inference_ms: in the endpoint's device (x-inference-time), summed over texts.
        flight_ms: from sending to the reply, summed over texts.
        busy_ms: in which the device was at work, as far as replies show; of slot_ms, the share of the time.
        slot_ms: round trips of requests, each divided by those in flight with it, summed over requests.
        throttled_ms: waited because the endpoint had asked for it, summed over requests.
    """

    sources: int
    sources_complete: int
    shards: int
    shards_expected: int | None
    records: int
    records_expected: int | None
    embedded: int
    sent: int
    reused: int
    duplicates: int
    truncated: int
    nan_lines: int
    unfit: Mapping[str, int]
    dead_letters: int
    dead_letters_by_reason: Mapping[str, int]
    output_bytes: int
    seconds: float
    documents_per_second: float | None
    dollars: float | None
    dollars_per_document: float | None
    dollars_not_spent: float | None
    tokens: int
    requests: int
    retries: int
    queue_ms: int
    inference_ms: int
    flight_ms: int
    busy_ms: int
    slot_ms: int
    throttled_ms: int


@dataclass(frozen=True, slots=True)
class Latency:
    """How long successful requests took, in milliseconds.

    Attributes:
        p50: upper bound of the bucket that holds the median; at most 19 % too high.
        p95: upper bound of the bucket that holds the 95th percentile, likewise.
        p99: upper bound of the bucket that holds the 99th percentile, likewise.
        histogram: requests by the upper bound of their bucket; bounds are a factor of 2^(1/4) apart.
    """

    p50: int | None
    p95: int | None
    p99: int | None
    histogram: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Timeline:
    """The course of the job over its time of work, in buckets of equal length.

    Attributes:
        bucket_seconds: of work that a value stands for.
        documents_per_second: documents that got their vector.
        texts_in_queue: texts that waited in the endpoint's queue, on average over the bucket.
        texts_in_flight: texts sent and not answered, on average over the bucket, those in the queue included.
        device_busy: the share of the bucket in which the endpoint's device was at work, from 0 to 1; null where no
            reply shows it.
        pauses_at: seconds of work at which a pause of more than a second was cut out.
    """

    bucket_seconds: float
    documents_per_second: tuple[float, ...]
    texts_in_queue: tuple[float, ...]
    texts_in_flight: tuple[float, ...]
    device_busy: tuple[float | None, ...]
    pauses_at: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """What limited the speed.

    Attributes:
        verdict: endpoint: its device was busy nearly all the time. client: it was often without work, because of what
            feeds it or of the network between. balanced: neither clearly. unknown: the endpoint reported no
            times, or got few requests.
        why: the same in words, with the numbers and what would help.
        device_busy: the share of the time in which the endpoint's device was at work, as far as replies show, from 0
            to 1; null where the endpoint reports no times.
        queue_ms_per_text: mean time in the endpoint's queue; null likewise.
        inference_ms_per_text: mean time in the endpoint's device; null likewise.
        round_trip_ms_per_text: mean time from sending a text to its answer; null if none was sent.
        texts_in_flight: texts sent and not answered, on average over the time of work (Little's law).
        texts_in_queue: of these in the endpoint's queue; null where the endpoint reports no times.
    """

    verdict: Verdict
    why: str
    device_busy: float | None
    queue_ms_per_text: float | None
    inference_ms_per_text: float | None
    round_trip_ms_per_text: float | None
    texts_in_flight: float | None
    texts_in_queue: float | None


@dataclass(frozen=True, slots=True)
class Example:
    """One dead letter, for people to look at.

    Attributes:
        source: the input file.
        offset: of the line's first byte.
        stage: where the record failed.
        detail: why, in words.
        http_status: of the endpoint's last answer; null if it was never sent.
        attempts: requests that were made for it.
        text: the first 300 characters of its text; null where it has none.
        line: the first 300 characters of its line.
    """

    source: str
    offset: int
    stage: Literal["read", "embed"]
    detail: str
    http_status: int | None
    attempts: int
    text: str | None
    line: str


@dataclass(frozen=True, slots=True)
class DeadLetterReason:
    """The dead letters of one reason.

    Attributes:
        reason: why the records could not be embedded.
        count: how many there are.
        examples: the first few.
    """

    reason: str
    count: int
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was expected and what happened.

    Attributes:
        planned: by `tayyar plan`; null where it expected nothing.
        actual: so far; null where it is not known.
    """

    planned: float | None
    actual: float | None


@dataclass(frozen=True, slots=True)
class PlanComparison:
    """What `tayyar plan` expected beside what happened so far.

    Attributes:
        records: lines that are not blank.
        tokens: after truncation.
        requests: that succeed.
        output_bytes: of embedded documents.
        seconds: of work.
        dollars: these seconds, both at price_per_hour.
    """

    records: Comparison
    tokens: Comparison
    requests: Comparison
    output_bytes: Comparison
    seconds: Comparison
    dollars: Comparison


@dataclass(frozen=True, slots=True)
class Verified:
    """The last `tayyar verify` of the folder.

    Attributes:
        at: when it ended, ISO 8601 with its time zone.
        passed: whether it found nothing wrong.
        findings: how many things it found.
        current: whether no shard was finished since.
    """

    at: str
    passed: bool
    findings: int
    current: bool


@dataclass(frozen=True, slots=True)
class LastRun:
    """The last `tayyar run` into the folder that reached its end.

    Attributes:
        command: the call, with secrets left out.
        endpoints: host and port of each server.
        started_at: in seconds since the epoch.
        wall_seconds: from the command to its report.
        work_seconds: of these, in which at least one shard was under way.
        documents: that got their vector in this run: sent + reused + duplicates.
        sent: of these, whose text the endpoint embedded.
        reused: of these, that took the vector of a former output.
        duplicates: of these, that took the vector of an equal text in their shard.
    """

    command: str
    endpoints: tuple[str, ...]
    started_at: float
    wall_seconds: float
    work_seconds: float
    documents: int
    sent: int
    reused: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class SourceReport:
    """One input file.

    Attributes:
        path: where it is.
        name: the stem of its outputs.
        bytes: as stored.
        shards: that have their receipt.
        shards_expected: that there will be; null while those of a compressed file cannot be counted.
        complete: whether all of them are done.
        records: lines that are not blank, in the shards done.
        embedded: documents that have their vector: sent + reused + duplicates.
        sent: documents whose text the endpoint embedded.
        reused: documents that took the vector of a former output.
        duplicates: documents that took the vector of an equal text in their shard.
        truncated: documents whose text was sent and has more tokens than the model reads, as far as it is known.
        dead_letters: records that could not be embedded.
    """

    path: str
    name: str
    bytes: int
    shards: int
    shards_expected: int | None
    complete: bool
    records: int
    embedded: int
    sent: int
    reused: int
    duplicates: int
    truncated: int
    dead_letters: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record is.

    Attributes:
        source: the input file.
        offset: of the line's first byte, after decompression.
    """

    source: str
    offset: int


@dataclass(frozen=True, slots=True)
class Truncation:
    """How truncated texts were found.

    Attributes:
        method: tokens: by the tokens that the endpoint counts in a request, and the lengths of its texts; exact where
            all texts of a request are truncated or none. characters: the endpoint counts no tokens, so only texts are
            known of which the client sends the beginning. refused: there are none, they became dead letters.
        first: the first ten.
    """

    method: Literal["tokens", "characters", "refused"]
    first: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Gone:
    """Outputs of inputs that the last run's patterns did not match; not part of the totals. `run --prune` removes them.

    Attributes:
        sources: input files.
        records: lines that are not blank.
        embedded: documents that have their vector.
        dead_letters: records that could not be embedded.
    """

    sources: int
    records: int
    embedded: int
    dead_letters: int


@dataclass(frozen=True, slots=True)
class Report:
    """What a job came to, computed from its plan and its receipts.

    Attributes:
        version: of this form.
        made_at: when the report was made, ISO 8601 with its time zone.
        output: the output folder.
        complete: whether every shard of every source has its receipt.
        balanced: whether records = embedded + dead letters in every shard.
        job: what shapes the vectors.
        period: from when to when.
        totals: sums over the shards done.
        price_per_hour: of the endpoint, in dollars.
        latency_ms: of successful requests.
        timeline: the course of the job.
        bottleneck: what limited its speed.
        dead_letters: by reason, with examples.
        truncation: how truncated texts were found, and where they are.
        gone: what the folder keeps of inputs that no longer exist.
        plan: beside what happened; null if `tayyar plan` saved nothing.
        verified: the last `tayyar verify`; null if there was none.
        last_run: the last run that reached its end; null if none did.
        sources: every input file.
    """

    version: Literal[2]
    made_at: str
    output: str
    complete: bool
    balanced: bool
    job: JobSettings
    period: Period
    totals: Totals
    price_per_hour: float | None
    latency_ms: Latency
    timeline: Timeline
    bottleneck: Bottleneck
    dead_letters: tuple[DeadLetterReason, ...]
    truncation: Truncation
    gone: Gone
    plan: PlanComparison | None
    verified: Verified | None
    last_run: LastRun | None
    sources: tuple[SourceReport, ...]


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of report.json."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tayyar's report.json",
        **_object(Report),
    }


def encode_json(value: object) -> bytes:
    """Return a report, or its schema, as JSON for people and programs."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)


def _object(kind: type) -> dict[str, Any]:
    documented = _documented(kind)
    properties = {
        name: {**_schema(hint), "description": documented[name]} for name, hint in typing.get_type_hints(kind).items()
    }
    return {
        "description": (inspect.getdoc(kind) or "").partition("\n")[0],
        "type": "object",
        "additionalProperties": False,
        "required": list(properties),
        "properties": properties,
    }


def _documented(kind: type) -> dict[str, str]:
    """Return a class's fields with their descriptions in its docstring, under `Attributes:`."""
    _, _, attributes = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", attributes, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _schema(hint: Any) -> dict[str, Any]:
    """Return the schema of a field's type. No number in a report is negative."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [{"type": "null"} if part is type(None) else _schema(part) for part in parts]}
    if origin is Literal:
        return {"const": parts[0]} if len(parts) == 1 else {"enum": list(parts)}
    if origin is tuple:
        return {"type": "array", "items": _schema(parts[0])}
    if origin is Mapping:
        keys = {"propertyNames": {"pattern": "^[0-9]+$"}} if parts[0] is int else {}
        return {"type": "object", **keys, "additionalProperties": _schema(parts[1])}
    if dataclasses.is_dataclass(hint):
        return _object(typing.cast("type", hint))
    name = {bool: "boolean", str: "string", int: "integer", float: "number"}[hint]
    return {"type": name} if hint in (bool, str) else {"type": name, "minimum": 0}


if __name__ == "__main__":
    sys.stdout.buffer.write(encode_json(json_schema()))
