"""WriteDeadLetters: one file of dead letters for each shard that has any."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import orjson

from transforms.elements import DeadLetter, Reason, ShardDeadLetters, Stage
from transforms.output.folder import OutputFolder
from transforms.output.json_fields import build_dataclass


def encode_dead_letter(letter: DeadLetter) -> bytes:
    """Return a dead letter as one line of JSON, newline included."""
    fields: dict[str, Any] = {
        "source": letter.source,
        "offset": letter.offset,
        "stage": letter.stage,
        "reason": letter.reason,
        "detail": letter.detail,
        "http_status": letter.http_status,
        "attempts": letter.attempts,
    }
    try:
        fields["line"] = letter.line.decode("utf-8")
    except UnicodeDecodeError:
        fields["line_base64"] = base64.b64encode(letter.line).decode()
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def decode_dead_letter(line: bytes) -> DeadLetter:
    """Return the dead letter that `encode_dead_letter` wrote.

    Raises:
        ValueError: if the line is none.
    """
    try:
        fields: dict[str, Any] = orjson.loads(line)
        text, encoded = fields.pop("line", None), fields.pop("line_base64", None)
        fields["line"] = base64.b64decode(encoded) if text is None else text.encode("utf-8")
        fields["stage"], fields["reason"] = Stage(fields["stage"]), Reason(fields["reason"])
        return build_dataclass(DeadLetter, fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this is not a dead letter: {error}") from error


@dataclass
class WriteDeadLetters(beam.PTransform):  # type: ignore[misc] # Beam ships no types
    """`ShardDeadLetters` in, one file each; nothing out.

    Attributes:
        output: where to.
    """

    output: OutputFolder

    def expand(self, dead_letters: beam.PCollection) -> beam.PCollection:
        """Wire it."""
        return dead_letters | beam.ParDo(_WriteDeadLetters(self.output))


@dataclass
class _WriteDeadLetters(beam.DoFn):  # type: ignore[misc]
    output: OutputFolder

    def process(self, shard: ShardDeadLetters) -> None:
        self.output.write(self.output.dead_letters(shard.shard.name), map(encode_dead_letter, shard.dead_letters))
