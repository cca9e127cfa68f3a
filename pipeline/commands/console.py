"""What a person at the terminal sees: printed lines and log records, with nothing in them that a terminal obeys."""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import TextIO

# Control characters but for tab and newline, DEL, the C1 range, line separators, and the marks that reorder text.
# A file's name or an endpoint's message may hold any of them.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_NOISE = ("apitools not found", "No semi_persistent_directory found")  # Beam warns of these on every local run


def escaped(text: str) -> str:
    """Return a text with control characters and bidirectional marks shown as escapes; newlines and tabs stay."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def say(line: str, stream: TextIO | None = None) -> None:
    """Print a line; if its reader is gone, the work goes on silently."""
    stream = stream or sys.stdout
    try:
        print(escaped(line), file=stream, flush=True)
    except OSError:
        discard(stream)


def discard(stream: TextIO) -> None:
    """Send to nowhere what is still printed, and what Python would flush at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Formatter(logging.Formatter):
    """Escapes what a record holds, as `say` does."""

    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record))


def configure_logging() -> None:
    """Log warnings to stderr, without what Beam repeats on every run.

    The filters sit on the handler: a logger's filters see only what is logged to that logger itself, and Beam logs to
    loggers of its own.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(levelname)s: %(message)s"))
    handler.addFilter(without_noise)
    handler.addFilter(without_tracebacks)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # What failed is reported once, at the end.
    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)


def without_noise(record: logging.LogRecord) -> bool:
    """Leave out warnings of Beam's about what nothing here depends on."""
    return not any(noise in record.getMessage() for noise in _NOISE)


def without_tracebacks(record: logging.LogRecord) -> bool:
    """Leave out a worker's traceback, which the error that ends the pipeline holds as well."""
    ours = record.name.split(".")[0] in ("pipeline", "transforms")
    return ours or (record.exc_info is None and "Traceback (most recent call last)" not in record.getMessage())
