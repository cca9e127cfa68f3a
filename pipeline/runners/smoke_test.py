"""Ten documents through the real runner, before millions: what fails only on a worker fails here."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Sequence

from apache_beam.options.pipeline_options import StandardOptions

from pipeline.errors import ExitCode, NotProven, PipelineFailed, message_lines
from pipeline.runners.runner import beam_options
from transforms.output.folder import OutputFolder
from transforms.storage import api as storage
from transforms.storage.base import StorageError
from transforms.tei.errors import EndpointError, EndpointUnreachable
from transforms.tei.settings import EndpointSettings, is_loopback

# Of one length: each is a shard, so that they spread over as many workers as ten can.
_DOCUMENTS = [f'{{"content": "Document {number} of a smoke test: الماء يجري"}}\n'.encode() for number in range(10)]
_GIVE_UP_SECONDS = 60.0  # the launcher has just reached the endpoint
EmbedAndProve = Callable[[str, str, EndpointSettings, int], None]
_REMEDIES = (
    (
        r"No module named '?(transforms|pipeline)\b",
        "Workers lack Tayyar itself: give --setup_file ./setup.py to a runner that installs packages; otherwise "
        "install it where workers start.",
    ),
    (
        r"(No module named|cannot import name)",
        "Workers lack a package that Tayyar needs: install it where they start, in the versions of this machine.",
    ),
    (
        r"\bdocker\b.*(No such file|not found|cannot connect|daemon)",
        "The runner starts workers with Docker, which is not there: give --environment_type EXTERNAL and "
        "--environment_config HOST:PORT of a worker pool (run_scripts/flink.sh workers).",
    ),
    (
        r"the secret \S+ (cannot|is|holds)",
        "References of secrets are resolved on each worker: set the variable where workers start, or name one "
        "that they may read (gsm:…).",
    ),
)


def run_smoke_test(root: str, endpoint: EndpointSettings, beam: Sequence[str], embed_and_prove: EmbedAndProve) -> str:
    """Embed ten documents with a runner, prove them, and remove all of it.

    Args:
        root: the output folder; the documents and what becomes of them are put into a temporary place below it.
        endpoint: reached from here already; its `space` may be known.
        beam: arguments for Beam.
        embed_and_prove: runs and verifies the job; gets the input, the output folder, the endpoint and a shard's bytes.

    Returns:
        what held, for the person at the terminal.

    Raises:
        UsageError: the runner's options cannot be used.
        PipelineFailed: something does not hold on the workers; the message gives the remedy.
    """
    runner = beam_options(beam).view_as(StandardOptions).runner
    name = f"smoke-test-{socket.gethostname()}-{os.getpid()}"
    parent = OutputFolder(root, name)
    place = OutputFolder(f"{root}/{parent.temporary}/{name}", name)
    started = time.monotonic()
    try:
        place.write("in/documents.ndjson", _DOCUMENTS)
        patient = dataclasses.replace(endpoint, give_up_after=min(endpoint.give_up_after, _GIVE_UP_SECONDS))
        embed_and_prove(place.path("in/documents.ndjson"), place.path("out"), patient, len(_DOCUMENTS[0]))
    except (EndpointError, StorageError, PipelineFailed, NotProven) as error:
        first, *more = message_lines(error)
        raise PipelineFailed(
            f"{runner} did not embed ten documents: {first}",
            *more,
            _remedy(error, endpoint, root),
            code=_code(error),
        ) from error
    finally:
        _remove(parent, f"{parent.temporary}/{name}")
        parent.tidy()
    return f"{runner} embedded ten documents and wrote them in {time.monotonic() - started:.0f} s"


def _remove(parent: OutputFolder, place: str) -> None:
    parent.delete(parent.list(place))
    if storage.is_local(parent.root):
        shutil.rmtree(parent.path(place), ignore_errors=True)


def _code(error: Exception) -> ExitCode:
    if isinstance(error, EndpointError):
        return ExitCode.ENDPOINT
    return error.code if isinstance(error, PipelineFailed) else ExitCode.FAILED


def _remedy(error: Exception, endpoint: EndpointSettings, root: str) -> str:
    """Return what to do about an error that shows on workers alone: from here, all of it was found well."""
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, str(error), re.IGNORECASE | re.DOTALL):
            return remedy
    if isinstance(error, EndpointUnreachable) and any(map(is_loopback, endpoint.urls)):
        return "For a worker, 127.0.0.1 is the worker's own machine: give --endpoint an address that workers can reach."
    if isinstance(error, EndpointUnreachable):
        return (
            "This machine reaches the endpoint, a worker does not: look at its network, firewall rules and name server."
        )
    if isinstance(error, EndpointError):
        return "From this machine the endpoint does it; see what is different for a worker."
    if storage.is_local(root):
        return f"Every worker must see the folder {root} as this machine does: give a bucket or a shared folder."
    return f"From this machine {root} can be written and read; see whether the workers' account may, too."
