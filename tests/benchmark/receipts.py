"""What a run does first in a folder with many receipts in a bucket: list them, and read each."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.job.ledger import read_ledger
from pipeline.job.sharding import Plan
from tests import shards
from tests.benchmark import table
from tests.benchmark.check import Wrong
from tests.commands import environment
from tests.servers import free_port, serving, tool_path
from tests.storages import KEYS, fresh_clients, gcs_server, place_of, s3_server
from transforms.elements import Source
from transforms.output.folder import OutputFolder
from transforms.output.receipts import decode_receipt, encode_receipt
from transforms.storage.api import FileStat

_SHARD_BYTES = 100
_SHARE = 10  # one in so many is read one by one


def read_receipts(work: Path, count: int, latency: float) -> list[table.Row]:
    """Measure how long receipts in a bucket behind a slow link take to be read.

    Args:
        work: where the servers' logs go.
        count: of receipts.
        latency: seconds that the link holds a request.
    """
    work.mkdir(parents=True, exist_ok=True)
    source = Source("wiki.ndjson", "wiki", _SHARD_BYTES * count, "1700000000.0")
    with _store(work, source, count) as (output, port), _link(work, port, latency) as (slow, requests):
        kind = output.root.partition("://")[0]
        os.environ.update(_variables(kind, slow))
        with fresh_clients(kind):
            rows = [_together(output, source, count, requests), _one_by_one(output, source, count, requests)]
    ratio = float(rows[1]["s"] or 0) / float(rows[0]["s"] or 1)
    return [{"store": kind, **row, "times as long": ratio if row is rows[1] else 1.0} for row in rows]


def _write(output: OutputFolder, source: Source, count: int) -> None:
    def write(index: int) -> None:
        empty = {"records": 0, "embedded": 0, "output": None, "last": index == count - 1}
        one = shards.receipt(index, source, **empty)
        output.write(output.receipt(one.shard), [encode_receipt(one)])

    with ThreadPoolExecutor(32) as writers:
        list(writers.map(write, range(count)))  # raises what a writer raised


def _together(output: OutputFolder, source: Source, count: int, requests: Path) -> dict[str, table.Value]:
    names = [output.receipt(f"{source.name}-{index:05d}") for index in range(count)]
    # Google's emulator takes minutes for a listing of 20,000 objects, which a bucket gives in 20 requests.
    listing = {name: FileStat(output.path(name), 1, 0.0, "1") for name in names}
    before, started = requests.stat().st_size, time.perf_counter()
    ledger = read_ledger(Plan((source,), _SHARD_BYTES), output, shards.JOB, listing)
    taken = time.perf_counter() - started
    if not ledger.complete or len(list(ledger.receipts())) != count:
        raise Wrong(f"{len(list(ledger.receipts()))} of {count} receipts were read")
    return {"receipts": count, "read": "as a run does", "s": taken, "requests": requests.stat().st_size - before}


def _one_by_one(output: OutputFolder, source: Source, count: int, requests: Path) -> dict[str, table.Value]:
    names = [output.receipt(f"{source.name}-{index:05d}") for index in range(0, count, _SHARE)]
    before, started = requests.stat().st_size, time.perf_counter()
    for name in names:
        decode_receipt(output.read(name) or b"")
    scale = count / len(names)
    taken, asked = time.perf_counter() - started, requests.stat().st_size - before
    return {"receipts": count, "read": "one by one", "s": scale * taken, "requests": round(scale * asked)}


@contextlib.contextmanager
def _store(work: Path, source: Source, count: int) -> Iterator[tuple[OutputFolder, int]]:
    """Run the store that is here with the receipts in it; give their folder and the server's port."""
    if tool_path("fake-gcs-server"):
        for folder in ("store", "store-served"):
            shutil.rmtree(work / folder, ignore_errors=True)
        _write(OutputFolder(str(work / "store/benchmark/out"), "benchmark"), source, count)  # many times as fast
        with gcs_server(work / "store.log", work / "store") as url:
            yield OutputFolder("gs://benchmark/out", "benchmark"), int(url.rpartition(":")[2])
        return
    with s3_server(work / "store.log") as url:
        port = int(url.rpartition(":")[2])
        os.environ.update(_variables("s3", port))
        output = OutputFolder(f"{place_of('s3', work).root}/out", "benchmark")
        _write(output, source, count)
        yield output, port


@contextlib.contextmanager
def _link(work: Path, server: int, latency: float) -> Iterator[tuple[int, Path]]:
    """Run the link, and give its port and a file that has one byte for each request."""
    port, log = free_port(), work / "requests"
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.benchmark.link", str(port), str(server), str(latency)]
    with serving(command, port, log, environment()):
        yield port, log


def _variables(kind: str, port: int) -> dict[str, str]:
    url = f"http://127.0.0.1:{port}"
    return {"STORAGE_EMULATOR_HOST": url} if kind == "gs" else {**KEYS, "AWS_ENDPOINT_URL_S3": url}


def notes(latency: float) -> list[str]:
    """What it was measured on."""
    return [
        f"An emulator of the store behind a link that holds every request for {latency * 1000:.0f} ms. One by one: "
        f"every {_SHARE}th receipt was read, and seconds and requests are {_SHARE} times what was measured. As a run "
        f"does: every receipt was read and is valid; their listing is not in it. The emulator "
        "takes the longer for a request the more objects it has, and is soon the limit. Load of the machine: "
        f"{os.getloadavg()[0]:.1f}."
    ]
