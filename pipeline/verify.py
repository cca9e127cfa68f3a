"""The command `verify`: proof that every source line is there once, unchanged but for its vector."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.endpoint import reached
from pipeline.errors import ExitCode, NotProven, UsageError
from pipeline.file_check import FileOutcome, FileWork, check_file
from pipeline.findings import Findings, Sample
from pipeline.job import Job, read_job
from pipeline.ledger import Ledger, read_ledger, stale_files
from pipeline.options import VerifyOptions
from pipeline.plan import ENDINGS, make_plan, read_plan, stem
from pipeline.shard_check import ShardWork, check_shards
from pipeline.spot_check import Fields, SpotCheck
from pipeline.spread import spread
from transforms import storage
from transforms.decompress import is_compressed
from transforms.files import FileStat
from transforms.output import JOB, OutputFolder
from transforms.tei.settings import EndpointSettings

_RANGE_BYTES = 16 << 20  # of a file that another tool wrote: one work item
_WORTH_PROCESSES = 128 << 20  # bytes: less is read while a process starts
_AT_ONCE_IN_BUCKETS = 4  # work items of a process: one waits while the other is parsed


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
    if job is None:
        _verify_files(output, options, say)
    else:
        _verify_job(output, job, options, say)
    return ExitCode.DONE


# --- what Tayyar wrote ------------------------------------------------------------------------------------------------


def _verify_job(output: OutputFolder, job: Job, options: VerifyOptions, say: Callable[[str], None]) -> None:
    _refuse_what_the_job_tells(output, options)
    plan = read_plan(output, job.shard_bytes)
    settings = dataclasses.replace(
        options.endpoint,
        prompt_name=job.prompt_name,
        normalize=job.normalize,
        overlong=job.overlong,
        identity=job.model,
    )
    with _spot_check(options, settings, Fields(job.text_field, job.embedding_field)) as spot_check:
        files = output.list()
        ledger = read_ledger(plan, output, job.digest, files)
        findings = Findings()
        for path in ledger.gone:
            findings.add(f"{path}: is no input any more, but receipts and embedded documents of it are here")
        for name in stale_files(ledger, output, files):
            findings.add(f"{name}: no valid receipt stands for this file")
        sample = _check_shards(ledger, output, job, options, findings)
        _conclude(_proof(ledger, job), sample, spot_check, findings, output.root, say)


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
            {i: receipt for i, receipt in source.receipts.items() if shard.end is None or i == shard.index},
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
    outcomes = spread(check_shards, items, _processes(options, size), _at_once(paths), ledger.records, " records")
    sample, broken = Sample(options.sample), set[str]()
    for outcome in outcomes:
        findings.extend(outcome.findings)
        if outcome.broken is not None and outcome.broken not in broken:
            broken.add(outcome.broken)
            findings.add(outcome.broken)
        sample.add(outcome.picks)
    return sample


def _proof(ledger: Ledger, job: Job) -> str:
    return (
        f"verified: {ledger.records} records in {len(ledger.sources)} files = "
        f"{ledger.embedded} embedded, each line unchanged and once, "
        f"with a vector of {job.model.dimensions} finite numbers, + {ledger.dead_letters} dead letters"
    )


# --- what another tool wrote ------------------------------------------------------------------------------------------


def _verify_files(output: OutputFolder, options: VerifyOptions, say: Callable[[str], None]) -> None:
    files = _ndjson_files(output)
    fields = Fields(options.text_field or "content", options.embedding_field or "embedding")
    if options.sample and not options.endpoint.urls:
        raise UsageError("--sample needs the server that made these vectors: name it with --endpoint.")
    findings = Findings()
    sources = _sources_of(files, options, findings)
    items = [
        FileWork(path, start, end, size, source, fields.text, fields.embedding, options.sample, options.seed)
        for path, start, end, size, source in _ranges(files, sources)
    ]
    with _spot_check(options, options.endpoint, fields) as spot_check:
        size = sum(file.size for file in files.values())
        paths = [output.root, *options.inputs]
        outcomes = spread(check_file, items, _processes(options, size), _at_once(paths), size, "B")
        dimensions = _dimensions(outcomes)
        sample = Sample(options.sample)
        for item, outcome in zip(items, outcomes, strict=True):
            findings.extend(outcome.findings)
            _note_other_sizes(item.path, outcome, dimensions, findings)
            sample.add(outcome.picks)
        lines = sum(outcome.lines for outcome in outcomes)
        proof = _proof_of_files(lines, len(files), dimensions, bool(options.inputs))
        _conclude(proof, sample, spot_check, findings, output.root, say)


def _ndjson_files(output: OutputFolder) -> dict[str, FileStat]:
    """Return the files to verify in a folder without a job, by name.

    Raises:
        UsageError: if there is none, or if a part of a job is there: then it is Tayyar's, and damaged.
    """
    files = output.list()
    found = {name: file for name, file in files.items() if name.endswith(ENDINGS)}
    if not found or any(JOB in name.split("/") for name in files):
        raise UsageError(
            f"{output.root} is no output folder of Tayyar: it has no {output.job}"
            f"{'' if found else ', and no NDJSON files of another tool either'}. Check --output."
        )
    return found


def _sources_of(files: dict[str, FileStat], options: VerifyOptions, findings: Findings) -> dict[str, str]:
    """Return for each file the input of the same name; those that have no partner are findings."""
    if not options.inputs:
        return {}
    named = {source.name: source.path for source in make_plan(options.inputs, options.output, _RANGE_BYTES).sources}
    names = {stem(name): name for name in files}
    for name in sorted(named.keys() - names.keys()):
        findings.add(f"{named[name]}: no file of this name is in {options.output}")
    for name in sorted(names.keys() - named.keys()):
        findings.add(f"{files[names[name]].path}: no --input has this name")
    return {names[name]: path for name, path in named.items() if name in names}


def _ranges(
    files: dict[str, FileStat], sources: dict[str, str]
) -> Iterator[tuple[str, int, int | None, int, str | None]]:
    """Yield path, beginning, end, size and source of each work item."""
    for name in sorted(files):
        file = files[name]
        if name in sources or is_compressed(name):
            yield file.path, 0, None, file.size, sources.get(name)
            continue
        for start in range(0, file.size, _RANGE_BYTES):
            end = min(start + _RANGE_BYTES, file.size)
            yield file.path, start, end, end - start, None


def _dimensions(outcomes: list[FileOutcome]) -> int:
    """Return the size that most vectors have; 0 if there are none."""
    sizes: Counter[int] = Counter()
    for outcome in outcomes:
        sizes.update({size: count for size, (count, _) in outcome.sizes.items()})
    return max(sizes, key=lambda size: (sizes[size], size), default=0)


def _note_other_sizes(path: str, outcome: FileOutcome, dimensions: int, findings: Findings) -> None:
    for size, (count, first) in sorted(outcome.sizes.items(), key=lambda pair: pair[1][1]):
        if size != dimensions:
            more = f", and those of {count - 1} lines behind it have as many" if count > 1 else ""
            findings.add(f"{path}, byte {first}: the vector has {size} numbers; most have {dimensions}{more}")


def _proof_of_files(lines: int, files: int, dimensions: int, compared: bool) -> str:
    if compared:
        return (
            f"verified: {lines} lines in {files} files, each the line of its input with a vector of {dimensions} "
            "finite numbers, and none missing"
        )
    return (
        f"checked: {lines} lines in {files} files, each with a text and a vector of {dimensions} finite numbers. "
        "Whether lines are missing or changed is not known: name the inputs with --input"
    )


# --- both -------------------------------------------------------------------------------------------------------------


@contextmanager
def _spot_check(options: VerifyOptions, settings: EndpointSettings, fields: Fields) -> Iterator[SpotCheck | None]:
    """Give what embeds documents again, when its endpoint has shown to serve the right model; None for nothing."""
    if not options.sample:
        yield None
        return
    with reached(settings, None) as (usable, _):
        yield SpotCheck(usable, fields, options.min_cosine)


def _conclude(
    proof: str,
    sample: Sample,
    spot_check: SpotCheck | None,
    findings: Findings,
    root: str,
    say: Callable[[str], None],
) -> None:
    """Say what was proven, or raise NotProven with what was found."""
    compared = spot_check.run(sample.picks, findings) if spot_check and sample.picks else None
    if findings.count:
        shown = "\n".join(f"  {finding}" for finding in findings.first)
        meaning = f"\n{compared}" if compared else ""
        raise NotProven(f"{findings.count} findings in {root}, the first of them:\n{shown}{meaning}")
    say(proof)
    if compared:
        say(compared)


def _processes(options: VerifyOptions, size: int) -> int:
    """Return how many processes it takes to read so many bytes."""
    if options.processes is not None:
        return options.processes
    return (os.cpu_count() or 1) if size >= _WORTH_PROCESSES else 1


def _at_once(paths: list[str]) -> int:
    return 1 if all(storage.is_local(path) for path in paths) else _AT_ONCE_IN_BUCKETS
