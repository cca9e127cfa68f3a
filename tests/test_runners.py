"""The job where it runs: Prism and Flink, the same bytes out of each as out of the local runner."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import ROOT, environment, output_files, started, tayyar, texts_embedded
from tests.documents import write_corpus
from tests.flink import Cluster, cluster, job_server_jar
from tests.scripts import made_environment
from tests.servers import tool, wait_until

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
    source: Path, plain: dict[str, bytes], tmp_path: Path, hash_tei: str
) -> None:
    options = ("--flink_job_server_jar", job_server_jar())
    flink_sh(tmp_path, *arguments(source, tmp_path / "out", hash_tei, *options)[1:])
    assert output_files(tmp_path / "out") == plain
    tayyar("verify", "--output", tmp_path / "out")


def test_a_flink_cluster_writes_the_same_files(
    source: Path, plain: dict[str, bytes], tmp_path: Path, hash_tei: str, flink_cluster: Cluster
) -> None:
    where = ("--flink_master", flink_cluster.master, "--environment_config", flink_cluster.workers)
    # The last one is known to the job server alone.
    options = ("--flink_job_server_jar", job_server_jar(), "--number_of_execution_retries", 0)
    flink_sh(tmp_path, *arguments(source, tmp_path / "out", hash_tei, *where, *options)[1:])
    assert output_files(tmp_path / "out") == plain
    tayyar("verify", "--output", tmp_path / "out")
    assert flink_cluster.overview()["jobs-finished"] == 1


def test_a_job_on_a_cluster_whose_worker_is_killed_fails_and_goes_on_when_it_is_called_again(
    source: Path, plain: dict[str, bytes], tmp_path: Path, hash_tei: str, flink_cluster: Cluster
) -> None:
    where = ("--flink_master", flink_cluster.master, "--environment_config", flink_cluster.workers)
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


def receipts(output: Path) -> int:
    return len(list(output.glob("_job/receipts/**/*.json")))


def flink_sh(folder: Path, *options: object) -> str:
    """Call the script as a user does, in an environment that is made already: this one."""
    finished = subprocess.run(
        [f"{ROOT}/run_scripts/flink.sh", *map(str, options)],
        cwd=folder,
        env=environment() | made_environment(folder / "venv"),
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout
