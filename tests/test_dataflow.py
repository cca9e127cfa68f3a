"""Dataflow, rehearsed without the cloud: what is submitted, and whether a worker can carry it out."""

from __future__ import annotations

import gzip
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROOT, output_files, tayyar
from tests.dataflow import Dataflow, dataflow
from tests.documents import documents, write_ndjson
from tests.scripts import executable, made_environment
from tests.servers import TOOLS, wait_until
from tests.storages import GcsStorage, gcs_server
from tests.tei_simulator.process import TeiSimulator

SECRET = secrets.token_hex()  # the package holds this file
PROJECT = ["--project", "project-1", "--region", "us-central1", "--temp_location", "gs://tayyar-tests/tmp"]


@pytest.fixture
def service() -> Iterator[Dataflow]:
    with dataflow() as found:
        yield found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GcsStorage]:
    """A bucket with one shard to embed, and a local copy of it in `in`."""
    write_ndjson(tmp_path / "in/wiki.ndjson", documents(50, seed=1))
    (tmp_path / "in/wiki.ndjson").open("a").write("no json\n")
    with gcs_server(tmp_path / "gcs.log") as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        storage = GcsStorage(url, "tayyar-tests", "job")
        storage.put("in/wiki.ndjson", (tmp_path / "in/wiki.ndjson").read_bytes())
        yield storage


@pytest.fixture
def tei(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TEST_TOKEN", SECRET)
    with TeiSimulator(["--api_key", "env:TEST_TOKEN"]) as server:
        yield server.url


def job(url: str) -> list[str]:
    """What the job is, wherever it runs."""
    return ["--endpoint", url, "--token", "env:TEST_TOKEN", "--max_dead_letter_ratio", "1"]


@contextmanager
def dataflow_sh(
    monkeypatch: pytest.MonkeyPatch, place: GcsStorage, service: Dataflow, *options: str
) -> Iterator[subprocess.Popen[str]]:
    """Call the script as a user does, in its own environment, which `.ci/tools` has made."""
    if not (TOOLS / "gcp").exists():
        pytest.skip(f"{TOOLS / 'gcp'} is not here; .ci/tools makes it")
    monkeypatch.setenv("TAYYAR_VENV", str(TOOLS / "gcp"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    where = ["--input", f"{place.root}/in/*", "--output", f"{place.root}/out"]
    stand_in = ["--dataflow_endpoint", service.url, "--no_auth"]
    command = [f"{ROOT}/run_scripts/dataflow.sh", *PROJECT, *where, *stand_in, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def submitted(process: subprocess.Popen[str], service: Dataflow) -> Any:
    wait_until(lambda: service.jobs or process.poll() is not None, "a job", seconds=300)
    assert service.jobs, process.communicate()[0]
    return json.loads(service.jobs[0])


def staged(found: Any) -> dict[str, bytes]:
    """Everything that Dataflow is to fetch, by name."""
    bucket = GcsStorage(os.environ["STORAGE_EMULATOR_HOST"], "tayyar-tests", "tmp")
    files = {name.rpartition("/")[2]: data for name, data in bucket.files().items()}
    packages = {package["name"] for package in found["environment"]["workerPools"][0]["packages"]}
    assert packages <= files.keys()
    assert found["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"].endswith("/pipeline.pb")
    return files


def clean_environment(folder: Path, package: bytes) -> str:
    """Install the staged package as a worker does, and nothing else; return the environment's Python."""
    (folder / "workflow.tar.gz").write_bytes(package)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = str(folder / "venv/bin/python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # Most of what is installed is never imported, so it is not compiled either.
    subprocess.run([*install, "--no-compile", str(folder / "workflow.tar.gz")], cwd=folder, check=True)
    return python


@pytest.mark.outside
@pytest.mark.timeout(600)
def test_what_is_submitted_is_carried_out_by_what_is_staged(
    monkeypatch: pytest.MonkeyPatch, place: GcsStorage, service: Dataflow, tei: str, tmp_path: Path
) -> None:
    private = ["--no_use_public_ips", "--subnetwork", "regions/us-central1/subnetworks/inner", "--num_workers", "2"]
    with dataflow_sh(monkeypatch, place, service, *job(tei), *private) as process:
        found = submitted(process, service)
        (pool,) = found["environment"]["workerPools"]
        assert (pool["numWorkers"], pool["autoscalingSettings"]["maxNumWorkers"]) == (2, 4)
        assert pool["machineType"] == "e2-standard-2"
        assert pool["ipConfiguration"] == 2  # WORKER_IP_PRIVATE
        assert pool["subnetwork"] == "regions/us-central1/subnetworks/inner"
        assert found["environment"]["version"]["job_type"] == "FNAPI_BATCH"
        assert found["environment"]["sdkPipelineOptions"]["options"]["streaming"] is False
        files = staged(found)
        for name, data in {"job": service.jobs[0], **files}.items():
            assert SECRET.encode() not in data, name
        assert SECRET.encode() not in gzip.decompress(files["workflow.tar.gz"])

        (tmp_path / "pipeline.pb").write_bytes(files["pipeline.pb"])
        python = clean_environment(tmp_path, files["workflow.tar.gz"])
        monkeypatch.delenv("PYTHONPATH")
        program = shutil.copy(ROOT / "tests/staged_pipeline.py", tmp_path)  # beside it, other packages would be found
        command = [python, program, str(tmp_path / "pipeline.pb")]
        worker = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert worker.returncode == 0, worker.stderr
        ours = {line.rpartition(".")[2] for line in worker.stdout.splitlines() if line.startswith("transforms.")}
        assert ours == {"_EmbedShard", "_WriteDeadLetters"}  # the other steps are functions

        service.state = "JOB_STATE_DONE"
        said, _ = process.communicate(timeout=100)
    assert process.returncode == 0, said
    assert "https://console.cloud.google.com/dataflow/jobs/us-central1/job-1?project=project-1" in said
    assert "total: embeddings = 50, documents = 51, dead letters = 1" in said
    assert_as_at_home(place, tmp_path, tei)


def assert_as_at_home(place: GcsStorage, folder: Path, url: str) -> None:
    """Hold what the worker wrote against what a local run writes."""
    tayyar("run", "--input", folder / "in", "--output", folder / "out", *job(url))
    expected = output_files(folder / "out")
    found = {
        name.removeprefix("out/"): data.replace(place.root.encode(), str(folder).encode())
        for name, data in place.files().items()
        if name.startswith("out/") and not name.startswith("out/_job/")
    }
    assert found == expected
    assert len(expected) == 2
    tayyar("verify", "--output", f"{place.root}/out", "--max_dead_letter_ratio", "1")


@pytest.mark.outside
@pytest.mark.timeout(600)
def test_an_interruption_cancels_the_job(
    monkeypatch: pytest.MonkeyPatch, place: GcsStorage, service: Dataflow, tei: str
) -> None:
    with dataflow_sh(monkeypatch, place, service, *job(tei)) as process:
        submitted(process, service)
        service.state = "JOB_STATE_RUNNING"
        asked = len(service.calls)
        wait_until(lambda: len(service.calls) > asked + 1, "a look at the job")
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=100)
    assert process.returncode == 130, said
    assert [update["requestedState"] for update in service.updates] == [5]  # JOB_STATE_CANCELLED


@pytest.mark.outside
@pytest.mark.timeout(600)
def test_a_job_that_fails_there_fails_here(
    monkeypatch: pytest.MonkeyPatch, place: GcsStorage, service: Dataflow, tei: str
) -> None:
    service.state = "JOB_STATE_FAILED"
    with dataflow_sh(monkeypatch, place, service, *job(tei)) as process:
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 1, said
    assert "The same command continues from what is done" in said


@pytest.mark.outside
@pytest.mark.timeout(600)
def test_a_template_is_written_and_nothing_is_run(
    monkeypatch: pytest.MonkeyPatch, place: GcsStorage, service: Dataflow, tei: str
) -> None:
    template = f"{place.root}/template.json"
    with dataflow_sh(monkeypatch, place, service, *job(tei), "--template_location", template) as process:
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert f"the job is described in {template}" in said
    assert not service.calls
    found = json.loads(place.files()["template.json"])
    assert staged(found)
    assert not [name for name in place.names() if "/run_markers/" in name]
    assert "records: 0 so far" in tayyar("status", "--output", f"{place.root}/out").stdout


@pytest.mark.outside
@pytest.mark.timeout(600)
def test_the_launcher_of_a_flex_template_describes_the_same_job(
    monkeypatch: pytest.MonkeyPatch, place: GcsStorage, service: Dataflow, tei: str, tmp_path: Path
) -> None:
    for name in ("setup.py", "pyproject.toml", "README.md", "pipeline", "transforms"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "run_scripts/flex_template/launch.py", tmp_path)
    parameters = [f"--input={place.root}/in/*", f"--output={place.root}/out", f"--endpoint={tei}", "--overwrite=false"]
    parameters += ["--token=env:TEST_TOKEN", "--prompt_name=", "--runner=DataflowRunner", "--project=project-1"]
    parameters += ["--region=us-central1", "--temp_location=gs://tayyar-tests/tmp", "--no_auth"]
    parameters += [f"--dataflow_endpoint={service.url}", f"--template_location={place.root}/job.json"]
    if not (TOOLS / "gcp").exists():
        pytest.skip(f"{TOOLS / 'gcp'} is not here; .ci/tools makes it")
    command = [str(TOOLS / "gcp/bin/python"), "launch.py", *parameters]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert not service.calls
    assert "workflow.tar.gz" in staged(json.loads(place.files()["job.json"]))


@pytest.mark.parametrize("missing", ["--project", "--region", "--temp_location", "--output", "--endpoint"])
def test_what_is_missing_is_named(missing: str) -> None:
    given = {
        "--project": "p",
        "--region": "r",
        "--temp_location": "gs://b/t",
        "--output": "gs://b/o",
        "--endpoint": "u",
    }
    options = [word for name, value in given.items() if name != missing for word in (name, value)]
    finished = subprocess.run(
        [f"{ROOT}/run_scripts/dataflow.sh", "check", *options], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 1
    assert f"not given: {missing}. See" in finished.stderr


def test_the_script_adds_only_what_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAYYAR_VENV", made_environment(tmp_path / "venv", "gcp")["TAYYAR_VENV"])
    executable(tmp_path / "venv/bin/tayyar", 'printf "%s\\n" "$@"')
    given = ["--project=p", "--region", "r", "--temp_location", "gs://b/t", "--output", "gs://b/o", "--endpoint=u"]
    script = f"{ROOT}/run_scripts/dataflow.sh"
    said = subprocess.run([script, *given], capture_output=True, text=True, check=True, env=dict(os.environ)).stdout
    added = ["--runner", "DataflowRunner", "--setup_file", f"{ROOT}/setup.py", "--max_num_workers", "4"]
    assert said.split("\n")[:-1] == ["run", *given, *added, "--machine_type", "e2-standard-2"]
    mine = ["--worker_machine_type", "n1-highmem-4", "--max_num_workers=9", "--setup_file", "x", "--runner", "y"]
    said = subprocess.run([script, "check", *given, *mine], capture_output=True, text=True, check=True).stdout
    assert said.split("\n")[:-1] == ["check", *given, *mine]
    image = ["--sdk_container_image", "i", "--max_num_workers=9", "--machine_type", "m", "--runner", "y"]
    said = subprocess.run([script, *given, *image], capture_output=True, text=True, check=True).stdout
    assert said.split("\n")[:-1] == ["run", *given, *image]
