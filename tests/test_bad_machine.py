"""What happens where the machine does not do its part: disks without room, too few threads, clocks that jump."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from pipeline.job.run_marker import RunMarker
from tests.commands import ROOT, command, environment, output_files, started, tayyar_here, texts_embedded
from tests.documents import documents, write_ndjson

DOCUMENTS = 300
HANDSHAKE_TEXTS = 90  # at most, to know the endpoint; canaries included
FREE = 10_000  # files
NO_PROCESS = 2**22 + 1  # no machine has a process of so high a number
YEARS = timedelta(days=3650)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_ndjson(tmp_path / "in/wiki.ndjson", documents(DOCUMENTS, seed=1))
    return tmp_path / "in"


def run_options(source: Path, out: Path, url: str) -> tuple[object, ...]:
    return ("run", "--input", source, "--output", out, "--endpoint", url, "--shard_bytes", 40_000)


# --- disks: a tmpfs with a limit on its files -------------------------------------------------------------------------


def mount(*arguments: object) -> bool:
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    if shutil.which("mount") is None or not mount("-t", "tmpfs", "-o", f"size=16m,nr_inodes={FREE}", "tmpfs", place):
        pytest.skip("only root may mount a file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def limit(disk: Path, more_files: int) -> None:
    used = sum(1 for _ in disk.rglob("*")) + 1  # the root is counted, too
    assert mount("-o", f"remount,nr_inodes={used + more_files}", disk)


def embedded_so_far(out: Path) -> int:
    return sum(json.loads(path.read_bytes())["embedded"] for path in (out / "_job/receipts").glob("*.json"))


def test_a_disk_that_is_full_at_any_write_costs_nothing_that_has_its_receipt(
    source: Path, disk: Path, hash_tei: str
) -> None:
    out = disk / "out"
    seen = set[str]()
    for more_files in range(100):
        shutil.rmtree(out, ignore_errors=True)
        limit(disk, more_files)
        finished = tayyar_here(*run_options(source, out, hash_tei), code=None)
        limit(disk, FREE)
        if finished.returncode == 0:
            break
        assert finished.returncode in (1, 2)
        (message,) = (line for line in finished.stderr.splitlines() if line.startswith("tayyar: "))
        assert str(out) in message
        assert "No space left on device. Make room" in message
        assert "Traceback" not in finished.stderr
        name = message.partition(" cannot be written")[0].removeprefix(f"tayyar: {out}/")
        kind = re.sub(r"-\d{5}", "", name)
        if kind in seen:
            continue
        seen.add(kind)
        paid, before = embedded_so_far(out), texts_embedded(hash_tei)
        tayyar_here(*run_options(source, out, hash_tei))
        assert texts_embedded(hash_tei) - before <= DOCUMENTS - paid + HANDSHAKE_TEXTS
        tayyar_here("verify", "--output", out)
    shard = {"data/wiki.ndjson", "_job/keys/wiki.u64", "_job/receipts/wiki.json"}
    assert seen >= {"_job/job.json", "_job/plan.ndjson", "_job/report.json", "_job/report.html", *shard}


def test_a_read_only_output_is_refused_by_what_writes_and_verified_all_the_same(
    source: Path, disk: Path, hash_tei: str
) -> None:
    out = disk / "out"
    tayyar_here(*run_options(source, out, hash_tei))
    before = output_files(out)
    assert mount("-o", "remount,ro", disk)
    refusal = f"--output {out} cannot be written: Read-only file system"
    assert refusal in tayyar_here(*run_options(source, out, hash_tei), code=2).stderr
    assert refusal in tayyar_here(*run_options(source, out, hash_tei), "--overwrite", code=2).stderr
    assert "Read-only file system" in tayyar_here("redrive", "--output", out, "--endpoint", hash_tei, code=1).stderr
    assert f"{out}/_job/report.json cannot be written" in tayyar_here("report", "--output", out, code=1).stderr
    assert tayyar_here("status", "--output", out).stdout.startswith("finished")
    assert tayyar_here("verify", "--output", out).stdout.startswith("verified: 300 records")
    assert output_files(out) == before


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [4, 8])
def test_too_few_threads_are_one_sentence_and_the_next_run_goes_on(
    source: Path, tmp_path: Path, hash_tei: str, threads: int
) -> None:
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("the limit holds for a user's processes together: only root may become a user who has no others")
    os.chmod(tmp_path, 0o777)
    rights = "-all,+dac_override,+dac_read_search"  # to read this Python, wherever it is
    limited = ["setpriv", "--reuid=54321", "--clear-groups", f"--inh-caps={rights}", f"--ambient-caps={rights}"]
    arguments = command(*run_options(source, tmp_path / "out", hash_tei))
    # NumPy's own threads are none of ours: OpenBLAS ends a process that has too few.
    few = {**environment(), "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    program = [*limited, "prlimit", f"--nproc={threads}", *arguments]
    finished = subprocess.run(program, cwd=ROOT, env=few, capture_output=True, text=True, timeout=110, check=False)
    assert finished.returncode == 1, finished.stderr
    assert "tayyar: no thread can be started: the limit" in finished.stderr
    assert "Traceback" not in finished.stderr
    tayyar_here(*run_options(source, tmp_path / "out", hash_tei))
    tayyar_here("verify", "--output", tmp_path / "out")


# --- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [YEARS, -YEARS], ids=["from the future", "from long ago"])
def test_receipts_of_another_time_count_all_the_same(
    source: Path, tmp_path: Path, hash_tei: str, jump: timedelta
) -> None:
    out = tmp_path / "out"
    tayyar_here(*run_options(source, out, hash_tei))
    for path in (out / "_job/receipts").glob("*.json"):
        fields = json.loads(path.read_bytes())
        fields |= {name: fields[name] + jump.total_seconds() for name in ("started_at", "finished_at")}
        path.write_text(json.dumps(fields))
        at = time.time() + jump.total_seconds()
        os.utime(path, (at, at))
    left_over = RunMarker(socket.gethostname(), NO_PROCESS, (datetime.now(timezone.utc) + jump).isoformat())
    (out / left_over.name).parent.mkdir()
    (out / left_over.name).write_text(json.dumps(asdict(left_over)))
    before = texts_embedded(hash_tei)
    write_ndjson(source / "new.ndjson", documents(5, seed=2))
    tayyar_here("status", "--output", out)
    tayyar_here(*run_options(source, out, hash_tei))
    assert texts_embedded(hash_tei) - before <= 5 + HANDSHAKE_TEXTS
    assert not (out / left_over.name).exists()
    assert tayyar_here("status", "--output", out).stdout.startswith("finished")
    tayyar_here("report", "--output", out)
    assert tayyar_here("verify", "--output", out).stdout.startswith("verified: 305 records")


def test_a_marker_of_a_remote_job_from_the_future_holds_until_a_person_deletes_it(
    source: Path, tmp_path: Path, hash_tei: str
) -> None:
    out = tmp_path / "out"
    tayyar_here(*run_options(source, out, hash_tei))
    since = (datetime.now(timezone.utc) + YEARS).isoformat()
    marker = RunMarker(socket.gethostname(), NO_PROCESS, since, "DataflowRunner")
    (out / marker.name).parent.mkdir()
    (out / marker.name).write_text(json.dumps(asdict(marker)))
    refusal = tayyar_here(*run_options(source, out, hash_tei), "--overwrite", code=2).stderr
    assert f"then delete {out / marker.name}" in refusal
    tayyar_here(*run_options(source, out, hash_tei))
    (out / marker.name).unlink()
    tayyar_here(*run_options(source, out, hash_tei), "--overwrite")


# --- kills ------------------------------------------------------------------------------------------------------------


def test_a_verify_that_is_killed_changes_nothing(source: Path, tmp_path: Path, hash_tei: str) -> None:
    write_ndjson(source / "more.ndjson", documents(3000, seed=2))
    out = tmp_path / "out"
    tayyar_here(*run_options(source, out, hash_tei))
    before = output_files(out)
    with started("verify", "--output", out, "--processes", 2) as process:
        time.sleep(0.5)
        process.send_signal(signal.SIGKILL)
        process.wait()
    for name in ("verified.json", "report.json"):
        path = out / "_job" / name
        assert not path.exists() or json.loads(path.read_bytes())
    assert output_files(out) == before
    assert tayyar_here("verify", "--output", out).stdout.startswith("verified: 3,300 records")
