"""A deterministic stand-in for a model: vectors are a function of prompt and text, and cost microseconds.

A vector is eight blocks, each one of 256 random blocks of norm sqrt(1/8), chosen by one byte of the text's digest. So
it has unit norm, and two texts share one only if 64 bits of their digests are equal.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.embedded_tei import wire
from pipeline.embedded_tei.engine import cut_characters
from pipeline.embedded_tei.models.registry import Encoded, Encoding, Token, Vectors

_BLOCKS = 8
_SPECIALS = 2
_CHOICES = 256
_BEGIN, _END = 0, 2


class HashModel:
    """A model whose tokens are words with the space before them, and whose vectors are a hash.

    Args:
        seed: chooses the blocks, so another seed is another model.
        dimensions: length of a vector, a multiple of eight.
    """

    dtype = "float32"
    pooling = "mean"
    max_input_length = 512
    prompts: Mapping[str, str] = {"query": "query: ", "passage": "passage: "}
    default_prompt: str | None = None
    raw_norm = 4.0  # not one, so that `normalize: false` shows; a power of two, so that scaling is exact
    is_instant = True

    def __init__(self, seed: int = 0, dimensions: int = 384) -> None:
        self.model_id = "tayyar/hash"
        self.sha: str | None = self.sha_of(seed)
        self.dimensions = dimensions
        table = np.random.default_rng(seed).standard_normal((_BLOCKS, _CHOICES, dimensions // _BLOCKS))
        table /= np.linalg.norm(table, axis=2, keepdims=True) * np.sqrt(_BLOCKS)
        self._table = table.astype(np.float32)
        self._positions = np.arange(_BLOCKS)

    @staticmethod
    def sha_of(seed: int) -> str:
        """The sha of the model that a seed makes."""
        return f"{seed:040x}"

    def encode(self, text: str, prompt: str, encoding: Encoding) -> Encoded:
        """Counts words; cuts at a word's end."""
        whole = prompt + text
        length = _count(whole) + _SPECIALS
        if length <= encoding.limit:
            return Encoded(prompt, text, length, length)
        room = max(encoding.limit - _SPECIALS, 0)
        # Only as many words as are needed are split off: a text may have 100,000 of them.
        if encoding.left:
            kept = "".join([f" {word}" for word in whole.rsplit(" ", room)[1:]]) if room else ""
        else:
            kept = " ".join(whole.split(" ", room + 1)[: room + whole.startswith(" ")])
        if not encoding.left and kept.startswith(prompt):
            return Encoded(prompt, kept[len(prompt) :], room + _SPECIALS, length)
        return Encoded("", kept, room + _SPECIALS, length)

    def tokenize(self, text: str, prompt: str, *, special_tokens: bool) -> list[Token]:
        """One token a word; its id is a hash of the word."""
        tokens, start = [], 0
        for word in _split(prompt + text):
            stop = start + len(word.encode())
            tokens.append(Token(3 + int.from_bytes(_digest(word)[:2], "little"), word, False, start, stop))
            start = stop
        if special_tokens:
            return [Token(_BEGIN, "<s>", True, None, None), *tokens, Token(_END, "</s>", True, None, None)]
        return tokens

    def embed(self, texts: Sequence[Encoded]) -> Vectors:
        """Gives float32[len(texts), dimensions] of unit norm."""
        digests = b"".join([_digest(text.prompt + text.text) for text in texts])
        choices = np.frombuffer(digests, np.uint8).reshape(len(texts), _BLOCKS)
        return self._table[self._positions, choices].reshape(len(texts), self.dimensions)


def expected_vectors(
    texts: Sequence[str],
    seed: int = 0,
    *,
    prompt: str = "",
    dimensions: int | None = None,
    max_input_length: int = HashModel.max_input_length,
) -> Vectors:
    """Return the vectors that the simulator must reply with, float32[len(texts), dimensions], normalised.

    Args:
        texts: what is sent.
        seed: the model's.
        prompt: what the server puts before every text.
        dimensions: how many are asked for; None for all.
        max_input_length: the server's, in tokens.
    """
    model, encoding = _model_of(seed), Encoding(max_input_length)
    encoded = [model.encode(cut_characters(text, max_input_length), prompt, encoding) for text in texts]
    vectors = model.embed(encoded)
    if dimensions is None or dimensions == model.dimensions:
        return vectors
    return wire.normalized(np.ascontiguousarray(vectors[:, :dimensions]))


def expected_vector(
    text: str,
    seed: int = 0,
    *,
    prompt: str = "",
    dimensions: int | None = None,
    max_input_length: int = HashModel.max_input_length,
) -> Vectors:
    """Return one text's vector as `expected_vectors` does, float32[dimensions]."""
    options = {"prompt": prompt, "dimensions": dimensions, "max_input_length": max_input_length}
    vector: Vectors = expected_vectors([text], seed, **options)[0]  # type: ignore[arg-type]
    return vector


@functools.lru_cache(maxsize=8)
def _model_of(seed: int) -> HashModel:
    return HashModel(seed)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_BLOCKS).digest()


def _count(text: str) -> int:
    return 0 if not text else text.count(" ") + (not text.startswith(" "))


def _split(text: str) -> list[str]:
    """Cuts a text before every space, so that the pieces joined are the text."""
    first, *rest = text.split(" ")
    return [first] * bool(first) + [f" {word}" for word in rest]
