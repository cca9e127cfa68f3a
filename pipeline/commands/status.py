"""The command `status`: how far a job is, from its output folder alone, on any machine that can read it."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from types import TracebackType
from typing import TextIO

import orjson
from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipeline.commands.options.status import StatusOptions
from pipeline.errors import ExitCode
from pipeline.escaping import escaped_line
from pipeline.job.ledger import ReceiptCache
from pipeline.job.spec import require_job
from pipeline.planning.estimate import read_estimate
from pipeline.reporting.status import State, Status, read_status, render_status
from transforms.output.folder import OutputFolder

REDRAW_SECONDS = 3.0  # listing a bucket may take one


def status(options: StatusOptions, stream: TextIO | None = None) -> ExitCode:
    """Show how far a job is, once, or until it has finished or stopped.

    Args:
        options: which job, and how to show it.
        stream: where to; None for the standard output.

    Returns:
        DONE.

    Raises:
        UsageError: if it is not an output folder.
    """
    stream = stream or sys.stdout
    output, cache = OutputFolder(options.output, run="status"), ReceiptCache()
    require_job(output)  # the first that is read: what is not an output folder has no estimate either
    try:
        with Screen(stream) as screen:
            while True:
                estimate = read_estimate(output) or {}
                found = read_status(output, time.time(), estimate.get("records"), cache)
                if options.json:
                    _print_json(found, stream)
                else:
                    screen.show(found)
                if not options.watch or found.state in (State.FINISHED, State.STOPPED):
                    return ExitCode.DONE
                time.sleep(REDRAW_SECONDS)
    except KeyboardInterrupt:
        return ExitCode.DONE


def _print_json(found: Status, stream: TextIO) -> None:
    stream.write(orjson.dumps(asdict(found), option=orjson.OPT_APPEND_NEWLINE).decode())
    stream.flush()


class Screen:
    """Draws a status over the former one on a terminal, and below it elsewhere.

    Args:
        stream: where to. Lines wider than a terminal take several of its rows, which `rich` counts.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = Live(console=Console(file=stream), auto_refresh=False) if stream.isatty() else None

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, found: Status) -> None:
        """Draw a status."""
        # Names of hosts and models come from outside, and must not move a terminal's cursor.
        text = "\n".join(map(escaped_line, render_status(found)))
        if self._live is None:
            self._stream.write(text + "\n")
            self._stream.flush()
        else:
            self._live.start()  # does nothing when it has started
            self._live.update(Text(text), refresh=True)
