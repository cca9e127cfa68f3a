import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from pipeline.embedded_tei.process import EmbeddedTei, EmbeddedTeiError

ROOT = Path(__file__).parents[3]


def _ends(pid: int, within: float = 10.0) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def test_it_answers_where_it_says_and_ends_with_its_context() -> None:
    with EmbeddedTei(["--model", "hash"]) as tei:
        assert requests.get(f"{tei.url}/info", timeout=5).json()["model_id"] == "tayyar/hash"
        url, pid = tei.url, tei.pid
    assert _ends(pid)
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=5)


def test_it_starts_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logging.py").write_text("raise SystemExit('a stranger was imported')")
    monkeypatch.chdir(tmp_path)
    if sys.version_info < (3, 11):
        (tmp_path / "logging.py").unlink()  # only from 3.11 on can the child be told not to look here
    with EmbeddedTei(["--model", "hash"]) as tei:
        assert requests.get(f"{tei.url}/health", timeout=5).status_code == 200


def test_a_start_that_fails_tells_the_last_lines() -> None:
    with pytest.raises(EmbeddedTeiError, match="max_batch_tokens is 0: it must be at least 1"):
        EmbeddedTei(["--model", "hash", "--max_batch_tokens", "0"]).__enter__()


def test_the_child_ends_when_its_parent_is_killed() -> None:
    program = (
        "import sys, time; from pipeline.embedded_tei.process import EmbeddedTei\n"
        "with EmbeddedTei(['--model', 'hash']) as tei: print(tei.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert _ends(child)
