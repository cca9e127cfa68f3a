"""All contestants over the same corpus and the same endpoint."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from pipeline.embedded_tei import wire
from tests.benchmark import corpus, process, table
from tests.benchmark.check import check
from tests.benchmark.contestants import floor
from tests.benchmark.endpoint import Endpoint, vectors_of
from tests.benchmark.registry import CONTESTANTS, TAYYAR, Contestant
from tests.tei_simulator.hash_model import HashModel
from transforms.elements import RequestStatistics, Shard, Source, Vectors
from transforms.embed_shards import assemble
from transforms.ndjson.lines import Line
from transforms.output.folder import OutputFolder
from transforms.read_shards import parse_shard
from transforms.reuse.keys import encode_keys
from transforms.reuse.partial import PartialWriter
from transforms.reuse.reuse import distinct
from transforms.tei.formats import openai_base64
from transforms.tei.settings import EndpointSettings
from transforms.tei.tasks import Embeddings, count_truncated

_FILES = 2
_REQUEST_TEXTS = 32
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


@dataclass(frozen=True)
class _Submitted:
    """Stands for a shard that is with the client, for whoever saves unfinished shards."""

    vectors: Vectors

    def so_far(self) -> tuple[Vectors, npt.NDArray[np.bool_]]:
        return self.vectors, np.asarray(self.vectors.any(axis=1))


def compare_reuse(work: Path, documents: int, rounds: int) -> list[table.Row]:
    """Measure what reuse adds to documents that all have to be sent: a shard with and without it, turn by turn.

    Both read the lines and encode the requests. Vectors and output are left out: reuse does not touch them.
    """
    lines = [
        orjson.dumps(document) for document in corpus.documents(12 * documents) if _is_of_size(document["content"])
    ]
    lines = lines[:documents]
    output = OutputFolder(str(work / "reuse"), "benchmark")
    vectors = np.ones((len(lines), 384), dtype=np.float32)
    writer = PartialWriter(output, "space", "truncate")
    seconds: dict[bool, list[float]] = {False: [], True: []}
    try:
        for number in range(2 * rounds):
            reuse = number % 2 == 1
            started = time.process_time()
            _pass_through(lines, vectors, writer if reuse else None, output)
            seconds[reuse].append(time.process_time() - started)
    finally:
        writer.close()
        shutil.rmtree(output.root, ignore_errors=True)
    pairs = zip(seconds[True], seconds[False], strict=True)
    took = {
        "without reuse": statistics.median(seconds[False]),
        "with it": statistics.median(seconds[True]),
        "added, the median of pairs": statistics.median(longer - shorter for longer, shorter in pairs),
    }
    return [
        {"shard": name, "documents": len(lines), "CPU µs/document": value / len(lines) * 1e6}
        for name, value in took.items()
    ]


def _is_of_size(text: str) -> bool:
    return 1100 <= len(text.encode()) <= 1300


def _pass_through(lines: Sequence[bytes], vectors: Vectors, writer: PartialWriter | None, output: OutputFolder) -> None:
    """Do what is done with a shard's texts before and after they are sent; with a writer, what reuse needs, too."""
    shard = Shard(Source("/in/a.ndjson", "a", sum(map(len, lines)), "1"), 0, 0, None)
    read = parse_shard(shard, (Line(0, line, len(line)) for line in lines), "content", "embedding")
    texts = [document.text for document in read.documents]
    request = openai_base64(EndpointSettings(urls=("http://127.0.0.1",)))
    if writer is None:
        for first in range(0, len(texts), _REQUEST_TEXTS):
            request.encode(texts[first : first + _REQUEST_TEXTS])
        return
    once = distinct(texts)
    writer.add(shard.name, once.texts, _Submitted(vectors))
    for first in range(0, len(texts), _REQUEST_TEXTS):
        batch = once.texts[first : first + _REQUEST_TEXTS]
        request.encode(batch)
        count_truncated([len(text) for text in batch], 300 * len(batch), 512)
    assemble(once, None, Embeddings(vectors, {}, RequestStatistics()))
    output.write(output.keys(shard.name), [encode_keys(texts)])
    writer.remove(shard.name)


REUSE_NOTES = (
    "Documents of 1.2 kB of Arabic text. Without: lines parsed, requests encoded. With: equal texts and truncated "
    "texts found as well, keys written, and the shard watched until it is done.",
)
