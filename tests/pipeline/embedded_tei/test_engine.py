"""An engine whose model fails: what a request took must come back."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.embedded_tei.device import Device
from pipeline.embedded_tei.engine import Engine
from pipeline.embedded_tei.limits import ServerLimits
from pipeline.embedded_tei.models.registry import Encoded, Encoding
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
