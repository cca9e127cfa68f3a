"""Former vectors: outputs that a run replaces, kept until it is complete, and all places that hold vectors for it.

The outputs of shards that will be done again move to `_job/former/`, each under the digest of its receipt:

    X.json       the receipt, written first
    X.u64        a copy of the keys
    X.ndjson     the output itself, moved; or X.parquet

Only then are the shard's other files deleted. An interruption between two steps leaves the output in one of its two
places, with receipt and keys beside it, and the next run continues from there.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from tqdm import tqdm

from pipeline.errors import UsageError
from pipeline.job.ledger import Ledger, ReceiptCache
from pipeline.job.sharding import Plan
from pipeline.job.spec import JobSpec, require_job
from pipeline.reporting.numbers import count, percent
from transforms.doubt import read_doubts
from transforms.elements import Shard
from transforms.ndjson.decompress import DamagedSource
from transforms.output.folder import JOB, OutputFolder
from transforms.output.layout import FLOAT32
from transforms.output.receipts import Receipt, decode_receipt, encode_receipt
from transforms.read_shards import ShardTooDense, SourceChanged, lines_by_shard, parse_shard
from transforms.reuse import partial
from transforms.reuse.index import FOLDER as INDEX_FOLDER
from transforms.reuse.index import FormerFile, ReuseIndex, make_index
from transforms.reuse.keys import KEY_BYTES
from transforms.reuse.reuse import count_known, distinct
from transforms.storage import api as storage
from transforms.storage.api import FileStat
from transforms.storage.base import PARALLEL, StorageError
from transforms.tei.settings import Overlong

FOLDER = f"{JOB}/former"
COUNTED_BYTES = 128 << 20  # of records that a run reads to find how many texts are new: a second or two
_MAX_KEY_FILE_BYTES = 1 << 34  # far more than a shard's keys take
_logger = logging.getLogger(__name__)


class _Output(NamedTuple):
    """An output that vectors may come from: its folder, its name there, its receipt, and the name of its keys."""

    folder: OutputFolder
    name: str
    receipt: Receipt
    keys: str


class NewTexts(NamedTuple):
    """How many texts of documents that were read have no vector yet; `exact` if all were read that are left to do."""

    texts: int
    documents: int
    exact: bool

    def __str__(self) -> str:
        """Describe it for a person."""
        if self.exact:
            return f"{count(self.texts, 'text')} new among {count(self.documents, 'document')} to do"
        share = percent(self.texts / self.documents) if self.documents else "an unknown share"
        return f"about {share} of the texts to do are new, estimated from {count(self.documents, 'document')}"


def set_aside(
    output: OutputFolder,
    job: JobSpec,
    ledger: Ledger,
    files: Mapping[str, FileStat],
    cache: ReceiptCache,
    *,
    prune: bool = False,
) -> None:
    """Move the outputs that this run will replace to where they last until it is complete.

    Args:
        output: the folder.
        job: of the run.
        ledger: of what stays.
        files: a listing of the folder.
        cache: of the receipts.
        prune: whether outputs of sources that no longer exist go, too.
    """
    receipts = cache.read(output, files)
    valid = {receipt.shard for receipt in ledger.receipts()}
    for receipt in receipts:
        gone = receipt.shard not in ledger.shards_named
        if receipt.shard in valid or (gone and not prune):
            continue
        if (
            receipt.output is not None
            and receipt.files_are_there(files)
            and receipt.provenance.space == job.space.digest
        ):
            stem = f"{FOLDER}/{hashlib.sha256(encode_receipt(receipt)).hexdigest()[:16]}"
            keys = output.read(output.keys(receipt.shard), _MAX_KEY_FILE_BYTES)
            output.write(f"{stem}.json", [encode_receipt(receipt)])
            if keys is not None:
                output.write(f"{stem}.u64", [keys])
            output.move(receipt.output.path, f"{stem}{receipt.output.path[receipt.output.path.rindex('.') :]}")
        elif receipt.output is not None and gone:
            output.delete([receipt.output.path])
        # The receipt goes last: by its name, the others are known.
        output.delete([output.dead_letters(receipt.shard), output.keys(receipt.shard)])
        output.delete([output.receipt(receipt.shard)])


def index_former(
    output: OutputFolder | None, job: JobSpec, others: Sequence[OutputFolder], cache: ReceiptCache
) -> ReuseIndex | None:
    """Return the index of all vectors that may be used again; None if there are none.

    Args:
        output: the folder; None where it is not known yet.
        job: of the run.
        others: further folders, as `reusable_folders` has accepted them.
        cache: of the receipts.
    """
    found: list[_Output] = []
    for folder in others if output is None else (output, *others):
        space = job.space.digest if folder is output else require_job(folder).space.digest
        files = folder.list()
        receipts = cache if folder is output else ReceiptCache()
        found += (each for each in _outputs(folder, files, receipts) if each.receipt.provenance.space == space)
    usable = [
        each
        for each in found
        if _fits(each.receipt.provenance.overlong, job.overlong)
        # Towards fewer bits only: numbers that were rounded once stay so.
        and each.receipt.provenance.vector_type in (FLOAT32, job.vector_type)
    ]
    unfinished = () if output is None else _partial_shards(output, job)
    return make_index([*_with_keys(usable), *unfinished])


def reusable_folders(folders: Iterable[str], job: JobSpec) -> list[OutputFolder]:
    """Return the output folders that vectors may come from besides the run's own; nothing is written to them.

    Raises:
        UsageError: if one is not an output folder, or its vectors are of another space.
    """
    found = []
    for path in folders:
        folder = OutputFolder(path, run="reuse")
        other = require_job(folder)
        if not other.space.is_same(job.space):
            raise UsageError(
                f"--reuse {path} holds vectors of another space: {other.space.difference(job.space)}. It was made with "
                f"{other.served}; this run uses {job.served}. Leave it out."
            )
        found.append(folder)
    return found


def count_new(
    work: Sequence[Shard], plan: Plan, job: JobSpec, index: ReuseIndex, max_bytes: int = COUNTED_BYTES
) -> NewTexts:
    """Read what is left to do, and count the documents whose text has no vector yet.

    Nothing is sent: a text's key decides. Of much work, only some is read, chosen at random.

    Args:
        work: the work items that are left.
        plan: of the run.
        job: of the run.
        index: of the former vectors.
        max_bytes: of records, decompressed, after which no more are read.
    """
    new = documents = 0
    exact = True
    left = max_bytes
    items = sorted(work, key=lambda item: item.source.path)
    if sum(item.stored_bytes for item in work) > max_bytes:
        items = random.Random(0).sample(items, len(items))
    with tqdm(desc="looking for new texts", leave=False, unit=" documents", disable=None, delay=2) as bar:
        for item in items:
            try:
                for shard, lines in lines_by_shard(item, plan.shard_bytes):
                    if left <= 0:
                        return NewTexts(new, documents, exact=False)
                    parsed = parse_shard(shard, lines, job.text_field, job.embedding_field)
                    texts = distinct([document.text for document in parsed.documents]).texts
                    documents += len(parsed.documents)
                    new += len(texts) - (count_known(texts, index) if texts else 0)
                    left -= shard.stored_bytes
                    bar.update(len(parsed.documents))
            except (DamagedSource, ShardTooDense, SourceChanged, StorageError, OSError) as error:
                exact = False
                _logger.debug("%s cannot be counted: %s", item.name, error)  # the run reports it
    return NewTexts(new, documents, exact)


def forget_former(output: OutputFolder) -> None:
    """Delete the former outputs, the partial shards and the index; only after a run that is complete."""
    for folder in (FOLDER, partial.FOLDER, INDEX_FOLDER):
        output.delete(output.list(folder))
        storage.delete_empty_folder(output.path(folder))


def forget_indexes(output: OutputFolder, files: Iterable[str]) -> None:
    """Delete the indexes of runs that have died."""
    output.delete([name for name in files if _is_in(name, INDEX_FOLDER)])


def _outputs(output: OutputFolder, files: Mapping[str, FileStat], cache: ReceiptCache) -> Iterator[_Output]:
    """Yield the outputs in their places and those set aside, whose files have the sizes of their receipts."""
    doubts = read_doubts(output, files)
    for receipt in cache.read(output, files):
        if receipt.output is not None and receipt.files_are_there(files):
            yield _Output(output, receipt.output.path, receipt, output.keys(receipt.shard))
    for name in files:
        if not (_is_in(name, FOLDER) and name.endswith(".json")):
            continue
        try:
            receipt = decode_receipt(output.read(name) or b"")
        except (ValueError, StorageError):
            continue
        if receipt.output is None or receipt.run in doubts:
            continue
        stem = name.removesuffix(".json")
        moved = f"{stem}{receipt.output.path[receipt.output.path.rindex('.') :]}"
        if moved in files and files[moved].size == receipt.output.bytes and not files[moved].is_link:
            yield _Output(output, moved, receipt, f"{stem}.u64")


def _with_keys(outputs: Sequence[_Output]) -> Iterator[tuple[FormerFile, bytes]]:
    """Yield the files whose keys are there, one for each of their documents."""

    def read(one: _Output) -> bytes | None:
        try:
            return one.folder.read(one.keys, _MAX_KEY_FILE_BYTES)
        except (StorageError, OSError):
            return None

    with ThreadPoolExecutor(PARALLEL) as readers:
        each = zip(outputs, readers.map(read, outputs), strict=True)
        for one, keys in tqdm(each, "reading keys", len(outputs), leave=False, unit="", disable=None, delay=2):
            written = one.receipt.output
            if written is not None and keys is not None and len(keys) == KEY_BYTES * one.receipt.embedded:
                made = one.receipt.provenance
                path = one.folder.path(one.name)
                yield FormerFile(path, written.bytes, written.crc32c, made.text_field, made.embedding_field), keys


def _partial_shards(output: OutputFolder, job: JobSpec) -> Iterator[tuple[FormerFile, bytes]]:
    """Yield the saved vectors of unfinished shards."""
    doubts = read_doubts(output)
    for name, file in output.list(partial.FOLDER).items():
        if partial.run_of(name) in doubts:
            continue
        try:
            header, digests, _ = partial.decode_partial(output.read(name, partial.MAX_BYTES) or b"")
        except (ValueError, StorageError, OSError):
            continue
        if header.space == job.space.digest and _fits(header.overlong, job.overlong):
            yield FormerFile(output.path(name), file.size, header.crc32c, None, ""), partial.keys_of(digests)


def _fits(made: str, wanted: Overlong) -> bool:
    """Return whether vectors made under one policy can be used under another: truncated texts' may be among them."""
    return wanted is Overlong.TRUNCATE or made == wanted.value


def _is_in(name: str, folder: str) -> bool:
    return name.startswith(f"{folder}/")
