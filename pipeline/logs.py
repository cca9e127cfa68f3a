"""The log for a person, of this process and of worker processes on this machine, without Beam's noise."""

from __future__ import annotations

import logging
import textwrap
from typing import Any, TextIO

from pipeline.escaping import escaped, escaped_line, wrapped

_NOISE = ("apitools not found", "No semi_persistent_directory found")  # Beam warns of these on every local run


class _Handler(logging.StreamHandler[TextIO]):
    """Prints a record above the bars that are drawn, and not into one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm  # not where a command is only parsed

        with tqdm.external_write_mode(self.stream):
            super().emit(record)


class _Formatter(logging.Formatter):
    """Makes a record one line, as `say` does, and indents the traceback below it.

    So no name or message from outside can begin a line of its own.

    Args:
        form: of a record.
        stream: to which it is printed.
    """

    def __init__(self, form: str, stream: TextIO) -> None:
        super().__init__(form)
        self._stream = stream

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (the name is the base class's)
        return wrapped(escaped_line(super().formatMessage(record)), self._stream)

    def formatException(self, ei: Any) -> str:  # noqa: N802 (the name is the base class's)
        return textwrap.indent(escaped(super().formatException(ei)), "  ")


def configure_logging() -> None:
    """Log warnings to stderr, without what Beam repeats on every run.

    The filters sit on the handler: a logger's filters see only what is logged to that logger itself, and Beam logs to
    loggers of its own.
    """
    handler = _Handler()
    handler.setLevel(logging.WARNING)  # in worker processes, Beam sets a lower level of the root logger
    handler.setFormatter(_Formatter("%(levelname)s: %(message)s", handler.stream))
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
