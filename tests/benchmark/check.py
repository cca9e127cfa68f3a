"""Whether a contestant did the work: every document is there once, nothing in it changed, with its own vector."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tests.benchmark import corpus
from tests.benchmark.endpoint import vectors_of
from tests.tei_simulator.hash_model import HashModel

_AT_ONCE = 256


class Wrong(Exception):
    """An output that is not right."""


def check(source: Path, output: Path, exact: bool = True) -> int:
    """Return how many documents there are.

    Args:
        source: the corpus.
        output: what was made of it.
        exact: each vector must be the hash model's; otherwise any finite one will do.

    Raises:
        Wrong: if the output is not the corpus with its vectors.
    """
    expected = dict(_expected(source, exact))
    found, dimensions = 0, HashModel().dimensions
    for document in _documents(_outputs(output)):
        vector = np.asarray(document["embedding"], dtype=np.float32)
        right = np.isfinite(vector).all() and vector.size == dimensions
        if not right or expected.pop(document["id"], None) != _digest(document, vector.tobytes() if exact else b""):
            raise Wrong(f"{output}: document {document['id']} is there twice, or changed, or has another vector")
        found += 1
    if expected:
        raise Wrong(f"{output}: {len(expected)} documents are missing, {next(iter(expected))} among them")
    return found


def _expected(source: Path, exact: bool) -> Iterator[tuple[str, bytes]]:
    model = HashModel()
    documents = _documents(corpus.files_of(source))
    while some := list(itertools.islice(documents, _AT_ONCE)):
        vectors = vectors_of(model, [document["content"] for document in some])
        for document, vector in zip(some, vectors, strict=True):
            yield document["id"], _digest(document, vector.tobytes() if exact else b"")


def _outputs(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return [path for path in files if "_job" not in path.relative_to(folder).parts]


def _documents(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for path in files:
        with path.open("rb") as file:
            yield from map(orjson.loads, file)


def _digest(document: dict[str, Any], vector: bytes) -> bytes:
    rest = orjson.dumps({**document, "embedding": None}, option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(rest + vector, digest_size=16).digest()
