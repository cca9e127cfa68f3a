"""Rows that change places do not show in each reply: once they do, all that the run has written is discarded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from tests.commands import tayyar_here
from tests.documents import documents, write_ndjson
from tests.tei_simulator.clients import Simulator
from tests.tei_simulator.hash_model import expected_vectors
from tests.tei_simulator.process import TeiSimulator
from transforms.doubt import record_doubt
from transforms.output.folder import OutputFolder

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


def test_what_a_run_that_was_killed_before_it_could_discard_has_written_is_discarded_by_the_next(
    tmp_path: Path, server: Simulator
) -> None:
    write_ndjson(tmp_path / "in/one.ndjson", documents(300, seed=1))
    run(tmp_path, server)
    record_doubt(OutputFolder(str(tmp_path / "out"), "killed"), "Its rows were mixed up.")
    server.reset_statistics()
    assert "Its rows were mixed up. What the last run had finished" in run(tmp_path, server)
    assert server.statistics()["texts"] >= 300
    assert sum(map(len, vouched(tmp_path / "out").values())) == 300
    assert "discarded" not in run(tmp_path, server)


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
