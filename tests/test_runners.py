"""The job where it runs: Prism and Flink, the same bytes out of each as out of the local runner."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.embedded_tei.process import EmbeddedTei
from tests.commands import ROOT, output_files, started, tayyar, texts_embedded
from tests.documents import write_corpus
from tests.flink import Cluster, cluster, job_server_jar
from tests.scripts import made_environment
from tests.servers import tool, wait_until
from tests.storages import GcsStorage, gcs_server

pytestmark = [pytest.mark.outside, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus; `in` below it is what is embedded."""
    folder = tmp_path_factory.mktemp("source")
    write_corpus(folder / "in", files=3, per_file=300)
    (folder / "in/wiki_00.ndjson").open("a").write("no json\n")
    return folder


@pytest.fixture(scope="module")
def plain(source: Path, hash_tei: str) -> dict[str, bytes]:
    """What the local runner makes of it."""
    tayyar(*arguments(source, source / "plain", hash_tei))
    found = output_files(source / "plain")
    assert len(found) > 20
    return found


@pytest.fixture(scope="module")
def flink_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("flink")) as found:
        yield found


def arguments(source: Path, output: Path, url: str, *options: object) -> list[object]:
    where = ["--input", f"{source}/in/**", "--output", output, "--endpoint", url, "--shard_bytes", 9000]
    return ["run", *where, *options]


@pytest.mark.parametrize("runner", ["PrismRunner", "DirectRunner"])
def test_prism_writes_the_same_files(
    source: Path, plain: dict[str, bytes], tmp_path: Path, hash_tei: str, runner: str
) -> None:
    options = ("--runner", runner, "--prism_location", tool("prism"))
    said = tayyar(*arguments(source, tmp_path / "out", hash_tei, *options), timeout=200).stderr
    assert "prism" in said  # and not what DirectRunner falls back to
    assert output_files(tmp_path / "out") == plain
    tayyar("verify", "--output", tmp_path / "out")


def test_the_flink_in_the_job_server_writes_the_same_files(
    source: Path, plain: dict[str, bytes], tmp_path: Path, hash_tei: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--flink_job_server_jar", job_server_jar())
    flink_sh(tmp_path, monkeypatch, *arguments(source, tmp_path / "out", hash_tei, *options))
    assert output_files(tmp_path / "out") == plain
    tayyar("verify", "--output", tmp_path / "out")


def test_a_flink_cluster_writes_the_same_files(
    source: Path,
    plain: dict[str, bytes],
    tmp_path: Path,
    hash_tei: str,
    flink_cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where = cluster_options(flink_cluster)
    finished = int(str(flink_cluster.overview()["jobs-finished"]))
    # The last one is known to the job server alone.
    options = ("--flink_job_server_jar", job_server_jar(), "--number_of_execution_retries", 0)
    flink_sh(tmp_path, monkeypatch, *arguments(source, tmp_path / "out", hash_tei, *where, *options))
    assert output_files(tmp_path / "out") == plain
    tayyar("verify", "--output", tmp_path / "out")
    assert flink_cluster.overview()["jobs-finished"] == finished + 1


def test_a_job_on_a_cluster_whose_worker_is_killed_fails_and_goes_on_when_it_is_called_again(
    source: Path, plain: dict[str, bytes], tmp_path: Path, hash_tei: str, flink_cluster: Cluster
) -> None:
    where = cluster_options(flink_cluster)
    options = ("--runner", "FlinkRunner", "--environment_type", "EXTERNAL", "--flink_version", "1.19")
    command = arguments(source, tmp_path / "out", hash_tei, *where, *options, "--parallelism", 2)
    command += ["--flink_job_server_jar", job_server_jar(), "--max_in_flight", 4]
    before = texts_embedded(hash_tei)
    with started(*command) as process:
        wait_until(lambda: process.poll() is not None or receipts(tmp_path / "out") > 1, "receipts", seconds=120)
        assert flink_cluster.kill_a_worker()
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert "The same command goes on" in said
    done = receipts(tmp_path / "out")
    assert 1 < done < len(plain)
    tayyar(*command, timeout=200)
    assert output_files(tmp_path / "out") == plain
    assert texts_embedded(hash_tei) - before < 900 * 1.4
    tayyar("verify", "--output", tmp_path / "out")


def test_a_flink_that_is_started_here_ends_with_a_killed_launcher(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not here; it is of util-linux")
    with EmbeddedTei(["--model", "hash", "--faults", '{"batch_seconds": 5}']) as slow:
        options = ("--flink_job_server_jar", job_server_jar())
        command = flink_command(tmp_path, monkeypatch, *arguments(source, tmp_path / "out", slow.url, *options))
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            wait_until(lambda: process.poll() is not None or java_of(process.pid), "Java")
            (java,) = java_of(process.pid)
            process.kill()
        wait_until(lambda: not java.is_running() or java.status() == psutil.STATUS_ZOMBIE, "the end of Java")


def java_of(pid: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children(recursive=True) if child.name() == "java"]


@pytest.mark.parametrize("runner", ["prism", "flink"])
def test_a_bucket_gives_and_takes_the_same_files(
    source: Path, plain: dict[str, bytes], tmp_path: Path, hash_tei: str, monkeypatch: pytest.MonkeyPatch, runner: str
) -> None:
    with gcs_server(tmp_path / "gcs") as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        bucket = GcsStorage(url, "tayyar-tests", runner)
        for path in source.glob("in/**/*.ndjson"):
            bucket.put(str(path.relative_to(source)), path.read_bytes())
        where = ["--input", f"{bucket.root}/in/**", "--output", f"{bucket.root}/out", "--endpoint", hash_tei]
        job = ["run", *where, "--shard_bytes", 9000]
        if runner == "prism":
            tayyar(*job, "--runner", "PrismRunner", "--prism_location", tool("prism"), timeout=200)
        else:
            flink_sh(tmp_path, monkeypatch, *job, "--flink_job_server_jar", job_server_jar())
        here, there = str(source).encode(), bucket.root.encode()
        found = {name: data.replace(there, here) for name, data in bucket.files().items()}
        outputs = {name.removeprefix("out/"): data for name, data in found.items() if name.startswith("out/")}
        assert {name: data for name, data in outputs.items() if not name.startswith("_job/")} == plain
        tayyar("verify", "--output", f"{bucket.root}/out")


@pytest.mark.parametrize("runner", ["prism", "flink", "cluster"])
def test_ten_documents_are_tried_and_leave_nothing(
    tmp_path: Path, hash_tei: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, runner: str
) -> None:
    command = ["check", "--output", tmp_path / "out", "--endpoint", hash_tei]
    if runner == "prism":
        said = tayyar(*command, "--runner", "PrismRunner", "--prism_location", tool("prism"), timeout=200).stdout
    else:
        where = cluster_options(request.getfixturevalue("flink_cluster")) if runner == "cluster" else []
        said = flink_sh(tmp_path, monkeypatch, *command, *where, "--flink_job_server_jar", job_server_jar())
    assert "Runner embedded ten documents and wrote them in" in said
    assert said.endswith("passed\n")
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["_job"]


def test_a_token_that_a_clusters_workers_do_not_have_is_found_before_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flink_cluster: Cluster
) -> None:
    monkeypatch.setenv("ONLY_HERE", "hf_secret")
    with EmbeddedTei(["--model", "hash", "--api_key", "env:ONLY_HERE"]) as tei:
        command = ["check", "--output", tmp_path / "out", "--endpoint", tei.url, "--token", "env:ONLY_HERE"]
        options = [*cluster_options(flink_cluster), "--flink_job_server_jar", job_server_jar()]
        said = flink_sh(tmp_path, monkeypatch, *command, *options, code=3)
    assert (
        "FlinkRunner did not embed ten documents: the token env:ONLY_HERE is empty or not set on this machine" in said
    )
    assert "set the variable where workers start" in said
    assert "hf_secret" not in said


def cluster_options(flink: Cluster) -> list[object]:
    return ["--flink_master", flink.master, "--environment_config", flink.workers]


def receipts(output: Path) -> int:
    return len(list(output.glob("_job/receipts/**/*.json")))


def flink_command(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: object) -> list[str]:
    """Make the script's environment out of this one, and return how a user calls it; `run` is left out as they do."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TAYYAR_VENV", made_environment(folder / "venv")["TAYYAR_VENV"])
    return [f"{ROOT}/run_scripts/flink.sh", *map(str, options[options[0] == "run" :])]


def flink_sh(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: object, code: int = 0) -> str:
    """Run the script to its end and return what it said: all of it where it fails."""
    command = flink_command(folder, monkeypatch, *options)
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=250, check=False)
    assert finished.returncode == code, finished.stdout + finished.stderr
    return finished.stdout + (finished.stderr if code else "")
