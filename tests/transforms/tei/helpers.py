"""Clients of scripted servers, and how what they give back is checked."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from transforms.tei.client import TeiClient
from transforms.tei.formats import embed_json
from transforms.tei.handshake import EndpointProfile, ServerInfo
from transforms.tei.settings import EndpointSettings, ModelIdentity
from transforms.tei.tasks import Embeddings
from transforms.tei.vector_space import PROBE_TEXTS, VectorSpace

from .server import DIMENSIONS, Asked, Says, Script, ScriptedTei, vector_of

IDENTITY = ModelIdentity("hash", "abc", "float32", "mean", DIMENSIONS, "1.9.3")


@contextmanager
def clients(*servers: ScriptedTei, **options: Any) -> Iterator[TeiClient]:
    own = {name: options.pop(name) for name in ("rng", "clock") if name in options}
    options = {"give_up_after": 10.0, "request_timeout": 5.0, **options}
    settings = EndpointSettings(urls=tuple(server.url for server in servers), **options)
    own = {"rng": random.Random(0), **own}
    client = TeiClient(settings, pace=0.01, **own)
    try:
        yield client
    finally:
        client.close()


def some_texts(number: int = 100) -> list[str]:
    return [f"text {index} " + "و" * (index % 7) for index in range(number)]


def check(texts: list[str], embeddings: Embeddings, rejected: set[int] | None = None) -> None:
    rejected = rejected or set()
    assert set(embeddings.rejections) == rejected
    expected = [vector_of(text) for text in texts]
    for index in rejected:
        expected[index] = np.zeros(DIMENSIONS, np.float32)
    np.testing.assert_array_equal(embeddings.vectors, expected)


def when(condition: Callable[[Asked], bool], says: Says, times: int = 10**9) -> Script:
    """Answer requests with documents for which the condition holds, so many times; never a probe sentence alone."""
    left = itertools.count()

    def script(asked: Asked) -> Says | None:
        if asked.documents and condition(asked) and next(left) < times:
            return says
        return None

    return script


def bodies(tei: ScriptedTei) -> list[dict[str, Any]]:
    """Return the requests for vectors of documents."""
    return [asked.json for asked in tei.asked if asked.documents]


class Clock:
    """A clock that stands until it is set."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def profile(url: str = "http://tei", seconds_per_text: float = 0.0, **info: Any) -> EndpointProfile:
    """Return what a handshake with a scripted server would have found."""
    limits = {"max_concurrent_requests": 512, "max_client_batch_size": 32, **info}
    server = ServerInfo(
        model_id="hash",
        model_sha=None,
        model_dtype="float32",
        pooling="mean",
        model_type="embedding",
        max_input_length=512,
        auto_truncate=True,
        version="1.9.3",
        **limits,
    )
    space = VectorSpace.of(np.stack([vector_of(text) for text in PROBE_TEXTS]))
    return EndpointProfile(url, server, space, 9, seconds_per_text, embed_json(EndpointSettings((url,))), "a test's")
