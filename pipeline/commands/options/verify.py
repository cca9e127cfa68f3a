"""The options of `verify`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.commands.options.declare import number_within, option
from pipeline.commands.options.shared import ConnectionOptions, DeadLetterOptions, MovedInputOptions, OutputOptions
from pipeline.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(OutputOptions, MovedInputOptions, DeadLetterOptions, ConnectionOptions):
    """The options of `verify`: how to embed is in the job, and only how to reach the endpoint is asked for."""

    TITLE: ClassVar[str] = "verification"
    SUMMARY: ClassVar[str] = "prove from inputs and outputs that nothing was lost or changed"
    EXAMPLE: ClassVar[str] = (
        "tayyar verify --output embedded\n"
        "  tayyar verify --output embedded --sample 200 --endpoint http://127.0.0.1:8080"
    )

    processes: int | None = option(
        default=None,
        parse=number_within(int, 1),
        metavar="N",
        meaning="processes that read the files (default: one, or for much data one a processor)",
    )
    sample: int = option(
        default=0,
        parse=number_within(int, 1),
        metavar="N",
        meaning="embed N documents again, chosen at random, and compare their vectors",
    )
    min_cosine: float = option(
        default=0.99,
        parse=number_within(float, -1, 1),
        metavar="COSINE",
        meaning="lowest cosine of two vectors that count as the same; half precision and other batches cost some "
        "thousandths",
    )
    seed: int = option(default=0, parse=int, metavar="N", meaning="seed of the random choice")

    def __post_init__(self) -> None:
        """Refuse an endpoint or a model that nothing would be sent to."""
        super().__post_init__()
        if (self.urls or self.model) and not self.sample:
            name = "--endpoint" if self.urls else "--model"
            raise UsageError(f"{name} is for embedding documents again. Give their number with --sample N.")
