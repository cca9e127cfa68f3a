"""Refusals in words that a person can act on."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from transforms.tei.error_table import Verdict
from transforms.tei.errors import EndpointRefused
from transforms.tei.settings import EndpointSettings


def refusal(
    url: str, verdict: Verdict, settings: EndpointSettings, headers: Mapping[str, str] | None = None
) -> EndpointRefused:
    """The error that stops the run: the URL, the status, and what to mend."""
    said = f": {verdict.message}" if verdict.message else ""
    return EndpointRefused(f"{url} answered {verdict.status}{said}. {_remedy(verdict, settings, headers or {})}")


def _remedy(verdict: Verdict, settings: EndpointSettings, headers: Mapping[str, str]) -> str:
    status = verdict.status or 0
    if status == 401:
        if settings.token is None:
            return "It wants a token: name one with --token (env:NAME, file:PATH or gsm:RESOURCE)"
        return f"It does not accept the token named by --token {settings.token}"
    if status == 403:
        return "The token, or the lack of one, gives no right to this endpoint"
    if status in (404, 405):
        return "--endpoint wants the server's base URL, without a path such as /embed or /v1"
    if 300 <= status < 400:
        target = _shown(headers.get("location"))
        return f"It redirects to {target}: redirects are not followed; name the right URL with --endpoint"
    if status == 400:
        return "A paused or failed Inference Endpoint says this: resume it at https://endpoints.huggingface.co"
    if status == 424:
        return "It does not serve a model that gives one vector a text"
    if status in (413, 422) and "prompt" in verdict.message:
        return f"The model does not know the prompt of --prompt_name {settings.prompt_name}"
    if status in (413, 422):
        return "It refuses even a short known sentence under this job's settings"
    return "Tayyar knows no way around this answer"


def _shown(location: str | None) -> str:
    if not location:
        return "nowhere"
    try:
        parts = urlsplit(location)
    except ValueError:
        return "an address that cannot be read"
    return f"{parts.scheme}://{parts.hostname}{parts.path}" if parts.hostname else parts.path
