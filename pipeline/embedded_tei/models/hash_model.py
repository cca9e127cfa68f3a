"""A deterministic stand-in for a model: vectors are a function of prompt and text, and cost microseconds.

A vector is eight blocks, each one of 256 random blocks of norm sqrt(1/8), chosen by one byte of the text's digest. So
it has unit norm, and two texts share one only if 64 bits of their digests are equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.embedded_tei.models.registry import Encoded, Encoding, Token, Vectors

_BLOCKS = 8
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
        specials = 2 * encoding.special_tokens
        whole = prompt + text
        length = _count(whole) + specials
        if length <= encoding.limit:
            return Encoded(prompt, text, length, length)
        words = _split(whole)
        room = max(encoding.limit - specials, 0)
        kept = "".join(words[len(words) - room :] if encoding.left else words[:room])
        if not encoding.left and kept.startswith(prompt):
            return Encoded(prompt, kept[len(prompt) :], room + specials, length)
        return Encoded("", kept, room + specials, length)

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

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """One made-up word an id: a hash cannot be turned back."""
        specials = {_BEGIN: "<s>", _END: "</s>"}
        kept = [i for i in ids if not (skip_special_tokens and i in specials)]
        return " ".join(specials.get(i, f"token{i}") for i in kept)

    def embed(self, texts: Sequence[Encoded]) -> Vectors:
        """Gives float32[len(texts), dimensions] of unit norm."""
        digests = b"".join([_digest(text.prompt + text.text) for text in texts])
        choices = np.frombuffer(digests, np.uint8).reshape(len(texts), _BLOCKS)
        return self._table[self._positions, choices].reshape(len(texts), self.dimensions)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_BLOCKS).digest()


def _count(text: str) -> int:
    return 0 if not text else text.count(" ") + (not text.startswith(" "))


def _split(text: str) -> list[str]:
    """Cuts a text before every space, so that the pieces joined are the text."""
    first, *rest = text.split(" ")
    return [first] * bool(first) + [f" {word}" for word in rest]
