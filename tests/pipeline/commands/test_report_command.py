"""The report's files, as `run` and `report` write them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pipeline.reporting.schema import json_schema
from tests.commands import ROOT, command, environment, tayyar, tayyar_here
from tests.documents import write_corpus
from tests.pipeline.reporting.reports import ARABIC


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, hash_tei: str) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_corpus(folder / "in", files=2, per_file=100)
    with (folder / "in/wiki_00.ndjson").open("a", encoding="utf-8") as file:
        file.write("<script>not json\n" * 4)
        file.write(json.dumps({"content": ARABIC * 200}, ensure_ascii=False) + "\n")
    options = ("--shard_bytes", 9000, "--price_per_hour", 36, "--overlong", "dead_letter", "--max_dead_letter_ratio", 1)
    tayyar("run", "--input", folder / "in", "--output", folder / "out", "--endpoint", hash_tei, *options)
    return folder / "out"


def untimed(output: Path) -> str:
    return re.sub(r"report of [\d-]+ [\d:]+ UTC", "", (output / "_job/report.html").read_text(encoding="utf-8"))


def report_of(output: Path) -> Any:
    return json.loads((output / "_job/report.json").read_bytes())


def test_the_report_of_a_run_keeps_to_the_schema(output: Path) -> None:
    jsonschema.validate(report_of(output), json_schema())


def test_the_report_shows_the_run_that_made_it(output: Path, hash_tei: str) -> None:
    run = report_of(output)["last_run"]
    assert run["command"].startswith(f"tayyar run --input {output.parent}/in --output {output} --endpoint http://")
    assert run["endpoints"] == [hash_tei.removeprefix("http://")]
    assert run["documents"] == 200
    assert 0 < run["work_seconds"] < run["wall_seconds"]
    page = (output / "_job/report.html").read_text(encoding="utf-8")
    assert hash_tei.removeprefix("http://") in re.sub("<wbr>", "", page)


def test_examples_of_every_reason_are_few_and_hold_their_text(output: Path) -> None:
    reasons = {reason["reason"]: reason for reason in report_of(output)["dead_letters"]}
    assert reasons["invalid_json"]["count"] == 4
    assert [example["line"] for example in reasons["invalid_json"]["examples"]] == ["<script>not json"] * 3
    (long,) = reasons["overlong_text"]["examples"]
    assert long["text"].startswith(ARABIC)
    assert len(long["text"]) == len(long["line"]) == 301
    assert "<script>not" not in (output / "_job/report.html").read_text(encoding="utf-8")


def test_report_writes_the_same_again_and_remembers_the_price(output: Path) -> None:
    before = report_of(output)
    page = untimed(output)
    (output / "_job/report.html").unlink()
    said = tayyar_here("report", "--output", output).stdout
    assert report_of(output) | {"made_at": 0} == before | {"made_at": 0}
    assert untimed(output) == page
    assert f"report: {output}/_job/report.html" in said
    (line,) = [line for line in said.splitlines() if "invalid_json" in line]  # the reason, its number and its example
    assert re.match(rf"  invalid_json: 4, first at byte [\d,]+ of {output.parent}/in/wiki_00.ndjson: \S+", line)
    assert before["totals"]["dollars"] == pytest.approx(before["totals"]["seconds"] / 100, abs=0.001)
    assert re.search(r"cost: \$0\.\d+ for the time of work, at \$36\.00 an hour", said)
    assert "cost: $0 for" in tayyar_here("report", "--output", output, "--price_per_hour", 0).stdout
    assert report_of(output)["totals"]["dollars"] == 0
    assert not (output / "_job/tmp").exists()


def test_the_report_of_an_unfinished_job_says_how_much_is_missing(output: Path, tmp_path: Path) -> None:
    part = Path(shutil.copytree(output, tmp_path / "out"))
    receipts = sorted((part / "_job/receipts").rglob("wiki_01-*.json"))
    assert len(receipts) > 2
    receipts[1].unlink()
    expected = len(list((output / "_job/receipts").rglob("*.json")))
    found = tayyar_here("report", "--output", part, code=1).stdout
    assert f"not complete: {expected - 1} of {expected} shards are done (" in found
    assert f"; {output.parent}/in/a/wiki_01.ndjson lacks shards; the same run command" in found
    assert f"({len(receipts) - 1} of {len(receipts)} shards)" in found
    page = (part / "_job/report.html").read_text(encoding="utf-8")
    assert f"Not complete:</span> {expected - 1} of {expected} shards, 1 of 2 files" in page


def test_a_run_with_nothing_to_do_says_so(output: Path, hash_tei: str) -> None:
    before = report_of(output)
    run = ("run", "--input", output.parent / "in", "--output", output, "--endpoint", hash_tei, "--shard_bytes", 9000)
    options = ("--overlong", "dead_letter", "--max_dead_letter_ratio", 1)
    found = tayyar_here(*run, *options).stdout
    assert "this run: nothing to do, every shard was done already" in found
    assert re.search(r"the job: 200 documents in \S+ s of work, ", found)
    assert report_of(output)["totals"] == before["totals"]
    assert report_of(output)["last_run"] == before["last_run"]


def test_without_the_extra_there_is_a_report_and_a_sentence(output: Path, tmp_path: Path) -> None:
    (tmp_path / "jinja2.py").write_text("raise ImportError('as if it were not installed')")
    found = {**environment(), "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    finished = subprocess.run(
        command("report", "--output", output), cwd=tmp_path, env=found, capture_output=True, text=True, check=True
    )
    assert "pip install 'tayyar[report]'" in finished.stdout
    assert not (output / "_job/report.html").exists()
    assert report_of(output)["complete"]


def test_a_folder_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    assert "is not an output folder" in tayyar_here("report", "--output", tmp_path, code=2).stderr
