"""Texts from outside, such as names of files and models and messages of servers, made harmless to look at."""

from __future__ import annotations

import re

# Control characters but for tab and newline, DEL, the C1 range, line separators, and the marks that reorder text.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def escaped(text: str) -> str:
    """Return a text with control characters and bidirectional marks shown as escapes; newlines and tabs stay."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def escaped_line(text: str) -> str:
    """Return a text that stays on one line: `escaped`, with newlines and tabs shown as escapes as well."""
    return escaped(text).replace("\n", "\\n").replace("\t", "\\t")
