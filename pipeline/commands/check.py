"""The command `check`: everything that a long run needs, tried before it: endpoint, output folder, and the runner."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

from apache_beam.io.filesystems import FileSystems

from pipeline.commands.options import CheckOptions, RunOptions, VerifyOptions
from pipeline.commands.run import run
from pipeline.commands.verify import verify
from pipeline.errors import ExitCode, PipelineFailed, UsageError
from pipeline.job.preflight import require_usable
from pipeline.reporting.numbers import count
from pipeline.runners.endpoint import reached
from pipeline.runners.runner import beam_options
from pipeline.runners.smoke_test import rehearse
from transforms.output.folder import OutputFolder
from transforms.tei.client import TeiClient, connect
from transforms.tei.handshake import EndpointProfile
from transforms.tei.settings import EndpointSettings
from transforms.tei.transport import NoReply

_PATIENCE = 10.0  # seconds


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
    if not options.endpoint.urls:
        model = options.model or "Tayyar's own small model"
        say(f"without --endpoint: checking {model}, which is started here")
    # A person waits for the answer, so an endpoint that is not there is reported within seconds.
    impatient = dataclasses.replace(options.endpoint, give_up_after=min(options.endpoint.give_up_after, _PATIENCE))
    with reached(
        impatient if options.endpoint.urls else options.endpoint,
        options.expected_dimensions,
        model=options.model,
        every_url=True,
    ) as (endpoint, profile):
        for line in _findings(endpoint, profile):
            say(line)
        if options.output is not None:
            require_usable(OutputFolder(options.output, run="check"))
            say(f"output: {options.output} can be written and read")
            if options.beam:
                smoke_test = partial(_embed_and_prove, options.beam)
                say(f"runner: {rehearse(options.output, endpoint, options.beam, smoke_test)}")
    say("passed")
    return ExitCode.DONE


def _embed_and_prove(
    beam: tuple[str, ...], documents: str, output: str, endpoint: EndpointSettings, shard_bytes: int
) -> None:
    """Do what `run` and `verify` do with a few documents; raises as they do."""
    options = RunOptions(
        inputs=(documents,),
        output=output,
        endpoint=endpoint,
        text_field="content",
        embedding_field="embedding",
        expected_dimensions=None,
        shard_bytes=shard_bytes,
        max_dead_letter_ratio=0.0,
        price_per_hour=None,
        overwrite=False,
        beam=beam,
    )
    lines: list[str] = []
    if run(options, lines.append) is not ExitCode.DONE:
        raise PipelineFailed("\n".join(lines), ExitCode.TOO_MANY_DEAD_LETTERS)
    verify(VerifyOptions(output), lines.append)


def _findings(endpoint: EndpointSettings, profile: EndpointProfile) -> Iterator[str]:
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
    identity = profile.identity
    yield (
        f"model: {identity.model_id}, revision {identity.sha or 'unknown'}, {identity.dtype}, "
        f"{identity.pooling} pooling, {count(identity.dimensions, 'dimension')}"
    )
    yield (
        f"wire format: {profile.wire.format.value}; probe sentences have the same vectors alone and in a batch "
        f"(cosine {profile.space.min_cosine} or better is the same)"
    )


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
