"""One request's way through the server: size, permits, tokens, device, rows."""

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
from pipeline.embedded_tei.device import Device, Entry, PendingRequest
from pipeline.embedded_tei.limits import ServerLimits
from pipeline.embedded_tei.models.registry import Encoded, Encoding, Token, Vectors
from pipeline.embedded_tei.refusals import Refusal
from pipeline.embedded_tei.wire import EmbedRequest, TokenizeRequest

_MAX_CHARACTERS_PER_TOKEN = 250  # longer texts are cut before they are tokenized, or refused

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Embedded:
    """The reply to a request: its vectors, float32[n, dimensions], and how long they took."""

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
        """Return TEI's eight headers; counts are sums, and times are means per text in whole milliseconds."""
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
    """Embed requests on one device under one set of limits.

    Args:
        device: what computes; it holds the model.
        limits: what is permitted.
    """

    def __init__(self, device: Device, limits: ServerLimits) -> None:
        self.device = device
        self.limits = limits
        model = device.model
        longest = min(model.max_input_length, limits.max_batch_tokens)
        self.max_input_length = min(longest, limits.max_input_length or longest)
        self._tokenizers = None if model.is_instant else ThreadPoolExecutor(limits.tokenization_workers, "tokenizer")

    async def embed(self, request: EmbedRequest, connection: Connection | None) -> Embedded:
        """Embed all inputs, or raise the error of the first that has one, after all are done.

        Raises:
            Refusal: as `/embed` replies.
            ClientDisconnect: if the client closed its connection.
        """
        started = time.perf_counter()
        self.check_batch_size(len(request.inputs))
        self.device.acquire(request)
        try:
            pending = await self._tokenize(request)
        except BaseException:
            self.device.release(len(request.inputs))
            raise
        tokenized = time.perf_counter()
        self.device.release(len(pending.texts) - pending.pending)  # of the texts that were refused
        if connection is not None:
            if not connection.is_open:  # closed during tokenization, when there was nothing to drop yet
                self.device.release(pending.pending)
                raise ClientDisconnect
            connection.on_lost = lambda: self.device.drop(pending)
        texts = enumerate(pending.texts)
        self.device.submit([Entry(pending, row, text, tokenized) for row, text in texts if text is not None])
        is_answerable = not pending.pending or await pending.finished
        if connection is not None:
            connection.on_lost = None
        if not is_answerable:
            raise ClientDisconnect
        if pending.refusals:
            raise pending.refusals[min(pending.refusals)]
        count = len(pending.texts)
        return Embedded(
            vectors=self.finish(pending.vectors, request),
            texts=[text for text in pending.texts if text is not None],
            characters=sum(map(len, request.inputs)),
            total_seconds=time.perf_counter() - started,
            tokenization_seconds=(tokenized - started) / count,
            queue_seconds=pending.queue_seconds / count,
            inference_seconds=pending.inference_seconds / count,
        )

    def check_batch_size(self, size: int) -> None:
        """Refuse a request with too many inputs."""
        if size > self.limits.max_client_batch_size:
            raise refusals.batch_too_large(size, self.limits.max_client_batch_size)

    async def _tokenize(self, request: EmbedRequest) -> PendingRequest:
        results = await self._in_tokenizer(lambda: [self._encode(text, request) for text in request.inputs])
        return PendingRequest(
            texts=[None if isinstance(result, Refusal) else result for result in results],
            vectors=np.empty((len(results), self.device.model.dimensions), np.float32),
            refusals={row: result for row, result in enumerate(results) if isinstance(result, Refusal)},
            finished=asyncio.get_running_loop().create_future(),
            pending=sum(not isinstance(result, Refusal) for result in results),
        )

    def _encode(self, text: str, request: EmbedRequest) -> Encoded | Refusal:
        # TEI checks in this order, and text by text.
        try:
            if request.dimensions == 0:
                raise refusals.invalid("`dimensions` should be positive")
            if not text:
                raise refusals.empty()
            prompt = self.prompt(request.prompt_name)
            truncate = self.limits.auto_truncate if request.truncate is None else request.truncate
            limit, max_characters = self.max_input_length, self.max_input_length * _MAX_CHARACTERS_PER_TOKEN
            if len(text) > max_characters and not truncate:
                raise refusals.too_long(max_characters, "characters", len(text))
            model = self.device.model
            encoded = model.encode(cut_characters(text, limit), prompt, Encoding(limit, left=request.left))
            if encoded.length > limit and not truncate:
                raise refusals.too_long(limit, "tokens", encoded.length)
        except Refusal as refusal:
            return refusal
        return encoded

    def prompt(self, name: str | None) -> str:
        """Return the text of a prompt.

        Raises:
            Refusal: if the model has none of this name.
        """
        model = self.device.model
        if name is None:
            return "" if model.default_prompt is None else model.prompts[model.default_prompt]
        if name not in model.prompts:
            known = ", ".join(f'"{prompt}"' for prompt in model.prompts)
            message = (
                f"`default-prompt-name` is set to `{name}` but it was not found in the Sentence Transformers prompts."
            )
            raise refusals.invalid(f"{message} Available prompts: [{known}]")
        return model.prompts[name]

    def finish(self, vectors: Vectors, request: EmbedRequest) -> Vectors:
        """Keep the first dimensions, then normalise.

        Raises:
            Refusal: if there are fewer dimensions; only here, because TEI checks it after inference.
        """
        model = self.device.model
        if request.dimensions is not None and request.dimensions > model.dimensions:
            raise refusals.invalid("`dimensions` should be smaller than the maximum embedding dimension.")
        is_cut = request.dimensions is not None and request.dimensions < model.dimensions
        if is_cut:
            vectors = np.ascontiguousarray(vectors[:, : request.dimensions])
        if not request.normalize:
            return vectors if model.raw_norm is None else vectors * np.float32(model.raw_norm)
        has_unit_norm = model.raw_norm is not None and not is_cut
        return vectors if has_unit_norm else wire.normalized(vectors)

    async def tokenize(self, request: TokenizeRequest) -> list[list[Token]]:
        """Return all tokens of every input, without truncation."""
        if not request.inputs:
            raise refusals.empty("`inputs` cannot be empty")
        self.check_batch_size(len(request.inputs))
        max_characters = self.max_input_length * _MAX_CHARACTERS_PER_TOKEN
        prompt = self.prompt(request.prompt_name)
        for text in request.inputs:
            if not text:
                raise refusals.empty()
            if len(text) > max_characters:
                raise refusals.too_long(max_characters, "characters", len(text))
        model, special = self.device.model, request.special_tokens
        return await self._in_tokenizer(
            lambda: [model.tokenize(text, prompt, special_tokens=special) for text in request.inputs]
        )

    async def _in_tokenizer(self, work: Callable[[], T]) -> T:
        """Run tokenizer work where it does not hold up the event loop."""
        if self._tokenizers is None:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._tokenizers, work)

    async def check_health(self) -> bool:
        """Return whether the last batch succeeded; if it did not, whether one token can be embedded now."""
        await self.device.wait_for_running()
        if not self.device.is_healthy:
            await self.device.probe(self.device.model.encode("a", "", Encoding(self.max_input_length)))
        return self.device.is_healthy


def cut_characters(text: str, max_input_length: int) -> str:
    """Cut a long text as TEI does: at a byte, and not at all where that byte is inside a character."""
    max_characters = max_input_length * _MAX_CHARACTERS_PER_TOKEN
    if len(text) <= max_characters:
        return text
    data = text.encode()
    return text if data[max_characters] & 0xC0 == 0x80 else data[:max_characters].decode()


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))
