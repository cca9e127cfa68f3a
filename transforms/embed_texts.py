"""EmbedTexts: a vector for every text of a pipeline of any kind, or the reason why it has none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.utils.windowed_value import WindowedValue

from transforms.elements import OBJECT_BYTES, Reason, Vectors
from transforms.embed_shards import COUNTERS, ThrottlingCounter, assemble
from transforms.reuse.reuse import Distinct, distinct
from transforms.tei import sharing
from transforms.tei.settings import EndpointSettings
from transforms.tei.tasks import Embeddings, Rejection
from transforms.tei.vector_space import VectorSpace

VECTORS_TAG = "vectors"
DEAD_LETTER_TAG = "dead_letters"
# Enough texts for a few full requests, and to put those of a length together; little to wait for on a slow server.
_BATCH_TEXTS = 512
_BATCH_CHARACTERS = 1 << 20

Texts: TypeAlias = str | Mapping[str, str]
VectorsOrRejection: TypeAlias = Vectors | Mapping[str, Vectors] | Rejection


@dataclass(frozen=True, slots=True)
class RejectedText:
    """An element whose text has no vector.

    Attributes:
        key: the element's.
        reason: MISSING_TEXT (it is not a string), EMPTY_TEXT (it is blank), OVERLONG_TEXT, REJECTED_BY_ENDPOINT or
            INVALID_VECTOR.
        detail: the endpoint's message, or what is wrong with the text; never the text.
    """

    key: Any
    reason: Reason
    detail: str


class EmbeddedTexts(NamedTuple):
    """The outputs of EmbedTexts: of `(key, float32[dimensions])`, and of `RejectedText`."""

    vectors: beam.PCollection
    dead_letters: beam.PCollection


@dataclass
class EmbedTexts(beam.PTransform):  # type: ignore[misc] # Beam ships no types
    """`(key, text)` in; `(key, vector)` and, for each text that cannot be embedded, `RejectedText` out.

    A vector is float32[dimensions]. Windows and timestamps stay as they are; the order need not. Texts are collected
    into batches of 512, or 2^20 characters, within a bundle, and equal texts of a batch are sent once. A process has
    one client, however many threads and transforms use it. It holds, beside two batches of each thread, about twice as
    many texts as may be in flight, or 64 MiB of them.

    All vectors of one run are of one space. If the settings name it (`TeiClient(…).probe().space`), every run with
    these settings is in it. Otherwise one worker asks the endpoint for the vectors of the probe sentences when the
    pipeline starts, and hands them to all others. Each worker compares its endpoint with them before it sends a text,
    and the canary in each request with its known vector. So a model that is swapped, or two models behind one URL, fail
    the pipeline instead of mixing vectors.

    The pipeline fails with an `EndpointError`, too, if the endpoint refuses all texts or is gone for
    `give_up_after` seconds: these are no properties of a text.

    Attributes:
        endpoint: where and how to embed.
    """

    endpoint: EndpointSettings

    def expand(self, texts: beam.PCollection) -> EmbeddedTexts:
        """Wire it."""
        outcomes = texts | "EmbedOrReject" >> EmbedOrReject(self.endpoint)
        outputs = outcomes | "Separate" >> beam.FlatMap(separate).with_outputs(VECTORS_TAG, DEAD_LETTER_TAG)
        return EmbeddedTexts(outputs[VECTORS_TAG], outputs[DEAD_LETTER_TAG])


def separate(outcome: tuple[Any, VectorsOrRejection]) -> Iterator[beam.pvalue.TaggedOutput]:
    """Yield what became of an element, for the output that it belongs to."""
    key, value = outcome
    if isinstance(value, Rejection):
        yield beam.pvalue.TaggedOutput(DEAD_LETTER_TAG, RejectedText(key, value.reason, value.detail))
    else:
        yield beam.pvalue.TaggedOutput(VECTORS_TAG, (key, value))


@dataclass
class EmbedOrReject(beam.PTransform):  # type: ignore[misc]
    """What `EmbedTexts` does, with one output: `(key, vector)`, or `(key, Rejection)`.

    An element may have several texts, as a mapping of names. It gets a mapping of the same names to vectors, or the
    first rejection, with the name in its detail.

    Attributes:
        endpoint: where and how to embed.
    """

    endpoint: EndpointSettings

    def expand(self, texts: beam.PCollection) -> beam.PCollection:
        """Wire it."""
        space = self.endpoint.space
        if space is None:
            start = texts.pipeline | "Start" >> beam.Create([None])
            space = beam.pvalue.AsSingleton(start | "ProbeSpace" >> beam.Map(_probe_space, self.endpoint))
        return texts | "Embed" >> beam.ParDo(_EmbedOrReject(self.endpoint), space)


def _probe_space(_: None, endpoint: EndpointSettings) -> VectorSpace:
    client = sharing.acquire(endpoint)
    try:
        return client.probe().space
    finally:
        sharing.release(client)


def find_problem(texts: Texts) -> Rejection | None:
    """Return why an element's texts cannot be embedded; None if they can be sent."""
    for name, text in texts.items() if isinstance(texts, Mapping) else [("the text", texts)]:
        if not isinstance(text, str):
            kind = "missing or null" if text is None else f"a value of type {type(text).__name__}, not a string"
            return Rejection(Reason.MISSING_TEXT, f"{name} is {kind}", None, 0)
        if not text or text.isspace():
            return Rejection(Reason.EMPTY_TEXT, f"{name} is {'blank' if text else 'empty'}", None, 0)
    return None


def vectors_or_rejections(elements: list[Texts], embeddings: Embeddings) -> Iterator[VectorsOrRejection]:
    """Yield what became of each element.

    Args:
        elements: their texts, n in all.
        embeddings: of those n texts, in their order.
    """
    place = 0
    for texts in elements:
        if isinstance(texts, str):
            # A copy: one vector that is kept must not keep the whole batch in memory.
            yield embeddings.rejections.get(place) or embeddings.vectors[place].copy()
            place += 1
            continue
        places = dict(zip(texts, range(place, place + len(texts)), strict=True))
        place += len(texts)
        rejected = next((name for name in places if places[name] in embeddings.rejections), None)
        if rejected is None:
            yield {name: embeddings.vectors[index].copy() for name, index in places.items()}
        else:
            rejection = embeddings.rejections[places[rejected]]
            yield dataclasses.replace(rejection, detail=f"{rejected}: {rejection.detail}")


class _Batch(NamedTuple):
    """Elements whose texts go to the client together; each is a windowed `(key, texts)`."""

    elements: list[WindowedValue]
    distinct: Distinct


class _EmbedOrReject(beam.DoFn):  # type: ignore[misc]
    """Collects elements to batches, hands these to the client, and passes elements on as their batch is done."""

    def __init__(self, endpoint: EndpointSettings) -> None:
        self._endpoint = endpoint
        self._submitted: sharing.SubmittedBatches[_Batch] | None = None
        self._elements: list[WindowedValue] = []
        self._texts: list[str] = []
        self._characters = 0
        self._texts_in = Metrics.counter(COUNTERS, "texts_in")
        self._texts_rejected = Metrics.counter(COUNTERS, "texts_rejected")
        self._throttling = ThrottlingCounter()

    def start_bundle(self) -> None:
        """Forget what a bundle that failed has left."""
        self._elements, self._texts, self._characters = [], [], 0
        if self._submitted is not None:
            self._submitted.forget()

    def process(
        self,
        element: tuple[Any, Texts],
        space: VectorSpace,
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
    ) -> Iterator[WindowedValue]:
        if self._submitted is None:  # here and not in setup, where side inputs are not available
            self._submitted = sharing.SubmittedBatches(dataclasses.replace(self._endpoint, space=space))
        key, texts = element
        problem = find_problem(texts)
        if problem is not None:
            self._texts_rejected.inc()
            yield WindowedValue((key, problem), timestamp, (window,))
            return
        new = [texts] if isinstance(texts, str) else list(texts.values())
        self._elements.append(WindowedValue(element, timestamp, (window,)))
        self._texts += new
        self._characters += sum(map(len, new))
        if len(self._texts) >= _BATCH_TEXTS or self._characters >= _BATCH_CHARACTERS:
            self._submit(self._submitted)
            for batch, embeddings in self._submitted.take_ready():
                yield from self._finish(batch, embeddings)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._submitted is None:
            return
        if self._elements:
            self._submit(self._submitted)
        for batch, embeddings in self._submitted.take_all():
            yield from self._finish(batch, embeddings)

    def teardown(self) -> None:
        submitted, self._submitted = self._submitted, None
        if submitted is not None:
            submitted.close()

    def _submit(self, submitted: sharing.SubmittedBatches[_Batch]) -> None:
        self._texts_in.inc(len(self._texts))
        texts = distinct(self._texts)
        memory = self._characters + OBJECT_BYTES * len(self._texts)
        submitted.submit(_Batch(self._elements, texts), texts.texts, len(self._texts), memory)
        self._elements, self._texts, self._characters = [], [], 0

    def _finish(self, batch: _Batch, sent: Embeddings) -> Iterator[WindowedValue]:
        embeddings, _, _ = assemble(batch.distinct, None, sent)
        self._texts_rejected.inc(len(embeddings.rejections))
        self._throttling.add(embeddings.statistics.throttled_ms)
        outcomes = vectors_or_rejections([element.value[1] for element in batch.elements], embeddings)
        for element, outcome in zip(batch.elements, outcomes, strict=True):
            yield element.with_value((element.value[0], outcome))
