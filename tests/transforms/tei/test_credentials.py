from __future__ import annotations

import base64
import copy
import logging
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from google.oauth2.credentials import Credentials as GoogleCredentials

from transforms.tei.client import TeiClient, connect
from transforms.tei.credentials import Credentials, fetch_from_secret_manager, parse_header, resolve
from transforms.tei.errors import EndpointError, EndpointRefused
from transforms.tei.settings import EndpointSettings, travels_in_the_clear
from transforms.tei.transport import HttpTransport

from .server import Asked, Says, scripted

SECRET = "hf_verySecretIndeed"


def test_a_token_is_read_where_its_name_points(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{SECRET}\n", encoding="utf-8")
    name = "projects/p/secrets/s/versions/1"
    assert resolve("env:TEI_TOKEN", {"TEI_TOKEN": SECRET}) == SECRET
    assert resolve(f"file:{file}") == SECRET
    assert resolve(f"gsm:{name}", fetch_secret=lambda asked: f"{asked}\n".encode()) == name


def secret_manager(asked: Asked) -> Says:
    """Google's REST API, as far as it is used."""
    if {name.lower(): value for name, value in asked.headers.items()}.get("authorization") != "Bearer ya29":
        return Says(403, b'{"error": {"code": 403, "status": "PERMISSION_DENIED"}}')
    if asked.path == "/v1/projects/p/secrets/moved/versions/1:access":
        return Says(307, b"{}", {"Location": "/v1/projects/p/secrets/s/versions/1:access"})
    if asked.path != "/v1/projects/p/secrets/s/versions/1:access":
        return Says(404, b'{"error": {"code": 404, "status": "NOT_FOUND"}}')
    data = base64.b64encode(f"{SECRET}\n".encode()).decode()
    return Says(200, orjson.dumps({"name": "projects/1/secrets/s/versions/1", "payload": {"data": data}}))


@pytest.mark.parametrize(
    ("name", "access", "found"),
    [("s", "ya29", True), ("s", "ya28", False), ("other", "ya29", False), ("moved", "ya29", False)],
)
def test_a_token_is_fetched_from_the_secret_manager(name: str, access: str, found: bool) -> None:
    reference = f"gsm:projects/p/secrets/{name}/versions/1"
    with scripted(secret_manager) as service:

        def fetch(resource: str) -> bytes:
            return fetch_from_secret_manager(resource, f"{service.url}/v1/", GoogleCredentials(token=access))

        if found:
            assert resolve(reference, fetch_secret=fetch) == SECRET
        else:
            with pytest.raises(EndpointRefused, match="Secret Manager Secret Accessor"):
                resolve(reference, fetch_secret=fetch)
        assert len(service.asked) == 1


@pytest.mark.parametrize("written_out", [SECRET, f"bearer:{SECRET}", f"Bearer {SECRET}", "env:", ""])
def test_a_token_that_is_written_out_is_refused_and_not_repeated(written_out: str) -> None:
    with pytest.raises(ValueError, match="must be named") as raised:
        EndpointSettings(urls=("http://tei",), token=written_out)
    assert SECRET not in str(raised.value)


def refuse(_: str) -> bytes:
    raise RuntimeError(f"the payload was {SECRET}")


def test_a_token_that_cannot_be_read_is_not_shown(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff" + SECRET.encode())
    cases: list[Callable[[], str]] = [
        lambda: resolve("env:TEI_TOKEN", {}),
        lambda: resolve("env:TEI_TOKEN", {"TEI_TOKEN": f"{SECRET}\r\nX: y"}),
        lambda: resolve("env:TEI_TOKEN", {"TEI_TOKEN": f"{SECRET}é"}),
        lambda: resolve(f"file:{tmp_path / 'absent'}"),
        lambda: resolve(f"file:{binary}"),
        lambda: resolve("gsm:projects/p/secrets/s/versions/1", fetch_secret=refuse),
    ]
    for case in cases:
        with pytest.raises(EndpointRefused, match=r"(env|file|gsm):") as raised:
            case()
        assert SECRET not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize(
    ("url", "clear"),
    [
        ("http://tei.example", True),
        ("http://10.0.0.7:8080", True),
        ("https://tei.example", False),
        ("http://localhost:8080", False),
        ("http://127.0.0.1", False),
        ("http://[::1]:80", False),
    ],
)
def test_plain_http_to_another_host_shows_a_token(url: str, clear: bool) -> None:
    assert travels_in_the_clear(url) is clear


def test_a_token_that_travels_in_the_clear_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TEI_TOKEN", SECRET)
    connect(EndpointSettings(urls=("http://tei.example", "https://tei.example"), token="env:TEI_TOKEN"))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "http://tei.example" in caplog.text
    assert SECRET not in caplog.text


def shows_headers(asked: Asked) -> Says | None:
    if asked.path == "/info":
        return None
    return Says(403, f"<html>no rights for {asked.headers['Authorization']}</html>".encode())


def test_a_token_is_sent_and_shown_nowhere(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("TEI_TOKEN", SECRET)
    caplog.set_level(logging.DEBUG)
    with scripted(shows_headers) as tei:
        settings = EndpointSettings(urls=(tei.url,), token="env:TEI_TOKEN")
        client = TeiClient(settings)
        with pytest.raises(EndpointRefused, match="403") as raised:
            client.submit(["text"])
        client.close()
        assert {asked.headers["Authorization"] for asked in tei.asked} == {f"Bearer {SECRET}"}
    shown = "".join(traceback.format_exception(raised.value)) + caplog.text + repr(settings) + repr(raised.value)
    assert "[redacted]" in shown
    assert SECRET not in shown
    assert SECRET.encode() not in pickle.dumps((settings, raised.value))


def test_a_transport_is_neither_shown_nor_pickled() -> None:
    credentials = Credentials("env:TOKEN", environment={"TOKEN": SECRET})
    transport = HttpTransport(credentials, 1.0)
    for one in (credentials, transport):
        assert SECRET not in repr(one)
        with pytest.raises(TypeError):
            pickle.dumps(one)
        with pytest.raises(TypeError):
            copy.copy(one)


@pytest.mark.parametrize("url", ["http://user:pass@tei", "ftp://tei", "tei:8080", "http://", "http://tei/?key=1"])
def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="endpoint") as raised:
        EndpointSettings(urls=(url,))
    assert "pass" not in str(raised.value).replace("password", "")


def test_errors_cross_processes() -> None:
    kinds: list[type[EndpointError]] = [EndpointError, *EndpointError.__subclasses__()]
    for kind in kinds:
        error = pickle.loads(pickle.dumps(kind("why")))
        assert type(error) is kind
        assert str(error) == "why"


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        ("x-api-key: env:KEY", ("x-api-key", "env:KEY")),
        ("api-key:file:/run/key", ("api-key", "file:/run/key")),
        ("X-HF-Bill-To: literal:my-org", ("X-HF-Bill-To", "literal:my-org")),
    ],
)
def test_a_header_names_where_its_value_is(given: str, parsed: tuple[str, str]) -> None:
    assert parse_header(given) == parsed


@pytest.mark.parametrize(
    "given",
    [
        f"x-api-key: {SECRET}",
        f"x-api-key: literal:{SECRET}",
        f"X-Team: literal:{SECRET}1234567890123456789012345",
        f"X-Team: literal:a/{SECRET}",
        f"X-HF-Bill-To: literal:{SECRET}",
        "X-HF-Bill-To: literal:AbCd1234EfGh5678IjKl9012",
        f"Authorization: literal:{SECRET}",
        f"{SECRET}",
        f"bad name: env:{SECRET}",
        "Host: env:HOST",
    ],
)
def test_a_header_whose_value_may_be_a_secret_is_refused_and_not_repeated(given: str) -> None:
    with pytest.raises(ValueError, match="header") as raised:
        parse_header(given)
    assert SECRET not in str(raised.value)


def test_headers_are_sent_and_their_values_shown_nowhere() -> None:
    def script(asked: Asked) -> Says:
        return Says(403, f"no rights for {asked.headers['x-api-key']} {asked.headers['Authorization']}".encode())

    environment = {"KEY": SECRET, "BASIC": "Basic dXNlcjpwYXNzd29yZA=="}
    headers = [("x-api-key", "env:KEY"), ("Authorization", "env:BASIC"), ("X-HF-Bill-To", "literal:org")]
    with scripted(script) as tei:
        reply = HttpTransport(Credentials(None, headers, environment), 5.0).get(f"{tei.url}/info")
        assert tei.asked[0].headers["x-api-key"] == SECRET
        assert tei.asked[0].headers["Authorization"] == environment["BASIC"]
        assert tei.asked[0].headers["X-HF-Bill-To"] == "org"
    assert reply.body == b"no rights for [redacted] [redacted]"


def test_a_token_in_a_file_is_read_again_after_a_401(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first-token")

    def script(asked: Asked) -> Says | None:
        return None if asked.headers["Authorization"] == "Bearer second-token" else Says(401)

    with scripted(script) as tei:
        transport = HttpTransport(Credentials(f"file:{file}"), 5.0)
        assert transport.get(f"{tei.url}/info").status == 401
        assert len(tei.asked) == 1  # the file has not changed, so nothing new can be tried
        file.write_text("second-token")
        assert transport.get(f"{tei.url}/info").status == 200
        assert transport.get(f"{tei.url}/info").status == 200
        assert len(tei.asked) == 4


def test_what_a_proxy_echoes_of_its_password_is_not_shown() -> None:
    environment = {"http_proxy": "http://me:hunter%402secret@proxy:8080"}
    credentials = Credentials(environment=environment)
    basic = base64.b64encode(b"me:hunter@2secret").decode()
    shown = credentials.redact(f"407 for {basic}, me:hunter%402secret, hunter@2secret")
    assert basic not in shown
    assert "hunter" not in shown
