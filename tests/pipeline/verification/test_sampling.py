"""Documents embedded again: a changed model and vectors beside the wrong texts are found."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.commands.options.parser import parse
from pipeline.commands.options.run import RunOptions
from pipeline.commands.options.verify import VerifyOptions
from pipeline.commands.run import run
from pipeline.commands.verify import verify
from pipeline.errors import ExitCode, NotProven, UsageError
from pipeline.verification.sampling import Reservoir, require_same_space
from tests.commands import parsed, tayyar_here
from tests.documents import write_corpus
from tests.tei_simulator.clients import Simulator
from tests.tei_simulator.process import TeiSimulator
from transforms.storage.api import Crc32c
from transforms.tei.vector_space import PROBE_TEXTS, VectorSpace

NAME = "wiki_00-00001.ndjson"


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with TeiSimulator(["--faults", "{}"]) as server:
        yield Simulator(server.url)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, simulator: Simulator) -> Path:
    """The output of 120 documents in two files, embedded behind a prompt."""
    root = tmp_path_factory.mktemp("spot")
    write_corpus(root / "in", files=2, per_file=60)
    arguments = ["run", "--input", str(root / "in"), "--output", str(root / "out"), "--endpoint", simulator.url]
    options = parsed(RunOptions, *arguments, "--shard_bytes=9000", "--prompt_name=query")
    assert run(options, lambda _: None) is ExitCode.DONE
    return root / "out"


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


def options(folder: Path, simulator: Simulator, sample: int, **more: Any) -> VerifyOptions:
    return VerifyOptions(output=str(folder), sample=sample, urls=(simulator.url,), **more)


def proven(folder: Path, simulator: Simulator, sample: int, **more: Any) -> str:
    said: list[str] = []
    assert verify(options(folder, simulator, sample, **more), said.append) is ExitCode.DONE
    return said[1]


def findings(folder: Path, simulator: Simulator, sample: int, **more: Any) -> str:
    with pytest.raises(NotProven) as found:
        verify(options(folder, simulator, sample, **more))
    return str(found.value)


Change = Callable[[list[list[float]]], object]


def change_vectors(path: Path, change: Change) -> None:
    """Change the vectors of a file, and make the receipt and the report fit: nothing but the vectors tells of it."""
    lines = path.read_bytes().splitlines()
    vectors = [json.loads(line)["embedding"] for line in lines]
    change(vectors)
    before = path.stat().st_size
    for at, vector in enumerate(vectors):
        written = json.dumps(vector, separators=(",", ":")).encode()
        lines[at] = re.sub(rb"\[[-+0-9.,eE]{500,}\]", written, lines[at])
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    crc = Crc32c()
    crc.update(path.read_bytes())
    job = next(folder for folder in path.parents if (folder / "_job").exists()) / "_job"
    receipt = next((job / "receipts").rglob(f"{path.stem}.json"))
    fields = json.loads(receipt.read_bytes())
    fields["output"] |= {"bytes": path.stat().st_size, "crc32c": crc.base64()}
    receipt.write_text(json.dumps(fields))
    report = json.loads((job / "report.json").read_bytes())
    report["totals"]["output_bytes"] += path.stat().st_size - before
    (job / "report.json").write_text(json.dumps(report))


def exchange(path: Path, one: int, other: int) -> None:
    def swap(vectors: list[list[float]]) -> None:
        vectors[one], vectors[other] = vectors[other], vectors[one]

    change_vectors(path, swap)


def output_file(out: Path, name: str = NAME) -> Path:
    return next(path for path in out.rglob(name) if "_job" not in path.parts)


@pytest.mark.parametrize(("sample", "compared"), [(20, 20), (1000, 120)])
def test_an_untouched_folder_passes_with_its_own_settings(
    finished: Path, simulator: Simulator, sample: int, compared: int
) -> None:
    said = proven(finished, simulator, sample)
    assert (
        said == f"embedded again: {compared} documents; cosine with the vector that was written: 1.000000 at worst, "
        "median 1.000000"
    )


def test_exchanged_vectors_are_found_and_whose_they_are(out: Path, simulator: Simulator) -> None:
    exchange(output_file(out), 2, 7)
    verify(VerifyOptions(output=str(out)), lambda _: None)  # receipts and lines are as they should be
    message = findings(out, simulator, 1000)
    assert f"{output_file(out)}, line 3 (byte " in message
    assert "their cosine is " in message
    assert "; it is that of line 8\n" in message
    assert "; it is that of line 3\n" in message
    assert message.startswith("2 findings in ")
    assert message.endswith(
        "2 of 120 documents embedded again have another vector. Vectors stand beside texts that are not "
        "theirs: what wrote them mixed up their order."
    )


def test_a_vector_that_is_no_texts_accuses_its_shard(out: Path, simulator: Simulator) -> None:
    change_vectors(output_file(out), lambda vectors: vectors[5].reverse())
    message = findings(out, simulator, 120)
    assert f"{output_file(out)}, line 6 (byte " in message
    assert "it is that of" not in message
    assert message.endswith("so the model is the same: these vectors were changed, or are of other texts.")


def space(turn: float = 0.0, *, dimensions: int = 8, normalized: bool = True) -> VectorSpace:
    vectors = np.eye(len(PROBE_TEXTS), dimensions, dtype=np.float32)
    vectors[0, 1] = turn
    return VectorSpace.of(vectors, normalized=normalized)


def test_the_same_space_is_one_within_its_tolerance() -> None:
    require_same_space(space(), space())
    require_same_space(space(), space(0.02))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (space(0.5), "the same sentences have vectors whose cosine is only 0.8944 at worst"),
        (space(dimensions=9), "they have 8 dimensions, those of the endpoint have 9"),
        (space(normalized=False), "they are normalized, those of the endpoint would be not normalized"),
    ],
)
def test_another_space_accuses_no_shard(other: VectorSpace, words: str) -> None:
    with pytest.raises(UsageError, match="another model, revision or prompt") as refused:
        require_same_space(space(), other)
    assert words in str(refused.value)
    assert "changed" not in str(refused.value)


def test_another_model_is_refused_where_the_job_names_its_own(finished: Path, simulator: Simulator) -> None:
    simulator.set_faults(model_seed=5)
    try:
        with pytest.raises(UsageError, match=r"another model.*at worst"):
            verify(options(finished, simulator, 5))
    finally:
        simulator.set_faults()


def test_texts_that_the_endpoint_refuses_now_are_found(finished: Path, simulator: Simulator) -> None:
    simulator.set_faults(refuse_marker="0-49")
    try:
        message = findings(finished, simulator, 120)
    finally:
        simulator.set_faults()
    assert ".ndjson, byte " in message
    assert "gets no vector any more: " in message


def test_the_least_cosine_is_the_users(out: Path, simulator: Simulator) -> None:
    def turn(vectors: list[list[float]]) -> None:
        for vector in vectors:
            vector[0] += 0.1
            norm = math.sqrt(sum(number * number for number in vector))
            vector[:] = [number / norm for number in vector]

    for number in range(20):
        for path in out.rglob(f"wiki_*-{number:05d}.ndjson"):
            change_vectors(path, turn)
    assert "embedded again" in proven(out, simulator, 20)
    assert "20 of 20" in findings(out, simulator, 20, min_cosine=0.9999)


def test_the_seed_chooses_and_processes_do_not(out: Path, simulator: Simulator) -> None:
    for number in range(0, 20, 2):
        exchange(output_file(out), number, number + 1)
    found = findings(out, simulator, 60, seed=3)
    assert found == findings(out, simulator, 60, seed=3, processes=2)
    assert found != findings(out, simulator, 60, seed=4)


@pytest.mark.parametrize("option", [("--endpoint", "http://127.0.0.1:1"), ("--model", ".")])
def test_an_endpoint_or_a_model_without_a_sample_is_refused(option: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=f"{option[0]} is for embedding documents again"):
        parse(["verify", "--output", "out", *option])


def test_the_command_compares(finished: Path, simulator: Simulator) -> None:
    how = ("--sample", 7, "--endpoint", simulator.url)
    said = tayyar_here("verify", "--output", finished, *how).stdout
    assert "verified: 120 records in 2 files" in said
    assert "embedded again: 7 documents" in said
    assert "not checked" not in said


def test_every_line_is_as_likely_as_any_other() -> None:
    counts = [0] * 20
    for seed in range(2000):
        sample, first, second = Reservoir(5), Reservoir(5, f"{seed} a"), Reservoir(5, f"{seed} b")
        for number in range(20):
            (first if number < 3 else second).offer("file", number)
        sample.add([*first.picks, *second.picks])
        assert [pick.place for pick in sample.picks] == sorted({pick.place for pick in sample.picks})
        assert len(sample.picks) == 5
        for pick in sample.picks:
            counts[pick.place] += 1
    assert all(400 < count < 600 for count in counts)  # 500 is the mean, 19 the standard deviation
