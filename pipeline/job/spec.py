"""The job: what the vectors of an output folder are, so that two kinds of them never mix."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from typing import Any

import orjson

from pipeline.errors import UsageError
from pipeline.job.preflight import opening
from transforms.ndjson.parse import TextField
from transforms.output.folder import OutputFolder
from transforms.output.json_fields import build
from transforms.tei.settings import ModelIdentity, Overlong

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that shapes vectors and shards, and who made them.

    Attributes:
        model: what the endpoint served.
        wire_format: how vectors came over the wire; recorded, shapes nothing.
        inputs: the patterns, as given but absolute.
        version: Tayyar's; recorded, shapes nothing.
        format: of the output folder; another one is another job.
    """

    model: ModelIdentity
    prompt_name: str | None
    normalize: bool
    overlong: Overlong
    text_field: TextField
    embedding_field: str
    shard_bytes: int
    inputs: tuple[str, ...]
    version: str
    wire_format: str
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that receipts bear: the same for jobs whose shards can stand side by side."""
        shaping = {name: value for name, value in self._shaping().items() if name != "inputs"}
        return hashlib.sha256(orjson.dumps(shaping, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]

    def differences(self, other: Job) -> list[str]:
        """Return a phrase for each setting in which another job's vectors, shards or inputs differ from this one's."""
        mine, theirs = self._shaping(), other._shaping()
        return [f"{name} was {mine[name]!r} and is {theirs[name]!r}" for name in mine if mine[name] != theirs[name]]

    def _shaping(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("model", "version", "wire_format"):
            del values[name]
        values["overlong"] = self.overlong.value
        values["inputs"] = list(self.inputs)
        model = asdict(self.model)
        del model["server_version"]
        return model | values


def write_job(job: Job, output: OutputFolder) -> None:
    """Save what the vectors are."""
    output.write(output.job, [orjson.dumps(job, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)])


@opening()
def read_job(output: OutputFolder) -> Job | None:
    """Return the job whose vectors the folder holds; None for a folder that holds none yet.

    Raises:
        UsageError: if there is a job, but none that this version can read.
    """
    data = output.read(output.job)
    if data is None:
        return None
    try:
        values = orjson.loads(data)
        values["model"] = build(ModelIdentity, values["model"])
        values["overlong"] = Overlong(values["overlong"])
        values["inputs"] = tuple(values["inputs"])
        if isinstance(values["text_field"], list):
            values["text_field"] = tuple(values["text_field"])
        return build(Job, values)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{output.path(output.job)} cannot be read ({error}); another version of Tayyar may have written it. "
            "Choose another --output, or start over with --overwrite."
        ) from error


def require_job(output: OutputFolder) -> Job:
    """Return the job whose vectors the folder holds.

    Raises:
        UsageError: if it holds none.
    """
    job = read_job(output)
    if job is None:
        raise UsageError(f"{output.root} is no output folder of Tayyar: it has no {output.job}. Check --output.")
    return job


def require_same_job(old: Job | None, new: Job, root: str) -> None:
    """Let a run into a folder only if it holds nothing or vectors of the same job.

    Raises:
        UsageError: naming each difference.
    """
    differences = [] if old is None else old.differences(new)
    if differences:
        raise UsageError(
            f"{root} holds the vectors of another job: {'; '.join(differences)}. "
            "Choose another --output, go back to the former settings, or start over with --overwrite."
        )
