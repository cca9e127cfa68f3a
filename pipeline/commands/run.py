"""The command `run`: plan, embed, write, report; what is done already is not done again."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timezone
from importlib import metadata

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from pipeline import graph
from pipeline.commands.options.plan import PlanOptions
from pipeline.commands.options.run import RunOptions
from pipeline.commands.report import publish
from pipeline.errors import ExitCode, PipelineFailed
from pipeline.job import run_marker
from pipeline.job.doubt import discard_doubtful
from pipeline.job.former_vectors import count_new, forget_former, reusable_folders
from pipeline.job.ledger import Ledger, ReceiptCache, read_ledger, stale_files
from pipeline.job.preflight import require_usable
from pipeline.job.preparation import join_folder, prepare
from pipeline.job.sharding import Plan, make_plan
from pipeline.job.spec import JobSpec, ServedModel, read_job
from pipeline.planning.estimate import ESTIMATE
from pipeline.planning.sampling import sample_lines
from pipeline.reporting.explain import too_many_dead_letters
from pipeline.reporting.numbers import count, size
from pipeline.reporting.report import run_of, summary
from pipeline.runners.endpoint import open_endpoint
from pipeline.runners.parallelism import count_processes
from pipeline.runners.progress import Progress
from pipeline.runners.runner import beam_options, require_reach, run_pipeline, template_of
from transforms.doubt import read_doubts, record_doubt
from transforms.list_shards import write_lists
from transforms.output.folder import DEAD_LETTERS, OutputFolder
from transforms.output.layout import PARQUET, Column
from transforms.output.values import choose_columns
from transforms.read_shards import read_damage
from transforms.reuse.index import IndexHandle
from transforms.storage.api import FileStat
from transforms.tei.errors import EndpointError, VectorsDoubtful
from transforms.tei.handshake import EndpointProfile
from transforms.tei.settings import EndpointSettings
from transforms.tei.sharing import settled_texts


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
        PipelineFailed: if anything else fails it; running again continues from there.
        NotProven: if records are missing in the end.
    """
    started = time.time()
    pipeline_options = _pipeline_options(options)
    plan = make_plan(options.inputs, options.output, options.shard_bytes, options.text_field, options.exclude)
    output, cache = OutputFolder(options.output, run_marker.new_run_name()), ReceiptCache()
    require_usable(output)
    shared = dataclasses.replace(options.endpoint, processes=count_processes(pipeline_options))
    with ExitStack() as stack:
        with open_endpoint(shared, options.expected_dimensions, model=options.model, say=say) as (endpoint, profile):
            # Before anything is read or deleted there: of two runs that start over at once, one must see the other.
            others = stack.enter_context(
                run_marker.registered(output, pipeline_options.view_as(StandardOptions).runner)
            )
            job = join_folder(
                output,
                plan,
                job_of(options, endpoint, profile, _columns_of(options, plan, output)),
                others,
                say,
                overwrite=options.overwrite,
                keep=(ESTIMATE,),
            )
            reuse = reusable_folders(options.reuse, job)
            before, index = prepare(output, plan, job, others, cache, say, prune=options.prune, reuse=reuse)
            say(_opening(plan, before, job, index))
            settings = _graph_settings(options, endpoint, output, job, index)
            ledger = _embed(before, output, pipeline_options, settings, cache, say)
        if template_of(pipeline_options) and before.work_left():
            for line in _after_a_template(template_of(pipeline_options), output):
                say(line)
            return ExitCode.DONE
        ledger.require_balance()
        if not run_marker.writers(output):  # others that have begun meanwhile may read them
            forget_former(output)
        arguments = sys.argv[1:] if sys.argv[1:2] == ["run"] else []  # none where another program calls this
        done = run_of(before, ledger, arguments, endpoint.urls, started, time.time())
        report = publish(ledger, job, output, options.price_per_hour, say, done)
    for line in summary(report, done):
        say(line)
    return _judge(ledger, options, output, say)


def job_of(
    options: RunOptions | PlanOptions,
    endpoint: EndpointSettings,
    profile: EndpointProfile,
    columns: tuple[Column, ...],
) -> JobSpec:
    """Return the job as this run alone describes it, before it joins a folder; `plan` estimates the same one."""
    output_format = options.output_format.value
    return JobSpec(
        space=profile.space,
        history=(ServedModel.of(profile.identity, endpoint.prompt_name, datetime.now(timezone.utc)),),
        overlong=endpoint.overlong,
        dimensions=endpoint.dimensions,
        text_field=options.text_field,
        embedding_field=options.embedding_field,
        shard_bytes=options.shard_bytes,
        inputs=options.inputs,
        exclude=options.exclude,
        version=metadata.version("tayyar"),
        wire_format=profile.wire.format.value,
        output_format=output_format,
        vector_type=options.vector_type.value,
        columns=columns,
        pyarrow=metadata.version("pyarrow") if output_format == PARQUET else None,
    )


def _pipeline_options(options: RunOptions) -> PipelineOptions:
    found = beam_options(options.beam)
    require_reach(found, options.inputs, options.output, options.endpoint.urls)
    FileSystems.set_options(found)
    return found


def _judge(ledger: Ledger, options: RunOptions, output: OutputFolder, say: Callable[[str], None]) -> ExitCode:
    """Return TOO_MANY_DEAD_LETTERS, after a message, above `--max_dead_letter_ratio`, or DONE."""
    if problem := too_many_dead_letters(ledger, options.max_dead_letter_ratio, output.path(DEAD_LETTERS)):
        say(problem)
        return ExitCode.TOO_MANY_DEAD_LETTERS
    return ExitCode.DONE


def _columns_of(options: RunOptions, plan: Plan, output: OutputFolder) -> tuple[Column, ...]:
    """Return the columns with their types; those that the folder has for them already stay."""
    former = read_job(output) if options.columns and not options.overwrite else None
    sample = sample_lines(plan, options.text_field, options.embedding_field)
    return choose_columns(options.columns, sample, former.columns if former is not None else ())


def _opening(plan: Plan, before: Ledger, job: JobSpec, index: IndexHandle | None) -> str:
    total = sum(source.size for source in plan.sources)
    done = f"; {count(before.embedded, 'document')} done already" if before.embedded else ""
    model = f"{job.model.model_id}, {count(job.model.dimensions, 'dimension')}"
    return f"{count(len(plan.sources), 'file')}, {size(total)}, {model}{done}{_new(plan, before, job, index)}"


def _new(plan: Plan, before: Ledger, job: JobSpec, index: IndexHandle | None) -> str:
    """Return how many texts are new, if there are former vectors."""
    found = None if index is None else index.open()
    return "" if found is None else f"; {count_new(before.work_left(), plan, job, found)}"


def _graph_settings(
    options: RunOptions, endpoint: EndpointSettings, output: OutputFolder, job: JobSpec, index: IndexHandle | None
) -> graph.Settings:
    return graph.Settings(
        endpoint=dataclasses.replace(endpoint, space=job.space),
        output=output,
        provenance=job.provenance,
        layout=job.layout,
        shard_bytes=options.shard_bytes,
        max_dead_letter_ratio=options.max_dead_letter_ratio,
        reuse_index=index,
    )


def _after_a_template(template: str, output: OutputFolder) -> Iterator[str]:
    yield f"the job is described in {template} and starts when Dataflow is asked to. From then on:"
    yield f"  tayyar status --output {output.root}"
    yield f"  tayyar report --output {output.root}"


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
        # Texts settled in this process count at once; what other processes do shows in their receipts.
        settled = settled_texts if settings.endpoint.processes == 1 else None
        with Progress(output, seen, work, cache=cache, settled=settled):
            lists = write_lists(work, output)
            failure: EndpointError | PipelineFailed | None = None
            try:
                run_pipeline(options, lambda pipeline: graph.build(pipeline, work, settings, lists), say)
            except (EndpointError, PipelineFailed) as error:  # a worker may have found doubt, and another one failed
                failure = error
            reason = str(failure) if isinstance(failure, VectorsDoubtful) else None
            # Also after success: a bundle may have failed and been tried again.
            reason = reason or read_doubts(output).get(output.run)
            if reason is not None:
                record_doubt(output, reason)  # a worker may not have succeeded in that
                discarded = discard_doubtful(output, {output.run: reason}, cache)
                _clean_up(before, output, settings, cache)
                raise VectorsDoubtful(
                    f"{reason} What this run had finished ({count(discarded.shards, 'shard')}) is discarded. "
                    "Put the endpoint right and run again. Earlier runs' vectors are kept; if this endpoint made them, "
                    f"look at some: tayyar verify --output {output.root} --sample 1000"
                )
            if failure is not None:
                raise failure
            if not template_of(options):  # a job that is started later needs them then
                output.delete(lists)
    ledger, files = _clean_up(before, output, settings, cache)
    if damaged := read_damage(output, files):
        raise PipelineFailed(*damaged, "Everything else is done. Fix what is named here and run again.")
    return ledger


def _clean_up(
    before: Ledger, output: OutputFolder, settings: graph.Settings, cache: ReceiptCache
) -> tuple[Ledger, dict[str, FileStat]]:
    """Delete what no receipt stands for; return the ledger, and the listing of the folder that it was read from."""
    files = output.list()
    ledger = read_ledger(before.plan, output, settings.provenance.digest, files, cache)
    if not run_marker.writers(output):  # what has no receipt may be another run's, which writes the receipt last
        output.delete(stale_files(ledger, output, files))
    return ledger, files
