from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UsageError
from pipeline.job.spec import FORMAT, read_job, require_same_job, write_job
from tests.shards import folder
from transforms.tei.settings import ModelIdentity, Overlong

MODEL = ModelIdentity("intfloat/multilingual-e5-small", "abc", "float32", "mean", 384, "1.9.3")
JOB = Job(
    model=MODEL,
    prompt_name=None,
    normalize=True,
    overlong=Overlong.TRUNCATE,
    text_field="content",
    embedding_field="embedding",
    shard_bytes=16 << 20,
    inputs=("/in/*.ndjson",),
    version="0.1.0",
    wire_format="/embed, JSON",
)

SHAPING: dict[str, Any] = {
    "model_id": "another/model",
    "sha": None,
    "dtype": "float16",
    "pooling": "cls",
    "dimensions": 768,
    "prompt_name": "query",
    "normalize": False,
    "overlong": Overlong.DEAD_LETTER,
    "text_field": "meta.body",
    "embedding_field": "vector",
    "shard_bytes": 1,
    "inputs": ("/other/*.ndjson",),
    "format": FORMAT + 1,
}
RECORDED = {"server_version": "1.9.4", "version": "9.9", "wire_format": "/v1/embeddings, base64"}


def changed(name: str, value: Any) -> Job:
    if hasattr(MODEL, name):
        return dataclasses.replace(JOB, model=dataclasses.replace(MODEL, **{name: value}))
    return dataclasses.replace(JOB, **{name: value})


def test_every_field_is_either_shaping_or_only_recorded() -> None:
    names = {field.name for field in (*dataclasses.fields(Job), *dataclasses.fields(ModelIdentity))} - {"model"}
    assert names == set(SHAPING) | set(RECORDED)


@pytest.mark.parametrize("name", SHAPING)
def test_each_setting_that_differs_is_named_and_refused(name: str) -> None:
    other = changed(name, SHAPING[name])
    assert len(JOB.differences(other)) == 1
    with pytest.raises(UsageError, match=f"^/out holds the vectors of another job: {name} was ") as refused:
        require_same_job(JOB, other, "/out")
    was, now = (getattr(job, name, getattr(job.model, name, None)) for job in (JOB, other))
    shown = [list(v) if isinstance(v, tuple) else v.value if isinstance(v, Overlong) else v for v in (was, now)]
    assert f"{name} was {shown[0]!r} and is {shown[1]!r}. " in str(refused.value)
    assert "--overwrite" in str(refused.value)


def test_all_differences_are_named_at_once() -> None:
    other = dataclasses.replace(changed("dimensions", 768), normalize=False)
    with pytest.raises(UsageError, match="dimensions was 384 and is 768; normalize was True and is False"):
        require_same_job(JOB, other, "/out")


@pytest.mark.parametrize("name", RECORDED)
def test_what_is_only_recorded_makes_no_other_job(name: str) -> None:
    other = changed(name, RECORDED[name])
    assert other != JOB
    require_same_job(JOB, other, "/out")
    assert other.digest == JOB.digest


def test_an_empty_folder_takes_any_job() -> None:
    require_same_job(None, JOB, "/out")


@pytest.mark.parametrize("name", SHAPING)
def test_the_digest_tells_jobs_apart_whose_shards_cannot_stand_side_by_side(name: str) -> None:
    # Other inputs are refused, but shards of sources that both have are the same.
    assert (changed(name, SHAPING[name]).digest == JOB.digest) is (name == "inputs")


def test_the_digest_is_a_contract() -> None:
    assert len(JOB.digest) == 16
    assert int(JOB.digest, 16)
    assert dataclasses.replace(JOB).digest == JOB.digest == "8ca667dd982a33ae"


def test_a_job_is_read_as_it_was_written(tmp_path: Path) -> None:
    output = folder(tmp_path)
    assert read_job(output) is None
    for job in (JOB, changed("overlong", Overlong.DEAD_LETTER), changed("sha", None)):
        write_job(job, output)
        assert read_job(output) == job
    assert json.loads(output.read(output.job) or b"")["model"]["model_id"] == MODEL.model_id


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"5",
        b"null",
        b'{"model":{},"overlong":"truncate","inputs":[]}',
        json.dumps(dataclasses.asdict(JOB) | {"overlong": "split"}).encode(),
        json.dumps(dataclasses.asdict(JOB) | {"overlong": "truncate", "unknown": 1}).encode(),
    ],
)
def test_a_job_that_cannot_be_read_is_named(tmp_path: Path, data: bytes) -> None:
    output = folder(tmp_path)
    output.write(output.job, [data])
    with pytest.raises(UsageError, match=rf"{tmp_path}/_job/job\.json cannot be read"):
        read_job(output)
