"""The command line as a whole: which commands there are, and a hint for a misspelt one before all else."""

from __future__ import annotations

import argparse
import difflib
import itertools
import re
from collections.abc import Iterable, Sequence

from pipeline.commands.options.check import CheckOptions
from pipeline.commands.options.declare import Options, add_options, declarations, filled, make_options
from pipeline.commands.options.plan import PlanOptions
from pipeline.commands.options.redrive import RedriveOptions
from pipeline.commands.options.report import ReportOptions
from pipeline.commands.options.run import RunOptions
from pipeline.commands.options.status import StatusOptions
from pipeline.commands.options.verify import VerifyOptions

COMMANDS: dict[str, type[Options]] = {
    "run": RunOptions,
    "plan": PlanOptions,
    "check": CheckOptions,
    "status": StatusOptions,
    "report": ReportOptions,
    "redrive": RedriveOptions,
    "verify": VerifyOptions,
}
SERVE = "serve"
_CLOSE = 0.86  # of a misspelt option to ours; no option of Beam's comes as near to one of Tayyar's
_CLOSE_COMMAND = 0.6


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="tayyar",
        allow_abbrev=False,
        description="Embed NDJSON documents through a Text Embeddings Inference endpoint; prove that nothing was lost.",
    )
    parser.add_argument("--version", action="store_true", help="show Tayyar's version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)
    for name, options in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=options.SUMMARY,
            description=filled(f"{options.SUMMARY[0].upper()}{options.SUMMARY[1:]}."),
            epilog=f"example:\n  {options.EXAMPLE}",
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_options(command, options)
    # Only for the list of commands: `serve` has a parser of its own.
    commands.add_parser(SERVE, help="serve a model by TEI's protocol on this machine's cores", add_help=False)
    return parser


def parse(arguments: Sequence[str]) -> Options:
    """Return a command's options; end with a message and exit code 2 if they cannot be read.

    Raises:
        UsageError: if an option's value cannot be used; the message names both and the remedy.
    """
    parser = make_parser()
    command, *words = arguments
    if command.startswith("-") and command not in ("-h", "--help", "--version"):
        # argparse would take an option's value for the command, and repeat it, which may be a secret.
        parser.error("the command comes first, then its options: see tayyar --help")
    if meant := _closest(command, [*COMMANDS, SERVE], _CLOSE_COMMAND) if command not in COMMANDS else None:
        parser.error(f"unknown command {command}: did you mean {meant}?")
    if where := _not_utf8(arguments):
        parser.error(f"the value of {where} is not UTF-8: rename the file or the folder, or write it in UTF-8")
    if option := _secret_in_several_words(words):
        parser.error(f"the value of {option} must be one word: put quotes around it")
    if command in COMMANDS:
        _refuse_misspelt(parser, command, words)
    parsed, rest = parser.parse_known_args(arguments)
    if rest and not rest[0].startswith("-"):
        parser.error(
            f"{rest[0]} belongs to no option: put quotes around a pattern, or the shell replaces it by its files"
        )
    options = COMMANDS[command]
    if options.BEAM is not None:
        parsed.beam = tuple(rest)
    elif rest:
        parser.error(f"unknown option {rest[0].partition('=')[0]}: see tayyar {command} --help")
    return make_options(options, parsed)


def _not_utf8(words: Sequence[str]) -> str | None:
    """Return the option whose value holds bytes that are not UTF-8; None if none does.

    Paths and names are recorded in JSON, which cannot hold them. The value is not repeated: it may be a secret.
    """
    for former, word in itertools.pairwise(["", *words]):
        if any("\ud800" <= character <= "\udfff" for character in word):
            option = (word if word.startswith("--") else former).partition("=")[0]
            return option if re.fullmatch("--[a-z_]+", option) else "an option"
    return None


def _refuse_misspelt(parser: argparse.ArgumentParser, command: str, words: Iterable[str]) -> None:
    """End with a hint at an option that is nearly one of the command's.

    This comes before argparse, which would first complain of a required option that is missing because it is misspelt,
    and before Beam, which takes seconds to import.
    """
    options = COMMANDS[command]
    flags = [each.flag for each in declarations(options)]
    known = {*flags, "--help", *(each.flag for each in declarations(options.IGNORED or options))}
    for name in (word.partition("=")[0] for word in words if word.startswith("--")):
        if name in known:
            continue
        if meant := _closest(name.replace("-", "_").replace("__", "--", 1), flags, _CLOSE):
            parser.error(f"unknown option {name}: did you mean {meant}?")


def _closest(name: str, names: Sequence[str], cutoff: float) -> str | None:
    close = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return close[0] if close else None


def _secret_in_several_words(words: Sequence[str]) -> str | None:
    """Return the option that takes a secret's reference and has more than one word behind it; None if none has.

    No message may repeat these words: they may be the secret itself, written out without quotes.
    """
    for index, word in enumerate(words):
        option, separator, _ = word.partition("=")
        stray = words[index + 1 if separator else index + 2 :][:1]
        if option in ("--token", "--header") and stray and not stray[0].startswith("--") and stray != ["-h"]:
            return option
    return None
