"""Files in `_job` are input, not truth: any bytes in any of them, any command."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.job.run_marker import RunMarker
from pipeline.job.shard_replacement import replace_shard
from pipeline.job.spec import require_job
from tests.commands import output_files, tayyar, tayyar_here
from tests.documents import documents, write_ndjson
from tests.strategies import examples
from transforms.doubt import record_doubt
from transforms.elements import Shard, Source
from transforms.output.folder import OutputFolder
from transforms.output.receipts import decode_receipt
from transforms.read_shards import record_damage
from transforms.reuse.partial import encode_partial

EXIT_CODES = {0, 1, 2, 3, 4, 5}
# What stands for other people's files, beside the output folder and in it.
THEIRS = {"victim.ndjson": "theirs", "out/notes.txt": "theirs", "out/data/notes.txt": "theirs"}


class Stopped(Exception):
    """The process died."""


class Stopping(OutputFolder):
    """A folder in which a redrive dies as soon as its intent is written."""

    def write(self, name: str, chunks: Any) -> Any:
        written = super().write(name, chunks)
        if name.startswith("_job/redrive/") and name.endswith(".json"):
            raise Stopped
        return written


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, hash_tei: str) -> Path:
    """A folder with one of each kind of file that `_job` can have."""
    root = tmp_path_factory.mktemp("forged")
    write_ndjson(root / "in/a.ndjson", documents(12, seed=1))
    with (root / "in/a.ndjson").open("a") as file:
        file.write("no json\n")
    out = root / "out"
    options = ("--endpoint", hash_tei, "--max_dead_letter_ratio", 1)
    tayyar_here("run", "--input", root / "in", "--output", out, "--shard_bytes", 2000, *options)
    output = Stopping(str(out), "stopped")
    job = require_job(output)
    receipt = decode_receipt(output.read("_job/receipts/a-00000.json") or b"")
    output.write(
        "_job/partial/x-stopped", encode_partial("a-00000", job.space.digest, "truncate", ["x"], job.space.vectors[:1])
    )
    stem = "_job/former/0123456789abcdef"
    for name, copied in (
        ("json", "_job/receipts/a-00001.json"),
        ("u64", "_job/keys/a-00001.u64"),
        ("ndjson", "data/a-00001.ndjson"),
    ):
        output.write(f"{stem}.{name}", [output.read(copied) or b""])
    output.write("_job/reuse/stopped.index", [b"an index of a run that died"])
    output.write("_job/verified.json", [b'{"at":"2026-01-02T03:04:05+00:00","findings":0}'])
    record_damage(output, Shard(Source(receipt.source, "a", 1, "1"), 1, 0, None), "a.gz is truncated", 5)
    estimate = {"records": 13, "tokens": 100, "requests": 1, "output_bytes": 9, "seconds": 1.5, "dollars": None}
    output.write("_job/estimate.json", [json.dumps({"version": 1, **estimate, "price_per_hour": 1.0}).encode()])
    record_doubt(OutputFolder(output.root, "gone"), "Rows were mixed up.")
    marker = RunMarker("elsewhere", 7, "2026-01-02T03:04:05+00:00", "")
    output.write(
        marker.name, [json.dumps({"host": "elsewhere", "pid": 7, "since": marker.since, "runner": ""}).encode()]
    )
    with pytest.raises(Stopped):
        replace_shard(
            output,
            receipt,
            [output.read("data/a-00000.ndjson") or b""],
            b"",
            lambda: output.read("_job/keys/a-00000.u64") or b"",
        )
    for name, text in THEIRS.items():
        (root / name).write_text(text)
    return root


def names(template: Path) -> list[str]:
    return sorted(
        str(path.relative_to(template / "out")) for path in (template / "out/_job").rglob("*") if path.is_file()
    )


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["../../victim", "/etc/passwd", "a-00000", "data/../../victim.ndjson", "..", "", "\x00", "a/./b-00000"]
    ),
    st.just([]),
    st.just({}),
)


def mutated(value: Any, data: st.DataObject) -> Any:
    """Change one place in a JSON value."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 5)):
        key = data.draw(st.sampled_from(sorted(value)))
        if data.draw(st.integers(0, 9)) == 0:
            return {name: each for name, each in value.items() if name != key}
        return value | {key: mutated(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.integers(0, 5)):
        at = data.draw(st.integers(0, len(value) - 1))
        return [*value[:at], mutated(value[at], data), *value[at + 1 :]]
    return data.draw(VALUES)


def forged(content: bytes, data: st.DataObject) -> bytes:
    kind = data.draw(st.sampled_from(["json", "json", "json", "bytes", "cut", "flip"]))
    if kind == "json":
        lines = content.splitlines() if content.count(b"\n{") else [content]
        try:
            at = data.draw(st.integers(0, len(lines) - 1))
            lines[at] = json.dumps(mutated(json.loads(lines[at]), data)).encode()
        except ValueError:
            return data.draw(st.binary(max_size=40))
        return b"\n".join(lines)
    if kind == "bytes":
        return data.draw(st.binary(max_size=40))
    at = data.draw(st.integers(0, max(0, len(content) - 1)))
    if kind == "cut":
        return content[:at]
    return content[:at] + bytes([data.draw(st.integers(0, 255))]) + content[at + 1 :]


READING = ["status", "report", "verify"]
COMMANDS = [*READING, "redrive", "run", "prune", "overwrite"]


def call(command: str, root: Path, url: str, folder: str = "out") -> list[object]:
    """The arguments of a command for a copy of the template."""
    out = root / folder
    run: tuple[object, ...] = ("run", "--input", root / "in", "--output", out, "--shard_bytes", 2000, "--endpoint", url)
    run = (*run, "--max_dead_letter_ratio", 1)
    arguments: dict[str, tuple[object, ...]] = {
        "status": ("status", "--output", out),
        "report": ("report", "--output", out),
        "verify": ("verify", "--output", out),
        "redrive": ("redrive", "--output", out, "--endpoint", url),
        "run": run,
        "prune": (*run, "--prune"),
        "overwrite": (*run, "--overwrite"),
    }
    return [*arguments[command]]


@pytest.mark.parametrize("command", COMMANDS)
def test_any_bytes_in_any_file_end_in_a_sentence_and_touch_nothing_outside(
    template: Path, tmp_path_factory: pytest.TempPathFactory, hash_tei: str, command: str
) -> None:
    @settings(
        max_examples=examples(25 if command in READING else 12),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.data())
    def check(data: st.DataObject) -> None:
        root = tmp_path_factory.mktemp("x") / "root"
        shutil.copytree(template, root)
        name = data.draw(st.sampled_from(names(template)))
        content = forged((root / "out" / name).read_bytes(), data)
        (root / "out" / name).write_bytes(content)
        if "run_markers" not in name and data.draw(st.booleans()):  # otherwise, a command elsewhere seems to be writing
            shutil.rmtree(root / "out/_job/run_markers")
        before = output_files(root / "out")
        finished = tayyar_here(*call(command, root, hash_tei), code=None)
        assert finished.returncode in EXIT_CODES
        assert "Traceback" not in finished.stdout + finished.stderr
        assert {each: (root / each).read_text() for each in THEIRS} == THEIRS
        assert sorted(os.listdir(root)) == ["in", "out", "victim.ndjson"]
        assert sorted(os.listdir(root / "in")) == ["a.ndjson"]
        if command in READING:
            assert output_files(root / "out") == before
        shutil.rmtree(root)

    check()


def kinds(template: Path) -> list[str]:
    """One file of each kind in `_job`: of those in a folder of their own, and of each ending, one."""
    found = {(name.rpartition("/")[0], Path(name).suffix): name for name in names(template)}
    found |= {(name, ""): name for name in names(template) if name.count("/") == 1}
    return sorted(set(found.values()))


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "prune"])
def test_a_pipe_or_a_device_in_any_place_hangs_nobody(
    template: Path, tmp_path: Path, hash_tei: str, command: str
) -> None:
    """In processes of their own, with a time limit: what hangs in this one would hang the tests."""
    for number, name in enumerate(kinds(template)):
        root = tmp_path / str(number)
        shutil.copytree(template, root)
        (root / "out" / name).unlink()
        if command == "overwrite" and "run_markers" not in name:  # it would be refused before anything is looked at
            shutil.rmtree(root / "out/_job/run_markers")
        if number % 2 or os.geteuid() != 0:  # only root makes devices
            os.mkfifo(root / "out" / name)
        else:
            os.mknod(root / "out" / name, 0o666 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero, which has no end
        finished = tayyar(*call(command, root, hash_tei), code=None)
        assert "Traceback" not in finished.stdout + finished.stderr
        assert finished.returncode in EXIT_CODES, name
