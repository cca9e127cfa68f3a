from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.job.spec import JobSpec, ServedModel, encode_job, join, read_job, rename_line, write_job
from tests.shards import folder
from transforms.output.layout import Column
from transforms.tei.settings import ModelIdentity, Overlong
from transforms.tei.vector_space import PROBE_TEXTS, VectorSpace

MODEL = ModelIdentity("intfloat/multilingual-e5-small", "abc", "float32", "mean", 384, "1.9.3")


def space(seed: int = 1, noise: float = 0.0, dimensions: int = 384, *, normalized: bool = True) -> VectorSpace:
    """Probe vectors of a model that is its seed, with a little of another model's in them."""
    rows, others = (np.random.default_rng(each).normal(size=(len(PROBE_TEXTS), dimensions)) for each in (seed, 99))
    rows = rows + noise * others
    return VectorSpace.of(
        (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), normalized=normalized
    )


SPACE = space()
JOB = JobSpec(
    space=SPACE,
    history=(ServedModel.of(MODEL, None, datetime(2026, 1, 2, tzinfo=timezone.utc)),),
    overlong=Overlong.TRUNCATE,
    dimensions=None,
    text_field="content",
    embedding_field="embedding",
    shard_bytes=16 << 20,
    inputs=("/in/*.ndjson",),
    wire_format="/embed, JSON",
    version="0.1.0",
)
SERVED = JOB.served

OTHER_SETTINGS: dict[str, Any] = {
    "overlong": Overlong.DEAD_LETTER,
    "text_field": ("title", "body"),
    "embedding_field": "vector",
    "shard_bytes": 1,
    "output_format": "parquet",
    "vector_type": "float16",
    "columns": (Column("id", "string"),),
}
ONLY_RECORDED: dict[str, Any] = {
    "inputs": ("/other/*.ndjson",),
    "wire_format": "/v1/embeddings, base64",
    "version": "9.9",
    "exclude": ("**/old",),
    "pyarrow": "99.0.0",
    "dimensions": 384,
}


def test_every_field_is_the_space_a_name_a_setting_or_only_recorded() -> None:
    names = {field.name for field in dataclasses.fields(JobSpec)}
    assert names == {"space", "history", *OTHER_SETTINGS, *ONLY_RECORDED}


def test_an_empty_folder_takes_any_job() -> None:
    assert join(None, JOB, "/out") == JOB


@pytest.mark.parametrize("name", [*OTHER_SETTINGS, *ONLY_RECORDED])
def test_whatever_else_changes_a_run_of_the_same_space_may_join(name: str) -> None:
    new = dataclasses.replace(JOB, **{name: (OTHER_SETTINGS | ONLY_RECORDED)[name]})
    assert join(JOB, new, "/out") == new


def test_the_recorded_space_stays_though_the_measured_one_differs_a_little() -> None:
    measured = space(noise=0.001)
    assert measured.digest != SPACE.digest
    joined = join(JOB, dataclasses.replace(JOB, space=measured), "/out")
    assert joined.space == SPACE
    assert joined.digest == JOB.digest


def test_other_vectors_are_refused_with_both_names_and_the_worst_cosine_whatever_the_names() -> None:
    served = dataclasses.replace(SERVED, server_version="1.9.4", prompt_name="query")
    new = dataclasses.replace(JOB, space=space(noise=0.2), history=(served,))
    with pytest.raises(UsageError) as refused:
        join(JOB, new, "/out")
    worst = SPACE.worst_cosine(new.space)
    assert 0.9 < worst < 0.999
    for words in (f"{worst:.4f}", "TEI 1.9.3", "TEI 1.9.4", "the default prompt", "'query'", "--overwrite", "/out"):
        assert words in str(refused.value)
    with pytest.raises(UsageError, match="holds the vectors of another model"):  # names agree
        join(JOB, dataclasses.replace(JOB, space=space(2)), "/out")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (space(dimensions=768), "they have 384 dimensions, those of the endpoint have 768"),
        (space(normalized=False), "they are normalized, those of the endpoint would be not normalized"),
    ],
)
def test_other_dimensions_and_lengths_are_named(other: VectorSpace, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        join(JOB, dataclasses.replace(JOB, space=other), "/out")


@pytest.mark.parametrize(
    "change",
    [
        {"model_id": "/repository"},
        {"revision": None},
        {"dtype": "float16"},
        {"pooling": "cls"},
        {"server_version": "2.0"},
        {"prompt_name": "passage"},
    ],
)
def test_the_same_vectors_under_another_name_go_on_and_the_history_grows(change: dict[str, Any]) -> None:
    served = dataclasses.replace(SERVED, since="2026-03-04T00:00:00+00:00", **change)
    joined = join(JOB, dataclasses.replace(JOB, history=(served,)), "/out")
    assert joined.history == (SERVED, served)
    assert joined.digest == JOB.digest
    line = rename_line(JOB, joined)
    assert line is not None
    assert str(SERVED) in line
    assert str(served) in line
    assert "\n" not in line


def test_the_same_names_leave_the_history_as_it_is() -> None:
    later = dataclasses.replace(SERVED, since="2026-03-04T00:00:00+00:00")
    joined = join(JOB, dataclasses.replace(JOB, history=(later,)), "/out")
    assert joined.history == (SERVED,)
    assert rename_line(JOB, joined) is None
    assert rename_line(None, JOB) is None


def test_the_history_does_not_grow_without_end() -> None:
    job = JOB
    for number in range(300):
        served = dataclasses.replace(SERVED, server_version=str(number))
        job = join(job, dataclasses.replace(JOB, history=(served,)), "/out")
    assert len(job.history) == 100
    assert job.served.server_version == "299"


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_receipts_tell_settings_apart_that_shape_a_shards_files(name: str) -> None:
    assert dataclasses.replace(JOB, **{name: OTHER_SETTINGS[name]}).digest != JOB.digest


@pytest.mark.parametrize("name", ONLY_RECORDED)
def test_receipts_do_not_care_for_what_shapes_nothing(name: str) -> None:
    assert dataclasses.replace(JOB, **{name: ONLY_RECORDED[name]}).digest == JOB.digest


def test_receipts_name_the_recorded_space_and_who_made_them() -> None:
    made = JOB.provenance
    assert made.space == SPACE.digest
    assert (made.model, made.server_version) == (MODEL.model_id, "1.9.3")
    assert made.digest == JOB.digest == f"{made.space}-{made.settings}"
    assert dataclasses.replace(JOB, space=space(2)).digest != JOB.digest


def test_the_settings_digest_is_a_contract() -> None:
    assert JOB.provenance.settings == "652321d4542e8aaf"


def test_a_job_is_read_as_it_was_written(tmp_path: Path) -> None:
    output = folder(tmp_path)
    assert read_job(output) is None
    served = dataclasses.replace(SERVED, revision=None, prompt_name="query", pooling=None)
    for job in (
        JOB,
        dataclasses.replace(JOB, history=(SERVED, served), text_field=("title", "body")),
        dataclasses.replace(JOB, space=space(normalized=False), dimensions=384),
    ):
        write_job(job, output)
        assert read_job(output) == job
    assert json.loads(output.read(output.job) or b"")["format"] == 2


def damaged(**change: Any) -> bytes:
    return json.dumps(json.loads(encode_job(JOB)) | change).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"5",
        b"null",
        damaged(format=3),
        damaged(format="2"),
        damaged(overlong="split"),
        damaged(unknown=1),
        damaged(history=[]),
        damaged(history=[{}]),
        damaged(history=[dataclasses.asdict(SERVED) | {"since": "yesterday"}]),
        damaged(shard_bytes=0),
        damaged(shard_bytes=1 << 60),
        damaged(shard_bytes="16"),
        damaged(inputs=[1]),
        damaged(text_field=[]),
        damaged(dimensions=768),
        damaged(space={}),
        damaged(space={"probes": ["AAAA"] * 6, "normalized": True, "min_cosine": 0.999}),
        damaged(space={"probes": SPACE.to_base64(), "normalized": 1, "min_cosine": 0.999}),
        damaged(space={"probes": SPACE.to_base64(), "normalized": True, "min_cosine": 0.5}),
        damaged(space={"probes": SPACE.to_base64()[:5], "normalized": True, "min_cosine": 0.999}),
    ],
)
def test_a_job_that_cannot_be_read_is_named(tmp_path: Path, data: bytes) -> None:
    output = folder(tmp_path)
    output.write(output.job, [data])
    with pytest.raises(UsageError, match=rf"{tmp_path}/_job/job\.json cannot be read"):
        read_job(output)


def test_a_folder_of_the_first_edition_is_refused_in_one_sentence(tmp_path: Path) -> None:
    output = folder(tmp_path)
    former = {"model": dataclasses.asdict(MODEL), "normalize": True, "text_field": "content", "format": 1}
    output.write(output.job, [json.dumps(former).encode()])
    with pytest.raises(
        UsageError, match=rf"^{tmp_path} was written by Tayyar's first edition.*Choose another --output"
    ):
        read_job(output)
