"""Folders that another tool wrote, as the tutorial's script does: no receipts, JSON written anew."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.options import VerifyOptions
from pipeline.commands.verify import verify
from pipeline.errors import ExitCode, NotProven, UsageError
from pipeline.verification.file_check import FileWork, check_file, same_value, text_of, value_of
from tests.commands import tayyar_here
from tests.documents import documents
from transforms.ndjson.lines import Line

Records = list[dict[str, Any]]
BIG = 12345678901234567890123


def vector(number: int) -> list[float]:
    return [number + 0.5, -1.0, 0.25, 1e-7]


def write(path: Path, records: Records, **how: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(record, ensure_ascii=False, **how) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs, and outputs of the same names; one input is compressed."""
    root = tmp_path_factory.mktemp("other")
    for number, name in enumerate(["a.ndjson", "deep/b.ndjson", "c.jsonl"]):
        records = [{**one, "n": BIG + number} for one in documents(40, seed=number)]
        write(root / "in" / f"{name}{'.gz' if number == 1 else ''}", records, separators=(",", ":"))
        write(root / "out" / name, [{**one, "embedding": vector(n)} for n, one in enumerate(records)])
    return root


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def proven(folder: Path, **options: Any) -> str:
    said: list[str] = []
    assert verify(VerifyOptions(str(folder / "out"), **options), said.append) is ExitCode.DONE
    return "\n".join(said)


def findings(folder: Path, **options: Any) -> str:
    with pytest.raises(NotProven) as found:
        verify(VerifyOptions(str(folder / "out"), **options))
    return str(found.value)


def edit(path: Path, change: Callable[[Records], Records]) -> None:
    write(path, change([json.loads(line) for line in path.read_bytes().splitlines()]))


def inputs(folder: Path) -> tuple[str, ...]:
    return (f"{folder}/in/",)


def test_without_the_inputs_every_line_is_checked_and_what_is_not_known_is_said(written: Path) -> None:
    said = proven(written)
    assert said.startswith("checked: 120 lines in 3 files, each with a text and a vector of 4 finite numbers. ")
    assert "Whether lines are missing or changed is not known: name the inputs with --input" in said


def test_with_the_inputs_it_is_a_proof(written: Path) -> None:
    assert proven(written, inputs=inputs(written)) == (
        "verified: 120 lines in 3 files, each the line of its input with a vector of 4 finite numbers, and none missing"
    )


@pytest.mark.parametrize("part", [1, 100, 5000])
def test_parts_of_a_file_come_to_the_same_as_the_whole(folder: Path, part: int) -> None:
    path = folder / "out/a.ndjson"
    edit(path, lambda records: [*records[:3], {**records[3], "embedding": None}, *records[4:]])
    size = path.stat().st_size
    told: list[int] = []

    def checked(start: int, end: int | None) -> tuple[int, list[str]]:
        work = FileWork(str(path), start, end, min(part, size - start), None, "content", "embedding")
        found = check_file(work, told.append)
        return found.lines, found.findings.first

    parts = [checked(start, min(start + part, size)) for start in range(0, size, part)]
    assert sum(told) == size
    assert (sum(lines for lines, _ in parts), [one for _, first in parts for one in first]) == checked(0, None)
    assert len(checked(0, None)[1]) == 1


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "the vector is no array of numbers"),
        ([None, 1.0, 1.0, 1.0], "the vector is no array of numbers"),
        ("[1]", "the vector is no array of numbers"),
        ([1.0, 2.0, 3.0], "the vector has 3 numbers; most have 4"),
        ([], "the vector has 0 numbers; most have 4"),
        ([0.0] * 4, "the vector is all zeros"),
        ([float("nan")] * 4, "the vector has numbers that no float32 holds"),
        ([1e39] * 4, "the vector has numbers that no float32 holds"),
        ([10**400] * 4, "the vector has numbers that no float32 holds"),
        (..., "there is no field 'embedding'"),
    ],
)
def test_a_vector_that_cannot_be_right_is_found_with_its_place(folder: Path, value: object, words: str) -> None:
    path = folder / "out/a.ndjson"

    def change(records: Records) -> Records:
        if value is ...:
            del records[3]["embedding"]
        else:
            records[3]["embedding"] = value
        return records

    edit(path, change)
    place = sum(map(len, path.read_bytes().splitlines(keepends=True)[:3]))
    message = findings(folder)
    assert message.startswith(f"1 findings in {folder}/out, the first of them:\n  {path}, byte {place}: {words}")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"broken", "the line is no JSON"),
        (b"[1]", "no JSON object"),
        (b"\xff", "no JSON"),
        (b"{}", "there is no field"),
    ],
)
def test_a_line_that_is_no_record_is_found(folder: Path, line: bytes, words: str) -> None:
    path = folder / "out/deep/b.ndjson"
    path.write_bytes(path.read_bytes() + line)
    assert words in findings(folder)


def test_a_text_field_that_is_not_there_is_named(written: Path) -> None:
    assert "120 findings" in findings(written, text_field="body")
    assert "no text in the field 'body', which --text_field names" in findings(written, text_field="body")
    assert "checked: 120" in proven(written, text_field="id")


def changed(records: Records) -> Records:
    return [*records[:5], {**records[5], "id": "other"}, *records[6:]]


def integer_changed(records: Records) -> Records:
    return [*records[:5], {**records[5], "n": records[5]["n"] + 1}, *records[6:]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda records: records[:5] + records[6:], "this is not the line at byte "),
        (lambda records: [*records[:6], records[5], *records[6:]], "this is not the line at byte "),
        (lambda records: [*records[:5], records[6], records[5], *records[7:]], "this is not the line at byte "),
        (changed, "this is not the line at byte "),
        (integer_changed, "this is not the line at byte "),
        (lambda records: records[:-1], " is missing"),
        (lambda records: [*records, records[-1], records[-1]], ": 2 lines more than "),
    ],
)
@pytest.mark.parametrize("name", ["a.ndjson", "deep/b.ndjson"])
def test_what_was_lost_or_changed_on_the_way_is_found(
    folder: Path, name: str, change: Callable[[Records], Records], words: str
) -> None:
    edit(folder / "out" / name, change)
    message = findings(folder, inputs=inputs(folder))
    assert message.startswith("1 findings in ")
    assert words in message
    assert f"{folder}/out/{name}" in message
    assert f"{folder}/in/{name}" in message
    proven(folder)  # which is why the inputs are worth naming


def test_files_without_a_partner_are_found(folder: Path) -> None:
    (folder / "out/c.jsonl").rename(folder / "out/d.jsonl")
    message = findings(folder, inputs=inputs(folder))
    assert f"{folder}/in/c.jsonl: no file of this name is in {folder}/out" in message
    assert f"{folder}/out/d.jsonl: no --input has this name" in message


@pytest.mark.parametrize("second", ["a.jsonl", "a.ndjson.gz"])
def test_two_files_of_one_name_are_no_proof(folder: Path, second: str) -> None:
    records = [json.loads(line) for line in (folder / "out/a.ndjson").read_bytes().splitlines()]
    write(folder / "out" / second, records)
    first, last = sorted([f"{folder}/out/a.ndjson", f"{folder}/out/{second}"])
    message = findings(folder, inputs=inputs(folder))
    assert message.startswith("1 findings in ")
    assert f"{last}: {first} has the same name but for the ending" in message
    proven(folder)


def test_vectors_without_a_number_prove_nothing(folder: Path) -> None:
    for path in (folder / "out").rglob("*.*"):
        edit(path, lambda records: [{**record, "embedding": []} for record in records])
    message = findings(folder)
    assert "the vector has 0 numbers, and those of 39 lines behind it have as many" in message
    assert "most have" not in message
    assert "has 0 numbers" in findings(folder, inputs=inputs(folder))


def test_files_without_a_line_prove_nothing(tmp_path: Path) -> None:
    write(tmp_path / "out/a.ndjson", [])
    (tmp_path / "out/b.ndjson").write_text("\n \n")
    assert f"{tmp_path}/out: there is no line in its 2 files" in findings(tmp_path)


@pytest.mark.parametrize(
    ("before", "after"), [(True, 1), (1, 1.0), (BIG, float(BIG)), ([0], [False]), ({"a": [0]}, {"a": [0, 0]})]
)
def test_a_value_of_another_type_is_another_value(tmp_path: Path, before: object, after: object) -> None:
    write(tmp_path / "in/a.ndjson", [{"content": "w", "n": before}])
    write(tmp_path / "out/a.ndjson", [{"content": "w", "n": before, "embedding": vector(1)}])
    assert "verified: 1 lines" in proven(tmp_path, inputs=inputs(tmp_path))
    write(tmp_path / "out/a.ndjson", [{"content": "w", "n": after, "embedding": vector(1)}])
    assert "this is not the line at byte 0" in findings(tmp_path, inputs=inputs(tmp_path))


def test_what_is_the_same_in_json_is_the_same() -> None:
    nan = float("nan")
    assert same_value({"a": [nan, BIG, None], "b": {}}, {"b": {}, "a": [float("nan"), BIG, None]})
    assert not same_value([nan], [1.0])
    assert not same_value({"a": None}, {"b": None})


@pytest.mark.parametrize("name", ["a.ndjson", "a.ndjson.gz"])
@pytest.mark.parametrize("compared", [False, True])
def test_how_far_it_is_is_told_in_the_middle_of_a_file(tmp_path: Path, name: str, compared: bool) -> None:
    noise = random.Random(7)  # what does not compress: Python reads a compressed file 128 KiB at a time
    records = [{"content": f"{number} {noise.randbytes(500).hex()}"} for number in range(5000)]
    write(tmp_path / "in.ndjson", records)
    path = tmp_path / name
    write(path, [{**record, "embedding": vector(number)} for number, record in enumerate(records)])
    told: list[int] = []
    source = str(tmp_path / "in.ndjson") if compared else None
    size = path.stat().st_size
    check_file(FileWork(str(path), 0, None, size, source, "content", "embedding"), told.append)
    assert sum(told) == size
    assert len(told) == 6
    assert min(told) >= 0
    assert told[0] < size


def test_compressed_output_is_read_too_and_a_truncated_one_is_found(folder: Path) -> None:
    plain = folder / "out/a.ndjson"
    packed = plain.with_suffix(".ndjson.gz")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert proven(folder, inputs=inputs(folder)).startswith("verified: 120 lines")
    packed.write_bytes(packed.read_bytes()[:-20])
    assert f"{packed} is truncated or corrupt" in findings(folder)


def test_a_folder_with_a_part_of_a_job_is_a_damaged_one_and_not_another_tools(folder: Path) -> None:
    (folder / "out/_job").mkdir()
    (folder / "out/_job/plan.ndjson").write_bytes(b"{}\n")
    with pytest.raises(UsageError, match=r"is no output folder of Tayyar: it has no _job/job\.json\. Check --output"):
        proven(folder)


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("nothing")
    with pytest.raises(UsageError, match="and no NDJSON files of another tool either"):
        proven(tmp_path)


def test_the_command_takes_such_a_folder(written: Path) -> None:
    said = tayyar_here(
        "verify", "--output", written / "out", "--input", f"{written}/in/**", "--embedding_field", "embedding"
    )
    assert said.stdout.startswith("verified: 120 lines")


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b'{"n": %d}' % BIG, {"n": BIG}),
        (b'{"n": 0.0012345678901234567}', {"n": 0.0012345678901234567}),
        (b'\xef\xbb\xbf{"n": 1}', {"n": 1}),
        (b'{"n": "\\ud800"}', {"n": "\ud800"}),
    ],
)
def test_values_are_exact(content: bytes, value: object) -> None:
    assert value_of(Line(0, content, len(content))) == value


@pytest.mark.parametrize(
    ("record", "field", "text"),
    [
        ({"a": "x"}, "a", "x"),
        ({"a": {"b": "x"}}, "a.b", "x"),
        ({"a": " "}, "a", None),
        ({"a": 1}, "a", None),
        ({"a": "x"}, "a.b", None),
        ({}, "a", None),
    ],
)
def test_the_text_is_where_its_field_says(record: object, field: str, text: str | None) -> None:
    assert text_of(record, field) == text
