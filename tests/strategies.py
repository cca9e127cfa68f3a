"""What hypothesis draws for several tests: files of lines, and JSON objects as people and programs write them."""

from __future__ import annotations

import random
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st

_USUAL_EXAMPLES = 150  # of a test that does not choose, under the profile of every day

BOM = b"\xef\xbb\xbf"


def examples(count: int) -> int:
    """Return how many examples a test of whole runs tries: `count`, and more in proportion under another profile.

    `pytest --hypothesis-profile thorough` tries ten times as many of everything.
    """
    return max(1, count * settings().max_examples // _USUAL_EXAMPLES)


def sources() -> st.SearchStrategy[bytes]:
    """Bytes of a file: blank lines, CRLF, a line longer than most shards, with and without BOM and final newline."""
    line = st.one_of(
        st.sampled_from([b"", b"\r", b" ", b"{}", b'{"content":"x"}\r']),
        st.binary(max_size=9).map(lambda data: data.replace(b"\n", b"\r")),
        st.integers(30, 80).map(lambda length: b"y" * length),
    )
    return st.builds(
        lambda bom, lines, end: bom + b"\n".join(lines) + end,
        st.sampled_from([b"", BOM]),
        st.lists(line, max_size=10),
        st.sampled_from([b"", b"\n", b"\r\n", b"\n\n"]),
    )


class Literal(NamedTuple):
    """A number just as it is written."""

    text: str


class Pairs(NamedTuple):
    """An object, whose keys may be doubled."""

    items: list[tuple[str, object]]


_NUMBERS = ["0", "-0", "-0.0", "1E+2", "1e999", "-1e-400", "18446744073709551616", "1" * 50, "1" * 5000]
_NUMBERS += ["0.1000000000000000055511151231257827"]


def json_objects(key: str) -> st.SearchStrategy[bytes]:
    """Lines that hold an object of at least one field, in which `key` and what looks like it are everywhere."""
    lookalikes = [f'"{key}":', f'{{"{key}": null}}', f"\\{key}", f"{key}\\", "}", "]", '"', "\ud800", "\U0001f30d"]
    texts = st.one_of(
        st.just(key), st.sampled_from(lookalikes), st.text(st.characters(exclude_categories=()), max_size=6)
    )
    scalars: st.SearchStrategy[object] = st.one_of(
        st.none(), st.booleans(), st.sampled_from(_NUMBERS).map(Literal), st.integers().map(str).map(Literal), texts
    )
    values = st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(texts, inner), max_size=3).map(Pairs),
        max_leaves=8,
    )
    objects = st.lists(st.tuples(texts, values), min_size=1, max_size=5)
    return st.builds(lambda items, seed: _Writer(seed).line(Pairs(items)), objects, st.integers(0, 1 << 16))


class _Writer:
    """Writes JSON in all the ways the grammar allows, chosen by a seed."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._spaces = self._rng.choice([[""], ["", " "], ["", " ", "\t", " \r"]])
        self._escapes = self._rng.choice([0.0, 0.1, 1.0])

    def line(self, value: Pairs) -> bytes:
        return f"{self._space()}{self._write(value)}{self._space()}".encode()

    def _write(self, value: object) -> str:
        if isinstance(value, Literal):
            return value.text
        if isinstance(value, Pairs):
            fields = [f"{self._around(self._string(name))}:{self._around(self._write(v))}" for name, v in value.items]
            return "{" + (",".join(fields) or self._space()) + "}"
        if isinstance(value, list):
            return "[" + (",".join(self._around(self._write(item)) for item in value) or self._space()) + "]"
        if isinstance(value, str):
            return self._string(value)
        return {None: "null", True: "true", False: "false"}[value]  # type: ignore[index] # nothing else is left

    def _string(self, text: str) -> str:
        return '"' + "".join(self._character(character) for character in text) + '"'

    def _character(self, character: str) -> str:
        code = ord(character)
        must = character in '"\\' or code < 0x20 or 0xD800 <= code < 0xE000
        if not must and self._rng.random() >= self._escapes:
            return character
        if character in '"\\/' and self._rng.random() < 0.5:
            return "\\" + character
        units = character.encode("utf-16-be", "surrogatepass")
        hexadecimal = [units[i : i + 2].hex() for i in range(0, len(units), 2)]
        return "".join(f"\\u{self._rng.choice([unit, unit.upper()])}" for unit in hexadecimal)

    def _around(self, text: str) -> str:
        return f"{self._space()}{text}{self._space()}"

    def _space(self) -> str:
        return self._rng.choice(self._spaces)
