"""Rows that change places do not show in each reply: once they do, all that the run has written is discarded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from pipeline.errors import NotProven
from pipeline.job.doubt import discard_doubtful
from pipeline.job.former_vectors import index_former
from pipeline.job.ledger import ReceiptCache
from pipeline.job.run_marker import RunMarker
from pipeline.job.spec import require_job
from run_scripts.load.loading import EmbeddedFolder
from tests.commands import started, tayyar_here
from tests.documents import documents, write_ndjson
from tests.servers import wait_until
from tests.shards import MADE, SOURCE, receipt
from tests.tei_simulator.clients import Simulator
from tests.tei_simulator.hash_model import expected_vectors
from tests.tei_simulator.process import TeiSimulator
from transforms.doubt import read_doubts, record_doubt
from transforms.elements import Shard
from transforms.output.folder import OutputFolder
from transforms.output.receipts import decode_receipt, encode_receipt, is_done
from transforms.reuse.partial import count_partial, encode_partial

GOOD_REQUESTS = ["ok"] * 40  # the handshake's, and those of some shards


@pytest.fixture(scope="module")
def server_process() -> Iterator[Simulator]:
    with TeiSimulator() as tei:
        yield Simulator(tei.url)


@pytest.fixture
def server(server_process: Simulator) -> Iterator[Simulator]:
    """A server without faults that takes 32 texts in a request."""
    yield server_process
    server_process.set_faults()


def run(folder: Path, simulator: Simulator, code: int = 0, shard_bytes: int = 30_000) -> str:
    finished = tayyar_here(
        *("run", "--input", folder / "in", "--output", folder / "out", "--shard_bytes", shard_bytes),
        *("--endpoint", simulator.url),
        code=code,
    )
    return finished.stdout + finished.stderr


def vouched(output: Path) -> dict[str, list[dict[str, Any]]]:
    """The documents under a receipt, by the shard's name; each vector is checked to be its text's."""
    found = {}
    for path in sorted((output / "_job/receipts").rglob("*.json")):
        receipt = orjson.loads(path.read_bytes())
        lines = (output / receipt["output"]["path"]).read_bytes().splitlines()
        found[receipt["shard"]] = documents = [orjson.loads(line) for line in lines]
        vectors = np.array([document["embedding"] for document in documents], np.float32)
        np.testing.assert_array_equal(vectors, expected_vectors([document["content"] for document in documents]))
    return found


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("faults", [{"shuffled": 0.3}, {"swapped": 1}, {"mix": 0.3}], ids=str)
def test_no_receipt_vouches_for_a_vector_of_another_text_or_model(
    tmp_path: Path, server: Simulator, faults: dict[str, float], seed: int
) -> None:
    write_ndjson(tmp_path / "in/before.ndjson", documents(300, seed=1))
    run(tmp_path, server)
    before = vouched(tmp_path / "out")
    write_ndjson(tmp_path / "in/now.ndjson", documents(6000, seed=2))
    server.set_faults(seed=seed, same_name=True, script=GOOD_REQUESTS, **faults)
    printed = run(tmp_path, server, code=3)
    assert ("is discarded. Put the endpoint right" in printed) is ("mix" not in faults)
    left = vouched(tmp_path / "out")
    assert before.items() <= left.items()
    if "mix" not in faults:
        assert left == before
        assert not list((tmp_path / "out/data").glob("now*"))
    server.set_faults()
    run(tmp_path, server)
    assert sum(map(len, vouched(tmp_path / "out").values())) == 6300


def test_two_models_behind_a_server_of_one_text_a_request_put_all_in_doubt(tmp_path: Path) -> None:
    write_ndjson(tmp_path / "in/one.ndjson", documents(2000, seed=2))
    with TeiSimulator(["--max_client_batch_size", "1"]) as tei:
        server = Simulator(tei.url)
        server.set_faults(same_name=True, script=["ok"] * 500, mix=0.3)
        assert "is discarded. Put the endpoint right" in run(tmp_path, server, code=3)
        assert not vouched(tmp_path / "out")
        server.set_faults()
        run(tmp_path, server)
    assert sum(map(len, vouched(tmp_path / "out").values())) == 2000


def put_in_doubt(output: Path) -> None:
    """Leave the note of a worker of the run that has written the folder's receipts."""
    (name,) = {orjson.loads(path.read_bytes())["run"] for path in (output / "_job/receipts").rglob("*.json")}
    record_doubt(OutputFolder(str(output), name), "Its rows were mixed up.")


def test_what_a_run_has_written_does_not_count_as_soon_as_it_is_in_doubt_and_the_next_discards_it(
    tmp_path: Path, server: Simulator
) -> None:
    out = tmp_path / "out"
    write_ndjson(tmp_path / "in/one.ndjson", documents(300, seed=1))
    run(tmp_path, server)
    put_in_doubt(out)
    # Its launcher may be gone, or never have waited: who looks next is told.
    said = "Its rows were mixed up. What was written until then does not count. Put the endpoint right and run again."
    assert said in tayyar_here("report", "--output", out, code=1).stdout
    assert said in tayyar_here("verify", "--output", out, code=5).stderr
    status = tayyar_here("status", "--output", out).stdout
    assert status.startswith("stopped: ")
    assert said in status
    assert said in tayyar_here("redrive", "--output", out, "--endpoint", server.url, code=5).stderr
    with pytest.raises(NotProven, match=f"is not complete: .* {said}"):
        EmbeddedFolder(str(out), None)

    server.reset_statistics()
    assert "Its rows were mixed up. What its run had finished" in run(tmp_path, server)
    assert server.statistics()["texts"] >= 300
    assert sum(map(len, vouched(out).values())) == 300
    assert "discarded" not in run(tmp_path, server)
    tayyar_here("verify", "--output", out)


def test_vectors_in_doubt_are_not_reused(tmp_path: Path, server: Simulator) -> None:
    write_ndjson(tmp_path / "in/one.ndjson", documents(300, seed=1))
    run(tmp_path, server)
    put_in_doubt(tmp_path / "out")
    server.reset_statistics()
    tayyar_here(
        *("run", "--input", tmp_path / "in", "--output", tmp_path / "other", "--endpoint", server.url),
        *("--reuse", tmp_path / "out"),
    )
    assert server.statistics()["texts"] >= 300


def test_only_the_run_in_doubt_loses_its_shards_also_those_that_come_later(tmp_path: Path) -> None:
    output = OutputFolder(str(tmp_path), "one")
    for index, name in enumerate(["one", "other", "one"]):
        output.write(output.receipt(f"wiki-{index:05d}"), [encode_receipt(receipt(index, run=name))])
        output.write(f"_job/partial/{index}123-{name}", [b""])
    (tmp_path / "_job/receipts/link.json").symlink_to(tmp_path / "_job/receipts/wiki-00001.json")
    record_doubt(output, "Rows were mixed up.")
    cache = ReceiptCache()
    assert discard_doubtful(output, read_doubts(output), cache) == (2, "Rows were mixed up.")
    left = {
        "_job/partial/1123-other",
        "_job/receipts/wiki-00001.json",
        "_job/receipts/link.json",
        "_job/doubt/one.json",
    }
    assert set(output.list()) == left
    # A worker that nobody waits for any more goes on.
    output.write(output.receipt("wiki-00007"), [encode_receipt(receipt(7, run="one", output=None, embedded=0))])
    assert [one.shard for one in cache.read(output, output.list())] == ["wiki-00001"]
    assert not is_done(output, Shard(SOURCE, 7, 700, 800), MADE.digest)
    assert discard_doubtful(output, read_doubts(output), cache).shards == 1
    assert discard_doubtful(output, {"other": "So were others."}, cache) == (1, "So were others.")


def test_a_run_beside_one_in_doubt_does_its_shards_again_and_leaves_its_note(tmp_path: Path, server: Simulator) -> None:
    out = tmp_path / "out"
    write_ndjson(tmp_path / "in/one.ndjson", documents(300, seed=1))
    run(tmp_path, server)
    put_in_doubt(out)
    marker = RunMarker("elsewhere", 7, "2026-01-02T03:04:05+00:00")
    OutputFolder(str(out), "elsewhere").write(marker.name, [orjson.dumps(asdict(marker))])
    server.reset_statistics()
    run(tmp_path, server)
    assert server.statistics()["texts"] >= 300
    assert list((out / "_job/doubt").iterdir())
    assert sum(map(len, vouched(out).values())) == 300


def test_a_run_in_doubt_says_so_also_where_it_fails_for_another_reason(tmp_path: Path, server: Simulator) -> None:
    out = tmp_path / "out"
    for name in ("one", "two"):
        write_ndjson(tmp_path / f"in/{name}.ndjson", documents(300, seed=1))
    server.set_faults(texts_per_second=100)
    command = ("--input", tmp_path / "in", "--output", out, "--shard_bytes", 30_000, "--endpoint", server.url)
    with started("run", *command) as process:
        wait_until(lambda: list((out / "_job/receipts").glob("*")), "a shard", 60)
        put_in_doubt(out)  # by another worker
        with (tmp_path / "in/two.ndjson").open("a", encoding="utf-8") as file:
            file.write('{"content":"more"}\n')
        server.set_faults()
        said, _ = process.communicate(timeout=100)
    assert process.returncode == 3, said
    assert "Its rows were mixed up. What this run had finished" in said
    assert not vouched(out)


def test_former_and_saved_vectors_of_a_run_in_doubt_are_not_used(tmp_path: Path, server: Simulator) -> None:
    out = tmp_path / "out"
    write_ndjson(tmp_path / "in/one.ndjson", documents(300, seed=1))
    run(tmp_path, server, shard_bytes=1_000_000)
    output = OutputFolder(str(out), "test")
    job = require_job(output)
    (name,) = output.list(output.receipts)
    made = decode_receipt(output.read(name) or b"")
    assert made.output is not None
    output.move(made.output.path, "_job/former/0.ndjson")
    output.move(output.keys(made.shard), "_job/former/0.u64")
    output.move(name, "_job/former/0.json")
    found = index_former(output, job, [], ReceiptCache())
    assert found is not None
    assert len(found.files) == 1
    vectors = np.ones((1, job.space.dimensions), np.float32)
    saved = encode_partial("two-00000", job.space.digest, "truncate", ["a text"], vectors)
    output.write(f"_job/partial/0-{made.run}", saved)
    found = index_former(output, job, [], ReceiptCache())
    assert found is not None
    assert len(found.files) == 2
    assert count_partial(output, output.list(), (), job.space.digest) == 1
    record_doubt(OutputFolder(str(out), made.run), "Rows were mixed up.")
    assert index_former(output, job, [], ReceiptCache()) is None
    assert count_partial(output, output.list(), (), job.space.digest) == 0


def test_a_redrive_discards_the_shards_that_it_has_replaced(tmp_path: Path, server: Simulator) -> None:
    records = list(documents(2000, seed=3))
    for record in records[::20]:
        record["content"] = f"{record['content']} bad"
    write_ndjson(tmp_path / "in/one.ndjson", records)
    server.set_faults(refuse_marker="bad")
    run(tmp_path, server, code=4, shard_bytes=6_000)
    before = vouched(tmp_path / "out")
    server.set_faults(script=GOOD_REQUESTS, permuted=1.0)
    redriven = tayyar_here("redrive", "--output", tmp_path / "out", "--endpoint", server.url, code=3)
    assert "is discarded. Put the endpoint right, then run the job again." in redriven.stderr
    assert vouched(tmp_path / "out").items() < before.items()
    server.set_faults()
    run(tmp_path, server, code=4, shard_bytes=6_000)  # the other dead letters are still there
    tayyar_here("redrive", "--output", tmp_path / "out", "--endpoint", server.url)
    assert sum(map(len, vouched(tmp_path / "out").values())) == 2000
