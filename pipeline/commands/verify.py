"""The command `verify`: proof that every source line is there once, unchanged but for its vector."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import orjson

from pipeline.commands.options.verify import VerifyOptions
from pipeline.commands.report import publish
from pipeline.errors import ExitCode, NotProven, UsageError
from pipeline.job import run_marker
from pipeline.job.input_selection import LeftOut, describe
from pipeline.job.ledger import Ledger, SourceLedger, read_ledger, relocate
from pipeline.job.sharding import make_plan, read_plan
from pipeline.job.spec import JobSpec, require_job
from pipeline.reporting.explain import too_many_dead_letters
from pipeline.reporting.numbers import count
from pipeline.reporting.report import make_report, origins, write_verified
from pipeline.runners.endpoint import open_endpoint, require_endpoint
from pipeline.runners.progress import CountBar, Waiting
from pipeline.verification.findings import Findings
from pipeline.verification.parallel import processes_for, run_parallel
from pipeline.verification.sampling import Reservoir, SpotCheck, require_same_space
from pipeline.verification.shards import CheckedShards, Expected, ShardWork, check_shards, is_own_file
from pipeline.verification.vectors import SharedVectors, norm_tolerance
from transforms.elements import Shard, Source
from transforms.output.folder import DATA, DEAD_LETTERS, OutputFolder
from transforms.output.layout import Layout
from transforms.output.receipts import Receipt
from transforms.storage import api as storage
from transforms.storage.api import WrittenFile
from transforms.storage.base import PARALLEL, FileStat, StorageError

_SHOWN_MISSING = 3  # paths, in one finding
_logger = logging.getLogger(__name__)


@dataclass
class _Checked:
    """The result of the whole folder.

    Attributes:
        findings: what is wrong.
        not_checked: what was not looked at, phrase by phrase.
        sample: lines to embed again.
        has_sound_report: whether the report, if there is one, gives the receipts' numbers.
    """

    findings: Findings = field(default_factory=Findings)
    not_checked: list[str] = field(default_factory=list)
    sample: Reservoir = field(default_factory=lambda: Reservoir(0))
    has_sound_report: bool = True


def verify(options: VerifyOptions, say: Callable[[str], None] = print) -> ExitCode:
    """Prove an output folder.

    Args:
        options: which, and how.
        say: takes the lines for the person at the terminal.

    Returns:
        DONE, or TOO_MANY_DEAD_LETTERS if it is all as it should be and more than the allowed share are dead letters.

    Raises:
        UsageError: if there is nothing to verify.
        EndpointError: if documents cannot be embedded again, or another model does.
        NotProven: with the first ten findings.
    """
    output = OutputFolder(options.output, run="verify")
    job = require_job(output)
    files = output.list()
    ledger = read_ledger(read_plan(output, job.shard_bytes), output, job.digest, files)
    as_reported = ledger, job
    problems: list[str] = []
    if options.inputs:
        now = make_plan(options.inputs, output.root, job.shard_bytes, exclude=job.exclude, warn=False)
        ledger, problems = relocate(ledger, now)
        job = dataclasses.replace(job, inputs=options.inputs)
    if not options.sample:
        checked = _check_folder(ledger, problems, output, files, job, options)
        compared = None
    else:
        settings = job.apply_to(options.endpoint)
        require_endpoint(settings, options.model, job.served)
        # The endpoint comes before the folder, whose reading may take minutes.
        with open_endpoint(settings, None, model=options.model, say=say) as (endpoint, profile):
            require_same_space(job.space, profile.space)
            usable = dataclasses.replace(endpoint, space=job.space)
            checked = _check_folder(ledger, problems, output, files, job, options)
            spot_check = SpotCheck(usable, job.text_field, job.embedding_field, options.min_cosine)
            picks = checked.sample.picks
            compared = None
            if picks:
                with Waiting(f"embedding {count(len(picks), 'document')} again"):
                    compared = spot_check.run(picks, checked.findings)
            else:
                checked.not_checked.append("the vectors against the model (there is no document to embed again)")
    _save_result(checked, *as_reported, output)
    return _conclude(checked, compared, ledger, job, options, output, say)


def _check_folder(
    ledger: Ledger,
    problems: Sequence[str],
    output: OutputFolder,
    files: Mapping[str, FileStat],
    job: JobSpec,
    options: VerifyOptions,
) -> _Checked:
    checked = _Checked(sample=Reservoir(options.sample))
    findings = checked.findings
    for problem in problems:
        findings.add(problem)
    _check_complete(ledger, findings)
    _check_inputs(ledger, output, job, checked)
    _check_files(ledger, output, files, job, findings)
    _check_shards(ledger, output, job, options, checked)
    if ledger.complete:  # the report of an unfinished job is of some moment
        before = findings.count
        _check_report(ledger, job, output, findings)
        checked.has_sound_report = findings.count == before
    if not options.sample:
        checked.not_checked.append("the vectors against the model (give --sample N and --endpoint URL)")
    return checked


def _check_complete(ledger: Ledger, findings: Findings) -> None:
    """Add one finding for all shards that are not done."""
    if ledger.complete:
        return
    if ledger.doubt:
        findings.add(ledger.doubt)
    done, expected = sum(1 for _ in ledger.receipts()), ledger.shards_expected
    if expected is None:
        left = [source.source.path for source in ledger.sources if not source.complete]
        more = len(left) - _SHOWN_MISSING
        shown = ", ".join(left[:_SHOWN_MISSING]) + (f" and {more} more" if more > 0 else "")
        is_done = "is done" if done == 1 else "are done"
        findings.add(f"{count(done, 'shard')} {is_done}, and {shown} only in part; run again")
    else:
        findings.add(f"{done:,} of {count(expected, 'shard')} are done; run again")


def _check_inputs(ledger: Ledger, output: OutputFolder, job: JobSpec, checked: _Checked) -> None:
    """Match the inputs' patterns again: a source that the plan lacks has no vectors, and nothing else would show it."""
    planned = {source.source.path for source in ledger.sources}
    new = set[str]()
    problems = dict[str, None]()
    left_out = dict[str, LeftOut]()
    # All at once, as the run did, because a file and a link to it may match different patterns; if that is refused,
    # each alone: a pattern that has lost all its files is no finding.
    for patterns in dict.fromkeys((job.inputs, *((pattern,) for pattern in job.inputs))):
        try:
            plan = make_plan(patterns, output.root, job.shard_bytes, exclude=job.exclude, warn=False)
            left_out.update((one.path, one) for one in plan.left_out)
            new.update(source.path for source in plan.sources)
        except UsageError as error:
            # With the slash, a folder is not taken for its siblings, which a shorter prefix would name, too.
            prefix = storage.fixed_prefix(f"{patterns[0]}/")
            its_own = [path for path in planned if path == patterns[0] or path.startswith(prefix)]
            is_there = any(storage.stat(path) is not None for path in its_own)
            if len(patterns) == 1 and is_there:
                problems[f"the inputs cannot be matched again: {error}"] = None
        else:
            if patterns == job.inputs:
                break
    if left_out:
        _logger.warning("%s", describe(list(left_out.values())))
    for problem in problems:
        checked.findings.add(problem)
    for path in sorted(new - planned):
        checked.findings.add(f"{path}: not embedded yet; run again")


def _check_files(
    ledger: Ledger, output: OutputFolder, files: Mapping[str, FileStat], job: JobSpec, findings: Findings
) -> None:
    """Add a finding for each file that no receipt vouches for, and for each one that is a link."""
    vouched = ledger.vouched_files(output)
    folders = tuple(f"{folder}/" for folder in (DATA, DEAD_LETTERS, output.receipts))
    for name in sorted(files):
        if name.startswith(folders) and name not in vouched:
            findings.add(f"{name}: no valid receipt vouches for this file; run again, and remove it if it stays")
    for name in sorted(vouched):
        if not is_own_file(output, name):
            findings.add(f"{name}: is a link, or in a folder that is one, and may be anybody's file")
    for receipt in ledger.receipts():
        for written, expected in (
            (receipt.output, output.embedded(receipt.shard, job.output_format)),
            (receipt.dead_letter_output, output.dead_letters(receipt.shard)),
        ):
            if written is not None and written.path != expected:
                findings.add(f"{output.receipt(receipt.shard)}: names {written.path}, but should name {expected}")


def _check_shards(
    ledger: Ledger, output: OutputFolder, job: JobSpec, options: VerifyOptions, checked: _Checked
) -> None:
    """Check every shard that is done, and equal vectors over all of them."""
    expected = Expected(
        text_field=job.text_field,
        layout=job.layout,
        shard_bytes=job.shard_bytes,
        dimensions=job.model.dimensions,
        norm_tolerance=norm_tolerance(job.model.dtype, job.vector_type) if job.normalize else None,
        models=frozenset(served.model_id for served in job.history),
    )
    # Sources that the inputs no longer have are checked as those that no longer exist: in their output alone.
    sources = [*ledger.sources, *_sources_kept(ledger)]
    with ThreadPoolExecutor(PARALLEL) as threads:
        stats = list(threads.map(lambda source: storage.stat(source.source.path), ledger.sources))
    gone = {number for number in range(len(sources)) if number >= len(stats) or stats[number] is None}
    items = [
        ShardWork(work, number, receipts, output, its_own, number in gone, options.sample, options.seed)
        for number, source in enumerate(sources)
        for work, receipts in _work_of(ledger, source, number in gone)
        for its_own in [_expected_of(expected, receipts, job)]
        if all(_is_readable(receipt, output, its_own.layout) for receipt in receipts.values())
    ]
    shared = SharedVectors(
        lambda source, shard: output.path(_output_of(sources[source].by_index[shard]).path),
        job.text_field,
        job.embedding_field,
    )
    found: dict[int, CheckedShards] = {}
    size = sum(receipt.output.bytes for receipt in ledger.receipts() if receipt.output)
    with CountBar(ledger.records, "record") as bar:
        for index, result in run_parallel(check_shards, items, processes_for(options.processes, size)):
            shared.add(result.rows)
            checked.sample.add(result.picks)
            bar.add(result.records)
            if result.findings.count or result.broken:
                found[index] = dataclasses.replace(result, rows=result.rows[:0], picks=[])
    broken = set[str]()
    for _, result in sorted(found.items()):
        checked.findings.extend(result.findings)
        if result.broken is not None and result.broken not in broken:
            broken.add(result.broken)
            checked.findings.add(result.broken)
    if problem := shared.find():
        checked.findings.add(problem)
    if gone:
        _note_gone([sources[number] for number in sorted(gone)], len(sources), checked)


def _note_gone(gone: Sequence[SourceLedger], total: int, checked: _Checked) -> None:
    """Note that the records of sources that no longer exist were checked in the output alone."""
    paths = [source.source.path for source in gone]
    if len(gone) == total:
        checked.findings.add(
            f"{paths[0]}: is gone, as are all sources, so there is nothing to compare with; if they have moved, "
            "give --input"
        )
    records = sum(source.records for source in gone)
    verb, whose = ("no longer exists", "its") if len(gone) == 1 else ("no longer exist", "their")
    checked.not_checked.append(
        f"{len(gone)} of {count(total, 'source')} {verb} ({paths[0]}{' first' if paths[1:] else ''}): "
        f"{whose} {count(records, 'record')} {'was' if records == 1 else 'were'} checked in the output alone"
    )


def _sources_kept(ledger: Ledger) -> list[SourceLedger]:
    """Return the sources that the plan does not have, as their receipts describe them."""
    by_name: dict[str, dict[int, Receipt]] = {}
    for receipt in ledger.gone_receipts:
        by_name.setdefault(receipt.shard.rpartition("-")[0], {})[receipt.index] = receipt
    return [
        SourceLedger(Source(one.source, name, one.source_size, one.source_version), receipts, complete=True)
        for name, receipts in sorted(by_name.items())
        for one in [next(iter(receipts.values()))]
    ]


def _expected_of(expected: Expected, receipts: Mapping[int, Receipt], job: JobSpec) -> Expected:
    """Return what holds for shards that are made with the settings in their receipts, which may be a former run's."""
    one = next(iter(receipts.values()), None)
    if one is None or one.output is None or one.job == job.digest:
        return expected
    made = one.provenance
    layout = Layout(one.output.path.rpartition(".")[2], made.embedding_field, made.vector_type, None)
    tolerance = norm_tolerance(job.model.dtype, made.vector_type) if job.normalize else None
    return dataclasses.replace(expected, text_field=made.text_field, layout=layout, norm_tolerance=tolerance)


def _output_of(receipt: Receipt) -> WrittenFile:
    """Return the output of a shard with documents."""
    assert receipt.output is not None
    return receipt.output


def _work_of(ledger: Ledger, source: SourceLedger, is_gone: bool) -> Iterator[tuple[Shard, Mapping[int, Receipt]]]:
    """Yield a source's work items with the receipts of each."""
    if is_gone:
        for index, receipt in sorted(source.by_index.items()):
            yield Shard(source.source, index, receipt.start, receipt.end, receipt.last), {index: receipt}
        return
    for shard in ledger.plan.shards_of(source.source):
        if shard.end is None:
            yield shard, source.by_index
        elif shard.index in source.by_index:
            yield shard, {shard.index: source.by_index[shard.index]}


def _is_readable(receipt: Receipt, output: OutputFolder, layout: Layout) -> bool:
    """Return whether a receipt's files are the shard's own: others were found before, and are not read."""
    names = (output.embedded(receipt.shard, layout.format), output.dead_letters(receipt.shard))
    written = (receipt.output, receipt.dead_letter_output)
    return all(
        file is None or (file.path == name and is_own_file(output, name))
        for file, name in zip(written, names, strict=True)
    )


def _check_report(ledger: Ledger, job: JobSpec, output: OutputFolder, findings: Findings) -> None:
    """Compare the totals of report.json, but for its prices, with those of the receipts; no report is no finding."""
    data = output.read(output.report)
    if data is None:
        return
    expected = dataclasses.asdict(make_report(ledger, job, output.root, price_per_hour=None).totals)
    try:
        totals = orjson.loads(data)["totals"]
        wrong = [name for name, value in expected.items() if not name.startswith("dollars") and totals[name] != value]
    except (ValueError, KeyError, TypeError):
        findings.add(f"{output.report}: is not a report; write it again with tayyar report")
        return
    for name in wrong:
        findings.add(
            f"{output.report}: {name} is {totals[name]}, but {expected[name]} in the receipts; "
            "write it again with tayyar report"
        )


def _save_result(checked: _Checked, ledger: Ledger, job: JobSpec, output: OutputFolder) -> None:
    """Save what was found, also in the report, if there is one.

    A run at work will write the report itself, and one that is a finding stays as it is, also that of a folder which
    has lost a receipt since. A folder that cannot be written, such as a read-only copy, can be verified all the same.
    """
    try:
        write_verified(output, checked.findings.count)
        has_report = ledger.complete and checked.has_sound_report and output.read(output.report) is not None
        if has_report and not run_marker.writers(output):
            publish(ledger, job, output, None, say=lambda _: None, keep_page=True)
        output.tidy()
    except (StorageError, OSError) as error:
        _logger.warning("the report will not show this verification, because it cannot be saved: %s", error)


def _conclude(
    checked: _Checked,
    compared: str | None,
    ledger: Ledger,
    job: JobSpec,
    options: VerifyOptions,
    output: OutputFolder,
    say: Callable[[str], None],
) -> ExitCode:
    """Print what was proven and return the exit code: TOO_MANY_DEAD_LETTERS above `--max_dead_letter_ratio`, or DONE.

    Raises:
        NotProven: if there is a finding; its message lists the first of them.
    """
    findings = checked.findings
    if findings.count:
        more = ", the first of them" if findings.count > len(findings.first) else ""
        raise NotProven(
            f"{count(findings.count, 'finding')} in {output.root}{more}:",
            *(f"  {finding}" for finding in findings.first),
            *([compared] if compared else []),
        )
    say(
        f"verified: {count(ledger.records, 'record')} in {count(len(ledger.sources), 'file')} = "
        f"{ledger.embedded:,} embedded{origins(ledger)}, each line unchanged and once, "
        f"with a vector of {count(job.model.dimensions, 'finite number')}, + "
        f"{count(ledger.dead_letters, 'dead letter')}"
    )
    if compared:
        say(compared)
    if checked.not_checked:
        say(f"not checked: {'; '.join(checked.not_checked)}")
    if problem := too_many_dead_letters(ledger, options.max_dead_letter_ratio, output.path(DEAD_LETTERS)):
        say(problem)
        return ExitCode.TOO_MANY_DEAD_LETTERS
    return ExitCode.DONE
