"""Tayyar against a real GPU: `python -m tests.benchmark.gpu --model minilm`."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import random
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import orjson
import requests

from pipeline.embedded_tei.process import EmbeddedTei
from tests import commands
from tests.benchmark import corpus, process, table
from tests.benchmark.gpu_server import SIZES
from tests.benchmark.registry import tayyar

_REQUEST_TEXTS = 32
_SAMPLE_TEXTS = 8192  # for the loops without Tayyar, which go through them again and again
_HANDSHAKE_TEXTS = 64  # more than a client sends to get to know a server
_START_SECONDS = 180.0  # imports and weights of several servers at once


class GpuServer(EmbeddedTei):
    """`tests.benchmark.gpu_server` as a child."""

    module = "tests.benchmark.gpu_server"


class Batch(NamedTuple):
    """Texts that a device computed together, and when: seconds of `time.perf_counter`."""

    texts: int
    started: float
    ended: float


class Servers:
    """Several servers on one GPU, each with its own interpreter lock.

    Args:
        running: the servers.
        permits: texts that each takes at once.
    """

    def __init__(self, running: Sequence[GpuServer], permits: int) -> None:
        self.urls = [each.url for each in running]
        self._pids = [each.pid for each in running]
        self._connections = permits // _REQUEST_TEXTS

    @property
    def device(self) -> str:
        """The GPU's name."""
        return str(requests.get(f"{self.urls[0]}/device", timeout=60).json()["name"])

    @property
    def cpu(self) -> float:
        """Seconds of CPU that all servers have used so far."""
        return process.cpu_of(self._pids)

    def batches(self, since: float) -> list[list[Batch]]:
        """Return what each server's device has computed since a moment."""
        replies = [requests.get(f"{url}/device", timeout=60).json()["batches"] for url in self.urls]
        return [[batch for batch in itertools.starmap(Batch, reply) if batch.started >= since] for reply in replies]

    def compute_bare(self, texts: Sequence[str], seconds: float) -> None:
        """Have each server's model embed full batches for so long, without HTTP between them."""
        body = orjson.dumps({"inputs": texts, "seconds": seconds})
        with ThreadPoolExecutor(len(self.urls)) as threads:
            for reply in threads.map(lambda url: requests.post(f"{url}/bare", body, timeout=seconds + 60), self.urls):
                reply.raise_for_status()

    def compute_requests(self, texts: Sequence[str], seconds: float) -> None:
        """Send requests for so long on as many connections as the permits allow; replies are read and dropped."""
        ordered = sorted(texts, key=len)  # as Tayyar does
        starts = list(range(0, len(ordered), _REQUEST_TEXTS))
        random.Random(0).shuffle(starts)
        bodies = [
            orjson.dumps({"input": ordered[start : start + _REQUEST_TEXTS], "encoding_format": "base64"})
            for start in starts
        ]
        ends = time.perf_counter() + seconds

        def send(url: str) -> None:
            connection = http.client.HTTPConnection(urlsplit(url).netloc)
            offset = random.randrange(len(bodies))
            for body in itertools.cycle(bodies[offset:] + bodies[:offset]):
                connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                response.read()
                if response.status != 200:
                    raise process.Failed(f"{url} replied {response.status}")
                if time.perf_counter() > ends:
                    break
            connection.close()

        everywhere = [url for url in self.urls for _ in range(self._connections)]
        with ThreadPoolExecutor(len(everywhere)) as threads:
            list(threads.map(send, everywhere))


@dataclass(frozen=True)
class Setup:
    """What is measured with what.

    Attributes:
        model: what is served: a size of encoder, or "hash".
        documents: in the corpus.
        files: of the corpus; each is at least one shard.
        replicas: servers on the device.
        workers: processes of Tayyar.
        seconds: of the loops without Tayyar.
        permits: texts that each server takes at once.
        max_batch_tokens: of each server.
    """

    model: str = "minilm"
    documents: int = 200_000
    files: int = 16
    replicas: int = 1
    workers: int = 1
    seconds: float = 15.0
    permits: int = 1024
    max_batch_tokens: int = 32_768


@dataclass(frozen=True, slots=True)
class Measured:
    """What happened from the start of the first batch to the end of the last one.

    Attributes:
        name: of what kept the servers busy.
        documents: that were embedded.
        batches: of all servers.
        served: seconds of CPU of all servers.
        client: what Tayyar took; None without it.
        bottleneck: by Tayyar's own report.
    """

    name: str
    documents: int
    batches: Sequence[Batch]
    served: float
    client: process.Usage | None = None
    bottleneck: Mapping[str, float | None] | None = None

    @property
    def seconds(self) -> float:
        """From the first batch to the last."""
        return max(batch.ended for batch in self.batches) - min(batch.started for batch in self.batches)

    @property
    def rate(self) -> float:
        """Documents a second."""
        return self.documents / self.seconds

    def row(self, ceiling: Measured, start_up: float) -> table.Row:
        """Return a row of the table.

        Args:
            ceiling: what can be had at most.
            start_up: seconds of CPU that Tayyar takes for one document.
        """
        bottleneck = self.bottleneck or {}
        return {
            "": self.name,
            "documents/s": self.rate,
            "share of the bare loop": self.rate / ceiling.rate,
            "model at work": busy_seconds(self.batches) / self.seconds,
            "by the report": bottleneck.get("device_busy"),
            "texts in flight": bottleneck.get("texts_in_flight"),
            "in queue": bottleneck.get("texts_in_queue"),
            "texts a batch": sum(batch.texts for batch in self.batches) / len(self.batches),
            "ms a batch": sum(batch.ended - batch.started for batch in self.batches) / len(self.batches) * 1000,
            "s": self.seconds,
            "s with start-up": self.client.wall if self.client else None,
            "servers' CPU µs/document": self.served / self.documents * 1e6,
            "client's CPU µs/document": (self.client.cpu - start_up) / self.documents * 1e6 if self.client else None,
        }


def measure(work: Path, setup: Setup) -> tuple[str, list[table.Row]]:
    """Return the device's name, and a row for each way to keep it busy; corpus and output go below `work`."""
    source, single = work / f"corpus-{setup.documents}-{setup.files}", work / "corpus-1"
    ends = [setup.documents * number // setup.files for number in range(setup.files + 1)]
    corpus.write_corpus(source, [end - start for start, end in itertools.pairwise(ends)])
    corpus.write_corpus(single, [1])
    texts = [document["content"] for document in corpus.documents(min(setup.documents, _SAMPLE_TEXTS))]
    with contextlib.ExitStack() as stack:
        starting = [_server(setup) for _ in range(setup.replicas)]
        with ThreadPoolExecutor(setup.replicas) as threads:
            running = list(threads.map(stack.enter_context, starting))
        servers = Servers(running, setup.permits)
        servers.compute_bare(texts, setup.seconds / 5)  # the first batches choose and load kernels
        bare = _loop("bare loop", servers, lambda: servers.compute_bare(texts, setup.seconds))
        requests_alone = _loop("HTTP without Tayyar", servers, lambda: servers.compute_requests(texts, setup.seconds))
        one_document = process.measure(_command(single, work / "output", servers, setup.workers, "ndjson"))
        jobs = [_job(source, work / "output", servers, setup, form) for form in ("ndjson", "parquet")]
        return servers.device, [each.row(bare, one_document.cpu) for each in (bare, requests_alone, *jobs)]


def _server(setup: Setup) -> GpuServer:
    options = {
        "--model": setup.model,
        "--max_concurrent_requests": setup.permits,
        "--max_batch_tokens": setup.max_batch_tokens,
    }
    return GpuServer([str(word) for option in options.items() for word in option], start_timeout=_START_SECONDS)


def _loop(name: str, servers: Servers, work: Callable[[], None]) -> Measured:
    since, before = time.perf_counter(), servers.cpu
    work()
    batches = [batch for each in servers.batches(since) for batch in each]
    return Measured(name, sum(batch.texts for batch in batches), batches, servers.cpu - before)


def _job(source: Path, output: Path, servers: Servers, setup: Setup, form: str) -> Measured:
    """Run Tayyar and verify its output."""
    since, before = time.perf_counter(), servers.cpu
    usage = process.measure(_command(source, output, servers, setup.workers, form))
    served = servers.cpu - before
    batches = [batch for each in servers.batches(since) for batch in after_handshake(each)]
    report = json.loads((output / "_job" / "report.json").read_text(encoding="utf-8"))
    process.measure(commands.command("verify", "--output", output))
    return Measured(f"Tayyar, {form}", setup.documents, batches, served, usage, report["bottleneck"])


def _command(source: Path, output: Path, servers: Servers, workers: int, form: str) -> list[str]:
    """Return Tayyar's command; what a former one has written is deleted."""
    shutil.rmtree(output, ignore_errors=True)
    first, *others = servers.urls
    more: list[object] = ["--output_format", form, *(word for url in others for word in ("--endpoint", url))]
    if workers > 1:
        more += ["--direct_running_mode", "multi_processing", "--direct_num_workers", workers]
    return tayyar(source, output, first, *more)


def after_handshake(batches: Iterable[Batch]) -> list[Batch]:
    """Return a server's batches without those of the first 64 texts, with which clients get to know it."""
    kept, texts = [], 0
    for batch in batches:
        if texts >= _HANDSHAKE_TEXTS:
            kept.append(batch)
        texts += batch.texts
    return kept


def busy_seconds(batches: Iterable[Batch]) -> float:
    """Return for how long at least one batch was computed."""
    total, until = 0.0, float("-inf")
    for batch in sorted(batches, key=lambda each: each.started):
        total += max(0.0, batch.ended - max(until, batch.started))
        until = max(until, batch.ended)
    return total


def notes(device: str, setup: Setup) -> list[str]:
    """Return what it was measured on."""
    servers = "1 server" if setup.replicas == 1 else f"{setup.replicas} servers"
    workers = "1 process" if setup.workers == 1 else f"{setup.workers} processes"
    return [
        f"{device}; {setup.model}, {servers} with batches of {setup.max_batch_tokens:,} tokens and {setup.permits:,} "
        f"permits; {setup.documents:,} documents in {setup.files} files, {workers} of Tayyar. The model is at work "
        "while it is called, which is longer than the GPU computes: its thread waits for the interpreter's lock, too. "
        "The client's CPU is less that of a run over one document. Every output was verified."
    ]


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.benchmark.gpu", description=__doc__, allow_abbrev=False)
    parser.add_argument("--work", type=Path, default=Path("build/benchmark"), help="where corpora and outputs go")
    parser.add_argument("--results", type=Path, default=Path("build/benchmark/results"), help="where the tables go")
    parser.add_argument(
        "--model", choices=["hash", *SIZES], default=Setup.model, help="hash needs neither GPU nor PyTorch"
    )
    parser.add_argument("--documents", type=int, default=Setup.documents)
    parser.add_argument("--files", type=int, default=Setup.files, help="of the corpus")
    parser.add_argument("--replicas", type=int, default=Setup.replicas, help="servers on the GPU")
    parser.add_argument("--workers", type=int, default=Setup.workers, help="processes of Tayyar")
    parser.add_argument("--seconds", type=float, default=Setup.seconds, help="of the loops without Tayyar")
    parser.add_argument("--permits", type=int, default=Setup.permits, help="texts that each server takes at once")
    parser.add_argument("--max_batch_tokens", type=int, default=Setup.max_batch_tokens, help="of each server")
    given = vars(parser.parse_args())
    work, results = given.pop("work"), given.pop("results")
    setup = Setup(**given)
    device, rows = measure(work, setup)
    table.publish(results, f"gpu-{setup.model}-{setup.replicas}-{setup.workers}", rows, notes(device, setup))


if __name__ == "__main__":
    main()
