"""An engine whose model fails or whose client leaves: what a request took must come back. The order of its work."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from starlette.requests import ClientDisconnect

from pipeline.embedded_tei.connection import Connection
from pipeline.embedded_tei.device import Device
from pipeline.embedded_tei.engine import Engine
from pipeline.embedded_tei.limits import ServerLimits
from pipeline.embedded_tei.models.registry import Encoded, Encoding, Vectors
from pipeline.embedded_tei.refusals import Refusal
from pipeline.embedded_tei.wire import EmbedRequest
from tests.tei_simulator.hash_model import HashModel


class FailsOnce(HashModel):
    """A model whose tokenizer fails at its first text."""

    failed = False

    def encode(self, text: str, prompt: str, encoding: Encoding) -> Encoded:
        if not self.failed:
            self.failed = True
            raise RuntimeError("the tokenizer failed")
        return super().encode(text, prompt, encoding)


def test_a_tokenizer_that_fails_gives_its_permits_back() -> None:
    async def embed_twice() -> int:
        limits = ServerLimits(max_concurrent_requests=4)
        engine = Engine(Device(FailsOnce(), limits), limits)
        request = EmbedRequest(["a"] * 4, is_batch=True)
        with pytest.raises(RuntimeError, match="the tokenizer failed"):
            await engine.embed(request, None)
        return len((await engine.embed(request, None)).vectors)

    assert asyncio.run(embed_twice()) == 4


class Closes(HashModel):
    """A model during whose tokenization the client closes its connection."""

    connection: Connection
    embedded = 0

    def encode(self, text: str, prompt: str, encoding: Encoding) -> Encoded:
        self.connection.has_ended()
        return super().encode(text, prompt, encoding)

    def embed(self, texts: Sequence[Encoded]) -> Vectors:
        self.embedded += len(texts)
        return super().embed(texts)


def test_a_client_that_leaves_during_tokenization_is_computed_nothing_for() -> None:
    async def embed() -> int:
        limits = ServerLimits(max_concurrent_requests=4)
        model = Closes()
        model.connection = Connection()
        engine = Engine(Device(model, limits), limits)
        request = EmbedRequest(["a", "", "b"], is_batch=True)
        with pytest.raises(ClientDisconnect):
            await engine.embed(request, model.connection)
        with pytest.raises(Refusal):
            engine.device.acquire(EmbedRequest(["a"] * 5, is_batch=False))
        engine.device.acquire(EmbedRequest(["a"] * 4, is_batch=False))  # all permits are free
        return model.embedded

    assert asyncio.run(embed()) == 0


class Notes(HashModel):
    """A model that notes which texts it embeds."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def embed(self, texts: Sequence[Encoded]) -> Vectors:
        self.notes += [f"embedded {text.text}" for text in texts]
        return super().embed(texts)


def test_the_next_batch_starts_before_the_last_one_is_answered() -> None:
    async def embed() -> list[str]:
        limits, model = ServerLimits(max_batch_requests=1), Notes()
        engine = Engine(Device(model, limits), limits)

        async def answer(text: str) -> None:
            await engine.embed(EmbedRequest([text], is_batch=False), None)
            model.notes.append(f"answered {text}")

        await asyncio.gather(answer("a"), answer("b"))
        return model.notes

    assert asyncio.run(embed()) == ["embedded a", "embedded b", "answered a", "answered b"]
