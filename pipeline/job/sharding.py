"""The plan: which files, under which names, cut into which shards."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields

import orjson

from pipeline.errors import UsageError
from pipeline.job.preflight import opening
from transforms.elements import Shard, Source
from transforms.ndjson.decompress import COMPRESSIONS, is_compressed
from transforms.output.folder import OutputFolder
from transforms.output.json_fields import build
from transforms.storage import api as storage

FORMATS = (".ndjson", ".jsonl", ".json")
ENDINGS = tuple(format_ + compression for format_ in FORMATS for compression in ("", *COMPRESSIONS))
_SOURCE_FIELDS = [field.name for field in fields(Source)]
_LONGEST_NAME = 255  # bytes, of one part of a path on the usual file systems
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """The sources of a job, by name, and how many bytes make a shard."""

    sources: tuple[Source, ...]
    shard_bytes: int

    def shards_of(self, source: Source) -> list[Shard]:
        """Return a source's work items: its shards, or for an unsplittable one itself as a whole."""
        if is_compressed(source.path):
            return [Shard(source, 0, 0, None)]
        count = self.shard_count(source) or 1
        return [
            Shard(
                source,
                index,
                index * self.shard_bytes,
                min((index + 1) * self.shard_bytes, source.size),
                index == count - 1,
            )
            for index in range(count)
        ]

    def shard_count(self, source: Source) -> int | None:
        """Return how many shards a source has, at least one; None where only reading it can tell."""
        return None if is_compressed(source.path) else max(1, -(-source.size // self.shard_bytes))


@opening()
def make_plan(patterns: Sequence[str], output_root: str | None, shard_bytes: int) -> Plan:
    """Match the patterns and name what they match; a file that several match is named by the first.

    Args:
        patterns: paths with wildcards (`**` stands for any number of folders), or folders.
        output_root: what lies in it is never an input; None where nothing is written.
        shard_bytes: decompressed bytes a shard.

    Raises:
        UsageError: if a pattern matches nothing, a file is no NDJSON, or two files' outputs would have the same name.
    """
    sources: dict[str, Source] = {}
    planned: set[str] = set()
    for pattern in patterns:
        prefix, files = _match(pattern)
        outside = [file for file in files if output_root is None or not _is_below(file.path, output_root)]
        if files and not outside:
            raise UsageError(
                f"--input {pattern} matches only files in --output {output_root}. Choose another --output."
            )
        files = outside
        if not files:
            raise UsageError(
                f"--input {pattern} matches no file that ends in {', '.join(FORMATS)} (or one of these and "
                f"{', '.join(COMPRESSIONS)}). Check the path; put quotes around a pattern, so that the shell leaves it "
                "alone."
            )
        for file in files:
            if file.path not in planned:
                planned.add(file.path)
                _add(sources, Source(file.path, stem(file.path[len(prefix) :]), file.size, file.version))
    return Plan(tuple(sources[name] for name in sorted(sources)), shard_bytes)


def _is_below(path: str, folder: str) -> bool:
    """Whether a file lies in a folder, also by way of links."""
    if storage.is_local(path) and storage.is_local(folder):
        path, folder = os.path.realpath(path), os.path.realpath(folder)
    return path.startswith(f"{folder}/")


def _add(sources: dict[str, Source], source: Source) -> None:
    """Add a source under its name, unless another one has it."""
    if not _is_utf8(source.path):
        raise UsageError(f"--input {source.path!a} has a name that is not UTF-8. Rename the file.")
    if storage.is_local(source.path) and not os.path.isfile(source.path):
        raise UsageError(f"--input {source.path} is no regular file but a pipe, a socket or a device. Leave it out.")
    last = source.name.rpartition("/")[2]
    if not last or len(f"{last}-00000.ndjson".encode()) > _LONGEST_NAME:
        raise UsageError(f"{source.path} has a name that is too short or too long to name its outputs by. Rename it.")
    other = sources.setdefault(source.name, source)
    if other.path != source.path:
        raise UsageError(
            f"{other.path} and {source.path} would both be written to data/{source.name}-00000.ndjson. "
            "Rename one of them, or embed them into two output folders."
        )


def _is_utf8(name: str) -> bool:
    """Whether a name can be written: the bytes of a local one that are no UTF-8 came as lone surrogates."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _match(pattern: str) -> tuple[str, list[storage.FileStat]]:
    """Return the pattern's fixed prefix and the files that it matches."""
    exact = storage.stat(pattern)
    if pattern.endswith("/") or (exact is not None and storage.is_local(pattern) and os.path.isdir(pattern)):
        folder = pattern.rstrip("/")
        return folder + "/", [file for file in storage.list_below(folder) if file.path.endswith(ENDINGS)]
    if exact is not None:
        if not pattern.endswith(ENDINGS):
            raise UsageError(f"--input {pattern} does not end in one of {', '.join(FORMATS)}, compressed or not.")
        return pattern[: pattern.rfind("/") + 1], [exact]
    files = storage.match(*_with_and_without_folders(pattern))
    skipped = [file.path for file in files if not file.path.endswith(ENDINGS)]
    if skipped:
        _logger.warning(
            "%d files that --input %s matches are no NDJSON and are left out, %s first",
            len(skipped),
            pattern,
            skipped[0],
        )
    return storage.fixed_prefix(pattern), [file for file in files if file.path.endswith(ENDINGS)]


def _with_and_without_folders(pattern: str) -> Iterable[str]:
    """Yield the patterns that `/**/` stands for: Beam takes it for at least one folder, a shell for none as well."""
    parts = pattern.split("/**/")
    for separators in itertools.product(("/**/", "/"), repeat=len(parts) - 1):
        yield parts[0] + "".join(separator + part for separator, part in zip(separators, parts[1:], strict=True))


def stem(name: str) -> str:
    """Return a file's name without the endings that say how it is stored."""
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return name[: name.rindex(".")]


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
        raise UsageError(f"{output.root} is no output folder of Tayyar: it has no {output.plan}. Check --output.")
    try:
        lines = [orjson.loads(line) for line in data.splitlines()]
        sources = tuple(build(Source, {name: line[name] for name in _SOURCE_FIELDS}) for line in lines)
        if not sources:
            raise ValueError("it names no file")
        return Plan(sources, shard_bytes)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{output.path(output.plan)} cannot be read ({error}). Run the job again: that writes it anew."
        ) from error
