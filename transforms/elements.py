"""The elements that travel through the pipeline. No Beam import."""

from __future__ import annotations

import enum
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
OBJECT_BYTES = 500  # that Python's objects for one record take beside its line, as measured

# Upper bounds in milliseconds, a factor of 2^(1/4) apart: a quantile read from them is at most 19 % too high.
BUCKETS_PER_DOUBLING = 4


def latency_bucket(milliseconds: float) -> int:
    """Return the upper bound of a latency's bucket, rounded up to whole milliseconds; at least 1."""
    exponent = math.ceil(math.log2(max(milliseconds, 1.0)) * BUCKETS_PER_DOUBLING)
    bound: float = 2.0 ** (exponent / BUCKETS_PER_DOUBLING)
    return math.ceil(bound)


@dataclass(slots=True)
class RequestStatistics:
    """Sums over requests. Mutable and not thread-safe: callers that share one must lock it.

    Attributes:
        tokens: as the server counted them, after truncation, special tokens included.
        requests: HTTP exchanges that succeeded.
        retries: HTTP exchanges that were repeated, for any reason.
        queue_ms: `x-queue-time` summed over texts.
        inference_ms: `x-inference-time` summed over texts.
        throttled_ms: time spent waiting because the server asked the client to wait.
        flight_ms: round trips summed over texts.
        busy_ms: in which the server's device was at work, as far as replies show; of `slot_ms`.
        slot_ms: round trips, each divided by the requests in flight with it.
        latency_ms: requests by the upper bound of their latency's bucket.
    """

    tokens: int = 0
    requests: int = 0
    retries: int = 0
    queue_ms: int = 0
    inference_ms: int = 0
    throttled_ms: int = 0
    flight_ms: int = 0
    busy_ms: int = 0
    slot_ms: int = 0
    latency_ms: Counter[int] = field(default_factory=Counter)


class Reason(enum.Enum):
    """Why a record became a dead letter. The values are part of the output's contract."""

    INVALID_UTF8 = "invalid_utf8"
    INVALID_JSON = "invalid_json"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_TEXT = "missing_text"
    EMPTY_TEXT = "empty_text"
    LINE_TOO_LONG = "line_too_long"
    OVERLONG_TEXT = "overlong_text"
    REJECTED_BY_ENDPOINT = "rejected_by_endpoint"
    INVALID_VECTOR = "invalid_vector"


# What to do about records that became dead letters.
REMEDIES = {
    Reason.INVALID_UTF8: "the files are in another encoding: convert them with iconv -t UTF-8",
    Reason.INVALID_JSON: "the lines are not JSON, or records are broken over several lines: write one object a line "
    "(jq -c . FILE)",
    Reason.NOT_AN_OBJECT: "the lines hold arrays or plain values: write one object a line (jq -c '.[]' FILE)",
    Reason.MISSING_TEXT: "the text is in another field: name it with --text_field",
    Reason.EMPTY_TEXT: "the text field is blank in these records: name another one besides it with a second "
    "--text_field, or remove the records",
    Reason.LINE_TOO_LONG: "newlines are missing between records: write one object a line (jq -c . FILE)",
    Reason.OVERLONG_TEXT: "the texts are longer than the model reads: split them, or run with --overlong truncate",
    Reason.REJECTED_BY_ENDPOINT: "the endpoint refuses these texts: look at the detail, and at the server's log",
    Reason.INVALID_VECTOR: "the vectors are not finite, or float16 cannot hold them: read the detail; check the model "
    "and its dtype, or run with --vector_type float32",
}


class Stage(enum.Enum):
    """Where a record became a dead letter."""

    READ = "read"
    EMBED = "embed"


@dataclass(frozen=True, slots=True)
class Source:
    """One input file as the plan saw it.

    Attributes:
        path: where it is, as Beam's FileSystems spells it.
        name: its path below the pattern's fixed prefix, without its extensions; the stem of its outputs.
        size: bytes as stored (compressed, where it is).
        version: the file's version, as the storage numbers it: see `FileStat`.
        compressed: whether its first bytes are those of a compressed file, which cannot be split.
    """

    path: str
    name: str
    size: int
    version: str
    compressed: bool = False

    def is_unchanged(self, size: int, version: str) -> bool:
        """Return whether a file of this size and version is the one that the plan saw: this decides it everywhere."""
        return (size, version) == (self.size, self.version)


@dataclass(frozen=True, slots=True)
class Shard:
    """The lines of one source that begin in the bytes `[start, end)`, counted after decompression.

    `end` is None in the work item of an unsplittable source, which stands for all of its shards; the shards read from
    it have theirs. `last` is true for the shard that ends its source.
    """

    source: Source
    index: int
    start: int
    end: int | None
    last: bool = False

    @property
    def name(self) -> str:
        """The stem of this shard's files in the output folder."""
        return f"{self.source.name}-{self.index:05d}"

    @property
    def stored_bytes(self) -> int:
        """The bytes to read for it: all of them for the work item of a source that cannot be split."""
        return self.source.size if self.end is None else self.end - self.start


def text_as_sent(text: str) -> bytes:
    """Return the UTF-8 bytes of a text that the endpoint gets: a lone surrogate, which UTF-8 cannot hold, becomes `?`.

    Requests, keys of texts and Parquet's column of texts follow this one rule, so that equal bytes have equal vectors.
    """
    return text.encode("utf-8", "replace")


class Document(NamedTuple):
    """One record that can be embedded. A tuple, because that is made in half of a dataclass's time.

    Attributes:
        offset: byte offset of its line in the (decompressed) source.
        line: the line verbatim, without its newline.
        text: what is sent to the endpoint; never blank.
        has_field: whether the line has the embedding field already, at its top level.
        has_nan: whether the line holds NaN or Infinity, which strict JSON parsers refuse.
    """

    offset: int
    line: bytes
    text: str
    has_field: bool
    has_nan: bool = False


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record that could not be embedded, with all that is needed to understand it and to send it again."""

    source: str
    offset: int
    stage: Stage
    reason: Reason
    detail: str
    line: bytes
    http_status: int | None = None
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class DocumentShard:
    """A shard as read: its documents in input order, and the records that became dead letters while it was read.

    `records` counts the lines that are not blank, whatever became of them: the ledger is balanced against it.
    """

    shard: Shard
    documents: tuple[Document, ...] = ()
    dead_letters: tuple[DeadLetter, ...] = ()
    records: int = 0


@dataclass(frozen=True, slots=True)
class EmbeddedShard:
    """A shard with its vectors.

    Attributes:
        shard: which one.
        documents: those that were embedded, in input order.
        vectors: float32[len(documents), dimensions]; row k is the vector of document k.
        dead_letters: the shard's other records, by offset; its receipt counts them and vouches for their file.
        records: lines of the shard that are not blank, as counted when it was read.
        statistics: what it took.
        started_at: seconds since the epoch at which its first text could be sent.
        reused: documents whose vector comes from a former output.
        duplicates: documents with the text of an earlier one of this shard, whose vector they share.
        truncated: offsets of the documents whose text was sent and is too long for the model; ascending.
        partial: names of files with partial vectors that nobody needs when this shard has its receipt.
    """

    shard: Shard
    documents: tuple[Document, ...]
    vectors: Vectors
    dead_letters: tuple[DeadLetter, ...]
    records: int
    statistics: RequestStatistics
    started_at: float
    reused: int = 0
    duplicates: int = 0
    truncated: tuple[int, ...] = ()
    partial: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ShardDeadLetters:
    """All dead letters of one shard, by offset; at least one."""

    shard: Shard
    dead_letters: tuple[DeadLetter, ...]
