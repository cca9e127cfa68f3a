"""What a person at the terminal sees: printed lines, with nothing in them that a terminal obeys."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from pipeline.escaping import escaped_line, wrapped


def say(line: str, stream: TextIO | None = None) -> None:
    """Print a text as one line, whatever is in it, which a terminal shows broken at blanks.

    If its reader is gone, the work goes on silently.
    """
    stream = stream or sys.stdout
    try:
        print(wrapped(escaped_line(line), stream), file=stream, flush=True)
    except OSError:
        discard(stream)


def discard(stream: TextIO) -> None:
    """Send to nowhere what is still printed, and what Python would flush at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
