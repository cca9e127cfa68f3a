"""The command `check`: everything that a long run needs, tried before it: endpoint, output folder, and the runner."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from apache_beam.io.filesystems import FileSystems

from pipeline.commands.options import CheckOptions
from pipeline.errors import ExitCode, UsageError
from pipeline.job.preflight import require_usable
from pipeline.runners.endpoint import reached
from pipeline.runners.runner import beam_options
from pipeline.runners.smoke_test import rehearse
from transforms.output.folder import OutputFolder
from transforms.tei.client import TeiClient, connect
from transforms.tei.settings import EndpointSettings, ModelIdentity
from transforms.tei.transport import NoReply


def check(options: CheckOptions, say: Callable[[str], None] = print) -> ExitCode:
    """Try everything that a run needs, and say what was found.

    Args:
        options: the endpoint, the output folder and Beam's arguments, if there are any.
        say: takes the lines for the person at the terminal.

    Returns:
        DONE.

    Raises:
        EndpointError: if the endpoint cannot do the job; the message says what to mend.
        UsageError: if the output folder cannot be written and read, or the runner's options cannot be.
        PipelineFailed: if documents do not pass through the runner; the message says what to mend.
    """
    if options.beam:
        FileSystems.set_options(beam_options(options.beam))
        if options.output is None:
            raise UsageError(
                "check sends ten documents through a runner into a temporary place below --output, and there is none. "
                "Give the --output of the run, or leave out the runner's options."
            )
    with reached(options.endpoint, options.expected_dimensions, model=options.model, every_url=True) as (
        endpoint,
        wire_format,
    ):
        for line in _findings(endpoint, wire_format):
            say(line)
        if options.output is not None:
            require_usable(OutputFolder(options.output, run="check"))
            say(f"output: {options.output} can be written and read")
            if options.beam:
                say(f"runner: {rehearse(options.output, endpoint, options.beam)}")
    say("passed")
    return ExitCode.DONE


def _findings(endpoint: EndpointSettings, wire_format: str) -> Iterator[str]:
    for url in endpoint.urls:
        client = TeiClient(dataclasses.replace(endpoint, urls=(url,)))
        try:
            info = client.info()
        finally:
            client.close()
        yield f"endpoint: {url} answers, TEI {info.version}{_said_of_token(endpoint, url)}"
        yield (
            f"limits: {info.max_concurrent_requests} texts in flight, {info.max_client_batch_size} a request, "
            f"{info.max_input_length} tokens a text; longer ones are "
            + ("cut" if endpoint.overlong.value == "truncate" else "dead letters")
        )
    yield f"model: {_described(endpoint.identity)}"
    yield f"wire format: {wire_format}; a probe came back the same twice"


def _said_of_token(endpoint: EndpointSettings, url: str) -> str:
    """Whether the token was needed: who answers without one as well has not looked at it."""
    if endpoint.token is None:
        return ""
    nobody = connect(dataclasses.replace(endpoint, token=None))
    try:
        status = nobody.get(f"{url.rstrip('/')}/info").status
    except NoReply:
        status = 0
    finally:
        nobody.close()
    if status == 200:
        return "; it asks for no token, yours was not needed"
    return ", token accepted" if status in (401, 403) else ", token sent"


def _described(identity: ModelIdentity | None) -> str:
    if identity is None:
        raise RuntimeError("the endpoint was not probed")
    return (
        f"{identity.model_id}, revision {identity.sha or 'not told'}, {identity.dtype}, "
        f"{identity.pooling} pooling, {identity.dimensions} dimensions"
    )
