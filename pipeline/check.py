"""The command `check`: reach the endpoint, embed a probe, write and read the output folder, before a long run does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from pipeline.endpoint import reached
from pipeline.errors import ExitCode, UsageError
from pipeline.options import CheckOptions
from transforms.files import StorageError
from transforms.output import OutputFolder
from transforms.tei.client import TeiClient
from transforms.tei.settings import EndpointSettings, ModelIdentity

_PROBE = b'{"tayyar": "a probe"}\n'


def check(options: CheckOptions, say: Callable[[str], None] = print) -> ExitCode:
    """Try everything that a run needs, and say what was found.

    Args:
        options: the endpoint, and the output folder if there is one.
        say: takes the lines for the person at the terminal.

    Returns:
        DONE.

    Raises:
        EndpointError: if the endpoint cannot do the job; the message says what to mend.
        UsageError: if the output folder cannot be written and read.
    """
    with reached(options.endpoint, options.expected_dimensions, every_url=True) as (endpoint, wire_format):
        for line in _findings(endpoint, wire_format):
            say(line)
    if options.output is not None:
        require_usable(OutputFolder(options.output, run="check"))
        say(f"output: {options.output} can be written and read")
    say("passed")
    return ExitCode.DONE


def _findings(endpoint: EndpointSettings, wire_format: str) -> Iterator[str]:
    for url in endpoint.urls:
        client = TeiClient(dataclasses.replace(endpoint, urls=(url,)))
        try:
            info = client.info()
        finally:
            client.close()
        yield f"endpoint: {url} answers, TEI {info.version}" + (", token accepted" if endpoint.token else "")
        yield (
            f"limits: {info.max_concurrent_requests} texts in flight, {info.max_client_batch_size} a request, "
            f"{info.max_input_length} tokens a text; longer ones are "
            + ("cut" if endpoint.overlong.value == "truncate" else "dead letters")
        )
    yield f"model: {_described(endpoint.identity)}"
    yield f"wire format: {wire_format}; a probe came back the same twice"


def _described(identity: ModelIdentity | None) -> str:
    if identity is None:
        raise RuntimeError("the endpoint was not probed")
    return (
        f"{identity.model_id}, revision {identity.sha or 'not told'}, {identity.dtype}, "
        f"{identity.pooling} pooling, {identity.dimensions} dimensions"
    )


def require_usable(output: OutputFolder) -> None:
    """Write a file, read it back and delete it.

    Raises:
        StorageError: if the bucket is not there or not to be used.
        UsageError: if one of these fails otherwise.
    """
    name = f"{output.temporary}/check"
    try:
        output.write(name, [_PROBE])
        found = output.read(name)
        output.delete([name])
        output.tidy()
    except StorageError:
        raise
    except Exception as error:  # each object store's client has errors of its own
        raise UsageError(
            f"--output {output.root} cannot be written: {error}. Check its permissions, or give another folder."
        ) from error
    if found != _PROBE:
        raise UsageError(f"--output {output.root} does not give back what was written to it. Give another folder.")
