"""EmbedShards: the DoFn that embeds several shards at a time; a document without a vector is a dead letter."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from transforms import coders  # noqa: F401 # registers how the elements are encoded
from transforms.doubt import record_doubt
from transforms.early_stop import check_dead_letter_ratio
from transforms.elements import OBJECT_BYTES, DeadLetter, DocumentShard, EmbeddedShard, Reason, ShardDeadLetters, Stage
from transforms.output.folder import OutputFolder
from transforms.output.layout import FLOAT32
from transforms.output.values import fits_type
from transforms.reuse.index import IndexHandle
from transforms.reuse.partial import PartialWriter
from transforms.reuse.reuse import Distinct, Found, distinct, find_vectors
from transforms.tei import sharing
from transforms.tei.errors import VectorsDoubtful
from transforms.tei.settings import EndpointSettings
from transforms.tei.tasks import Embeddings, Rejection

EMBEDDED_TAG = "embedded"
DEAD_LETTER_TAG = "dead_letters"
COUNTERS = "tayyar"  # the namespace of all counters
_MIN_RECORDS_TO_JUDGE = 1000


class EmbeddedShards(NamedTuple):
    """The outputs of EmbedShards: of `EmbeddedShard` and of `ShardDeadLetters`."""

    documents: beam.PCollection
    dead_letters: beam.PCollection


class PartialSettings(NamedTuple):
    """Where the vectors of unfinished shards are saved, and what for: see `PartialWriter`."""

    output: OutputFolder
    space: str
    overlong: str


class ThrottlingCounter:
    """Counts the time in which the endpoint wanted to be left alone.

    Dataflow's autoscaler adds no workers while this counter, under this name, says that they would only wait.
    """

    def __init__(self) -> None:
        self._seconds = Metrics.counter(COUNTERS, "cumulativeThrottlingSeconds")
        self._milliseconds = 0  # that are no whole second yet

    def add(self, milliseconds: int) -> None:
        """Count some more."""
        seconds, self._milliseconds = divmod(self._milliseconds + milliseconds, 1000)
        self._seconds.inc(seconds)


class _SubmittedShard(NamedTuple):
    """A shard whose new texts are with the client."""

    shard: DocumentShard
    distinct: Distinct
    found: Found | None
    started_at: float


def assemble(distinct: Distinct, found: Found | None, sent: Embeddings) -> tuple[Embeddings, int, int]:
    """Put together what was found and what was sent.

    Args:
        distinct: the texts of n documents.
        found: the former vectors; None if none were looked for.
        sent: the embeddings of those texts that were not found, in their order.

    Returns:
        the embeddings of all n documents, among them the truncated ones; how many of their vectors were found; how
        many documents with a vector have an earlier document's text.
    """
    vectors, rejections, truncated = sent.vectors, sent.rejections, sent.truncated
    if found is not None and found.mask.any():
        sent_numbers = np.flatnonzero(~found.mask)
        found.vectors[sent_numbers] = sent.vectors
        vectors = found.vectors
        rejections = {int(sent_numbers[index]): rejection for index, rejection in rejections.items()}
        truncated = sent_numbers[list(truncated)].tolist()
    reused = 0 if found is None else int(found.mask.sum())
    if distinct.numbers is None:
        return Embeddings(vectors, rejections, sent.statistics, truncated), reused, 0
    duplicates = len(distinct.numbers) - len(distinct.texts)
    if rejections:
        rejected = [index for index, number in enumerate(distinct.numbers) if number in rejections]
        duplicates -= len(rejected) - len(rejections)
        rejections = {index: rejections[distinct.numbers[index]] for index in rejected}
    if truncated:
        long = frozenset(truncated)
        truncated = [index for index, number in enumerate(distinct.numbers) if number in long]
    return Embeddings(vectors[np.asarray(distinct.numbers)], rejections, sent.statistics, truncated), reused, duplicates


def reject_unfit(sent: Embeddings, vector_type: str) -> Embeddings:
    """Reject the texts whose vectors have numbers that the type of the output cannot hold, or are all zeros in it.

    That cannot happen to vectors of unit norm, nor in float32, in which they come.
    """
    if vector_type == FLOAT32:
        return sent
    unfit = np.flatnonzero(~fits_type(sent.vectors, vector_type))
    rejections = {
        int(index): Rejection(
            Reason.INVALID_VECTOR,
            f"the vector's numbers, of up to {np.abs(sent.vectors[index]).max():.4g}, do not fit {vector_type}; "
            "run with --vector_type float32",
            None,
            1,
        )
        for index in unfit
    }
    rejections |= dict(sent.rejections)
    return replace(sent, rejections=rejections, truncated=[one for one in sent.truncated if one not in rejections])


def merge_embeddings(
    read: DocumentShard,
    embeddings: Embeddings,
    started_at: float,
    reused: int = 0,
    duplicates: int = 0,
    partial: Sequence[str] = (),
) -> tuple[EmbeddedShard, ShardDeadLetters]:
    """Put a shard's documents and their vectors together, and its dead letters of both stages.

    Args:
        read: the shard as read, n documents.
        embeddings: of those n documents' texts, in their order.
        started_at: seconds since the epoch.
        reused: documents whose vector comes from a former output.
        duplicates: documents whose vector is that of an earlier one.
        partial: names of files with partial vectors that are not needed when the shard has its receipt.
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
        tuple(read.documents[index].offset for index in embeddings.truncated),
        tuple(partial),
    )
    return embedded, ShardDeadLetters(read.shard, dead_letters)


def _memory_of(shard: DocumentShard) -> int:
    lines = [document.line for document in shard.documents] + [letter.line for letter in shard.dead_letters]
    return OBJECT_BYTES * (1 + shard.records) + sum(map(len, lines))


@dataclass
class EmbedShards(beam.PTransform):  # type: ignore[misc] # Beam ships no types
    """`DocumentShard` in; `EmbeddedShard` and, where a shard has any, `ShardDeadLetters` out.

    Attributes:
        endpoint: where and how to embed; one client and one in-flight budget a process.
        max_dead_letter_ratio: dead letters a record that the whole run may have; with far more it stops early.
        index: of former vectors, which are used instead of sending their texts again; None if there are none.
        partial: where vectors of unfinished shards are saved; None for nowhere.
        vector_type: in which vectors are written, `float32` or `float16`; what it cannot hold is a dead letter.
    """

    endpoint: EndpointSettings
    max_dead_letter_ratio: float = 1.0
    index: IndexHandle | None = None
    partial: PartialSettings | None = None
    vector_type: str = FLOAT32

    def expand(self, documents: beam.PCollection) -> EmbeddedShards:
        """Wire it."""
        embed = beam.ParDo(
            _EmbedShard(self.endpoint, self.max_dead_letter_ratio, self.index, self.partial, self.vector_type)
        )
        types = {EMBEDDED_TAG: EmbeddedShard, DEAD_LETTER_TAG: ShardDeadLetters}
        outputs = documents | embed.with_output_types(EmbeddedShard, **types).with_outputs(*types)
        return EmbeddedShards(outputs[EMBEDDED_TAG], outputs[DEAD_LETTER_TAG])


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
        vector_type: str = FLOAT32,
    ) -> None:
        self._endpoint = endpoint
        self._max_ratio = max_dead_letter_ratio
        self._index = index
        self._partial = partial
        self._vector_type = vector_type
        self._partial_writer: PartialWriter | None = None
        self._records = 0
        self._reasons: Counter[str] = Counter()
        self._submitted: sharing.SubmittedBatches[_SubmittedShard] | None = None
        self._documents_in = Metrics.counter(COUNTERS, "documents_in")
        self._documents_out = Metrics.counter(COUNTERS, "documents_out")
        self._dead_letters_out = Metrics.counter(COUNTERS, "dead_letters_out")
        self._throttling = ThrottlingCounter()

    def setup(self) -> None:
        self._submitted = sharing.SubmittedBatches(self._endpoint)
        if self._partial is not None:
            self._partial_writer = PartialWriter(*self._partial)

    def start_bundle(self) -> None:
        self._forget_all()

    def process(self, shard: DocumentShard) -> Iterator[beam.pvalue.TaggedOutput]:
        if self._submitted is None:
            raise RuntimeError("setup() comes before process()")
        self._documents_in.inc(len(shard.documents))
        started_at = time.time()
        texts = distinct([document.text for document in shard.documents])
        index = self._index.open() if self._index is not None else None
        found = None
        new = texts.texts
        if index is not None and self._endpoint.space is not None:
            found = find_vectors(texts.texts, index, self._endpoint.space.dimensions, self._vector_type)
            new = [text for text, known in zip(texts.texts, found.mask, strict=True) if not known]
        submitted = _SubmittedShard(shard, texts, found, started_at)
        # Dead letters count, too: until their shard is done, their lines are kept.
        with self._recording_doubt():
            pending = self._submitted.submit(submitted, new, len(shard.documents), _memory_of(shard))
            if self._partial_writer is not None and new:
                self._partial_writer.add(shard.shard.name, new, pending)
            for done, sent in self._submitted.take_ready():
                yield from self._finish(done, sent)

    def finish_bundle(self) -> Iterator[beam.pvalue.TaggedOutput]:
        if self._submitted is None:
            raise RuntimeError("setup() comes before finish_bundle()")
        with self._recording_doubt():
            for done, sent in self._submitted.take_all():
                for output in self._finish(done, sent):
                    value = WindowedValue(output.value, GlobalWindow().max_timestamp(), (GlobalWindow(),))
                    yield beam.pvalue.TaggedOutput(output.tag, value)

    def teardown(self) -> None:
        self._forget_all()
        if self._partial_writer is not None:
            self._partial_writer.close()
        submitted, self._submitted = self._submitted, None
        if submitted is not None:
            submitted.close()

    @contextmanager
    def _recording_doubt(self) -> Iterator[None]:
        try:
            yield
        except VectorsDoubtful as error:
            if self._partial is not None:
                record_doubt(self._partial.output, str(error))
            raise

    def _forget_all(self) -> None:
        """Forget the shards of a bundle that failed."""
        if self._submitted is not None:
            self._submitted.forget()
        if self._partial_writer is not None:
            self._partial_writer.clear()

    def _finish(self, submitted: _SubmittedShard, sent: Embeddings) -> Iterable[beam.pvalue.TaggedOutput]:
        read, texts, found, started_at = submitted
        embeddings, reused, duplicates = assemble(texts, found, reject_unfit(sent, self._vector_type))
        partial = self._partial_files(read.shard.name, found)
        embedded, dead_letters = merge_embeddings(read, embeddings, started_at, reused, duplicates, partial)
        self._documents_out.inc(len(embedded.documents))
        self._dead_letters_out.inc(len(dead_letters.dead_letters))
        self._throttling.add(embedded.statistics.throttled_ms)
        # Dead letters first: where both writers are fused with this, they are there before the receipt counts them.
        if dead_letters.dead_letters:
            yield beam.pvalue.TaggedOutput(DEAD_LETTER_TAG, dead_letters)
        yield beam.pvalue.TaggedOutput(EMBEDDED_TAG, embedded)
        self._stop_if_hopeless(embedded)

    def _partial_files(self, shard: str, found: Found | None) -> list[str]:
        """Return the files of partial vectors that have none but this shard's."""
        if self._partial is None or self._partial_writer is None:
            return []
        root = f"{self._partial.output.root}/"
        names = [path.removeprefix(root) for path in found.used_up] if found is not None else []
        own = self._partial_writer.remove(shard)
        return names if own is None else [*names, own]

    def _stop_if_hopeless(self, shard: EmbeddedShard) -> None:
        self._records += shard.records
        self._reasons.update(letter.reason.value for letter in shard.dead_letters)
        if self._records >= _MIN_RECORDS_TO_JUDGE:
            check_dead_letter_ratio(self._records, self._reasons, self._max_ratio)
