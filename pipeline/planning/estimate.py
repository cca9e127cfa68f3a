"""The estimate of a run from a sample of its records, as it is saved and as it is printed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import orjson

from pipeline.job.former_vectors import NewTexts
from pipeline.job.sharding import Plan
from pipeline.planning.sampling import Sample
from pipeline.planning.throughput import Level, fastest
from pipeline.reporting.numbers import count, dollars, duration, number, percent, rate, size
from pipeline.reporting.report import PLANNED, is_amount
from transforms.elements import Document, Vectors
from transforms.output.folder import JOB, OutputFolder
from transforms.output.formats import format_of
from transforms.output.layout import Layout
from transforms.tei.handshake import ServerInfo
from transforms.tei.settings import Overlong

ESTIMATE = f"{JOB}/estimate.json"
_WORST = 3  # of the overlong texts that are shown
_SHOWN_CHARACTERS = 80  # of each of them: a line of a terminal


def read_estimate(output: OutputFolder) -> dict[str, Any] | None:
    """Return what `plan` saved beside the output; None if it saved nothing that can be read."""
    try:
        estimate = orjson.loads(output.read(ESTIMATE) or b"null")
    except ValueError:
        return None
    if not isinstance(estimate, dict):
        return None
    values = [estimate.get(name) for name in (*PLANNED, "price_per_hour")]
    return estimate if all(value is None or is_amount(value) for value in values) else None


def make_estimate(
    plan: Plan,
    sample: Sample,
    tokens: Sequence[tuple[Document, int | None]] | None,
    levels: Sequence[Level],
    vectors: Vectors,
    info: ServerInfo,
    *,
    overlong: Overlong,
    layout: Layout,
    price_per_hour: float | None,
) -> dict[str, Any]:
    """Return the estimate as the value that is saved.

    Args:
        plan: of the sources.
        sample: of their records, at least one of them a document.
        tokens: documents with their tokens before any cut, None for too many to count; None if they are not known.
        levels: how fast the endpoint is, at least one.
        vectors: some of the model's, float32[n, dimensions].
        info: what the endpoint reports of itself.
        overlong: what happens to texts that are too long.
        layout: what the output will look like.
        price_per_hour: of the endpoint, in dollars; None for no bill.
    """
    documents = [record.parsed for record in sample.records if isinstance(record.parsed, Document)]
    expected = sample.total.value * len(documents) / len(sample.records)
    shards = _shards(plan, sample)
    return {
        "version": 1,  # of this form
        "files": len(plan.sources),
        "bytes": sum(source.size for source in plan.sources),
        "shards": shards,
        "sampled": len(sample.records),
        "records": round(sample.total.value),
        "records_interval": [round(sample.total.low), round(sample.total.high)],
        "documents": round(expected),
        "dead_letters": _dead_letters(sample),
        **_token_fields(tokens, info, overlong, expected),
        "duplicates_share": _duplicates(documents),
        "output_bytes": round(expected * _output_bytes(documents, vectors, layout)),
        # The canary takes one place of each request, and a shard's last request is half full on average.
        "requests": max(shards, round(expected / max(1, info.batch_limit - 1) + shards / 2)),
        **_time_fields(expected, levels, price_per_hour),
    }


def _time_fields(documents: float, levels: Sequence[Level], price_per_hour: float | None) -> dict[str, Any]:
    speed = fastest(levels).documents_per_second
    seconds = documents / speed
    return {
        "levels": [asdict(level) for level in levels],
        "documents_per_second": speed,
        "seconds": seconds,
        "price_per_hour": price_per_hour,
        "dollars": None if price_per_hour is None else price_per_hour * seconds / 3600,
    }


def _shards(plan: Plan, sample: Sample) -> int:
    """Return how many shards there will be; a compressed source's are counted by the records that it likely has."""
    counts = [plan.shard_count(source) for source in plan.sources]
    known = sum(filter(None, counts))
    if None not in counts:
        return known
    length = sum(record.length for record in sample.records) / len(sample.records)
    plain = sum(source.size for source, shards in zip(plan.sources, counts, strict=True) if shards is not None)
    unpacked = max(0.0, sample.total.value * length - plain)
    return known + max(counts.count(None), math.ceil(unpacked / plan.shard_bytes))


def _dead_letters(sample: Sample) -> dict[str, int]:
    """Return how many records will not be read, by reason, as far as the sample shows it."""
    found = Counter(record.parsed.reason.value for record in sample.records if not isinstance(record.parsed, Document))
    each = sample.total.value / len(sample.records)
    return {reason: round(many * each) for reason, many in sorted(found.items())}


def _token_fields(
    tokens: Sequence[tuple[Document, int | None]] | None,
    info: ServerInfo,
    overlong: Overlong,
    documents: float,
) -> dict[str, Any]:
    """Return what is known of tokens: of all documents after the cut, and of those that are over the limit."""
    limit = info.max_input_length
    fields: dict[str, Any] = {"tokens": None, "max_input_length": limit, "overlong_share": None, "overlong": []}
    if tokens is None:
        return fields
    over = [(length, document) for document, length in tokens if length is None or length > limit]
    kept = [min(length or limit, limit) for _, length in tokens]
    if overlong is Overlong.DEAD_LETTER:
        kept = [length for _, length in tokens if length is not None and length <= limit]
    over.sort(key=lambda pair: (pair[0] is not None, -(pair[0] or 0), -len(pair[1].text)))
    return fields | {
        "tokens": round(sum(kept) / len(tokens) * documents),
        "overlong_share": len(over) / len(tokens),
        "overlong": [
            {
                "offset": document.offset,
                "tokens": length,
                "characters": len(document.text),
                "text": _beginning(document),
            }
            for length, document in over[:_WORST]
        ],
    }


def _beginning(document: Document) -> str:
    text = " ".join(document.text[:_SHOWN_CHARACTERS].split())
    return text if len(document.text) <= _SHOWN_CHARACTERS else f"{text}…"


def _duplicates(documents: Sequence[Document]) -> float:
    """Return the share of the sample's texts that repeat an earlier one."""
    return 1 - len({document.text for document in documents}) / len(documents)


def _output_bytes(documents: Sequence[Document], some: Vectors, layout: Layout) -> float:
    """Return how many bytes a document takes in the output: of a file with all of the sample's documents.

    Args:
        documents: of the sample, n of them.
        some: float32[few, dimensions]: vectors of the first of them.
        layout: what the output will look like.
    """
    # Each text gets the numbers of one of the few vectors, in an order of its own: compression finds what it will find
    # in the output, which is equal texts with equal vectors.
    places: dict[str, int] = {}
    rows = [places.setdefault(document.text, len(places)) for document in documents]
    vectors = np.random.default_rng(0).permuted(np.resize(some, (len(places), some.shape[1])), axis=1)[rows]
    form = format_of(f"sample.{layout.format}")
    chunks = form.encode(form.rows_of(documents, vectors, layout, Counter()), layout, some.shape[1])
    return sum(map(len, chunks)) / len(documents)


def render_estimate(estimate: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that a person reads."""
    yield f"{count(estimate['files'], 'file')}, {size(estimate['bytes'])}, {count(estimate['shards'], 'shard')}"
    yield f"records: {_records(estimate)}"
    reasons = ", ".join(f"{reason} {number(many)}" for reason, many in estimate["dead_letters"].items())
    total = number(sum(estimate["dead_letters"].values()))
    yield f"dead letters: {f'about {total} ({reasons})' if reasons else 'none in the sample'}"
    yield from _token_lines(estimate)
    yield f"duplicates: {percent(estimate['duplicates_share'])} of the sample's texts repeat an earlier one"
    yield f"output: about {size(estimate['output_bytes'])}; requests: about {number(estimate['requests'])}"
    for level in estimate["levels"]:
        texts = "1 text" if level["in_flight"] == 1 else f"{level['in_flight']:>5,} texts"
        yield f"  {texts} in flight: {rate(level['documents_per_second'])}"
    cost = "" if estimate["dollars"] is None else f", {dollars(estimate['dollars'])}"
    yield f"expected: {duration(estimate['seconds'])}{cost}, at the fastest of these rates"
    if new := estimate.get("new"):
        cost = "" if new["dollars"] is None else f", {dollars(new['dollars'])}"
        counted = NewTexts(new["texts"], new["documents"], new["exact"])
        done = f", {count(new['done'], 'document')} are done; " if new["done"] else ": "
        left = (
            f"{counted}: {duration(new['seconds'])}{cost}"
            if counted != NewTexts(0, 0, exact=True)
            else "nothing is left"
        )
        yield f"of these{done}{left}"


def _records(estimate: Mapping[str, Any]) -> str:
    low, high = estimate["records_interval"]
    if low == high:  # all of them were read
        return number(estimate["records"])
    return (
        f"about {number(estimate['records'])} ({number(low)} to {number(high)} with 95% confidence), "
        f"from {number(estimate['sampled'])} of them"
    )


def _token_lines(estimate: Mapping[str, Any]) -> Iterator[str]:
    if estimate["tokens"] is None:
        yield "tokens: unknown, as the endpoint has no /tokenize that answers"
        return
    mean = estimate["tokens"] / max(1, estimate["documents"])
    yield f"tokens: about {number(estimate['tokens'])}, {number(mean)} a document"
    limit = f"{count(estimate['max_input_length'], 'token')} that the model reads"
    if not estimate["overlong"]:
        yield f"overlong: none in the sample has more than the {limit}"
        return
    share = percent(estimate["overlong_share"])
    yield f"overlong: {share} have more than the {limit}; the longest of the sample:"
    for one in estimate["overlong"]:
        tokens = "too many tokens to count" if one["tokens"] is None else count(one["tokens"], "token")
        yield f"  {tokens}, {count(one['characters'], 'character')}, at byte {number(one['offset'])}: {one['text']}"
