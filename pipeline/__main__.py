"""The command line: `python -m pipeline COMMAND`, installed also as `tayyar`."""

from __future__ import annotations

import argparse
import io
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from pipeline.commands.console import configure_logging, discard, say
from pipeline.commands.options import (
    check_options,
    closest_option,
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
        from pipeline.commands.serve import serve

        try:
            return serve(arguments[1:])
        except UsageError as error:
            return _say_why(error, ExitCode.USAGE)
    if arguments == ["--version"]:
        from importlib import metadata

        say(f"tayyar {metadata.version('tayyar')}")
        return ExitCode.DONE
    parser = make_parser()
    if not arguments:
        parser.print_help()
        return ExitCode.DONE
    if arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version"):
        # argparse would take an option's value for the command, and repeat it, which may be a secret.
        parser.error("the command comes first, then its options: see tayyar --help")
    if option := _secret_in_several_words(arguments):
        parser.error(f"the value of {option} must be one word: put quotes around it")
    options, rest = parser.parse_known_args(arguments)
    if rest and not rest[0].startswith("-"):
        parser.error(
            f"{rest[0]} belongs to no option: put quotes around a pattern, or the shell replaces it by its files"
        )
    for name in (word.partition("=")[0] for word in rest if word.startswith("--")):
        # Beam, whose options `run` and `check` pass on, takes seconds to import; a misspelt option needs no Beam.
        if meant := closest_option(parser, options.command, name):
            parser.error(f"unknown option {name}: did you mean {meant}?")
        if options.command not in ("run", "check"):
            parser.error(f"unknown option {name}: see tayyar {options.command} --help")
    configure_logging()
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
        if options.command != "status":  # all others say their lines by `say`
            return _say_why(f"a connection broke: {error}", ExitCode.FAILED)
        discard(sys.stdout)  # its reader has seen enough
        return ExitCode.DONE
    except (StorageError, OSError) as error:
        return _say_why(f"{told(error)}{_how_to_go_on(options.command, ExitCode.FAILED)}", ExitCode.FAILED)
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from here" if options.command in ("run", "redrive") else ""
        _say_why(f"stopped{goes_on}", ExitCode.FAILED)
        return 128 + signal.SIGINT


def _secret_in_several_words(arguments: Sequence[str]) -> str | None:
    """Return the option that takes a secret's reference and has more than one word behind it; None if none has.

    No message may repeat these words: they may be the secret itself, written out without quotes.
    """
    for index, word in enumerate(arguments):
        option, separator, _ = word.partition("=")
        stray = arguments[index + 1 if separator else index + 2 :][:1]
        if option in ("--token", "--header") and stray and not stray[0].startswith("--") and stray != ["-h"]:
            return option
    return None


def _how_to_go_on(command: str, code: ExitCode) -> str:
    if command not in ("run", "redrive"):
        return ""
    if code == ExitCode.TOO_MANY_DEAD_LETTERS:
        return "\nMend the records, or raise --max_dead_letter_ratio; then the same command goes on from what is done."
    return "\nThe same command goes on from what is done."


def _carry_out(options: argparse.Namespace, rest: Sequence[str]) -> int:
    # Commands are imported when they are called: Beam alone takes a second, and --help needs none of it.
    if options.command == "verify":
        from pipeline.commands.verify import verify

        return verify(verify_options(options), say)
    if options.command == "check":
        from pipeline.commands.check import check

        return check(check_options(options, rest), say)
    if options.command == "plan":
        from pipeline.planning.estimate import plan

        return plan(plan_options(options), say)
    if options.command == "redrive":
        from pipeline.commands.redrive import redrive

        return redrive(redrive_options(options), say)
    if options.command == "report":
        from pipeline.commands.report import report

        return report(report_options(options), say)
    if options.command == "status":
        from pipeline.commands.status import status

        return status(status_options(options))
    from pipeline.commands.run import run

    return run(run_options(options, rest), say)


def _say_why(error: Exception | str, code: ExitCode) -> int:
    say(f"tayyar: {error}", sys.stderr)
    return code


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
