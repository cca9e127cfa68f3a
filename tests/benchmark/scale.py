"""The tutorial's whole corpus: killed once in the middle, resumed, verified."""

from __future__ import annotations

import functools
import shutil
import time
from pathlib import Path

from tests import commands
from tests.benchmark import corpus, process, table
from tests.benchmark.endpoint import Endpoint
from tests.benchmark.registry import tayyar

_SHARD_BYTES = 16 << 20
_LOOK_EVERY = 2.0  # seconds


def embed_all(work: Path, documents: int, keep: bool) -> list[table.Row]:
    """Measure both halves of the run, and the verification."""
    source, output = work / f"tutorial-{documents}", work / "tutorial-output"
    corpus.write_corpus(source, corpus.tutorial_counts(documents))
    shutil.rmtree(output, ignore_errors=True)
    shards = sum(-(-path.stat().st_size // _SHARD_BYTES) for path in corpus.files_of(source))
    is_half_done = _Throttled(functools.partial(_has_receipts, output, shards // 2))
    with Endpoint() as endpoint:
        first = process.measure(tayyar(source, output, endpoint.url), stop=is_half_done)
        done = _receipts(output)
        second = process.measure(tayyar(source, output, endpoint.url))
        served = process.cpu_of(endpoint.pids)
    verified = process.measure(commands.command("verify", "--output", output))
    table.say(verified.output.strip())
    if not keep:
        shutil.rmtree(output)
        shutil.rmtree(source)
    rows = [_row(f"until it was killed: {done} of {shards} shards", first), _row("resumed, to the end", second)]
    return [
        *rows,
        _row("verify", verified),
        {"what": "the endpoint", "minutes": None, "CPU s": served, "peak MB": None},
    ]


class _Throttled:
    """Asks only now and then: a look into the output folder costs something."""

    def __init__(self, ask: functools.partial[bool]) -> None:
        self._ask = ask
        self._next = 0.0

    def __call__(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + _LOOK_EVERY
        return self._ask()


def _receipts(output: Path) -> int:
    return sum(1 for path in (output / "_job" / "receipts").glob("**/*.json") if path.is_file())


def _has_receipts(output: Path, count: int) -> bool:
    return _receipts(output) >= count


def _row(name: str, usage: process.Usage) -> table.Row:
    return {"what": name, "minutes": usage.wall / 60, "CPU s": usage.cpu, "peak MB": usage.peak_mb}


def notes(documents: int) -> list[str]:
    """What was embedded."""
    largest = corpus.tutorial_counts(documents)[0]
    return [
        f"{documents:,} documents in {corpus.TUTORIAL_FILES} files of up to {largest:,}; an endpoint that answers at "
        "once, on the same machine; the run was killed (SIGKILL) in the middle and started again. The tutorial took "
        "104 minutes."
    ]
