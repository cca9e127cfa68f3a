"""EmbedShards: the batched DoFn that gives every document its vector, or a dead letter its reason."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from transforms import coders  # noqa: F401 # registers how the elements are encoded
from transforms.elements import DeadLetter, DocumentShard, EmbeddedShard, ShardDeadLetters, Stage
from transforms.tei import sharing
from transforms.tei.client import PendingEmbeddings, TeiClient
from transforms.tei.settings import EndpointSettings
from transforms.tei.tasks import Embeddings

EMBEDDED = "embedded"
DEAD_LETTERS = "dead_letters"
_COUNTERS = "tayyar"
_ENOUGH_TO_JUDGE = 1000  # records
_ENOUGH_MEMORY = 64 << 20  # bytes of lines, dead letters among them, behind the oldest shard
_RECORD_BYTES = 500  # that Python's objects for one record take beside its line


class TooManyDeadLetters(Exception):
    """So many records became dead letters that the rest need not be tried; what was done is kept."""


class Embedded(NamedTuple):
    """The outputs of EmbedShards: of `EmbeddedShard` and of `ShardDeadLetters`."""

    documents: beam.PCollection
    dead_letters: beam.PCollection


class _Waiting(NamedTuple):
    """A shard whose texts are with the client; `memory` is about how many bytes it takes."""

    shard: DocumentShard
    pending: PendingEmbeddings
    started_at: float
    memory: int


def merge_embeddings(
    read: DocumentShard, embeddings: Embeddings, started_at: float
) -> tuple[EmbeddedShard, ShardDeadLetters]:
    """Put a shard's documents and their vectors together, and its dead letters of both stages.

    Args:
        read: the shard as read, n documents.
        embeddings: of those n documents' texts, in their order.
        started_at: seconds since the epoch.
    """
    rejected = [
        DeadLetter(
            read.shard.source.path,
            read.documents[index].offset,
            Stage.EMBED,
            rejection.reason,
            rejection.detail,
            read.documents[index].line,
            rejection.http_status,
            rejection.attempts,
        )
        for index, rejection in sorted(embeddings.rejections.items())
    ]
    documents, vectors = read.documents, embeddings.vectors
    if rejected:
        kept = [index for index in range(len(documents)) if index not in embeddings.rejections]
        documents, vectors = tuple(documents[index] for index in kept), vectors[kept]
    dead_letters = tuple(sorted((*read.dead_letters, *rejected), key=lambda letter: letter.offset))
    embedded = EmbeddedShard(
        read.shard, documents, vectors, dead_letters, read.records, embeddings.statistics, started_at
    )
    return embedded, ShardDeadLetters(read.shard, dead_letters)


def _memory_of(shard: DocumentShard) -> int:
    lines = (record.line for records in (shard.documents, shard.dead_letters) for record in records)
    return _RECORD_BYTES * (1 + shard.records) + sum(map(len, lines))


def early_limit(max_ratio: float) -> float:
    """Return the share of dead letters at which a run stops before its end, if it may have `max_ratio` in the end.

    Ten times as many leave little hope that the rest makes up for it; more than half leave none.
    """
    return max(max_ratio, min(10 * max_ratio, 0.5))


@dataclass
class EmbedShards(beam.PTransform):  # type: ignore[misc] # Beam ships no types
    """`DocumentShard` in; `EmbeddedShard` and, where a shard has any, `ShardDeadLetters` out.

    Attributes:
        endpoint: where and how to embed; one client and one in-flight budget a process.
        max_dead_letter_ratio: dead letters a record that the whole run may have; with far more it stops early.
    """

    endpoint: EndpointSettings
    max_dead_letter_ratio: float = 1.0

    def expand(self, documents: beam.PCollection) -> Embedded:
        """Wire it."""
        embed = beam.ParDo(_EmbedShard(self.endpoint, self.max_dead_letter_ratio))
        types = {EMBEDDED: EmbeddedShard, DEAD_LETTERS: ShardDeadLetters}
        outputs = documents | embed.with_output_types(EmbeddedShard, **types).with_outputs(*types)
        return Embedded(outputs[EMBEDDED], outputs[DEAD_LETTERS])


class _EmbedShard(beam.DoFn):  # type: ignore[misc]
    """Hands each shard's texts to the client at once, and passes shards on in their order as they are done.

    While the client waits for the endpoint, the runner goes on: it reads the next shards, and writes earlier ones.
    """

    def __init__(self, endpoint: EndpointSettings, max_dead_letter_ratio: float) -> None:
        self._endpoint = endpoint
        self._max_ratio = max_dead_letter_ratio
        self._records = 0
        self._reasons: Counter[str] = Counter()
        self._client: TeiClient | None = None
        self._waiting: deque[_Waiting] = deque()
        self._documents_waiting = self._memory_waiting = 0
        self._documents_in = Metrics.counter(_COUNTERS, "documents_in")
        self._documents_out = Metrics.counter(_COUNTERS, "documents_out")
        self._dead_letters_out = Metrics.counter(_COUNTERS, "dead_letters_out")
        # Dataflow's autoscaler adds no workers while this counter, under this name, says that they would only wait.
        self._throttled = Metrics.counter(_COUNTERS, "cumulativeThrottlingSeconds")
        self._throttled_ms = 0

    def setup(self) -> None:
        self._client = sharing.acquire(self._endpoint)

    def start_bundle(self) -> None:
        self._waiting.clear()
        self._documents_waiting = self._memory_waiting = 0

    def process(self, shard: DocumentShard) -> Iterator[beam.pvalue.TaggedOutput]:
        if self._client is None:
            raise RuntimeError("setup() comes before process()")
        self._documents_in.inc(len(shard.documents))
        pending = self._client.submit([document.text for document in shard.documents])
        self._waiting.append(_Waiting(shard, pending, time.time(), _memory_of(shard)))
        self._documents_waiting += len(shard.documents)
        self._memory_waiting += self._waiting[-1].memory
        while self._waiting and (self._waiting[0].pending.done() or self._enough_behind_the_oldest()):
            yield from self._finish_oldest()

    def finish_bundle(self) -> Iterator[beam.pvalue.TaggedOutput]:
        while self._waiting:
            for output in self._finish_oldest():
                value = WindowedValue(output.value, GlobalWindow().max_timestamp(), (GlobalWindow(),))
                yield beam.pvalue.TaggedOutput(output.tag, value)

    def teardown(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            sharing.release(client)

    def _enough_behind_the_oldest(self) -> bool:
        """Whether waiting for the oldest shard leaves the endpoint enough to do.

        Twice what may be in flight lies behind it then, or what takes as much memory as a few usual shards.
        """
        oldest = self._waiting[0]
        documents = self._documents_waiting - len(oldest.shard.documents)
        return (
            self._memory_waiting - oldest.memory >= _ENOUGH_MEMORY
            or self._client is None
            or documents >= 2 * self._client.max_in_flight
        )

    def _finish_oldest(self) -> Iterable[beam.pvalue.TaggedOutput]:
        read, pending, started_at, memory = self._waiting.popleft()
        self._documents_waiting -= len(read.documents)
        self._memory_waiting -= memory
        embedded, dead_letters = merge_embeddings(read, pending.result(), started_at)
        self._documents_out.inc(len(embedded.documents))
        self._dead_letters_out.inc(len(dead_letters.dead_letters))
        seconds, self._throttled_ms = divmod(self._throttled_ms + embedded.statistics.throttled_ms, 1000)
        self._throttled.inc(seconds)
        # Dead letters first: where both writers are fused with this, they are there before the receipt counts them.
        if dead_letters.dead_letters:
            yield beam.pvalue.TaggedOutput(DEAD_LETTERS, dead_letters)
        yield beam.pvalue.TaggedOutput(EMBEDDED, embedded)
        self._stop_if_hopeless(embedded)

    def _stop_if_hopeless(self, shard: EmbeddedShard) -> None:
        self._records += shard.records
        self._reasons.update(letter.reason.value for letter in shard.dead_letters)
        dead_letters = self._reasons.total()
        if self._records >= _ENOUGH_TO_JUDGE and dead_letters > early_limit(self._max_ratio) * self._records:
            worst, count = self._reasons.most_common(1)[0]
            raise TooManyDeadLetters(
                f"{dead_letters} of the first {self._records} records are dead letters, far more than "
                f"--max_dead_letter_ratio {self._max_ratio} allows; {count} of them are {worst}"
            )
