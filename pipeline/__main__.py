"""The command line: `python -m pipeline COMMAND`, installed also as `tayyar`."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType

from pipeline.commands.console import discard, say
from pipeline.commands.options.check import CheckOptions
from pipeline.commands.options.declare import Options
from pipeline.commands.options.parser import SERVE, make_parser, parse
from pipeline.commands.options.plan import PlanOptions
from pipeline.commands.options.redrive import RedriveOptions
from pipeline.commands.options.report import ReportOptions
from pipeline.commands.options.run import RunOptions
from pipeline.commands.options.status import StatusOptions
from pipeline.commands.options.verify import VerifyOptions
from pipeline.errors import (
    OUT_OF_THREADS,
    ExitCode,
    NotProven,
    PipelineFailed,
    UsageError,
    is_out_of_threads,
    message_lines,
)
from pipeline.logs import configure_logging
from transforms.storage.base import StorageError
from transforms.tei.errors import EndpointError


def main(arguments: list[str]) -> int:
    """Carry out one command and return its exit code."""
    if arguments == ["--version"]:
        from importlib import metadata

        say(f"tayyar {metadata.version('tayyar')}")
        return ExitCode.DONE
    if not arguments:
        make_parser().print_help()
        return ExitCode.DONE
    command = arguments[0]
    try:
        if command == SERVE:
            from pipeline.commands.serve import serve

            return serve(arguments[1:])
        options = parse(arguments)
        configure_logging()
        signal.signal(signal.SIGTERM, _stop)
        return int(_carry_out(options))
    except UsageError as error:
        return _report(ExitCode.USAGE, *message_lines(error))
    except EndpointError as error:
        return _report(ExitCode.ENDPOINT, *message_lines(error), *_how_to_continue(command, ExitCode.ENDPOINT))
    except PipelineFailed as error:
        return _report(error.code, *message_lines(error), *_how_to_continue(command, error.code))
    except NotProven as error:
        return _report(ExitCode.NOT_PROVEN, *message_lines(error))
    except BrokenPipeError as error:
        if command != "status":  # all others print by `say`
            return _report(ExitCode.FAILED, f"a connection broke: {error}")
        discard(sys.stdout)  # its reader has seen enough
        return ExitCode.DONE
    except (StorageError, OSError) as error:
        return _report(ExitCode.FAILED, *message_lines(error), *_how_to_continue(command, ExitCode.FAILED))
    except RuntimeError as error:
        if not is_out_of_threads(error):
            raise
        return _report(ExitCode.FAILED, OUT_OF_THREADS, *_how_to_continue(command, ExitCode.FAILED))
    except KeyboardInterrupt:
        remedy = "; the same command continues from here" if command in ("run", "redrive") else ""
        _report(ExitCode.FAILED, f"stopped{remedy}")
        return 128 + signal.SIGINT


def _how_to_continue(command: str, code: ExitCode) -> list[str]:
    """Return a line of advice, if there is any to give."""
    if command not in ("run", "redrive"):
        return []
    if code == ExitCode.TOO_MANY_DEAD_LETTERS:
        return ["Fix the records, or raise --max_dead_letter_ratio; then the same command continues from what is done."]
    if code == ExitCode.ENDPOINT:
        return ["Fix that, then run the same command again: it continues from what is done."]
    return ["The same command continues from what is done."]


def _carry_out(options: Options) -> int:
    # What is loaded stays: to look for garbage in it takes a quarter of a second meanwhile, and as much in a run.
    gc.disable()
    try:
        command = _load(options)
    finally:
        gc.enable()
    if not gc.get_freeze_count():  # otherwise it would keep what earlier commands of this process have left
        gc.freeze()
    return command()


def _load(options: Options) -> Callable[[], int]:
    """Return the command that has these options. Beam takes more than a second to load, and --help needs none of it."""
    match options:
        case RunOptions():
            from pipeline.commands.run import run

            return partial(run, options, say)
        case PlanOptions():
            from pipeline.commands.plan import plan

            return partial(plan, options, say)
        case CheckOptions():
            from pipeline.commands.check import check

            return partial(check, options, say)
        case StatusOptions():
            from pipeline.commands.status import status

            return partial(status, options)
        case ReportOptions():
            from pipeline.commands.report import report

            return partial(report, options, say)
        case RedriveOptions():
            from pipeline.commands.redrive import redrive

            return partial(redrive, options, say)
        case VerifyOptions():
            from pipeline.commands.verify import verify

            return partial(verify, options, say)
    raise TypeError(f"no command has {options}")


def _report(code: ExitCode, first: str = "", *more: str) -> int:
    """Print an error's lines, and return the exit code."""
    say(f"tayyar: {first}", sys.stderr)
    for line in more:
        say(line, sys.stderr)
    return code


def _stop(_signal: int, _frame: FrameType | None) -> None:
    """End as on Ctrl-C, so that what was started is stopped."""
    raise KeyboardInterrupt


def console() -> None:
    """Run as the installed command."""
    # Arrow reads this when it is imported, here and in worker processes: its own allocator keeps 20 MB more.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    # numpy reads this, which otherwise starts a thread a core to multiply large matrices with. There are none here, and
    # such threads run in circles for 0.1 s before they sleep.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for stream in (sys.stdout, sys.stderr):  # a terminal with few characters must not fail at a file's name
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    console()
