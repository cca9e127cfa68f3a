"""The tutorial's whole corpus: killed once in the middle, resumed; the same after an edit; verified."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import time
from pathlib import Path

from tests import commands
from tests.benchmark import corpus, process, table
from tests.benchmark.endpoint import Endpoint
from tests.benchmark.registry import tayyar

_SHARD_BYTES = 16 << 20
_LOOK_EVERY = 2.0  # seconds
_EDITED_EVERY = 100  # documents


def embed_all(work: Path, documents: int, keep: bool) -> list[table.Row]:
    """Measure both halves of the run, both halves of one after an edit of 1 %, and the verification."""
    source, output = work / f"tutorial-{documents}", work / "tutorial-output"
    corpus.write_corpus(source, corpus.tutorial_counts(documents))
    shutil.rmtree(output, ignore_errors=True)
    shards = sum(-(-path.stat().st_size // _SHARD_BYTES) for path in corpus.files_of(source))
    is_half_done = _Throttled(functools.partial(_has_receipts, output, shards // 2))
    with Endpoint() as endpoint:
        first = process.measure(tayyar(source, output, endpoint.url), stop=is_half_done)
        done = _receipts(output)
        second = process.measure(tayyar(source, output, endpoint.url))
        _edit(source)
        edited_at = time.time()
        is_half_done = _Throttled(functools.partial(_has_receipts, output, shards // 2, edited_at))
        third = process.measure(tayyar(source, output, endpoint.url), stop=is_half_done)
        redone = _receipts(output, edited_at)
        fourth = process.measure(tayyar(source, output, endpoint.url))
        table.say(fourth.output.strip())
        served = process.cpu_of(endpoint.pids)
    verified = process.measure(commands.command("verify", "--output", output))
    table.say(verified.output.strip())
    if not keep:
        shutil.rmtree(output)
        shutil.rmtree(source)
    return [
        _row(f"until it was killed: {done} of {shards} shards", first),
        _row("resumed, to the end", second),
        _row(f"1% edited, until it was killed: {redone} of {shards} shards", third),
        _row("resumed, to the end", fourth),
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


def _edit(source: Path) -> None:
    """Change the text of every hundredth document, in every file."""
    (source / "corpus.txt").unlink()  # from here on, it is another corpus
    for path in corpus.files_of(source):
        edited = path.with_suffix(".edited")
        with path.open("rb") as before, edited.open("wb") as after:
            for number, line in enumerate(before):
                if number % _EDITED_EVERY == 0:
                    document = json.loads(line)
                    document["content"] += " edited"
                    line = json.dumps(document, ensure_ascii=False).encode() + b"\n"
                after.write(line)
        edited.replace(path)


def _receipts(output: Path, since: float = 0.0) -> int:
    """Return how many receipts were written since a time, in seconds since the epoch."""
    count = 0
    for path in (output / "_job" / "receipts").glob("**/*.json"):
        with contextlib.suppress(FileNotFoundError):
            count += path.stat().st_mtime > since
    return count


def _has_receipts(output: Path, count: int, since: float = 0.0) -> bool:
    return _receipts(output, since) >= count


def _row(name: str, usage: process.Usage) -> table.Row:
    return {"what": name, "minutes": usage.wall / 60, "CPU s": usage.cpu, "peak MB": usage.peak_mb}


def notes(documents: int) -> list[str]:
    """What was embedded."""
    largest = corpus.tutorial_counts(documents)[0]
    return [
        f"{documents:,} documents in {corpus.TUTORIAL_FILES} files of up to {largest:,}; an endpoint that answers at "
        "once, on the same machine; the run was killed (SIGKILL) in the middle and started again. So was a second one, "
        "after every hundredth document had been edited. The tutorial took "
        "104 minutes."
    ]
