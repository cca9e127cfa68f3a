"""Bearer tokens by reference: a value is read where it is used, and is in no option, graph, log, pickle or message."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from transforms.tei.addresses import is_loopback
from transforms.tei.errors import EndpointRefused

SCHEMES = ("env", "file", "gsm")
FORMS = "env:NAME, file:PATH or gsm:projects/P/secrets/S/versions/V"
SECRET_MANAGER = "https://secretmanager.googleapis.com/v1/"


def check_reference(reference: str) -> None:
    """Refuses a token that is written out instead of being named.

    Raises:
        ValueError: it is no reference. The message does not repeat it, because it may be the secret itself.
    """
    scheme, colon, name = reference.partition(":")
    if not colon or scheme not in SCHEMES or not name:
        raise ValueError(f"the token must be named, not written out: {FORMS}")


def resolve_token(
    reference: str,
    environment: Mapping[str, str] = os.environ,
    fetch_secret: Callable[[str], bytes] | None = None,
) -> str:
    """The token's value.

    Args:
        reference: `env:NAME`, `file:PATH`, or `gsm:projects/P/secrets/S/versions/V`.
        environment: where `env:` looks.
        fetch_secret: reads a secret's payload by its resource name; by default Google's Secret Manager.

    Raises:
        EndpointRefused: there is no usable value; the message names the reference, never the value.
        ValueError: it is no reference.
    """
    check_reference(reference)
    scheme, _, name = reference.partition(":")
    if scheme == "env":
        value = environment.get(name, "")
    elif scheme == "file":
        value = _read_file(reference, Path(name))
    else:
        value = _read_secret(reference, name, fetch_secret or fetch_from_secret_manager)
    return _usable(reference, value.strip())


def travels_in_the_clear(url: str) -> bool:
    """Whether a token sent to this URL could be read on its way: plain http to another host."""
    return urlsplit(url).scheme == "http" and not is_loopback(url)


def _read_file(reference: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        # `from None`: a decoding error holds the file's bytes.
        raise EndpointRefused(f"the token {reference} cannot be read on this machine: {type(error).__name__}") from None


def _read_secret(reference: str, name: str, fetch: Callable[[str], bytes]) -> str:
    try:
        return fetch(name).decode("utf-8")
    except Exception as error:  # noqa: BLE001  (whatever goes wrong inside the fetcher may hold the secret)
        raise EndpointRefused(
            f"the token {reference} cannot be read: {type(error).__name__}; does this worker's service account "
            "have the role Secret Manager Secret Accessor?"
        ) from None


def _usable(reference: str, value: str) -> str:
    if not value:
        raise EndpointRefused(f"the token {reference} is empty or not set on this machine")
    if not value.isascii() or not value.isprintable():
        raise EndpointRefused(f"the token {reference} holds characters that cannot be sent in an HTTP header")
    return value


def fetch_from_secret_manager(name: str, address: str = SECRET_MANAGER, credentials: Any = None) -> bytes:
    """A secret's payload, by its resource name; anything that goes wrong raises.

    Args:
        name: `projects/P/secrets/S/versions/V`.
        address: of the service's REST API.
        credentials: of Google's library; None for those of this machine.
    """
    # Imported here: only who keeps the token in Secret Manager needs Google's library.
    import google.auth
    from google.auth.transport.requests import AuthorizedSession

    if credentials is None:
        credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    with AuthorizedSession(credentials) as session:
        reply = session.get(f"{address}{name}:access", timeout=30, allow_redirects=False)
        reply.raise_for_status()
        return base64.b64decode(reply.json()["payload"]["data"])
