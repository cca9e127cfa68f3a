"""What a storage must do beside the job itself, which `test_runners.py` holds: other commands, names, errors."""

from __future__ import annotations

import io
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.job.sharding import make_plan
from tests.commands import ROOT, environment, tayyar, tayyar_here, texts_embedded
from tests.conftest import STORAGES
from tests.documents import mixed_corpus
from tests.storages import (
    PARQUET,
    LocalStorage,
    Storage,
    embed,
    expected,
    fill,
    job,
    outputs,
    place_of,
    s3_client,
    s3_options,
    s3_server,
    verify,
    without_cloud,
)
from tests.tei_simulator.clients import Simulator
from tests.tei_simulator.process import TeiSimulator
from tests.test_end_to_end import HANDSHAKE_TEXTS
from transforms.elements import Vectors
from transforms.output.folder import OutputFolder
from transforms.reuse.index import FormerFile, make_index, write_index
from transforms.reuse.keys import encode_keys
from transforms.reuse.partial import PartialWriter, count_partial
from transforms.reuse.reuse import find_vectors
from transforms.storage import api as storage


@pytest.fixture(scope="module")
def finished(kind: str, tmp_path_factory: pytest.TempPathFactory, hash_tei: str) -> Storage:
    """A finished job. Whoever damages it mends it again."""
    place = place_of(kind, tmp_path_factory.mktemp(f"finished-{kind}"))
    fill(place, mixed_corpus())
    embed(place, hash_tei)
    return place


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with TeiSimulator() as server:
        yield Simulator(server.url)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, hash_tei: str) -> dict[str, bytes]:
    """What must come out of the corpus."""
    return expected(mixed_corpus(), tmp_path_factory.mktemp("plain"), hash_tei)


@pytest.fixture(scope="module")
def plain_parquet(tmp_path_factory: pytest.TempPathFactory, hash_tei: str) -> dict[str, bytes]:
    """What must come out of the corpus as Parquet."""
    return expected(mixed_corpus(), tmp_path_factory.mktemp("parquet"), hash_tei, *PARQUET)


def test_only_what_is_damaged_is_mended(place: Storage, plain: dict[str, bytes], hash_tei: str) -> None:
    fill(place, mixed_corpus())
    assert "total: embeddings = 600, documents = 605, dead letters = 5" in embed(place, hash_tei)
    assert outputs(place) == plain
    left = {name.removeprefix("out/_job/") for name in place.names() if name.startswith("out/_job/")}
    assert {name for name in left if not name.startswith("receipts/")} >= {"job.json", "plan.ndjson", "report.json"}
    assert not {name for name in left if "tmp" in name or "run_markers" in name}
    before = texts_embedded(hash_tei)
    place.remove("out/_job/receipts/wiki_00-00001.json")
    place.put("out/data/a/wiki_01-00000.ndjson", plain["data/a/wiki_01-00000.ndjson"][:-1])
    place.put("out/data/كلمة/x y-00000.ndjson", plain["data/كلمة/x y-00000.ndjson"].replace(b"0.", b"1.", 1))
    place.put("out/notes.txt", b"the user's own")
    assert "x y-00000.ndjson" in verify(place, code=5)
    place.remove("out/data/كلمة/x y-00000.ndjson")
    embed(place, hash_tei)
    assert 0 < texts_embedded(hash_tei) - before < 150
    assert outputs(place) == plain | {"notes.txt": b"the user's own"}
    place.remove("out/notes.txt")
    verify(place)


@pytest.mark.parametrize(("made", "options"), [("plain", ()), ("plain_parquet", PARQUET)], ids=["ndjson", "parquet"])
def test_every_command_does_its_work_where_the_data_lies(
    place: Storage, made: str, options: tuple[str, ...], simulator: Simulator, request: pytest.FixtureRequest
) -> None:
    plain: dict[str, bytes] = request.getfixturevalue(made)
    fill(place, mixed_corpus())
    data = ("--input", f"{place.root}/in/**", "--shard_bytes", 9000, "--endpoint", simulator.url, *options)
    out = ("--output", f"{place.root}/out")
    assert "records: 605\n" in tayyar_here("plan", *data, *out, "--max_in_flight", 32).stdout
    assert "out/_job/estimate.json" in place.names()
    simulator.set_faults(refuse_marker="1-1", null_marker="2-7")
    tayyar_here("run", *data, *out, "--max_dead_letter_ratio", 1)
    simulator.set_faults()
    status = json.loads(tayyar_here("status", *out, "--json").stdout)
    assert (status["state"], status["sources_done"], status["records"]) == ("finished", 6, 605)
    assert status["dead_letters"]["rejected_by_endpoint"] > 30
    assert outputs(place) != plain
    place.remove("out/_job/report.html")
    assert f"report: {place.root}/out/_job/report.html" in tayyar_here("report", *out).stdout
    assert "out/_job/report.html" in place.names()
    said = tayyar_here("redrive", *out, "--endpoint", simulator.url).stdout
    assert f"{sum(status['dead_letters'].values())} dead letters sent again: " in said
    assert "total: embeddings = 600, documents = 605, dead letters = 5" in said
    assert outputs(place) == plain
    report = json.loads(place.files()["out/_job/report.json"])
    assert report["plan"]["records"] == {"planned": 605, "actual": 605}
    processes = 1 if place.root.startswith("/") else 2
    said = tayyar_here("verify", *out, "--sample", 40, "--endpoint", simulator.url, "--processes", processes).stdout
    assert "verified: 605 records in 6 files = 600 embedded" in said
    assert "embedded again: 40 documents; cosine with the vector that was written: 1.000000 at worst" in said
    assert not [name for name in place.names() if "/tmp/" in name or "/redrive/" in name or "/run_markers/" in name]


@pytest.mark.parametrize("kind", STORAGES[1:], indirect=True)
def test_a_redrive_that_fails_in_one_shard_leaves_none_half_done_and_the_next_one_does_the_rest(
    place: Storage, plain: dict[str, bytes], simulator: Simulator
) -> None:
    fill(place, mixed_corpus())
    simulator.set_faults(refuse_marker="5")  # in every shard
    embed(place, simulator.url)
    before = outputs(place)
    name = "out/data/كلمة/x y-00001.ndjson"  # others come before it, and behind it
    whole = place.files()[name]
    place.put(name, whole.replace(b"0.", b"1.", 1))
    simulator.set_faults(batch_seconds=0.1)  # so that those that begin together are there together
    redrive = ("redrive", "--output", f"{place.root}/out", "--endpoint", simulator.url)
    said = tayyar_here(*redrive, code=5).stderr
    simulator.set_faults()
    assert "x y-00001.ndjson is not what its receipt says" in said
    assert not [name for name in place.names() if "/tmp/" in name or "/redrive/" in name or "/run_markers/" in name]
    place.put(name, whole)
    tayyar_here("report", "--output", f"{place.root}/out")  # that of the run does not know of the shards done since
    verify(place)
    now, wrong = outputs(place), {name for name in plain if before[name] != plain[name]}
    assert 0 < sum(now[name] == plain[name] for name in wrong) < len(wrong)
    assert "total: embeddings = 600, documents = 605, dead letters = 5" in tayyar_here(*redrive).stdout
    assert outputs(place) == plain
    verify(place)


Lines = list[bytes]


def lost(lines: Lines) -> Lines:
    return lines[:2] + lines[3:]


def doubled(lines: Lines) -> Lines:
    return [*lines[:3], lines[2], *lines[3:]]


def swapped(lines: Lines) -> Lines:
    return [*lines[:2], lines[3], lines[2], *lines[4:]]


def field_changed(lines: Lines) -> Lines:
    return [*lines[:2], lines[2].replace(b'"id"', b'"ID"'), *lines[3:]]


def vector_shortened(lines: Lines) -> Lines:
    start, end = lines[2].index(b"["), lines[2].index(b"]")
    return [*lines[:2], lines[2][:start] + lines[2][start:end].rpartition(b",")[0] + lines[2][end:], *lines[3:]]


def truncated(lines: Lines) -> Lines:
    return [*lines[:-1], lines[-1][:-100]]


@pytest.mark.parametrize("forged", [False, True], ids=["", "receipt forged"])
@pytest.mark.parametrize("name", ["data/wiki_00-00001.ndjson", "data/a/wiki_01-00000.ndjson"])
@pytest.mark.parametrize("change", [lost, doubled, swapped, field_changed, vector_shortened, truncated])
def test_any_damage_is_found_with_its_place(
    finished: Storage, name: str, change: Callable[[Lines], Lines], forged: bool
) -> None:
    receipt = f"out/_job/receipts/{name.removeprefix('data/').removesuffix('.ndjson')}.json"
    whole = finished.files()
    lines = whole[f"out/{name}"].splitlines(keepends=True)
    damaged = b"".join(change(lines))
    assert damaged != whole[f"out/{name}"]
    finished.put(f"out/{name}", damaged)
    if forged:
        fields = json.loads(whole[receipt])
        fields["output"]["bytes"] = len(damaged)
        finished.put(receipt, json.dumps(fields).encode())
    try:
        found = tayyar_here("verify", "--output", f"{finished.root}/out", code=5).stderr
    finally:
        finished.put(f"out/{name}", whole[f"out/{name}"])
        finished.put(receipt, whole[receipt])
    if forged or len(damaged) == len(whole[f"out/{name}"]):
        place = sum(map(len, lines[:-1] if change is truncated else lines[: 3 if change is doubled else 2]))
        assert f"  {name}, byte {place}: " in found
    else:
        assert "shards are done" in found
        assert f"  {name}: no valid receipt vouches for this file" in found


@pytest.mark.parametrize(
    "name", ["_job/receipts/wiki_00-00001.json", "data/a/b/wiki_02-00000.ndjson", "dead_letters/wiki_04-00000.ndjson"]
)
def test_a_lost_file_is_found(finished: Storage, name: str) -> None:
    content = finished.files()[f"out/{name}"]
    finished.remove(f"out/{name}")
    try:
        found = tayyar_here("verify", "--output", f"{finished.root}/out", code=5).stderr
    finally:
        finished.put(f"out/{name}", content)
    shard = re.sub(r"^(_job/receipts|data|dead_letters)/", "", name).rpartition(".")[0]
    assert "shards are done" in found
    assert f"{shard}." in found
    assert "verified: 605 records" in tayyar_here("verify", "--output", f"{finished.root}/out").stdout


def test_a_job_is_begun_anew_and_a_changed_input_is_redone(place: Storage, tmp_path: Path, hash_tei: str) -> None:
    files = mixed_corpus(per_file=20)
    fill(place, files)
    embed(place, hash_tei, "--text_field", "id")
    embed(place, hash_tei, "--overwrite")
    files["a/wiki_01.jsonl.gz"] = mixed_corpus(per_file=12, first_seed=50)["a/wiki_01.jsonl.gz"]
    place.put("in/a/wiki_01.jsonl.gz", files["a/wiki_01.jsonl.gz"])
    before = texts_embedded(hash_tei)
    embed(place, hash_tei)
    # Two handshakes, of launcher and worker, are 36 texts; then there are the canaries.
    assert 12 <= texts_embedded(hash_tei) - before <= 12 + 36 + 6
    assert outputs(place) == expected(files, tmp_path, hash_tei)
    verify(place)


def test_former_vectors_are_used_again_where_the_data_lies(place: Storage, tmp_path: Path, hash_tei: str) -> None:
    lines = [b'{"content": "text %d"}\n' % number for number in range(300)]
    place.put("in/a.ndjson", b"".join(lines))
    embed(place, hash_tei)
    before = texts_embedded(hash_tei)
    place.put("in/a.ndjson", b"".join([*lines[1:], lines[0], b'{"content": "new"}\n']))
    assert "1 text new among 301 documents to do" in embed(place, hash_tei)
    assert texts_embedded(hash_tei) - before <= HANDSHAKE_TEXTS
    names = place.names()
    assert not [name for name in names if "/former/" in name or "/reuse/" in name or "/partial/" in name]
    receipts = [json.loads(storage.read_bytes(f"{place.root}/{name}") or b"") for name in names if "/receipts/" in name]
    assert (sum(one["sent"] for one in receipts), sum(one["reused"] for one in receipts)) == (1, 300)
    verify(place)
    corpus = {"a.ndjson": place.files()["in/a.ndjson"]}
    for options in (PARQUET, PARQUET, ()):  # to Parquet, again without anything to do, and back from rounded numbers
        before = texts_embedded(hash_tei)
        embed(place, hash_tei, *options)
        assert (texts_embedded(hash_tei) - before <= HANDSHAKE_TEXTS) is bool(options)
        assert outputs(place) == expected(corpus, tmp_path, hash_tei, *options)
        assert not [name for name in place.names() if "/former/" in name or "/reuse/" in name or "/partial/" in name]
        verify(place)


def test_a_run_that_meets_mixed_rows_discards_what_it_has_written_where_the_data_lies(
    place: Storage, simulator: Simulator
) -> None:
    lines = [b'{"content": "text %d"}\n' % number for number in range(3300)]
    place.put("in/a.ndjson", b"".join(lines[:300]))
    embed(place, simulator.url)
    before = outputs(place)
    time.sleep(1.1)  # some stores keep times in whole seconds, and what might be of this run is discarded, too
    place.put("in/b.ndjson", b"".join(lines[300:]))
    simulator.set_faults(script=["ok"] * 60, permuted=1.0)
    failed = tayyar_here("run", *job(place, simulator.url), code=3).stderr
    assert re.search(r"What this run had finished \([1-9]\d* shards?\) is discarded", failed)
    assert outputs(place) == before
    simulator.set_faults()
    assert "embeddings = 3300" in embed(place, simulator.url)
    verify(place)


@pytest.mark.parametrize("kind", ["s3"], indirect=True)
def test_worker_processes_have_beam_s_options(
    place: Storage, plain: dict[str, bytes], hash_tei: str, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = ("--direct_running_mode", "multi_processing", "--direct_num_workers", 2, *s3_options(s3))
    fill(place, mixed_corpus())
    for name in s3:
        monkeypatch.delenv(name)
    tayyar("run", *job(place, hash_tei, *workers))  # a process that has reached no storage yet
    assert outputs(place) == plain


def test_a_file_is_there_whole_or_not_at_all(place: Storage) -> None:
    path, temporary = f"{place.root}/a/b", f"{place.root}/t"

    def chunks(fails: bool) -> Iterator[bytes]:
        for _ in range(20):
            yield (b"half of it" if fails else b"0123456789") * 100_000
            assert fails or "a/b" not in place.names()
        if fails:
            raise RuntimeError("the endpoint is gone")

    size, _ = storage.write_whole(path, temporary, chunks(fails=False))
    assert size == 20_000_000
    whole = place.files()
    assert whole == {"a/b": b"0123456789" * 2_000_000}
    with pytest.raises(RuntimeError):
        storage.write_whole(path, temporary, chunks(fails=True))
    assert place.files()["a/b"] == whole["a/b"]
    assert place.names() in (["a/b"], ["a/b", "t"])  # a local run's temporary files are the next run's to delete


@pytest.mark.parametrize("name", ["a.gz", "a*b", "a[1]", "\u0643 #%41", "a?b", "a//b"])
def test_names_are_taken_literally_and_empty_files_are_files(place: Storage, name: str) -> None:
    path = f"{place.root}/{name}"
    for data in (b"", b"plain"):
        storage.write_whole(path, f"{place.root}/t", [data])
        assert storage.read_bytes(path) == data
        found = storage.stat(path)
        assert found is not None
        assert found.size == len(data)
        if "//" not in name:
            assert storage.list_below(place.root) == [found]
            assert place.files() == {name: data}
    storage.delete([path, f"{place.root}/nothing"])
    assert storage.stat(path) is None
    assert storage.read_bytes(path) is None
    assert place.names() == []


def test_a_file_is_another_version_when_its_content_changes_and_the_same_when_its_metadata_do(place: Storage) -> None:
    place.put("a", b"one")
    first = storage.stat(f"{place.root}/a")
    assert storage.list_below(place.root) == [first]
    time.sleep(1.1)  # stores show times in whole seconds
    place.change_metadata("a")
    second = storage.stat(f"{place.root}/a")
    place.put("a", b"two")
    third = storage.stat(f"{place.root}/a")
    assert first is not None
    assert second is not None
    assert third is not None
    assert storage.list_below(place.root) == [third]
    assert (second.size, second.version) == (first.size, first.version) != (third.size, third.version)


def test_a_file_that_is_not_small_is_not_read_as_one(place: Storage) -> None:
    place.put("a", b"x" * 100_000)
    assert storage.read_bytes(f"{place.root}/a", 100_000) == b"x" * 100_000
    with pytest.raises(storage.StorageError, match=f"{place.root}/a has more than 99999 bytes"):
        storage.read_bytes(f"{place.root}/a", 99_999)


@pytest.mark.parametrize("kind", ["s3"], indirect=True)
@pytest.mark.parametrize("size", [(12 << 20) + 5, 10 << 20])
def test_a_large_object_is_uploaded_in_parts(place: Storage, size: int) -> None:
    from transforms.storage import s3

    data = random.Random(1).randbytes(size)
    crc = storage.Crc32c()
    crc.update(data)
    limits = {"max_put_bytes": 5 << 20, "part_bytes": 5 << 20}  # S3's least
    s3.put(f"{place.root}/a", io.BytesIO(data), size, crc.base64(), **limits)
    assert place.files() == {"a": data}
    found = storage.stat(f"{place.root}/a")
    assert found is not None
    assert found.version.endswith(f'-{-(-size // (5 << 20))}"')  # the ETag of an object of so many parts

    with pytest.raises(storage.StorageError, match=r"/a changed on this machine's disk"):
        s3.put(f"{place.root}/a", io.BytesIO(data[:-1] + b"!"), size, crc.base64(), **limits)
    assert place.files() == {"a": data}  # which asserts, too, that no part is left


def test_vectors_of_unfinished_shards_are_saved_and_found_again(place: Storage) -> None:
    output = OutputFolder(place.root, "run")
    texts, vectors = [f"text {number}" for number in range(4)], np.arange(1, 9, dtype=np.float32).reshape(4, 2)

    class Pending:
        def so_far(self) -> tuple[Vectors, npt.NDArray[np.bool_]]:
            return vectors, np.ones(4, dtype=np.bool_)

    writer = PartialWriter(output, "space", "truncate", look_seconds=3600, save_seconds=0)
    try:
        writer.add("wiki-00000", texts, Pending())
        writer.look()
    finally:
        writer.close()
    (name,) = output.list()
    assert count_partial(output, [name], [], "space") == 4
    file = FormerFile(output.path(name), 0, "", None, "")
    index = make_index([(file, encode_keys(texts))])
    assert index is not None
    handle = write_index(output, index, "run")
    opened = handle.open()
    assert opened is not None
    found = find_vectors(["new", *texts], opened, 2)
    assert found.mask.tolist() == [False, True, True, True, True]
    assert found.vectors[1:].tolist() == vectors.tolist()
    assert found.used_up == [output.path(name)]
    output.delete([writer.remove("wiki-00000") or ""])
    assert output.list() == {handle.name: output.stat(handle.name)}


def test_a_file_gets_another_name_in_its_storage(place: Storage) -> None:
    data = random.Random(1).randbytes(100_000)
    place.put("a/b.ndjson", data)
    place.put("other", b"stays")
    output = OutputFolder(place.root, "run")
    output.move("a/b.ndjson", "_job/former/x.ndjson")
    assert place.files() == {"_job/former/x.ndjson": data, "other": b"stays"}
    output.move("a/b.ndjson", "_job/former/y.ndjson")  # it is gone already
    place.put("a/b.ndjson", b"another")
    output.move("a/b.ndjson", "_job/former/x.ndjson")
    assert place.files() == {"_job/former/x.ndjson": b"another", "other": b"stays"}


@pytest.mark.parametrize("kind", ["s3"], indirect=True)
def test_a_large_object_is_copied_in_parts(place: Storage) -> None:
    from transforms.storage import s3

    data = random.Random(1).randbytes(12 << 20)
    place.put("a", data)
    s3.move(f"{place.root}/a", f"{place.root}/b", max_copy_bytes=5 << 20, part_bytes=5 << 20)
    assert place.files() == {"b": data}  # which asserts, too, that no part is left
    found = storage.stat(f"{place.root}/b")
    assert found is not None
    assert found.version.endswith('-3"')  # the ETag of an object of three parts


def test_a_file_is_read_from_anywhere(place: Storage) -> None:
    data = random.Random(1).randbytes(5_000_000)
    place.put("a", data)
    with storage.open_for_reading(f"{place.root}/a") as file:
        for start in (4_999_990, 0, 4_194_300, 4_194_304, 20_000_000):
            file.seek(start)
            assert file.read(20) == data[start : start + 20]
        file.seek(0)
        assert file.read() == data


@pytest.mark.parametrize("kind", STORAGES[1:], indirect=True)
def test_an_object_that_is_replaced_while_it_is_read_is_an_error(place: Storage) -> None:
    place.put("a", bytes(10_000_000))
    with storage.open_for_reading(f"{place.root}/a") as file:
        file.read(1)
        place.put("a", b"x" * 10_000_000)
        with pytest.raises(storage.StorageError, match="was replaced while it was read"):
            file.read()


@pytest.mark.parametrize("pattern", ["*.ndjson", "wiki_0?.*", "**.ndjson", "a/**/wiki_*", "a/", "wiki_00.ndjson"])
def test_patterns_mean_the_same_everywhere(place: Storage, tmp_path: Path, pattern: str) -> None:
    found = []
    for there in (place, LocalStorage(tmp_path / "expected")):
        fill(there, mixed_corpus(per_file=1))
        plan = make_plan([f"{there.root}/in/{pattern}"], f"{there.root}/out", 1000)
        found.append([(source.name, source.path.removeprefix(there.root), source.size) for source in plan.sources])
    assert found[0] == found[1] != []


def refused(place: Storage, tei: str, *, inputs: str = "in/*", output: str = "out", **variables: str) -> str:
    """Run the job without any cloud set up but what is given; it must end in one sentence before anything is sent."""
    where = ["--input", inputs if "://" in inputs else f"{place.root}/{inputs}"]
    where += ["--output", output if "://" in output else f"{place.root}/{output}"]
    before = texts_embedded(tei)
    finished = tayyar("run", *where, "--endpoint", tei, code=2, variables=without_cloud() | variables)
    assert texts_embedded(tei) == before
    lines = finished.stderr.strip().splitlines()
    assert len(lines) == 1, finished.stderr
    return lines[0]


@pytest.mark.parametrize("kind", STORAGES[1:], indirect=True)
def test_a_bucket_that_is_not_there_is_named(
    place: Storage, kind: str, hash_tei: str, request: pytest.FixtureRequest
) -> None:
    place.put("in/a.ndjson", b'{"content": "a"}\n')
    nowhere = f"{kind}://no-such-bucket-here"
    for where in ({"inputs": f"{nowhere}/in/*"}, {"inputs": f"{nowhere}/a.ndjson"}, {"output": f"{nowhere}/out"}):
        said = refused(place, hash_tei, **where, **request.getfixturevalue(kind))
        assert f"there is no bucket {nowhere}. Check the name, or create it." in said


@pytest.mark.parametrize("kind", ["local"], indirect=True)
def test_an_unknown_scheme_is_refused(place: Storage, kind: str, hash_tei: str) -> None:
    place.put("in/a.ndjson", b'{"content": "a"}\n')
    assert "hdfs:// is not supported" in refused(place, hash_tei, output="hdfs://host/out")


@pytest.mark.outside
def test_missing_credentials_and_permissions_in_s3_are_named(tmp_path: Path, hash_tei: str) -> None:
    source = LocalStorage(tmp_path / "place")
    source.put("in/a.ndjson", b'{"content": "a"}\n')
    # Setting up takes five requests that need no permission; from then on moto checks them.
    with s3_server(tmp_path / "log", {"INITIAL_NO_AUTH_ACTION_COUNT": "3"}) as url:
        s3_client(url).create_bucket(Bucket="guarded")
        user = s3_client(url, "iam")
        user.create_user(UserName="nobody")
        key = user.create_access_key(UserName="nobody")["AccessKey"]
        cloud = {"AWS_ENDPOINT_URL_S3": url, "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        none = refused(source, hash_tei, output="s3://guarded/out", **cloud)
        assert "no AWS credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in none
        wrong = {"AWS_ACCESS_KEY_ID": "wrong", "AWS_SECRET_ACCESS_KEY": "wrong"}
        assert "access denied" in refused(source, hash_tei, output="s3://guarded/out", **cloud, **wrong)
        keys = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
        said = refused(source, hash_tei, output="s3://guarded/out", **cloud, **keys)
        assert "grant s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket on s3://guarded" in said
        assert "s3:ListBucket" in refused(source, hash_tei, inputs="s3://guarded/in/*", **cloud, **keys)


class _Denies(BaseHTTPRequestHandler):
    """What Google's store says to someone who may not."""

    def do_GET(self) -> None:
        body = b'{"error": {"code": 403, "message": "caller does not have storage.objects.create access"}}'
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(403)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 # named by the standard library

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_missing_credentials_for_google_are_named(tmp_path: Path, hash_tei: str) -> None:
    source = LocalStorage(tmp_path / "place")
    source.put("in/a.ndjson", b'{"content": "a"}\n')
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Denies)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        cloud = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{server.server_address[1]}"}
        for where in ({"output": "gs://guarded/out"}, {"inputs": "gs://guarded/in/*"}):
            said = refused(source, hash_tei, **where, **cloud)
            assert "access denied: no Google credentials were found. Run `gcloud auth" in said
            assert "roles/storage.objectUser on gs://guarded" in said
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    said = refused(source, hash_tei, output="gs://guarded/out", GOOGLE_APPLICATION_CREDENTIALS="/no/such/key.json")
    assert "/no/such/key.json was not found" in said


def test_a_missing_extra_is_named(tmp_path: Path, hash_tei: str) -> None:
    without = (
        "import sys; sys.modules['boto3'] = None; from pipeline.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    where = ("--input", "s3://bucket/in/*", "--output", str(tmp_path / "out"), "--endpoint", hash_tei)
    finished = subprocess.run(
        [sys.executable, "-c", without, "run", *where],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 2
    assert "-m pip install 'tayyar[aws]'" in finished.stderr
