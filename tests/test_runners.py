"""The job on every runner and in every storage, one list of tests; below it, what is special to one runner."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from tests.commands import ROOT, call, command, running, texts_embedded
from tests.documents import mixed_corpus
from tests.flink import Cluster, cluster, job_server_jar
from tests.scripts import made_environment
from tests.servers import tool, wait_until
from tests.storages import PARQUET, Storage, embed, expected, fill, job, outputs, place_of, s3_options, verify
from tests.tei_simulator.process import TeiSimulator
from tests.test_end_to_end import HANDSHAKE_TEXTS

Call = Callable[..., list[str]]

# Each of these starts several programs, and they run side by side: what hangs ends after ten minutes.
OUTSIDE = [pytest.mark.outside, pytest.mark.timeout(600)]
FAR = [pytest.param(name, marks=OUTSIDE) for name in ("prism", "flink", "flink-cluster")]


@pytest.fixture(scope="module")
def flink_cluster(
    tmp_path_factory: pytest.TempPathFactory, gs: dict[str, str], s3: dict[str, str]
) -> Iterator[Cluster]:
    """A cluster whose workers reach every kind of storage."""
    with cluster(tmp_path_factory.mktemp("flink"), {**gs, **s3}) as found:
        yield found


@pytest.fixture
def flink_sh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """How a user calls the script, whose environment is made out of this one; `run` is left out as they do."""
    jar = job_server_jar()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TAYYAR_VENV", made_environment(tmp_path / "venv")["TAYYAR_VENV"])

    def script(name: str, *arguments: object) -> list[str]:
        chosen = [*([] if name == "run" else [name]), *arguments, "--flink_job_server_jar", jar]
        return [f"{ROOT}/run_scripts/flink.sh", *map(str, chosen)]

    return script


@pytest.fixture(params=["in-process", "multi-processing", *FAR])
def runner(request: pytest.FixtureRequest) -> Call:
    """How a command is called on a runner."""
    program, options = command, []
    if request.param == "multi-processing":
        options = ["--direct_running_mode", "multi_processing", "--direct_num_workers", 2]
    elif request.param == "prism":
        options = ["--runner", "PrismRunner", "--prism_location", tool("prism")]
    elif request.param == "flink":
        program = request.getfixturevalue("flink_sh")
    elif request.param == "flink-cluster":
        program = request.getfixturevalue("flink_sh")
        options = request.getfixturevalue("flink_cluster").options
    return lambda *arguments: program(*arguments, *options)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, hash_tei: str) -> dict[str, bytes]:
    """What must come out of the corpus."""
    found = expected(mixed_corpus(), tmp_path_factory.mktemp("plain"), hash_tei)
    assert len(found) > 12
    return found


@pytest.fixture(scope="module")
def slow_tei() -> Iterator[str]:
    """A server with which no machine has 4,000 documents embedded before it is seen that half of them are."""
    with TeiSimulator(["--faults", '{"batch_seconds": 0.05}']) as server:
        yield server.url


# Where a run is not killed, and finds no former vectors: the pairs of storage and runner that the two tests below do
# not take to the end.
PLAIN = [
    ("local", "prism"),
    ("local", "flink-cluster"),
    ("gs", "multi-processing"),
    ("gs", "flink"),
    ("s3", "prism"),
    ("s3", "flink"),
]


@pytest.mark.parametrize(
    ("kind", "runner"),
    [("local", "in-process"), *(pytest.param(*where, marks=OUTSIDE) for where in PLAIN)],
    indirect=True,
)
def test_the_same_bytes_come_out_and_another_space_is_refused(
    place: Storage, runner: Call, plain: dict[str, bytes], hash_tei: str
) -> None:
    fill(place, mixed_corpus())
    said = call(runner("run", *job(place, hash_tei)), timeout=250).stdout
    assert "total: embeddings = 600, documents = 605, dead letters = 5" in said
    assert outputs(place) == plain
    assert not [name for name in place.names() if "/tmp/" in name or "/run_markers/" in name]
    verify(place)
    whole = place.files()
    refusal = call(runner("run", *job(place, hash_tei, "--no_normalize")), code=2).stderr
    assert "they are normalized, those of the endpoint would be not normalized" in refusal
    assert place.files() == whole


# Each kind of storage and each runner at least once; documents, and how often it is killed.
KILLED = [
    ("gs", "in-process", 4000, 2),
    ("s3", "in-process", 4000, 2),
    ("s3", "multi-processing", 4000, 1),
    ("gs", "prism", 4000, 1),
    ("local", "flink", 2000, 1),
    ("gs", "flink-cluster", 2000, 1),
]


@pytest.mark.parametrize(
    ("kind", "runner", "documents", "times"),
    [("local", "in-process", 4000, 2), *(pytest.param(*where, marks=OUTSIDE) for where in KILLED)],
    indirect=["kind", "runner"],
)
def test_a_killed_run_goes_on_where_it_was(
    place: Storage,
    runner: Call,
    documents: int,
    times: int,
    tmp_path: Path,
    hash_tei: str,
    slow_tei: str,
    request: pytest.FixtureRequest,
) -> None:
    files = mixed_corpus(per_file=documents // 4)
    fill(place, files)
    program = runner("run", *job(place, slow_tei, "--max_in_flight", 64))
    before = texts_embedded(slow_tei)
    for _ in range(times):
        kill(program, place, documents // 60 // times)  # half of the shards in all, which sent again are too many
        if "--flink_master" in program:  # the job goes on there without its launcher
            assert request.getfixturevalue("flink_cluster").cancel() == 1
    done = receipts(place)
    call(program, timeout=250)
    assert texts_embedded(slow_tei) - before < documents * 1.25
    assert done < receipts(place)
    assert outputs(place) == expected(files, tmp_path, hash_tei)
    assert not [name for name in place.names() if "/tmp/" in name]
    verify(place)


REUSED = [
    ("gs", "in-process"),
    ("s3", "multi-processing"),
    ("gs", "prism"),
    ("local", "flink"),
    ("s3", "flink-cluster"),
]


@pytest.mark.parametrize(
    ("kind", "runner"),
    [("local", "multi-processing"), *(pytest.param(*where, marks=OUTSIDE) for where in REUSED)],
    indirect=True,
)
def test_only_new_texts_are_sent_after_a_change_and_none_for_another_format(
    place: Storage, runner: Call, tmp_path: Path, hash_tei: str
) -> None:
    files = mixed_corpus()
    fill(place, files)
    embed(place, hash_tei)
    lines = files["wiki_00.ndjson"].splitlines(keepends=True)
    changed = {
        "wiki_00.ndjson": b"".join(reversed(lines)) + b'{"content": "new"}\n',
        "renamed.json.bz2": files["a/b/wiki_02.json.bz2"],
    }
    fill(place, changed)
    place.remove("in/a/b/wiki_02.json.bz2")
    call(runner("run", *job(place, hash_tei, "--prune")), timeout=250)
    report = json.loads(place.files()["out/_job/report.json"])
    assert (report["last_run"]["sent"], report["last_run"]["reused"]) == (1, 300)
    left = {name: data for name, data in (files | changed).items() if name != "a/b/wiki_02.json.bz2"}
    assert outputs(place) == expected(left, tmp_path, hash_tei)
    assert not [name for name in place.names() if re.search("/(former|partial|reuse|tmp)/", name)]
    verify(place)
    before = texts_embedded(hash_tei)
    call(runner("run", *job(place, hash_tei, *PARQUET)), timeout=250)
    assert texts_embedded(hash_tei) - before <= HANDSHAKE_TEXTS
    assert outputs(place) == expected(left, tmp_path, hash_tei, *PARQUET)
    assert not [name for name in place.names() if re.search("/(former|partial|reuse|tmp)/", name)]
    verify(place)


def kill(program: Sequence[str], place: Storage, more: int) -> None:
    """Run the job until so many more shards are done, and kill its launcher."""
    enough = receipts(place) + more
    with running(program) as process:
        wait_until(lambda: process.poll() is not None or receipts(place) >= enough, "receipts", seconds=240)
        process.kill()
        assert process.wait() == -signal.SIGKILL


def receipts(place: Storage) -> int:
    return sum("/receipts/" in name for name in place.names())


@pytest.mark.parametrize("runner", FAR, indirect=True)
def test_ten_documents_are_tried_and_leave_nothing(tmp_path: Path, hash_tei: str, runner: Call) -> None:
    said = call(runner("check", "--output", tmp_path / "out", "--endpoint", hash_tei), timeout=200).stdout
    assert "Runner embedded ten documents and wrote them in" in said
    assert said.endswith("passed\n")
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["_job"]


@pytest.mark.outside
@pytest.mark.timeout(600)
def test_direct_runner_takes_prism_where_it_is_found(tmp_path: Path, plain: dict[str, bytes], hash_tei: str) -> None:
    place = place_of("local", tmp_path)
    fill(place, mixed_corpus())
    options = ("--runner", "DirectRunner", "--prism_location", tool("prism"))
    said = call(command("run", *job(place, hash_tei, *options)), timeout=200).stderr
    assert "prism" in said  # and not what DirectRunner falls back to
    assert outputs(place) == plain
    verify(place)


@pytest.mark.parametrize("kind", [pytest.param("gs", marks=OUTSIDE)], indirect=True)
def test_a_job_on_a_cluster_whose_worker_is_killed_fails_and_goes_on_when_it_is_called_again(
    place: Storage, plain: dict[str, bytes], hash_tei: str, flink_cluster: Cluster, flink_sh: Call
) -> None:
    fill(place, mixed_corpus())
    # The last option is known to the job server alone.
    options = (*flink_cluster.options, "--max_in_flight", 4, "--number_of_execution_retries", 0)
    program = flink_sh("run", *job(place, hash_tei, *options))
    before, finished = texts_embedded(hash_tei), flink_cluster.jobs("finished")
    with running(program) as process:
        wait_until(lambda: process.poll() is not None or receipts(place) > 1, "receipts", seconds=240)
        assert flink_cluster.kill_a_worker()
        said, _ = process.communicate(timeout=240)
    assert process.returncode == 1, said
    assert "The same command continues" in said
    done = receipts(place)
    call(program, timeout=200)
    assert flink_cluster.jobs("finished") == finished + 1
    assert 1 < done < receipts(place)
    assert outputs(place) == plain
    # Of the four texts in flight one is the canary, so a third more texts are embedded than documents.
    assert texts_embedded(hash_tei) - before < 600 * 1.4 * 4 / 3
    verify(place)


@pytest.mark.parametrize("kind", [pytest.param("s3", marks=OUTSIDE)], indirect=True)
def test_a_cluster_starts_workers_itself_and_they_have_beam_s_options(
    place: Storage, plain: dict[str, bytes], hash_tei: str, s3: dict[str, str], flink_cluster: Cluster, flink_sh: Call
) -> None:
    fill(place, mixed_corpus())
    keys = s3_options({**s3, "AWS_SECRET_ACCESS_KEY": "not-for-any-log"})
    where = ("--environment_type", "PROCESS", "--flink_master", flink_cluster.master)
    options = (*where, *keys, "--default_sdk_harness_log_level", "INFO")
    finished = call(flink_sh("run", *job(place, hash_tei, *options)), timeout=250)
    assert outputs(place) == plain
    verify(place)
    logs = {path.name: path.read_text(errors="replace") for path in flink_cluster.logs.rglob("*") if path.is_file()}
    assert "Python sdk harness starting" in logs["tasks"]  # what workers say comes there
    logs |= {"the launcher": finished.stdout + finished.stderr}
    assert [name for name, log in logs.items() if "not-for-any-log" in log] == []


@pytest.mark.outside
@pytest.mark.timeout(600)
def test_a_flink_that_is_started_here_ends_with_a_killed_launcher(tmp_path: Path, flink_sh: Call) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not here; it is of util-linux")
    place = place_of("local", tmp_path)
    fill(place, mixed_corpus())
    with TeiSimulator(["--faults", '{"batch_seconds": 5}']) as slow:
        with running(flink_sh("run", *job(place, slow.url))) as process:
            wait_until(lambda: process.poll() is not None or java_of(process.pid), "Java")
            (java,) = java_of(process.pid)
            process.kill()
        wait_until(lambda: not java.is_running() or java.status() == psutil.STATUS_ZOMBIE, "the end of Java")


def java_of(pid: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children(recursive=True) if child.name() == "java"]


@pytest.mark.outside
@pytest.mark.timeout(600)
def test_a_token_that_a_clusters_workers_do_not_have_is_found_before_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flink_cluster: Cluster, flink_sh: Call
) -> None:
    monkeypatch.setenv("ONLY_HERE", "hf_secret")
    with TeiSimulator(["--api_key", "env:ONLY_HERE"]) as tei:
        where = ("--output", tmp_path / "out", "--endpoint", tei.url, "--token", "env:ONLY_HERE")
        finished = call(flink_sh("check", *where, *flink_cluster.options), code=3, timeout=200)
    said = finished.stdout + finished.stderr
    assert (
        "FlinkRunner did not embed ten documents: the secret env:ONLY_HERE is empty or not set on this machine" in said
    )
    assert "set the variable where workers start" in said
    assert "hf_secret" not in said
