"""A Flink cluster for tests: one job manager, one task manager with two slots, one pool of Python workers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.commands import ROOT
from tests.scripts import made_environment
from tests.servers import TOOLS, free_port, serving, tool, wait_until


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Attributes:
        master: host and port of its REST interface.
        workers: host and port of the pool of Python workers.
        pool: the pool's process id.
        logs: the folder of all that its processes say.
    """

    master: str
    workers: str
    pool: int
    logs: Path

    @property
    def options(self) -> list[str]:
        """The options that a job is given to run there."""
        return ["--flink_master", self.master, "--environment_config", self.workers]

    def overview(self) -> dict[str, object]:
        with contextlib.suppress(OSError):
            found: dict[str, object] = json.load(urllib.request.urlopen(f"http://{self.master}/overview", timeout=10))
            return found
        return {}

    def jobs(self, state: str) -> int:
        """How many jobs there are in a state: running, finished, cancelled, failed."""
        return int(str(self.overview()[f"jobs-{state}"]))

    def cancel(self) -> int:
        """Cancel the jobs that are running, wait until they are, and return how many they were."""
        jobs = json.load(urllib.request.urlopen(f"http://{self.master}/jobs", timeout=10))["jobs"]
        running = [job["id"] for job in jobs if job["status"] == "RUNNING"]
        for job in running:
            url = f"http://{self.master}/jobs/{job}?mode=cancel"
            urllib.request.urlopen(urllib.request.Request(url, method="PATCH"), timeout=10).close()
        wait_until(lambda: self.jobs("running") == 0, "the end of cancelled jobs", seconds=120)
        return len(running)

    def kill_a_worker(self) -> bool:
        """Kill one Python worker; False if there is none."""
        workers = psutil.Process(self.pool).children()
        for worker in workers[:1]:
            worker.kill()
        return bool(workers)


def job_server_jar() -> Path:
    """Beam's Flink job server; without it, the test is skipped."""
    return _provided("flink-job-server.jar")


def _provided(name: str) -> Path:
    tool("java")
    path = TOOLS / name
    if not path.exists():
        pytest.skip(f"{path} is not here; .ci/tools installs it")
    return path


@contextlib.contextmanager
def cluster(folder: Path, variables: Mapping[str, str]) -> Iterator[Cluster]:
    """Run a cluster until the block ends; the workers of its pool have these variables, others not."""
    home, rest, rpc, workers = _provided("flink"), free_port(), free_port(), free_port()
    _configure(home, folder / "conf", rest, rpc)
    flink = {"FLINK_CONF_DIR": folder / "conf", "FLINK_LOG_DIR": folder, "FLINK_PID_DIR": folder}
    environment = {name: str(path) for name, path in flink.items()} | made_environment(folder / "venv")
    pool_command = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={workers}"]
    here = {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    without = ["env", *(f"--unset={name}" for name in variables)]
    with (
        serving([f"{home}/bin/jobmanager.sh", "start-foreground"], rest, folder / "jobs", environment),
        serving(
            [*without, f"{home}/bin/taskmanager.sh", "start-foreground"], rpc, folder / "tasks", {**here, **environment}
        ),
        serving(pool_command, workers, folder / "pool", {**here, **variables}) as pool,
    ):
        found = Cluster(f"127.0.0.1:{rest}", f"127.0.0.1:{workers}", pool.pid, folder)
        wait_until(lambda: found.overview().get("slots-total") == 2, "two slots in the cluster")
        yield found


def _configure(home: Path, folder: Path, rest: int, rpc: int) -> None:
    """Write the configuration: Flink's own, but for the addresses, the slots and less memory."""
    shutil.copytree(home / "conf", folder)
    java = [line for line in (home / "conf/config.yaml").read_text().splitlines() if line.startswith("      all:")]
    settings = {
        "env.java.opts.all": java[0].partition("all:")[2].strip(),
        "jobmanager.rpc.address": "127.0.0.1",
        "jobmanager.rpc.port": rpc,
        "jobmanager.bind-host": "127.0.0.1",
        "taskmanager.host": "127.0.0.1",
        "taskmanager.bind-host": "127.0.0.1",
        "rest.address": "127.0.0.1",
        "rest.bind-address": "127.0.0.1",
        "rest.port": rest,
        "rest.bind-port": rest,
        "jobmanager.memory.process.size": "1024m",
        "taskmanager.memory.process.size": "1728m",
        "taskmanager.numberOfTaskSlots": 2,
    }
    (folder / "config.yaml").write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
