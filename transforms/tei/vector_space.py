"""The vector space: what vectors can stand side by side, known by the vectors of a few fixed sentences."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transforms.elements import Vectors

# Several scripts and lengths. Short ones, because a prompt in front of a text moves a long one's vector by a hundredth
# only; one longer than any model reads, because it shows where texts are truncated.
PROBE_TEXTS = (
    "A current of water finds the sea.",
    "التيّار يبلغ البحر، ولا يعود إلى منبعه.",
    "水流入海，不再回头。",
    "Где начинается река, никто из рыбаков не помнит; где она кончается, знают все.",
    "How long is the longest river, and which countries does it cross?",
    "The river carries sand, and the sand becomes land. " * 4096,
)
MIN_COSINE = 0.999  # of a model with itself: float16 and float32, alone and in a batch, agree to 0.99997 or better
MIN_TOLERANCE = 0.99  # for servers whose own vectors vary with the batch, as dynamic int8 quantisation makes them


@dataclass(frozen=True, slots=True)
class VectorSpace:
    """The vectors of the probe sentences under a job's settings. Hashable and picklable.

    Attributes:
        probes: one for each of `PROBE_TEXTS`, in their order: float32[dimensions], little-endian.
        normalized: whether vectors have unit norm, which no cosine shows.
        min_cosine: of two vectors of one text of this space; from `MIN_COSINE` down to `MIN_TOLERANCE`.
    """

    probes: tuple[bytes, ...]
    normalized: bool = True
    min_cosine: float = MIN_COSINE

    @classmethod
    def of(cls, vectors: Vectors, *, normalized: bool = True, min_cosine: float = MIN_COSINE) -> VectorSpace:
        """Return the space of probe vectors, float32[len(PROBE_TEXTS), dimensions]."""
        return cls(tuple(row.astype("<f4").tobytes() for row in vectors), normalized, min_cosine)

    @classmethod
    def from_base64(cls, probes: Sequence[str], *, normalized: bool, min_cosine: float) -> VectorSpace:
        """Return the space that `to_base64` wrote down.

        Raises:
            ValueError: if the probes are not finite vectors of one size, one for each of `PROBE_TEXTS`.
        """
        rows = tuple(base64.b64decode(probe, validate=True) for probe in probes)
        sizes = {len(row) for row in rows}
        if len(rows) != len(PROBE_TEXTS) or len(sizes) != 1 or not (size := sizes.pop()) or size % 4:
            raise ValueError("the probe vectors are not one for each probe sentence, of one size")
        if not MIN_TOLERANCE <= min_cosine <= MIN_COSINE:
            raise ValueError(f"min_cosine is {min_cosine}, not from {MIN_TOLERANCE} to {MIN_COSINE}")
        space = cls(rows, normalized, min_cosine)
        if not np.isfinite(space.vectors).all() or not space.vectors.any(axis=1).all():
            raise ValueError("a probe vector is not finite, or all zero")
        return space

    def to_base64(self) -> list[str]:
        """Return the probes for a JSON file."""
        return [base64.b64encode(probe).decode() for probe in self.probes]

    @property
    def vectors(self) -> Vectors:
        """float32[len(PROBE_TEXTS), dimensions]."""
        return np.frombuffer(b"".join(self.probes), dtype="<f4").reshape(len(self.probes), -1)

    @property
    def dimensions(self) -> int:
        """Numbers of a vector."""
        return len(self.probes[0]) // 4

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name exactly these probes; receipts carry those of their folder's space."""
        return hashlib.sha256(b"".join(self.probes) + bytes([self.normalized])).hexdigest()[:16]

    def worst_cosine(self, other: VectorSpace) -> float:
        """Return the smallest cosine of a probe here and there; -1 where the dimensions differ."""
        if self.dimensions != other.dimensions:
            return -1.0
        return min(cosine(mine, theirs) for mine, theirs in zip(self.vectors, other.vectors, strict=True))

    def is_same(self, other: VectorSpace) -> bool:
        """Return whether vectors of both can stand side by side; the looser tolerance of the two decides."""
        if self.normalized != other.normalized:
            return False
        return self.worst_cosine(other) >= min(self.min_cosine, other.min_cosine)

    def difference(self, endpoint: VectorSpace) -> str:
        """Return how an endpoint's space, which is not the same, differs from this one of a folder, for a message."""
        if self.dimensions != endpoint.dimensions:
            return f"they have {self.dimensions} dimensions, those of the endpoint have {endpoint.dimensions}"
        if self.normalized != endpoint.normalized:
            words = {True: "normalized", False: "not normalized"}
            return f"they are {words[self.normalized]}, those of the endpoint would be {words[endpoint.normalized]}"
        return (
            f"the same sentences have vectors whose cosine is only {self.worst_cosine(endpoint):.4f} at worst, where "
            f"one model agrees with itself to {min(self.min_cosine, endpoint.min_cosine)}"
        )


def cosine(one: Vectors, other: Vectors) -> float:
    """Return the cosine of two vectors; 0 where one is zero, -1 where their sizes differ."""
    if one.shape != other.shape:
        return -1.0
    a, b = one.astype(np.float64), other.astype(np.float64)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else 0.0
