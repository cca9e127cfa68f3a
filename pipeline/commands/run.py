"""The command `run`: plan, embed, write, report; what is done already is not done again."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from importlib import metadata

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from pipeline import graph
from pipeline.commands.options import RunOptions
from pipeline.commands.report import publish
from pipeline.errors import ExitCode, UsageError
from pipeline.job import run_marker
from pipeline.job.ledger import Ledger, ReceiptCache, planned_files, read_ledger, stale_files
from pipeline.job.preflight import require_usable
from pipeline.job.shard_replacement import finish_replacements
from pipeline.job.sharding import Plan, make_plan, write_plan
from pipeline.job.spec import JobSpec, read_job, require_same_job, write_job
from pipeline.planning import estimate
from pipeline.reporting.numbers import count, size
from pipeline.reporting.report import run_of, summary
from pipeline.runners.endpoint import reached
from pipeline.runners.parallelism import count_processes
from pipeline.runners.progress import Progress
from pipeline.runners.runner import beam_options, require_reach, run_pipeline, template_of
from transforms.elements import Shard
from transforms.output.folder import JOB, OutputFolder
from transforms.tei.settings import EndpointSettings

_logger = logging.getLogger(__name__)


def run(options: RunOptions, say: Callable[[str], None] = print) -> ExitCode:
    """Embed what is not embedded yet.

    Args:
        options: what to embed, how and where to.
        say: takes the lines for the person at the terminal.

    Returns:
        DONE, or TOO_MANY_DEAD_LETTERS.

    Raises:
        UsageError: before anything is sent.
        EndpointError: if the endpoint cannot do the job.
        PipelineFailed: if anything else fails it; running again goes on from there.
        NotProven: if records are missing in the end.
    """
    started = time.time()
    pipeline_options = _pipeline_options(options)
    plan = make_plan(options.inputs, options.output, options.shard_bytes)
    output, cache = OutputFolder(options.output, _run_name()), ReceiptCache()
    require_usable(output)
    shared = dataclasses.replace(options.endpoint, processes=count_processes(pipeline_options))
    with ExitStack() as stack:
        stack.enter_context(_without_looking_through_what_is_loaded())
        with reached(shared, options.expected_dimensions, model=options.model) as (endpoint, wire_format):
            job = _job_of(options, endpoint, wire_format)
            _make_way(output, plan, job, options.overwrite)
            others = stack.enter_context(
                run_marker.registered(output, pipeline_options.view_as(StandardOptions).runner)
            )
            before = _prepare(output, plan, job, others, cache)
            say(_opening(plan, before, job))
            settings = _graph_settings(options, endpoint, output, job)
            ledger = _embed(before, output, pipeline_options, settings, cache, say)
        if template_of(pipeline_options) and before.work_left():
            say(_after_a_template(template_of(pipeline_options), output))
            return ExitCode.DONE
        ledger.require_balance()
        arguments = sys.argv[1:] if sys.argv[1:2] == ["run"] else []  # none where another program calls this
        done = run_of(before, ledger, arguments, endpoint.urls, started, time.time())
        report = publish(ledger, job, output, options.price_per_hour, say, done)
    for line in summary(report, done):
        say(line)
    return _judge(ledger, options, output, say)


def _pipeline_options(options: RunOptions) -> PipelineOptions:
    found = beam_options(options.beam)
    require_reach(found, options.inputs, options.output, options.endpoint.urls)
    FileSystems.set_options(found)
    return found


@contextmanager
def _without_looking_through_what_is_loaded() -> Iterator[None]:
    """Spare the garbage collector what is loaded by now, and stays: that took it 0.25 s a run."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _judge(ledger: Ledger, options: RunOptions, output: OutputFolder, say: Callable[[str], None]) -> ExitCode:
    if ledger.dead_letters > options.max_dead_letter_ratio * ledger.records:
        say(
            f"{ledger.dead_letters} of {ledger.records} records are dead letters, more than --max_dead_letter_ratio "
            f"{options.max_dead_letter_ratio} allows; they are in {output.path('dead_letters')}"
        )
        return ExitCode.TOO_MANY_DEAD_LETTERS
    return ExitCode.DONE


def _run_name() -> str:
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{socket.gethostname()}-{os.getpid()}"


def _job_of(options: RunOptions, endpoint: EndpointSettings, wire_format: str) -> Job:
    if endpoint.identity is None:
        raise RuntimeError("the endpoint was not probed")
    return Job(
        model=endpoint.identity,
        prompt_name=endpoint.prompt_name,
        normalize=endpoint.normalize,
        overlong=endpoint.overlong,
        text_field=options.text_field,
        embedding_field=options.embedding_field,
        shard_bytes=options.shard_bytes,
        inputs=options.inputs,
        version=metadata.version("tayyar"),
        wire_format=wire_format,
    )


def _make_way(output: OutputFolder, plan: Plan, job: JobSpec, overwrite: bool) -> None:
    """See that the output folder can be used.

    Raises:
        UsageError: if it cannot be, holds another job and is not to be overwritten, or is to be while somebody writes.
    """
    if overwrite:
        other = run_marker.read_marker(output)
        if other is not None and not other.is_gone:
            raise UsageError(
                f"--overwrite would delete what {other} is writing to {output.root}. Stop it first; if it was killed, "
                f"delete {output.path(other.name)}."
            )
        _delete_former_job(output)
    former = read_job(output)
    require_same_job(former, job, output.root)
    if former is None and not overwrite:
        _require_room(output, planned_files(plan, output.list()))


def _prepare(
    output: OutputFolder, plan: Plan, job: JobSpec, others: Sequence[run_marker.RunMarker], cache: ReceiptCache
) -> Ledger:
    """Bring the output folder to the state from which the run goes on, and return what is done in it already."""
    if others:
        _logger.warning(
            "another command (%s) may still be at work in %s; two runs at once do no harm, but send texts twice",
            others[0],
            output.root,
        )
    else:  # then what is not whole was left by a command that died
        finish_replacements(output)
        run_marker.remove_leftovers(output)
    files = output.list()
    ledger = read_ledger(plan, output, job.digest, files, cache)
    if ledger.gone:
        _logger.warning(
            "%d inputs of former runs are there no more, %s first; what was embedded of them stays in %s",
            len(ledger.gone),
            ledger.gone[0],
            output.root,
        )
    _delete_stale(ledger, output, files)
    write_job(job, output)
    write_plan(plan, output)
    return ledger


def _require_room(output: OutputFolder, in_the_way: Sequence[str]) -> None:
    """Refuse to write over files that no job of ours can have left; raises UsageError."""
    if in_the_way:
        raise UsageError(
            f"{output.path(in_the_way[0])} is in the way: the job would write a file of this name, "
            "and this folder holds no job yet. Choose another --output, or move the file away."
        )


def _delete_stale(ledger: Ledger, output: OutputFolder, files: Iterable[str]) -> None:
    """Delete receipts that are not valid, and all files of shards that the plan has no more.

    The other files stay till the end: another run may be about to write the receipts that stand for them.
    """
    stale = stale_files(ledger, output, files)
    receipts = [name for name in stale if name.startswith(f"{output.receipts}/")]
    beyond = set(stale) - set(planned_files(ledger.plan, stale)) - set(receipts)
    output.delete(sorted(beyond))  # before the receipts, by whose names alone they are known
    output.delete(receipts)


def _delete_former_job(output: OutputFolder) -> None:
    """Delete what the former job's receipts stand for, and what is in `_job`; nothing else that is there.

    An estimate that is newer than the former job's receipts is of the job that begins now.
    """
    files = output.list()
    ours = [name for name in files if name.startswith(f"{JOB}/")]
    last = max(
        (files[name].mtime for name in ours if name == output.job or name.startswith(output.receipts)), default=0
    )
    if estimate.NAME in ours and files[estimate.NAME].mtime > last:
        ours.remove(estimate.NAME)
    shards = [
        name.removeprefix(f"{output.receipts}/").removesuffix(".json")
        for name in ours
        if name.startswith(f"{output.receipts}/")
    ]
    output.delete(name for shard in shards for name in (output.embedded(shard), output.dead_letters(shard)))
    # Receipts name the files to delete, so they go behind them; and the job's description last: until then, an
    # interrupted deletion leaves the former job's folder.
    output.delete(sorted(ours, key=lambda name: (name == output.job, name)))


def _opening(plan: Plan, before: Ledger, job: JobSpec) -> str:
    total = sum(source.size for source in plan.sources)
    done = f"; {count(before.embedded, 'document')} done already" if before.embedded else ""
    model = f"{job.model.model_id}, {count(job.model.dimensions, 'dimension')}"
    return f"{count(len(plan.sources), 'file')}, {size(total)}, {model}{done}"


def _graph_settings(
    options: RunOptions, endpoint: EndpointSettings, output: OutputFolder, job: JobSpec
) -> graph.Settings:
    return graph.Settings(
        endpoint=endpoint,
        output=output,
        job=job.digest,
        model=job.model.model_id,
        text_field=options.text_field,
        embedding_field=options.embedding_field,
        shard_bytes=options.shard_bytes,
        max_dead_letter_ratio=options.max_dead_letter_ratio,
    )


def _after_a_template(template: str, output: OutputFolder) -> str:
    return (
        f"the job is described in {template} and starts when Dataflow is told to. From then on:\n"
        f"  tayyar status --output {output.root}\n"
        f"  tayyar report --output {output.root}"
    )


def _embed(
    before: Ledger,
    output: OutputFolder,
    options: PipelineOptions,
    settings: graph.Settings,
    cache: ReceiptCache,
    say: Callable[[str], None],
) -> Ledger:
    """Run the pipeline over what is left, clean up, and return the ledger after it."""
    files = output.list()
    work = before.work_left()
    if work:
        seen = {name for name in files if name.startswith(output.receipts + "/")}
        with Progress(output, seen, _stored_bytes(work), cache=cache):
            run_pipeline(options, lambda pipeline: graph.build(pipeline, work, settings), say)
    files = output.list()
    ledger = read_ledger(before.plan, output, settings.job, files, cache)
    output.delete(stale_files(ledger, output, files))
    return ledger


def _stored_bytes(work: Sequence[Shard]) -> int:
    return sum(shard.source.size if shard.end is None else shard.end - shard.start for shard in work)
