"""The plan: which files, under which names, cut into which shards."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

import orjson

from pipeline.errors import UsageError
from pipeline.job.file_kinds import FileKind
from pipeline.job.input_selection import (
    RECORD_ENDINGS,
    Candidate,
    LeftOut,
    candidates,
    describe,
    excluded_by,
    hidden,
    require_records,
    require_text_field,
    without_links,
)
from pipeline.job.preflight import as_usage_errors
from pipeline.reporting.numbers import count
from transforms.elements import Shard, Source
from transforms.ndjson.decompress import COMPRESSIONS
from transforms.ndjson.parse import TextField
from transforms.output.folder import OutputFolder, check_name
from transforms.output.json_fields import build_dataclass
from transforms.read_shards import MAX_SHARD_RECORDS
from transforms.storage import api as storage

_SOURCE_FIELDS = [one.name for one in fields(Source)]
_MAX_SHARDS = 10_000_000  # each one is a file, and an object of this process
_MAX_NAME_BYTES = 800  # object stores allow 1024 for all, with the output folder and the endings
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """The sources of a job, by name, and how many bytes make a shard; and what the patterns match besides."""

    sources: tuple[Source, ...]
    shard_bytes: int
    left_out: tuple[LeftOut, ...] = field(default=(), compare=False)

    def shards_of(self, source: Source) -> list[Shard]:
        """Return a source's work items: its shards, or for an unsplittable one itself as a whole."""
        if source.compressed:
            return [Shard(source, 0, 0, None)]
        shards = self.shard_count(source) or 1
        return [
            Shard(
                source,
                index,
                index * self.shard_bytes,
                min((index + 1) * self.shard_bytes, source.size),
                index == shards - 1,
            )
            for index in range(shards)
        ]

    def shard_count(self, source: Source) -> int | None:
        """Return how many shards a source has, at least one; None where only reading it shows that."""
        return None if source.compressed else max(1, -(-source.size // self.shard_bytes))


@as_usage_errors()
def make_plan(
    patterns: Sequence[str],
    output_root: str | None,
    shard_bytes: int,
    text_field: TextField | None = None,
    exclude: Sequence[str] = (),
    *,
    warn: bool = True,
) -> Plan:
    """Match the patterns, look at the files' first bytes, and name those that hold records.

    A file that several patterns match is named by the first.

    Args:
        patterns: files, folders, or patterns (see `translate_pattern`).
        output_root: what lies in it is never an input; None where nothing is written.
        shard_bytes: decompressed bytes a shard.
        text_field: that some record in the files' beginnings must have; None if that does not matter.
        exclude: patterns of files and folders to leave out.
        warn: whether to log which files are left out; the plan has them in any case.

    Raises:
        UsageError: if a pattern matches nothing, a file that must hold records does not, two files' outputs would have
            the same name, or a shard would have too many records.
    """
    found: dict[str, Candidate] = {}
    left_out: list[LeftOut] = []
    for pattern in patterns:
        for one in _match(pattern, output_root, exclude, left_out):
            _require_readable(one.file.path)
            found.setdefault(one.file.path, one)
    distinct, links = without_links(list(found.values()))
    taken, others = require_records(distinct)
    left_out = sorted([*left_out, *links, *others], key=lambda one: one.path)
    if not taken:
        raise UsageError(_nothing_matches(patterns[0], len(distinct)))
    if text_field is not None:
        require_text_field((kind for _, kind in taken), text_field)
    _require_few_records(taken, shard_bytes)
    sources: dict[str, Source] = {}
    for one, kind in taken:
        file = one.file
        _add(sources, Source(file.path, stem(one.name), file.size, file.version, kind.compressed), output_root)
    _require_distinct_cases(sources, output_root)
    shards = _min_shards(sources.values(), shard_bytes)
    if shards > _MAX_SHARDS:
        raise UsageError(
            f"--shard_bytes {shard_bytes} would cut the inputs into {shards:,} shards, more than {_MAX_SHARDS:,}. "
            "Give a larger number."
        )
    if warn and left_out:
        _logger.warning("%s", describe(left_out))
    return Plan(tuple(sources[name] for name in sorted(sources)), shard_bytes, tuple(left_out))


def _match(pattern: str, output_root: str | None, exclude: Sequence[str], left_out: list[LeftOut]) -> list[Candidate]:
    """Return the files that a pattern matches, of which there is one at least; add those left out to a list."""
    matched = candidates(pattern)
    outside = [one for one in matched if output_root is None or not _is_below(one.file.path, output_root)]
    if matched and not outside:
        raise UsageError(f"--input {pattern} matches only files in --output {output_root}. Choose another --output.")
    wanted = []
    for one in outside:
        reason = hidden(one) or ("excluded" if excluded_by(exclude, one) else None)
        if reason is None:
            wanted.append(one)
        else:
            left_out.append(LeftOut(one.file.path, reason))
    if not wanted:
        raise UsageError(_nothing_matches(pattern, len(outside)))
    return wanted


def _min_shards(sources: Iterable[Source], shard_bytes: int) -> int:
    """Return how many shards there will be; a compressed source counts as one."""
    return sum(1 if source.compressed else -(-source.size // shard_bytes) for source in sources)


def _require_few_records(taken: Iterable[tuple[Candidate, FileKind]], shard_bytes: int) -> None:
    """Refuse a file whose shards will have too many records if all its lines are as short as its first ones."""
    for one, kind in taken:
        # A compressed file holds more than its size: how much more is not known yet.
        size = min(shard_bytes, one.file.size)
        if kind.bytes_per_record and size / kind.bytes_per_record > MAX_SHARD_RECORDS:
            fitting = int(kind.bytes_per_record * MAX_SHARD_RECORDS / 2)
            raise UsageError(
                f"{one.file.path} has lines of about {kind.bytes_per_record:.0f} bytes, so about "
                f"{size / kind.bytes_per_record:,.0f} records in a shard of --shard_bytes {shard_bytes}: more than "
                f"the {MAX_SHARD_RECORDS:,} that fit into memory. If the lines are meant to be so short, run with "
                f"--shard_bytes {fitting}."
            )


def _nothing_matches(pattern: str, passed_over: int) -> str:
    also = f" that holds records; {count(passed_over, 'other file')} passed over" if passed_over else ""
    return (
        f"--input {pattern} matches no file{also}. Check the path; put quotes around a pattern, so that the shell "
        "leaves it alone."
    )


def _require_readable(path: str) -> None:
    """Refuse a file whose name cannot be written down, or which is none to read to an end."""
    if not _is_utf8(path):
        raise UsageError(f"--input {path!a} has a name that is not UTF-8. Rename the file.")
    if storage.is_local(path) and not os.path.isfile(path):
        raise UsageError(f"--input {path} is not a regular file but a pipe, a socket or a device. Leave it out.")


def _is_below(path: str, folder: str) -> bool:
    """Return whether a file lies in a folder, also by way of links."""
    if storage.is_local(path) and storage.is_local(folder):
        path, folder = os.path.realpath(path), os.path.realpath(folder)
    return path.startswith(f"{folder}/")


def _add(sources: dict[str, Source], source: Source, output_root: str | None) -> None:
    """Add a source under its name, unless that cannot be a name or another one has it."""
    try:
        check_source_name(source.name, on_disk=output_root is not None and storage.is_local(output_root))
    except ValueError as error:
        raise UsageError(
            f"{source.path} cannot name its outputs: its name {error}. Rename it, or leave it out with --exclude."
        ) from error
    other = sources.setdefault(source.name, source)
    if other.path != source.path:
        raise UsageError(
            f"{other.path} and {source.path} would both be written to data/{source.name}-00000.ndjson. "
            "Rename one of them, or embed them into two output folders."
        )


def check_source_name(name: str, *, on_disk: bool) -> None:
    """Check that the outputs of a source of this name, which may come from a stranger's bucket, can have theirs.

    Args:
        name: the source's.
        on_disk: whether the outputs go to a local disk.

    Raises:
        ValueError: with the reason, which completes the sentence "its name …".
    """
    check_name(name, on_disk=on_disk)
    check_name(f"{name}-00000.parquet", on_disk=on_disk)
    if len(name.encode()) > _MAX_NAME_BYTES:
        raise ValueError(f"has {len(name.encode())} bytes, where an output's may have {_MAX_NAME_BYTES}")


def _require_distinct_cases(sources: Mapping[str, Source], output_root: str | None) -> None:
    """Refuse two names that one disk would take for the same."""
    folded: dict[str, Source] = {}
    for source in sources.values():
        other = folded.setdefault(unicodedata.normalize("NFC", source.name).casefold(), source)
        if other is not source and output_root is not None and storage.ignores_case(output_root):
            raise UsageError(
                f"{other.path} and {source.path} differ only in upper and lower case, and the disk of --output "
                f"{output_root} takes their outputs for the same file. Rename one of them, or choose another --output."
            )


def _is_utf8(name: str) -> bool:
    """Return whether a name can be written: the bytes of a local one that are no UTF-8 came as lone surrogates."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def stem(name: str) -> str:
    """Return a file's name without the endings that say how it is stored, in whatever case."""
    for endings in (COMPRESSIONS, RECORD_ENDINGS):
        for ending in endings:
            if name.lower().endswith(ending) and not name.lower().endswith("/" + ending) and len(name) > len(ending):
                name = name[: -len(ending)]
                break
    return name


def write_plan(plan: Plan, output: OutputFolder) -> None:
    """Save the plan beside the output, one line a source."""
    lines = [
        orjson.dumps(asdict(source) | {"shards": plan.shard_count(source)}, option=orjson.OPT_APPEND_NEWLINE)
        for source in plan.sources
    ]
    output.write(output.plan, lines)


def read_plan(output: OutputFolder, shard_bytes: int) -> Plan:
    """Return the plan that `write_plan` saved.

    Raises:
        UsageError: if the folder holds none that can be read.
    """
    data = output.read(output.plan)
    if data is None:
        raise UsageError(f"{output.root} is not an output folder of Tayyar: it has no {output.plan}. Check --output.")
    try:
        lines = [orjson.loads(line) for line in data.splitlines()]
        sources = tuple(build_dataclass(Source, {name: line[name] for name in _SOURCE_FIELDS}) for line in lines)
        if not sources:
            raise ValueError("it names no file")
        if min(source.size for source in sources) < 0 or _min_shards(sources, shard_bytes) > _MAX_SHARDS:
            raise ValueError("a size is out of bounds")
        return Plan(sources, shard_bytes)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{output.path(output.plan)} cannot be read ({error}). Run the job again: that writes it anew."
        ) from error
