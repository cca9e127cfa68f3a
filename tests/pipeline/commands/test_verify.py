from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import gzip
import json
import os
import pty
import re
import shutil
import signal
import socket
import struct
import termios
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.options.run import RunOptions
from pipeline.commands.options.verify import VerifyOptions
from pipeline.commands.run import run
from pipeline.commands.verify import verify
from pipeline.errors import ExitCode, NotProven, UsageError
from pipeline.job.run_marker import RunMarker
from tests.commands import ROOT, environment, parsed, started, tayyar_here
from tests.documents import documents
from tests.forked import Forked
from transforms.elements import DeadLetter, Reason, Stage
from transforms.output.folder import OutputFolder
from transforms.storage.api import Crc32c
from transforms.write_dead_letters import encode_dead_letter

NOT_CHECKED = "not checked: the vectors against the model (give --sample N and --endpoint URL)"


def options(out: Path, **more: Any) -> VerifyOptions:
    return VerifyOptions(output=str(out), max_dead_letter_ratio=1.0, **more)


def job(root: Path, url: str) -> Path:
    """A finished job: two sources of several shards each, plain and compressed, with dead letters in both."""
    lines = [json.dumps(one, ensure_ascii=False).encode() for one in documents(60, seed=2)]
    data = b"\n".join([*lines[:20], b"", b"broken", b"\xff", *lines[20:40], b"{}"])
    (root / "in").mkdir()
    (root / "in" / "plain.ndjson").write_bytes(data)
    (root / "in" / "packed.ndjson.gz").write_bytes(gzip.compress(b"\r\n".join([*lines[40:], b"broken", b""])))
    arguments = ["run", "--input", str(root / "in"), "--output", str(root / "out"), "--endpoint", url]
    options = parsed(RunOptions, *arguments, "--shard_bytes=3000", "--max_dead_letter_ratio=1")
    assert run(options, say=lambda _: None) is ExitCode.DONE
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, hash_tei: str) -> Path:
    return job(tmp_path_factory.mktemp("job"), hash_tei)


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of the output folder, to damage."""
    return Path(shutil.copytree(finished / "out", tmp_path / "out"))


def findings(out: Path) -> str:
    said: list[str] = []
    with pytest.raises(NotProven) as found:
        verify(options(out), said.append)
    assert said == []
    return str(found.value)


def receipt_of(out: Path, name: str) -> Path:
    return out / "_job" / "receipts" / f"{name.removeprefix('data/').removesuffix('.ndjson')}.json"


def edit(
    out: Path, name: str, change: Callable[[list[bytes]], list[bytes]], *, forge: bool, crc_too: bool = False
) -> None:
    """Change the lines of a file, and if `forge` its receipt as well, so that sizes agree again."""
    before = (out / name).read_bytes()
    after = b"".join(change(before.splitlines(keepends=True)))
    assert after != before
    (out / name).write_bytes(after)
    if forge:
        receipt = receipt_of(out, Path(name).name)
        fields = json.loads(receipt.read_bytes())
        kind = "dead_letter_output" if name.startswith("dead_letters") else "output"
        crc = Crc32c()
        crc.update(after)
        fields[kind] |= {"bytes": len(after), "crc32c": crc.base64() if crc_too else fields[kind]["crc32c"]}
        receipt.write_text(json.dumps(fields))
    if crc_too:
        edit_json(
            out / "_job/report.json",
            lambda report: report["totals"].update(
                output_bytes=report["totals"]["output_bytes"] + len(after) - len(before)
            ),
        )


def test_the_untouched_folder_passes_and_says_what_was_proven(finished: Path) -> None:
    said: list[str] = []
    assert verify(options(finished / "out"), said.append) is ExitCode.DONE
    assert said == [
        "verified: 64 records in 2 files = 60 embedded, each line unchanged and once, "
        "with a vector of 384 finite numbers, + 4 dead letters",
        NOT_CHECKED,
    ]
    assert len(list((finished / "out" / "data").glob("plain-*.ndjson"))) >= 3
    assert len(list((finished / "out" / "data").glob("packed-*.ndjson"))) >= 2


def lost(lines: list[bytes]) -> list[bytes]:
    return lines[:2] + lines[3:]


def doubled(lines: list[bytes]) -> list[bytes]:
    return [*lines[:3], lines[2], *lines[3:]]


def swapped(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[3], lines[2], *lines[4:]]


def field_changed(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[2].replace(b'"id"', b'"ID"'), *lines[3:]]


def _with_vector(lines: list[bytes], vector: Callable[[list[float]], object]) -> list[bytes]:
    record = json.loads(lines[2])
    at = lines[2].index(b"[")
    end = lines[2].index(b"]", at) + 1
    written = json.dumps(vector(record["embedding"]), separators=(",", ":")).encode()
    return [*lines[:2], lines[2][:at] + written + lines[2][end:], *lines[3:]]


def shortened(lines: list[bytes]) -> list[bytes]:
    return _with_vector(lines, lambda vector: vector[:-1])


def zero(lines: list[bytes]) -> list[bytes]:
    return _with_vector(lines, lambda vector: [0.0] * len(vector))


def not_a_number(lines: list[bytes]) -> list[bytes]:
    return _with_vector(lines, lambda vector: [float("nan"), *vector[1:]])


def beyond_float32(lines: list[bytes]) -> list[bytes]:
    return _with_vector(lines, lambda vector: [1e39, *vector[1:]])


def nested(lines: list[bytes]) -> list[bytes]:
    return _with_vector(lines, lambda vector: [[1.0], *vector[1:]])


def null(lines: list[bytes]) -> list[bytes]:
    return _with_vector(lines, lambda _: None)


def a_little_different(lines: list[bytes]) -> list[bytes]:
    return _with_vector(lines, lambda vector: [*vector[1:], vector[0]])


@pytest.mark.parametrize("name", ["data/plain-00001.ndjson", "data/packed-00000.ndjson"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lost, "the line is not the source line with a vector"),
        (doubled, "the line is not the source line with a vector"),
        (swapped, "the line is not the source line with a vector"),
        (field_changed, "the line is not the source line with a vector"),
        (shortened, "the vector has 383 numbers, not 384"),
        (zero, "the vector is all zeros"),
        (not_a_number, "the vector is not JSON"),
        (beyond_float32, "the vector has numbers that no float32 holds"),
        (nested, "the vector is not an array of numbers"),
        (null, "the vector is not an array of numbers"),
        (a_little_different, "its checksum is"),
    ],
)
def test_any_damage_to_a_line_is_found_with_its_place(
    out: Path, name: str, change: Callable[[list[bytes]], list[bytes]], words: str
) -> None:
    edit(out, name, change, forge=True)
    message = findings(out)
    assert words in message
    assert name in message
    assert f"{name}: its checksum is" in message
    if change is not a_little_different:
        lines = (out / name).read_bytes().splitlines(keepends=True)
        place = sum(map(len, lines[: 3 if change is doubled else 2]))
        assert f"{name}, byte {place}: {words}" in message


@pytest.mark.parametrize("change", [lost, doubled, shortened])
def test_a_file_of_another_size_than_its_receipt_says_is_found(
    out: Path, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    edit(out, "data/plain-00001.ndjson", change, forge=False)
    message = findings(out)
    assert "shards are done; run again" in message
    assert "data/plain-00001.ndjson: no valid receipt vouches for this file" in message
    assert "_job/receipts/plain-00001.json: no valid receipt vouches for this file" in message


@pytest.mark.parametrize("name", ["plain-00001", "packed-00000"])
@pytest.mark.parametrize("forge", [False, True])
def test_a_truncated_output_is_found(out: Path, name: str, forge: bool) -> None:
    edit(out, f"data/{name}.ndjson", lambda lines: lines[:-2], forge=forge)
    message = findings(out)
    assert name in message
    if forge:
        assert f"{name}.ndjson: the line at byte " in message
        assert "is missing" in message
        assert f"_job/receipts/{name}.json: embedded is " in message


def test_lines_more_than_the_source_has_are_found(out: Path) -> None:
    edit(out, "data/plain-00001.ndjson", lambda lines: [*lines, lines[-1]], forge=True)
    assert "data/plain-00001.ndjson: 1 line more than the source has" in findings(out)


@pytest.mark.parametrize("shard", ["plain-00000", "plain-00001", "packed-00000", "packed-00001"])
@pytest.mark.parametrize("file", ["_job/receipts/{}.json", "data/{}.ndjson"])
def test_a_deleted_file_is_found(out: Path, shard: str, file: str) -> None:
    (out / file.format(shard)).unlink()
    message = findings(out)
    assert re.search(r"\d+ (of \d+ )?shards are done", message)
    assert f"{shard}." in message


@pytest.mark.parametrize(
    ("reason", "instead", "words"),
    [
        ("invalid_json", "missing_text", "has the reason missing_text, but that line is invalid_json"),
        ("invalid_json", "rejected_by_endpoint", "has the reason rejected_by_endpoint, but that line is invalid_json"),
        ("missing_text", "empty_text", "has the reason empty_text, but that line is missing_text"),
    ],
)
def test_a_dead_letter_is_what_the_parser_says_of_its_line(out: Path, reason: str, instead: str, words: str) -> None:
    name = next(name for name in letters_of(out) if f'"{reason}"'.encode() in (out / name).read_bytes())
    forge_letter(out, name, reason.encode(), instead.encode())
    message = findings(out)
    assert f"{name}: the dead letter of byte " in message
    assert words in message
    assert f"_job/receipts/{Path(name).stem}.json: reasons are " in message


def test_a_document_that_was_set_aside_by_the_reader_is_found(out: Path, finished: Path) -> None:
    source = (finished / "in/plain.ndjson").read_bytes().splitlines(keepends=True)
    letter = DeadLetter(str(finished / "in/plain.ndjson"), 0, Stage.READ, Reason.INVALID_JSON, "", source[0][:-1])
    name = "dead_letters/plain-00000.ndjson"
    assert not (out / name).exists()
    (out / name).write_bytes(encode_dead_letter(letter))
    receipt = receipt_of(out, "plain-00000")
    fields = json.loads(receipt.read_bytes())
    size = (out / name).stat().st_size
    fields["dead_letter_output"] = {"path": name, "bytes": size, "crc32c": "AAAAAA=="}
    receipt.write_text(json.dumps(fields))
    assert (
        f"{name}: the dead letter of byte 0 of {letter.source} has the reason invalid_json, but that line is"
        in findings(out)
    )
    forge_letter(out, name, b"plain.ndjson", b"other.ndjson")
    assert f"names another source, {finished}/in/other.ndjson" in findings(out)


def test_a_line_that_may_have_no_vector_and_has_one_is_found(finished: Path, out: Path, source: Path) -> None:
    stat = source.stat()
    data = source.read_bytes()
    text = json.loads(data.splitlines()[0])["content"].encode()
    blank = b" " * len(text)
    source.write_bytes(data.replace(text, blank, 1))
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    edit(out, "data/plain-00000.ndjson", lambda lines: [lines[0].replace(text, blank, 1), *lines[1:]], forge=True)
    assert "data/plain-00000.ndjson, byte 0: the source line is empty_text, so it cannot have a vector" in findings(out)


def forge_letter(out: Path, name: str, old: bytes, new: bytes) -> None:
    edit(out, name, lambda lines: [line.replace(old, new) for line in lines], forge=True)


def letters_of(out: Path) -> list[str]:
    return sorted(f"dead_letters/{path.name}" for path in (out / "dead_letters").iterdir())


def test_deleted_dead_letters_are_found(out: Path) -> None:
    name = letters_of(out)[0]
    (out / name).unlink()
    assert f"{Path(name).stem}.json: no valid receipt vouches for this file" in findings(out)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: [lines[0].replace(b"broken", b"brocken"), *lines[1:]], "does not hold that line"),
        (lambda lines: [lines[0].replace(b"invalid_json", b"invalid_utf8"), *lines[1:]], "its checksum is"),
        (lambda lines: [b"nonsense\n", *lines[1:]], "byte 0: this is not a dead letter"),
        (lambda lines: lines[1:], "the line is not the source line with a vector|is missing|cannot have a vector"),
        (lambda lines: [*lines, lines[-1]], "no source line begins at byte"),
    ],
)
def test_an_edited_dead_letter_is_found(out: Path, change: Callable[[list[bytes]], list[bytes]], words: str) -> None:
    names = [name for name in letters_of(out) if b"broken" in (out / name).read_bytes().splitlines()[0]]
    for name in names:
        edit(out, name, change, forge=True)
    message = findings(out)
    assert any(word in message for word in words.split("|")), message
    assert Path(names[0]).stem in message


@pytest.mark.parametrize(
    "name", ["data/plain-00099.ndjson", "dead_letters/plain-00000.ndjson", "_job/receipts/packed-00099.json"]
)
def test_a_stray_file_is_found(out: Path, name: str) -> None:
    assert not (out / name).exists()
    (out / name).write_bytes(b"x")
    assert f"{name}: no valid receipt vouches for this file" in findings(out)


@pytest.mark.parametrize("name", ["records", "embedded", "dead_letters"])
def test_a_receipt_that_counts_wrong_is_found(out: Path, name: str) -> None:
    receipt = receipt_of(out, "plain-00001")
    fields = json.loads(receipt.read_bytes())
    fields[name] += 1
    receipt.write_text(json.dumps(fields))
    message = findings(out)
    assert f"_job/receipts/plain-00001.json: {name} is {fields[name]}, but should be {fields[name] - 1}" in message
    assert "_job/receipts/plain-00001.json: does not balance" in message


@pytest.mark.parametrize("reasons", [{}, {"missing_text": 1}, {"invalid_json": 2}])
def test_a_receipt_that_tells_other_reasons_is_found(out: Path, reasons: dict[str, int]) -> None:
    name = next(name for name in letters_of(out) if (out / name).read_bytes().count(b"\n") == 2)
    receipt = receipt_of(out, Path(name).name)
    fields = json.loads(receipt.read_bytes())
    assert fields["reasons"] == {"invalid_json": 1, "invalid_utf8": 1}
    receipt.write_text(json.dumps(fields | {"reasons": reasons}))
    assert ".json: reasons are " in findings(out)
    assert "but should be invalid_json 1, invalid_utf8 1" in findings(out)


def test_processes_find_the_same_in_the_same_order(out: Path, finished: Path) -> None:
    assert verify(options(finished / "out", processes=2), lambda _: None) is ExitCode.DONE
    for name in (
        "data/plain-00000.ndjson",
        "data/plain-00002.ndjson",
        "data/packed-00000.ndjson",
        "data/packed-00001.ndjson",
    ):
        edit(out, name, swapped, forge=True)
    with pytest.raises(NotProven) as found:
        verify(options(out, processes=2))
    assert str(found.value) == findings(out)
    assert str(found.value).startswith("8 findings in ")
    places = [line.split(",")[0].split(":")[0].strip() for line in str(found.value).splitlines()[1:]]
    assert [place for place in places if place.endswith(".ndjson")] == sorted(places)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_terminal_is_shown_how_far_it_is(finished: Path, processes: int) -> None:
    master, terminal = pty.openpty()
    try:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        arguments = ["verify", "--output", str(finished / "out"), "--processes", str(processes)]
        with (
            open(terminal, "w", closefd=False) as screen,
            contextlib.closing(
                Forked([*arguments, "--max_dead_letter_ratio=1"], ROOT, environment(), screen)
            ) as process,
        ):
            assert process.wait(110) == 0
        shown = os.read(master, 1 << 16).decode()
    finally:
        os.close(terminal)
        os.close(master)
    assert "64 of 64 records" in shown
    assert " records/s" in shown
    assert "verified: 64 records" in shown
    assert "WARNING" not in shown


@pytest.fixture
def source(finished: Path) -> Iterator[Path]:
    """A source, put back afterwards as it was."""
    path = finished / "in" / "plain.ndjson"
    data, stat = path.read_bytes(), path.stat()
    yield path
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("change", ["longer", "touched"])
def test_a_changed_source_is_found(out: Path, source: Path, change: str) -> None:
    if change == "longer":
        source.write_bytes(source.read_bytes() + b"\n")
    else:
        os.utime(source, (1, 1))
    message = findings(out)
    assert str(source) in message
    assert "changed since" in message


def test_a_source_that_changed_behind_its_own_back_is_found(out: Path, source: Path) -> None:
    stat = source.stat()
    data = source.read_bytes()
    source.write_bytes(data.replace(b'"id"', b'"ID"'))
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert "the line is not the source line with a vector" in findings(out)


def reported(out: Path) -> Any:
    return json.loads((out / "_job/report.json").read_bytes())


def test_the_report_shows_when_it_was_verified_and_with_which_result(out: Path) -> None:
    before = reported(out)
    assert verify(options(out), lambda _: None) is ExitCode.DONE
    after = reported(out)
    assert (after["verified"]["passed"], after["verified"]["findings"], after["verified"]["current"]) == (True, 0, True)
    changed = ("verified", "made_at", "output")  # the folder is a copy
    assert {name: after[name] for name in after if name not in changed} == {
        name: before[name] for name in before if name not in changed
    }
    page = (out / "_job/report.html").read_text(encoding="utf-8")
    assert '<span class="good">Verified</span>' in page
    (out / "data/x.ndjson").write_bytes(b"x")
    (out / "data/y.ndjson").write_bytes(b"y")
    findings(out)
    assert (reported(out)["verified"]["passed"], reported(out)["verified"]["findings"]) == (False, 2)
    assert "Verification failed" in (out / "_job/report.html").read_text(encoding="utf-8")
    tayyar_here("report", "--output", out)
    assert reported(out)["verified"]["findings"] == 2


def test_a_report_is_left_alone_where_a_run_is_at_work_or_there_is_none(out: Path) -> None:
    before = reported(out)
    at_work = RunMarker("elsewhere", 1, "2026-01-02T03:04:05+00:00")
    (out / at_work.name).parent.mkdir()
    (out / at_work.name).write_text(json.dumps(dataclasses.asdict(at_work)))
    assert verify(options(out), lambda _: None) is ExitCode.DONE
    assert reported(out) == before
    (out / at_work.name).unlink()
    (out / "_job/report.json").unlink()
    assert verify(options(out), lambda _: None) is ExitCode.DONE
    assert not (out / "_job/report.json").exists()
    assert json.loads((out / "_job/verified.json").read_bytes())["findings"] == 0


def test_a_folder_that_cannot_be_written_can_be_verified(out: Path) -> None:
    (out / "_job/tmp").write_bytes(b"where new files would be written first")
    said = tayyar_here("verify", "--output", out, "--max_dead_letter_ratio", 1)
    assert "verified: 64 records" in said.stdout
    assert "the report will not show this verification, because it cannot be saved" in said.stderr


def test_ten_findings_are_shown_and_all_are_counted(out: Path) -> None:
    for number in range(25):
        (out / "data" / f"plain-{1000 + number:05d}.ndjson").write_bytes(b"x")
    message = findings(out)
    assert message.startswith(f"25 findings in {out}, the first of them:\n")
    assert len(message.splitlines()) == 11


def test_a_folder_that_holds_no_job_is_refused(tmp_path: Path, out: Path) -> None:
    with pytest.raises(UsageError, match=f"{tmp_path} is not an output folder"):
        verify(VerifyOptions(output=str(tmp_path)))
    (out / "_job" / "plan.ndjson").unlink()
    with pytest.raises(UsageError, match=r"no _job/plan\.ndjson"):
        verify(VerifyOptions(output=str(out)))


def test_control_c_promises_nothing(finished: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with started("verify", "--output", finished / "out", "--sample", 1, "--endpoint", url) as process:
            connection, _ = silent.accept()
            with connection:
                os.kill(process.pid, signal.SIGINT)
                said, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "tayyar: stopped" in said
    assert "continues from here" not in said


def test_the_proof_takes_bounded_memory(tmp_path: Path, hash_tei: str) -> None:
    text = "w" * 4000
    lines = [b'{"content":"%s %d","embedding":null}' % (text.encode(), number) for number in range(1500)]
    (tmp_path / "in.ndjson").write_bytes(b"\n".join(lines))
    arguments = ["run", "--input", f"{tmp_path}/in.ndjson", "--output", f"{tmp_path}/out", "--endpoint", hash_tei]
    run(parsed(RunOptions, *arguments), say=lambda _: None)
    assert (tmp_path / "out" / "data" / "in-00000.ndjson").stat().st_size > 12 << 20
    tracemalloc.start()
    try:
        verify(VerifyOptions(output=f"{tmp_path}/out"), lambda _: None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


# What was forged consistently: sizes and checksums in receipts agree again.


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    fields = json.loads(path.read_bytes())
    change(fields)
    path.write_text(json.dumps(fields))


def scaled(lines: list[bytes]) -> list[bytes]:
    return _with_vector(lines, lambda vector: [1.01 * number for number in vector])


def test_a_normalized_vector_has_norm_one(out: Path) -> None:
    edit(out, "data/plain-00001.ndjson", scaled, forge=True, crc_too=True)
    place = sum(map(len, (out / "data/plain-00001.ndjson").read_bytes().splitlines(keepends=True)[:2]))
    message = findings(out)
    assert message.startswith("1 finding in ")
    assert (
        f"data/plain-00001.ndjson, byte {place}: the vector's norm is 1.01, but the job's vectors are normalized"
        in message
    )


def test_an_input_that_was_forgotten_is_found(out: Path, finished: Path, hash_tei: str) -> None:
    for path in [*out.rglob("packed-*"), *out.rglob("report.json")]:
        path.unlink()
    plan = out / "_job/plan.ndjson"
    plan.write_bytes(b"".join(line for line in plan.read_bytes().splitlines(keepends=True) if b"packed" not in line))
    message = findings(out)
    assert message.startswith("1 finding in ")
    assert f"{finished}/in/packed.ndjson.gz: not embedded yet; run again" in message


def test_a_new_input_is_found(finished: Path, out: Path) -> None:
    new = finished / "in" / "new.ndjson"
    new.write_bytes(b'{"content":"new"}\n')
    try:
        assert f"{new}: not embedded yet; run again" in findings(out)
    finally:
        new.unlink()


def test_a_source_that_is_gone_is_checked_in_the_output_alone_and_the_last_line_says_so(
    finished: Path, out: Path, source: Path
) -> None:
    source.unlink()
    said: list[str] = []
    assert verify(options(out), said.append) is ExitCode.DONE
    assert re.fullmatch(
        rf"not checked: 1 of 2 sources no longer exists \({re.escape(str(source))}\): its 43 records were checked in "
        r"the output alone; the vectors against the model \(give .*\)",
        said[-1],
    )
    edit(out, "data/plain-00001.ndjson", zero, forge=True, crc_too=True)
    assert "the vector is all zeros" in findings(out)


def test_files_that_are_left_out_are_named_once_where_one_of_several_patterns_has_lost_its_files(
    tmp_path: Path, hash_tei: str
) -> None:
    for name in ("a/one.ndjson", "a/notes.txt", "b/two.ndjson"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"content": "x"}\n' if name.endswith(".ndjson") else "prose")
    inputs = ("--input", tmp_path / "a", "--input", tmp_path / "a" / "*", "--input", tmp_path / "b")
    tayyar_here("run", *inputs, "--output", tmp_path / "out", "--endpoint", hash_tei)
    shutil.rmtree(tmp_path / "b")
    finished = tayyar_here("verify", "--output", tmp_path / "out")
    assert finished.stderr.count("left out 1 file") == finished.stderr.count("notes.txt") == 1


def test_a_sample_of_nothing_is_among_what_was_not_checked(tmp_path: Path, hash_tei: str) -> None:
    (tmp_path / "a.ndjson").write_text('{"content": ""}\n')
    where = ("--input", tmp_path / "a.ndjson", "--output", tmp_path / "out", "--max_dead_letter_ratio", 1)
    tayyar_here("run", *where, "--endpoint", hash_tei)
    how = ("--sample", 3, "--endpoint", hash_tei, "--max_dead_letter_ratio", 1)
    said = tayyar_here("verify", "--output", tmp_path / "out", *how).stdout
    assert "not checked: the vectors against the model (there is no document to embed again)" in said


def test_nothing_is_proven_if_all_sources_are_gone(finished: Path, out: Path) -> None:
    (finished / "in").rename(finished / "elsewhere")
    try:
        assert "is gone, as are all sources, so there is nothing to compare with" in findings(out)
    finally:
        (finished / "elsewhere").rename(finished / "in")


def test_an_unfinished_job_is_one_finding(out: Path) -> None:
    shards = sorted((out / "data").glob("plain-*.ndjson"))
    for path in shards[1:]:
        path.unlink()
        receipt_of(out, path.name).unlink()
        (out / "dead_letters" / path.name).unlink(missing_ok=True)
    message = findings(out)
    assert message.startswith("1 finding in ")
    assert re.search(
        r"\d+ shards are done, and \S+/plain.ndjson only in part; run again$|of \d+ shards are done", message
    )


def test_more_dead_letters_than_allowed_end_with_their_exit_code(finished: Path) -> None:
    said: list[str] = []
    given = dataclasses.replace(options(finished / "out"), max_dead_letter_ratio=0.01)
    assert verify(given, said.append) is ExitCode.TOO_MANY_DEAD_LETTERS
    assert said[0].startswith("verified: 64 records")
    assert said[-1].startswith("4 of 64 records are dead letters, more than --max_dead_letter_ratio 0.01 allows")


def test_a_job_of_dead_letters_alone_is_no_success(tmp_path: Path, hash_tei: str) -> None:
    (tmp_path / "in.ndjson").write_bytes(b'{"content":""}\n' * 5)
    arguments = ["run", "--input", f"{tmp_path}/in.ndjson", "--output", f"{tmp_path}/out", "--endpoint", hash_tei]
    assert run(parsed(RunOptions, *arguments, "--max_dead_letter_ratio=1"), say=lambda _: None) is ExitCode.DONE
    shown = tayyar_here("verify", "--output", tmp_path / "out", code=4).stdout
    assert "all 5 records are dead letters, more than --max_dead_letter_ratio 0.01 allows" in shown
    tayyar_here("verify", "--output", tmp_path / "out", "--max_dead_letter_ratio", 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("end", 1), ("last", True), ("model", "another"), ("index", 7)],
)
def test_a_receipt_is_what_can_be_computed_again(out: Path, name: str, value: object) -> None:
    receipt = receipt_of(out, "plain-00000")
    before = json.loads(receipt.read_bytes())[name]
    edit_json(receipt, lambda fields: fields.update({name: value}))
    message = findings(out)
    if name == "index":  # then it is no receipt of shard 0
        assert "_job/receipts/plain-00000.json: no valid receipt vouches for this file" in message
    else:
        assert f"_job/receipts/plain-00000.json: {name} is {value}, but should be {before}" in message


def test_a_receipt_names_its_own_files(out: Path, tmp_path: Path) -> None:
    data = (out / "data/plain-00000.ndjson").read_bytes()
    (out / "data/plain-00001.ndjson").write_bytes(data)
    edit_json(receipt_of(out, "plain-00000"), lambda fields: fields["output"].update(path="data/plain-00001.ndjson"))
    assert "_job/receipts/plain-00000.json: no valid receipt vouches for this file" in findings(out)


@pytest.mark.parametrize("name", ["records", "embedded", "dead_letters", "shards", "output_bytes", "tokens"])
def test_the_totals_of_the_report_are_those_of_the_receipts(out: Path, name: str) -> None:
    edit_json(out / "_job/report.json", lambda report: report["totals"].update({name: 987654}))
    message = findings(out)
    assert message.startswith("1 finding in ")
    assert f"_job/report.json: {name} is 987654, but " in message


def test_the_last_line_ends_with_a_newline(out: Path) -> None:
    edit(out, "data/plain-00000.ndjson", lambda lines: [*lines[:-1], lines[-1][:-1]], forge=True, crc_too=True)
    assert "data/plain-00000.ndjson: its last line does not end with a newline" in findings(out)


@pytest.mark.parametrize("name", ["data/plain-00000.ndjson", "_job/receipts/plain-00000.json"])
def test_a_link_is_no_output(out: Path, tmp_path: Path, name: str) -> None:
    (out / name).rename(tmp_path / "elsewhere")
    (out / name).symlink_to(tmp_path / "elsewhere")
    assert name in findings(out)


@pytest.mark.parametrize("name", [".hidden", "foreign.parquet", "deep/plain-00000.ndjson"])
@pytest.mark.parametrize("folder", ["dead_letters", ""])
def test_a_file_that_no_receipt_vouches_for_is_found(out: Path, folder: str, name: str) -> None:
    path = out / (folder or Path(OutputFolder(str(out), "test").embedded("x")).parent) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    assert f"{path.relative_to(out)}: no valid receipt vouches for this file" in findings(out)


VECTOR = re.compile(rb"\[[-+0-9.,eE]{500,}\]")


def with_vectors(vectors: list[bytes]) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [VECTOR.sub(vector, line) for vector, line in zip(vectors * len(lines), lines, strict=False)]


def test_one_vector_for_different_texts_is_found_with_two_places(out: Path) -> None:
    vectors = VECTOR.findall((out / "data/plain-00000.ndjson").read_bytes())
    edit(out, "data/plain-00000.ndjson", with_vectors(vectors[:1]), forge=True, crc_too=True)
    message = findings(out)
    assert message.startswith("1 finding in ")
    assert re.search(
        r"/plain-00000.ndjson, byte \d+, and \S+/plain-00000.ndjson, byte \d+, have different texts and the same ",
        message,
    )


@pytest.mark.parametrize("processes", [1, 2])
def test_vectors_of_another_shard_are_found(out: Path, processes: int) -> None:
    vectors = VECTOR.findall((out / "data/plain-00000.ndjson").read_bytes())
    edit(out, "data/plain-00001.ndjson", with_vectors(vectors), forge=True, crc_too=True)
    with pytest.raises(NotProven, match=r"1 finding in .*\n.*have different texts and the same vector") as found:
        verify(options(out, processes=processes), lambda _: None)
    assert "data/plain-00000.ndjson, byte " in str(found.value)
    assert "data/plain-00001.ndjson, byte " in str(found.value)


@pytest.mark.timeout(60)  # a second's work; hours, if each name had the rest of the line searched
def test_long_lines_of_escaped_names_are_checked_in_linear_time(tmp_path: Path, hash_tei: str) -> None:
    names = b",".join(b'"\\u00e%x%d":1' % (number % 16, number) for number in range(600_000))
    (tmp_path / "in.ndjson").write_bytes(b'{"content":"one",%s}\n' % names)
    assert (tmp_path / "in.ndjson").stat().st_size > 8 << 20
    arguments = ["run", "--input", f"{tmp_path}/in.ndjson", "--output", f"{tmp_path}/out", "--endpoint", hash_tei]
    assert run(parsed(RunOptions, *arguments), say=lambda _: None) is ExitCode.DONE
    assert verify(options(tmp_path / "out"), lambda _: None) is ExitCode.DONE
