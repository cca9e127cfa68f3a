"""Dataclasses from JSON that may have been damaged or edited: every field is there and of its type. Plain functions."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Hashable, Mapping
from typing import Any, TypeVar, Union

Kind = TypeVar("Kind")


def build_dataclass(kind: type[Kind], fields: Mapping[str, Any]) -> Kind:
    """Return `kind(**fields)`.

    Args:
        kind: a dataclass; of its fields' types, only the outermost is checked.
        fields: its fields' values.

    Raises:
        TypeError: if a field is missing, unknown, or of another type.
    """
    for name, hint in _hints(kind).items():  # type: ignore[arg-type] # every class is hashable
        if name in fields and not _fits(fields[name], hint):
            raise TypeError(f"{name} is {fields[name]!r}")
    return kind(**fields)


def require_string(value: object) -> str:
    """Return a value that must be a string, one of a list in a JSON file.

    Raises:
        TypeError: if it is none.
    """
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


@functools.cache
def _hints(kind: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _fits(value: object, hint: Any) -> bool:
    origin = typing.get_origin(hint) or hint
    if origin in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in typing.get_args(hint))
    if origin in (int, float):
        return isinstance(value, int if origin is int else (int, float)) and not isinstance(value, bool)
    return isinstance(value, origin)
