"""What `verify` finds, and the checks that one line and its vector must stand. Plain functions."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import orjson

from transforms.ndjson.splice import split_at_vector

SHOWN = 10
OUTPUT_LINE_BYTES = 1 << 30  # an output line is an input line and a vector, whose size is not known here
_NUMBERS = {float, int}


@dataclass
class Findings:
    """What is wrong: how many things, and the first ten with their places."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, finding: str) -> None:
        """Note one more."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(finding)

    def extend(self, others: Findings) -> None:
        """Note what was found elsewhere, behind what is noted here."""
        self.count += others.count
        self.first += others.first[: SHOWN - len(self.first)]


class Pick(NamedTuple):
    """A line that may be embedded again.

    Attributes:
        key: random; of all lines, those with the largest keys are the sample.
        path: of its file.
        offset: of its first byte there, decompressed.
    """

    key: float
    path: str
    offset: int


class Sample:
    """At most so many lines of those offered, any of them as likely as any other; samples can be put together.

    Args:
        size: how many.
        seed: of the choice.
    """

    def __init__(self, size: int, seed: str = "") -> None:
        self._size = size
        self._random = random.Random(seed)
        self._picks: list[Pick] = []  # a heap

    def offer(self, path: str, offset: int) -> None:
        """Take a line into account."""
        if self._size:
            self.add([Pick(self._random.random(), path, offset)])

    def add(self, picks: Iterable[Pick]) -> None:
        """Take the picks of another sample of this size into account."""
        for pick in picks:
            heapq.heappush(self._picks, pick)
            if len(self._picks) > self._size:
                heapq.heappop(self._picks)

    @property
    def picks(self) -> list[Pick]:
        """What was chosen, in the order of the places."""
        return sorted(self._picks, key=lambda pick: (pick.path, pick.offset))


class Checked(NamedTuple):
    """What came of a folder: the proof, for as long as there are no findings, and lines to embed again."""

    proof: str
    sample: Sample
    findings: Findings


def wrong_vector_line(source: bytes, found: bytes, key: bytes, dimensions: int) -> str | None:
    """Say what is wrong with an output line, or None.

    Args:
        source: the source line.
        found: the output line.
        key: the embedding field's name as `json_key` gives it.
        dimensions: numbers that the vector must have.
    """
    try:
        before, behind = split_at_vector(source, key)
    except ValueError:
        return "the source line is no JSON object, so it cannot have a vector"
    if len(found) < len(before) + len(behind) or not found.startswith(before) or not found.endswith(behind):
        return "the line is not the source line with a vector"
    try:
        vector = orjson.loads(found[len(before) : len(found) - len(behind)])
    except orjson.JSONDecodeError:
        return "the vector is no JSON"
    return wrong_vector(vector) or wrong_size(vector, dimensions)


def wrong_vector(vector: object) -> str | None:
    """Say what is wrong with a JSON value as a vector of any size, or None."""
    if not isinstance(vector, list) or not set(map(type, vector)) <= _NUMBERS:
        return "the vector is no array of numbers"
    with np.errstate(over="ignore"):  # what overflows is a finding, not a warning
        try:
            numbers = np.array(vector, dtype=np.float32)
        except OverflowError:  # an integer that no float holds
            return "the vector has numbers that no float32 holds"
    if not np.isfinite(numbers).all():
        return "the vector has numbers that no float32 holds"
    return None if not vector or numbers.any() else "the vector is all zeros"


def wrong_size(vector: list[float], dimensions: int) -> str | None:
    """Say that a vector has another size, or None."""
    return None if len(vector) == dimensions else f"the vector has {len(vector)} numbers, not {dimensions}"
