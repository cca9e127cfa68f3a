"""Keys of texts: 8 bytes by which a vector is found again. Two texts may share one, so texts are always compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from transforms.elements import text_as_sent

KEY_BYTES = 8  # among a billion texts, hardly any two share a key


def key_of(text: str) -> bytes:
    """Return the first 8 bytes of the SHA-256 of a text as sent."""
    return hashlib.sha256(text_as_sent(text)).digest()[:KEY_BYTES]


def encode_keys(texts: Iterable[str]) -> bytes:
    """Return the content of a key file: the texts' keys in their order."""
    return b"".join(map(key_of, texts))
