from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.shards import folder
from transforms.output.folder import OutputFolder


def test_the_names_are_a_contract() -> None:
    output = OutputFolder("/out", "run")
    assert output.embedded("a/wiki-00003") == "data/a/wiki-00003.ndjson"
    assert output.dead_letters("a/wiki-00003") == "dead_letters/a/wiki-00003.ndjson"
    assert output.receipt("a/wiki-00003") == "_job/receipts/a/wiki-00003.json"
    assert (output.job, output.plan, output.report) == ("_job/job.json", "_job/plan.ndjson", "_job/report.json")
    assert output.path("x") == "/out/x"


def test_a_file_is_written_read_listed_and_deleted(tmp_path: Path) -> None:
    output = folder(tmp_path)
    assert output.read("a/b") is None
    written = output.write("a/b", [b"1234", b"56789"])
    assert (written.path, written.bytes, written.crc32c) == ("a/b", 9, "4waSgw==")
    assert output.read("a/b") == b"123456789"
    assert output.list().keys() == {"a/b"} == output.list("a").keys()
    assert output.list("b") == {}
    output.delete(["a/b", "nothing"])
    assert output.list() == {}


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    name = "x" * (os.pathconf(tmp_path, "PC_NAME_MAX"))
    folder(tmp_path).write(name, [b"1"])
    assert folder(tmp_path).list().keys() == {name}


def test_what_is_not_whole_lies_with_the_temporary_files_alone(tmp_path: Path) -> None:
    output = folder(tmp_path)

    def chunks() -> Iterator[bytes]:
        yield b"half"
        assert all(name.startswith(output.temporary + "/") for name in output.list())
        raise RuntimeError

    with pytest.raises(RuntimeError):
        output.write("a", chunks())
    assert "a" not in output.list()
