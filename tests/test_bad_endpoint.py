"""The whole job against an endpoint that does everything wrong, and against one that can only do so much."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import orjson
import pytest
import requests

from tests.commands import started, tayyar, tayyar_here
from tests.documents import documents, write_ndjson
from tests.forked import Forked
from tests.tei_simulator.process import TeiSimulator

POISON, NULLS = "🜏poison", "🜏nulls"
FAULTS = {
    "reject": 0.10,
    "backend": 0.03,
    "reset": 0.03,
    "bad_gateway": 0.01,
    "gateway_timeout": 0.01,
    "null_rows": 0.05,
    "refuse_marker": POISON,
    "null_marker": NULLS,
    "crash_seconds": 5,
}


def write_corpus_with_bad_records(path: Path) -> tuple[list[str], list[str], int]:
    """Write 6,000 documents, 12 poison texts and 6 that never get a vector among them, and 6 malformed lines.

    Returns the ids of the poison texts, of the others, and the malformed lines.
    """
    records = list(documents(6000, seed=9))
    poison, nulls = records[100:5900:500][:12], records[350:5900:900][:6]
    for record in poison:
        record["content"] = f"{record['content']} {POISON}"
    for record in nulls:
        record["content"] = f"{record['content']} {NULLS}"
    write_ndjson(path, records)
    lines = path.read_bytes().splitlines()
    for place in range(6):
        lines.insert(900 * place + 7, b'{"content": "cut off')
    path.write_bytes(b"\n".join(lines) + b"\n")
    return [str(r["id"]) for r in poison], [str(r["id"]) for r in nulls], 6


def wait_for_a_receipt(process: Forked, output: Path) -> None:
    while process.poll() is None and not list(output.glob("_job/receipts/*.json")):
        time.sleep(0.01)


def test_only_what_is_truly_bad_becomes_a_dead_letter(tmp_path: Path, hash_tei: str) -> None:
    poison, nulls, malformed = write_corpus_with_bad_records(tmp_path / "in.ndjson")
    options = ("--input", tmp_path / "in.ndjson", "--output", tmp_path / "out", "--shard_bytes", 200_000)
    with TeiSimulator(["--faults", json.dumps(FAULTS)]) as server:
        with started("run", *options, "--endpoint", server.url) as process:
            wait_for_a_receipt(process, tmp_path / "out")
            with contextlib.suppress(requests.ConnectionError):  # this request's connection is reset like all others
                requests.post(f"{server.url}/simulator/crash", timeout=5)
            said, _ = process.communicate(timeout=110)
        assert process.returncode == 0, said
    letters = [
        orjson.loads(line)
        for path in sorted(tmp_path.glob("out/dead_letters/*"))
        for line in path.read_bytes().splitlines()
    ]
    assert Counter(letter["reason"] for letter in letters) == {
        "rejected_by_endpoint": len(poison),
        "invalid_vector": len(nulls),
        "invalid_json": malformed,
    }
    for reason, ids in [("rejected_by_endpoint", poison), ("invalid_vector", nulls)]:
        assert sorted(json.loads(x["line"])["id"] for x in letters if x["reason"] == reason) == sorted(ids)
    embedded = [
        orjson.loads(line)
        for path in sorted(tmp_path.glob("out/data/in-*.ndjson"))
        for line in path.read_bytes().splitlines()
    ]
    assert len(embedded) == 6000 - 18
    for first in range(0, len(embedded), 32):
        some = embedded[first : first + 32]
        body = {"inputs": [document["content"] for document in some]}
        right = requests.post(f"{hash_tei}/embed", json=body, timeout=30).json()
        assert np.array_equal(np.array([d["embedding"] for d in some], "f4"), np.array(right, "f4"))
    tayyar_here("verify", "--output", tmp_path / "out")


def test_an_endpoint_of_fixed_capacity_is_kept_busy_without_refusals(tmp_path: Path) -> None:
    write_ndjson(tmp_path / "in.ndjson", documents(5000, seed=3))
    device = {"tokens_per_second": 20_000, "batch_seconds": 0.002}
    with TeiSimulator(["--faults", json.dumps(device)]) as server:
        options = ("--input", tmp_path / "in.ndjson", "--output", tmp_path / "out", "--endpoint", server.url)
        with started("run", *options, "--shard_bytes", 100_000) as process:
            wait_for_a_receipt(process, tmp_path / "out")
            reset = requests.post(
                f"{server.url}/simulator/statistics", timeout=5
            ).json()  # what comes before is start-up
            said, _ = process.communicate(timeout=110)
        assert process.returncode == 0, said
        stats = requests.get(f"{server.url}/simulator/statistics", timeout=5).json()
    assert reset["texts_in_flight"] > 0
    assert stats["texts"] > 1000, stats  # from here to the last document, the end included
    assert stats["busy_share"] > 0.97, stats  # one request at a time makes 0.85
    assert stats["rejected"] <= 2, stats


def test_a_wrong_token_stops_the_run_in_seconds_and_stays_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ndjson(tmp_path / "in.ndjson", documents(50, seed=4))
    monkeypatch.setenv("TAYYAR_TEST_TOKEN", "hf_not_the_right_one")
    monkeypatch.setenv("TAYYAR_TEST_KEY", "hf_the_right_one")
    with TeiSimulator(["--api_key", "env:TAYYAR_TEST_KEY"]) as server:
        options = ("--input", tmp_path / "in.ndjson", "--output", tmp_path / "out", "--endpoint", server.url)
        said = tayyar("run", *options, "--token", "env:TAYYAR_TEST_TOKEN", code=3).stderr
        assert "401" in said
        monkeypatch.setenv("TAYYAR_TEST_TOKEN", "hf_the_right_one")
        said += tayyar_here("run", *options, "--token", "env:TAYYAR_TEST_TOKEN").stdout
    everything = said.encode() + b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"hf_" not in everything
