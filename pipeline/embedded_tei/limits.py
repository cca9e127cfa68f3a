"""The server's settings, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a TEI server is started with.

    Attributes:
        max_concurrent_requests: permits, one per text.
        max_client_batch_size: texts in one request.
        max_batch_tokens: tokens in one device batch.
        max_batch_requests: texts in one device batch; None for no limit.
        max_input_length: tokens of one text; None for the model's maximum.
        payload_limit: bytes of one request's body.
        auto_truncate: whether a text that is too long is cut unless the request decides.
        api_key: the bearer token that requests must carry; None for none.
        tokenization_workers: reported in `/info`.
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

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: naming the setting, its value and the values it may have.
        """
        for name in ("max_concurrent_requests", "max_client_batch_size", "max_batch_tokens", "payload_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("max_batch_requests", "max_input_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")
