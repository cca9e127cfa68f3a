"""A TEI server on a GPU: an encoder of PyTorch behind the embedded server's routes.

Besides TEI's routes, `POST /bare` embeds texts in full device batches without HTTP between them, and `GET /device`
returns what the device has done so far.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import orjson
from starlette.requests import Request
from starlette.responses import Response

from pipeline.embedded_tei import server
from pipeline.embedded_tei.app import TeiApp
from pipeline.embedded_tei.device import Device
from pipeline.embedded_tei.engine import Engine
from pipeline.embedded_tei.limits import ServerLimits
from pipeline.embedded_tei.models.registry import EmbeddingModel, Encoded, Encoding, Token, Vectors
from tests.tei_simulator.hash_model import HashModel

_BYTES_PER_TOKEN = 8  # four or five Arabic letters, about what a token of XLM-RoBERTa has
_VOCABULARY = 30_522
_MAX_INPUT_LENGTH = 256
_SWITCH_SECONDS = 0.0005


class Size(NamedTuple):
    """Layers, hidden size and attention heads of an encoder; feed-forward layers have four times the hidden size."""

    layers: int
    hidden: int
    heads: int


SIZES = {"minilm": Size(6, 384, 12), "base": Size(12, 768, 12), "large": Size(24, 1024, 16)}


class TorchEncoder:
    """A BERT-like encoder: mean pooling, unit norm, random weights, which cost what trained ones do.

    PyTorch's fast path for encoders drops the padding of a batch, as the flash attention of TEI does. A token is eight
    bytes of UTF-8, so that tokenization costs next to nothing; longer texts are always cut at the right.

    Args:
        name: of a size.
    """

    sha: str | None = None
    pooling = "mean"
    max_input_length = _MAX_INPUT_LENGTH
    prompts: Mapping[str, str] = {}
    default_prompt: str | None = None
    raw_norm = 1.0
    is_instant = False

    def __init__(self, name: str) -> None:
        import torch  # here, because the hash model is served without it

        size = SIZES[name]
        torch.manual_seed(0)
        has_gpu = torch.cuda.is_available()
        place = {"device": "cuda" if has_gpu else "cpu", "dtype": torch.float16 if has_gpu else torch.float32}
        layer = torch.nn.TransformerEncoderLayer(
            size.hidden, size.heads, 4 * size.hidden, activation="gelu", batch_first=True
        )
        self._torch = torch
        self._encoder = torch.nn.TransformerEncoder(layer, size.layers).eval().to(**place)
        self._tokens = torch.randn(_VOCABULARY, size.hidden).to(**place)
        self._positions = torch.randn(_MAX_INPUT_LENGTH, size.hidden).to(**place)
        self.model_id = f"random/{name}"
        self.dtype = str(place["dtype"]).removeprefix("torch.")
        self.dimensions = size.hidden
        self.device = torch.cuda.get_device_name() if has_gpu else "CPU"

    def encode(self, text: str, prompt: str, encoding: Encoding) -> Encoded:
        """Keep the bytes of prompt + text as its token ids."""
        data = (prompt + text).encode()
        length = -(-len(data) // _BYTES_PER_TOKEN)
        tokens = min(length, encoding.limit)
        return Encoded(prompt, text, tokens, length, data[: tokens * _BYTES_PER_TOKEN])

    def tokenize(self, text: str, prompt: str, *, special_tokens: bool) -> list[Token]:  # noqa: ARG002 - the protocol's
        """Return a token for each eight bytes; there are no special ones."""
        data = (prompt + text).encode()
        pieces = [(start, data[start : start + _BYTES_PER_TOKEN]) for start in range(0, len(data), _BYTES_PER_TOKEN)]
        return [
            Token(_token_id(piece), piece.decode(errors="replace"), False, start, start + len(piece))
            for start, piece in pieces
        ]

    def embed(self, texts: Sequence[Encoded]) -> Vectors:
        """Return float32[len(texts), dimensions] of unit norm."""
        torch, width = self._torch, max(text.tokens for text in texts) * _BYTES_PER_TOKEN
        data = bytearray().join([bytes(text.ids).ljust(width, b"\0") for text in texts])
        with torch.inference_mode():
            words = torch.frombuffer(data, dtype=torch.int64).reshape(len(texts), -1).to(self._tokens.device)
            is_padding = words == 0
            inputs = self._tokens[words % _VOCABULARY] + self._positions[: words.shape[1]]
            outputs = self._encoder(inputs, src_key_padding_mask=is_padding)
            sums = outputs.masked_fill(is_padding.unsqueeze(2), 0).sum(dim=1, dtype=torch.float32)
            vectors: Vectors = torch.nn.functional.normalize(sums, dim=1).cpu().numpy()
        return vectors


def _token_id(piece: bytes) -> int:
    return int.from_bytes(piece.ljust(_BYTES_PER_TOKEN, b"\0"), "little", signed=True) % _VOCABULARY


class RecordingDevice(Device):
    """A device that keeps when it worked, measured in its own thread.

    Attributes:
        batches: texts, start and end of each batch; seconds of `time.perf_counter`, which Linux counts for all
            processes alike.
    """

    def __init__(self, model: EmbeddingModel, limits: ServerLimits) -> None:
        super().__init__(model, limits)
        self.batches: list[tuple[int, float, float]] = []
        self._worker = ThreadPoolExecutor(1, "recording device")

    async def compute(self, texts: Sequence[Encoded]) -> Vectors:
        """Return what the model returns for one batch."""
        return await self.in_thread(lambda: self.embed(texts))

    async def in_thread(self, work: Callable[[], Vectors]) -> Vectors:
        """Run work in the device's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    def embed(self, texts: Sequence[Encoded]) -> Vectors:
        """Return the vectors of one batch, in the calling thread."""
        started = time.perf_counter()
        vectors = self.model.embed(texts)
        self.batches.append((len(texts), started, time.perf_counter()))
        return vectors


class GpuTei(TeiApp):
    """The application with two more routes.

    Args:
        model: what computes.
        limits: what is permitted.
    """

    def __init__(self, model: EmbeddingModel, limits: ServerLimits) -> None:
        self._recording = RecordingDevice(model, limits)
        super().__init__(Engine(self._recording, limits))
        self.routes["/bare"] = {"POST": self._bare}
        self.routes["/device"] = {"GET": self._device}

    async def _bare(self, request: Request) -> Response:
        """Embed the body's `inputs` again and again, in full batches of texts of a length, for so many `seconds`."""
        body = orjson.loads(await request.body())
        encoding = Encoding(self.engine.max_input_length)
        texts = sorted(
            (self._recording.model.encode(text, "", encoding) for text in body["inputs"]),
            key=lambda text: text.tokens,
        )
        batches = list(full_batches(texts, self.engine.limits.max_batch_tokens))

        def work() -> Vectors:
            ends = time.perf_counter() + body["seconds"]
            for batch in itertools.cycle(batches):
                vectors = self._recording.embed(batch)
                if time.perf_counter() > ends:
                    break
            return vectors

        await self._recording.in_thread(work)
        return Response()

    async def _device(self, _: Request) -> Response:
        name = getattr(self._recording.model, "device", "no device")
        return Response(orjson.dumps({"name": name, "batches": self._recording.batches}))


def full_batches(texts: Sequence[Encoded], max_tokens: int) -> Iterator[list[Encoded]]:
    """Yield texts in batches of as many tokens as are permitted; the last may be smaller."""
    batch: list[Encoded] = []
    total = 0
    for text in texts:
        if batch and total + text.tokens > max_tokens:
            yield batch
            batch, total = [], 0
        batch.append(text)
        total += text.tokens
    if batch:
        yield batch


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.benchmark.gpu_server", description=__doc__, allow_abbrev=False)
    server.add_server_arguments(parser, ServerLimits())
    parser.add_argument("--model", choices=["hash", *SIZES], default="minilm")
    options = parser.parse_args()
    # The device's thread needs the interpreter's lock after each call of PyTorch, and a busy event loop would keep it
    # waiting for 5 ms each time.
    sys.setswitchinterval(_SWITCH_SECONDS)
    model: EmbeddingModel = HashModel() if options.model == "hash" else TorchEncoder(options.model)
    app = GpuTei(model, server.limits_of(options, ServerLimits()))
    listener = server.bind(options.host, options.port)
    server.run(server.Server(server.config_of(app)), listener, exit_with_parent=options.exit_with_parent)


if __name__ == "__main__":
    main()
