"""The command `plan`: what a run would come to, from a sample; and what it saved for the report to set beside."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import orjson

from pipeline.commands.options import PlanOptions
from pipeline.errors import ExitCode, UsageError
from pipeline.job.preflight import require_usable
from pipeline.job.sharding import Plan, make_plan
from pipeline.planning.sampling import Sample, take_sample
from pipeline.planning.throughput import Speed, probe_speed
from pipeline.planning.tokenize import CannotTokenize, count_tokens
from pipeline.reporting.numbers import duration
from pipeline.reporting.report import PLANNED
from pipeline.runners.endpoint import reached
from transforms.elements import Document
from transforms.ndjson.decompress import DamagedSource
from transforms.ndjson.splice import embedded_lines, json_key
from transforms.output.folder import JOB, OutputFolder
from transforms.tei.client import TeiClient, connect
from transforms.tei.errors import EndpointUnreachable
from transforms.tei.handshake import ServerInfo
from transforms.tei.settings import EndpointSettings, Overlong

NAME = f"{JOB}/estimate.json"
VERSION = 1
_PATIENCE = 5.0  # seconds: at least one of several servers has just answered
_TOKENIZED = 500  # documents: the endpoint's reply names every token
_WORST = 3
_SHOWN_CHARACTERS = 80


def plan(options: PlanOptions, say: Callable[[str], None] = print) -> ExitCode:
    """Say what a run would come to; only samples are sent.

    Args:
        options: what to embed, how and where to.
        say: takes the lines for the person at the terminal.

    Returns:
        DONE.

    Raises:
        UsageError: if the inputs cannot be planned, or there is no document in the sample.
        EndpointError: if the endpoint cannot do the job.
    """
    found = make_plan(options.inputs, options.output, options.shard_bytes, options.text_field, options.exclude)
    for one in found.left_out if options.verbose else ():
        say(f"left out: {one.path} ({one.reason})")
    output = None if options.output is None else OutputFolder(options.output, run="plan")
    if output is not None:
        require_usable(output)
    try:
        sample = take_sample(found, options.text_field, options.embedding_field)
    except DamagedSource as error:
        raise UsageError(str(error)) from error
    documents = [record.parsed for record in sample.records if isinstance(record.parsed, Document)]
    if not documents:
        raise UsageError(f"none of {len(sample.records)} sampled lines has a text. Check --input and --text_field.")
    random.Random(0).shuffle(documents)
    if not options.endpoint.urls:
        model = options.model or "Tayyar's own small model"
        say(f"without --endpoint: measuring {model}, which is started here")
    with reached(options.endpoint, options.expected_dimensions, model=options.model) as (endpoint, _):
        infos = _infos(endpoint)
        # A server that does not answer now takes no texts, and nothing waits for it.
        endpoint = dataclasses.replace(endpoint, urls=tuple(infos))
        info = next(iter(infos.values()))
        tokens = _tokens(endpoint, info, documents[:_TOKENIZED])
        permits = sum(each.max_concurrent_requests for each in infos.values())
        speed = probe_speed(endpoint, permits, [document.text for document in documents])
    estimate = make_estimate(found, sample, tokens, speed, info, options)
    if output is not None:
        output.write(NAME, [orjson.dumps(estimate, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)])
        output.tidy()
    for line in lines_of(estimate):
        say(line)
    return ExitCode.DONE


def read_estimate(output: OutputFolder) -> dict[str, Any] | None:
    """Return what `plan` saved beside the output; None if it saved nothing that can be read."""
    try:
        estimate = orjson.loads(output.read(NAME) or b"null")
    except ValueError:
        return None
    if not isinstance(estimate, dict):
        return None
    values = [estimate.get(name) for name in PLANNED]
    return estimate if all(value is None or type(value) in (int, float) for value in values) else None


def _infos(endpoint: EndpointSettings) -> dict[str, ServerInfo]:
    """Return what each server reports of itself, for those that answer now, of which there is at least one."""
    infos = {}
    for url in endpoint.urls:
        client = TeiClient(dataclasses.replace(endpoint, urls=(url,), give_up_after=_PATIENCE))
        try:
            with contextlib.suppress(EndpointUnreachable):
                infos[url] = client.info()
        finally:
            client.close()
    if not infos:
        raise EndpointUnreachable(f"no answer any more from {', '.join(endpoint.urls)}. See whether it still runs.")
    return infos


def _tokens(
    endpoint: EndpointSettings, info: ServerInfo, documents: Sequence[Document]
) -> list[tuple[Document, int | None]] | None:
    """Return documents with their tokens before any cut; None if the endpoint does not tell."""
    transport = connect(endpoint)
    texts = [document.text for document in documents]
    try:
        counts = count_tokens(transport, endpoint.urls[0], info, texts, endpoint.prompt_name)
    except CannotTokenize:
        return None
    finally:
        transport.close()
    return list(zip(documents, counts, strict=True))


def make_estimate(
    plan: Plan,
    sample: Sample,
    tokens: Sequence[tuple[Document, int | None]] | None,
    speed: Speed,
    info: ServerInfo,
    options: PlanOptions,
) -> dict[str, Any]:
    """Return the estimate as the value that is saved.

    Args:
        plan: of the sources.
        sample: of their records, at least one of them a document.
        tokens: documents with their tokens before any cut, None for too many to count; None if nobody knows.
        speed: of the endpoint.
        info: what the endpoint says of itself.
        options: what to embed, how, and at what price.
    """
    documents = [record.parsed for record in sample.records if isinstance(record.parsed, Document)]
    expected = sample.total.value * len(documents) / len(sample.records)
    shards = _shards(plan, sample)
    return {
        "version": VERSION,
        "files": len(plan.sources),
        "bytes": sum(source.size for source in plan.sources),
        "shards": shards,
        "sampled": len(sample.records),
        "records": round(sample.total.value),
        "records_interval": [round(sample.total.low), round(sample.total.high)],
        "documents": round(expected),
        "dead_letters": _dead_letters(sample),
        **_token_fields(tokens, info, options.endpoint, expected),
        "duplicates_share": _duplicates(documents),
        "output_bytes": round(expected * _output_bytes(documents, speed, options.embedding_field)),
        # The canary takes one place of each request, and a shard's last request is half full on average.
        "requests": max(shards, round(expected / max(1, info.batch_limit - 1) + shards / 2)),
        **_time_fields(expected, speed, options.price_per_hour),
    }


def _time_fields(documents: float, speed: Speed, price_per_hour: float | None) -> dict[str, Any]:
    seconds = documents / speed.best.documents_per_second
    return {
        "levels": [asdict(level) for level in speed.levels],
        "documents_per_second": speed.best.documents_per_second,
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
    plain = sum(source.size for source, count in zip(plan.sources, counts, strict=True) if count is not None)
    unpacked = max(0.0, sample.total.value * length - plain)
    return known + max(counts.count(None), math.ceil(unpacked / plan.shard_bytes))


def _dead_letters(sample: Sample) -> dict[str, int]:
    """Return how many records will not be read, by reason, as far as the sample shows it."""
    found = Counter(record.parsed.reason.value for record in sample.records if not isinstance(record.parsed, Document))
    each = sample.total.value / len(sample.records)
    return {reason: round(count * each) for reason, count in sorted(found.items())}


def _token_fields(
    tokens: Sequence[tuple[Document, int | None]] | None,
    info: ServerInfo,
    endpoint: EndpointSettings,
    documents: float,
) -> dict[str, Any]:
    """Return what is known of tokens: of all documents after the cut, and of those that are over the limit."""
    limit = info.max_input_length
    fields: dict[str, Any] = {"tokens": None, "max_input_length": limit, "overlong_share": None, "overlong": []}
    if tokens is None:
        return fields
    over = [(count, document) for document, count in tokens if count is None or count > limit]
    kept = [min(count or limit, limit) for _, count in tokens]
    if endpoint.overlong is Overlong.DEAD_LETTER:
        kept = [count for _, count in tokens if count is not None and count <= limit]
    over.sort(key=lambda pair: (pair[0] is not None, -(pair[0] or 0), -len(pair[1].text)))
    return fields | {
        "tokens": round(sum(kept) / len(tokens) * documents),
        "overlong_share": len(over) / len(tokens),
        "overlong": [
            {"offset": document.offset, "tokens": count, "characters": len(document.text), "text": _beginning(document)}
            for count, document in over[:_WORST]
        ],
    }


def _beginning(document: Document) -> str:
    text = " ".join(document.text[:_SHOWN_CHARACTERS].split())
    return text if len(document.text) <= _SHOWN_CHARACTERS else f"{text}…"


def _duplicates(documents: Sequence[Document]) -> float:
    """Return the share of the sample's texts that stand in it before."""
    return 1 - len({document.text for document in documents}) / len(documents)


def _output_bytes(documents: Sequence[Document], speed: Speed, embedding_field: str) -> float:
    """Return the mean length of an output line: of a source line, and of what a vector adds to one."""
    vectors = speed.embeddings.vectors
    some = documents[: len(vectors)]
    lines = list(embedded_lines(some, vectors[: len(some)], json_key(embedding_field)))
    added = sum(len(line) for line in lines) - sum(len(document.line) for document in some)
    return sum(len(document.line) for document in documents) / len(documents) + added / len(lines)


def lines_of(estimate: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that a person reads."""
    low, high = estimate["records_interval"]
    yield f"{estimate['files']:,} files, {estimate['bytes'] / 1e6:,.1f} MB, {estimate['shards']:,} shards"
    yield (
        f"records: about {estimate['records']:,} ({low:,} to {high:,} with 95% confidence), "
        f"from {estimate['sampled']:,} of them"
    )
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in estimate["dead_letters"].items())
    yield f"dead letters: {f'about {reasons}' if reasons else 'none in the sample'}"
    yield from _token_lines(estimate)
    yield f"duplicates: {estimate['duplicates_share']:.1%} of the sample's texts stand in it before"
    yield f"output: about {estimate['output_bytes'] / 1e6:,.1f} MB; requests: about {estimate['requests']:,}"
    for level in estimate["levels"]:
        yield f"  {level['in_flight']:>5,} texts in flight: {level['documents_per_second']:,.0f} documents/s"
    cost = "" if estimate["dollars"] is None else f", ${estimate['dollars']:,.2f}"
    yield f"expected: {duration(estimate['seconds'])}{cost}, with the endpoint as busy as in the fastest of these"


def _token_lines(estimate: Mapping[str, Any]) -> Iterator[str]:
    if estimate["tokens"] is None:
        yield "tokens: the endpoint does not tell (it has no /tokenize that answers)"
        return
    mean = estimate["tokens"] / max(1, estimate["documents"])
    yield f"tokens: about {estimate['tokens']:,}, {mean:,.0f} a document"
    limit = f"{estimate['max_input_length']:,} tokens that the model reads"
    if not estimate["overlong"]:
        yield f"overlong: none in the sample has more than the {limit}"
        return
    yield f"overlong: {estimate['overlong_share']:.1%} have more than the {limit}; the longest of the sample:"
    for one in estimate["overlong"]:
        tokens = "too many to count" if one["tokens"] is None else f"{one['tokens']:,}"
        yield f"  {tokens} tokens, {one['characters']:,} characters, at byte {one['offset']:,}: {one['text']}"
