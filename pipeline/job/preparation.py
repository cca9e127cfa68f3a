"""Preparing an output folder for a run: who may join it, what is deleted, and what is done in it already."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from pipeline.errors import UsageError
from pipeline.job import run_marker
from pipeline.job.doubt import discard_doubtful
from pipeline.job.former_vectors import forget_indexes, index_former, set_aside
from pipeline.job.ledger import Ledger, ReceiptCache, planned_files, read_ledger, shard_of, stale_files
from pipeline.job.shard_replacement import finish_replacements
from pipeline.job.sharding import Plan, read_plan, write_plan
from pipeline.job.spec import JobSpec, is_first_edition, join, read_job, rename_line, write_job
from pipeline.reporting.numbers import count
from transforms.doubt import read_doubts
from transforms.output.folder import JOB, OutputFolder
from transforms.read_shards import DAMAGED
from transforms.reuse.index import IndexHandle, write_index

_ANY_SHARD_BYTES = 1 << 24  # where the former plan's are not known; names of shards decide all the same
_logger = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """What a run starts from.

    Attributes:
        ledger: of what is done already.
        reuse_index: of the vectors that can be used again; None if there are none.
    """

    ledger: Ledger
    reuse_index: IndexHandle | None


def join_folder(
    output: OutputFolder,
    plan: Plan,
    new: JobSpec,
    others: Sequence[run_marker.Writer],
    say: Callable[[str], None],
    *,
    overwrite: bool = False,
    keep: Collection[str] = (),
) -> JobSpec:
    """Return the job of a run that joins the folder; with `overwrite`, delete the former job first.

    Args:
        output: the folder.
        plan: of the run.
        new: the job, as this run alone would describe it.
        others: commands that may be writing to the folder, found when this run registered itself.
        say: takes a line for the person at the terminal.
        overwrite: whether to start over.
        keep: names of files in `_job` that belong to the new job if they are newer than the former one.

    Raises:
        UsageError: if the folder holds vectors of another space or files of somebody else, or is to be overwritten
            or given other settings while another command writes to it. Nothing has been deleted then.
    """
    if overwrite:
        _delete_former_job(output, plan, others, keep)
    existing = read_job(output)
    if existing is None:
        _refuse_files_in_the_way(output, planned_files(plan, output.list()))
    job = join(existing, new, output.root)
    if others and existing is not None and existing.digest != job.digest:
        raise UsageError(
            f"{output.root} is of other settings than this run's, and another command ({others[0]}) may be writing to "
            f"it: its shards would count as not done. {others[0].remedy(output)}"
        )
    if line := rename_line(existing, job):
        say(line)
    return job


def prepare(
    output: OutputFolder,
    plan: Plan,
    job: JobSpec,
    others: Sequence[run_marker.Writer],
    cache: ReceiptCache,
    say: Callable[[str], None],
    *,
    prune: bool = False,
    reuse: Sequence[OutputFolder] = (),
) -> Prepared:
    """Bring the folder to the state from which the run goes on.

    Args:
        output: the folder.
        plan: of the run.
        job: that it has joined the folder with.
        others: commands that may be writing to the folder: then nothing is deleted that they may need.
        cache: gets the receipts.
        say: takes a line for the person at the terminal.
        prune: whether to remove what was embedded of sources that are not among the inputs any more.
        reuse: further output folders of the same space, whose vectors are used again.
    """
    former = read_former_plan(output)
    if others:
        _logger.warning(
            "another command (%s) may still write to %s; two runs at once send texts twice. %s",
            others[0],
            output.root,
            others[0].remedy(output),
        )
        if prune:
            _logger.warning("--prune removes nothing while another command may be at work")
    else:
        _clean_up(output, [each for each in (plan, former) if each is not None], cache)
    files = output.list()
    ledger = read_ledger(plan, output, job.digest, files, cache)
    if ledger.gone and not prune:
        _logger.warning(
            "%s of former runs %s of this run, %s first; what was embedded of them stays in %s (--prune removes it)",
            count(len(ledger.gone), "input"),
            "is not among the inputs" if len(ledger.gone) == 1 else "are not among the inputs",
            ledger.gone[0],
            output.root,
        )
    if not others:
        forget_indexes(output, files)
        if prune and ledger.gone:
            documents = count(sum(receipt.embedded for receipt in ledger.gone_receipts), "document")
            names = f"{count(len(ledger.gone), 'input')}, {ledger.gone[0]}{' first' if ledger.gone[1:] else ''}"
            say(f"--prune removes {documents} of {names}")
        set_aside(output, job, ledger, files, cache, prune=prune)
        files = output.list()
        ledger = read_ledger(plan, output, job.digest, files, cache)
        _delete_stale(ledger, former, output, files)
    write_job(job, output)
    write_plan(plan, output)
    index = index_former(output, job, reuse, cache) if ledger.work_left() else None
    return Prepared(ledger, None if index is None else write_index(output, index, output.run))


def _clean_up(output: OutputFolder, plans: Sequence[Plan], cache: ReceiptCache) -> None:
    """Finish or delete what a command has left that died; none may be at work.

    Args:
        output: the folder.
        plans: of this run and of the last one.
        cache: of the receipts.
    """
    if doubts := read_doubts(output):
        discarded = discard_doubtful(output, doubts, cache)
        if discarded.shards:
            finished = count(discarded.shards, "shard")
            _logger.warning("%s What its run had finished (%s) is discarded.", discarded.reason, finished)
    finish_replacements(output, lambda shard: any(is_shard(plan, shard) for plan in plans))
    run_marker.remove_leftovers(output)
    output.delete(output.list(DAMAGED))


def read_former_plan(output: OutputFolder) -> Plan | None:
    """Return the plan of the folder's last run; None if there is none that can be read."""
    try:
        return read_plan(output, _ANY_SHARD_BYTES)
    except UsageError:
        return None


def is_shard(plan: Plan, shard: str) -> bool:
    """Return whether a name is one that a shard of a plan's sources can have."""
    name, _, index = shard.rpartition("-")
    return index.isdecimal() and len(index) >= 5 and any(source.name == name for source in plan.sources)


def _delete_former_job(
    output: OutputFolder, plan: Plan, others: Sequence[run_marker.Writer], keep: Collection[str]
) -> None:
    """Delete the files of the former job: those that its receipts or its plan name, and what is in `_job`.

    The plan counts as well as the receipts: an output whose receipt is missing must not survive beside vectors of
    another job.

    Raises:
        UsageError: if the folder is in use, or holds files of somebody else that the new job would overwrite.
    """
    if others:
        raise UsageError(
            f"--overwrite would delete what {others[0]} is writing to {output.root}. {others[0].remedy(output)}"
        )
    data = output.read(output.job)
    if data is None:
        return  # there is no former job, so whatever is in the way is somebody else's
    if is_first_edition(data):
        raise UsageError(
            f"{output.root} was written by Tayyar's first edition, whose files have other places. Delete the folder, "
            "or choose another --output."
        )
    files = output.list()
    receipts = [name for name in files if name.startswith(f"{output.receipts}/")]
    shards = {name.removeprefix(f"{output.receipts}/").removesuffix(".json") for name in receipts}
    former = read_former_plan(output)
    named = {name for name in files if shard_of(name) in shards}
    if former is not None:
        named.update(planned_files(former, files))
    _refuse_files_in_the_way(output, [name for name in planned_files(plan, files) if name not in named])
    # Markers stay: one of them is this run's own. Those of commands that died go when the folder is prepared.
    in_job = [name for name in files if name.startswith(f"{JOB}/") and not name.startswith(f"{run_marker.FOLDER}/")]
    last = max((files[name].mtime for name in (*receipts, output.job) if name in files), default=0.0)
    in_job = [name for name in in_job if not (name in keep and files[name].mtime > last)]
    # Receipts and plan name the files to delete, so they go after them; the job's description goes last: until then,
    # an interrupted deletion leaves the former job's folder.
    output.delete(sorted(named - set(in_job)))
    output.delete(sorted(in_job, key=lambda name: (name == output.job, name == output.plan, name)))


def _refuse_files_in_the_way(output: OutputFolder, in_the_way: Sequence[str]) -> None:
    """Refuse to write over files that no job of this folder can have left; raise UsageError."""
    if in_the_way:
        raise UsageError(
            f"{output.root}/{in_the_way[0]} is in the way: the job would write a file of this name, "
            "and no job of this folder has written it. Choose another --output, or move the file away."
        )


def _delete_stale(ledger: Ledger, former: Plan | None, output: OutputFolder, files: Iterable[str]) -> None:
    """Delete receipts that are not valid, and all files of shards that the plan no longer has.

    The other files stay until the end: another run may be about to write the receipts that vouch for them.
    """
    stale = stale_files(ledger, output, files)
    receipts = [name for name in stale if name.startswith(f"{output.receipts}/")]
    beyond = set(stale) - set(planned_files(ledger.plan, stale)) - set(receipts)
    if former is not None:  # outputs without a receipt of sources that are no longer there
        beyond |= set(planned_files(former, files)) - set(planned_files(ledger.plan, files))
        beyond -= ledger.vouched_files(output)
    # Outputs go before the receipts, by whose names alone some of them are known.
    output.delete(sorted(beyond))
    output.delete(receipts)
