"""The command `check`: everything that a long run needs, tried before it: endpoint, output folder, and the runner."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

from apache_beam.io.filesystems import FileSystems

from pipeline.commands.options.check import CheckOptions
from pipeline.commands.options.run import RunOptions
from pipeline.commands.options.shared import EndpointOptions
from pipeline.commands.options.verify import VerifyOptions
from pipeline.commands.run import run
from pipeline.commands.verify import verify
from pipeline.errors import ExitCode, PipelineFailed, UsageError
from pipeline.job.preflight import require_usable
from pipeline.reporting.numbers import count
from pipeline.runners.endpoint import open_endpoint
from pipeline.runners.runner import beam_options
from pipeline.runners.smoke_test import run_smoke_test
from transforms.output.folder import OutputFolder
from transforms.tei.client import TeiClient, connect
from transforms.tei.handshake import EndpointProfile
from transforms.tei.settings import EndpointSettings
from transforms.tei.transport import NoReply

_GIVE_UP_SECONDS = 10.0  # of an endpoint that does not answer


def check(options: CheckOptions, say: Callable[[str], None] = print) -> ExitCode:
    """Try everything that a run needs, and say what was found.

    Args:
        options: the endpoint, the output folder and Beam's arguments, if there are any.
        say: takes the lines for the person at the terminal.

    Returns:
        DONE.

    Raises:
        EndpointError: if the endpoint cannot do the job; the message gives the remedy.
        UsageError: if the output folder cannot be written and read, or the runner's options cannot be.
        PipelineFailed: if documents do not pass through the runner; the message gives the remedy.
    """
    if options.beam:
        FileSystems.set_options(beam_options(options.beam))
        if options.output is None:
            raise UsageError(
                "check sends ten documents through a runner into a temporary place below --output, and there is none. "
                "Give the --output of the run, or leave out the runner's options."
            )
    # A person waits for the answer, so an endpoint that is not there is reported within seconds.
    hurried = dataclasses.replace(options.endpoint, give_up_after=min(options.endpoint.give_up_after, _GIVE_UP_SECONDS))
    with open_endpoint(
        hurried if options.endpoint.urls else options.endpoint,
        options.expected_dimensions,
        model=options.model,
        every_url=True,
        say=say,
    ) as (endpoint, profile):
        for line in _findings(endpoint, profile):
            say(line)
        if options.output is not None:
            require_usable(OutputFolder(options.output, run="check"))
            say(f"output: {options.output} can be written and read")
            if options.beam:
                smoke_test = partial(_embed_and_prove, options)
                say(f"runner: {run_smoke_test(options.output, endpoint, options.beam, smoke_test)}")
    say("passed")
    return ExitCode.DONE


def _embed_and_prove(
    checked: CheckOptions, documents: str, output: str, endpoint: EndpointSettings, shard_bytes: int
) -> None:
    """Do what `run` and `verify` do with a few documents; raise as they do."""
    how = {each.name: getattr(checked, each.name) for each in dataclasses.fields(EndpointOptions)}
    how |= {"urls": endpoint.urls, "model": None, "give_up_after": endpoint.give_up_after}  # of a server that runs
    options = RunOptions(
        inputs=(documents,),
        output=output,
        shard_bytes=shard_bytes,
        max_dead_letter_ratio=0.0,
        beam=checked.beam,
        **how,
    )
    lines: list[str] = []
    if run(options, lines.append) is not ExitCode.DONE:
        raise PipelineFailed(*lines, code=ExitCode.TOO_MANY_DEAD_LETTERS)
    verify(VerifyOptions(output=output), lines.append)


def _findings(endpoint: EndpointSettings, profile: EndpointProfile) -> Iterator[str]:
    for url in endpoint.urls:
        client = TeiClient(dataclasses.replace(endpoint, urls=(url,)))
        try:
            info = client.info()
        finally:
            client.close()
        yield f"endpoint: {url} answers, TEI {info.version}{_token_note(endpoint, url)}"
        longer = "truncated" if endpoint.overlong.value == "truncate" else "dead letters"
        yield (
            f"limits: {count(info.max_concurrent_requests, 'text')} in flight, "
            f"{info.max_client_batch_size:,} a request, {count(info.max_input_length, 'token')} a text; "
            f"longer ones are {longer}"
        )
    identity = profile.identity
    yield (
        f"model: {identity.model_id}, revision {identity.sha or 'unknown'}, {identity.dtype}, "
        f"{identity.pooling} pooling, {count(identity.dimensions, 'dimension')}"
    )
    yield (
        f"wire format: {profile.wire.format.value}; probe sentences have the same vectors alone and in a batch "
        f"(cosine {profile.space.min_cosine} or better is the same)"
    )


def _token_note(endpoint: EndpointSettings, url: str) -> str:
    """Return whether the token was needed: a server that answers without one has not checked it."""
    if endpoint.token is None:
        return ""
    anonymous = connect(dataclasses.replace(endpoint, token=None))
    try:
        status = anonymous.get(f"{url.rstrip('/')}/info").status
    except NoReply:
        status = 0
    finally:
        anonymous.close()
    if status == 200:
        return "; it asks for no token, yours was not needed"
    return ", token accepted" if status in (401, 403) else ", token sent"
