"""Receipts: what proves that a shard happened. A shard without a receipt did not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from transforms.elements import RequestStatistics, Shard
from transforms.output.folder import OutputFolder, check_name
from transforms.output.json_fields import build
from transforms.storage.api import FileStat, WrittenFile


@dataclass(frozen=True, slots=True)
class Receipt:
    """The proof of one shard, written last.

    Attributes:
        shard: the stem of the shard's files; with `source`, `index`, `start`, `end` and `last` all of its description.
        source: the input file's path; `source_size` (bytes) and `source_version` as the plan saw them.
        records: lines that are not blank; always `embedded` + `dead_letters`.
        reasons: the dead letters by reason.
        started_at: seconds since the epoch; `finished_at` likewise.
        output: the embedded documents; None if there are none.
        dead_letter_output: the dead letters; None if there are none.
        statistics: what the requests took.
        model: the model's id.
        job: digest of what shapes vectors and shards.
    """

    shard: str
    source: str
    index: int
    start: int
    end: int | None
    last: bool
    source_size: int
    source_version: str
    records: int
    embedded: int
    dead_letters: int
    reasons: Mapping[str, int]
    started_at: float
    finished_at: float
    output: WrittenFile | None
    dead_letter_output: WrittenFile | None
    statistics: RequestStatistics
    model: str
    job: str

    @property
    def balances(self) -> bool:
        """Whether every record was either embedded or set aside."""
        return self.records == self.embedded + self.dead_letters == self.embedded + sum(self.reasons.values())

    def is_of(self, shard: Shard, job: str) -> bool:
        """Whether it is of this shard, of the source as it is now, and of this job."""
        described = (self.shard, self.source, self.start, self.job)
        return described == (shard.name, shard.source.path, shard.start, job) and shard.source.is_unchanged(
            self.source_size, self.source_version
        )

    def files_are_there(self, files: Mapping[str, FileStat]) -> bool:
        """Whether the files it vouches for have the sizes that it names, and are files: Tayyar makes no links."""
        return all(
            (found := files.get(written.path)) is not None and found.size == written.bytes and not found.is_link
            for written in (self.output, self.dead_letter_output)
            if written is not None
        )


def encode_receipt(receipt: Receipt) -> bytes:
    """Return the receipt as one JSON object, indented for people."""
    statistics = receipt.statistics
    fields = {name: getattr(receipt, name) for name in Receipt.__dataclass_fields__ if name != "statistics"}
    fields |= {name: getattr(statistics, name) for name in RequestStatistics.__dataclass_fields__}
    return orjson.dumps(fields, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def decode_receipt(data: bytes) -> Receipt:
    """Return the receipt that `encode_receipt` wrote.

    Raises:
        ValueError: if the bytes are no receipt, or name a file that cannot be in an output folder.
    """
    try:
        fields: dict[str, Any] = orjson.loads(data)
        numbers = {name: fields.pop(name) for name in RequestStatistics.__dataclass_fields__}
        numbers["latency_ms"] = Counter({int(bound): count for bound, count in numbers["latency_ms"].items()})
        for name in ("output", "dead_letter_output"):
            fields[name] = None if fields[name] is None else build(WrittenFile, fields[name])
        for name in [
            fields["shard"],
            *(file.path for file in (fields["output"], fields["dead_letter_output"]) if file),
        ]:
            check_name(name, on_disk=False)
        return build(Receipt, fields | {"statistics": build(RequestStatistics, numbers)})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this is no receipt: {error}") from error


def is_done(output: OutputFolder, shard: Shard, job: str) -> bool:
    """Whether a shard has got a valid receipt, asked of the output folder now."""
    data = output.read(output.receipt(shard.name))
    if data is None:
        return False
    try:
        receipt = decode_receipt(data)
    except ValueError:
        return False
    written = [file for file in (receipt.output, receipt.dead_letter_output) if file is not None]
    found = {file.path: found for file in written if (found := output.stat(file.path)) is not None}
    return receipt.is_of(shard, job) and receipt.files_are_there(found)
