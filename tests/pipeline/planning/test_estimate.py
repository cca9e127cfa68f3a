"""What `plan` expects, beside what then happens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.planning.estimate import ESTIMATE, read_estimate
from tests.commands import tayyar, tayyar_here, texts_embedded
from tests.documents import documents, write_ndjson
from tests.tei_simulator.process import TeiSimulator
from transforms.output.folder import OutputFolder

LONG = "كلمة " * 700


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 documents: 20 of them too long, 100 as another one is, and 10 lines that are none."""
    root = tmp_path_factory.mktemp("estimate") / "in"
    lines = list(documents(900, seed=3))
    lines += [{"content": f"{LONG} {number}"} for number in range(20)]
    lines += [{"content": "the same again"} for _ in range(80)]
    lines += [{"title": "no text"} for _ in range(10)]
    write_ndjson(root / "wiki.ndjson", lines)
    return root


def test_the_permits_of_all_servers_are_used(corpus: Path, tmp_path: Path) -> None:
    options = ["--max_concurrent_requests", "20"]
    with TeiSimulator(options) as one, TeiSimulator(options) as two:
        endpoints = ("--endpoint", one.url, "--endpoint", two.url)
        tayyar_here("plan", "--input", corpus, "--output", tmp_path / "out", *endpoints)
    assert [level["in_flight"] for level in estimate_of(tmp_path / "out")["levels"]] == [32, 40]


def estimate_of(output: Path) -> Any:
    return json.loads((output / "_job/estimate.json").read_bytes())


def test_what_was_planned_comes_true_and_the_report_says_so(corpus: Path, tmp_path: Path) -> None:
    data = ("--input", corpus, "--output", tmp_path / "out", "--shard_bytes", 50_000)
    options = (*data, "--price_per_hour", 3600, "--max_in_flight", 64)
    with TeiSimulator(["--faults", '{"batch_seconds": 0.08}']) as server:
        said = tayyar_here("plan", *options, "--endpoint", server.url).stdout
        assert texts_embedded(server.url) < 4000
        tayyar_here("run", *options, "--endpoint", server.url)
    found = estimate_of(tmp_path / "out")
    assert (found["records"], found["records_interval"], found["documents"]) == (1010, [1010, 1010], 1000)
    assert found["dead_letters"] == {"missing_text": 10}
    assert found["duplicates_share"] == pytest.approx(0.079, abs=0.001)
    assert found["overlong_share"] == pytest.approx(0.02, abs=0.02)
    assert "tokens, 3," in said
    assert "كلمة" in said
    report = json.loads((tmp_path / "out/_job/report.json").read_bytes())
    for name, tolerance in (("tokens", 0.15), ("requests", 0.15), ("output_bytes", 0.02), ("records", 0)):
        pair = report["plan"][name]
        assert pair["planned"] == pytest.approx(pair["actual"], rel=tolerance), name
    assert report["plan"]["dollars"]["planned"] == pytest.approx(found["seconds"])
    assert "Plan and what happened" in (tmp_path / "out/_job/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("vector_type", ["float32", "float16"])
def test_the_size_of_parquet_comes_true(corpus: Path, tmp_path: Path, vector_type: str) -> None:
    how = ("--output_format", "parquet", "--vector_type", vector_type, "--column", "id", "--max_in_flight", 32)
    # With the noise, vectors compress as those of a real model do; the hash's own have few different numbers.
    with TeiSimulator(["--faults", '{"noise": "quantized"}']) as server:
        options = ("--input", corpus, "--output", tmp_path / "out", "--endpoint", server.url, *how)
        tayyar_here("plan", *options)
        tayyar_here("run", *options)
    size = json.loads((tmp_path / "out/_job/report.json").read_bytes())["plan"]["output_bytes"]
    assert size["planned"] == pytest.approx(size["actual"], rel=0.02)


def test_starting_over_keeps_an_estimate_of_the_job_to_come_and_none_of_the_former(
    tmp_path: Path, hash_tei: str
) -> None:
    write_ndjson(tmp_path / "in/a.ndjson", documents(5, seed=1))
    out = tmp_path / "out"
    run = ("run", "--input", tmp_path / "in", "--output", out, "--endpoint", hash_tei, "--overwrite")
    output = OutputFolder(str(out), "test")

    def planned() -> object:
        plan = json.loads((out / "_job/report.json").read_bytes())["plan"]
        return plan and plan["records"]["planned"]

    tayyar_here(*run)
    output.write(ESTIMATE, [b'{"records": 5}'])
    tayyar_here(*run)
    assert planned() == 5
    tayyar_here(*run)
    assert planned() is None


def test_without_an_output_folder_nothing_is_written(corpus: Path, tmp_path: Path, hash_tei: str) -> None:
    options = ("--endpoint", hash_tei, "--overlong", "dead_letter", "--max_in_flight", 32)
    said = tayyar("plan", "--input", corpus, *options, folder=tmp_path).stdout
    assert "expected: " in said
    assert list(tmp_path.iterdir()) == []


def test_a_text_field_that_nothing_has_is_refused(corpus: Path, hash_tei: str) -> None:
    said = tayyar_here("plan", "--input", corpus, "--endpoint", hash_tei, "--text_field", "body", code=2).stderr
    assert "--text_field body: no text there in the first 26 records looked at" in said


@pytest.mark.parametrize("name", ["records", "seconds", "price_per_hour"])
@pytest.mark.parametrize("value", ["-1", "1e300", "18446744073709551615", '"7"', "true", "[]"])
def test_a_saved_estimate_out_of_bounds_is_none(tmp_path: Path, name: str, value: str) -> None:
    output = OutputFolder(str(tmp_path), "test")
    output.write(ESTIMATE, [b'{"records":5}'])
    assert read_estimate(output) == {"records": 5}
    output.write(ESTIMATE, [f'{{"{name}":{value}}}'.encode()])
    assert read_estimate(output) is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b"", "there are no records in"),
        (b'{"content": ""}\n', "none of 1 sampled line has a text. Check --input and --text_field."),
    ],
)
def test_inputs_without_a_text_are_refused_before_the_endpoint_is_asked(
    tmp_path: Path, lines: bytes, message: str
) -> None:
    (tmp_path / "in.ndjson").write_bytes(lines)
    nobody = ("--endpoint", "http://127.0.0.1:9")
    assert message in tayyar_here("plan", "--input", tmp_path / "in.ndjson", *nobody, code=2).stderr
