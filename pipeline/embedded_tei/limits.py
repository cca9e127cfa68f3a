"""The server's settings, in one place."""

from __future__ import annotations

from dataclasses import dataclass

GENERATIONS = {"1.9": "1.9.3", "1.8": "1.8.2"}


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a TEI server is started with.

    Attributes:
        max_concurrent_requests: permits, one a text.
        max_client_batch_size: texts in one request.
        max_batch_tokens: tokens in one device batch.
        max_batch_requests: texts in one device batch; None for no limit.
        max_input_length: tokens of one text; None for what the model reads.
        payload_limit: bytes of one request's body.
        auto_truncate: whether a text that is too long is cut where a request does not say.
        api_key: the bearer token that requests must carry; None for none.
        tokenization_workers: as `/info` tells it.
        generation: "1.9", or "1.8" for the older answers: 413 in the place of 422, and batches that wait for permits.
        padded: whether a device batch costs its longest text times its size, as on CPUs.
    """

    max_concurrent_requests: int = 512
    max_client_batch_size: int = 32
    max_batch_tokens: int = 16384
    max_batch_requests: int | None = None
    max_input_length: int | None = None
    payload_limit: int = 2_000_000
    auto_truncate: bool = True
    api_key: str | None = None
    tokenization_workers: int = 1
    generation: str = "1.9"
    padded: bool = False

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: naming the setting, its value and what it may be.
        """
        for name in ("max_concurrent_requests", "max_client_batch_size", "max_batch_tokens", "payload_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("max_batch_requests", "max_input_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")
        if self.generation not in GENERATIONS:
            raise ValueError(f"generation is {self.generation!r}: it must be one of {', '.join(GENERATIONS)}")

    @property
    def is_old(self) -> bool:
        """Whether the server answers as TEI did before 1.9."""
        return self.generation == "1.8"

    @property
    def version(self) -> str:
        """The version that `/info` tells."""
        return GENERATIONS[self.generation]
