"""Which Beam runner carries the pipeline, and what its failures mean."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions, _BeamArgumentParser
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.portability.portable_runner import JobServiceHandle

from pipeline.errors import ExitCode, PipelineFailed, UsageError
from transforms.decompress import DamagedSource
from transforms.embed import TooManyDeadLetters
from transforms.files import StorageError
from transforms.read import SourceChanged
from transforms.tei.errors import EndpointError, EndpointRefused, EndpointUnreachable, ModelChanged, PairingBroken

_logger = logging.getLogger(__name__)

DEFAULT_RUNNER = "FnApiRunner"
_IN_PROCESS = {"fnapirunner", "fnapi"}
# These ask their job server which options it knows; what it does not know is refused there.
_PORTABLE = {"flinkrunner", "flink", "portablerunner", "portable", "prismrunner", "prism", "sparkrunner", "spark"}
_LOST_WORKER = "Channel closed prematurely"
_WHERE = re.compile(r"( \[while running '[^']*'\])+$")
_NAMED_ERROR = re.compile(r"transforms\.[\w.]+\.(\w+): (.*)")
_OWN_ERRORS: dict[str, type[Exception]] = {
    error.__name__: error
    for error in (
        EndpointRefused,
        EndpointUnreachable,
        ModelChanged,
        PairingBroken,
        EndpointError,
        DamagedSource,
        SourceChanged,
        StorageError,
        TooManyDeadLetters,
    )
}


def beam_options(arguments: Sequence[str]) -> PipelineOptions:
    """Return Beam's options of a command line, after Tayyar's own were taken from it.

    Raises:
        UsageError: for an option that nobody knows, and for a mode that loses data.
    """
    # A worker's INFO is about Beam's own channels, many lines each. WARN: Java job servers do not know WARNING.
    defaults = [f"--runner={DEFAULT_RUNNER}", "--default_sdk_harness_log_level=WARN"]
    options = PipelineOptions([*defaults, *arguments])
    runner = options.view_as(StandardOptions).runner.lower()
    if runner not in _PORTABLE:
        _refuse_unknown(arguments)
    if options.view_as(DirectOptions).direct_running_mode == "multi_threading":
        raise UsageError(
            "--direct_running_mode multi_threading is refused: in this mode Beam's local runner silently loses "
            "elements between stages and still reports success. Use multi_processing, or leave it out."
        )
    _require_runner(options)
    # Nothing lives in __main__, and a pickled main session fails on workers in ways of its own.
    options.view_as(beam.options.pipeline_options.SetupOptions).save_main_session = False
    return options


def _require_runner(options: PipelineOptions) -> None:
    """Refuse a runner that there is not, before anything is written."""
    name: str = options.view_as(StandardOptions).runner
    try:
        beam.runners.create_runner(name)
    except (ValueError, ImportError) as error:
        raise UsageError(f"--runner {name} is no runner of this Beam: {str(error).splitlines()[0]}") from error


def _refuse_unknown(arguments: Sequence[str]) -> None:
    parser = _BeamArgumentParser(allow_abbrev=False, add_help=False)
    for options in _all_subclasses(PipelineOptions):
        options._add_argparse_args(parser)
    _, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        # What stands behind the name may be a secret under a misspelt one.
        raise UsageError(f"unknown option {unknown[0].partition('=')[0]}: neither Tayyar nor Beam has it. See --help.")


def _all_subclasses(options: type[PipelineOptions]) -> Iterator[type[PipelineOptions]]:
    for subclass in options.__subclasses__():
        if subclass.__module__.startswith("apache_beam.options") and "_add_argparse_args" in vars(subclass):
            yield subclass
        yield from _all_subclasses(subclass)


def make_runner(options: PipelineOptions) -> beam.runners.PipelineRunner | str:
    """Return the runner for a pipeline: Beam's in-process one built here, any other by its name."""
    name: str = options.view_as(StandardOptions).runner
    if name.lower() not in _IN_PROCESS:
        return name
    _let_workers_import_this()
    # By its name alone, the runner would give its worker processes no pipeline options at all.
    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options(drop_default=True))
    info = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
    return fn_runner.FnApiRunner(provision_info=fn_runner.ExtendedProvisionInfo(info))


def _let_workers_import_this() -> None:
    """Put the packages' folder on the path of local worker processes, which may start elsewhere."""
    here = str(Path(__file__).resolve().parent.parent)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if here not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, paths)])


def meaning_of(error: BaseException) -> BaseException:
    """Return what a pipeline's failure means to its user: an `EndpointError`, an interruption, or a `PipelineFailed`.

    Some runners raise the error itself, with words of their own behind it; from a worker process there is only the text
    of its traceback.
    """
    for cause in _causes(error):
        if isinstance(cause, (KeyboardInterrupt, *_OWN_ERRORS.values())):
            return _for_the_user(cause)
    found = [(name, message) for name, message in _NAMED_ERROR.findall(str(error)) if name in _OWN_ERRORS]
    if found:
        name, message = found[-1]
        return _for_the_user(_OWN_ERRORS[name](message))
    if _LOST_WORKER in str(error):
        return PipelineFailed("a worker process died; most often it was killed because memory ran out")
    _logger.error("the pipeline failed", exc_info=error)
    return PipelineFailed(_last_line(error))


def _for_the_user(error: BaseException) -> BaseException:
    """Leave out in which of Beam's steps an error of ours came up: the message says what it was about."""
    message = _WHERE.sub("", str(error))
    if isinstance(error, EndpointError):
        return type(error)(message)
    if isinstance(error, TooManyDeadLetters):
        return PipelineFailed(message, ExitCode.TOO_MANY_DEAD_LETTERS)
    return PipelineFailed(message) if isinstance(error, (DamagedSource, SourceChanged, StorageError)) else error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _last_line(error: BaseException) -> str:
    """Return what a person needs of a failure's text: without Beam's stack, which ends with the same line."""
    text = str(error).strip() or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _WHERE.sub("", re.sub(r"^(\w+\.)+(?=\w+: )", "", lines[-1] if "Traceback" in text else text))
