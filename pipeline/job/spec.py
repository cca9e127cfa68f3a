"""The job: the vector space of an output folder, the names that its model went by, and the last run's settings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, fields, replace
from datetime import datetime
from typing import Any

import orjson

from pipeline.errors import UsageError
from pipeline.job.preflight import as_usage_errors
from transforms.ndjson.parse import TextField
from transforms.output.folder import OutputFolder
from transforms.output.json_fields import build_dataclass, require_string
from transforms.output.layout import (
    FLOAT32,
    MAX_SHARD_BYTES,
    NDJSON,
    OUTPUT_FORMATS,
    VECTOR_TYPES,
    Column,
    Layout,
    decode_columns,
)
from transforms.output.receipts import Provenance
from transforms.tei.settings import EndpointSettings, ModelIdentity, Overlong
from transforms.tei.vector_space import VectorSpace

FORMAT = 2  # the first edition wrote 1, without probe vectors
_MAX_HISTORY = 100  # entries that are kept, the latest: a server may be updated every week for years


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The names that a server gave its model, and since when it was used for this folder.

    Attributes:
        model_id: the model's name or path.
        revision: the server's `--revision`; None where it has none.
        dtype: what the model computes in.
        pooling: how token vectors become one.
        server_version: the server's.
        prompt_name: the prompt that was put before each text; None for the server's default.
        since: ISO 8601, with its time zone.
    """

    model_id: str
    revision: str | None
    dtype: str
    pooling: str | None
    server_version: str
    prompt_name: str | None
    since: str

    @classmethod
    def of(cls, identity: ModelIdentity, prompt_name: str | None, since: datetime) -> ServedModel:
        """Return the names that a handshake found."""
        return cls(
            model_id=identity.model_id,
            revision=identity.sha,
            dtype=identity.dtype,
            pooling=identity.pooling,
            server_version=identity.server_version,
            prompt_name=prompt_name,
            since=since.isoformat(timespec="seconds"),
        )

    def has_names_of(self, other: ServedModel) -> bool:
        """Return whether all names are equal, whatever the time."""
        return replace(self, since="") == replace(other, since="")

    def __str__(self) -> str:
        """Describe it for a person."""
        revision = f", revision {self.revision}" if self.revision else ""
        prompt = "the default prompt" if self.prompt_name is None else f"prompt {self.prompt_name!r}"
        return f"{self.model_id}{revision}, {self.dtype}, TEI {self.server_version}, {prompt}"


@dataclass(frozen=True, slots=True)
class JobSpec:
    """The content of job.json.

    Only the vector space decides whether a run may join a folder. All else may change from run to run; shards that do
    not fit the new settings are done again, with the vectors that the folder holds already.

    Attributes:
        space: the vector space, as measured by the folder's first run.
        history: the names that its model went by, oldest first; at least one.
        overlong: what happens to a text of more tokens than the model reads.
        dimensions: numbers of a vector that were asked for; None for all that the model gives.
        text_field: the field that is embedded, or several.
        embedding_field: the field that gets the vector.
        shard_bytes: decompressed bytes a shard.
        inputs: the patterns, as given but absolute.
        wire_format: how vectors came over the wire; recorded, shapes nothing.
        version: Tayyar's; recorded, shapes nothing.
        output_format: of the embedded records, `ndjson` or `parquet`.
        vector_type: in which the vectors' numbers are written, `float32` or `float16`.
        columns: of Parquet, beside the record, its text and its vector; with the type that each has in all files.
        pyarrow: the version that writes Parquet; None for NDJSON. Recorded, shapes nothing.
        exclude: patterns of files that are left out of the inputs; recorded, shapes nothing.
    """

    space: VectorSpace
    history: tuple[ServedModel, ...]
    overlong: Overlong
    dimensions: int | None
    text_field: TextField
    embedding_field: str
    shard_bytes: int
    inputs: tuple[str, ...]
    wire_format: str
    version: str
    output_format: str = NDJSON
    vector_type: str = FLOAT32
    columns: tuple[Column, ...] = ()
    pyarrow: str | None = None
    exclude: tuple[str, ...] = ()

    @property
    def served(self) -> ServedModel:
        """The names of the model that the last run used."""
        return self.history[-1]

    @property
    def model(self) -> ModelIdentity:
        """The same names as the endpoint's client has them."""
        served = self.served
        return ModelIdentity(
            model_id=served.model_id,
            sha=served.revision,
            dtype=served.dtype,
            pooling=served.pooling,
            dimensions=self.space.dimensions,
            server_version=served.server_version,
        )

    @property
    def prompt_name(self) -> str | None:
        """The prompt of the last run; None for the server's default."""
        return self.served.prompt_name

    @property
    def normalize(self) -> bool:
        """Whether vectors have unit norm."""
        return self.space.normalized

    def apply_to(self, endpoint: EndpointSettings) -> EndpointSettings:
        """Return an endpoint's settings with those under which this job's vectors were made."""
        return replace(
            endpoint,
            prompt_name=self.prompt_name,
            normalize=self.normalize,
            overlong=self.overlong,
            dimensions=self.dimensions,
        )

    @property
    def provenance(self) -> Provenance:
        """What receipts record of how their shards were made."""
        return Provenance(
            space=self.space.digest,
            settings=self._settings_digest(),
            model=self.served.model_id,
            server_version=self.served.server_version,
            text_field=self.text_field,
            embedding_field=self.embedding_field,
            overlong=self.overlong.value,
            vector_type=self.vector_type,
        )

    @property
    def layout(self) -> Layout:
        """What the shards' outputs look like."""
        return Layout(self.output_format, self.embedding_field, self.vector_type, self.columns)

    @property
    def digest(self) -> str:
        """What a receipt must carry, so that its shard need not be done again."""
        return self.provenance.digest

    def describe_other_space(self, root: str, space: VectorSpace, served: ServedModel) -> str:
        """Return sentences, without a remedy, for an endpoint whose vectors are not of this job's space.

        Args:
            root: the job's folder.
            space: the endpoint's.
            served: the endpoint's model.
        """
        return (
            f"{root} holds the vectors of another model, or of the same one with other settings: "
            f"{self.space.difference(space)}. It was made with {self.served}; the endpoint now serves {served}."
        )

    def _settings_digest(self) -> str:
        """Return 16 hexadecimal digits for what shapes a shard's files besides its vectors."""
        shaping: dict[str, object] = {
            "text_field": self.text_field,
            "embedding_field": self.embedding_field,
            "shard_bytes": self.shard_bytes,
            "overlong": self.overlong.value,
            "output_format": self.output_format,
        }
        # Only where they are not what they always were: digests of folders that exist must stay.
        if self.vector_type != FLOAT32:
            shaping["vector_type"] = self.vector_type
        if self.columns:
            shaping["columns"] = [astuple(column) for column in self.columns]
        return hashlib.sha256(orjson.dumps(shaping, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def join(existing: JobSpec | None, new: JobSpec, root: str) -> JobSpec:
    """Return the job of a run that joins an output folder.

    Args:
        existing: the folder's; None if it has none yet.
        new: of this run alone: the space measured now, one entry of history, the settings.
        root: the folder, for the message.

    Returns:
        the new settings with the space that the folder recorded; its history has grown if the names are new.

    Raises:
        UsageError: if the vectors would be of another space. Nothing else is refused.
    """
    if existing is None:
        return new
    if not existing.space.is_same(new.space):
        raise UsageError(
            f"{existing.describe_other_space(root, new.space, new.served)} "
            "Use the former model and prompt, choose another --output, or start over with --overwrite."
        )
    grown = () if existing.served.has_names_of(new.served) else new.history
    return replace(new, space=existing.space, history=(*existing.history, *grown)[-_MAX_HISTORY:])


def rename_line(existing: JobSpec | None, joined: JobSpec) -> str | None:
    """Return a line for the person at the terminal if the folder's model has other names now; None if not."""
    if existing is None or existing.served.has_names_of(joined.served):
        return None
    return (
        f"the endpoint has other names than before ({existing.served}; now {joined.served}), but its vectors are the "
        "same: the run continues"
    )


def encode_job(job: JobSpec) -> bytes:
    """Return job.json's content."""
    values = {field.name: getattr(job, field.name) for field in fields(job)}
    values["space"] = {
        "probes": job.space.to_base64(),
        "normalized": job.space.normalized,
        "min_cosine": job.space.min_cosine,
    }
    values["history"] = [asdict(served) for served in job.history]
    values["columns"] = [asdict(column) for column in job.columns]
    return orjson.dumps({"format": FORMAT} | values, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def decode_job(data: bytes) -> JobSpec:
    """Return the job that `encode_job` wrote.

    Raises:
        ValueError: if the bytes are anything else.
    """
    try:
        values: dict[str, Any] = orjson.loads(data)
        if values.pop("format") != FORMAT:
            raise ValueError("its format is not known")
        space = values["space"]
        if type(space["normalized"]) is not bool or type(space["min_cosine"]) not in (int, float):
            raise ValueError("its space has values of another type")
        values["space"] = VectorSpace.from_base64(
            space["probes"], normalized=space["normalized"], min_cosine=space["min_cosine"]
        )
        values["history"] = tuple(_served(entry) for entry in values["history"])
        values["overlong"] = Overlong(values["overlong"])
        values["inputs"] = tuple(require_string(pattern) for pattern in values["inputs"])
        values["exclude"] = tuple(require_string(pattern) for pattern in values["exclude"])
        values["columns"] = decode_columns(values["columns"])
        if isinstance(values["text_field"], list):
            values["text_field"] = tuple(require_string(name) for name in values["text_field"])
        job = build_dataclass(JobSpec, values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this is not a job description: {error}") from error
    if not job.history or not 1 <= job.shard_bytes <= MAX_SHARD_BYTES or not job.text_field or not job.embedding_field:
        raise ValueError("this is not a job description: a value is out of bounds")
    if job.output_format not in OUTPUT_FORMATS or job.vector_type not in VECTOR_TYPES:
        raise ValueError("this is not a job description: its output has an unknown format")
    if job.dimensions is not None and job.dimensions != job.space.dimensions:
        raise ValueError("this is not a job description: its dimensions are not those of its vectors")
    return job


def _served(entry: Mapping[str, Any]) -> ServedModel:
    served = build_dataclass(ServedModel, entry)
    datetime.fromisoformat(served.since)
    return served


def write_job(job: JobSpec, output: OutputFolder) -> None:
    """Save the job."""
    output.write(output.job, [encode_job(job)])


@as_usage_errors()
def read_job(output: OutputFolder) -> JobSpec | None:
    """Return the job whose vectors the folder holds; None for a folder that holds none yet.

    Raises:
        UsageError: if there is a job, but none that this version can read.
    """
    data = output.read(output.job)
    if data is None:
        return None
    if is_first_edition(data):
        raise UsageError(
            f"{output.root} was written by Tayyar's first edition, which kept no record of the vectors of probe "
            "sentences: nothing can show that new vectors would fit. Choose another --output."
        )
    try:
        return decode_job(data)
    except ValueError as error:
        raise UsageError(
            f"{output.path(output.job)} cannot be read ({error}); another version of Tayyar may have written it. "
            "Choose another --output, or start over with --overwrite."
        ) from error


def is_first_edition(data: bytes) -> bool:
    """Return whether job.json is of the format that has no probe vectors."""
    try:
        values = orjson.loads(data)
        return bool(values.get("format") == 1 and isinstance(values["model"]["model_id"], str))
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def require_job(output: OutputFolder) -> JobSpec:
    """Return the job whose vectors the folder holds.

    Raises:
        UsageError: if it holds none.
    """
    job = read_job(output)
    if job is None:
        raise UsageError(f"{output.root} is not an output folder of Tayyar: it has no {output.job}. Check --output.")
    return job
