"""The report's files, as `run` and `report` write them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import pipeline
from tests.commands import ROOT, command, environment, tayyar_here
from tests.documents import write_corpus
from tests.pipeline.reporting.reports import ARABIC, nasty_report

SCHEMA = json.loads((Path(pipeline.__file__).parent / "reporting" / "report.schema.json").read_bytes())


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, hash_tei: str) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_corpus(folder / "in", files=2, per_file=100)
    with (folder / "in/wiki_00.ndjson").open("a", encoding="utf-8") as file:
        file.write("<script>not json\n" * 4)
        file.write(json.dumps({"content": ARABIC * 200}, ensure_ascii=False) + "\n")
    options = ("--shard_bytes", 9000, "--price_per_hour", 36, "--overlong", "dead_letter", "--max_dead_letter_ratio", 1)
    tayyar_here("run", "--input", folder / "in", "--output", folder / "out", "--endpoint", hash_tei, *options)
    return folder / "out"


def report_of(output: Path) -> Any:
    return json.loads((output / "_job/report.json").read_bytes())


def test_the_schema_is_one_and_every_report_keeps_to_it(output: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(report_of(output), SCHEMA)
    for name, value in SCHEMA["properties"].items():
        broken = {key: field for key, field in report_of(output).items() if key != name}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, SCHEMA)
        assert value


def test_a_report_with_a_plan_keeps_to_the_schema_too() -> None:
    report = nasty_report()
    report["job"] = {"model": report["job"]["model"]}
    jsonschema.validate(report, SCHEMA)
    assert report["plan"]["records"] == {"planned": 100, "actual": 240}


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
    page = (output / "_job/report.html").read_bytes()
    (output / "_job/report.html").unlink()
    said = tayyar_here("report", "--output", output).stdout
    assert report_of(output) | {"made_at": 0} == before | {"made_at": 0}
    assert (output / "_job/report.html").read_bytes() == page
    assert f"report: {output}/_job/report.html" in said
    assert "  invalid_json: 4" in said.splitlines()
    assert before["totals"]["dollars"] == pytest.approx(before["totals"]["seconds"] / 100, abs=0.001)
    tayyar_here("report", "--output", output, "--price_per_hour", 0)
    assert report_of(output)["totals"]["dollars"] == 0
    assert not (output / "_job/tmp").exists()


def test_without_the_extra_there_is_a_report_and_a_sentence(output: Path, tmp_path: Path) -> None:
    (tmp_path / "jinja2.py").write_text("raise ImportError('as if it were not installed')")
    found = {**environment(), "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    finished = subprocess.run(
        command("report", "--output", output), cwd=tmp_path, env=found, capture_output=True, text=True, check=True
    )
    assert "pip install '.[report]'" in finished.stdout
    assert not (output / "_job/report.html").exists()
    assert report_of(output)["complete"]


def test_a_folder_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    assert "is no output folder" in tayyar_here("report", "--output", tmp_path, code=2).stderr
