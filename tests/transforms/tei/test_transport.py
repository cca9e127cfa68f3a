from __future__ import annotations

import contextlib
import gc
import os
import queue
import socket
import ssl
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from transforms.tei.credentials import Credentials
from transforms.tei.errors import EndpointRefused
from transforms.tei.transport import HttpTransport, NoReply

from .server import HANG_UP, Asked, Says, Script, ScriptedTei, scripted

SECRET = "hf_verySecretIndeed"


def transport(timeout: float = 5.0, token: str | None = None) -> HttpTransport:
    if token is None:
        return HttpTransport(Credentials(), timeout)
    return HttpTransport(Credentials("env:TOKEN", environment={"TOKEN": token, **os.environ}), timeout)


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
    with scripted() as tei:
        ours = transport()
        for _ in range(3):
            ours.get(f"{tei.url}/info")
        assert len(tei.accepted) == 1


def test_a_stale_connection_is_replaced_at_once() -> None:
    idle = threading.Event()

    def script(asked: Asked) -> Says | None:
        if idle.is_set():
            idle.clear()
            return HANG_UP
        return None

    with scripted(script) as tei:
        ours = transport()
        ours.get(f"{tei.url}/info")
        idle.set()
        assert ours.get(f"{tei.url}/info").status == 200
        assert len(tei.accepted) == 2


@contextmanager
def answering() -> Iterator[tuple[str, queue.Queue[socket.socket]]]:
    """A server that answers once on each connection; gives its address and, after their replies, its connections."""
    answered = queue.Queue[socket.socket]()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue")
                answered.put(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/embed", answered
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_connection_that_ended_while_it_was_idle_is_not_used() -> None:
    with answering() as (url, answered):
        ours = transport()
        for _ in range(2):
            assert ours.post(url, b"{}").body == b"true"
            answered.get().close()


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
    with pytest.raises(NoReply, match="Could not connect"):
        transport().get(f"http://127.0.0.1:{free_port()}/info")


def test_a_reply_that_breaks_off_is_none() -> None:
    with (
        scripted(lambda _: Says(200, b"x" * 1000, cut=500)) as tei,
        pytest.raises(NoReply, match=r"missing|reset|Recv failure"),
    ):
        transport().get(f"{tei.url}/info")


def test_a_server_that_does_not_answer_is_not_waited_for_longer_than_told() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(NoReply, match="timed out after 2"):
            transport(0.2).get(f"http://127.0.0.1:{silent.getsockname()[1]}/info")


def test_close_hangs_up_on_a_server_that_does_not_answer() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        ours = transport(600)
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
        ours.close()
        thread.join()
        connection.close()
    assert [str(failure) for failure in failures] == ["the client was closed"]


def test_a_redirect_is_not_followed() -> None:
    with scripted() as other, scripted(lambda _: Says(307, b"", {"Location": f"{other.url}/info"})) as tei:
        assert transport().get(f"{tei.url}/info").status == 307
        assert not other.asked


def test_a_proxy_that_is_not_there_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:3128")
    with pytest.raises(
        EndpointRefused, match=r"http_proxy or https_proxy names\. Correct the variable, or add .* no_proxy"
    ):
        transport().get("http://tei.invalid/info")


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


@contextmanager
def saying(*parts: bytes, pause: float = 0.0, hears: int = 1, lingers: bool = False) -> Iterator[str]:
    """A server that reads a little, says its parts on every connection, whatever it is asked, and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.recv(hears)
                for part in parts:
                    connection.sendall(part)
                    over.wait(pause)
                # As real servers do: closing with bytes unread would reset the connection, perhaps before the client
                # has read what was sent.
                connection.shutdown(socket.SHUT_WR)
                while lingers and connection.recv(1 << 20):
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/embed"
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def dripping(head: bytes, drops: int = 60) -> list[bytes]:
    return [head, *[b"x"] * drops]


@pytest.mark.parametrize(
    "parts", [dripping(b"HTTP/1.1 200 OK\r\nA: "), dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n")]
)
def test_a_server_that_drips_is_not_waited_for_longer_than_told(parts: list[bytes]) -> None:
    with saying(*parts, pause=0.05) as url, pytest.raises(NoReply, match="timed out after 3"):
        transport(0.3).post(url, b"{}")


def test_a_server_that_does_not_read_is_not_waited_for_longer_than_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/embed"
        with pytest.raises(NoReply, match="timed out after 3"):
            transport(0.3).post(url, bytes(50_000_000))


def test_a_stale_connection_is_replaced_within_the_same_time() -> None:
    with scripted() as tei:
        ours = transport(0.3)
        ours.get(f"{tei.url}/info")
        tei.script = lambda _: HANG_UP
        with pytest.raises(NoReply):
            ours.get(f"{tei.url}/info")
        assert len(tei.accepted) >= 2


def test_who_refuses_a_long_body_before_it_has_read_it_is_heard() -> None:
    says = b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 8\r\n\r\ntoo long"
    with saying(says, lingers=True) as url:
        reply = transport().post(url, bytes(30_000_000))
    assert (reply.status, reply.body) == (413, b"too long")


def test_a_reply_that_is_none_does_not_show_the_token() -> None:
    with saying(f"ERR Bearer {SECRET} is unknown\r\n\r\n".encode()) as url, pytest.raises(NoReply) as raised:
        transport(token=SECRET).get(url)
    assert SECRET not in "".join(traceback.format_exception(raised.value))


def test_a_server_that_ends_each_connection_is_asked_on_new_ones() -> None:
    def script(_: Asked) -> Says:
        return Says(200, b"once", {"Connection": "close"})

    with scripted(script) as tei:
        ours = transport()
        replies = [ours.get(f"{tei.url}/info") for _ in range(3)]
        assert [reply.body for reply in replies] == [b"once"] * 3
        assert len(tei.accepted) == 3


def _connecting(port: int) -> list[Any]:
    found = psutil.Process().net_connections("tcp")
    return [each for each in found if each.status == psutil.CONN_SYN_SENT and each.raddr.port == port]


def test_close_ends_a_connection_that_is_being_made() -> None:
    with socket.socket() as full, contextlib.ExitStack() as held:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        for _ in range(2):  # fill its queue: it answers no further connection
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        before = len(_connecting(port))
        ours = transport(60)
        failures: list[NoReply] = []

        def ask() -> None:
            with pytest.raises(NoReply, match="closed") as raised:
                ours.get(f"http://127.0.0.1:{port}/info")
            failures.append(raised.value)

        thread = threading.Thread(target=ask)
        thread.start()
        while len(_connecting(port)) == before:
            time.sleep(0.001)
        ours.close()
        thread.join(5)  # libcurl by itself gives up after ten seconds
        assert len(failures) == 1


def test_a_closed_transport_connects_no_more() -> None:
    with scripted() as tei:
        ours = transport()
        ours.get(f"{tei.url}/info")
        ours.close()
        with pytest.raises(NoReply, match="closed"):
            ours.get(f"{tei.url}/info")
        assert len(tei.asked) == len(tei.accepted) == 1


def test_no_socket_is_left_open() -> None:
    with scripted() as tei, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=lambda: transport().get(f"{tei.url}/info"))
        thread.start()
        thread.join()
        gc.collect()
    assert not [each for each in caught if each.category is ResourceWarning]


# --- TLS and proxies --------------------------------------------------------------------------------------------------


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))


def secured(tei: ScriptedTei) -> str:
    return tei.url.replace("http://127.0.0.1", "https://localhost")


@pytest.mark.usefixtures("trusted")
def test_tls_with_a_bundle_of_ones_own(certificate: Path) -> None:
    with scripted(lambda _: Says(200, b"x" * 3_000_000), certificate=certificate) as tei:
        ours = transport()
        body = b'{"inputs": ["%b"]}' % (b"y" * 1_000_000)
        replies = [ours.post(f"{secured(tei)}/embed", body) for _ in range(3)]
        assert {len(reply.body) for reply in replies} == {3_000_000}
        assert {asked.body for asked in tei.asked} == {body}
        assert len(tei.accepted) == 1


@pytest.mark.usefixtures("trusted")
def test_a_stale_tls_connection_is_replaced_at_once(certificate: Path) -> None:
    with scripted(certificate=certificate) as tei:
        ours = transport()
        ours.get(f"{secured(tei)}/info")
        tei.script = hanging_up_once()
        assert ours.get(f"{secured(tei)}/info").status == 200
        assert len(tei.accepted) == 2


def hanging_up_once() -> Script:
    says = iter([HANG_UP])
    return lambda _: next(says, None)


def test_a_certificate_that_nobody_signed_is_a_persons_to_mend(certificate: Path) -> None:
    with (
        scripted(certificate=certificate) as tei,
        pytest.raises(EndpointRefused, match=r"(?s)cannot be trusted .* REQUESTS_CA_BUNDLE"),
    ):
        transport().get(f"{secured(tei)}/info")


@pytest.mark.usefixtures("trusted")
def test_close_hangs_up_on_a_tls_server_that_does_not_answer(certificate: Path) -> None:
    asked, over = threading.Event(), threading.Event()

    def script(_: Asked) -> Says:
        asked.set()
        over.wait(20)
        return HANG_UP

    with scripted(script, certificate=certificate) as tei:
        ours = transport(60)
        failures: list[BaseException] = []

        def ask() -> None:
            try:
                ours.get(f"{secured(tei)}/info")
            except NoReply as failure:
                failures.append(failure)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        asked.wait(5)
        ours.close()
        thread.join(5)
        assert len(failures) == 1
        over.set()


@contextmanager
def tunnelling(
    answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n", certificate: Path | None = None
) -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that opens tunnels to whatever it is asked for; gives its address and what it was asked.

    With a certificate it is spoken to over TLS.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    asked: list[bytes] = []

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def serve(connection: socket.socket) -> None:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            connection = context.wrap_socket(connection, server_side=True)
            connection.settimeout(20)  # without, who waits to read keeps others from writing
        with connection:
            asked.append(connection.recv(1 << 16))
            connection.sendall(answer)
            port = int(asked[-1].split()[1].rpartition(b":")[2])
            if b" 200 " in answer:
                with socket.create_connection(("127.0.0.1", port)) as upstream:
                    back = threading.Thread(target=pump, args=(upstream, connection), daemon=True)
                    back.start()
                    pump(connection, upstream)
                    back.join()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.mark.usefixtures("trusted")
def test_a_proxy_opens_a_tunnel_for_tls_and_never_sees_the_token(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scripted(certificate=certificate) as tei, tunnelling() as (proxy, asked):
        monkeypatch.setenv("https_proxy", f"http://me:pass@{proxy}")
        monkeypatch.setenv("no_proxy", "")
        ours = transport(token=SECRET)
        for _ in range(2):
            assert ours.get(f"{secured(tei).replace('localhost', 'tei.test')}/info").status == 200
        ours.close()
        assert {each.headers["Authorization"] for each in tei.asked} == {f"Bearer {SECRET}"}
        assert not any("Proxy-Authorization" in each.headers for each in tei.asked)
    assert len(asked) == 1
    assert b"Proxy-Authorization: Basic" in asked[0]
    assert SECRET.encode() not in asked[0]


@pytest.mark.usefixtures("trusted")
def test_tls_within_tls_to_the_proxy(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "")
    over = threading.Event()
    with scripted(certificate=certificate) as tei, tunnelling(certificate=certificate) as (proxy, asked):
        monkeypatch.setenv("https_proxy", f"https://{proxy.replace('127.0.0.1', 'localhost')}")
        url = f"{secured(tei).replace('localhost', 'tei.test')}/info"
        ours = transport(20)
        for _ in range(2):
            assert (ours.get(url).status, len(asked)) == (200, 1)

        tei.script = lambda _: HANG_UP if over.wait(20) else None
        closing = threading.Timer(0.3, ours.close)
        closing.start()
        with pytest.raises(NoReply, match="the client was closed"):
            ours.get(url)
        over.set()


@pytest.mark.usefixtures("trusted")
def test_a_proxy_that_opens_no_tunnel_is_no_reply(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    with tunnelling(refusal) as (proxy, _):
        monkeypatch.setenv("https_proxy", f"http://{proxy}")
        monkeypatch.setenv("no_proxy", "")
        with pytest.raises(NoReply, match="407"):
            transport().get("https://tei.test:1/info")


def test_a_plain_proxy_gets_its_own_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(lambda _: Says(200, b"from the proxy")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.replace("http://", "http://me:pass@"))
        monkeypatch.setenv("no_proxy", "")
        assert transport().get("http://tei.invalid:8080/info").body == b"from the proxy"
    assert proxy.asked[0].headers["Proxy-Authorization"].startswith("Basic ")
    assert proxy.asked[0].headers["Host"] == "tei.invalid:8080"


def test_this_machines_own_addresses_are_asked_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(lambda _: Says(502, b"from the proxy")) as proxy, scripted() as tei:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        assert transport(token=SECRET).get(f"{tei.url}/info").status == 200
    assert not proxy.asked


def test_a_proxys_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://me:hunter2@proxy:99999")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(EndpointRefused, match="proxy") as raised:
        transport().get("http://tei.test/info")
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))


def test_a_proxy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(NoReply, match=r"127\.0\.0\.1"):
        transport().get("http://tei.test/info")


def test_a_long_token_is_not_shown_in_part() -> None:
    token = "hf_" + "x1Y2" * 60
    says = f"HTTP/1.1 200 OK\r\nAuthorization Bearer {token}\r\n\r\n".encode()
    with saying(says) as url, pytest.raises(NoReply) as raised:
        transport(token=token).get(url)
    assert token[:20] not in "".join(traceback.format_exception(raised.value))
