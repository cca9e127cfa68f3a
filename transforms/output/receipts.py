"""Receipts: the proof that a shard is done. Without a valid receipt, it is not.

`transforms.write_embedded` writes them, and `pipeline.job.shard_replacement` those of a redrive.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import orjson

from transforms.doubt import note_of
from transforms.elements import Reason, RequestStatistics, Shard
from transforms.ndjson.parse import TextField
from transforms.output.folder import DATA, DEAD_LETTERS, OutputFolder, check_name
from transforms.output.json_fields import build_dataclass, require_string
from transforms.output.layout import FLOAT32, OUTPUT_FORMATS, VECTOR_TYPES
from transforms.storage.api import FileStat, WrittenFile

_MAX_COUNT = 1 << 53  # of records, bytes or milliseconds: beyond that, it is no count
MAX_SECONDS = 253_402_300_800.0  # the year 10000: later times cannot be shown
_MAX_DIGEST = 64  # characters
_MAX_INDEX = 10**9  # a hundred times as many shards as a plan may have
MAX_TRUNCATED_PLACES = 10  # that a receipt names, for a person to look at


@dataclass(frozen=True, slots=True)
class Provenance:
    """How the vectors and the files of a shard were made. Picklable.

    Attributes:
        space: digest of the vector space that the folder recorded.
        settings: digest of what shapes a shard's files besides its vectors.
        model: the model's id.
        server_version: the server's.
        text_field: the field that was embedded, or several.
        embedding_field: the field that got the vector.
        overlong: `truncate` or `dead_letter`.
        vector_type: in which the vectors' numbers were written, `float32` or `float16`.
    """

    space: str
    settings: str
    model: str
    server_version: str
    text_field: TextField
    embedding_field: str
    overlong: str
    vector_type: str = FLOAT32

    @property
    def digest(self) -> str:
        """The digests of space and settings; a shard is done only if its receipt has both."""
        return f"{self.space}-{self.settings}"


@dataclass(frozen=True, slots=True)
class Receipt:
    """The proof of one shard, written last.

    Attributes:
        shard: the stem of the shard's files; with `source`, `index`, `start`, `end` and `last` all of its description.
        source: the input file's path; `source_size` (bytes) and `source_version` as the plan saw them.
        records: lines that are not blank; always `embedded` + `dead_letters`.
        embedded: always `sent` + `reused` + `duplicates`.
        sent: documents whose text the endpoint embedded for this shard.
        reused: documents whose vector comes from a former output.
        duplicates: documents with the text of an earlier one of this shard, whose vector they share.
        nan_lines: embedded lines that hold NaN or Infinity, which strict JSON parsers refuse.
        reasons: the dead letters by reason.
        truncated: documents whose text was sent and is too long for the model, as far as replies show it.
        truncated_at: the byte offsets of the first ten of them.
        started_at: seconds since the epoch; `finished_at` likewise.
        output: the embedded documents; None if there are none.
        dead_letter_output: the dead letters; None if there are none.
        statistics: what the requests took.
        provenance: how it was made.
        run: the name of the run that wrote it.
        unfit: values that the type of their column cannot hold, which are null there, by the column's name.
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
    sent: int
    reused: int
    duplicates: int
    nan_lines: int
    dead_letters: int
    reasons: Mapping[str, int]
    truncated: int
    truncated_at: tuple[int, ...]
    started_at: float
    finished_at: float
    output: WrittenFile | None
    dead_letter_output: WrittenFile | None
    statistics: RequestStatistics
    provenance: Provenance
    run: str
    unfit: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def job(self) -> str:
        """The digests that make it valid for a job: see `Provenance.digest`."""
        return self.provenance.digest

    @property
    def model(self) -> str:
        """The model's id."""
        return self.provenance.model

    @property
    def balances(self) -> bool:
        """Whether every record became a vector or a dead letter, and every vector was sent, reused or a duplicate."""
        return (
            self.records == self.embedded + self.dead_letters == self.embedded + sum(self.reasons.values())
            and self.embedded == self.sent + self.reused + self.duplicates
        )

    def is_of(self, shard: Shard, job: str) -> bool:
        """Return whether it is of this shard, of the source as it is now, and of this job.

        The shard's name stands for the source: its path may have changed, together with the outputs.
        """
        described = (self.shard, self.start, self.job)
        return described == (shard.name, shard.start, job) and shard.source.is_unchanged(
            self.source_size, self.source_version
        )

    def files_are_there(self, files: Mapping[str, FileStat]) -> bool:
        """Return whether the files it vouches for have its sizes, and are files: Tayyar makes no links."""
        return all(
            (found := files.get(written.path)) is not None and found.size == written.bytes and not found.is_link
            for written in (self.output, self.dead_letter_output)
            if written is not None
        )


def encode_receipt(receipt: Receipt) -> bytes:
    """Return the receipt as one JSON object, indented for people."""
    values = {field.name: getattr(receipt, field.name) for field in fields(Receipt)}
    for part in (values.pop("provenance"), values.pop("statistics")):
        values |= {field.name: getattr(part, field.name) for field in fields(part)}
    return orjson.dumps(values, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def decode_receipt(data: bytes) -> Receipt:
    """Return the receipt that `encode_receipt` wrote.

    Raises:
        ValueError: if the bytes are no receipt, name a file that its shard cannot have, or a number is out of bounds.
    """
    try:
        values: dict[str, Any] = orjson.loads(data)
        numbers = {field.name: values.pop(field.name) for field in fields(RequestStatistics)}
        numbers["latency_ms"] = Counter({int(bound): count for bound, count in numbers["latency_ms"].items()})
        made = {field.name: values.pop(field.name) for field in fields(Provenance)}
        if isinstance(made["text_field"], list):
            made["text_field"] = tuple(require_string(name) for name in made["text_field"])
        for name in ("output", "dead_letter_output"):
            values[name] = None if values[name] is None else build_dataclass(WrittenFile, values[name])
        values["truncated_at"] = tuple(values["truncated_at"])
        values["statistics"] = build_dataclass(RequestStatistics, numbers)
        values["provenance"] = build_dataclass(Provenance, made)
        receipt = build_dataclass(Receipt, values)
        _check_bounds(receipt)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"this is not a receipt: {error}") from error
    return receipt


def _check_bounds(receipt: Receipt) -> None:
    """Check what types leave open.

    Raises:
        ValueError: naming the field.
    """
    statistics = receipt.statistics
    counts: dict[str, Any] = {
        name: getattr(receipt, name)
        for name in (
            "start",
            "source_size",
            "records",
            "embedded",
            "sent",
            "reused",
            "duplicates",
            "nan_lines",
            "dead_letters",
            "truncated",
        )
    }
    counts |= {
        field.name: getattr(statistics, field.name) for field in fields(statistics) if field.name != "latency_ms"
    }
    counts |= {f"truncated_at {place}": offset for place, offset in enumerate(receipt.truncated_at)}
    counts |= {f"latency_ms {bound}": count for bound, count in statistics.latency_ms.items()}
    counts |= {f"bound {bound}": bound for bound in statistics.latency_ms}
    counts |= {f"reasons {reason}": count for reason, count in receipt.reasons.items()}
    counts |= {f"unfit {column}": count for column, count in receipt.unfit.items()}
    written = [file for file in (receipt.output, receipt.dead_letter_output) if file is not None]
    counts |= {f"bytes of {file.path}": file.bytes for file in written}
    if receipt.end is not None:
        counts["end"] = receipt.end
    for name, count in counts.items():
        if type(count) is not int or not 0 <= count <= _MAX_COUNT:
            raise ValueError(f"{name} is {count!r}")
    if len(receipt.truncated_at) > MAX_TRUNCATED_PLACES:
        raise ValueError(f"truncated_at has {len(receipt.truncated_at)} offsets")
    if not 0 <= receipt.index <= _MAX_INDEX or not receipt.shard.endswith(f"-{receipt.index:05d}"):
        raise ValueError(f"index {receipt.index} is not that of {receipt.shard!r}")
    for seconds in (receipt.started_at, receipt.finished_at):
        if not (math.isfinite(seconds) and 0 <= seconds <= MAX_SECONDS):
            raise ValueError(f"{seconds!r} is not a time")
    for reason in receipt.reasons:
        Reason(reason)
    check_name(receipt.shard, on_disk=False)
    check_name(receipt.run, on_disk=False)
    allowed = {f"{DATA}/{receipt.shard}.{output_format}" for output_format in OUTPUT_FORMATS}
    if receipt.output is not None and receipt.output.path not in allowed:
        raise ValueError(f"{receipt.output.path!r} is not a name of this shard's output")
    letters = receipt.dead_letter_output
    if letters is not None and letters.path != f"{DEAD_LETTERS}/{receipt.shard}.ndjson":
        raise ValueError(f"{letters.path!r} is not the name of this shard's dead letters")
    if max(len(receipt.provenance.space), len(receipt.provenance.settings)) > _MAX_DIGEST:
        raise ValueError("a digest is too long")
    if receipt.provenance.vector_type not in VECTOR_TYPES:
        raise ValueError(f"vector_type is {receipt.provenance.vector_type!r}")


def is_done(output: OutputFolder, shard: Shard, job: str) -> bool:
    """Return whether a shard has a valid receipt in the output folder now, whose run is not in doubt."""
    data = output.read(output.receipt(shard.name))
    if data is None:
        return False
    try:
        receipt = decode_receipt(data)
    except ValueError:
        return False
    written = [file for file in (receipt.output, receipt.dead_letter_output) if file is not None]
    found = {file.path: found for file in written if (found := output.stat(file.path)) is not None}
    is_valid = receipt.is_of(shard, job) and receipt.files_are_there(found)
    return is_valid and output.stat(note_of(receipt.run)) is None
