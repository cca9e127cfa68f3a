"""The ledger: what the receipts in the output folder say of a plan; all that is known of a run."""

from __future__ import annotations

import abc
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

from tqdm import tqdm

from pipeline.errors import NotProven
from pipeline.job.sharding import Plan, read_plan
from pipeline.job.spec import JobSpec
from transforms.doubt import read_doubts
from transforms.elements import Shard, Source
from transforms.output.folder import DATA, DEAD_LETTERS, JOB, OutputFolder
from transforms.output.receipts import Receipt, decode_receipt
from transforms.storage.api import FileStat
from transforms.storage.base import PARALLEL

_SHARD_FILE = re.compile(
    rf"(?:(?P<receipt>{JOB}/receipts/)|(?P<keys>{JOB}/keys/)|(?P<data>{DATA}/)|{DEAD_LETTERS}/)"
    r"(?P<name>.+)-(?P<index>\d{5}|[1-9]\d{5,})\.(?(receipt)json|(?(keys)u64|(?(data)(?:ndjson|parquet)|ndjson)))",
    re.DOTALL,  # a name may hold a newline
)


class _Sums(abc.ABC):
    """Sums over receipts: of one source, and of all."""

    __slots__ = ()

    @abc.abstractmethod
    def receipts(self) -> Iterator[Receipt]:
        """Yield the valid receipts, in the order of sources and shards."""

    @property
    def records(self) -> int:
        """Lines that are not blank, in the shards done."""
        return sum(receipt.records for receipt in self.receipts())

    @property
    def embedded(self) -> int:
        """Documents that have their vector."""
        return sum(receipt.embedded for receipt in self.receipts())

    @property
    def sent(self) -> int:
        """Documents whose text the endpoint embedded; `embedded` = `sent` + `reused` + `duplicates`."""
        return sum(receipt.sent for receipt in self.receipts())

    @property
    def reused(self) -> int:
        """Documents that took the vector of a former output."""
        return sum(receipt.reused for receipt in self.receipts())

    @property
    def duplicates(self) -> int:
        """Documents that took the vector of an equal text in their shard."""
        return sum(receipt.duplicates for receipt in self.receipts())

    @property
    def truncated(self) -> int:
        """Documents whose text was sent and is too long for the model."""
        return sum(receipt.truncated for receipt in self.receipts())

    @property
    def dead_letters(self) -> int:
        """Records that became dead letters."""
        return sum(receipt.dead_letters for receipt in self.receipts())


@dataclass(frozen=True, slots=True)
class SourceLedger(_Sums):
    """One source's valid receipts by shard index, and whether they are all that there will be."""

    source: Source
    by_index: Mapping[int, Receipt]
    complete: bool

    def receipts(self) -> Iterator[Receipt]:
        """Yield every valid receipt, in the order of the shards."""
        return (self.by_index[index] for index in sorted(self.by_index))


@dataclass(frozen=True, slots=True)
class Ledger(_Sums):
    """Plan and receipts together.

    Attributes:
        plan: the sources.
        sources: what is known of each.
        shards_named: the shards of the plan's sources that have a receipt, valid or not.
        gone: paths of sources that receipts name and the plan does not: inputs that were removed since.
        gone_receipts: their receipts whose files exist; their outputs stay and are vouched for.
        doubts: why the vectors of runs are in doubt whose receipts are there and do not count.
    """

    plan: Plan
    sources: tuple[SourceLedger, ...]
    gone: tuple[str, ...] = ()
    shards_named: frozenset[str] = frozenset()
    gone_receipts: tuple[Receipt, ...] = ()
    doubts: tuple[str, ...] = ()

    def receipts(self) -> Iterator[Receipt]:
        """Yield every valid receipt, in the order of sources and shards."""
        for source in self.sources:
            yield from source.receipts()

    @property
    def complete(self) -> bool:
        """Whether every shard of every source is done."""
        return all(source.complete for source in self.sources)

    @property
    def shards_expected(self) -> int | None:
        """How many shards there will be; None while a compressed source's cannot be counted."""
        counts = [
            len(source.by_index) if source.complete else self.plan.shard_count(source.source) for source in self.sources
        ]
        return None if None in counts else sum(filter(None, counts))

    def records_expected(self, planned: float | None = None) -> int | None:
        """Return how many records the job has or will have; None where nothing is known.

        Args:
            planned: what `plan` expected, for a job of which no bytes are done.
        """
        expected = extrapolate(
            Part.of(source.source, source.source.size, source.by_index.values(), ended=source.complete)
            for source in self.sources
        )
        if expected is None and planned is not None:
            return max(round(planned), self.records)
        return expected

    @property
    def doubt(self) -> str | None:
        """Why shards that are not done were done before, in a few sentences; None if no vector of them is in doubt."""
        if not self.doubts or self.complete:
            return None
        return (
            f"{' '.join(self.doubts)} What was written until then does not count. Put the endpoint right and run again."
        )

    def unfit(self) -> dict[str, int]:
        """Return the values that do not fit their column, by the column's name, in alphabetical order."""
        unfit: Counter[str] = Counter()
        for receipt in self.receipts():
            unfit.update(receipt.unfit)
        return dict(sorted(unfit.items()))

    def reasons(self) -> Counter[str]:
        """Return the dead letters by reason."""
        reasons: Counter[str] = Counter()
        for receipt in self.receipts():
            reasons.update(receipt.reasons)
        return reasons

    def work_left(self) -> list[Shard]:
        """Return the work items that are not done."""
        left: list[Shard] = []
        for source in self.sources:
            if not source.complete:
                work = self.plan.shards_of(source.source)
                left += [shard for shard in work if shard.end is None or shard.index not in source.by_index]
        return left

    def vouched_files(self, output: OutputFolder) -> set[str]:
        """Return the names of the files that the valid receipts stand for, theirs included."""
        names = set()
        for receipt in (*self.receipts(), *self.gone_receipts):
            names.add(output.receipt(receipt.shard))
            if receipt.embedded:
                names.add(output.keys(receipt.shard))
            names.update(file.path for file in (receipt.output, receipt.dead_letter_output) if file is not None)
        return names

    def require_balance(self) -> None:
        """Check that nothing was lost.

        Raises:
            NotProven: naming the first shard that does not balance, or the first source that is not complete.
        """
        for receipt in self.receipts():
            if not receipt.balances:
                raise NotProven(
                    f"the ledger of {receipt.shard} does not balance: {receipt.records} records, "
                    f"but {receipt.embedded} embedded "
                    f"and {receipt.dead_letters} dead letters. Delete its receipt and run again."
                )
        for source in self.sources:
            if not source.complete:
                lacks = f"{source.source.path} is not complete: shards of it have no valid receipt."
                raise NotProven(f"{lacks} {self.doubt or 'Run again.'}")


class Part(NamedTuple):
    """What is known of the records in one source, or in what is left of it.

    Attributes:
        size: its stored bytes.
        done: those of them whose records are counted.
        records: in the shards that are done.
        compressed: whether the source is.
    """

    size: int
    done: int
    records: int
    compressed: bool

    @classmethod
    def of(cls, source: Source, size: int, receipts: Collection[Receipt], *, ended: bool) -> Part:
        """Return what the receipts of a source's shards show.

        Args:
            source: the source.
            size: its stored bytes, or those of them that are left.
            receipts: of its shards, or of those that were left.
            ended: whether it has been read to its end. A shard of a compressed source is a range of decompressed
                bytes, and how many stored bytes that takes is unknown until then.
        """
        done = size if ended else 0
        if not source.compressed:
            done = sum(min(receipt.end or source.size, source.size) - receipt.start for receipt in receipts)
        return cls(size, done, sum(receipt.records for receipt in receipts), source.compressed)


def extrapolate(parts: Iterable[Part]) -> int | None:
    """Return how many records there will be, by those of the bytes that are done; None if none are done of any.

    The records of a compressed source stand for the bytes of compressed ones, as long as there are any, and likewise
    for plain ones: a byte holds several times as many after compression.
    """
    parts = list(parts)
    if all(part.done >= part.size for part in parts):
        return sum(part.records for part in parts)
    measured: dict[bool, tuple[int, int]] = {}  # records and stored bytes of what is done, by whether it is compressed
    for part in parts:
        if part.done:
            records, size = measured.get(part.compressed, (0, 0))
            measured[part.compressed] = (records + part.records, size + part.done)
    density = {compressed: records / size for compressed, (records, size) in measured.items()}
    if not density:
        return None
    either = next(iter(density.values()))
    expected = (
        part.records if part.done >= part.size else max(part.records, part.size * density.get(part.compressed, either))
        for part in parts
    )
    return round(sum(expected))


class ReceiptCache:
    """Receipts that were read before, so that a reader who comes again and again reads only what is new."""

    def __init__(self) -> None:
        self._receipts: dict[FileStat, Receipt] = {}

    def read(self, output: OutputFolder, files: Mapping[str, FileStat]) -> list[Receipt]:
        """Return the receipts in a listing, except those of runs whose vectors are in doubt by a note in it."""
        doubts = read_doubts(output, files)
        return [receipt for receipt in self.read_all(output, files) if receipt.run not in doubts]

    def read_all(self, output: OutputFolder, files: Mapping[str, FileStat]) -> list[Receipt]:
        """Return the receipts in a listing."""
        files = {
            name: file for name, file in files.items() if name.startswith(f"{output.receipts}/") and not file.is_link
        }
        new = {name: file for name, file in files.items() if file not in self._receipts}
        found = {output.receipt(receipt.shard): receipt for receipt in read_receipts(output, new)}
        self._receipts |= {new[name]: receipt for name, receipt in found.items() if name in new}
        return [self._receipts[file] for file in files.values() if file in self._receipts]


def read_job_ledger(output: OutputFolder, job: JobSpec) -> Ledger:
    """Read the receipts of the job in a folder, by its own plan."""
    return read_ledger(read_plan(output, job.shard_bytes), output, job.digest, output.list())


def read_ledger(
    plan: Plan, output: OutputFolder, job: str, files: Mapping[str, FileStat], cache: ReceiptCache | None = None
) -> Ledger:
    """Read the receipts of a plan.

    Args:
        plan: whose receipts.
        output: the folder.
        job: the digest that valid receipts bear.
        files: a listing of the whole folder.
        cache: of the receipts that an earlier call read.
    """
    doubts, because = read_doubts(output, files), dict[str, None]()
    # By the sources' names, not their paths: a corpus may have moved together with its outputs.
    by_source: dict[str, list[Receipt]] = defaultdict(list)
    for receipt in (cache or ReceiptCache()).read_all(output, files):
        if receipt.run in doubts:
            because[doubts[receipt.run]] = None
        else:
            by_source[receipt.shard.rpartition("-")[0]].append(receipt)
    found = {source: by_source.pop(source.name, []) for source in plan.sources}
    sources = tuple(_ledger_of(plan, source, its, job, files) for source, its in found.items())
    named = frozenset(receipt.shard for its in found.values() for receipt in its)
    gone = [receipt for its in by_source.values() for receipt in its]
    whole = tuple(receipt for receipt in gone if receipt.files_are_there(files))
    return Ledger(plan, sources, tuple(sorted({receipt.source for receipt in gone})), named, whole, tuple(because))


def relocate(ledger: Ledger, now: Plan) -> tuple[Ledger, list[str]]:
    """Return the ledger with the sources at the paths where another plan finds files of their names, and what is amiss.

    A source that is not in that plan stays where it was. So does one whose file has another size there: it is another
    file, or has changed since it was embedded.
    """
    found = {source.name: source for source in now.sources}
    sources, problems = [], []
    for one in ledger.sources:
        here = found.get(one.source.name, one.source)
        if (here.size, here.compressed) == (one.source.size, one.source.compressed):
            one = replace(one, source=replace(one.source, path=here.path, version=here.version))
        else:
            problems.append(f"{here.path} has {here.size} bytes, but the embedded file had {one.source.size}")
        sources.append(one)
    plan = replace(ledger.plan, sources=tuple(one.source for one in sources))
    return replace(ledger, plan=plan, sources=tuple(sources)), problems


def read_receipts(output: OutputFolder, names: Collection[str]) -> Iterator[Receipt]:
    """Yield the receipts with these names; a file that is not a receipt counts as missing.

    Raises:
        StorageError, OSError: a file cannot be read. It may be a receipt, whose documents would be paid for again.
    """
    with ThreadPoolExecutor(PARALLEL) as readers:
        each = zip(names, readers.map(output.read, names), strict=True)
        # Thousands in a bucket take a while; a few are read before a bar would be seen.
        for name, data in tqdm(each, "reading receipts", len(names), leave=False, unit="", disable=None, delay=2):
            try:
                receipt = decode_receipt(data or b"")
            except ValueError:
                continue
            if output.receipt(receipt.shard) == name:  # a receipt vouches for the shard by whose name it is kept
                yield receipt


def _ledger_of(
    plan: Plan, source: Source, receipts: Iterable[Receipt], job: str, files: Mapping[str, FileStat]
) -> SourceLedger:
    if not source.compressed:
        shards = {shard.index: shard for shard in plan.shards_of(source)}
    else:
        # How many shards it has is known when the one that ends it has its receipt.
        shards = {r.index: Shard(source, r.index, r.index * plan.shard_bytes, None) for r in receipts}
    valid = {
        receipt.index: receipt
        for receipt in receipts
        if receipt.index in shards and receipt.is_of(shards[receipt.index], job) and receipt.files_are_there(files)
    }
    last = max((index for index, receipt in valid.items() if receipt.last), default=None)
    return SourceLedger(source, valid, last is not None and all(index in valid for index in range(last + 1)))


def shard_of(name: str) -> str | None:
    """Return the name of the shard that a file's name is formed of; None for any other file."""
    match = _SHARD_FILE.fullmatch(name)
    return None if match is None else f"{match['name']}-{match['index']}"


def stale_files(ledger: Ledger, output: OutputFolder, files: Iterable[str]) -> list[str]:
    """Return the files of this job's shards that no valid receipt stands for; what is not this job's is no matter.

    Args:
        ledger: as it is now.
        output: the folder.
        files: the names in it.
    """
    vouched = ledger.vouched_files(output)
    return [name for name in planned_files(ledger.plan, files, ledger.shards_named) if name not in vouched]


def planned_files(plan: Plan, files: Iterable[str], also: Collection[str] = ()) -> list[str]:
    """Return the files that shards of a plan, or other shards of these names, have or would have.

    A name alone says little: `logs-20240.ndjson` may be a shard of `logs.ndjson`, or somebody's own. With a zero in
    front, it is a shard.
    """
    sources = {source.name: source for source in plan.sources}
    found = []
    for name in files:
        match = _SHARD_FILE.fullmatch(name)
        if match is None:
            continue
        source = sources.get(match["name"])
        count = None if source is None else plan.shard_count(source)
        could_be = source is not None and (count is None or int(match["index"]) < count or match["index"][0] == "0")
        if could_be or f"{match['name']}-{match['index']}" in also:
            found.append(name)
    return found
