"""Which Beam runner carries the pipeline, and what its failures mean."""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
    WorkerOptions,
)
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.runners.runner import PipelineState
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from pipeline.errors import OUT_OF_THREADS, ExitCode, PipelineFailed, UsageError, is_out_of_threads
from pipeline.runners.parallelism import count_processes
from transforms.early_stop import TooManyDeadLetters
from transforms.read_shards import SourceChanged
from transforms.storage import api as storage
from transforms.storage.base import StorageError
from transforms.tei.errors import (
    EndpointError,
    EndpointRefused,
    EndpointUnreachable,
    ModelChanged,
    NotTei,
    PairingBroken,
    VectorsDoubtful,
)

_logger = logging.getLogger(__name__)

DEFAULT_RUNNER = "FnApiRunner"
_IN_PROCESS = {"fnapirunner", "fnapi"}
# These ask their job server which options it knows; what it does not know is refused there.
_PORTABLE = {"flinkrunner", "flink", "portablerunner", "portable", "prismrunner", "prism", "sparkrunner", "spark"}
_FAR = {"dataflowrunner", "dataflow"}
_WORKER = "pipeline.runners.worker"
_LOST_WORKER = "Channel closed prematurely"
_WHERE = re.compile(r"( \[while running '[^']*'\])+$")
_NAMED_ERROR = re.compile(r"transforms\.[\w.]+\.(\w+): (.*)")
_OWN_ERRORS: dict[str, type[Exception]] = {
    error.__name__: error
    for error in (
        EndpointRefused,
        EndpointUnreachable,
        ModelChanged,
        NotTei,
        PairingBroken,
        VectorsDoubtful,
        EndpointError,
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
        _refuse_unknown(options, arguments)
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
        raise UsageError(f"--runner {name} is not a runner of this Beam: {str(error).splitlines()[0]}") from error


def _refuse_unknown(options: PipelineOptions, arguments: Sequence[str]) -> None:
    def refuse(parser: argparse.ArgumentParser) -> None:
        _, unknown = parser.parse_known_args(list(arguments))
        if unknown:
            # What stands behind the name may be a secret under a misspelt one.
            name = unknown[0].partition("=")[0]
            raise UsageError(f"unknown option {name}: neither Tayyar nor Beam has it. See --help.")

    # Beam hands its parser, which has the options of all its classes, to a function that may add others.
    options.get_all_options(add_extra_args_fn=refuse)


def make_runner(options: PipelineOptions) -> beam.runners.PipelineRunner | str:
    """Return the runner for a pipeline: Beam's in-process one built here, any other by its name."""
    name: str = options.view_as(StandardOptions).runner
    if name.lower() not in _IN_PROCESS:
        return name
    _let_workers_import_this()
    # By its name alone, the runner would give its worker processes no pipeline options at all.
    environment = None
    direct = options.view_as(DirectOptions)
    if direct.direct_running_mode == "multi_processing":
        direct.direct_num_workers = count_processes(options)  # Beam's own 0 ignores what a container may use
        # With the mode set, the runner would start Beam's module instead of the one whose log is ours.
        direct.direct_running_mode = None
        environment = SubprocessSDKEnvironment.from_command_string(f"{shlex.quote(sys.executable)} -m {_WORKER}")
    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options(drop_default=True))
    info = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
    return fn_runner.FnApiRunner(default_environment=environment, provision_info=fn_runner.ExtendedProvisionInfo(info))


def _let_workers_import_this() -> None:
    """Put the packages' folder on the path of local worker processes, which may start elsewhere."""
    here = str(Path(__file__).resolve().parents[2])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if here not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, paths)])


def require_reach(options: PipelineOptions, inputs: Sequence[str], output: str, urls: Sequence[str]) -> None:
    """Refuse what no worker of Dataflow can reach: this machine's disk, and a server that would be started here.

    Raises:
        UsageError: naming the option.
    """
    if options.view_as(StandardOptions).runner.lower() not in _FAR:
        return
    for name, path in [*(("input", pattern) for pattern in inputs), ("output", output)]:
        if storage.is_local(path):
            raise UsageError(f"--{name} {path} is on this machine, which Dataflow's workers cannot see. Give gs://….")
        if path.startswith("s3://") and not options.view_as(WorkerOptions).sdk_container_image:
            raise UsageError(
                f"--{name} {path} cannot be read by Dataflow's workers, which install Tayyar without its extra [aws]. "
                "Give gs://…, or an image that has it and keys of AWS: --sdk_container_image."
            )
    if not urls:
        raise UsageError(
            "without --endpoint a TEI would be started on this machine, which Dataflow's workers do not reach. "
            "Give the address of a server that they do."
        )


def template_of(options: PipelineOptions) -> str:
    """Return where a description of the job is to be written instead of running it; empty for nowhere."""
    return options.view_as(GoogleCloudOptions).template_location or ""


def run_pipeline(
    options: PipelineOptions, build: Callable[[beam.Pipeline], object], say: Callable[[str], None]
) -> None:
    """Build a pipeline and run it to its end; a job that runs elsewhere is cancelled if this is interrupted.

    Raises:
        UsageError: if Beam refuses the options.
        EndpointError: if the endpoint stopped it.
        PipelineFailed: if anything else did.
    """
    try:
        pipeline = beam.Pipeline(make_runner(options), options)
    except ValueError as error:  # what Beam's validator of the runner's options found
        raise UsageError(f"Beam refuses these options: {error}") from error
    build(pipeline)
    try:
        result = pipeline.run()
        if not template_of(options):
            _say_where(result, options, say)
        state = _finished(result)
    except Exception as error:  # runners raise errors of their own and of workers alike, of any type
        raise meaning_of(error) from error
    # A runner that does not wait for the end gives None.
    if state not in (None, PipelineState.DONE):
        raise PipelineFailed(f"the runner ended in state {state}; see its own log")


def _finished(result: beam.runners.runner.PipelineResult) -> str | None:
    try:
        state: str | None = result.wait_until_finish()
    except KeyboardInterrupt:
        try:
            result.cancel()
        except Exception as error:  # noqa: BLE001 - of any type, as above; the interruption goes on
            _logger.warning("the job could not be cancelled (%s); cancel it at the runner before you run again", error)
        raise
    return state


def _say_where(
    result: beam.runners.runner.PipelineResult, options: PipelineOptions, say: Callable[[str], None]
) -> None:
    """Print where a job on Dataflow can be watched."""
    if options.view_as(StandardOptions).runner.lower() in _FAR:
        cloud = options.view_as(GoogleCloudOptions)
        console = "https://console.cloud.google.com/dataflow/jobs"
        say(f"Dataflow: {console}/{cloud.region}/{result.job_id()}?project={cloud.project}")


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
    if any(map(is_out_of_threads, _causes(error))):
        return PipelineFailed(OUT_OF_THREADS)
    _logger.error("the pipeline failed", exc_info=error)
    return PipelineFailed(f"{_last_line(error)} (the traceback is above)")


def _for_the_user(error: BaseException) -> BaseException:
    """Leave out in which of Beam's steps an error of ours came up: the message says what it was about."""
    message = _WHERE.sub("", str(error))
    if isinstance(error, EndpointError):
        return type(error)(message)
    if isinstance(error, TooManyDeadLetters):
        return PipelineFailed(message, code=ExitCode.TOO_MANY_DEAD_LETTERS)
    return PipelineFailed(message) if isinstance(error, (SourceChanged, StorageError)) else error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _last_line(error: BaseException) -> str:
    """Return what a person needs of a failure's text: without Beam's stack, which ends with the same line."""
    text = str(error).strip() or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _WHERE.sub("", re.sub(r"^(\w+\.)+(?=\w+: )", "", lines[-1] if "Traceback" in text else text))
