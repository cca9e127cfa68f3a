"""The job as a user runs it, against a plain loop over the same files and the same server."""

from __future__ import annotations

import base64
import gzip
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import orjson
import psutil
import pytest
import requests

from pipeline.job import run_marker
from tests.commands import output_files, started, tayyar, tayyar_here, texts_embedded
from tests.documents import documents, write_corpus, write_ndjson
from tests.shards import folder
from tests.storages import LocalStorage
from tests.tei_simulator.process import TeiSimulator

HANDSHAKE_TEXTS = 60  # at most, to know the endpoint
_VECTOR_FIELD = re.compile(rb',?"embedding":(?P<space> ?)(?P<vector>\[[^\]]*\])')


@pytest.fixture
def tei(hash_tei: str) -> str:
    return hash_tei


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "in", files=3, per_file=200)
    return tmp_path / "in"


def embed_plainly(url: str, texts: list[str]) -> list[list[float]]:
    """What the job must come to, by the simplest program that does it."""
    vectors: list[list[float]] = []
    for first in range(0, len(texts), 32):
        reply = requests.post(f"{url}/embed", json={"inputs": texts[first : first + 32], "truncate": True}, timeout=30)
        vectors += reply.json()
    return vectors


def assert_embedded(source: Path, output: Path, name: str, url: str) -> None:
    """Hold one source against all of its shards: complete, in order, each line's bytes kept, each vector its text's."""
    lines = source.read_bytes().splitlines()
    shards = sorted((output / "data").glob(f"{name}-?????.ndjson"))
    found = [line for shard in shards for line in shard.read_bytes().splitlines()]
    assert len(found) == len(lines) > 0
    texts = [json.loads(line)["content"] for line in lines]
    for line, embedded, vector in zip(lines, found, embed_plainly(url, texts), strict=True):
        field = _VECTOR_FIELD.search(embedded)
        assert field is not None
        if field["space"]:  # the field was there already, and json.dumps writes a space behind the colon
            without = embedded[: field.start("vector")] + b"null" + embedded[field.end() :]
        else:
            without = embedded[: field.start()] + embedded[field.end() :]
        assert without == line
        assert np.array_equal(np.array(orjson.loads(field["vector"]), "f4"), np.array(vector, "f4"))


def run(corpus: Path, output: Path, url: str, *options: object, code: int | None = 0) -> str:
    finished = tayyar_here("run", "--input", f"{corpus}/**", "--output", output, "--endpoint", url, *options, code=code)
    return finished.stdout + finished.stderr


@pytest.mark.parametrize(("shard_bytes", "batch"), [(1_000_000, 32), (7_000, 32), (7_000, 5), (900, 1)])
def test_the_pipeline_does_what_a_plain_loop_does(
    corpus: Path, tmp_path: Path, tei: str, shard_bytes: int, batch: int
) -> None:
    with TeiSimulator(["--max_client_batch_size", str(batch)]) as server:
        run(corpus, tmp_path / "out", server.url, "--shard_bytes", shard_bytes)
    for source in sorted(corpus.rglob("*.ndjson")):
        assert_embedded(source, tmp_path / "out", str(source.relative_to(corpus).with_suffix("")), tei)
    tayyar_here("verify", "--output", tmp_path / "out")


def test_the_summary_says_what_the_tutorial_said_and_more(corpus: Path, tmp_path: Path, tei: str) -> None:
    (corpus / "wiki_00.ndjson").open("a").write("no json\n")
    said = run(corpus, tmp_path / "out", tei, "--price_per_hour", "3600")
    lines = said.splitlines()
    assert "wiki_00.ndjson: embeddings = 200, documents = 201, dead letters = 1" in lines
    assert "a/wiki_01.ndjson: embeddings = 200, documents = 200" in lines
    assert "total: embeddings = 600, documents = 601, dead letters = 1" in lines
    assert any(line.startswith("  invalid_json: 1, first at byte ") for line in lines)
    report = json.loads((tmp_path / "out/_job/report.json").read_bytes())
    assert report["totals"]["dollars"] == pytest.approx(report["totals"]["seconds"], abs=0.001)
    assert report["totals"]["tokens"] > 600
    assert report["complete"]
    assert report["balanced"]


def test_twelve_thousand_documents_survive_three_kills(tmp_path: Path, tei: str) -> None:
    write_corpus(tmp_path / "in", files=6, per_file=2000)
    options = ("--shard_bytes", 20_000, "--max_in_flight", 64)
    run(tmp_path / "in", tmp_path / "undisturbed", tei, *options)
    before = texts_embedded(tei)
    receipts = tmp_path / "killed/_job/receipts"
    rng = random.Random(5)
    for _ in range(3):
        inputs = ("--input", f"{tmp_path}/in/**", "--output", tmp_path / "killed")
        with started("run", *inputs, "--endpoint", tei, *options) as process:
            enough = len(list(receipts.rglob("*.json"))) + rng.randint(1, 20)
            while process.poll() is None and len(list(receipts.rglob("*.json"))) < enough:
                time.sleep(rng.random() / 50)
            process.kill()
            assert process.wait() == -signal.SIGKILL
    assert 3 <= len(list(receipts.rglob("*.json"))) < len(list((tmp_path / "undisturbed").rglob("*.json")))
    run(tmp_path / "in", tmp_path / "killed", tei, *options)
    sent = texts_embedded(tei) - before
    # A canary with every 31 texts, four handshakes, and with each kill the few shards that were under way.
    assert 12_000 <= sent < 13_200
    assert output_files(tmp_path / "killed") == output_files(tmp_path / "undisturbed")
    assert sorted(path.name for path in (tmp_path / "killed/_job").iterdir()) == [
        "job.json",
        "keys",
        "plan.ndjson",
        "receipts",
        "report.html",
        "report.json",
        "report.prom",
    ]
    for source in sorted((tmp_path / "in").rglob("*.ndjson")):
        name = str(source.relative_to(tmp_path / "in").with_suffix(""))
        assert_embedded(source, tmp_path / "killed", name, tei)
    tayyar_here("verify", "--output", tmp_path / "killed")


def test_a_finished_job_sends_nothing_again(corpus: Path, tmp_path: Path, tei: str) -> None:
    run(corpus, tmp_path / "out", tei)
    first = output_files(tmp_path / "out")
    before = texts_embedded(tei)
    run(corpus, tmp_path / "out", tei)
    assert texts_embedded(tei) - before <= HANDSHAKE_TEXTS
    assert output_files(tmp_path / "out") == first


def test_only_what_is_damaged_or_missing_is_done_again(corpus: Path, tmp_path: Path, tei: str) -> None:
    run(corpus, tmp_path / "out", tei, "--shard_bytes", 20_000)
    whole = output_files(tmp_path / "out")
    (tmp_path / "out/_job/receipts/wiki_00-00001.json").unlink()
    (tmp_path / "out/data/a/wiki_01-00000.ndjson").unlink()
    cut = tmp_path / "out/data/a/b/wiki_02-00001.ndjson"
    cut.write_bytes(cut.read_bytes()[:-1])
    (tmp_path / "out/data/wiki_00-00099.ndjson").write_text("a shard that there is not\n")
    (tmp_path / "out/dead_letters").mkdir()
    (tmp_path / "out/dead_letters/wiki_00-00000.ndjson").write_text("left over\n")
    (tmp_path / "out/notes.txt").write_text("the user's own")
    before = texts_embedded(tei)
    run(corpus, tmp_path / "out", tei, "--shard_bytes", 20_000)
    assert 0 < texts_embedded(tei) - before < 400
    assert output_files(tmp_path / "out") == whole | {"notes.txt": b"the user's own"}


def test_changed_inputs_are_redone_and_their_stale_files_removed(corpus: Path, tmp_path: Path, tei: str) -> None:
    run(corpus, tmp_path / "out", tei, "--shard_bytes", 10_000)
    write_ndjson(corpus / "wiki_00.ndjson", documents(10, seed=77))
    write_ndjson(corpus / "new.ndjson", documents(10, seed=78))
    before = texts_embedded(tei)
    run(corpus, tmp_path / "out", tei, "--shard_bytes", 10_000)
    assert 20 <= texts_embedded(tei) - before <= 40 + HANDSHAKE_TEXTS
    assert_embedded(corpus / "wiki_00.ndjson", tmp_path / "out", "wiki_00", tei)
    tayyar_here("verify", "--output", tmp_path / "out")


def test_what_was_embedded_of_a_removed_input_stays_and_verify_says_so(corpus: Path, tmp_path: Path, tei: str) -> None:
    run(corpus, tmp_path / "out", tei)
    before = output_files(tmp_path / "out")
    (corpus / "wiki_00.ndjson").unlink()
    shown = run(corpus, tmp_path / "out", tei)
    assert f"1 input of former runs is not among the inputs of this run, {corpus}/wiki_00.ndjson" in shown
    assert output_files(tmp_path / "out") == before
    report = tayyar_here("verify", "--output", tmp_path / "out").stdout
    assert f"1 of 3 sources no longer exists ({corpus}/wiki_00.ndjson): its 200 records were checked" in report


def test_other_vectors_are_refused_before_anything_is_sent_and_let_in_with_overwrite(
    corpus: Path, tmp_path: Path, tei: str
) -> None:
    run(corpus, tmp_path / "out", tei)
    before = output_files(tmp_path / "out"), (tmp_path / "out/_job/job.json").read_bytes()
    sent = texts_embedded(tei)
    refusal = run(corpus, tmp_path / "out", tei, "--prompt_name", "query", code=2)
    for words in ("holds the vectors of another model", "prompt 'query'", "the default prompt", "at worst"):
        assert words in refusal
    assert texts_embedded(tei) - sent <= HANDSHAKE_TEXTS
    assert (output_files(tmp_path / "out"), (tmp_path / "out/_job/job.json").read_bytes()) == before
    run(corpus, tmp_path / "out", tei, "--prompt_name", "query", "--overwrite")
    assert output_files(tmp_path / "out") != before[0]
    tayyar_here("verify", "--output", tmp_path / "out")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--shard_bytes", "5000"), ("--overlong", "dead_letter"), ("--text_field", "id"), ("--embedding_field", "vector")],
)
def test_other_settings_are_let_in_and_give_what_a_run_from_nothing_gives(
    corpus: Path, tmp_path: Path, tei: str, option: str, value: str
) -> None:
    run(corpus, tmp_path / "out", tei)
    run(corpus, tmp_path / "out", tei, option, value, code=None)
    run(corpus, tmp_path / "nothing", tei, option, value, code=None)
    assert output_files(tmp_path / "out") == output_files(tmp_path / "nothing")
    assert output_files(tmp_path / "out")


def test_the_same_model_under_another_name_goes_on_and_the_history_grows(corpus: Path, tmp_path: Path) -> None:
    with TeiSimulator() as server:
        run(corpus, tmp_path / "out", server.url)
    (corpus / "more.ndjson").write_text('{"content": "more"}\n')
    with TeiSimulator(["--info_fields", '{"model_id": "/repository"}']) as server:
        report = run(corpus, tmp_path / "out", server.url)
    assert "the endpoint has other names than before (tayyar/hash" in report
    history = json.loads((tmp_path / "out/_job/job.json").read_bytes())["history"]
    assert [entry["model_id"] for entry in history] == ["tayyar/hash", "/repository"]
    receipts = {path.stem: json.loads(path.read_bytes()) for path in (tmp_path / "out/_job/receipts").glob("*.json")}
    assert receipts["more-00000"]["model"] == "/repository"
    assert receipts["wiki_00-00000"]["model"] == "tayyar/hash"
    assert receipts["more-00000"]["space"] == receipts["wiki_00-00000"]["space"]
    tayyar_here("verify", "--output", tmp_path / "out")


def test_an_output_without_a_receipt_does_not_survive_an_overwrite_nor_its_source(
    corpus: Path, tmp_path: Path, tei: str
) -> None:
    out = tmp_path / "out"
    run(corpus, out, tei, "--shard_bytes", 10_000)
    (out / "_job/receipts/wiki_00-00001.json").unlink()
    other = tmp_path / "other/new.ndjson"
    write_ndjson(other, documents(10, seed=3))
    shutil.copytree(out, tmp_path / "resumed")
    run(other.parent, out, tei, "--prompt_name", "query", "--overwrite")
    assert [*output_files(out)] == ["data/new-00000.ndjson"]
    run(other.parent, tmp_path / "resumed", tei)
    assert "data/wiki_00-00001.ndjson" not in output_files(tmp_path / "resumed")
    assert "data/wiki_00-00000.ndjson" in output_files(tmp_path / "resumed")


def test_overwrite_touches_no_file_that_this_folder_has_not_written(corpus: Path, tmp_path: Path, tei: str) -> None:
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    (out / "data/wiki_00-00000.ndjson").write_text("theirs")
    assert "data/wiki_00-00000.ndjson is in the way" in run(corpus, out, tei, "--overwrite", code=2)
    (out / "data/wiki_00-00000.ndjson").unlink()
    run(corpus, out, tei)
    before = output_files(out)
    (out / "data/new-00000.ndjson").write_text("theirs")
    write_ndjson(corpus / "new.ndjson", documents(10, seed=3))
    assert "data/new-00000.ndjson is in the way" in run(corpus, out, tei, "--overwrite", code=2)
    assert output_files(out) == before | {"data/new-00000.ndjson": b"theirs"}


def test_a_remote_job_whose_launcher_died_is_left_alone(corpus: Path, tmp_path: Path, tei: str) -> None:
    out = tmp_path / "out"
    run(corpus, out, tei)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    marker = run_marker.RunMarker(
        socket.gethostname(), ended.pid, datetime.now(timezone.utc).isoformat(), "DataflowRunner"
    )
    half = out / "_job/tmp/remote-1-2-3"
    for path, content in ((out / marker.name, json.dumps(asdict(marker))), (half, "half")):
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    before = output_files(out)
    refusal = run(corpus, out, tei, "--overwrite", code=2)
    assert "workers may live on" in refusal
    assert str(out / marker.name) in refusal
    refusal = tayyar_here("redrive", "--output", out, "--endpoint", tei, code=2).stderr
    assert "Cancel the job in DataflowRunner" in refusal
    run(corpus, out, tei)
    assert half.exists()
    assert output_files(out) == before
    (out / marker.name).unlink()
    run(corpus, out, tei)
    assert not half.exists()


def test_worker_processes_write_the_same_files(
    corpus: Path, tmp_path: Path, tei: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run(corpus, tmp_path / "one", tei, "--shard_bytes", 9_000)
    workers = ("--direct_running_mode", "multi_processing", "--direct_num_workers", 2)
    capfd.readouterr()
    run(corpus, tmp_path / "two", tei, "--shard_bytes", 9_000, *workers)
    assert not capfd.readouterr().err  # Beam's harness by itself prints five lines a worker process
    run(corpus, tmp_path / "three", tei, "--shard_bytes", 9_000, "--runner", "DirectRunner")
    assert output_files(tmp_path / "one") == output_files(tmp_path / "two") == output_files(tmp_path / "three")


def test_worker_processes_share_the_permits_from_the_start(tmp_path: Path) -> None:
    processes = 3  # two would not tell a third of the permits from half of them
    for number in range(4 * processes):  # a shard each; as many round trips as one process needs leave the others room
        write_ndjson(tmp_path / f"in/{number}.ndjson", documents(64, seed=number))
    permits = 50 * processes
    slow = ["--faults", '{"batch_seconds": 0.1}', "--max_concurrent_requests", str(permits)]
    with TeiSimulator(slow) as simulator:
        workers = ("--direct_running_mode", "multi_processing", "--direct_num_workers", processes)
        run(tmp_path / "in", tmp_path / "out", simulator.url, *workers)
        stats = requests.get(f"{simulator.url}/simulator/statistics", timeout=10).json()
    # Each begins with its part, and finds by itself what the others leave it: that may touch the permits once.
    assert stats["rejected"] <= processes, stats
    assert 64 <= stats["peak_texts_in_flight"] <= 1.25 * permits, stats  # more than one process was at work


def test_a_killed_worker_process_ends_the_run_with_an_error_and_the_next_one_resumes(
    corpus: Path, tmp_path: Path, tei: str
) -> None:
    write_corpus(corpus, files=3, per_file=1000)
    options = ("--shard_bytes", 20_000, "--max_in_flight", 64)
    workers = ("--direct_running_mode", "multi_processing", "--direct_num_workers", 2)
    inputs = ("--input", f"{corpus}/**", "--output", tmp_path / "out")
    # Each batch takes its time, so that much is left to do when the worker is killed.
    slow = TeiSimulator(["--faults", '{"batch_seconds": 0.1}'])
    with slow, started("run", *inputs, "--endpoint", slow.url, *options, *workers) as process:
        while process.poll() is None and not list((tmp_path / "out").glob("_job/receipts/**/*.json")):
            time.sleep(0.01)
        worker = next(
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if "pipeline.runners.worker" in " ".join(child.cmdline()) and child.name().startswith("python")
        )
        worker.kill()
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "The same command continues" in said
    run(corpus, tmp_path / "out", tei, *options)
    tayyar_here("verify", "--output", tmp_path / "out")


def test_the_embedded_server_ends_with_a_killed_run(tmp_path: Path) -> None:
    write_corpus(tmp_path / "in", files=1, per_file=300)
    with started("run", "--input", tmp_path / "in", "--output", tmp_path / "out") as process:
        children: list[psutil.Process] = []
        while process.poll() is None and not children:
            children = psutil.Process(process.pid).children(recursive=True)
            time.sleep(0.01)
        process.kill()
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert gone
    assert not alive


def test_a_truncated_source_fails_the_run_by_name_and_keeps_its_complete_shards(tmp_path: Path, tei: str) -> None:
    write_ndjson(tmp_path / "plain.ndjson", documents(500, seed=1))
    whole = gzip.compress((tmp_path / "plain.ndjson").read_bytes())
    source = tmp_path / "in/wiki.ndjson.gz"
    source.parent.mkdir()
    source.write_bytes(whole[: len(whole) * 3 // 4])
    said = run(tmp_path / "in", tmp_path / "out", tei, "--shard_bytes", 10_000, code=1)
    assert f"{source} is truncated or corrupt" in said
    kept = output_files(tmp_path / "out")
    assert len(kept) > 3
    source.write_bytes(whole)
    os.utime(source, (1, 1))
    run(tmp_path / "in", tmp_path / "out", tei, "--shard_bytes", 10_000)
    assert_embedded(tmp_path / "plain.ndjson", tmp_path / "out", "wiki", tei)
    assert kept.items() <= output_files(tmp_path / "out").items()
    tayyar_here("verify", "--output", tmp_path / "out")


def test_every_reason_of_a_dead_letter_ends_in_its_file(tmp_path: Path, tei: str) -> None:
    lines = [
        b'{"content": "good"}',
        b'{"content": "\xff"}',
        b"{",
        b"[]",
        b"{}",
        b'{"content": " "}',
        b"",
        b'{"content": "' + b"word " * 600 + b'"}',
    ]
    (tmp_path / "in.ndjson").write_bytes(b"\n".join(lines))
    said = run(tmp_path / "in.ndjson", tmp_path / "out", tei, "--overlong", "dead_letter", code=2)
    assert "matches no file" in said
    options = ("--input", tmp_path / "in.ndjson", "--output", tmp_path / "out", "--endpoint", tei)
    said = tayyar_here("run", *options, "--overlong", "dead_letter", code=4).stdout
    assert "6 of 7 records are dead letters" in said
    letters = [json.loads(line) for line in (tmp_path / "out/dead_letters/in-00000.ndjson").read_bytes().splitlines()]
    assert [letter["reason"] for letter in letters] == [
        "invalid_utf8",
        "invalid_json",
        "not_an_object",
        "missing_text",
        "empty_text",
        "overlong_text",
    ]
    assert base64.b64decode(letters[0]["line_base64"]) == lines[1]
    assert letters[5]["http_status"] == 422
    assert letters[5]["line"].encode() == lines[7]
    assert letters[2]["offset"] == len(b"\n".join(lines[:3])) + 1
    tayyar_here("verify", "--output", tmp_path / "out", "--max_dead_letter_ratio", 1)


def test_a_hopeless_run_stops_early_and_keeps_what_it_did(tmp_path: Path, tei: str) -> None:
    write_ndjson(
        tmp_path / "in.ndjson", ({"content" if number == 0 else "title": f"text {number}"} for number in range(20_000))
    )
    options = (
        "--input",
        tmp_path / "in.ndjson",
        "--output",
        tmp_path / "out",
        "--endpoint",
        tei,
        "--shard_bytes",
        9000,
    )
    said = tayyar_here("run", *options, code=4).stderr
    assert "of them are missing_text" in said
    assert json.loads(tayyar_here("status", "--output", tmp_path / "out", "--json").stdout)["state"] == "stopped"
    assert not {"run_markers", "tmp"} & {path.name for path in (tmp_path / "out/_job").iterdir()}
    assert said.rstrip().endswith(
        "Fix the records, or raise --max_dead_letter_ratio; then the same command continues from what is done."
    )
    assert 1000 <= sum(1 for path in tmp_path.glob("out/dead_letters/*") for _ in path.open("rb")) < 3000
    tayyar_here("run", *options, "--max_dead_letter_ratio", 1)
    tayyar_here("verify", "--output", tmp_path / "out", "--max_dead_letter_ratio", 1)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--endpoint", "http://127.0.0.1:1", "--give_up_after", "0.5"], 3, "127.0.0.1:1"),
        (["--expected_dimensions", "768"], 3, "384"),
        (["--prompt_name", "nonsense"], 3, "nonsense"),
        (["--token", "env:TAYYAR_TEST_NO_SUCH_TOKEN"], 3, "TAYYAR_TEST_NO_SUCH_TOKEN"),
        (["--shard_byte", "5"], 2, "--shard_byte"),
        (["--direct_running_mode", "multi_threading"], 2, "loses"),
    ],
)
def test_what_cannot_work_ends_at_once_with_its_exit_code(
    corpus: Path, tmp_path: Path, tei: str, options: list[str], code: int, words: str
) -> None:
    endpoint = [] if "--endpoint" in options else ["--endpoint", tei]
    said = tayyar_here("run", "--input", corpus, "--output", tmp_path / "out", *endpoint, *options, code=code)
    assert words in said.stderr
    assert not list(tmp_path.glob("out/**/*.ndjson"))


def test_an_interrupted_run_says_how_to_go_on(corpus: Path, tmp_path: Path, tei: str) -> None:
    write_corpus(corpus, files=3, per_file=4000)
    options = ("--input", corpus, "--output", tmp_path / "out", "--endpoint", tei, "--shard_bytes", 9000)
    with started("run", *options) as process:
        while process.poll() is None and not list((tmp_path / "out").glob("_job/receipts/**/*.json")):
            time.sleep(0.01)
        process.terminate()
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert said.strip().endswith("tayyar: stopped; the same command continues from here")


def test_files_of_others_are_neither_overwritten_nor_deleted(corpus: Path, tmp_path: Path, tei: str) -> None:
    out = tmp_path / "out"
    (out / "dead_letters").mkdir(parents=True)
    (out / "data").mkdir()
    theirs = {
        "data/wiki_00-20240101.ndjson": "theirs",
        "dead_letters/notes.txt": "theirs",
        "data/wiki_00.txt": "theirs",
    }
    for name, text in theirs.items():
        (out / name).write_text(text)
    (out / "data/wiki_00-00000.ndjson").write_text("in the way")
    assert "data/wiki_00-00000.ndjson is in the way" in run(corpus, out, tei, code=2)
    (out / "data/wiki_00-00000.ndjson").unlink()
    run(corpus, out, tei, "--overwrite")
    run(corpus, out, tei, "--overwrite", "--shard_bytes", 10_000)
    found = output_files(out)
    assert {name: found[name].decode() for name in theirs} == theirs
    said = tayyar_here("verify", "--output", out, code=5).stderr
    assert "dead_letters/notes.txt: no valid receipt vouches for this file" in said


def test_nothing_is_overwritten_while_another_run_writes_it(corpus: Path, tmp_path: Path, tei: str) -> None:
    run(corpus, tmp_path / "out", tei)
    before = output_files(tmp_path / "out")
    with run_marker.registered(folder(tmp_path / "out")):
        finished = tayyar(
            "run", "--input", corpus, "--output", tmp_path / "out", "--endpoint", tei, "--overwrite", code=2
        )
    assert f"--overwrite would delete what process {os.getpid()} on" in finished.stderr
    assert output_files(tmp_path / "out") == before
    run(corpus, tmp_path / "out", tei, "--overwrite")


def test_what_another_run_may_have_just_written_is_not_deleted(corpus: Path, tmp_path: Path, tei: str) -> None:
    out = tmp_path / "out"
    run(corpus, out, tei)
    next((out / "_job/receipts").glob("**/wiki_02-*.json")).unlink()
    other = run_marker.RunMarker("elsewhere", 7, "2026-01-02T03:04:05+00:00")
    theirs = out / "data/wiki_00-00009.ndjson"
    for path, content in ((out / other.name, json.dumps(asdict(other))), (theirs, "of a receipt that comes next")):
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    assert "another command (process 7 on elsewhere" in run(corpus, out, tei)
    assert theirs.exists()
    (out / other.name).unlink()
    run(corpus, out, tei)
    assert not theirs.exists()


def test_of_two_overwrites_at_once_the_second_is_refused(corpus: Path, tmp_path: Path, tei: str) -> None:
    out = tmp_path / "out"
    run(corpus, out, tei, "--shard_bytes", 1000)
    place = LocalStorage(out)
    before = len(place.names())
    with started("run", "--input", corpus, "--output", out, "--endpoint", tei, "--overwrite") as first:
        while first.poll() is None and len(place.names()) >= before:
            time.sleep(0.001)
        os.kill(first.pid, signal.SIGSTOP)  # it has begun to delete the former job
        refusal = run(corpus, out, tei, "--overwrite", code=2)
        os.kill(first.pid, signal.SIGCONT)
        assert first.wait(60) == 0
    assert f"--overwrite would delete what process {first.pid} on" in refusal
    tayyar_here("verify", "--output", out)


def test_an_interrupted_overwrite_leaves_nothing_of_the_former_job(corpus: Path, tmp_path: Path, tei: str) -> None:
    out = tmp_path / "out"
    run(corpus, out, tei, "--shard_bytes", 1000)
    (tmp_path / "other.ndjson").write_text('{"content": "another job"}\n')
    options = ("--input", tmp_path / "other.ndjson", "--output", out, "--endpoint", tei, "--overwrite")
    place = LocalStorage(out)
    before = len(place.names())
    with started("run", *options) as process:
        while process.poll() is None and len(place.names()) >= before:
            time.sleep(0.001)
        process.kill()
    tayyar_here("run", *options)
    assert list(output_files(out)) == ["data/other-00000.ndjson"]
    tayyar_here("verify", "--output", out)


def test_a_plan_that_lost_a_line_proves_nothing(corpus: Path, tmp_path: Path, tei: str) -> None:
    run(corpus, tmp_path / "out", tei)
    plan = tmp_path / "out/_job/plan.ndjson"
    lines = plan.read_bytes().splitlines(keepends=True)
    plan.write_bytes(b"".join(lines[1:]))
    assert "wiki_02.ndjson" in tayyar_here("verify", "--output", tmp_path / "out", code=5).stderr
    plan.write_bytes(b"")
    assert "names no file" in tayyar_here("verify", "--output", tmp_path / "out", code=2).stderr
