"""The device: one queue of texts, one batch running, one batch formed ahead.

All state belongs to the event loop; only the model's work leaves it, to a thread of its own where it takes long.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.embedded_tei.limits import ServerLimits
from pipeline.embedded_tei.metrics import Metrics
from pipeline.embedded_tei.models.registry import EmbeddingModel, Encoded, Vectors
from pipeline.embedded_tei.permits import Permits
from pipeline.embedded_tei.refusals import Refusal, backend

# Told also since when the batch's first text has waited (`time.perf_counter`).
Compute = Callable[[Sequence[Encoded], float], Awaitable[Vectors]]


@dataclass(slots=True, eq=False)
class Job:
    """The texts of one request on their way through the device.

    Attributes:
        texts: all of them; None where a text was refused before.
        vectors: float32[len(texts), dimensions], filled as batches end.
        refusals: by row.
        finished: set when the last text is done; False if the client has gone.
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

    job: Job
    row: int
    text: Encoded
    queued_at: float


class Device:
    """Forms batches as TEI does, and hands the results back.

    Args:
        model: what computes.
        limits: sizes of a batch.
        permits: one is given back as each text is done.
        metrics: where batches are counted.
        compute: replaces the model's own `embed`; the simulator's hook.
    """

    def __init__(
        self, model: EmbeddingModel, limits: ServerLimits, permits: Permits, metrics: Metrics, compute: Compute | None
    ) -> None:
        self._model = model
        self._limits = limits
        self._permits = permits
        self._metrics = metrics
        self._thread = None if model.is_instant else ThreadPoolExecutor(1, "device")
        self._compute = compute or self._compute_here
        self._queue: deque[Entry] = deque()
        self._ahead: list[Entry] = []
        self._running: asyncio.Task[None] | None = None
        self.is_healthy = True

    def submit(self, entries: Sequence[Entry]) -> None:
        """Puts texts at the queue's end."""
        self._queue.extend(entries)
        self._advance()

    def drop(self, job: Job) -> None:
        """Forgets the queued texts of a job whose client has gone; those in a batch are computed all the same."""
        kept = deque(entry for entry in self._queue if entry.job is not job)
        dropped = len(self._queue) - len(kept)
        self._queue = kept
        self._metrics.count("te_request_failure", dropped, err="dropped")
        self._permits.release(dropped)
        if not job.finished.done():
            job.finished.set_result(False)

    async def wait_for_running(self) -> None:
        """Waits behind the batch that is running, as a health check does."""
        if self._running is not None:
            await asyncio.wait([self._running])

    async def probe(self, text: Encoded) -> None:
        """Embeds one text beside the queue, to see whether the device works again."""
        self.is_healthy = not isinstance(await self._try_compute([text], time.perf_counter()), Refusal)

    def _advance(self) -> None:
        if not self._ahead and self._queue:
            self._ahead = self._form()
        if self._running is None and self._ahead:
            batch, self._ahead = self._ahead, []
            self._running = asyncio.get_running_loop().create_task(self._run(batch))
            if self._queue:
                self._ahead = self._form()
        self._metrics.set("te_queue_size", len(self._queue))

    def _form(self) -> list[Entry]:
        """Takes from the queue's front until the next text would exceed a limit; at least one."""
        most = self._limits.max_batch_requests or len(self._queue)
        longest = total = size = 0
        for entry in itertools.islice(self._queue, most):
            longest = max(longest, entry.text.tokens)
            total += entry.text.tokens
            cost = longest * (size + 1) if self._limits.padded else total
            if size and cost > self._limits.max_batch_tokens:
                total -= entry.text.tokens
                break
            size += 1
        self._metrics.observe("te_batch_next_size", size)
        self._metrics.observe("te_batch_next_tokens", total)
        return [self._queue.popleft() for _ in range(size)]

    async def _run(self, batch: list[Entry]) -> None:
        started = time.perf_counter()
        result = await self._try_compute([entry.text for entry in batch], batch[0].queued_at)
        self.is_healthy = not isinstance(result, Refusal)
        ended = time.perf_counter()
        self._permits.release(len(batch))
        for position, entry in enumerate(batch):
            _deliver(entry, result if isinstance(result, Refusal) else result[position], started, ended)
        self._running = None
        self._advance()

    async def _try_compute(self, texts: Sequence[Encoded], waiting_since: float) -> Vectors | Refusal:
        try:
            return await self._compute(texts, waiting_since)
        except Exception as error:  # noqa: BLE001 - whatever a model raises is an error of the backend, as in TEI
            return backend(str(error))

    async def _compute_here(self, texts: Sequence[Encoded], _waiting_since: float) -> Vectors:
        if self._thread is None:
            return self._model.embed(texts)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._model.embed, texts)


def _deliver(entry: Entry, result: Refusal | Vectors, started: float, ended: float) -> None:
    job = entry.job
    if isinstance(result, Refusal):
        job.refusals[entry.row] = result
    else:
        job.vectors[entry.row] = result
    job.queue_seconds += started - entry.queued_at
    job.inference_seconds += ended - started
    job.pending -= 1
    if not job.pending and not job.finished.done():
        job.finished.set_result(True)
