"""EmbedShards: the batched DoFn that gives every document its vector, or a dead letter its reason."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from transforms import coders  # noqa: F401 # registers how the elements are encoded
from transforms.elements import DeadLetter, DocumentShard, EmbeddedShard, ShardDeadLetters, Stage
from transforms.output.folder import OutputFolder
from transforms.reuse.index import IndexHandle
from transforms.reuse.partial import PartialWriter
from transforms.reuse.reuse import Distinct, Found, distinct, find_vectors
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


class PartialSettings(NamedTuple):
    """Where and as what the vectors of unfinished shards are put down: see `PartialWriter`."""

    output: OutputFolder
    space: str
    overlong: str


class _Waiting(NamedTuple):
    """A shard whose new texts are with the client; `memory` is about how many bytes it takes."""

    shard: DocumentShard
    distinct: Distinct
    found: Found | None
    pending: PendingEmbeddings
    started_at: float
    memory: int


class Backlog:
    """The shards that wait for the endpoint, of all threads of a process together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.documents = self.memory = 0

    def add(self, documents: int, memory: int) -> None:
        """Count a shard; with negative numbers, count it no longer."""
        with self._lock:
            self.documents += documents
            self.memory += memory


# Of the process, as its client is: with a limit for each thread, many threads would hold many times as much.
backlog = Backlog()


def assemble(distinct: Distinct, found: Found | None, sent: Embeddings) -> tuple[Embeddings, int, int]:
    """Put together what was found and what was sent.

    Args:
        distinct: the texts of n documents.
        found: the former vectors; None if none were looked for.
        sent: the embeddings of those texts that were not found, in their order.

    Returns:
        the embeddings of all n documents; how many of their vectors were found; how many documents with a vector have
        an earlier document's text.
    """
    vectors, rejections = sent.vectors, sent.rejections
    if found is not None and found.mask.any():
        sent_places = np.flatnonzero(~found.mask)
        found.vectors[sent_places] = sent.vectors
        vectors = found.vectors
        rejections = {int(sent_places[place]): rejection for place, rejection in rejections.items()}
    reused = 0 if found is None else int(found.mask.sum())
    if distinct.places is None:
        return Embeddings(vectors, rejections, sent.statistics), reused, 0
    duplicates = len(distinct.places) - len(distinct.texts)
    if rejections:
        rejected = [index for index, place in enumerate(distinct.places) if place in rejections]
        duplicates -= len(rejected) - len(rejections)
        rejections = {index: rejections[distinct.places[index]] for index in rejected}
    return Embeddings(vectors[np.asarray(distinct.places)], rejections, sent.statistics), reused, duplicates


def merge_embeddings(
    read: DocumentShard, embeddings: Embeddings, started_at: float, reused: int = 0, duplicates: int = 0
) -> tuple[EmbeddedShard, ShardDeadLetters]:
    """Put a shard's documents and their vectors together, and its dead letters of both stages.

    Args:
        read: the shard as read, n documents.
        embeddings: of those n documents' texts, in their order.
        started_at: seconds since the epoch.
        reused: documents whose vector comes from a former output.
        duplicates: documents whose vector is that of an earlier one.
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
        read.shard,
        documents,
        vectors,
        dead_letters,
        read.records,
        embeddings.statistics,
        started_at,
        reused,
        duplicates,
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
        index: of former vectors, which are used instead of sending their texts again; None if there are none.
        partial: where vectors of unfinished shards are put down; None for nowhere.
    """

    endpoint: EndpointSettings
    max_dead_letter_ratio: float = 1.0
    index: IndexHandle | None = None
    partial: PartialSettings | None = None

    def expand(self, documents: beam.PCollection) -> Embedded:
        """Wire it."""
        embed = beam.ParDo(_EmbedShard(self.endpoint, self.max_dead_letter_ratio, self.index, self.partial))
        types = {EMBEDDED: EmbeddedShard, DEAD_LETTERS: ShardDeadLetters}
        outputs = documents | embed.with_output_types(EmbeddedShard, **types).with_outputs(*types)
        return Embedded(outputs[EMBEDDED], outputs[DEAD_LETTERS])


class _EmbedShard(beam.DoFn):  # type: ignore[misc]
    """Hands each shard's new texts to the client at once, and passes shards on in their order as they are done.

    While the client waits for the endpoint, the runner goes on: it reads the next shards, and writes earlier ones.
    """

    def __init__(
        self,
        endpoint: EndpointSettings,
        max_dead_letter_ratio: float,
        index: IndexHandle | None = None,
        partial: PartialSettings | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._max_ratio = max_dead_letter_ratio
        self._index = index
        self._partial = partial
        self._partial_writer: PartialWriter | None = None
        self._records = 0
        self._reasons: Counter[str] = Counter()
        self._client: TeiClient | None = None
        self._waiting: deque[_Waiting] = deque()
        self._documents_in = Metrics.counter(_COUNTERS, "documents_in")
        self._documents_out = Metrics.counter(_COUNTERS, "documents_out")
        self._dead_letters_out = Metrics.counter(_COUNTERS, "dead_letters_out")
        # Dataflow's autoscaler adds no workers while this counter, under this name, says that they would only wait.
        self._throttled = Metrics.counter(_COUNTERS, "cumulativeThrottlingSeconds")
        self._throttled_ms = 0

    def setup(self) -> None:
        self._client = sharing.acquire(self._endpoint)
        if self._partial is not None:
            self._partial_writer = PartialWriter(*self._partial)

    def start_bundle(self) -> None:
        self._forget_all()

    def process(self, shard: DocumentShard) -> Iterator[beam.pvalue.TaggedOutput]:
        if self._client is None:
            raise RuntimeError("setup() comes before process()")
        self._documents_in.inc(len(shard.documents))
        started_at = time.time()
        texts = distinct([document.text for document in shard.documents])
        index = self._index.open() if self._index is not None else None
        found = None
        new = texts.texts
        if index is not None and self._endpoint.space is not None:
            found = find_vectors(texts.texts, index, self._endpoint.space.dimensions)
            new = [text for text, known in zip(texts.texts, found.mask, strict=True) if not known]
        pending = self._client.submit(new)
        self._waiting.append(_Waiting(shard, texts, found, pending, started_at, _memory_of(shard)))
        backlog.add(len(shard.documents), self._waiting[-1].memory)
        if self._partial_writer is not None and new:
            self._partial_writer.add(shard.shard.name, new, pending)
        while self._waiting and (self._waiting[0].pending.done() or self._enough_behind_the_oldest()):
            yield from self._finish_oldest()

    def finish_bundle(self) -> Iterator[beam.pvalue.TaggedOutput]:
        while self._waiting:
            for output in self._finish_oldest():
                value = WindowedValue(output.value, GlobalWindow().max_timestamp(), (GlobalWindow(),))
                yield beam.pvalue.TaggedOutput(output.tag, value)

    def teardown(self) -> None:
        self._forget_all()
        if self._partial_writer is not None:
            self._partial_writer.close()
        client, self._client = self._client, None
        if client is not None:
            sharing.release(client)

    def _forget_all(self) -> None:
        """Forget the shards of a bundle that failed."""
        for waiting in self._waiting:
            backlog.add(-len(waiting.shard.documents), -waiting.memory)
        self._waiting.clear()
        if self._partial_writer is not None:
            self._partial_writer.clear()

    def _enough_behind_the_oldest(self) -> bool:
        """Whether waiting for the oldest shard leaves the endpoint enough to do.

        Twice what may be in flight lies behind it then, or what takes as much memory as a few usual shards; other
        threads' shards count.
        """
        oldest = self._waiting[0]
        documents = backlog.documents - len(oldest.shard.documents)
        return (
            backlog.memory - oldest.memory >= _ENOUGH_MEMORY
            or self._client is None
            or documents >= 2 * self._client.max_in_flight
        )

    def _finish_oldest(self) -> Iterable[beam.pvalue.TaggedOutput]:
        read, texts, found, pending, started_at, memory = self._waiting.popleft()
        backlog.add(-len(read.documents), -memory)
        embeddings, reused, duplicates = assemble(texts, found, pending.result())
        embedded, dead_letters = merge_embeddings(read, embeddings, started_at, reused, duplicates)
        if self._partial_writer is not None:
            self._partial_writer.remove(read.shard.name)
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
