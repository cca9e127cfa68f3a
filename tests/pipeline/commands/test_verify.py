from __future__ import annotations

import fcntl
import gzip
import json
import os
import pty
import shutil
import signal
import socket
import struct
import subprocess
import termios
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.commands.options import VerifyOptions, make_parser, run_options
from pipeline.commands.run import run
from pipeline.commands.verify import verify
from pipeline.errors import ExitCode, NotProven, UsageError
from pipeline.job.ledger import read_ledger
from pipeline.job.sharding import read_plan
from pipeline.job.spec import require_job
from pipeline.verification.findings import wrong_vector_line
from pipeline.verification.shards import ShardWork, check_shards
from tests.commands import ROOT, command, environment, started
from tests.documents import documents
from transforms.elements import DeadLetter, Reason, Stage
from transforms.ndjson.splice import json_key
from transforms.output.folder import OutputFolder
from transforms.write_dead_letters import encode_dead_letter

KEY = json_key("embedding")


def job(root: Path, url: str) -> Path:
    """A finished job: two sources of several shards each, plain and compressed, with dead letters in both."""
    lines = [json.dumps(one, ensure_ascii=False).encode() for one in documents(60, seed=2)]
    data = b"\n".join([*lines[:20], b"", b"broken", b"\xff", *lines[20:40], b"{}"])
    (root / "in").mkdir()
    (root / "in" / "plain.ndjson").write_bytes(data)
    (root / "in" / "packed.ndjson.gz").write_bytes(gzip.compress(b"\r\n".join([*lines[40:], b"broken", b""])))
    arguments = ["run", "--input", str(root / "in"), "--output", str(root / "out"), "--endpoint", url]
    options, rest = make_parser().parse_known_args([*arguments, "--shard_bytes=3000", "--max_dead_letter_ratio=1"])
    assert run(run_options(options, rest), say=lambda _: None) is ExitCode.DONE
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
        verify(VerifyOptions(str(out)), said.append)
    assert said == []
    return str(found.value)


def receipt_of(out: Path, name: str) -> Path:
    return out / "_job" / "receipts" / f"{name.removeprefix('data/').removesuffix('.ndjson')}.json"


def edit(out: Path, name: str, change: Callable[[list[bytes]], list[bytes]], *, forge: bool) -> None:
    """Change the lines of a file, and if `forge` its receipt as well, so that sizes agree again."""
    before = (out / name).read_bytes()
    after = b"".join(change(before.splitlines(keepends=True)))
    assert after != before
    (out / name).write_bytes(after)
    if forge:
        receipt = receipt_of(out, Path(name).name)
        fields = json.loads(receipt.read_bytes())
        kind = "dead_letter_output" if name.startswith("dead_letters") else "output"
        fields[kind]["bytes"] = len(after)
        receipt.write_text(json.dumps(fields))


def test_the_untouched_folder_passes_and_says_what_was_proven(finished: Path) -> None:
    said: list[str] = []
    assert verify(VerifyOptions(str(finished / "out")), said.append) is ExitCode.DONE
    assert said == [
        "verified: 64 records in 2 files = 60 embedded, each line unchanged and once, "
        "with a vector of 384 finite numbers, + 4 dead letters"
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
        (not_a_number, "the vector is no JSON"),
        (beyond_float32, "the vector has numbers that no float32 holds"),
        (nested, "the vector is no array of numbers"),
        (null, "the vector is no array of numbers"),
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
        assert f"{name}, byte {place}: {words} (byte " in message


@pytest.mark.parametrize("change", [lost, doubled, shortened])
def test_a_file_of_another_size_than_its_receipt_says_is_found(
    out: Path, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    edit(out, "data/plain-00001.ndjson", change, forge=False)
    message = findings(out)
    assert "_job/receipts/plain-00001.json: shard 1 of " in message
    assert "data/plain-00001.ndjson: no valid receipt stands for this file" in message


@pytest.mark.parametrize("name", ["plain-00001", "packed-00000"])
@pytest.mark.parametrize("forge", [False, True])
def test_a_truncated_output_is_found(out: Path, name: str, forge: bool) -> None:
    edit(out, f"data/{name}.ndjson", lambda lines: lines[:-2], forge=forge)
    message = findings(out)
    assert name in message
    if forge:
        assert f"{name}.ndjson: the line at byte " in message
        assert "is missing" in message
        assert f"_job/receipts/{name}.json: says embedded = " in message


def test_lines_more_than_the_source_has_are_found(out: Path) -> None:
    edit(out, "data/plain-00001.ndjson", lambda lines: [*lines, lines[-1]], forge=True)
    assert "data/plain-00001.ndjson: 1 lines more than the source has" in findings(out)


@pytest.mark.parametrize("shard", ["plain-00000", "plain-00001", "packed-00000", "packed-00001"])
@pytest.mark.parametrize("file", ["_job/receipts/{}.json", "data/{}.ndjson"])
def test_a_deleted_file_is_found(out: Path, shard: str, file: str) -> None:
    (out / file.format(shard)).unlink()
    assert f"_job/receipts/{shard}.json: shard " in findings(out)


@pytest.mark.parametrize(
    ("reason", "instead", "words"),
    [
        ("invalid_json", "missing_text", "says missing_text, but that line is invalid_json"),
        ("invalid_json", "rejected_by_endpoint", "says rejected_by_endpoint, but that line is invalid_json"),
        ("missing_text", "empty_text", "says empty_text, but that line is missing_text"),
    ],
)
def test_a_dead_letter_is_what_the_parser_says_of_its_line(out: Path, reason: str, instead: str, words: str) -> None:
    name = next(name for name in letters_of(out) if f'"{reason}"'.encode() in (out / name).read_bytes())
    forge_letter(out, name, reason.encode(), instead.encode())
    message = findings(out)
    assert f"{name}: the dead letter of byte " in message
    assert words in message
    assert f"_job/receipts/{Path(name).stem}.json: says reasons = " in message


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
    assert f"{name}: the dead letter of byte 0 of {letter.source} says invalid_json, but that line is" in findings(out)
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
    assert f"{Path(name).stem}.json: shard " in findings(out)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: [lines[0].replace(b"broken", b"brocken"), *lines[1:]], "does not hold that line"),
        (lambda lines: [lines[0].replace(b"invalid_json", b"invalid_utf8"), *lines[1:]], "its checksum is"),
        (lambda lines: [b"nonsense\n", *lines[1:]], "byte 0: this is no dead letter"),
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
    assert f"{name}: no valid receipt stands for this file" in findings(out)


@pytest.mark.parametrize("name", ["records", "embedded", "dead_letters"])
def test_a_receipt_that_counts_wrong_is_found(out: Path, name: str) -> None:
    receipt = receipt_of(out, "plain-00001")
    fields = json.loads(receipt.read_bytes())
    fields[name] += 1
    receipt.write_text(json.dumps(fields))
    message = findings(out)
    assert f"_job/receipts/plain-00001.json: says {name} = {fields[name]}, there are {fields[name] - 1}" in message
    assert "_job/receipts/plain-00001.json: does not balance" in message


@pytest.mark.parametrize("reasons", [{}, {"missing_text": 1}, {"invalid_json": 2}])
def test_a_receipt_that_tells_other_reasons_is_found(out: Path, reasons: dict[str, int]) -> None:
    name = next(name for name in letters_of(out) if (out / name).read_bytes().count(b"\n") == 2)
    receipt = receipt_of(out, Path(name).name)
    fields = json.loads(receipt.read_bytes())
    assert fields["reasons"] == {"invalid_json": 1, "invalid_utf8": 1}
    receipt.write_text(json.dumps(fields | {"reasons": reasons}))
    assert ".json: says reasons = " in findings(out)
    assert "there are invalid_json 1, invalid_utf8 1" in findings(out)


def test_processes_find_the_same_in_the_same_order(out: Path, finished: Path) -> None:
    assert verify(VerifyOptions(str(finished / "out"), processes=2), lambda _: None) is ExitCode.DONE
    for name in (
        "data/plain-00000.ndjson",
        "data/plain-00002.ndjson",
        "data/packed-00000.ndjson",
        "data/packed-00001.ndjson",
    ):
        edit(out, name, swapped, forge=True)
    with pytest.raises(NotProven) as found:
        verify(VerifyOptions(str(out), processes=2))
    assert str(found.value) == findings(out)
    assert str(found.value).startswith("8 findings in ")
    places = [line.split(",")[0].split(":")[0].strip() for line in str(found.value).splitlines()[1:]]
    assert [place for place in places if place.endswith(".ndjson")] == sorted(places)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_terminal_is_shown_how_far_it_is(finished: Path, processes: int) -> None:
    master, terminal = pty.openpty()
    try:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        arguments = command("verify", "--output", finished / "out", "--processes", processes)
        subprocess.run(arguments, cwd=ROOT, env=environment(), stderr=terminal, stdout=terminal, check=True)
        shown = os.read(master, 1 << 16).decode()
    finally:
        os.close(terminal)
        os.close(master)
    assert "64.0/64.0" in shown
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


@pytest.mark.parametrize("change", ["gone", "longer", "touched"])
def test_a_changed_source_is_found(out: Path, source: Path, change: str) -> None:
    if change == "gone":
        source.unlink()
    elif change == "longer":
        source.write_bytes(source.read_bytes() + b"\n")
    else:
        os.utime(source, (1, 1))
    message = findings(out)
    assert str(source) in message
    assert ("is gone now" if change == "gone" else "changed since") in message


def test_a_source_that_changed_behind_its_own_back_is_found(out: Path, source: Path) -> None:
    stat = source.stat()
    data = source.read_bytes()
    source.write_bytes(data.replace(b'"id"', b'"ID"'))
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert "the line is not the source line with a vector" in findings(out)


def test_ten_findings_are_shown_and_all_are_counted(out: Path) -> None:
    for number in range(25):
        (out / "data" / f"plain-{1000 + number:05d}.ndjson").write_bytes(b"x")
    message = findings(out)
    assert message.startswith(f"25 findings in {out}, the first of them:\n")
    assert len(message.splitlines()) == 11


def test_a_folder_that_holds_no_job_is_refused(tmp_path: Path, out: Path) -> None:
    with pytest.raises(UsageError, match=f"{tmp_path} is no output folder"):
        verify(VerifyOptions(str(tmp_path)))
    (out / "_job" / "plan.ndjson").unlink()
    with pytest.raises(UsageError, match=r"no _job/plan\.ndjson"):
        verify(VerifyOptions(str(out)))


@pytest.mark.parametrize(
    ("source", "found", "wrong"),
    [
        (b'{"a":1}', b'{"a":1,"embedding":[1,0.5]}', None),
        (b'{"embedding": null, "a":1}', b'{"embedding": [1,0.5], "a":1}', None),
        (b'{"a":1}', b'{"a":1,"embedding":[1]}', "has 1 numbers, not 2"),
        (b'{"a":1}', b'{"a":1,"embedding":[]}', "has 0 numbers, not 2"),
        (b'{"a":1}', b'{"a":1,"embedding":[1,true]}', "no array of numbers"),
        (b'{"a":1}', b'{"a":1,"embedding":["1","2"]}', "no array of numbers"),
        (b'{"a":1}', b'{"a":1,"embedding":{"1":2}}', "no array of numbers"),
        (b'{"a":1}', b'{"a":1,"embedding":[1,Infinity]}', "no JSON"),
        (b'{"a":1}', b'{"a":1,"embedding":[0,-0.0]}', "all zeros"),
        (b'{"a":1}', b'{"a":1,"embedding":[1,1e40]}', "no float32 holds"),
        (b'{"a":1}', b'{"a":1,"embedding":[1,2],"b":1}', "no JSON"),
        (b'{"a":1}', b'{"a":1}', "not the source line"),
        (b'{"a":1}', b'{"a":1 ,"embedding":[1,2]}', "not the source line"),
        (b'{"a":1}', b'{"a":1,"embedding":[1,0.5]]', "not the source line"),
        (b'{"a":1,"embedding":0,"b":1}', b'{"a":1,"embedding":[1,0.5],"b":2}', "not the source line"),
        (b'{"a":1}', b"", "not the source line"),
        (b"broken", b"broken", "no JSON object"),
    ],
)
def test_what_is_wrong_with_one_line(source: bytes, found: bytes, wrong: str | None) -> None:
    said = wrong_vector_line(source, found, KEY, 2)
    assert (said is None) if wrong is None else (wrong in (said or ""))


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
    assert "goes on from here" not in said


def test_how_far_it_is_is_told_in_the_middle_of_a_shard(tmp_path: Path, hash_tei: str) -> None:
    (tmp_path / "in.ndjson").write_bytes(b"\n".join(b'{"content":"%d"}' % number for number in range(2500)))
    arguments = ["run", "--input", f"{tmp_path}/in.ndjson", "--output", f"{tmp_path}/out", "--endpoint", hash_tei]
    options, rest = make_parser().parse_known_args(arguments)
    run(run_options(options, rest), say=lambda _: None)
    output = OutputFolder(f"{tmp_path}/out", "test")
    job = require_job(output)
    plan = read_plan(output, job.shard_bytes)
    ledger = read_ledger(plan, output, job.digest, output.list())
    (shard,) = plan.shards_of(plan.sources[0])
    told: list[int] = []
    check_shards(ShardWork(shard, job.shard_bytes, ledger.sources[0].receipts, output, job), told.append)
    assert told == [1000, 1000, 500]


def test_the_proof_takes_bounded_memory(tmp_path: Path, hash_tei: str) -> None:
    text = "w" * 4000
    lines = [b'{"content":"%s %d","embedding":null}' % (text.encode(), number) for number in range(1500)]
    (tmp_path / "in.ndjson").write_bytes(b"\n".join(lines))
    arguments = ["run", "--input", f"{tmp_path}/in.ndjson", "--output", f"{tmp_path}/out", "--endpoint", hash_tei]
    options, rest = make_parser().parse_known_args(arguments)
    run(run_options(options, rest), say=lambda _: None)
    assert (tmp_path / "out" / "data/in-00000.ndjson").stat().st_size > 12 << 20
    tracemalloc.start()
    try:
        verify(VerifyOptions(f"{tmp_path}/out"), lambda _: None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
