"""`check` as a user calls it, with a runner's options: ten documents go through the real thing."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests

from tests.commands import ROOT, output_files, started, tayyar, tayyar_here, texts_embedded
from tests.documents import write_corpus
from tests.scripts import executable
from tests.servers import free_port, serving, wait_until
from tests.tei_simulator.process import TeiSimulator

SECRET = "hf_secret"


@pytest.fixture(scope="module")
def tei() -> Iterator[str]:
    """A server that wants a token, and the token in this environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_TOKEN", SECRET)
        with TeiSimulator(["--api_key", "env:TEST_TOKEN"]) as server:
            yield server.url


@contextmanager
def worker_pool(folder: Path, **environment: str) -> Iterator[list[object]]:
    """Run a pool of workers that has another environment than this process; gives the options of the runner."""
    port = free_port()
    executable(folder / "bin/python", f'exec {sys.executable} "$@"')
    command = [
        str(folder / "bin/python"),
        "-m",
        "apache_beam.runners.worker.worker_pool_main",
        f"--service_port={port}",
    ]
    with serving(command, port, folder / "log", {"PATH": f"{folder}/bin:/usr/bin:/bin", **environment}):
        where = ["--environment_type", "EXTERNAL", "--environment_config", f"127.0.0.1:{port}"]
        yield ["--runner", "PortableRunner", "--job_endpoint", "embed", *where]


def arguments(url: str, output: Path, *options: object) -> list[object]:
    return ["check", "--endpoint", url, "--token", "env:TEST_TOKEN", "--output", output, *options]


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "options",
    [
        ["--runner", "FnApiRunner"],
        ["--direct_running_mode", "multi_processing", "--direct_num_workers", "2"],
        ["--runner", "DirectRunner"],
    ],
)
def test_ten_documents_pass_through_a_runner_and_leave_nothing(tmp_path: Path, tei: str, options: list[str]) -> None:
    before = texts_embedded(tei)
    said = tayyar_here(*arguments(tei, tmp_path / "out", *options)).stdout
    assert re.search(r"^runner: \w+ embedded ten documents and wrote them in \d+ s\npassed$", said, re.MULTILINE)
    assert texts_embedded(tei) - before >= 10
    assert not files_in(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["_job"]


def test_a_token_is_called_accepted_only_where_it_was_asked_for(tmp_path: Path, tei: str, hash_tei: str) -> None:
    assert f"{tei} answers, TEI 1.9.3, token accepted\n" in tayyar_here(*arguments(tei, tmp_path / "out")).stdout
    said = tayyar_here(*arguments(hash_tei, tmp_path / "out")).stdout
    assert f"{hash_tei} answers, TEI 1.9.3; it asks for no token, yours was not needed\n" in said
    assert "accepted" not in said


def test_https_to_a_server_without_tls_is_refused_at_once(hash_tei: str) -> None:
    url = hash_tei.replace("http://", "https://")
    refusal = tayyar_here("check", "--endpoint", url, code=3).stderr
    assert f"{url}/" in refusal
    assert "does not speak TLS: does its address begin with http:// instead of https://?" in refusal
    assert "waiting for" not in refusal
    assert "has succeeded for" not in refusal


def test_an_endpoint_that_is_not_there_ends_the_check_in_seconds() -> None:
    absent = {f"http://127.0.0.1:{free_port()}": "Could not connect", "http://tei.invalid": "Could not resolve host"}
    with ExitStack() as stack:  # at the same time: each takes ten seconds
        checks = {url: stack.enter_context(started("check", "--endpoint", url)) for url in absent}
        for url, reason in absent.items():
            refusal, _ = checks[url].communicate(timeout=60)
            assert checks[url].returncode == 3, refusal
            assert f"no request to {url} has succeeded for 10 s" in refusal
            assert reason in refusal


def test_a_header_authenticates_and_some_dimensions_are_kept(tei: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_HEADER", f"Bearer {SECRET}")
    options = ["--header", "Authorization: env:TEST_HEADER", "--dimensions", 64]
    report = tayyar_here("check", "--endpoint", tei, *options)
    assert ", 64 dimensions\n" in report.stdout
    assert SECRET not in report.stdout + report.stderr


def test_a_pool_of_workers_with_all_they_need_passes(tmp_path: Path, tei: str) -> None:
    with worker_pool(tmp_path, PYTHONPATH=str(ROOT)) as options:
        assert "passed" in tayyar_here(*arguments(tei, tmp_path / "out", *options)).stdout


def test_a_job_in_the_folder_stays_as_it_is(tmp_path: Path, tei: str) -> None:
    write_corpus(tmp_path / "in", files=1, per_file=20)
    where = ("--endpoint", tei, "--token", "env:TEST_TOKEN", "--output", tmp_path / "out")
    tayyar_here("run", "--input", tmp_path / "in", *where)
    before = files_in(tmp_path / "out")
    assert "passed" in tayyar_here(*arguments(tei, tmp_path / "out", "--runner", "FnApiRunner")).stdout
    assert files_in(tmp_path / "out") == before
    assert output_files(tmp_path / "out")


def test_a_token_that_workers_do_not_have_is_told(tmp_path: Path, tei: str) -> None:
    with worker_pool(tmp_path, PYTHONPATH=str(ROOT), TEST_TOKEN="") as options:
        finished = tayyar(*arguments(tei, tmp_path / "out", *options), code=3)
    assert "the secret env:TEST_TOKEN is empty or not set on this machine" in finished.stderr
    assert "set the variable where workers start" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert "The same command continues" not in finished.stderr
    assert SECRET not in finished.stdout + finished.stderr
    assert "passed" not in finished.stdout
    assert not files_in(tmp_path / "out")


def test_workers_that_lack_the_packages_are_told(tmp_path: Path, tei: str) -> None:
    hide = "import sys\nsys.meta_path = [finder for finder in sys.meta_path if 'editable' not in repr(finder)]\n"
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(hide)  # what is installed from a checkout is not seen
    with worker_pool(tmp_path, PYTHONPATH=str(tmp_path / "site"), PYTHONSAFEPATH="1") as options:
        finished = tayyar_here(*arguments(tei, tmp_path / "out", *options), code=1)
    assert (
        "PortableRunner did not embed ten documents: ModuleNotFoundError: No module named 'transforms'"
        in finished.stderr
    )
    assert "--setup_file ./setup.py" in finished.stderr
    assert not files_in(tmp_path / "out")


def test_documents_that_the_endpoint_refuses_are_told(tmp_path: Path) -> None:
    with TeiSimulator(["--faults", '{"refuse_marker": "smoke test"}']) as server:
        command = ["check", "--endpoint", server.url, "--output", tmp_path / "out", "--runner", "FnApiRunner"]
        finished = tayyar_here(*command, code=4)
    assert "dead letters" in finished.stderr
    assert not files_in(tmp_path / "out")


def test_an_interrupted_check_leaves_nothing(tmp_path: Path) -> None:
    with TeiSimulator() as server:
        command = ["check", "--endpoint", server.url, "--output", tmp_path / "out", "--runner", "FnApiRunner"]
        with started(*command) as process:
            wait_until(lambda: process.poll() is not None or files_in(tmp_path / "out/_job"), "a file")
            requests.post(f"{server.url}/simulator/faults", json={"hang": 1.0}, timeout=10)
            wait_until(lambda: process.poll() is not None or smoke_test_began(tmp_path), "a smoke test")
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert not files_in(tmp_path / "out")


def smoke_test_began(folder: Path) -> bool:
    return any((folder / "out").rglob("documents.ndjson"))


def test_a_runner_needs_a_place_for_its_documents(tei: str) -> None:
    said = tayyar_here(
        "check", "--endpoint", tei, "--token", "env:TEST_TOKEN", "--runner", "FnApiRunner", code=2
    ).stderr
    assert "Give the --output of the run" in said


def test_an_option_that_nobody_knows_is_refused(tmp_path: Path, tei: str) -> None:
    said = tayyar_here(*arguments(tei, tmp_path / "out", "--expected_dimension", 3), code=2).stderr
    assert "unknown option --expected_dimension" in said
    assert not (tmp_path / "out").exists()
