"""`run_scripts/start_tei.sh` as a user calls it: real processes in the places of Docker and of TEI's own program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import requests

from tests.commands import ROOT
from tests.scripts import executable, made_environment, only
from tests.servers import free_port, listens, wait_until

NEEDED = [
    *["awk", "basename", "bash", "cat", "cksum", "dirname", "env", "grep", "mkdir", "mktemp", "rm", "sed", "sh"],
    *["sleep", "tail", "uname"],
]
DEFAULT_MODEL = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
IMAGES = "ghcr.io/huggingface/text-embeddings-inference"
SERVE = f"exec {sys.executable} -m tests.tei_simulator --port"


class Machine:
    """A machine with some programs; each notes how it was called, a line a word.

    Attributes:
        port: a free one.
    """

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self.environment = {
            "PATH": str(folder / "bin"),
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            "TEI_PORT": str(self.port),
            **made_environment(folder / "venv"),
        }
        only(folder / "bin", NEEDED)

    def add(self, name: str, script: str) -> None:
        (self._folder / "bin" / name).unlink(missing_ok=True)
        note = f'printf "%s\\n" "$@" >> {self._folder}/{name}.called; echo >> {self._folder}/{name}.called'
        executable(self._folder / "bin" / name, f"{note}\n{script}")

    def add_docker(self, answers: bool = True) -> None:
        stop = f"kill $(cat {self._folder}/pid)"
        run = f"echo $$ > {self._folder}/pid; {SERVE} {self.port}"
        self.add("docker", f"case $1 in info) exit {int(not answers)} ;; run) {run} ;; stop) {stop} ;; esac")

    def calls(self, name: str) -> list[list[str]]:
        path = self._folder / f"{name}.called"
        return [call.split("\n") for call in path.read_text().split("\n\n")[:-1]] if path.exists() else []

    @contextmanager
    def started(self, *options: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """Run the script, and end it with all that it started however the block ends."""
        with subprocess.Popen(
            [f"{ROOT}/run_scripts/start_tei.sh", *map(str, options)],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            family = [psutil.Process(process.pid)]
            try:
                yield process
            finally:
                if process.poll() is None:
                    family += family[0].children(recursive=True)
                for member in family:
                    if member.is_running():
                        member.kill()

    def said(self, *options: object, code: int, **environment: str) -> str:
        with self.started(*options, **environment) as process:
            said, _ = process.communicate(timeout=60)
        assert process.returncode == code, said
        return said

    def serves(self, stop: signal.Signals, *options: object, **environment: str) -> str:
        """Run the script until the server answers, see that it says so, and stop it; return what it said."""
        with self.started(*options, **environment) as process:
            wait_until(lambda: process.poll() is not None or self._answers(), "an answer")
            assert process.stdout is not None
            said = ""
            while "Ctrl-C" not in said:
                line = process.stdout.readline()
                assert line, said
                said += line
            assert f"--endpoint http://127.0.0.1:{self.port}" in said
            process.send_signal(stop)
            rest, _ = process.communicate(timeout=60)
        assert process.returncode == 130, said + rest
        assert not listens(self.port)
        return said

    def _answers(self) -> bool:
        return listens(self.port) and requests.get(f"http://127.0.0.1:{self.port}/info", timeout=30).ok


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def docker_options(machine: Machine, *more: str) -> list[str]:
    name = f"tayyar-tei-{machine.port}"
    cache = f"{machine.environment['HOME']}/.cache/tei:/data"
    return ["run", "--rm", "--name", name, "-p", f"127.0.0.1:{machine.port}:80", "-v", cache, *more]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_docker_with_a_gpu(machine: Machine, stop: signal.Signals) -> None:
    machine.add_docker()
    machine.add("nvidia-smi", "echo 'GPU 0: NVIDIA A10G (UUID: GPU-0)'")
    machine.add("text-embeddings-router", "exit 1")
    machine.serves(stop)
    expected = [*docker_options(machine, "--gpus", "all"), f"{IMAGES}:cuda-1.9", "--model-id", DEFAULT_MODEL]
    calls = machine.calls("docker")
    assert [call for call in calls if call[0] == "run"] == [expected]
    assert calls[-1] == ["stop", f"tayyar-tei-{machine.port}"]
    assert not machine.calls("text-embeddings-router")


@pytest.mark.parametrize(
    ("kind", "tag"), [("x86_64", "cpu-1.9"), ("arm64", "cpu-arm64-1.9"), ("aarch64", "cpu-arm64-1.9")]
)
def test_docker_without_a_gpu(machine: Machine, kind: str, tag: str) -> None:
    machine.add_docker()
    machine.add("nvidia-smi", "echo 'No devices were found' && exit 6")
    machine.add("uname", f"echo {kind}")
    machine.serves(signal.SIGINT)
    (run,) = [call for call in machine.calls("docker") if call[0] == "run"]
    assert run == [*docker_options(machine), f"{IMAGES}:{tag}", "--model-id", DEFAULT_MODEL]


def test_the_options_reach_the_server_in_the_image(machine: Machine, tmp_path: Path) -> None:
    machine.add_docker()
    options = [
        "--model",
        "a/model",
        "--revision=main",
        "--pooling",
        "cls",
        "--max_batch_tokens",
        4096,
        "--image",
        "mine",
    ]
    options += ["--cache", tmp_path / "kept", "--", "--dtype", "float16"]
    machine.serves(signal.SIGINT, *options, HF_TOKEN="hf_secret", TEI_MODEL="not/this", TEI_POOLING="mean")
    (run,) = [call for call in machine.calls("docker") if call[0] == "run"]
    assert f"{tmp_path}/kept:/data" in run
    assert run[run.index("-e") + 1] == "HF_TOKEN"  # by its name: others see the arguments of a process
    server = ["--model-id", "a/model", "--revision", "main", "--pooling", "cls", "--max-batch-tokens", "4096"]
    assert run[run.index("mine") + 1 :] == [*server, "--dtype", "float16"]
    assert "hf_secret" not in str(machine.calls("docker"))


def test_a_folder_with_a_model_is_seen_in_the_container(machine: Machine, tmp_path: Path) -> None:
    machine.add_docker()
    (tmp_path / "my model").mkdir()
    machine.serves(signal.SIGINT, "--model", tmp_path / "my model")
    (run,) = [call for call in machine.calls("docker") if call[0] == "run"]
    assert f"{tmp_path}/my model:/model:ro" in run
    assert run[-2:] == ["--model-id", "/model"]


@pytest.mark.parametrize("docker", ["missing", "not answering"])
def test_the_program_without_docker(machine: Machine, docker: str) -> None:
    if docker == "not answering":
        machine.add_docker(answers=False)
    machine.add("text-embeddings-router", f"{SERVE} {machine.port}")
    settings = {"TEI_MODEL": "a/model", "TEI_REVISION": "v1", "TEI_POOLING": "mean", "TEI_MAX_BATCH_TOKENS": "99"}
    machine.serves(signal.SIGINT, "--", "--dtype", "float32", **settings)
    server = ["--model-id", "a/model", "--revision", "v1", "--pooling", "mean", "--max-batch-tokens", "99"]
    where = ["--hostname", "127.0.0.1", "--port", str(machine.port)]
    assert machine.calls("text-embeddings-router") == [[*server, *where, "--dtype", "float32"]]


def test_the_embedded_server_where_nothing_else_is_here(machine: Machine) -> None:
    said = machine.serves(signal.SIGINT, "--max_batch_tokens", 2048)
    assert "to try, not for speed" in said


def test_a_way_can_be_chosen(machine: Machine) -> None:
    machine.add_docker()
    machine.add("text-embeddings-router", f"{SERVE} {machine.port}")
    machine.serves(signal.SIGINT, "--way", "program")
    assert not [call for call in machine.calls("docker") if call[0] == "run"]
    assert machine.calls("text-embeddings-router")


def test_a_server_that_ends_is_told_with_its_last_words(machine: Machine) -> None:
    machine.add("text-embeddings-router", "seq 30; echo no such model >&2; exit 3")
    only(Path(machine.environment["PATH"]), ["seq"])
    said = machine.said(code=1)
    assert "the server ended before it answered. What it said last:" in said
    assert "\n30\nno such model\n" in said
    assert "\n9\n" not in said


def test_a_server_that_never_answers_is_waited_for_as_long_as_told(machine: Machine, tmp_path: Path) -> None:
    machine.add("text-embeddings-router", f"echo loading; echo $$ > {tmp_path}/pid; exec sleep 100")
    said = machine.said("--wait", 1, code=1)
    assert "does not answer after 1 s (--wait). What it said last:\nloading" in said
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_a_server_that_ends_later_ends_the_script(machine: Machine, tmp_path: Path) -> None:
    machine.add("text-embeddings-router", f"echo $$ > {tmp_path}/pid; {SERVE} {machine.port}")
    with machine.started() as process:
        wait_until(lambda: process.poll() is not None or listens(machine.port), "a server")
        assert process.stdout is not None
        while "Ctrl-C" not in process.stdout.readline():
            pass
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the server has ended" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model"], "--model needs a value"),
        (["--modle", "x"], "unknown option --modle"),
        (["--port", "http"], "--port http is no whole number"),
        (["--max_batch_tokens=0"], "--max_batch_tokens 0 is no whole number above 0"),
        (["--way", "podman"], "--way podman is none of docker, program and embedded"),
        (["--way", "docker"], "docker does not answer"),
        (["--way", "program"], "text-embeddings-router is not on the PATH"),
        (["--model", "a/model", "--pooling", "cls"], "--model --pooling needs TEI itself"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(machine: Machine, options: list[str], message: str) -> None:
    assert message in machine.said(*options, code=1)


def test_a_port_that_is_taken_is_told(machine: Machine, hash_tei: str) -> None:
    port = int(hash_tei.rpartition(":")[2])
    said = machine.said("--port", port, code=1)
    assert f"port {port} is taken" in said
    assert f"--port {port + 1}" in said


def test_help_names_every_option(machine: Machine) -> None:
    said = machine.said("--help", code=0)
    script = (ROOT / "run_scripts/start_tei.sh").read_text()
    options = script.partition("--help | -h")[2].partition("give ")[0]
    named = [word for word in options.replace(")", " ").split() if word[:2] == "--" and word[2:].isidentifier()]
    assert len(named) == 9
    assert [option for option in named if f"\n  {option} " not in said] == []
