from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from transforms.output.json_fields import build_dataclass


@dataclass(frozen=True)
class Thing:
    name: str
    count: int
    share: float
    counts: Mapping[str, int]
    other: str | None = None


GOOD: dict[str, Any] = {"name": "a", "count": 1, "share": 0.5, "counts": {}}


def test_what_fits_is_built() -> None:
    assert build_dataclass(Thing, GOOD | {"other": "b", "share": 1}) == Thing("a", 1, 1, {}, "b")


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": []},
        {"count": "1"},
        {"count": 1.5},
        {"count": True},
        {"share": "x"},
        {"counts": []},
        {"other": 5},
        {"x": 1},
    ],
)
def test_what_does_not_fit_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(wrong))):
        build_dataclass(Thing, GOOD | wrong)


def test_a_missing_field_is_refused() -> None:
    with pytest.raises(TypeError, match="name"):
        build_dataclass(Thing, {"count": 1, "share": 1.0, "counts": {}})
