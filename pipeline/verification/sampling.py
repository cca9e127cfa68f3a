"""Documents embedded again, and their vectors compared with those that were written."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import random
import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.errors import NotProven, UsageError
from pipeline.reporting.numbers import count
from pipeline.verification.findings import MAX_SHOWN, Findings
from pipeline.verification.vectors import read_document
from transforms.elements import Vectors
from transforms.ndjson.parse import TextField
from transforms.output.formats import format_of
from transforms.tei.client import TeiClient
from transforms.tei.settings import EndpointSettings
from transforms.tei.vector_space import VectorSpace, cosine

_logger = logging.getLogger(__name__)
_NEIGHBOURS = 32  # lines before and behind one with a wrong vector: those of one request are mixed up most easily


class Pick(NamedTuple):
    """A record that may be embedded again.

    Attributes:
        key: random; of all records, those with the largest keys are the sample.
        path: of its file.
        place: in its file: see `Format.PLACE`.
    """

    key: float
    path: str
    place: int


class Reservoir:
    """At most so many lines of those offered, any of them as likely as any other; samples can be put together.

    Args:
        size: how many.
        seed: of the choice.
    """

    def __init__(self, size: int, seed: str = "") -> None:
        self._size = size
        self._random = random.Random(seed)
        self._picks: list[Pick] = []  # a heap

    def offer(self, path: str, place: int) -> None:
        """Take a record into account."""
        if self._size:
            self.add([Pick(self._random.random(), path, place)])

    def add(self, picks: Iterable[Pick]) -> None:
        """Take the picks of another sample of this size into account."""
        for pick in picks:
            heapq.heappush(self._picks, pick)
            if len(self._picks) > self._size:
                heapq.heappop(self._picks)

    @property
    def picks(self) -> list[Pick]:
        """The lines chosen, in the order of their places."""
        return sorted(self._picks, key=lambda pick: (pick.path, pick.place))


@dataclass(frozen=True, slots=True)
class _Written:
    """A document as it was written: where, what, and with which vector."""

    pick: Pick
    text: str
    vector: Vectors


def require_same_space(folder: VectorSpace, endpoint: VectorSpace) -> None:
    """Check that an endpoint's vectors are of the folder's space, before any document is embedded again.

    With another model every vector differs, so no document of a sample could show that a shard is wrong.

    Raises:
        UsageError: with what differs.
    """
    if folder.is_same(endpoint):
        return
    raise UsageError(
        "--endpoint serves another model, revision or prompt than the one that made these vectors: "
        f"{folder.difference(endpoint)}. "
        "Nothing is known about the vectors by this. Start the server with the job's model, or leave --sample out."
    )


def _place_of(pick: Pick) -> str:
    return f"{format_of(pick.path).PLACE} {pick.place}"


class SpotCheck:
    """Embeds documents again and compares each vector with the one that was written.

    Args:
        endpoint: where and how to embed.
        text_field: what was embedded.
        embedding_field: where the vectors are.
        min_cosine: of two vectors that count as the same.
    """

    def __init__(
        self,
        endpoint: EndpointSettings,
        text_field: TextField,
        embedding_field: str,
        min_cosine: float,
    ) -> None:
        self._endpoint = endpoint
        self._fields = text_field, embedding_field
        self._min_cosine = min_cosine

    def run(self, picks: Sequence[Pick], findings: Findings) -> str:
        """Compare.

        Args:
            picks: lines that have a text and a vector each, in the order of their places; at least one.
            findings: gets those whose vectors are not the same.

        Returns:
            a sentence: what was compared, or what the findings mean.

        Raises:
            EndpointError: if the endpoint cannot do it, or serves another model.
        """
        written = [_Written(pick, *read_document(pick.path, pick.place, *self._fields)) for pick in picks]
        client = TeiClient(self._endpoint)
        cosines, wrong, mixed_up = list[float](), 0, 0
        try:
            again = client.submit([one.text for one in written]).result()
            for index, one in enumerate(written):
                rejection = again.rejections.get(index)
                if rejection is not None:
                    wrong += 1
                    findings.add(f"{one.pick.path}, {_place_of(one.pick)}: gets no vector any more: {rejection.detail}")
                    continue
                cosines.append(cosine(one.vector, again.vectors[index]))
                if cosines[-1] < self._min_cosine:
                    wrong += 1
                    mixed_up += self._explain(one, cosines[-1], client, findings)
        finally:
            client.close()
        if wrong:
            return self._meaning(wrong, len(written), mixed_up)
        return (
            f"embedded again: {count(len(cosines), 'document')}; cosine with the vector that was written: "
            f"{min(cosines):.6f} at worst, median {statistics.median(cosines):.6f}"
        )

    def _explain(self, one: _Written, found: float, client: TeiClient, findings: Findings) -> bool:
        """Add a wrong vector to the findings, and return whether it is that of a line nearby."""
        problem = f"the vector is not that of its text: their cosine is {found:.4f}"
        if findings.count >= MAX_SHOWN:  # it is only counted
            findings.add(problem)
            return False
        number, neighbours = self._neighbours(one.pick)
        vectors = client.submit([text for _, text in neighbours]).result().vectors
        cosines = [cosine(one.vector, vector) for vector in vectors]
        best = max(range(len(cosines)), key=cosines.__getitem__, default=None)
        is_neighbours = best is not None and cosines[best] >= self._min_cosine
        whose = f"; it is that of line {neighbours[best][0]}" if best is not None and is_neighbours else ""
        findings.add(f"{one.pick.path}, line {number} ({_place_of(one.pick)}): {problem}{whose}")
        return is_neighbours

    def _neighbours(self, pick: Pick) -> tuple[int, list[tuple[int, str]]]:
        """Return a line's number, from 1, and the texts of the lines before and behind it with theirs."""
        before: deque[tuple[int, str]] = deque(maxlen=_NEIGHBOURS)
        places = ((number, place, text) for number, (place, text) in enumerate(self._texts(pick.path), 1))
        for number, place, text in places:
            if place == pick.place:
                behind = [(other, text) for other, _, text in itertools.islice(places, _NEIGHBOURS)]
                return number, [*before, *behind]
            before.append((number, text))
        raise NotProven(f"{pick.path}, {_place_of(pick)}: the record has changed since it was checked. Verify again.")

    def _texts(self, path: str) -> Iterator[tuple[int, str]]:
        """Yield the place and the text of each record in an output."""
        form, (text_field, embedding_field) = format_of(path), self._fields
        for row in form.read_rows(path, embedding_field, _logger.debug, None):
            with contextlib.suppress(ValueError):  # a line without a text, which is a finding already
                yield form.place(row), form.text_and_vector(row, text_field, embedding_field)[0]

    def _meaning(self, wrong: int, compared: int, mixed_up: int) -> str:
        has = "has" if wrong == 1 else "have"
        found = f"{wrong:,} of {count(compared, 'document')} embedded again {has} another vector."
        if mixed_up:
            return f"{found} Vectors stand beside texts that are not theirs: what wrote them mixed up their order."
        return (
            f"{found} The endpoint's vectors of the probe sentences are the folder's, so the model is the same: "
            "these vectors were changed, or are of other texts."
        )
