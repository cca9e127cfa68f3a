"""Groups of options that several commands share, each with the checks of its values."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar

from pipeline.commands.options.declare import Options, number_within, option
from pipeline.errors import UsageError
from transforms.output.layout import MAX_SHARD_BYTES, RECORD, TEXT, OutputFormat, VectorType
from transforms.tei.credentials import parse_header
from transforms.tei.settings import EndpointSettings, Overlong

_MIB = 1 << 20
_DAY = 86_400  # seconds


def absolute(path: str, option: str = "--input") -> str:
    """Return a local path made absolute, so that a run from another folder means the same; any other path as it is."""
    if not path.strip():
        raise UsageError(
            f"{option} is empty. Give a path, a folder or a pattern; a variable in its place may not be set."
        )
    if found := re.match(r"([a-z][a-z0-9+.-]*://)(/|$)?", path, re.IGNORECASE):
        if found[2] is not None:
            raise UsageError(
                f"{option} {path} names no bucket. Write {found[1]}BUCKET/FOLDER; a variable in it may not be set."
            )
        return found[1].lower() + path[found.end(1) :]
    return os.path.abspath(os.path.expanduser(path)) + ("/" if path.endswith("/") else "")


def output_folder(path: str) -> str:
    """Return the output folder, absolute where it is local, without a final slash."""
    if not path.strip("/"):
        raise UsageError(f"--output {path!r} names no folder. Give a folder of its own.")
    return absolute(path, "--output").rstrip("/")


@dataclass(frozen=True, kw_only=True)
class InputOptions(Options):
    """What is read."""

    TITLE: ClassVar[str] = "data"

    inputs: tuple[str, ...] = option(
        "--input",
        parse=absolute,
        repeatable=True,
        metavar="PATTERN",
        meaning="NDJSON files, also compressed (.gz, .bz2, .zst): path, folder, or pattern with *, ?, **; repeatable",
    )
    exclude: tuple[str, ...] = option(
        default=(),
        repeatable=True,
        metavar="PATTERN",
        meaning="leave out files or folders of this name or path below --input, with *, ?, **; repeatable",
    )


@dataclass(frozen=True, kw_only=True)
class OutputOptions(Options):
    """The folder that every command works on which continues or examines a job."""

    TITLE: ClassVar[str] = "data"

    output: str = option(parse=output_folder, metavar="FOLDER", meaning="the output folder")


def _former_output(path: str) -> str:
    return absolute(path, "--reuse").rstrip("/")


@dataclass(frozen=True, kw_only=True)
class ReuseOptions(Options):
    """Where vectors may come from besides the output folder."""

    TITLE: ClassVar[str] = "data"

    reuse: tuple[str, ...] = option(
        default=(),
        parse=_former_output,
        repeatable=True,
        metavar="FOLDER",
        meaning="another output folder, whose vectors are used again where texts are equal; repeatable",
    )


@dataclass(frozen=True, kw_only=True)
class MovedInputOptions(Options):
    """Where inputs are that have moved since they were embedded."""

    TITLE: ClassVar[str] = "data"

    inputs: tuple[str, ...] = option(
        "--input",
        default=(),
        parse=absolute,
        repeatable=True,
        metavar="PATTERN",
        meaning="where the inputs are now, if they have moved; repeatable",
    )


@dataclass(frozen=True, kw_only=True)
class RecordOptions(Options):
    """What a record is, and how many of them make a shard."""

    TITLE: ClassVar[str] = "data"

    text_fields: tuple[str, ...] = option(
        "--text_field",
        default=("content",),
        repeatable=True,
        metavar="NAME",
        meaning="field of the text, dotted for a nested one; repeatable: several are joined by newlines",
    )
    embedding_field: str = option(default="embedding", metavar="NAME", meaning="field that gets the vector")
    shard_bytes: int = option(
        default=16 * _MIB,
        parse=number_within(int, 1, MAX_SHARD_BYTES),
        metavar="BYTES",
        meaning="size of a shard, the part of an input that becomes one output file",
    )

    @property
    def text_field(self) -> str | tuple[str, ...]:
        """One name, or several as a tuple."""
        return self.text_fields[0] if len(self.text_fields) == 1 else self.text_fields

    def __post_init__(self) -> None:
        """Refuse names that no field can have, and a vector in place of the text."""
        super().__post_init__()
        for name in self.text_fields:
            if not name or not all(name.split(".")):
                raise UsageError(
                    f"--text_field {name!r} has an empty part. Write it as content, or as meta.body for a nested field."
                )
        if not self.embedding_field or re.search(r'["\\/\x00-\x1f]', self.embedding_field):
            raise UsageError(
                f"--embedding_field {self.embedding_field!r} is empty or holds a quotation mark, a slash, a backslash "
                "or a control character. Use a plain name."
            )
        for name in self.text_fields:
            if self.embedding_field in (name, name.split(".")[0]):
                raise UsageError(
                    f"--embedding_field {self.embedding_field} would overwrite the text, which is in --text_field "
                    f"{name}."
                )


@dataclass(frozen=True, kw_only=True)
class FormatOptions(RecordOptions):
    """What the embedded records look like."""

    TITLE: ClassVar[str] = "data"

    output_format: OutputFormat = option(
        default=OutputFormat.NDJSON,
        choices=OutputFormat,
        meaning="ndjson: each line with its vector; parquet: about a third of the size, and loads faster",
    )
    vector_type: VectorType = option(
        default=VectorType.FLOAT32,
        choices=VectorType,
        meaning="type of the vectors' numbers in Parquet; float16 halves their size",
    )
    columns: tuple[str, ...] = option(
        "--column",
        default=(),
        repeatable=True,
        metavar="NAME",
        meaning="field that gets a column of its own in Parquet, dotted for a nested one; repeatable",
    )

    def __post_init__(self) -> None:
        """Refuse what only Parquet has in NDJSON, and names that two columns would have."""
        super().__post_init__()
        if self.output_format is OutputFormat.NDJSON:
            given = [f"--vector_type {self.vector_type.value}"] if self.vector_type is not VectorType.FLOAT32 else []
            given += [f"--column {name}" for name in self.columns]
            if given:
                raise UsageError(f"{given[0]} is for Parquet. Add --output_format parquet, or leave it out.")
            return
        taken = (RECORD, TEXT)
        if self.embedding_field in taken:
            raise UsageError(
                f"--embedding_field {self.embedding_field} is the name of another column of Parquet. Choose another."
            )
        for name in self.columns:
            if not name or not all(name.split(".")):
                raise UsageError(
                    f"--column {name!r} has an empty part. Write it as id, or as meta.lang for a nested field."
                )
            if name in (*taken, self.embedding_field):
                raise UsageError(
                    f"--column {name} is the name of a column that every Parquet output has. Leave it out: the field "
                    f"is in the column {RECORD}."
                )
            if self.columns.count(name) > 1:
                raise UsageError(f"--column {name} is given twice. Give it once.")


@dataclass(frozen=True, kw_only=True)
class DeadLetterOptions(Options):
    """When dead letters are too many."""

    TITLE: ClassVar[str] = "limits and cost"

    max_dead_letter_ratio: float = option(
        default=0.01,
        parse=number_within(float, 0, 1),
        metavar="SHARE",
        meaning="end with exit code 4 if a larger share of the records become dead letters",
    )


@dataclass(frozen=True, kw_only=True)
class PriceOptions(Options):
    """What turns time into money."""

    TITLE: ClassVar[str] = "limits and cost"

    price_per_hour: float | None = option(
        default=None,
        parse=number_within(float, 0),
        metavar="DOLLARS",
        meaning="price of the endpoint, from which costs follow",
    )


def _base_url(url: str) -> str:
    route = re.search(r"(/v1)?/(embed|embeddings|info|health)/*$", url)
    if route:
        raise UsageError(f"--endpoint is the address of one route. Give the server's base URL, without {route[0]}.")
    return url.rstrip("/")


def _header(text: str) -> tuple[str, str]:
    try:
        return parse_header(text)
    except ValueError as error:
        raise _refused(error) from None


def _refused(error: ValueError | str) -> UsageError:
    """Return an error to be raised `from None`: what caused it may hold the secret that the message leaves out."""
    return UsageError(f"{error}. See --endpoint, --token and --header in tayyar run --help.")


def _model_folder(path: str) -> str:
    found = absolute(path, "--model")
    if not os.path.exists(found):
        raise UsageError(
            f"--model {path} does not exist. Give the folder of an ONNX export, or leave --model out for the built-in "
            "model."
        )
    return found


@dataclass(frozen=True, kw_only=True)
class ConnectionOptions(Options):
    """How to reach an endpoint. Fields have the names of `EndpointSettings`."""

    TITLE: ClassVar[str] = "endpoint"

    urls: tuple[str, ...] = option(
        "--endpoint",
        default=(),
        parse=_base_url,
        repeatable=True,
        metavar="URL",
        meaning="base URL of a TEI server; repeatable for several of one model "
        "(default: a server that Tayyar starts here, with a small multilingual model, for trying)",
    )
    model: str | None = option(
        default=None,
        parse=_model_folder,
        metavar="FOLDER",
        meaning="without --endpoint, the model of the server that Tayyar starts: the folder of an ONNX export, or one "
        "of its .onnx files (default: a small one of Tayyar's own)",
    )
    token: str | None = option(
        default=None,
        metavar="REFERENCE",
        meaning="where the bearer token is: env:NAME, file:PATH or gsm:projects/…/secrets/…/versions/…",
    )
    headers: tuple[tuple[str, str], ...] = option(
        "--header",
        default=(),
        parse=_header,
        repeatable=True,
        metavar="'NAME: REFERENCE'",
        meaning="another header, its value by a reference like --token's, or literal:VALUE for what is plainly no "
        "secret; repeatable",
    )
    max_in_flight: int | None = option(
        default=None,
        parse=number_within(int, 1),
        metavar="TEXTS",
        meaning="texts in flight from one process (default: what the server permits)",
    )
    request_timeout: float = option(
        default=60.0,
        parse=number_within(float, 0.001, _DAY),
        metavar="SECONDS",
        meaning="time that one request may take",
    )
    give_up_after: float = option(
        default=600.0,
        parse=number_within(float, 0, 30 * _DAY),
        metavar="SECONDS",
        meaning="time without a single success after which the command ends",
    )

    def __post_init__(self) -> None:
        """Refuse what no request could be made with."""
        super().__post_init__()
        names = {"authorization"} if self.token is not None else set[str]()
        for name, _ in self.headers:
            if name.lower() in names:
                other = " by --token" if self.token is not None and name.lower() == "authorization" else ""
                raise _refused(f"the header {name} is already set{other}; give it once")
            names.add(name.lower())
        _ = self.endpoint  # whose values are checked when it is made
        if self.model is not None and self.urls:
            raise UsageError(
                f"--model {self.model} is for a server that Tayyar starts, but --endpoint names one, which has its own "
                "model. Give one of the two."
            )

    @cached_property
    def endpoint(self) -> EndpointSettings:
        """Where and how to embed; without a URL for the embedded TEI."""
        return self._settings(ConnectionOptions)

    def _settings(self, group: type[ConnectionOptions]) -> EndpointSettings:
        """Return the settings that a group declares; other options of a command may have the name of one by chance."""
        names = {each.name for each in fields(EndpointSettings)}
        given = {each.name: getattr(self, each.name) for each in fields(group) if each.name in names}
        try:
            return EndpointSettings(**given)
        except ValueError as error:
            raise _refused(error) from None


@dataclass(frozen=True, kw_only=True)
class EndpointOptions(ConnectionOptions):
    """How to reach an endpoint, and what vectors to ask of it."""

    dimensions: int | None = option(
        default=None,
        parse=number_within(int, 1),
        metavar="N",
        meaning="keep the first N numbers of each vector, where the model is trained for it (default: all)",
    )
    expected_dimensions: int | None = option(
        default=None,
        parse=number_within(int, 1),
        metavar="N",
        meaning="refuse an endpoint whose vectors have another size",
    )
    overlong: Overlong = option(
        default=Overlong.TRUNCATE,
        choices=Overlong,
        meaning="what happens to a text of more tokens than the model reads",
    )
    prompt_name: str | None = option(
        default=None, metavar="NAME", meaning="name of the model's prompt that is put before each text"
    )
    normalize: bool = option(
        "--no_normalize",
        default=True,
        meaning="keep vectors as the model gives them, instead of scaling them to unit norm",
    )

    def __post_init__(self) -> None:
        """Refuse two sizes of one vector."""
        super().__post_init__()
        if self.dimensions is not None and self.expected_dimensions not in (None, self.dimensions):
            raise UsageError(
                f"--expected_dimensions {self.expected_dimensions} contradicts --dimensions {self.dimensions}, "
                "which is the size that vectors will have. Give one of the two."
            )

    @cached_property
    def endpoint(self) -> EndpointSettings:
        """Where and how to embed; without a URL for the embedded TEI."""
        return self._settings(EndpointOptions)
