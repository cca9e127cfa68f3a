"""A device of known speed, which may change at any time."""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from collections.abc import Sequence

import numpy as np

from pipeline.embedded_tei import wire
from pipeline.embedded_tei.device import Device, Entry, PendingRequest
from pipeline.embedded_tei.limits import ServerLimits
from pipeline.embedded_tei.models.registry import Encoded, Vectors
from pipeline.embedded_tei.wire import EmbedRequest
from tests.tei_simulator.faults import Faults
from tests.tei_simulator.hash_model import HashModel
from tests.tei_simulator.statistics import Statistics

_NOISE = 0.05  # of a unit vector: two noisy vectors of one text have a cosine of 1 / (1 + 0.05²) = 0.9975


class SimulatedDevice(Device):
    """The device takes its time, then fails or embeds.

    Args:
        model: what computes.
        limits: permits, and the sizes of a batch.
        faults: the speed, and what goes wrong.
        is_old: whether batches wait for permits, as in TEI 1.8, instead of being refused.
    """

    def __init__(self, model: HashModel, limits: ServerLimits, faults: Faults, *, is_old: bool = False) -> None:
        super().__init__(model, limits)
        self._is_old = is_old
        self._waiting_since: float | None = None  # of the batch that runs next
        self.statistics = Statistics()
        self._changed = asyncio.Event()
        self._releases = 0  # how often the running batch was done before its time
        self.restart(faults)

    def restart(self, faults: Faults) -> None:
        """Follow other faults; chance begins again, and the running batch is done at once."""
        self._random = random.Random(faults.seed)
        self._free_at = 0.0
        self._releases += 1
        self.change(faults)

    def change(self, faults: Faults) -> None:
        """Follow other faults; the rest of the running batch takes its time at the new speed."""
        self.faults = faults
        self._changed.set()
        self._changed = asyncio.Event()

    def acquire(self, request: EmbedRequest) -> None:
        if self._is_old and request.is_batch:
            self._free_permits -= len(request.inputs)
        else:
            super().acquire(request)

    def submit(self, entries: Sequence[Entry]) -> None:
        super().submit(entries)
        self.statistics.queue_changed(len(self._queue))

    def drop(self, request: PendingRequest) -> None:
        queued = len(self._queue)
        super().drop(request)
        self.statistics.texts_dropped += queued - len(self._queue)
        self.statistics.queue_changed(len(self._queue))

    def _form_batch(self) -> list[Entry]:
        batch = super()._form_batch()
        self.statistics.queue_changed(len(self._queue))
        return batch

    async def _run(self, batch: list[Entry]) -> None:
        self._waiting_since = batch[0].queued_at  # `compute` takes it, before anything else can run
        await super()._run(batch)

    async def compute(self, texts: Sequence[Encoded]) -> Vectors:
        waiting_since, self._waiting_since = self._waiting_since, None
        tokens = sum([text.tokens for text in texts])
        self.statistics.batches += 1
        self.statistics.tokens += tokens
        await self._take_time(len(texts), tokens, time.perf_counter() if waiting_since is None else waiting_since)
        faults = self.faults
        poison = faults.poison_marker
        if poison is not None and any(poison in text.text for text in texts):
            raise RuntimeError("Inference error: poisoned batch")
        if faults.backend and self._random.random() < faults.backend:
            raise RuntimeError("Inference error: out of memory")
        self.statistics.texts_computed += len(texts)
        vectors = self._with_noise(self.model.embed(texts), texts)
        for marker, factor in faults.scales.items():
            vectors[[marker in text.text for text in texts]] *= np.float32(factor)
        return self._with_nulls(vectors, texts)

    def _seconds(self, texts: int, tokens: int) -> float:
        faults = self.faults
        seconds = faults.batch_seconds
        seconds += texts / faults.texts_per_second if faults.texts_per_second else 0.0
        seconds += tokens / faults.tokens_per_second if faults.tokens_per_second else 0.0
        return seconds

    async def _take_time(self, texts: int, tokens: int, waiting_since: float) -> None:
        """Wait as long as the device is busy with a batch.

        The device begins a waiting batch as soon as it is free, however late this process notices: so its speed is
        exact although timers are not.
        """
        if not self._seconds(texts, tokens):
            return
        began, releases, share = max(self._free_at, waiting_since), self._releases, 1.0
        while True:
            ended = self._free_at = began + share * self._seconds(texts, tokens)
            self.statistics.computing_since = began
            try:
                await asyncio.wait_for(self._changed.wait(), ended - time.perf_counter())
            except asyncio.TimeoutError:
                self.statistics.computed(began, ended)
                return
            now = time.perf_counter()
            self.statistics.computed(began, now)
            if self._releases != releases:
                self._free_at = 0.0
                return
            share *= max(0.0, ended - now) / (ended - began)
            began = now

    def _with_noise(self, vectors: Vectors, texts: Sequence[Encoded]) -> Vectors:
        if self.faults.noise == "float16":
            return vectors.astype(np.float16).astype(np.float32)
        if self.faults.noise == "quantized":
            # A dynamic scale depends on all that is in the batch, so the same text has other noise in another batch.
            seed = zlib.crc32("\0".join([text.text for text in texts]).encode())
            noise = np.random.default_rng(seed).standard_normal(vectors.shape, np.float32)
            noisy: Vectors = vectors + noise * np.float32(_NOISE / np.sqrt(vectors.shape[1]))
            return wire.normalized(noisy)
        return vectors

    def _with_nulls(self, vectors: Vectors, texts: Sequence[Encoded]) -> Vectors:
        chance, marker = self.faults.null_rows, self.faults.null_marker
        if not chance and marker is None:
            return vectors
        for row, text in enumerate(texts):
            if marker is not None and marker in text.text:
                vectors[row] = np.nan
            elif chance and self._random.random() < chance:
                vectors[row, self._random.randrange(vectors.shape[1])] = np.nan
        return vectors
