"""The command `verify`: proof that every source line is there once, unchanged but for its vector."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from pipeline.commands.options import VerifyOptions
from pipeline.errors import ExitCode, NotProven, UsageError
from pipeline.job.ledger import Ledger, read_ledger, stale_files
from pipeline.job.sharding import Plan, read_plan
from pipeline.job.spec import Job, read_job
from pipeline.runners.endpoint import reached
from pipeline.verification.findings import Checked, Findings, Sample
from pipeline.verification.parallel import processes_for, spread
from pipeline.verification.shards import ShardWork, check_shards
from pipeline.verification.vectors import Fields, SpotCheck
from pipeline.verification.verify_files import at_once_for, check_files, ndjson_files
from transforms.elements import Shard
from transforms.output.folder import OutputFolder
from transforms.output.receipts import Receipt
from transforms.tei.settings import EndpointSettings


def verify(options: VerifyOptions, say: Callable[[str], None] = print) -> ExitCode:
    """Prove an output folder, of Tayyar or of another tool.

    Args:
        options: which, and how.
        say: takes the lines for the person at the terminal.

    Returns:
        DONE.

    Raises:
        UsageError: if there is nothing to verify, or an option is for another kind of folder.
        EndpointError: if documents cannot be embedded again, or another model does.
        NotProven: with the first ten findings.
    """
    output = OutputFolder(options.output, run="verify")
    job = read_job(output)
    check: Callable[[], Checked]
    if job is None:
        files = ndjson_files(output)
        settings = options.endpoint
        fields = Fields(options.text_field or "content", options.embedding_field or "embedding")
        if options.sample and not settings.urls:
            raise UsageError("--sample needs the server that made these vectors: name it with --endpoint.")
        check = partial(check_files, files, options, fields)
    else:
        _refuse_what_the_job_tells(output, options)
        fields, settings = Fields(job.text_field, job.embedding_field), _job_settings(job, options)
        check = partial(_check_job, output, job, read_plan(output, job.shard_bytes), options)
    with _spot_check(options, settings, fields) as spot_check:
        _conclude(check(), spot_check, output.root, say)
    return ExitCode.DONE


def _job_settings(job: Job, options: VerifyOptions) -> EndpointSettings:
    """Return how to embed documents of a job again."""
    return dataclasses.replace(
        options.endpoint,
        prompt_name=job.prompt_name,
        normalize=job.normalize,
        overlong=job.overlong,
        identity=job.model,
    )


def _check_job(output: OutputFolder, job: Job, plan: Plan, options: VerifyOptions) -> Checked:
    files = output.list()
    ledger = read_ledger(plan, output, job.digest, files)
    findings = Findings()
    for path in ledger.gone:
        findings.add(f"{path}: is no input any more, but receipts and embedded documents of it are here")
    for name in stale_files(ledger, output, files):
        findings.add(f"{name}: no valid receipt stands for this file")
    sample = _check_shards(ledger, output, job, options, findings)
    return Checked(_proof(ledger, job), sample, findings)


def _refuse_what_the_job_tells(output: OutputFolder, options: VerifyOptions) -> None:
    given = {
        "--input": options.inputs,
        "--text_field": options.text_field,
        "--embedding_field": options.embedding_field,
        "--prompt_name": options.endpoint.prompt_name,
    }
    for name, value in given.items():
        if value:
            raise UsageError(
                f"{name} is for files that another tool wrote. Leave it out: {output.path(output.job)} has it here."
            )


def _check_shards(ledger: Ledger, output: OutputFolder, job: Job, options: VerifyOptions, findings: Findings) -> Sample:
    items = [
        ShardWork(
            shard,
            job.shard_bytes,
            _receipts_of(shard, source.receipts),
            output,
            job,
            options.sample,
            options.seed,
        )
        for source in ledger.sources
        for shard in ledger.plan.shards_of(source.source)
    ]
    paths = [output.root, *(source.source.path for source in ledger.sources)]
    size = sum(receipt.output.bytes for receipt in ledger.receipts() if receipt.output)
    outcomes = spread(
        check_shards, items, processes_for(options.processes, size), at_once_for(paths), ledger.records, " records"
    )
    sample, broken = Sample(options.sample), set[str]()
    for outcome in outcomes:
        findings.extend(outcome.findings)
        if outcome.broken is not None and outcome.broken not in broken:
            broken.add(outcome.broken)
            findings.add(outcome.broken)
        sample.add(outcome.picks)
    return sample


def _receipts_of(shard: Shard, receipts: Mapping[int, Receipt]) -> Mapping[int, Receipt]:
    """Return a shard's own receipt if it has one; those of all shards of an unsplittable source."""
    if shard.end is None:
        return receipts
    return {shard.index: receipts[shard.index]} if shard.index in receipts else {}


def _proof(ledger: Ledger, job: Job) -> str:
    return (
        f"verified: {ledger.records} records in {len(ledger.sources)} files = "
        f"{ledger.embedded} embedded, each line unchanged and once, "
        f"with a vector of {job.model.dimensions} finite numbers, + {ledger.dead_letters} dead letters"
    )


@contextmanager
def _spot_check(options: VerifyOptions, settings: EndpointSettings, fields: Fields) -> Iterator[SpotCheck | None]:
    """Give what embeds documents again, when its endpoint has shown to serve the right model; None for nothing."""
    if not options.sample:
        yield None
        return
    with reached(settings, None, model=options.model) as (usable, _):
        yield SpotCheck(usable, fields, options.min_cosine)


def _conclude(checked: Checked, spot_check: SpotCheck | None, root: str, say: Callable[[str], None]) -> None:
    """Say what was proven, or raise NotProven with what was found."""
    findings, picks = checked.findings, checked.sample.picks
    compared = spot_check.run(picks, findings) if spot_check and picks else None
    if findings.count:
        shown = "\n".join(f"  {finding}" for finding in findings.first)
        meaning = f"\n{compared}" if compared else ""
        raise NotProven(f"{findings.count} findings in {root}, the first of them:\n{shown}{meaning}")
    say(checked.proof)
    if compared:
        say(compared)
