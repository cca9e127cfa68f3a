"""All contestants over the same corpus and the same endpoint."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.embedded_tei import wire
from tests.benchmark import corpus, process, table
from tests.benchmark.check import check
from tests.benchmark.contestants import floor
from tests.benchmark.endpoint import Endpoint, vectors_of
from tests.benchmark.registry import CONTESTANTS, TAYYAR, Contestant
from tests.tei_simulator.hash_model import HashModel

_FILES = 2
UNLIMITED = 4096  # texts that an endpoint permits which is not to limit anyone


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run took, and the endpoint's own seconds of CPU for it."""

    documents: int
    usage: process.Usage
    served: float


def compare(work: Path, documents: int, rounds: int, endpoint: Endpoint, names: Sequence[str]) -> list[table.Row]:
    """Measure every contestant that is installed, turn by turn, and check what each has written."""
    large, small = work / f"corpus-{documents}", work / "corpus-1"
    corpus.write_corpus(large, [documents - documents // _FILES, documents // _FILES])
    corpus.write_corpus(small, [1])
    present = [each for each in CONTESTANTS if not each.missing and (not names or each.name in names)]
    idle = {each.name: _idle(each, small, work, endpoint, rounds) for each in present}
    runs: dict[str, list[Measured]] = {each.name: [] for each in present}
    for _ in range(rounds):
        for each in present:
            runs[each.name].append(run(each, large, work, endpoint))
            table.say(f"{each.name}: {runs[each.name][-1].usage.cpu / documents * 1e6:.0f} µs a document")
    rows = [_row(name, measured, idle[name]) for name, measured in runs.items()]
    return with_ratios(rows)


def _idle(contestant: Contestant, source: Path, work: Path, endpoint: Endpoint, rounds: int) -> float:
    return statistics.median(run(contestant, source, work, endpoint).usage.cpu for _ in range(rounds))


def run(contestant: Contestant, source: Path, work: Path, endpoint: Endpoint) -> Measured:
    """Run one contestant, and check its output."""
    output = work / "output"
    shutil.rmtree(output, ignore_errors=True)  # of a run that was killed
    with replies(source, work) if contestant.is_floor else _unchanged(endpoint.url) as url:
        before = process.cpu_of(endpoint.pids)
        usage = process.measure(contestant.command(source, output, url))
        served = process.cpu_of(endpoint.pids) - before
    count = check(source, output)
    shutil.rmtree(output)
    return Measured(count, usage, served)


@contextmanager
def _unchanged(url: str) -> Iterator[str]:
    yield url


@contextmanager
def replies(source: Path, work: Path) -> Iterator[str]:
    """A file of what the endpoint would answer to the floor's requests."""
    path, model = work / "replies", HashModel()
    with path.open("wb") as file:
        for lines in (lines for each in corpus.files_of(source) for lines in floor.batches(each)):
            rows = wire.render_base64(vectors_of(model, floor.texts_of(lines)))
            reply = wire.render_openai(rows, model.model_id, 0)
            file.write(floor.LENGTH.pack(len(reply)) + reply)
    try:
        yield str(path)
    finally:
        path.unlink()


def _row(name: str, runs: Sequence[Measured], idle: float) -> dict[str, table.Value]:
    documents = runs[0].documents

    def middle(values: Iterator[float]) -> float:
        return statistics.median(values)

    cpu = middle(each.usage.cpu for each in runs)
    return {
        "contestant": name,
        "documents/s": documents / middle(each.usage.wall for each in runs),
        "CPU µs/document": cpu / documents * 1e6,
        "start-up CPU s": idle,
        "µs/document after start-up": (cpu - idle) / documents * 1e6,
        "peak MB": middle(each.usage.peak_mb for each in runs),
        "all processes MB": middle(each.usage.together_mb for each in runs),
        "server µs/document": middle(each.served for each in runs) / documents * 1e6,
    }


def with_ratios(rows: list[dict[str, table.Value]]) -> list[table.Row]:
    """Add how many times Tayyar's CPU each takes, in all and after start-up; no ratios without Tayyar."""
    ours = next((row for row in rows if row["contestant"] == TAYYAR.name), None)
    if ours is None:
        return list(rows)
    for row in rows:
        for column, name in (
            ("CPU µs/document", "× Tayyar"),
            ("µs/document after start-up", "× Tayyar after start-up"),
        ):
            mine, other = ours[column], row[column]
            assert isinstance(mine, float)
            assert isinstance(other, float)
            row[name] = other / mine
    return list(rows)


def notes(documents: int, rounds: int, what: str, names: Sequence[str]) -> list[str]:
    """What is compared with what, and who is missing."""
    chosen = [each for each in CONTESTANTS if not names or each.name in names]
    lines = [
        f"{documents:,} documents of {corpus.LEAST_WORDS} to {corpus.MOST_WORDS} Arabic words, {what}; median of "
        f"{rounds} runs, turn by turn. Every output was checked: each document once, unchanged, with its own vector.",
        "CPU is of the whole process and all that it starts. Start-up is a run over one document: imports, the first "
        "contact, what the runner takes for itself. MB of the largest process, and of all together.",
    ]
    lines += [f"{each.name}: {each.does}" for each in chosen if not each.missing]
    lines += [f"{each.name} is left out: no {', '.join(each.missing)} installed" for each in chosen if each.missing]
    return lines
