"""Documents embedded again: a changed model and vectors beside the wrong texts are found, whoever wrote them."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.commands.options import VerifyOptions, make_parser, run_options, verify_options
from pipeline.commands.run import run
from pipeline.commands.verify import verify
from pipeline.errors import ExitCode, NotProven, UsageError
from pipeline.verification.findings import Sample
from pipeline.verification.vectors import cosine
from tests.commands import tayyar_here
from tests.documents import write_corpus
from tests.tei_simulator.clients import Simulator
from tests.tei_simulator.process import TeiSimulator
from transforms.storage.api import Crc32c
from transforms.tei.errors import ModelChanged
from transforms.tei.settings import EndpointSettings

NAME = "data/wiki_00-00001.ndjson"


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with TeiSimulator() as server:
        yield Simulator(server.url)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, simulator: Simulator) -> Path:
    """The output of 120 documents in two files, embedded behind a prompt."""
    root = tmp_path_factory.mktemp("spot")
    write_corpus(root / "in", files=2, per_file=60)
    arguments = ["run", "--input", str(root / "in"), "--output", str(root / "out"), "--endpoint", simulator.url]
    options, rest = make_parser().parse_known_args([*arguments, "--shard_bytes=9000", "--prompt_name=query"])
    assert run(run_options(options, rest), lambda _: None) is ExitCode.DONE
    return root / "out"


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


@pytest.fixture
def others(finished: Path, tmp_path: Path) -> Path:
    """The same documents and vectors as a script would have written them."""
    folder = tmp_path / "others"
    folder.mkdir()
    lines = [line for path in sorted(finished.rglob("wiki_*.ndjson")) for line in path.read_bytes().splitlines()]
    (folder / "all.ndjson").write_text("".join(json.dumps(json.loads(line)) + "\n" for line in lines))
    return folder


def options(folder: Path, simulator: Simulator, sample: int, **more: Any) -> VerifyOptions:
    prompt = "query" if folder.name == "others" else None  # a job tells its own
    endpoint = EndpointSettings((simulator.url,), prompt_name=prompt)
    return VerifyOptions(str(folder), sample=sample, endpoint=endpoint, **more)


def proven(folder: Path, simulator: Simulator, sample: int, **more: Any) -> str:
    said: list[str] = []
    assert verify(options(folder, simulator, sample, **more), said.append) is ExitCode.DONE
    return said[-1]


def findings(folder: Path, simulator: Simulator, sample: int, **more: Any) -> str:
    with pytest.raises(NotProven) as found:
        verify(options(folder, simulator, sample, **more))
    return str(found.value)


def exchange(path: Path, one: int, other: int) -> None:
    """Exchange the vectors of two lines, and make the receipt fit: nothing but the vectors tells of it."""
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    lines[one]["embedding"], lines[other]["embedding"] = lines[other]["embedding"], lines[one]["embedding"]
    raw = path.read_bytes().splitlines()
    for at in (one, other):
        start = raw[at].rindex(b'"embedding":') if b'"meta"' not in raw[at] else raw[at].index(b'"embedding":')
        start = raw[at].index(b"[", start)
        end = raw[at].index(b"]", start) + 1
        raw[at] = raw[at][:start] + json.dumps(lines[at]["embedding"]).encode() + raw[at][end:]
    path.write_bytes(b"".join(line + b"\n" for line in raw))
    receipt = path.parents[1] / "_job/receipts" / f"{path.stem}.json"
    if receipt.exists():
        crc = Crc32c()
        crc.update(path.read_bytes())
        fields = json.loads(receipt.read_bytes())
        fields["output"] |= {"bytes": path.stat().st_size, "crc32c": crc.base64()}
        receipt.write_text(json.dumps(fields))


@pytest.mark.parametrize(("sample", "compared"), [(20, 20), (1000, 120)])
def test_an_untouched_folder_passes_with_its_own_settings(
    finished: Path, simulator: Simulator, sample: int, compared: int
) -> None:
    said = proven(finished, simulator, sample)
    assert (
        said
        == f"embedded again: {compared} documents; cosines with what was written: 1.000000 or more, median 1.000000"
    )


def test_exchanged_vectors_are_found_and_whose_they_are(out: Path, simulator: Simulator) -> None:
    exchange(out / NAME, 2, 7)
    verify(VerifyOptions(str(out)), lambda _: None)  # receipts and lines are as they should be
    message = findings(out, simulator, 1000)
    assert f"{out}/{NAME}, line 3 (byte " in message
    assert "their cosine is " in message
    assert "; it is what the text of line 8 gives\n" in message
    assert "; it is what the text of line 3 gives\n" in message
    assert message.startswith("2 findings in ")
    assert message.endswith(
        "2 of 120 documents that were embedded again have another vector. Vectors stand beside texts that are not "
        "theirs: what wrote them mixed up their order."
    )


def test_a_vector_of_nobody_is_told_from_a_changed_model(others: Path, simulator: Simulator) -> None:
    path = others / "all.ndjson"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[5]["embedding"].reverse()
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    message = findings(others, simulator, 120)
    assert f"{path}, line 6 (byte " in message
    assert "it is what the text" not in message
    assert message.endswith("so the model is the same: these vectors were changed, or are of other texts.")


def test_another_model_is_refused_where_the_job_names_its_own(finished: Path, simulator: Simulator) -> None:
    simulator.set_faults(model_seed=5)
    try:
        with pytest.raises(ModelChanged, match="another model than this job's"):
            verify(options(finished, simulator, 5))
    finally:
        simulator.set_faults()


def test_another_model_shows_in_every_vector_where_nobody_named_it(others: Path, simulator: Simulator) -> None:
    assert "embedded again: 30 documents" in proven(others, simulator, 30)
    simulator.set_faults(model_seed=5)
    try:
        message = findings(others, simulator, 30)
    finally:
        simulator.set_faults()
    assert message.startswith("30 findings in ")
    assert message.endswith(
        "30 of 30 documents that were embedded again have another vector. What the endpoint serves (model, revision, "
        "prompt, truncation) is not what made them."
    )


def test_texts_that_the_endpoint_refuses_now_are_found(others: Path, simulator: Simulator) -> None:
    simulator.set_faults(refuse_marker="0-49")
    try:
        message = findings(others, simulator, 120)
    finally:
        simulator.set_faults()
    assert f"{others}/all.ndjson, byte " in message
    assert "gets no vector any more: " in message


def test_vectors_of_another_size_than_the_endpoints_are_found(others: Path, simulator: Simulator) -> None:
    path = others / "all.ndjson"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line | {"embedding": line["embedding"][:100]}) + "\n" for line in lines))
    message = findings(others, simulator, 3)
    assert message.startswith("1 findings in ")
    assert f"{path}: the vectors have 100 numbers; the endpoint gives 384\nThe endpoint serves another model" in message


def test_a_vector_of_another_size_than_the_others_is_found_once(others: Path, simulator: Simulator) -> None:
    path = others / "all.ndjson"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[5]["embedding"].pop()
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    message = findings(others, simulator, 120)
    assert message.startswith("1 findings in ")
    assert "the vector has 383 numbers; most have 384" in message
    assert "embedded again: 119 documents" in message


def test_the_least_cosine_is_the_users(others: Path, simulator: Simulator) -> None:
    path = others / "all.ndjson"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["embedding"][0] += 0.1 * math.sqrt(sum(number * number for number in line["embedding"]))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "embedded again" in proven(others, simulator, 20)
    assert "20 of 20" in findings(others, simulator, 20, min_cosine=0.9999)


def test_the_seed_chooses_and_processes_do_not(out: Path, simulator: Simulator) -> None:
    for number in range(0, 20, 2):
        exchange(out / NAME, number, number + 1)
    found = findings(out, simulator, 60, seed=3)
    assert found == findings(out, simulator, 60, seed=3, processes=2)
    assert found != findings(out, simulator, 60, seed=4)


def test_what_the_job_tells_and_what_is_missing_is_said(finished: Path, others: Path, simulator: Simulator) -> None:
    given = options(finished, simulator, 5)
    with pytest.raises(UsageError, match="--input is for files that another tool wrote"):
        verify(dataclasses.replace(given, inputs=("/in",)))
    with pytest.raises(UsageError, match="--text_field is for files that another tool wrote"):
        verify(dataclasses.replace(given, text_field="content"))
    with pytest.raises(UsageError, match="--prompt_name is for files that another tool wrote"):
        verify(dataclasses.replace(given, endpoint=dataclasses.replace(given.endpoint, prompt_name="query")))
    with pytest.raises(UsageError, match="--sample needs the server that made these vectors: name it with --endpoint"):
        verify(VerifyOptions(str(others), sample=5))
    parsed = make_parser().parse_args(["verify", "--output", "out", "--endpoint", "http://127.0.0.1:1"])
    with pytest.raises(UsageError, match="say how many with --sample N"):
        verify_options(parsed)


def test_the_command_compares(others: Path, simulator: Simulator) -> None:
    how = ("--sample", 7, "--endpoint", simulator.url)
    said = tayyar_here("verify", "--output", others, *how, "--prompt_name", "query").stdout
    assert "checked: 120 lines in 1 files" in said
    assert "embedded again: 7 documents" in said
    assert "7 of 7 documents" in tayyar_here("verify", "--output", others, *how, code=5).stderr


def test_every_line_is_as_likely_as_any_other() -> None:
    counts = [0] * 20
    for seed in range(2000):
        sample, first, second = Sample(5), Sample(5, f"{seed} a"), Sample(5, f"{seed} b")
        for number in range(20):
            (first if number < 3 else second).offer("file", number)
        sample.add([*first.picks, *second.picks])
        assert [pick.offset for pick in sample.picks] == sorted({pick.offset for pick in sample.picks})
        assert len(sample.picks) == 5
        for pick in sample.picks:
            counts[pick.offset] += 1
    assert all(400 < count < 600 for count in counts)  # 500 is the mean, 19 the standard deviation


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [([1, 0], [2, 0], 1.0), ([1, 0], [0, 1], 0.0), ([1, 0], [-3, 0], -1.0), ([0, 0], [1, 0], 0.0), ([1], [1, 0], -1.0)],
)
def test_the_cosine_is_of_directions(one: list[float], other: list[float], expected: float) -> None:
    assert cosine(np.array(one, np.float32), np.array(other, np.float32)) == pytest.approx(expected)
