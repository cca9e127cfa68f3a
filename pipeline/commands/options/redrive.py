"""The options of `redrive`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.commands.options.declare import option
from pipeline.commands.options.shared import ConnectionOptions, MovedInputOptions, OutputOptions


@dataclass(frozen=True, kw_only=True)
class RedriveOptions(OutputOptions, MovedInputOptions, ConnectionOptions):
    """The options of `redrive`: how to embed is in the job, and only how to reach the endpoint is asked for."""

    TITLE: ClassVar[str] = "data"
    SUMMARY: ClassVar[str] = "send dead letters again, and put those that succeed in their places"
    EXAMPLE: ClassVar[str] = (
        "tayyar redrive --output embedded --endpoint http://127.0.0.1:8080 \\\n    --reason rejected_by_endpoint"
    )

    reasons: tuple[str, ...] = option(
        "--reason",
        default=(),
        repeatable=True,
        metavar="REASON",
        meaning="send only dead letters of this reason; repeatable",
    )
