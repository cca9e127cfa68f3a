"""`run_scripts/start_tei.sh` as a user calls it: real processes in the places of Docker and of TEI's own program."""

from __future__ import annotations

import os
import random
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
from tests.servers import listens, wait_until

NEEDED = [
    *["awk", "basename", "bash", "cat", "cksum", "dirname", "env", "grep", "mkdir", "mktemp", "rm", "sed", "sh"],
    *["sleep", "tail", "uname"],
]
MAX_SERVERS = 4
DEFAULT_MODEL = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
IMAGES = "ghcr.io/huggingface/text-embeddings-inference"
SERVE = f"exec {sys.executable} -m tests.tei_simulator --port"


class Machine:
    """A machine with some programs; each records how it was called, a line a word.

    Attributes:
        port: the first of as many free ones as it may have servers.
    """

    def __init__(self, folder: Path) -> None:
        self.port = free_ports(MAX_SERVERS)
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
        # One write a call: two containers may start at the same moment.
        note = f'printf "%s\\n" "$@" "" >> {self._folder}/{name}.called'
        executable(self._folder / "bin" / name, f"{note}\n{script}")

    def add_docker(self, answers: bool = True) -> None:
        """Add a docker that serves at the published port of a container, and stops containers by their names."""
        words = "case $former in --name) name=$word ;; -p) port=${word%:*} port=${port##*:} ;; esac; former=$word"
        run = f"for word; do {words}; done; echo $$ > {self._folder}/$name.pid; {SERVE} $port"
        stop = f"shift; for name; do kill $(cat {self._folder}/$name.pid); done"
        self.add("docker", f"case $1 in info) exit {int(not answers)} ;; run) {run} ;; stop) {stop} ;; esac")

    def add_gpus(self, count: int) -> None:
        gpus = "".join(f"GPU {index}: NVIDIA A10G (UUID: GPU-{index})\\n" for index in range(count))
        self.add("nvidia-smi", f"printf '{gpus}'")

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

    def printed(self, *options: object, code: int, **environment: str) -> str:
        with self.started(*options, **environment) as process:
            printed, _ = process.communicate(timeout=60)
        assert process.returncode == code, printed
        return printed

    def serves(self, stop: signal.Signals, *options: object, servers: int = 1, **environment: str) -> str:
        """Run the script until its servers answer, use what it prints, and stop it; return what it printed."""
        urls = [f"http://127.0.0.1:{self.port + index}" for index in range(servers)]
        with self.started(*options, **environment) as process:
            assert process.stdout is not None
            printed = ""
            while "Ctrl-C" not in printed:
                line = process.stdout.readline()
                assert line, printed
                printed += line
            endpoints = " \\\n    ".join(f"--endpoint {url}" for url in urls)
            assert f"  run_scripts/direct.sh --input 'YOUR/*.ndjson' --output embedded \\\n    {endpoints}\n" in printed
            assert all(requests.get(f"{url}/info", timeout=30).ok for url in urls)
            assert not listens(self.port + servers)
            process.send_signal(stop)
            rest, _ = process.communicate(timeout=60)
        assert process.returncode == 130, printed + rest
        assert not any(listens(self.port + index) for index in range(servers))
        return printed


def free_ports(count: int) -> int:
    """Return the first of some ports in a row at which nothing listens.

    They are below those that the system gives to connections and servers that ask for any: another test running beside
    this one would get the next number.
    """
    while True:
        first = random.randrange(10_000, 32_000)
        if not any(listens(first + index) for index in range(count)):
            return first


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def docker_options(machine: Machine, *more: str, index: int = 0) -> list[str]:
    port = machine.port + index
    cache = f"{machine.environment['HOME']}/.cache/tei:/data"
    return ["run", "--rm", "--name", f"tayyar-tei-{port}", "-p", f"127.0.0.1:{port}:80", "-v", cache, *more]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_docker_with_a_gpu(machine: Machine, stop: signal.Signals) -> None:
    machine.add_docker()
    machine.add_gpus(1)
    machine.add("text-embeddings-router", "exit 1")
    machine.serves(stop)
    expected = [*docker_options(machine, "--gpus", "all"), f"{IMAGES}:cuda-1.9", "--model-id", DEFAULT_MODEL]
    calls = machine.calls("docker")
    assert [call for call in calls if call[0] == "run"] == [expected]
    assert calls[-1] == ["stop", f"tayyar-tei-{machine.port}"]
    assert not machine.calls("text-embeddings-router")


@pytest.mark.parametrize(("replicas", "servers"), [([], 3), (["--replicas", 2], 2), (["--replicas=1"], 1)])
def test_a_container_for_each_gpu(machine: Machine, replicas: list[object], servers: int) -> None:
    machine.add_docker()
    machine.add_gpus(3)
    machine.serves(signal.SIGINT, "--gpus", "all", *replicas, "--", "--dtype", "float16", servers=servers)
    calls = machine.calls("docker")
    server = [f"{IMAGES}:cuda-1.9", "--model-id", DEFAULT_MODEL, "--dtype", "float16"]
    assert sorted(call for call in calls if call[0] == "run") == sorted(
        [*docker_options(machine, "--gpus", f"device={index}", index=index), *server] for index in range(servers)
    )
    assert calls[-1] == ["stop", *(f"tayyar-tei-{machine.port + index}" for index in range(servers))]


def test_containers_for_gpus_by_variables(machine: Machine) -> None:
    machine.add_docker()
    machine.add_gpus(3)
    machine.serves(signal.SIGTERM, servers=2, TEI_GPUS="all", TEI_REPLICAS="2")


def test_parts_of_a_gpu_are_not_counted(machine: Machine) -> None:
    machine.add_docker()
    machine.add("nvidia-smi", "printf 'GPU 2: A100 (UUID: GPU-2)\\n  MIG 1g.5gb Device 0: (UUID: MIG-0)\\n'")
    machine.serves(signal.SIGINT, "--gpus", "all")
    (run,) = [call for call in machine.calls("docker") if call[0] == "run"]
    assert run[run.index("--gpus") + 1] == "device=2"


def test_one_container_that_ends_ends_all(machine: Machine, tmp_path: Path) -> None:
    machine.add_docker()
    machine.add_gpus(2)
    with machine.started("--gpus", "all") as process:
        assert process.stdout is not None
        while "Ctrl-C" not in process.stdout.readline():
            assert process.poll() is None
        os.kill(int((tmp_path / f"tayyar-tei-{machine.port + 1}.pid").read_text()), signal.SIGKILL)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"the server at port {machine.port + 1} has ended. The end of its log:" in rest
    assert not listens(machine.port)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus", "0,1"], "--gpus 0,1 is not supported: give --gpus all"),
        (["--gpus", "all", "--replicas", "4"], "--replicas 4 is more than the GPUs of this machine, 3"),
        (["--gpus", "all", "--replicas", "0"], "--replicas 0 is not a whole number above 0"),
        (["--replicas", "2"], "--replicas 2 needs --gpus all"),
        (["--gpus", "all", "--way", "embedded"], "--gpus all starts containers"),
    ],
)
def test_gpus_that_cannot_be_used_are_refused(machine: Machine, options: list[str], message: str) -> None:
    machine.add_docker()
    machine.add_gpus(3)
    assert message in machine.printed(*options, code=1)
    assert not [call for call in machine.calls("docker") if call[0] == "run"]


def test_no_gpu_is_refused_where_all_are_wanted(machine: Machine) -> None:
    machine.add_docker()
    assert "nvidia-smi finds no GPU here" in machine.printed("--gpus", "all", code=1)


def test_nothing_starts_where_a_later_port_is_taken(machine: Machine, hash_tei: str) -> None:
    machine.add_docker()
    machine.add_gpus(2)
    port = int(hash_tei.rpartition(":")[2])
    printed = machine.printed("--gpus", "all", "--port", port - 1, code=1)
    assert f"port {port} is taken" in printed or f"port {port - 1} is taken" in printed
    assert not [call for call in machine.calls("docker") if call[0] == "run"]


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
    machine.serves(
        *(signal.SIGINT, "--", "--dtype", "float32"),
        TEI_MODEL="a/model",
        TEI_REVISION="v1",
        TEI_POOLING="mean",
        TEI_MAX_BATCH_TOKENS="99",
    )
    server = ["--model-id", "a/model", "--revision", "v1", "--pooling", "mean", "--max-batch-tokens", "99"]
    where = ["--hostname", "127.0.0.1", "--port", str(machine.port)]
    assert machine.calls("text-embeddings-router") == [[*server, *where, "--dtype", "float32"]]


def test_the_embedded_server_where_nothing_else_is_here(machine: Machine) -> None:
    printed = machine.serves(signal.SIGINT, "--max_batch_tokens", 2048)
    assert "to try things, not for speed" in printed


def test_a_way_can_be_chosen(machine: Machine) -> None:
    machine.add_docker()
    machine.add("text-embeddings-router", f"{SERVE} {machine.port}")
    machine.serves(signal.SIGINT, "--way", "program")
    assert not [call for call in machine.calls("docker") if call[0] == "run"]
    assert machine.calls("text-embeddings-router")


def test_a_server_that_ends_is_reported_with_the_end_of_its_log(machine: Machine) -> None:
    machine.add("text-embeddings-router", "seq 30; echo no such model >&2; exit 3")
    only(Path(machine.environment["PATH"]), ["seq"])
    printed = machine.printed(code=1)
    assert f"the server at port {machine.port} has ended before it answered. The end of its log:" in printed
    assert "\n30\nno such model\n" in printed
    assert "\n9\n" not in printed


def test_a_server_that_never_answers_is_waited_for_as_long_as_configured(machine: Machine, tmp_path: Path) -> None:
    machine.add("text-embeddings-router", f"echo loading; echo $$ > {tmp_path}/pid; exec sleep 100")
    printed = machine.printed("--wait", 1, code=1)
    assert "does not answer after 1 s (--wait). The end of its log:\nloading" in printed
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_a_server_that_ends_later_ends_the_script(machine: Machine, tmp_path: Path) -> None:
    machine.add("text-embeddings-router", f"echo $$ > {tmp_path}/pid; {SERVE} {machine.port}")
    with machine.started() as process:
        wait_until(lambda: process.poll() is not None or listens(machine.port), "a server")
        assert process.stdout is not None
        assert any("Ctrl-C" in line for line in process.stdout)  # from here on, the script waits for the server
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"the server at port {machine.port} has ended. The end of its log:" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model"], "--model needs a value"),
        (["--modle", "x"], "unknown option --modle"),
        (["--port", "http"], "--port http is not a whole number"),
        (["--max_batch_tokens=0"], "--max_batch_tokens 0 is not a whole number above 0"),
        (["--way", "podman"], "--way podman must be docker, program or embedded"),
        (["--way", "docker"], "docker does not answer"),
        (["--way", "program"], "text-embeddings-router is not on the PATH"),
        (["--model", "a/model", "--pooling", "cls"], "--model --pooling needs TEI itself"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(machine: Machine, options: list[str], message: str) -> None:
    assert message in machine.printed(*options, code=1)


def test_a_port_that_is_taken_is_reported(machine: Machine, hash_tei: str) -> None:
    port = int(hash_tei.rpartition(":")[2])
    printed = machine.printed("--port", port, code=1)
    assert f"port {port} is taken" in printed
    assert f"--port {port + 1}" in printed


def test_help_names_every_option(machine: Machine) -> None:
    printed = machine.printed("--help", code=0)
    script = (ROOT / "run_scripts/start_tei.sh").read_text()
    options = script.partition("--help | -h")[2].partition("give ")[0]
    named = [word for word in options.replace(")", " ").split() if word[:2] == "--" and word[2:].isidentifier()]
    assert len(named) == 11
    assert [option for option in named if f"\n  {option} " not in printed] == []
