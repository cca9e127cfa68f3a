"""One request's way through the server: size, permits, tokens, device, row by row."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from starlette.requests import ClientDisconnect

from pipeline.embedded_tei import refusals, wire
from pipeline.embedded_tei.connection import Connection
from pipeline.embedded_tei.device import Compute, Device, Entry, Job
from pipeline.embedded_tei.limits import ServerLimits
from pipeline.embedded_tei.metrics import Metrics
from pipeline.embedded_tei.models.registry import EmbeddingModel, Encoded, Encoding, Token, Vectors
from pipeline.embedded_tei.permits import Permits
from pipeline.embedded_tei.refusals import Refusal
from pipeline.embedded_tei.wire import EmbedRequest, TextInput

_CHARACTERS_PER_TOKEN = 250  # longer texts are cut before they are tokenized, or refused

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Embedded:
    """The answer to a request: its vectors, float32[n, dimensions], and what they took."""

    vectors: Vectors
    texts: Sequence[Encoded]
    characters: int
    total_seconds: float
    tokenization_seconds: float
    queue_seconds: float
    inference_seconds: float

    @property
    def tokens(self) -> int:
        """Tokens that the model read."""
        return sum([text.tokens for text in self.texts])

    def headers(self) -> dict[str, str]:
        """The eight headers; counts are sums, and times means over the texts in whole milliseconds."""
        total = _milliseconds(self.total_seconds)
        return {
            "x-compute-type": "gpu+optimized",
            "x-compute-time": total,
            "x-compute-characters": str(self.characters),
            "x-compute-tokens": str(self.tokens),
            "x-total-time": total,
            "x-tokenization-time": _milliseconds(self.tokenization_seconds),
            "x-queue-time": _milliseconds(self.queue_seconds),
            "x-inference-time": _milliseconds(self.inference_seconds),
        }


class Engine:
    """Embeds requests with one model under one set of limits.

    Args:
        model: what computes.
        limits: what is permitted.
        compute: replaces the model's own `embed`; the simulator's hook.
    """

    def __init__(self, model: EmbeddingModel, limits: ServerLimits, compute: Compute | None = None) -> None:
        self.model = model
        self.limits = limits
        self.metrics = Metrics()
        self.permits = Permits(limits.max_concurrent_requests)
        self.device = Device(model, limits, self.permits, self.metrics, compute)
        longest = min(model.max_input_length, limits.max_batch_tokens)
        self.max_input_length = min(longest, limits.max_input_length or longest)
        self._tokenizers = None if model.is_instant else ThreadPoolExecutor(limits.tokenization_workers, "tokenizer")

    async def embed(self, asked: EmbedRequest, connection: Connection | None) -> Embedded:
        """Embeds all inputs, or raises the error of the first that has one, after all are done.

        Raises:
            Refusal: as `/embed` answers.
            ClientDisconnect: if the client has gone.
        """
        started = time.perf_counter()
        self.check_batch(len(asked.inputs) if asked.is_batch else 1)
        waits = self.limits.is_old and asked.is_batch
        if not waits and not self.permits.try_acquire(len(asked.inputs)):
            raise refusals.overloaded()
        job = await self._tokenize(asked)
        tokenized = time.perf_counter()
        if connection is not None:
            connection.on_lost = lambda: self.device.drop(job)
        await self._submit(job, waits)
        is_answerable = not job.pending or await job.finished
        if connection is not None:
            connection.on_lost = None
        if not is_answerable:
            raise ClientDisconnect
        if job.refusals:
            raise job.refusals[min(job.refusals)]
        vectors = self._finish(job.vectors, asked)
        characters = sum(map(len, asked.inputs))
        embedded = _embedded(job, vectors, characters, time.perf_counter() - started, tokenized - started)
        self._measure(embedded, asked.is_batch)
        return embedded

    def check_batch(self, size: int) -> None:
        """Refuses a request with too many inputs."""
        if size > self.limits.max_client_batch_size:
            raise refusals.batch_too_large(size, self.limits.max_client_batch_size)

    async def _tokenize(self, asked: EmbedRequest) -> Job:
        results = await self.in_tokenizer(lambda: [self._encode(item, asked) for item in asked.inputs])
        return Job(
            texts=[None if isinstance(result, Refusal) else result for result in results],
            vectors=np.empty((len(results), self.model.dimensions), np.float32),
            refusals={row: result for row, result in enumerate(results) if isinstance(result, Refusal)},
            finished=asyncio.get_running_loop().create_future(),
            pending=sum(not isinstance(result, Refusal) for result in results),
        )

    async def _submit(self, job: Job, waits: bool) -> None:
        """Queues the texts that can be embedded; permits of the others are given back."""
        if not waits:
            self.permits.release(len(job.texts) - job.pending)
            now = time.perf_counter()
            self.device.submit([Entry(job, row, text, now) for row, text in enumerate(job.texts) if text is not None])
            return
        for row, text in enumerate(job.texts):
            await self.permits.acquire()
            if text is None or job.finished.done():
                self.permits.release(1)
            else:
                self.device.submit([Entry(job, row, text, time.perf_counter())])

    def _encode(self, item: TextInput, asked: EmbedRequest) -> Encoded | Refusal:
        try:
            if asked.dimensions == 0:
                raise refusals.invalid("`dimensions` should be positive")
            if not item:
                raise refusals.empty()
            return self._encode_checked(item, asked)
        except Refusal as refusal:
            return refusal

    def _encode_checked(self, item: TextInput, asked: EmbedRequest) -> Encoded:
        prompt = self.prompt(asked.prompt_name)
        truncate = self.limits.auto_truncate if asked.truncate is None else asked.truncate
        limit, most = self.max_input_length, self.max_input_length * _CHARACTERS_PER_TOKEN
        if len(item) > most and not truncate:
            raise refusals.invalid(f"`inputs` must have less than {most} characters. Given: {len(item)}")
        is_text = isinstance(item, str)
        text = _cut(item, most) if isinstance(item, str) else self.model.decode(item, skip_special_tokens=bool(prompt))
        # Ids bring their special tokens along, unless a prompt is put before them.
        encoding = Encoding(limit, left=asked.left, special_tokens=is_text or bool(prompt))
        encoded = self.model.encode(text, prompt, encoding)
        if encoded.length > limit and not truncate:
            raise refusals.invalid(f"`inputs` must have less than {limit} tokens. Given: {encoded.length}")
        return encoded

    def prompt(self, name: str | None) -> str:
        """The text of a prompt.

        Raises:
            Refusal: if the model has none of this name.
        """
        if name is None:
            default = self.model.default_prompt
            return "" if default is None else self.model.prompts[default]
        if name not in self.model.prompts:
            known = ", ".join(f'"{prompt}"' for prompt in self.model.prompts)
            message = (
                f"`default-prompt-name` is set to `{name}` but it was not found in the Sentence Transformers prompts."
            )
            raise refusals.invalid(f"{message} Available prompts: [{known}]")
        return self.model.prompts[name]

    def _finish(self, vectors: Vectors, asked: EmbedRequest) -> Vectors:
        """Keeps the first dimensions, then normalises; checked only here, as TEI does it after inference."""
        if asked.dimensions is not None and asked.dimensions > self.model.dimensions:
            raise refusals.invalid("`dimensions` should be smaller than the maximum embedding dimension.")
        raw_norm = self.model.raw_norm
        has_unit_norm = raw_norm is not None
        if asked.dimensions is not None and asked.dimensions < self.model.dimensions:
            vectors = np.ascontiguousarray(vectors[:, : asked.dimensions])
            has_unit_norm = False
        if asked.normalize:
            return vectors if has_unit_norm else wire.normalized(vectors)
        return vectors if raw_norm is None else vectors * np.float32(raw_norm)

    async def tokenize(self, asked: wire.TokenizeRequest) -> list[list[Token]]:
        """All tokens of every input, without truncation."""
        if not asked.inputs:
            raise refusals.empty("`inputs` cannot be empty")
        self.check_batch(len(asked.inputs))
        most = self.max_input_length * _CHARACTERS_PER_TOKEN
        prompt = self.prompt(asked.prompt_name)
        for text in asked.inputs:
            if not text:
                raise refusals.empty()
            if len(text) > most:
                raise refusals.invalid(f"`inputs` must have less than {most} characters. Given: {len(text)}")
        special = asked.special_tokens
        return await self.in_tokenizer(
            lambda: [self.model.tokenize(text, prompt, special_tokens=special) for text in asked.inputs]
        )

    async def decode(self, asked: wire.DecodeRequest) -> list[str]:
        """The texts of lists of ids."""
        if not asked.ids or not all(asked.ids):
            raise refusals.empty("Input validation error: `input_ids` cannot be empty")
        self.check_batch(len(asked.ids))
        skip = asked.skip_special_tokens
        return await self.in_tokenizer(lambda: [self.model.decode(ids, skip_special_tokens=skip) for ids in asked.ids])

    async def in_tokenizer(self, work: Callable[[], T]) -> T:
        """Runs tokenizer work where it does not hold up the event loop."""
        if self._tokenizers is None:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._tokenizers, work)

    async def check_health(self) -> bool:
        """Whether the last batch succeeded; if it did not, whether one token can be embedded now."""
        await self.device.wait_for_running()
        if not self.device.is_healthy:
            encoded = self.model.encode("a", "", Encoding(self.max_input_length))
            await self.device.probe(encoded)
        return self.device.is_healthy

    def _measure(self, embedded: Embedded, is_batch: bool) -> None:
        count = len(embedded.texts)
        self.metrics.count("te_request_success", method="batch" if is_batch else "single")
        self.metrics.count("te_embed_success", count)
        for prefix, times in (("te_request", 1), ("te_embed", count)):
            self.metrics.observe(f"{prefix}_duration", embedded.total_seconds, times)
            self.metrics.observe(f"{prefix}_tokenization_duration", embedded.tokenization_seconds, times)
            self.metrics.observe(f"{prefix}_queue_duration", embedded.queue_seconds, times)
            self.metrics.observe(f"{prefix}_inference_duration", embedded.inference_seconds, times)
        self.metrics.observe("te_request_input_length", embedded.tokens / count, count)


def _embedded(job: Job, vectors: Vectors, characters: int, total: float, tokenization: float) -> Embedded:
    texts = [text for text in job.texts if text is not None]
    count = len(texts)
    return Embedded(
        vectors,
        texts,
        characters,
        total,
        tokenization / count,
        job.queue_seconds / count,
        job.inference_seconds / count,
    )


def _cut(text: str, most: int) -> str:
    """Cuts a text of too many characters; at a byte, and not at all where that is inside a character, as TEI does."""
    if len(text) <= most:
        return text
    data = text.encode()
    return text if data[most] & 0xC0 == 0x80 else data[:most].decode()


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))
