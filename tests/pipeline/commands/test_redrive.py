"""Dead letters sent again, against a run in which nothing had gone wrong."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.job import run_marker
from pipeline.job.run_marker import read_marker
from tests.commands import output_files, started, tayyar, tayyar_here
from tests.documents import write_corpus
from tests.tei_simulator.clients import Simulator
from tests.tei_simulator.process import TeiSimulator
from transforms.output.folder import OutputFolder

STATISTICS = {
    "flight_ms",
    "busy_ms",
    "slot_ms",
    "tokens",
    "requests",
    "retries",
    "queue_ms",
    "inference_ms",
    "throttled_ms",
    "latency_ms",
}
FAULTS = {"null_marker": "0-49", "refuse_marker": "1-1"}


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with TeiSimulator() as server:
        yield Simulator(server.url)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files, one of them compressed; two lines that no server can help, one beside a good one."""
    root = tmp_path_factory.mktemp("redrive") / "in"
    write_corpus(root, files=3, per_file=50)
    packed = root / "a/wiki_01.ndjson"
    packed.with_suffix(".ndjson.gz").write_bytes(gzip.compress(packed.read_bytes()))
    packed.unlink()
    with (root / "wiki_00.ndjson").open("ab") as file:
        file.write(b'no json\n\n{"content": "0-49 last"}\n{"content": "\xff"}')
    return root


def run(corpus: Path, output: Path, url: str) -> None:
    options = ("--shard_bytes", 5000, "--max_dead_letter_ratio", 1)
    tayyar_here("run", "--input", corpus, "--output", output, "--endpoint", url, *options)


@pytest.fixture(scope="module")
def faulty(corpus: Path, simulator: Simulator) -> Path:
    """The output of a run in which some documents got no vector."""
    simulator.set_faults(**FAULTS)
    run(corpus, corpus.parent / "faulty", simulator.url)
    simulator.set_faults()
    return corpus.parent / "faulty"


@pytest.fixture
def damaged(faulty: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(faulty, tmp_path / "out"))


@pytest.fixture(scope="module")
def clean(corpus: Path, simulator: Simulator) -> Path:
    simulator.set_faults()
    run(corpus, corpus.parent / "clean", simulator.url)
    return corpus.parent / "clean"


def receipts(output: Path) -> dict[str, Any]:
    """The receipts without what depends on the time and the run, and on how often the endpoint was asked."""
    found = {}
    for path in sorted((output / "_job/receipts").rglob("*.json")):
        fields = json.loads(path.read_bytes())
        found[path.name] = {
            name: value
            for name, value in fields.items()
            if name not in STATISTICS | {"sent", "reused", "duplicates"}
            and name not in {"run", "started_at", "finished_at"}
        }
    return found


def test_what_succeeds_ends_as_if_it_had_succeeded_at_first(clean: Path, damaged: Path, simulator: Simulator) -> None:
    output = damaged
    before = json.loads((output / "_job/report.json").read_bytes())["totals"]
    reasons = before["dead_letters_by_reason"]
    assert reasons["invalid_vector"] == 2
    assert reasons["rejected_by_endpoint"] == 11
    assert output_files(output) != output_files(clean)

    simulator.set_faults(refuse_marker="0-49")  # what it could not embed before it refuses now
    said = tayyar_here(
        "redrive", "--output", output, "--endpoint", simulator.url, "--reason", "rejected_by_endpoint"
    ).stdout
    assert f"{reasons['rejected_by_endpoint']} dead letters sent again" in said
    assert f"{reasons['rejected_by_endpoint']} embedded now, 0 not" in said
    tayyar_here("verify", "--output", output, "--max_dead_letter_ratio", 1)

    simulator.set_faults()
    said = tayyar("redrive", "--output", output, "--endpoint", simulator.url).stdout
    assert "2 not" in said
    assert "  invalid_json: 1" in said.splitlines()
    assert output_files(output) == output_files(clean)
    assert receipts(output) == receipts(clean)
    keys = {path.name: path.read_bytes() for path in (output / "_job/keys").rglob("*.u64")}
    assert keys == {path.name: path.read_bytes() for path in (clean / "_job/keys").rglob("*.u64")}
    after = json.loads((output / "_job/report.json").read_bytes())["totals"]
    assert after["tokens"] > before["tokens"]
    assert after["seconds"] == before["seconds"]
    assert {path.relative_to(output) for path in output.rglob("*")} == {
        path.relative_to(clean) for path in clean.rglob("*")
    }
    tayyar_here("verify", "--output", output, "--max_dead_letter_ratio", 1)


def test_what_fails_again_stays_a_dead_letter_and_changes_nothing(clean: Path, simulator: Simulator) -> None:
    before = output_files(clean) | receipts(clean)
    simulator.reset_statistics()
    said = tayyar_here("redrive", "--output", clean, "--endpoint", simulator.url, "--reason", "invalid_json").stdout
    assert "nothing to send again: no dead letter of such a reason has a text\n" in said
    assert simulator.statistics()["requests"] == 0
    said = tayyar_here("redrive", "--output", clean, "--endpoint", simulator.url, "--reason", "overlong_text").stdout
    assert "nothing to send again: no dead letter has such a reason\n" in said
    assert output_files(clean) | receipts(clean) == before


def test_a_run_leaves_alone_what_another_command_writes(corpus: Path, damaged: Path, simulator: Simulator) -> None:
    output = OutputFolder(str(damaged), "test")
    output.write("_job/redrive/of another.ndjson", [b"what a redrive writes"])
    options = ("--endpoint", simulator.url, "--shard_bytes", 5000, "--max_dead_letter_ratio", 1)
    with run_marker.registered(output):
        said = tayyar("run", "--input", corpus, "--output", damaged, *options).stderr
        assert "may still write to" in said
        assert read_marker(output) is not None
        assert output.read("_job/redrive/of another.ndjson") is not None
    tayyar("run", "--input", corpus, "--output", damaged, *options)
    assert output.read("_job/redrive/of another.ndjson") is None


def test_of_two_redrives_at_once_the_second_is_refused(damaged: Path, simulator: Simulator) -> None:
    with started("redrive", "--output", damaged, "--endpoint", simulator.url) as first:
        while first.poll() is None and not [*damaged.glob("_job/run_markers/*")]:
            time.sleep(0.001)
        os.kill(first.pid, signal.SIGSTOP)
        refusal = tayyar_here("redrive", "--output", damaged, "--endpoint", simulator.url, code=2).stderr
        os.kill(first.pid, signal.SIGCONT)
        assert first.wait(60) == 0
    assert f"process {first.pid} on " in refusal
    tayyar_here("verify", "--output", damaged, "--max_dead_letter_ratio", 1)


def test_another_command_at_work_is_not_disturbed(damaged: Path, simulator: Simulator) -> None:
    output = OutputFolder(str(damaged), "test")
    output.write("_job/redrive/of another.ndjson", [b"what another redrive writes"])
    left = Path(output.path(f"{output.temporary}/another-1-2-3"))
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"half")
    before = {name: file.size for name, file in output.list().items()}
    with run_marker.registered(output):
        said = tayyar("redrive", "--output", damaged, "--endpoint", simulator.url, code=2).stderr
        assert f"process {os.getpid()} on " in said
        assert "is writing to " in said
    assert {name: file.size for name, file in output.list().items()} == before
    tayyar_here("redrive", "--output", damaged, "--endpoint", simulator.url)
    assert not [name for name in output.list() if "/tmp/" in name or "/redrive/" in name or "/run_markers/" in name]


def test_a_report_of_before_an_interruption_is_made_anew(clean: Path, tmp_path: Path, simulator: Simulator) -> None:
    output = Path(shutil.copytree(clean, tmp_path / "out"))
    report = output / "_job/report.json"
    totals = json.loads(report.read_bytes())["totals"]
    report.write_bytes(report.read_bytes().replace(b'"embedded": ', b'"embedded": 1'))
    assert json.loads(report.read_bytes())["totals"] != totals
    tayyar_here("redrive", "--output", output, "--endpoint", simulator.url, "--reason", "overlong_text")
    assert json.loads(report.read_bytes())["totals"] == totals


def test_a_redrive_that_stops_on_the_way_leaves_a_report_of_what_it_has_done(
    damaged: Path, simulator: Simulator
) -> None:
    made = [json.loads(path.read_bytes()) for path in sorted((damaged / "_job/receipts").rglob("*.json"))]
    sent = [one for one in made if one["reasons"].keys() & {"rejected_by_endpoint", "invalid_vector"}]
    path = damaged / sent[-1]["output"]["path"]
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"content"', b'"Content"'))
    tayyar_here("redrive", "--output", damaged, "--endpoint", simulator.url, code=5)
    totals = json.loads((damaged / "_job/report.json").read_bytes())["totals"]
    assert totals["embedded"] > sum(one["embedded"] for one in made)
    path.write_bytes(content)
    tayyar_here("verify", "--output", damaged, "--max_dead_letter_ratio", 1)


def test_a_redrive_that_fails_is_not_at_work_any_more(damaged: Path, simulator: Simulator) -> None:
    simulator.set_faults(model_seed=5)
    tayyar_here("redrive", "--output", damaged, "--endpoint", simulator.url, code=2)
    simulator.set_faults()
    assert not (damaged / "_job/run_markers").exists()
    assert not (damaged / "_job/tmp").exists()


def test_another_model_than_the_jobs_is_refused(damaged: Path, simulator: Simulator) -> None:
    simulator.set_faults(model_seed=5)
    said = tayyar_here("redrive", "--output", damaged, "--endpoint", simulator.url, code=2).stderr
    simulator.set_faults()
    assert "another model" in said


def test_an_unknown_reason_is_refused_with_those_that_there_are(clean: Path) -> None:
    said = tayyar_here("redrive", "--output", clean, "--reason", "bad_luck", code=2).stderr
    assert "--reason bad_luck is not a reason. Choose from empty_text, invalid_json" in said


def test_an_output_that_is_not_what_its_receipt_says_is_left_alone(damaged: Path, simulator: Simulator) -> None:
    output = damaged
    letters = next((output / "dead_letters/a").glob("*"))
    path = output / "data/a" / letters.name
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    content = path.read_bytes()
    said = tayyar_here("redrive", "--output", output, "--endpoint", simulator.url, code=5).stderr
    assert f"a/{letters.name} is not what its receipt says" in said
    assert path.read_bytes() == content

    letters.write_bytes(b"x" * letters.stat().st_size)
    said = tayyar_here("redrive", "--output", output, "--endpoint", simulator.url, code=5).stderr
    assert f"dead_letters/a/{letters.name} is not what its receipt says" in said
    tayyar_here("report", "--output", output)  # has no example of it, and is made all the same


def test_a_source_that_has_changed_since_is_said_in_a_sentence(
    corpus: Path, tmp_path: Path, simulator: Simulator
) -> None:
    source = tmp_path / "in.ndjson"
    source.write_text('{"content": "0-1 first"}\n{"content": "good"}\n', encoding="utf-8")
    simulator.set_faults(refuse_marker="0-1")
    run(source, tmp_path / "out", simulator.url)
    simulator.set_faults()
    before = output_files(tmp_path / "out")
    with source.open("a") as file:
        file.write("{}\n")
    said = tayyar_here("redrive", "--output", tmp_path / "out", "--endpoint", simulator.url, code=1).stderr
    assert "in.ndjson changed since the run was planned" in said
    assert "Traceback" not in said
    assert output_files(tmp_path / "out") == before
