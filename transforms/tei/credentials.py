"""Secrets by reference: a value is read where it is used, and is in no option, graph, log, pickle or message."""

from __future__ import annotations

import base64
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from transforms.tei.errors import EndpointRefused

SCHEMES = ("env", "file", "gsm")
RENEWABLE = ("file", "gsm")  # a process's environment cannot be changed from outside
FORMS = "env:NAME, file:PATH or gsm:projects/P/secrets/S/versions/V"
SECRET_MANAGER = "https://secretmanager.googleapis.com/v1/"
LITERAL = "literal:"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SECRET_HEADER = re.compile(r"auth|key|token|secret|password|cookie|credential|signature", re.IGNORECASE)
_PLAIN_VALUE = re.compile(r"[A-Za-z][A-Za-z0-9 _.-]{0,38}")  # an organisation's or a team's name; no key looks so
# Known beginnings of keys, and anything long that mixes letters and digits.
_KEY_LIKE = re.compile(r"(?:hf_|sk-|gh[a-z]_|glpat|xox|akia)|(?=.*\d)(?=.*[a-z]).{20}", re.IGNORECASE)
_MIN_REDACTED = 4  # characters; shorter ones are no secret and would blacken every message


def check_reference(reference: str) -> None:
    """Refuse a secret that is written out instead of being named.

    Raises:
        ValueError: it is not a reference. The message does not repeat it, because it may be the secret itself.
    """
    scheme, colon, name = reference.partition(":")
    if not colon or scheme not in SCHEMES or not name:
        raise ValueError(f"the token must be named, not written out: {FORMS}")


def parse_header(text: str) -> tuple[str, str]:
    """Return name and reference of a header given as `NAME: REFERENCE`.

    A literal (`X-HF-Bill-To: literal:org`) is taken only where neither the name nor the value looks like a secret.

    Raises:
        ValueError: it is not of this form. The message repeats the name alone.
    """
    name, colon, reference = text.partition(":")
    name, reference = name.strip(), reference.strip()
    if not colon or not _HEADER_NAME.fullmatch(name):
        raise ValueError(f"a header is given as 'NAME: REFERENCE', where the reference is {FORMS}")
    if name.lower() in ("host", "content-length", "content-type", "transfer-encoding", "connection", "expect"):
        raise ValueError(f"the header {name} is the client's own and cannot be set")
    if reference.startswith(LITERAL):
        value = reference[len(LITERAL) :]
        if _SECRET_HEADER.search(name) or not _PLAIN_VALUE.fullmatch(value) or _KEY_LIKE.match(value):
            raise ValueError(f"the value of the header {name} may be a secret: name it instead of writing it ({FORMS})")
        return name, reference
    try:
        check_reference(reference)
    except ValueError:
        raise ValueError(
            f"the value of the header {name} must be named, not written out: {FORMS}, "
            "or literal:VALUE for what is plainly no secret"
        ) from None
    return name, reference


class Credentials:
    """The headers that authenticate requests, with their values resolved on this machine.

    Args:
        token: reference to a bearer token; None for none.
        headers: pairs of a header's name and its value's reference.
        environment: where `env:` looks, and where proxies' addresses are, whose passwords are redacted, too.
        fetch_secret: reads a secret's payload by its resource name; by default Google's Secret Manager.

    Attributes:
        headers: as `Name: value`.
        version: how often they were read anew.

    Raises:
        EndpointRefused: a reference cannot be resolved; the message names it, never a value.
    """

    def __init__(
        self,
        token: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
        environment: Mapping[str, str] = os.environ,
        fetch_secret: Callable[[str], bytes] | None = None,
    ) -> None:
        self._references = [*([("Authorization", token)] if token else []), *headers]
        self._token = token
        self._environment = environment
        self._fetch_secret = fetch_secret
        self._lock = threading.Lock()
        self._secrets: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            for variable in (name, name.upper()):
                self._hide_user_of(environment.get(variable, ""))
        self.version = 0
        self.headers: tuple[str, ...] = ()
        self._resolve()

    def __repr__(self) -> str:
        """Name the class alone."""
        return "Credentials()"

    def __reduce__(self) -> str:
        """Refuse: a pickle would hold secrets."""
        raise TypeError("credentials belong to their process")

    def reload(self, version: int) -> bool:
        """Read references of `file:` and `gsm:` again after a 401; return whether there is something new to try.

        Args:
            version: of the headers that were refused.
        """
        with self._lock:
            if self.version != version:
                return True
            if not any(reference.startswith(RENEWABLE) for _, reference in self._references):
                return False
            former = self.headers
            self._resolve()
            if self.headers == former:
                return False
            self.version += 1
            return True

    def redact(self, text: str) -> str:
        """Return a text without any of the secrets, also where their characters are escaped."""
        return self._pattern.sub("[redacted]", text) if self._pattern else text

    def _resolve(self) -> None:
        headers = []
        for name, reference in self._references:
            if reference.startswith(LITERAL):
                headers.append(f"{name}: {reference[len(LITERAL) :]}")
                continue
            value = resolve(reference, self._environment, self._fetch_secret)
            self._hide(value)
            if value.lower().startswith("basic "):
                self._hide(value[len("basic ") :].strip())
            headers.append(f"{name}: Bearer {value}" if reference is self._token else f"{name}: {value}")
        self.headers = tuple(headers)

    def _hide_user_of(self, url: str) -> None:
        """Hide what a proxy's address holds of a user, as it stands there, decoded, and as it is sent."""
        with_scheme = url if "://" in url else f"//{url}"
        try:
            parts = urlsplit(with_scheme)
            user, password = parts.username or "", parts.password or ""
        except ValueError:
            return
        if password:
            self._hide(password)
            self._hide(unquote(password))
            self._hide(base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode())

    def _hide(self, secret: str) -> None:
        if len(secret) < _MIN_REDACTED or secret in self._secrets:
            return
        self._secrets.add(secret)
        longest_first = sorted(self._secrets, key=len, reverse=True)
        # Hexadecimal digits come in both cases; a secret in another case than its own is better hidden, too.
        self._pattern = re.compile("|".join(map(_any_spelling, longest_first)), re.IGNORECASE)


def _any_spelling(secret: str) -> str:
    """Return a pattern that finds a text also where some characters are escaped as in JSON, a URL or HTML."""

    def spellings(character: str) -> str:
        code = ord(character)
        return f"(?:\\\\?{re.escape(character)}|\\\\u{code:04x}|%{code:02x}|&#0*{code};|&#x0*{code:x};)"

    return "".join(map(spellings, secret))


def resolve(
    reference: str,
    environment: Mapping[str, str] = os.environ,
    fetch_secret: Callable[[str], bytes] | None = None,
) -> str:
    """Return a secret's value.

    Args:
        reference: `env:NAME`, `file:PATH`, or `gsm:projects/P/secrets/S/versions/V`.
        environment: where `env:` looks.
        fetch_secret: reads a secret's payload by its resource name; by default Google's Secret Manager.

    Raises:
        EndpointRefused: there is no usable value; the message names the reference, never the value.
        ValueError: it is not a reference.
    """
    check_reference(reference)
    scheme, _, name = reference.partition(":")
    if scheme == "env":
        value = environment.get(name, "")
    elif scheme == "file":
        value = _read_file(reference, Path(name))
    else:
        value = _read_secret(reference, name, fetch_secret or fetch_from_secret_manager)
    value = value.strip()
    if not value:
        raise EndpointRefused(f"the secret {reference} is empty or not set on this machine")
    if not value.isascii() or not value.isprintable():
        raise EndpointRefused(f"the secret {reference} holds characters that cannot be sent in an HTTP header")
    return value


def _read_file(reference: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        # `from None`: a decoding error holds the file's bytes.
        raise EndpointRefused(
            f"the secret {reference} cannot be read on this machine: {type(error).__name__}"
        ) from None


def _read_secret(reference: str, name: str, fetch: Callable[[str], bytes]) -> str:
    try:
        return fetch(name).decode("utf-8")
    except Exception as error:  # noqa: BLE001  (whatever goes wrong inside the fetcher may hold the secret)
        raise EndpointRefused(
            f"the secret {reference} cannot be read: {type(error).__name__}; does this worker's service account "
            "have the role Secret Manager Secret Accessor?"
        ) from None


def fetch_from_secret_manager(name: str, address: str = SECRET_MANAGER, credentials: Any = None) -> bytes:
    """Return a secret's payload, by its resource name; anything that goes wrong raises.

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
