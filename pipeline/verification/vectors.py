"""Documents embedded again, and their vectors held against those that were written."""

from __future__ import annotations

import itertools
import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.verification.file_check import all_lines, text_of, value_of
from pipeline.verification.findings import OUTPUT_LINE_BYTES, SHOWN, Findings, Pick
from transforms.elements import Vectors
from transforms.ndjson.decompress import is_compressed
from transforms.ndjson.lines import Line, lines_beginning_in
from transforms.ndjson.parse import TextField, is_blank
from transforms.storage import api as storage
from transforms.storage.base import BUFFER_BYTES
from transforms.tei.client import TeiClient
from transforms.tei.settings import EndpointSettings

_NEIGHBOURS = 32  # lines before and behind one with a wrong vector: tools mix up what they send in one request
_BLOCK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Fields:
    """Where a line has its text and its vector."""

    text: TextField
    embedding: str


@dataclass(frozen=True, slots=True)
class _Written:
    """A document as it was written: where, what, and with which vector."""

    pick: Pick
    text: str
    vector: Vectors


class SpotCheck:
    """Embeds documents again and compares each vector with the one that was written.

    Args:
        endpoint: where and how to embed, and the model that it must serve if that is known.
        fields: where the lines have their texts and vectors.
        least: cosine of two vectors that count as the same.
    """

    def __init__(self, endpoint: EndpointSettings, fields: Fields, least: float) -> None:
        self._endpoint = endpoint
        self._fields = fields
        self._least = least

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
        written = [self._read(pick, line) for pick, line in _lines(picks)]
        client = TeiClient(self._endpoint)
        try:
            again = client.submit([one.text for one in written]).result()
            size = again.vectors.shape[1]
            if all(one.vector.size != size for one in written):
                path, found = written[0].pick.path, written[0].vector.size
                findings.add(f"{path}: the vectors have {found} numbers; the endpoint gives {size}")
                return "The endpoint serves another model than the one that made these vectors."
            cosines, wrong, mixed_up = list[float](), 0, 0
            for index, one in enumerate(written):
                rejection = again.rejections.get(index)
                if rejection is not None:
                    wrong += 1
                    findings.add(
                        f"{one.pick.path}, byte {one.pick.offset}: gets no vector any more: {rejection.detail}"
                    )
                elif one.vector.size == size:  # another size than most was found before
                    cosines.append(cosine(one.vector, again.vectors[index]))
                    if cosines[-1] < self._least:
                        wrong += 1
                        mixed_up += self._explain(one, cosines[-1], client, findings)
        finally:
            client.close()
        return _meaning(wrong, len(written), mixed_up) if wrong else _proof(cosines)

    def _read(self, pick: Pick, line: Line) -> _Written:
        record = value_of(line)
        text = text_of(record, self._fields.text)
        if text is None:
            raise ValueError(f"{pick.path}, byte {pick.offset}: the line was checked, and changed since")
        return _Written(pick, text, np.array(record[self._fields.embedding], dtype=np.float32))

    def _explain(self, one: _Written, found: float, client: TeiClient, findings: Findings) -> bool:
        """Note a wrong vector, and return whether it is that of a line nearby."""
        problem = f"the vector is not what its text gives: their cosine is {found:.4f}"
        if findings.count >= SHOWN:  # nobody reads it
            findings.add(problem)
            return False
        number, neighbours = _neighbourhood(one.pick)
        owner = self._owner(one, neighbours, client)
        whose = "" if owner is None else f"; it is what the text of line {owner} gives"
        findings.add(f"{one.pick.path}, line {number} (byte {one.pick.offset}): {problem}{whose}")
        return owner is not None

    def _owner(self, one: _Written, neighbours: Sequence[tuple[int, Line]], client: TeiClient) -> int | None:
        """Return the number of the line nearby whose text gives a vector; None if there is none."""
        numbers, texts = [], []
        for number, line in neighbours:
            text = _text_or_none(line, self._fields.text)
            if text is not None:
                numbers.append(number)
                texts.append(text)
        vectors = client.submit(texts).result().vectors
        cosines = [cosine(one.vector, vector) for vector in vectors]
        best = max(range(len(cosines)), key=cosines.__getitem__, default=None)
        return None if best is None or cosines[best] < self._least else numbers[best]


def _proof(cosines: Sequence[float]) -> str:
    return (
        f"embedded again: {len(cosines)} documents; cosines with what was written: "
        f"{min(cosines):.6f} or more, median {statistics.median(cosines):.6f}"
    )


def _meaning(wrong: int, count: int, mixed_up: int) -> str:
    found = f"{wrong} of {count} documents that were embedded again have another vector."
    if mixed_up:
        return f"{found} Vectors stand beside texts that are not theirs: what wrote them mixed up their order."
    if 2 * wrong > count:
        return f"{found} What the endpoint serves (model, revision, prompt, truncation) is not what made them."
    return f"{found} The others agree, so the model is the same: these vectors were changed, or are of other texts."


def cosine(one: Vectors, other: Vectors) -> float:
    """Return the cosine of two vectors; 0 where one is zero, -1 where their sizes differ."""
    if one.shape != other.shape:
        return -1.0
    a, b = one.astype(np.float64), other.astype(np.float64)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else 0.0


def _lines(picks: Sequence[Pick]) -> Iterator[tuple[Pick, Line]]:
    for path, group in itertools.groupby(picks, key=lambda pick: pick.path):
        with storage.open_for_reading(path, BUFFER_BYTES if is_compressed(path) else _BLOCK_BYTES) as file:
            if is_compressed(path):
                wanted = {pick.offset: pick for pick in group}
                yield from ((wanted[line.offset], line) for line in all_lines(file, path) if line.offset in wanted)
            else:
                for pick in group:
                    at = pick.offset
                    yield pick, next(lines_beginning_in(file, at, at + 1, OUTPUT_LINE_BYTES, _BLOCK_BYTES))


def _neighbourhood(pick: Pick) -> tuple[int, list[tuple[int, Line]]]:
    """Return a line's number, from 1, and the lines before and behind it with theirs."""
    before: deque[tuple[int, Line]] = deque(maxlen=_NEIGHBOURS)
    with storage.open_for_reading(pick.path) as file:
        lines = enumerate(all_lines(file, pick.path), 1)
        for number, line in lines:
            if line.offset == pick.offset:
                return number, [*before, *itertools.islice(lines, _NEIGHBOURS)]
            before.append((number, line))
    raise ValueError(f"{pick.path}, byte {pick.offset}: the line was checked, and is gone since")


def _text_or_none(line: Line, text_field: TextField) -> str | None:
    try:
        return None if is_blank(line) else text_of(value_of(line), text_field)
    except ValueError:
        return None
