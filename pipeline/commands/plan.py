"""The command `plan`: estimate what a run would take, from a sample and some seconds of the endpoint's time."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import orjson

from pipeline.commands.options.plan import PlanOptions
from pipeline.commands.run import job_of
from pipeline.errors import ExitCode, UsageError
from pipeline.job.former_vectors import count_new, index_former, reusable_folders
from pipeline.job.ledger import Ledger, ReceiptCache, SourceLedger, read_ledger
from pipeline.job.preflight import require_usable
from pipeline.job.sharding import Plan, make_plan
from pipeline.job.spec import JobSpec, join, read_job
from pipeline.planning.estimate import ESTIMATE, make_estimate, render_estimate
from pipeline.planning.sampling import Sample, take_sample
from pipeline.planning.throughput import probe_speed
from pipeline.planning.tokenize import CannotTokenize, count_tokens
from pipeline.reporting.numbers import count
from pipeline.runners.endpoint import open_endpoint
from pipeline.runners.progress import Waiting
from transforms.elements import Document
from transforms.ndjson.decompress import DamagedSource
from transforms.output.folder import OutputFolder
from transforms.output.layout import Column
from transforms.output.values import choose_columns
from transforms.tei.client import TeiClient, connect
from transforms.tei.errors import EndpointUnreachable
from transforms.tei.handshake import ServerInfo
from transforms.tei.settings import EndpointSettings

_GIVE_UP_SECONDS = 5.0  # at least one of several servers has just answered
_ENDPOINT_SECONDS = 11.0  # a person waits for the answer: the handshake and all measurements together
_MIN_MEASURING_SECONDS = 3.0  # also where the handshake has taken all of them
_TOKENIZED = 500  # documents: the endpoint's reply names every token
_COUNTED_BYTES = 2 << 30  # of records that are read to find how many texts are new: half a minute


def plan(options: PlanOptions, say: Callable[[str], None] = print) -> ExitCode:
    """Say what a run would come to; only samples are sent.

    Args:
        options: what to embed, how and where to.
        say: takes the lines for the person at the terminal.

    Returns:
        DONE.

    Raises:
        UsageError: if the inputs cannot be planned, there is no document in the sample, or vectors of another space
            are to be used again.
        EndpointError: if the endpoint cannot do the job.
    """
    found = make_plan(options.inputs, options.output, options.shard_bytes, options.text_field, options.exclude)
    for one in found.left_out if options.verbose else ():
        say(f"left out: {one.path} ({one.reason})")
    output = None if options.output is None else OutputFolder(options.output, run="plan")
    if output is not None:
        require_usable(output)
    sample, documents = _read_sample(found, options)
    asked_at = time.monotonic()
    with open_endpoint(options.endpoint, options.expected_dimensions, model=options.model, say=say) as opened:
        endpoint, profile = opened
        job = job_of(options, endpoint, profile, _columns_of(options, documents, output))
        reuse = reusable_folders(options.reuse, job)
        infos = _infos(endpoint)
        # A server that does not answer now takes no texts, and nothing waits for it.
        endpoint = dataclasses.replace(endpoint, urls=tuple(infos))
        info = next(iter(infos.values()))
        tokens = _tokens(endpoint, info, documents[:_TOKENIZED])
        permits = sum(each.max_concurrent_requests for each in infos.values())
        texts = [document.text for document in documents]
        seconds = max(_MIN_MEASURING_SECONDS, _ENDPOINT_SECONDS - (time.monotonic() - asked_at))
        with Waiting() as waiting:
            levels = probe_speed(endpoint, profile, permits, texts, seconds, waiting.show)
    estimate = make_estimate(
        found,
        sample,
        tokens,
        levels,
        profile.space.vectors,
        info,
        overlong=options.overlong,
        layout=job.layout,
        price_per_hour=options.price_per_hour,
    )
    estimate["new"] = _new(output, reuse, found, job, estimate)
    if output is not None:
        output.write(ESTIMATE, [orjson.dumps(estimate, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)])
        output.tidy()
    for line in render_estimate(estimate):
        say(line)
    return ExitCode.DONE


def _read_sample(plan: Plan, options: PlanOptions) -> tuple[Sample, list[Document]]:
    """Return a sample of the records, and those of them that can be embedded, in random order."""
    with Waiting() as waiting:
        try:
            sample = take_sample(plan, options.text_field, options.embedding_field, show=waiting.show)
        except DamagedSource as error:
            raise UsageError(str(error)) from error
    documents = [record.parsed for record in sample.records if isinstance(record.parsed, Document)]
    if not sample.records:
        raise UsageError(f"there are no records in {', '.join(options.inputs)}. Check --input.")
    if not documents:
        raise UsageError(
            f"none of {count(len(sample.records), 'sampled line')} has a text. Check --input and --text_field."
        )
    random.Random(0).shuffle(documents)
    return sample, documents


def _columns_of(options: PlanOptions, documents: Iterable[Document], output: OutputFolder | None) -> tuple[Column, ...]:
    """Return the columns with their types; those that the folder has for them already stay."""
    former = None
    if output is not None and options.columns:
        with contextlib.suppress(UsageError):  # `run` refuses the folder, or starts over with --overwrite
            former = read_job(output)
    lines = (document.line for document in documents)
    return choose_columns(options.columns, lines, former.columns if former is not None else ())


def _new(
    output: OutputFolder | None,
    reuse: Sequence[OutputFolder],
    plan: Plan,
    job: JobSpec,
    estimate: Mapping[str, Any],
) -> dict[str, Any] | None:
    """Return what is left to do where vectors exist already, in the output folder or in others; None if none do.

    The value has `done`, documents in shards that stay as they are; `texts`, those without a vector among the
    `documents` that were read; `exact`, whether all others were; and the `seconds` and `dollars` of all such texts.
    """
    cache = ReceiptCache()
    ledger = Ledger(plan, tuple(SourceLedger(source, {}, complete=False) for source in plan.sources))
    if output is not None:
        try:
            job = join(read_job(output), job, output.root)
        except UsageError:  # of other vectors, or unreadable: `run` refuses the folder, or starts over with --overwrite
            return None
        ledger = read_ledger(plan, output, job.digest, output.list(), cache)
    index = index_former(output, job, reuse, cache)
    if index is None:
        return None
    new = count_new(ledger.work_left(), plan, job, index, _COUNTED_BYTES)
    texts: float = new.texts
    if not new.exact:
        texts *= max(0, estimate["documents"] - ledger.embedded) / max(1, new.documents)
    seconds = texts / estimate["documents_per_second"]
    price = estimate["price_per_hour"]
    dollars = None if price is None else price * seconds / 3600
    return {"done": ledger.embedded, **new._asdict(), "seconds": seconds, "dollars": dollars}


def _infos(endpoint: EndpointSettings) -> dict[str, ServerInfo]:
    """Return what each server reports of itself, for those that answer now, of which there is at least one."""
    infos = {}
    for url in endpoint.urls:
        client = TeiClient(dataclasses.replace(endpoint, urls=(url,), give_up_after=_GIVE_UP_SECONDS))
        try:
            with contextlib.suppress(EndpointUnreachable):
                infos[url] = client.info()
        finally:
            client.close()
    if not infos:
        raise EndpointUnreachable(
            f"{', '.join(endpoint.urls)} no longer answers. Check that the server is still running."
        )
    return infos


def _tokens(
    endpoint: EndpointSettings, info: ServerInfo, documents: Sequence[Document]
) -> list[tuple[Document, int | None]] | None:
    """Return documents with their tokens before any cut; None if the endpoint does not count them."""
    transport = connect(endpoint)
    texts = [document.text for document in documents]
    try:
        counts = count_tokens(transport, endpoint.urls[0], info, texts, endpoint.prompt_name)
    except CannotTokenize:
        return None
    finally:
        transport.close()
    return list(zip(documents, counts, strict=True))
