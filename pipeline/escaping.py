"""Texts as a person gets to see them: what came from outside is harmless to look at, and long lines break at blanks."""

from __future__ import annotations

import os
import re
import textwrap
from typing import TextIO

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


def wrapped(text: str, stream: TextIO) -> str:
    """Return a line broken at blanks to the width of the terminal behind a stream; as it is where there is none.

    A terminal itself breaks a line in the middle of a word. Words that are wider than it, such as paths, stay whole.
    """
    try:
        width = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # a file, a pipe, or no descriptor at all
        return text
    if not width or len(text) <= width:
        return text
    indent = " " * (len(text) - len(text.lstrip(" ")) + 2)
    lines = textwrap.wrap(
        text,
        width,
        subsequent_indent=indent,
        expand_tabs=False,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines)
