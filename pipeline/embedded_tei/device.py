"""The device: permits, one queue of texts, one batch running.

All state belongs to the event loop. Only the model's work leaves it, to a thread of its own where it takes long.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.embedded_tei.limits import ServerLimits
from pipeline.embedded_tei.models.registry import EmbeddingModel, Encoded, Vectors
from pipeline.embedded_tei.refusals import Refusal, backend, overloaded
from pipeline.embedded_tei.wire import EmbedRequest


@dataclass(slots=True, eq=False)
class PendingRequest:
    """The texts of one request on their way through the device.

    Attributes:
        texts: all of them; None where a text was refused before.
        vectors: float32[len(texts), dimensions], filled as batches end.
        refusals: by row.
        finished: set when the last text is done; False if the client closed its connection.
        pending: texts that are not done.
        queue_seconds: summed over texts.
        inference_seconds: summed over texts.
    """

    texts: Sequence[Encoded | None]
    vectors: Vectors
    refusals: dict[int, Refusal]
    finished: asyncio.Future[bool]
    pending: int
    queue_seconds: float = 0.0
    inference_seconds: float = 0.0


class Entry(NamedTuple):
    """One text in the queue; a tuple, because thousands are made in a second."""

    request: PendingRequest
    row: int
    text: Encoded
    queued_at: float


class Device:
    """Form batches as TEI does and hand the results back.

    Args:
        model: what computes.
        limits: permits, and the sizes of a batch.

    Attributes:
        is_healthy: whether the last batch succeeded.
    """

    def __init__(self, model: EmbeddingModel, limits: ServerLimits) -> None:
        self.model = model
        self.is_healthy = True
        self._limits = limits
        self._free_permits = limits.max_concurrent_requests
        self._thread = None if model.is_instant else ThreadPoolExecutor(1, "device")
        self._queue: deque[Entry] = deque()
        self._running: asyncio.Task[None] | None = None

    def acquire(self, request: EmbedRequest) -> None:
        """Take one permit for each text of a request.

        Raises:
            Refusal: if fewer are free.
        """
        if len(request.inputs) > self._free_permits:
            raise overloaded()
        self._free_permits -= len(request.inputs)

    def release(self, count: int) -> None:
        """Give permits back."""
        self._free_permits += count

    def submit(self, entries: Sequence[Entry]) -> None:
        """Put texts at the end of the queue."""
        self._queue.extend(entries)
        self._start_next()

    def drop(self, request: PendingRequest) -> None:
        """Remove the queued texts of a request whose client is gone; those in the running batch are computed anyway."""
        kept = deque(entry for entry in self._queue if entry.request is not request)
        self.release(len(self._queue) - len(kept))
        self._queue = kept
        if not request.finished.done():
            request.finished.set_result(False)

    async def wait_for_running(self) -> None:
        """Wait for the running batch, as a health check does."""
        if self._running is not None:
            await asyncio.wait([self._running])

    async def probe(self, text: Encoded) -> None:
        """Embed one text outside the queue, to see whether the device works again."""
        self.is_healthy = not isinstance(await self._try_compute([text]), Refusal)

    async def compute(self, texts: Sequence[Encoded]) -> Vectors:
        """Return float32[len(texts), dimensions] of unit norm, for the texts of one batch."""
        if self._thread is None:
            return self.model.embed(texts)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.model.embed, texts)

    def _start_next(self) -> None:
        # A batch is formed only when the device is free, so that it is as full as the queue allows.
        if self._running is None and self._queue:
            self._running = asyncio.get_running_loop().create_task(self._run(self._form_batch()))

    def _form_batch(self) -> list[Entry]:
        """Take texts from the front of the queue until the next one would exceed a limit; at least one."""
        max_texts = self._limits.max_batch_requests or len(self._queue)
        tokens = size = 0
        for entry in itertools.islice(self._queue, max_texts):
            tokens += entry.text.tokens
            if size and tokens > self._limits.max_batch_tokens:
                break
            size += 1
        return [self._queue.popleft() for _ in range(size)]

    async def _run(self, batch: list[Entry]) -> None:
        started = time.perf_counter()
        result = await self._try_compute([entry.text for entry in batch])
        self.is_healthy = not isinstance(result, Refusal)
        ended = time.perf_counter()
        self.release(len(batch))
        # Before the results are delivered, so that the device computes while their responses are written.
        self._running = None
        self._start_next()
        for position, entry in enumerate(batch):
            _deliver(entry, result if isinstance(result, Refusal) else result[position], started, ended)

    async def _try_compute(self, texts: Sequence[Encoded]) -> Vectors | Refusal:
        try:
            return await self.compute(texts)
        except Exception as error:  # noqa: BLE001 - whatever a model raises is an error of the backend, as in TEI
            return backend(str(error))


def _deliver(entry: Entry, result: Refusal | Vectors, started: float, ended: float) -> None:
    request = entry.request
    if isinstance(result, Refusal):
        request.refusals[entry.row] = result
    else:
        request.vectors[entry.row] = result
    request.queue_seconds += started - entry.queued_at
    request.inference_seconds += ended - started
    request.pending -= 1
    if not request.pending and not request.finished.done():
        request.finished.set_result(True)
