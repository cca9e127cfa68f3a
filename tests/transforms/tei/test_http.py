from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from transforms.tei.errors import EndpointRefused
from transforms.tei.http import HttpTransport, NoReply

from .server import HANG_UP, Asked, Says, ScriptedTei, scripted


def transport(timeout: float = 5.0) -> HttpTransport:
    return HttpTransport(None, timeout, {})


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def test_a_reply_comes_whole_with_its_headers() -> None:
    with scripted(lambda _: Says(200, b"x" * 3_000_000, {"X-Compute-Tokens": "7"})) as tei:
        reply = transport().post(f"{tei.url}/embed", b"{}")
    assert reply.status == 200
    assert len(reply.body) == 3_000_000
    assert reply.headers["x-compute-tokens"] == "7"
    assert reply.seconds > 0
    assert tei.asked[0].headers["Content-Type"] == "application/json"


def test_one_connection_serves_many_requests() -> None:
    ports = set()
    with scripted() as tei:
        ours = transport()
        for _ in range(3):
            ours.get(f"{tei.url}/info")
            ports |= {connection.sock.getsockname() for connection in ours._connections if connection.sock}
    assert len(ports) == 1


def test_a_stale_connection_is_replaced_at_once() -> None:
    idle = threading.Event()

    def script(asked: Asked) -> Says | None:
        if idle.is_set():
            idle.clear()
            return HANG_UP
        return None

    with scripted(script) as tei:
        ours = transport()
        assert ours.get(f"{tei.url}/info").resent == 0
        idle.set()
        reply = ours.get(f"{tei.url}/info")
        assert reply.status == 200
        assert reply.resent == 1


def test_a_server_that_was_restarted_is_found_again() -> None:
    port = free_port()
    first = ScriptedTei(port=port)
    ours = transport()
    ours.get(f"{first.url}/info")
    first.close()
    second = ScriptedTei(port=port)
    assert ours.get(f"{second.url}/info").status == 200
    second.close()


def test_a_fresh_connection_that_fails_is_a_failure() -> None:
    with scripted(lambda _: HANG_UP) as tei:
        with pytest.raises(NoReply):
            transport().get(f"{tei.url}/info")
        assert len(tei.asked) == 1


def test_nobody_there() -> None:
    with pytest.raises(NoReply, match="refused"):
        transport().get(f"http://127.0.0.1:{free_port()}/info")


def test_a_reply_that_breaks_off_is_none() -> None:
    with (
        scripted(lambda _: Says(200, b"x" * 1000, cut=500)) as tei,
        pytest.raises(NoReply, match=r"broke off|reset|Reset"),
    ):
        transport().get(f"{tei.url}/info")


def test_a_server_that_does_not_answer_is_not_waited_for_longer_than_told() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(NoReply, match=r"within 0\.2 s"):
            transport(0.2).get(f"http://127.0.0.1:{silent.getsockname()[1]}/info")


def test_close_hangs_up_on_a_server_that_does_not_answer() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        ours = transport(60)
        failures: list[BaseException] = []

        def ask() -> None:
            try:
                ours.get(f"http://127.0.0.1:{silent.getsockname()[1]}/info")
            except NoReply as failure:
                failures.append(failure)

        thread = threading.Thread(target=ask)
        thread.start()
        connection, _ = silent.accept()
        connection.recv(1)
        began = time.monotonic()
        ours.close()
        thread.join(5)
        connection.close()
    assert len(failures) == 1
    assert time.monotonic() - began < 2


def test_a_redirect_is_not_followed() -> None:
    with scripted() as other, scripted(lambda _: Says(307, b"", {"Location": f"{other.url}/info"})) as tei:
        assert transport().get(f"{tei.url}/info").status == 307
        assert not other.asked


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with scripted(lambda _: Says(200, b"from the proxy")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert transport().get("http://tei.invalid/info").body == b"from the proxy"
        assert proxy.asked[0].path == "http://tei.invalid/info"


def test_a_netrc_file_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(netrc))
    with scripted() as tei:
        transport().get(f"{tei.url}/info")
        assert "Authorization" not in tei.asked[0].headers


def test_a_ca_bundle_that_is_not_there_is_a_persons_to_mend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "absent.pem"))
    with pytest.raises(EndpointRefused, match=r"absent\.pem"):
        transport().get(f"https://127.0.0.1:{free_port()}/info")
