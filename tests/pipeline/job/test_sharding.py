from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.commands.options.shared import absolute
from pipeline.errors import UsageError
from pipeline.job.input_selection import ENDINGS
from pipeline.job.sharding import Plan, check_source_name, make_plan, read_plan, write_plan
from tests.shards import folder
from transforms.elements import Source

OUT = "/somewhere/else"


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"{}\n" * 4 if name != "z/notes.txt" else b"notes")
    return root


def names(root: Path, *patterns: str, output: str = OUT) -> dict[str, str]:
    """What is planned: output name to source, below the root."""
    plan = make_plan([f"{root}/{pattern}" for pattern in patterns], output, 10)
    assert [source.name for source in plan.sources] == sorted(source.name for source in plan.sources)
    return {source.name: os.path.relpath(source.path, root) for source in plan.sources}


FILES = ("a.ndjson", "b.jsonl", "x/a.ndjson", "x/y/c.json", "x/y/d.ndjson.gz", "z/notes.txt")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.ndjson", {"a": "a.ndjson"}),
        ("*.ndjson", {"a": "a.ndjson"}),
        ("?.jsonl", {"b": "b.jsonl"}),
        ("*", {"a": "a.ndjson", "b": "b.jsonl"}),
        ("x/*", {"a": "x/a.ndjson"}),
        ("*/a.ndjson", {"x/a": "x/a.ndjson"}),
        ("x*/y/*", {"x/y/c": "x/y/c.json", "x/y/d": "x/y/d.ndjson.gz"}),
        ("x/y/", {"c": "x/y/c.json", "d": "x/y/d.ndjson.gz"}),
        ("x/y", {"c": "x/y/c.json", "d": "x/y/d.ndjson.gz"}),
        ("x", {"a": "x/a.ndjson", "y/c": "x/y/c.json", "y/d": "x/y/d.ndjson.gz"}),
        ("**/*.ndjson", {"a": "a.ndjson", "x/a": "x/a.ndjson"}),
        ("x/**/*.json", {"y/c": "x/y/c.json"}),
        ("x/**/y/**/*.json", {"y/c": "x/y/c.json"}),
        ("x**/c.json", {"x/y/c": "x/y/c.json"}),
        ("**", dict(zip(["a", "b", "x/a", "x/y/c", "x/y/d"], FILES, strict=False))),
    ],
)
def test_a_pattern_names_what_it_matches_below_its_fixed_part(
    tmp_path: Path, pattern: str, expected: dict[str, str]
) -> None:
    assert names(tree(tmp_path, *FILES), pattern) == expected


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending_is_taken_off(tmp_path: Path, ending: str) -> None:
    assert names(tree(tmp_path, f"a.b{ending}"), "*") == {"a.b": f"a.b{ending}"}


def test_a_source_is_what_the_file_system_says(tmp_path: Path) -> None:
    (source,) = make_plan([str(tree(tmp_path, "a.ndjson"))], OUT, 10).sources
    path = tmp_path / "a.ndjson"
    assert source == Source(str(path), "a", 12, str(path.stat().st_mtime_ns))


def test_several_inputs_make_one_plan(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.ndjson", "b/2.ndjson")
    assert names(tmp_path, "b/*", "a/*") == {"1": "a/1.ndjson", "2": "b/2.ndjson"}


def test_a_file_that_two_inputs_match_is_embedded_once(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.ndjson", "a/b/2.ndjson")
    assert names(tmp_path, "a", "a/b/*", "a/1.ndjson") == {"1": "a/1.ndjson", "b/2": "a/b/2.ndjson"}


@pytest.mark.parametrize(
    ("files", "patterns"),
    [
        (["a.ndjson", "a.jsonl"], ["*"]),
        (["a.ndjson", "a.ndjson.gz"], ["*"]),
        (["x/a.ndjson", "y/a.ndjson"], ["x/*", "y/*"]),
    ],
)
def test_two_files_of_one_output_name_are_refused_with_both_names(
    tmp_path: Path, files: list[str], patterns: list[str]
) -> None:
    with pytest.raises(UsageError, match=r"would both be written to data/a-00000\.ndjson") as refused:
        names(tree(tmp_path, *files), *patterns)
    assert all(str(tmp_path / file) in str(refused.value) for file in files)


def test_folders_of_the_same_file_names_do_not_collide(tmp_path: Path) -> None:
    assert len(names(tree(tmp_path, "x/a.ndjson", "y/a.ndjson"), "*/*")) == 2


@pytest.mark.parametrize("folder", ["dead_letters", "data"])
def test_inputs_may_lie_in_folders_named_as_those_of_an_output(tmp_path: Path, folder: str) -> None:
    tree(tmp_path, f"{folder}/a.ndjson", "a.ndjson")
    assert names(tmp_path, "**") == {"a": "a.ndjson", f"{folder}/a": f"{folder}/a.ndjson"}


@pytest.mark.parametrize("pattern", ["nothing.ndjson", "nothing/*", "*.ndjson", "**/x.json", "nothing/", "empty"])
def test_a_pattern_that_matches_nothing_is_refused_by_name(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="matches no file") as refused:
        names(tree(tmp_path, "a.jsonl"), "a.jsonl", pattern)
    assert f"--input {tmp_path}/{pattern} " in str(refused.value)


def test_what_holds_no_records_is_refused_by_its_own_name_and_left_out_of_a_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree(tmp_path, "b.ndjson")
    (tmp_path / "notes.txt").write_bytes(b"notes")
    with pytest.raises(UsageError, match=r"notes\.txt looks like text or binary data"):
        names(tmp_path, "notes.txt")
    assert names(tmp_path, "*") == {"b": "b.ndjson"}
    assert "left out 1 file: 1 (text or binary data, not JSON)" in caplog.text
    assert f"{tmp_path}/notes.txt" in caplog.text


@pytest.mark.parametrize("name", ["a*b", "a[1]b", "a?b", "a b", "a#%41", "\u0643\u062a"])
def test_a_name_is_taken_literally_if_there_is_such_a_file(tmp_path: Path, name: str) -> None:
    tree(tmp_path, f"{name}/{name}.ndjson", "aXb/aXb.ndjson", "a1b/a1b.ndjson")
    assert names(tmp_path, f"{name}/{name}.ndjson") == {name: f"{name}/{name}.ndjson"}
    assert names(tmp_path, name) == {name: f"{name}/{name}.ndjson"}


def test_a_bracket_is_no_wildcard_in_inputs_nor_in_exclusions(tmp_path: Path) -> None:
    tree(tmp_path, "[2024] wiki/a.ndjson", "[2024] wiki/b.ndjson", "2 wiki/c.ndjson")
    assert names(tmp_path, "[2024] wiki/*.ndjson") == {"a": "[2024] wiki/a.ndjson", "b": "[2024] wiki/b.ndjson"}
    plan = make_plan([f"{tmp_path}/**"], OUT, 10, exclude=["[2024] wiki/a.*"])
    assert [source.name for source in plan.sources] == ["2 wiki/c", "[2024] wiki/b"]


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.ndjson")).touch()
    with pytest.raises(UsageError, match=r"udcff\.ndjson' has a name that is not UTF-8"):
        names(tmp_path, "*")


def test_what_is_no_regular_file_is_refused_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.ndjson")
    with pytest.raises(UsageError, match=r"pipe\.ndjson is not a regular file"):
        names(tmp_path, "*")


def test_a_backslash_on_its_way_to_a_local_disk_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, "x\\y.ndjson", "z.ndjson")
    with pytest.raises(UsageError, match="its name has a backslash"):
        names(tmp_path, "*.ndjson")
    assert names(tmp_path, "*.ndjson", output="gs://bucket/out") == {"x\\y": "x\\y.ndjson", "z": "z.ndjson"}


def test_the_output_is_never_an_input(tmp_path: Path) -> None:
    tree(tmp_path, "a.ndjson", "out/data/a-00000.ndjson", "out/_job/plan.ndjson", "out2/b.ndjson")
    assert names(tmp_path, "**", output=f"{tmp_path}/out") == {"a": "a.ndjson", "out2/b": "out2/b.ndjson"}
    with pytest.raises(UsageError, match="matches only files in --output"):
        names(tmp_path, "out/**", output=f"{tmp_path}/out")


def test_relative_patterns_mean_what_they_mean_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "x/a.ndjson", "b.ndjson")
    monkeypatch.chdir(tmp_path / "x")
    plan = make_plan([absolute("*.ndjson"), absolute("../*.ndjson")], OUT, 10)
    assert [source.path for source in plan.sources] == [str(tmp_path / "x/a.ndjson"), str(tmp_path / "b.ndjson")]


@given(st.integers(0, 500), st.integers(1, 100))
def test_shards_cover_a_file_without_gap_or_overlap(size: int, shard_bytes: int) -> None:
    source = Source("/in/a.ndjson", "a", size, "0.0")
    plan = Plan((source,), shard_bytes)
    shards = plan.shards_of(source)
    assert len(shards) == plan.shard_count(source)
    assert [shard.index for shard in shards] == list(range(len(shards)))
    assert [shard.start for shard in shards] == [index * shard_bytes for index in range(len(shards))]
    assert [shard.end for shard in shards] == [*(shard.start for shard in shards[1:]), size]
    assert all((shard.end or 0) > shard.start for shard in shards) or size == 0
    assert [shard.last for shard in shards] == [False] * (len(shards) - 1) + [True]


def test_more_shards_than_fit_into_memory_are_refused_with_the_option(tmp_path: Path) -> None:
    with (tmp_path / "a.ndjson").open("wb") as file:
        file.write(b'{"content": "a"}\n')
        file.truncate(20_000_000)
    with pytest.raises(UsageError, match="--shard_bytes 1 would cut the inputs into 20,000,000 shards"):
        make_plan([str(tmp_path / "a.ndjson")], OUT, 1)


def test_a_compressed_source_is_one_work_item() -> None:
    source = Source("/in/a.ndjson.gz", "a", 500, "0.0", compressed=True)
    (shard,) = Plan((source,), 10).shards_of(source)
    assert (shard.start, shard.end, shard.last) == (0, None, False)
    assert Plan((source,), 10).shard_count(source) is None


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = make_plan([str(tree(tmp_path / "in", *FILES))], OUT, 10)
    output = folder(tmp_path / "out")
    write_plan(plan, output)
    shutil.rmtree(tmp_path / "in")
    assert read_plan(output, 10) == plan
    assert (output.read(output.plan) or b"").count(b"\n") == 5


def test_a_folder_without_a_plan_is_no_output_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{tmp_path} is not an output folder"):
        read_plan(folder(tmp_path), 10)


@pytest.mark.parametrize(
    "data",
    [
        b"{}\n",
        b"5\n",
        b"nonsense",
        b'{"path":"/a","name":"a","size":5}\n',
        b'{"path":"/a","name":"a","size":-5,"version":"1","compressed":false}\n',
        # As many shards as would fill the memory.
        b'{"path":"/a","name":"a","size":1152921504606846976,"version":"1","compressed":false}\n',
    ],
)
def test_a_damaged_plan_is_named(tmp_path: Path, data: bytes) -> None:
    output = folder(tmp_path)
    output.write(output.plan, [data])
    with pytest.raises(UsageError, match=r"_job/plan\.ndjson cannot be read"):
        read_plan(output, 10)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a//b",
        "/a",
        "a/",
        "./a",
        "a/./b",
        "../a",
        "a/..",
        "a/../../_job/receipts/z",
        "a\\b",
        "a\x00b",
        "a" * 242,
        "/".join(["a" * 100] * 9),
        "ك" * 125,
    ],
)
def test_a_name_that_leads_out_of_the_output_or_is_none_is_a_problem(name: str) -> None:
    with pytest.raises(ValueError, match=r"^(has|begins|is) "):
        check_source_name(name, on_disk=True)


@pytest.mark.parametrize("name", ["a", "a/b", "...", "a..b/c", "a b", "a" * 241, "\u0643"])
def test_any_other_name_is_none(name: str) -> None:
    check_source_name(name, on_disk=True)
    check_source_name("a\\b", on_disk=False)


@pytest.mark.parametrize("case", ["a.ndjson A.ndjson", "x/a.json X/A.json", "stra\u00dfe.json STRASSE.json"])
def test_names_that_differ_in_case_only_are_two_on_a_disk_that_keeps_them_apart(tmp_path: Path, case: str) -> None:
    files = case.split()
    assert len(names(tree(tmp_path / "in", *files), "**", output=f"{tmp_path}/out")) == 2
