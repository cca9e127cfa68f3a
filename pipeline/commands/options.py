"""The command line: options in groups, each checked where it is declared. Imports nothing heavy."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipeline.errors import UsageError
from transforms.tei.credentials import parse_header
from transforms.tei.settings import EndpointSettings, Overlong

_MIB = 1 << 20
_DAY = 86_400  # seconds
_CLOSE = 0.86  # of a misspelt option to ours; no option of Beam's comes as near to one of Tayyar's
_MIN_COSINE = 0.99
MAX_DEAD_LETTER_RATIO = 0.01
_NO_ENDPOINT = EndpointSettings(urls=())


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options of `run`.

    Attributes:
        inputs: patterns of NDJSON files, absolute where they are local.
        output: the output folder, absolute where it is local, without a final slash.
        endpoint: where and how to embed; without a URL for the embedded TEI.
        text_field: what is embedded, dotted for a nested field.
        embedding_field: which field gets the vector.
        expected_dimensions: numbers a vector must have; None for whatever the model gives.
        shard_bytes: (decompressed) bytes of a file that make a shard.
        max_dead_letter_ratio: dead letters a record from which the run counts as failed.
        price_per_hour: of the endpoint, in dollars; None for no bill.
        overwrite: start over in a folder that holds another job.
        reuse: further output folders whose vectors are used again.
        prune: remove what was embedded of inputs that no longer exist.
        beam: the arguments left for Beam.
        model: the ONNX export that the embedded TEI serves; None for its built-in model.
    """

    inputs: tuple[str, ...]
    output: str
    endpoint: EndpointSettings
    text_field: str | tuple[str, ...]
    embedding_field: str
    expected_dimensions: int | None
    shard_bytes: int
    max_dead_letter_ratio: float
    price_per_hour: float | None
    overwrite: bool
    beam: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    model: str | None = None
    reuse: tuple[str, ...] = ()
    prune: bool = False


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """The options of `check`.

    Attributes:
        endpoint: where and how to embed; without a URL for the embedded TEI.
        expected_dimensions: numbers a vector must have; None for whatever the model gives.
        output: the output folder to try; None for none.
        beam: the arguments left for Beam; with any, documents go through the runner.
        model: the ONNX export that the embedded TEI serves; None for its built-in model.
    """

    endpoint: EndpointSettings
    expected_dimensions: int | None
    output: str | None
    beam: tuple[str, ...]
    model: str | None = None


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """The options of `report`.

    Attributes:
        output: the output folder.
        price_per_hour: of the endpoint, in dollars; None for the price of the last report.
    """

    output: str
    price_per_hour: float | None


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """The options of `plan`; each value as in `RunOptions`, but `output` is None where nothing is to be saved."""

    inputs: tuple[str, ...]
    output: str | None
    endpoint: EndpointSettings
    text_field: str | tuple[str, ...]
    embedding_field: str
    expected_dimensions: int | None
    shard_bytes: int
    price_per_hour: float | None
    exclude: tuple[str, ...] = ()
    verbose: bool = False
    model: str | None = None


@dataclass(frozen=True, slots=True)
class RedriveOptions:
    """The options of `redrive`.

    Attributes:
        output: the output folder.
        endpoint: where to embed; how is the job's.
        reasons: of the dead letters to send again; none for all.
        model: the ONNX export that the embedded TEI serves; None for its built-in model.
    """

    output: str
    endpoint: EndpointSettings
    reasons: tuple[str, ...]
    model: str | None = None


@dataclass(frozen=True, slots=True)
class StatusOptions:
    """The options of `status`.

    Attributes:
        output: the output folder.
        watch: look again every few seconds, until the job is finished.
        json: print JSON, one object a look.
    """

    output: str
    watch: bool
    json: bool


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """The options of `verify`.

    Attributes:
        output: the folder to verify.
        processes: how many read it; None for what its size is worth.
        sample: documents to embed again; 0 for none.
        seed: of their choice.
        min_cosine: of two vectors that count as the same.
        endpoint: where to embed them.
        max_dead_letter_ratio: dead letters a record from which the job counts as failed.
        model: the ONNX export that the embedded TEI serves; None for its built-in model.
    """

    output: str
    processes: int | None = None
    sample: int = 0
    seed: int = 0
    min_cosine: float = _MIN_COSINE
    endpoint: EndpointSettings = _NO_ENDPOINT
    max_dead_letter_ratio: float = MAX_DEAD_LETTER_RATIO
    model: str | None = None


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="tayyar",
        allow_abbrev=False,
        description="Embed NDJSON documents through a Text Embeddings Inference endpoint; prove that nothing was lost.",
    )
    parser.add_argument("--version", action="store_true", help="show Tayyar's version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_run(commands)
    _add_plan(commands)
    _add_check(commands)
    _add_status(commands)
    _add_report(commands)
    _add_redrive(commands)
    _add_verify(commands)
    commands.add_parser("serve", help="serve the embedded TEI alone", add_help=False)  # its options are its own
    return parser


def options_of(parser: argparse.ArgumentParser, command: str) -> list[argparse.Action]:
    """Return the options of a command, in the order of its help."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return [action for action in commands.choices[command]._actions if action.dest != "help"]


def closest_option(parser: argparse.ArgumentParser, command: str, name: str) -> str | None:
    """Return the option of a command that an unknown name was probably meant to be; None for nothing close."""
    names = [name for action in options_of(parser, command) for name in action.option_strings if name[2:]]
    close = difflib.get_close_matches(name.replace("-", "_").replace("__", "--", 1), names, n=1, cutoff=_CLOSE)
    return close[0] if close else None


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, example: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n  {example}",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "run",
        "embed the documents; run it again to resume",
        "tayyar run --input 'wiki/*.ndjson' --output embedded --endpoint http://127.0.0.1:8080",
    )
    _add_data(parser)
    add_endpoint(parser)
    limits = parser.add_argument_group("limits and cost")
    _add_max_dead_letter_ratio(limits)
    add_price(limits)
    parser.add_argument_group(
        "Beam",
        "Beam's own options are passed on. --runner's default is its in-process Fn API runner, without download.",
    )


def _add_max_dead_letter_ratio(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--max_dead_letter_ratio",
        type=_number(float, 0, 1),
        default=MAX_DEAD_LETTER_RATIO,
        metavar="SHARE",
        help="more dead letters a record than this, and it ends with exit code 4 (default: %(default)s)",
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    _add_input(data)
    add_output(data)
    _add_reading(data)
    data.add_argument(
        "--reuse",
        action="append",
        default=[],
        metavar="FOLDER",
        help="another output folder whose vectors are used again where texts are the same; repeatable",
    )
    data.add_argument(
        "--prune", action="store_true", help="remove what was embedded of inputs that the patterns no longer match"
    )
    data.add_argument("--overwrite", action="store_true", help="delete the output folder's former job and start over")


def _add_input(data: argparse._ActionsContainer) -> None:
    data.add_argument(
        "--input",
        action="append",
        required=True,
        metavar="PATTERN",
        help="NDJSON files, also compressed (.gz, .bz2, .zst): path, folder, or pattern with *, ?, **; repeatable",
    )
    data.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out files or folders of this name or path below --input, with *, ?, **; repeatable",
    )


def _add_reading(data: argparse._ActionsContainer) -> None:
    data.add_argument(
        "--text_field",
        action="append",
        metavar="NAME",
        help="the text, dotted for a nested field; repeatable: several are joined by newlines (default: content)",
    )
    data.add_argument(
        "--embedding_field", default="embedding", help="the field that gets the vector (default: %(default)s)"
    )
    data.add_argument(
        "--shard_bytes",
        type=_number(int, 1),
        default=16 * _MIB,
        metavar="BYTES",
        help="of a file that make a shard: one element, one output file, one receipt (default: %(default)s)",
    )


def add_output(parser: argparse._ActionsContainer) -> None:
    """Add the option that every command on an output folder has."""
    parser.add_argument("--output", required=True, metavar="FOLDER", help="the output folder")


def add_price(parser: argparse._ActionsContainer) -> None:
    """Add the option that turns time into money."""
    parser.add_argument(
        "--price_per_hour", type=_number(float, 0), metavar="DOLLARS", help="of the endpoint, for the bill"
    )


def add_connection(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options of the connection to an endpoint, and return their group."""
    endpoint = parser.add_argument_group("endpoint")
    endpoint.add_argument(
        "--endpoint",
        action="append",
        default=[],
        metavar="URL",
        help="base URL of a TEI server; repeatable for several of one model; without it, an embedded TEI is started",
    )
    endpoint.add_argument(
        "--model",
        metavar="FOLDER",
        help="the embedded TEI's model: the folder of an ONNX export, or one of its .onnx files (default: a small one)",
    )
    endpoint.add_argument(
        "--token",
        metavar="REFERENCE",
        help="where the bearer token is: env:NAME, file:PATH or gsm:projects/…/secrets/…/versions/…",
    )
    endpoint.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="'NAME: REFERENCE'",
        help="another header, its value by a reference like --token's, or literal:VALUE for what is plainly no secret; "
        "repeatable",
    )
    endpoint.add_argument(
        "--max_in_flight",
        type=_number(int, 1),
        metavar="TEXTS",
        help="texts in flight from one process (default: what the server permits)",
    )
    endpoint.add_argument(
        "--request_timeout",
        type=_number(float, 0.001, _DAY),
        default=60.0,
        metavar="SECONDS",
        help="of one request (default: %(default)s)",
    )
    endpoint.add_argument(
        "--give_up_after",
        type=_number(float, 0, 30 * _DAY),
        default=600.0,
        metavar="SECONDS",
        help="without a single success, before the run stops (default: %(default)s)",
    )
    return endpoint


def add_endpoint(parser: argparse.ArgumentParser) -> None:
    """Add the options of where and how to embed."""
    endpoint = add_connection(parser)
    endpoint.add_argument(
        "--dimensions",
        type=_number(int, 1),
        metavar="N",
        help="numbers of each vector to keep, where the model is trained for it (default: all)",
    )
    endpoint.add_argument(
        "--expected_dimensions",
        type=_number(int, 1),
        metavar="N",
        help="refuse an endpoint whose vectors have another size",
    )
    endpoint.add_argument(
        "--overlong",
        choices=[policy.value for policy in Overlong],
        default=Overlong.TRUNCATE.value,
        help="what happens to a text of more tokens than the model reads (default: %(default)s)",
    )
    endpoint.add_argument("--prompt_name", metavar="NAME", help="one of the model's prompts, to put before each text")
    endpoint.add_argument("--no_normalize", action="store_true", help="take vectors as they are, not of unit norm")


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "check",
        "reach the endpoint, embed a probe, write and read the output folder, try a runner",
        "tayyar check --endpoint http://127.0.0.1:8080 --output embedded",
    )
    parser.add_argument("--output", metavar="FOLDER", help="the output folder to try")
    add_endpoint(parser)
    # So that a command line of `run` can be tried as it is.
    for name in (
        "input",
        "exclude",
        "text_field",
        "embedding_field",
        "shard_bytes",
        "max_dead_letter_ratio",
        "price_per_hour",
    ):
        parser.add_argument(f"--{name}", action="append", help=argparse.SUPPRESS)
    parser.add_argument("--overwrite", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument_group(
        "Beam",
        "With a runner's options (--runner … and what it needs), ten documents go through it into a temporary place "
        "below the output folder: packages, the way from workers to the endpoint, the token, and the right to write. "
        "All options of run are taken; those about the data have no effect here.",
    )


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "plan",
        "estimate what a run would take, from a sample and some seconds of the endpoint's time",
        "tayyar plan --input 'wiki/*.ndjson' --endpoint http://127.0.0.1:8080 --price_per_hour 1.30",
    )
    data = parser.add_argument_group("data")
    _add_input(data)
    data.add_argument("--output", metavar="FOLDER", help="save the estimate there, for the run's report")
    _add_reading(data)
    data.add_argument("--verbose", action="store_true", help="list every file that is left out, and why")
    add_endpoint(parser)
    add_price(parser)


def _add_status(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "status",
        "show how far a job is, from its output folder alone, on any machine that can read it",
        "tayyar status --output embedded --watch",
    )
    add_output(parser)
    parser.add_argument("--watch", action="store_true", help="look every few seconds, until it is finished or Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print one JSON object a look")


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "report",
        "write the report again, as JSON, as a page and for Prometheus",
        "tayyar report --output embedded --price_per_hour 1.30",
    )
    add_output(parser)
    add_price(parser)


def _add_redrive(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "redrive",
        "send dead letters again, and put those that succeed in their places",
        "tayyar redrive --output embedded --endpoint http://127.0.0.1:8080 --reason rejected_by_endpoint",
    )
    add_output(parser)
    parser.add_argument(
        "--reason", action="append", default=[], metavar="REASON", help="only those of this reason; repeatable"
    )
    add_connection(parser)


def _add_verify(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "verify",
        "prove from inputs and outputs that nothing was lost or changed",
        "tayyar verify --output embedded\n"
        "  tayyar verify --output embedded --sample 200 --endpoint http://127.0.0.1:8080",
    )
    add_output(parser)
    parser.add_argument(
        "--processes",
        type=_number(int, 1),
        metavar="N",
        help="that read the files (default: one, or for much data one a processor)",
    )
    _add_max_dead_letter_ratio(parser)
    _add_sample(parser)
    add_connection(parser)


def _add_sample(parser: argparse.ArgumentParser) -> None:
    again = parser.add_argument_group("documents embedded again")
    again.add_argument(
        "--sample",
        type=_number(int, 1),
        default=0,
        metavar="N",
        help="embed so many documents again, chosen at random, and compare their vectors",
    )
    again.add_argument(
        "--min_cosine",
        type=_number(float, -1, 1),
        default=_MIN_COSINE,
        metavar="COSINE",
        help="of two vectors that count as the same; half precision and other batches cost some thousandths "
        "(default: %(default)s)",
    )
    again.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice (default: %(default)s)")


def _number(kind: Callable[[str], float], minimum: float, maximum: float = float("inf")) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not minimum <= value <= maximum or math.isinf(value):
            bounds = f"at least {minimum}" if maximum == float("inf") else f"from {minimum} to {maximum}"
            raise argparse.ArgumentTypeError(f"{text} is not {bounds}")
        return value

    parse.__name__ = kind.__name__  # argparse names it in its message
    return parse


def run_options(arguments: argparse.Namespace, beam: Sequence[str]) -> RunOptions:
    """Check the options of `run` and return them as one value.

    Raises:
        UsageError: naming the option, its value and the remedy.
    """
    text_field = _text_field(arguments.text_field)
    _check_fields(text_field, arguments.embedding_field)
    return RunOptions(
        inputs=tuple(absolute(pattern) for pattern in arguments.input),
        output=output_folder(arguments.output),
        endpoint=endpoint_settings(arguments),
        text_field=text_field,
        embedding_field=arguments.embedding_field,
        expected_dimensions=arguments.expected_dimensions,
        shard_bytes=arguments.shard_bytes,
        max_dead_letter_ratio=arguments.max_dead_letter_ratio,
        price_per_hour=arguments.price_per_hour,
        overwrite=arguments.overwrite,
        reuse=tuple(absolute(folder).rstrip("/") for folder in arguments.reuse),
        prune=arguments.prune,
        beam=tuple(beam),
        exclude=tuple(arguments.exclude),
        model=model_folder(arguments),
    )


def check_options(arguments: argparse.Namespace, beam: Sequence[str]) -> CheckOptions:
    """Check the options of `check` and return them as one value; raise as `run_options`."""
    return CheckOptions(
        endpoint=endpoint_settings(arguments),
        expected_dimensions=arguments.expected_dimensions,
        output=None if arguments.output is None else output_folder(arguments.output),
        beam=tuple(beam),
        model=model_folder(arguments),
    )


def plan_options(arguments: argparse.Namespace) -> PlanOptions:
    """Check what `plan` was given and return it as one value; raises as `run_options`."""
    text_field = _text_field(arguments.text_field)
    _check_fields(text_field, arguments.embedding_field)
    return PlanOptions(
        inputs=tuple(absolute(pattern) for pattern in arguments.input),
        output=None if arguments.output is None else output_folder(arguments.output),
        endpoint=endpoint_settings(arguments),
        text_field=text_field,
        embedding_field=arguments.embedding_field,
        expected_dimensions=arguments.expected_dimensions,
        shard_bytes=arguments.shard_bytes,
        price_per_hour=arguments.price_per_hour,
        exclude=tuple(arguments.exclude),
        verbose=arguments.verbose,
        model=model_folder(arguments),
    )


def redrive_options(arguments: argparse.Namespace) -> RedriveOptions:
    """Check what `redrive` was given and return it as one value; raises as `run_options`."""
    return RedriveOptions(
        output=output_folder(arguments.output),
        endpoint=connection_settings(arguments),
        reasons=tuple(arguments.reason),
        model=model_folder(arguments),
    )


def report_options(arguments: argparse.Namespace) -> ReportOptions:
    """Return the options of `report` as one value; raise as `run_options`."""
    return ReportOptions(output_folder(arguments.output), arguments.price_per_hour)


def status_options(arguments: argparse.Namespace) -> StatusOptions:
    """Return the options of `status` as one value; raise as `run_options`."""
    return StatusOptions(output_folder(arguments.output), arguments.watch, arguments.json)


def verify_options(arguments: argparse.Namespace) -> VerifyOptions:
    """Check the options of `verify` and return them as one value; raise as `run_options`."""
    if arguments.endpoint and not arguments.sample:
        raise UsageError("--endpoint embeds documents again: say how many with --sample N.")
    return VerifyOptions(
        output=output_folder(arguments.output),
        processes=arguments.processes,
        sample=arguments.sample,
        seed=arguments.seed,
        min_cosine=arguments.min_cosine,
        endpoint=connection_settings(arguments),
        max_dead_letter_ratio=arguments.max_dead_letter_ratio,
        model=model_folder(arguments),
    )


def connection_settings(arguments: argparse.Namespace) -> EndpointSettings:
    """Check the options of the connection and return them as one value."""
    try:
        return EndpointSettings(
            urls=tuple(_base_url(url) for url in arguments.endpoint),
            token=arguments.token,
            headers=_headers(arguments.header, arguments.token),
            max_in_flight=arguments.max_in_flight,
            request_timeout=arguments.request_timeout,
            give_up_after=arguments.give_up_after,
        )
    except ValueError as error:
        # `from None`: what caused it may hold the secret that the message leaves out.
        raise UsageError(f"{error}. See --endpoint, --token and --header in tayyar run --help.") from None


def _headers(given: Sequence[str], token: str | None) -> tuple[tuple[str, str], ...]:
    """Return names and references of the headers; raise ValueError, which repeats no value."""
    headers = tuple(map(parse_header, given))
    names = {"authorization"} if token is not None else set[str]()
    for name, _ in headers:
        if name.lower() in names:
            other = " by --token" if token is not None and name.lower() == "authorization" else ""
            raise ValueError(f"the header {name} is already set{other}; give it once")
        names.add(name.lower())
    return headers


def endpoint_settings(arguments: argparse.Namespace) -> EndpointSettings:
    """Check the endpoint's options and return them as one value."""
    if arguments.dimensions is not None and arguments.expected_dimensions not in (None, arguments.dimensions):
        raise UsageError(
            f"--expected_dimensions {arguments.expected_dimensions} contradicts --dimensions {arguments.dimensions}, "
            "which is the size that vectors will have. Give one of the two."
        )
    return replace(
        connection_settings(arguments),
        prompt_name=arguments.prompt_name,
        dimensions=arguments.dimensions,
        normalize=not arguments.no_normalize,
        overlong=Overlong(arguments.overlong),
    )


def model_folder(arguments: argparse.Namespace) -> str | None:
    """Return the embedded TEI's model, absolute; None for its built-in one."""
    if arguments.model is None:
        return None
    if arguments.endpoint:
        raise UsageError(
            f"--model {arguments.model} is for the embedded TEI, but --endpoint names a server, which has its own "
            "model. Give one of the two."
        )
    path = absolute(arguments.model, "--model")
    if not os.path.exists(path):
        raise UsageError(
            f"--model {arguments.model} does not exist. Give the folder of an ONNX export, or leave --model out for "
            "the built-in model."
        )
    return path


def absolute(path: str, option: str = "--input") -> str:
    """Return a local path made absolute, so that a run from another folder means the same; any other path as it is."""
    if not path.strip():
        raise UsageError(
            f"{option} is empty. Give a path, a folder or a pattern; a variable in its place may not be set."
        )
    if found := re.match(r"([a-z][a-z0-9+.-]*://)(/|$)?", path, re.IGNORECASE):
        if found[2] is not None:
            raise UsageError(
                f"{option} {path} names no bucket. Write {found[1]}BUCKET/FOLDER; a variable in it may not be set."
            )
        return found[1].lower() + path[found.end(1) :]
    return os.path.abspath(os.path.expanduser(path)) + ("/" if path.endswith("/") else "")


def output_folder(path: str) -> str:
    """Return the output folder, absolute where it is local, without a final slash."""
    if not path.strip("/"):
        raise UsageError(f"--output {path!r} names no folder. Give a folder of its own.")
    return absolute(path, "--output").rstrip("/")


def _text_field(given: Sequence[str] | None) -> str | tuple[str, ...]:
    """Return one name, or several as a tuple."""
    names = tuple(given or ("content",))
    return names[0] if len(names) == 1 else names


def _check_fields(text_field: str | tuple[str, ...], embedding_field: str) -> None:
    names = (text_field,) if isinstance(text_field, str) else text_field
    for name in names:
        if not name or not all(name.split(".")):
            raise UsageError(
                f"--text_field {name!r} has an empty part. Write it as content, or as meta.body for a nested field."
            )
    if not embedding_field or re.search(r'["\\/\x00-\x1f]', embedding_field):
        raise UsageError(
            f"--embedding_field {embedding_field!r} is empty or holds a quotation mark, a slash, a backslash or a "
            "control character. Use a plain name."
        )
    for name in names:
        if embedding_field in (name, name.split(".")[0]):
            raise UsageError(
                f"--embedding_field {embedding_field} would overwrite the text, which is in --text_field {name}."
            )


def _base_url(url: str) -> str:
    route = re.search(r"(/v1)?/(embed|embeddings|info|health)/*$", url)
    if route:
        raise UsageError(f"--endpoint is the address of one route. Give the server's base URL, without {route[0]}.")
    return url.rstrip("/")
