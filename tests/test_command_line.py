"""What ends a command: lines that nobody reads, places that cannot be used, and what fails in the middle."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.errors import describe_error
from pipeline.job.preflight import require_usable
from tests.commands import ROOT, call, command, environment, tayyar, tayyar_here, texts_embedded
from tests.documents import write_corpus
from tests.forked import Forked
from transforms.output.folder import OutputFolder

LONG = "a" * 300


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "in", files=2, per_file=20)
    return tmp_path / "in"


def unheard(*arguments: object, both: bool) -> int:
    """Run a command whose output nobody reads any more, and return its exit code."""
    reading, writing = os.pipe()
    os.close(reading)
    with (
        open(writing, "w") as gone,
        open(os.devnull, "w") as nothing,
        contextlib.closing(
            Forked([*map(str, arguments)], ROOT, environment(), gone, gone if both else nothing)
        ) as process,
    ):
        return process.wait(110)


def test_a_run_whose_words_nobody_reads_does_its_work(corpus: Path, tmp_path: Path, hash_tei: str) -> None:
    options = ("--input", corpus, "--output", tmp_path / "out", "--endpoint", hash_tei)
    assert unheard("run", *options, both=False) == 0
    assert "verified: 40 records" in tayyar_here("verify", "--output", tmp_path / "out").stdout
    assert unheard("status", "--output", tmp_path / "out", both=False) == 0
    (tmp_path / "out/data/wiki_00-00000.ndjson").write_text("damaged")
    assert unheard("verify", "--output", tmp_path / "out", both=True) == 5


@pytest.mark.parametrize("place", ["gs://", "gs:///", "s3://", "s3:///out", "GS://"])
def test_a_place_without_a_bucket_is_refused(corpus: Path, tmp_path: Path, place: str) -> None:
    for options in (("--input", corpus, "--output", place), ("--input", place, "--output", tmp_path / "out")):
        said = tayyar_here("run", *options, code=2).stderr
        assert f"{place} names no bucket. Write {place[:5]}BUCKET/FOLDER" in said
    assert not Path(place[:3]).exists()


@pytest.mark.parametrize("arguments", [["status"], ["report"], ["redrive"], ["verify"]])
def test_a_folder_that_cannot_be_is_one_sentence(tmp_path: Path, arguments: list[str]) -> None:
    said = tayyar_here(*arguments, "--output", tmp_path / LONG, code=2).stderr
    assert said.startswith(f"tayyar: {tmp_path / LONG}/_job/job.json: File name too long. Check the path")
    assert said.count("\n") == 1


def test_a_plan_tries_its_folder_before_the_endpoint(corpus: Path, tmp_path: Path, hash_tei: str) -> None:
    (tmp_path / "file").write_text("")
    before = texts_embedded(hash_tei)
    options = ("--input", corpus, "--output", tmp_path / "file", "--endpoint", hash_tei)
    refusal = f"tayyar: --output {tmp_path / 'file'} is a file, or lies below one. Give another folder.\n"
    assert tayyar_here("plan", *options, code=2).stderr.endswith(refusal)
    assert texts_embedded(hash_tei) == before


def test_a_file_that_cannot_be_written_is_one_sentence(corpus: Path, tmp_path: Path, hash_tei: str) -> None:
    tayyar_here("run", "--input", corpus, "--output", tmp_path / "out", "--endpoint", hash_tei)
    (tmp_path / "out/_job/report.json").unlink()
    (tmp_path / "out/_job/report.json").mkdir()
    said = tayyar_here("report", "--output", tmp_path / "out", code=1).stderr
    assert "_job/report.json is not a regular file" in said or "Is a directory. Check the path" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "estimate", [b"[]", b"{", b"{}", b'{"version": 1, "records": "many"}', b'{"version": 1, "seconds": [1]}']
)
def test_a_damaged_estimate_does_not_stop_a_report(
    corpus: Path, tmp_path: Path, hash_tei: str, estimate: bytes
) -> None:
    tayyar_here("run", "--input", corpus, "--output", tmp_path / "out", "--endpoint", hash_tei)
    (tmp_path / "out/_job/estimate.json").write_bytes(estimate)
    said = tayyar_here("report", "--output", tmp_path / "out").stdout
    assert "documents = 40" in said


def test_two_commands_may_try_a_folder_at_once(tmp_path: Path) -> None:
    program = (
        "import sys; from pipeline.job.preflight import require_usable\n"
        "from transforms.output.folder import OutputFolder\n"
        "for _ in range(300): require_usable(OutputFolder(sys.argv[1], 'check'))"
    )
    arguments = [command()[0], "-c", program, str(tmp_path / "out")]
    others = [subprocess.Popen(arguments, cwd=ROOT, env=environment(), stderr=subprocess.PIPE) for _ in range(2)]
    said = [other.communicate(timeout=100)[1].decode() for other in others]
    assert [other.returncode for other in others] == [0, 0], said


def test_what_was_tried_leaves_nothing(tmp_path: Path) -> None:
    require_usable(OutputFolder(str(tmp_path / "out"), "run"))
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_place_that_fails_in_the_middle_is_no_wrong_usage(corpus: Path, tmp_path: Path, hash_tei: str) -> None:
    options = ("--input", corpus, "--output", tmp_path / "out", "--endpoint", hash_tei)
    tayyar_here("run", *options)
    receipts = tmp_path / "out/_job/receipts"
    shutil.rmtree(receipts)
    receipts.symlink_to(tmp_path / "nowhere")  # only a run's later listing comes to it
    said = tayyar("run", *options, code=1).stderr
    assert (
        "is a link, and none is followed in an output folder. Remove it.\nThe same command continues from what is done."
        in said
    )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError("gs://b/a.ndjson"), "gs://b/a.ndjson does not exist. Check its name"),
        (PermissionError(13, "Permission denied", "/out/a"), "/out/a: Permission denied. Check the path"),
        (OSError("odd"), "odd"),
    ],
)
def test_an_error_of_the_system_is_told_with_its_place(error: OSError, words: str) -> None:
    assert describe_error(error).startswith(words)


def test_a_terminal_of_few_characters_ends_no_command(
    tmp_path: Path, hash_tei: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    (tmp_path / "\u0648\u064a\u0643\u064a.ndjson").write_text('{"content": "a text"}\n')
    said = call(command("run", "--input", tmp_path, "--output", tmp_path / "out", "--endpoint", hash_tei)).stdout
    assert "\\u0648\\u064a\\u0643\\u064a.ndjson: embeddings = 1" in said


@pytest.mark.parametrize("port", ["99999", "-1"])
def test_a_port_that_is_none_is_wrong_usage(port: str) -> None:
    assert f"{port} is not a port" in tayyar("serve", "--port", port, code=2).stderr
