"""A model of the user's own, exported to ONNX, on the CPU through ONNX Runtime; nothing is downloaded.

A folder is read as sentence-transformers' or Optimum's ONNX export writes it. What TEI reads from it is read the same
way: prompts, pooling and length. `default_prompt_name` and `do_lower_case` are followed too, as sentence-transformers
follows them; TEI needs `--default-prompt-name` for the one and does not know the other.
"""

from __future__ import annotations

import itertools
import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import tokenizers

from pipeline.embedded_tei.models.registry import MODELS, Encoded, Encoding, ModelUnavailableError, Token, Vectors
from pipeline.processors import usable_processors

Hidden = npt.NDArray[np.float32]

EXPORT = (
    "python -c \"from sentence_transformers import SentenceTransformer as S; S('MODEL', backend='onnx')"
    ".save_pretrained('FOLDER')\""
)

# Padded tokens of one call of the graph: from 2,048 on the activations no longer fit the caches, and a text costs a
# tenth more CPU (all-MiniLM-L6-v2, measured by tests/benchmark/local_models.py).
_MAX_CALL_TOKENS = 1024
_MAX_PLAUSIBLE_LENGTH = 1_000_000  # a tokenizer without a limit writes 10^30
_POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last_token",
}
_POOLING_NAMES = {"cls": "cls", "mean": "mean", "lasttoken": "last_token"}
_ROBERTA_LIKE = {"roberta", "xlm-roberta", "camembert"}  # their positions begin behind the padding id
_INPUTS = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
_TOKEN_OUTPUTS = ("last_hidden_state", "token_embeddings")
_JSON: dict[type, str] = {dict: "object", list: "array"}
_QUANTIZED_OPERATORS = (b"MatMulInteger", b"DynamicQuantize", b"QuantizeLinear")
_MIN_POOLING_COSINE = 0.9999
_PROBES = ("The river rises in the mountains.", "Bread")


class OnnxModel:
    """The model; see `EmbeddingModel`.

    Args:
        path: the folder, or one of its graphs where it has several.

    Raises:
        ModelUnavailableError: if something is missing or cannot be served; the message names the file and the remedy.
    """

    sha: str | None = None
    raw_norm: float | None = None
    is_instant = False

    def __init__(self, path: Path) -> None:
        folder, graph = locate(path)
        _check_modules(folder)
        config = _read_json(folder / "config.json")
        self.model_id = str(path.absolute())
        self._tokenizer = _load_tokenizer(folder)
        self._is_lowercase = bool(_read_json(folder / "sentence_bert_config.json", {}).get("do_lower_case"))
        self._pad_id = int(config.get("pad_token_id") or 0)
        self.prompts: Mapping[str, str] = {}
        self.default_prompt: str | None = None
        self._read_prompts(folder)
        self.max_input_length = _max_input_length(folder, config)
        self._session = _open_session(graph)
        self._inputs = {each.name: np.dtype(each.type[7:-1]) for each in self._session.get_inputs()}  # tensor(int64)
        outputs = {each.name: each for each in self._session.get_outputs()}
        self._output = next((name for name in _TOKEN_OUTPUTS if name in outputs), "")
        if not self._output or (unknown := self._inputs.keys() - _INPUTS):
            what = f"has the input {min(unknown)}" if self._output else f"has no output {' or '.join(_TOKEN_OUTPUTS)}"
            raise ModelUnavailableError(f"{graph} {what}, so it does not encode texts: export it with {EXPORT}")
        self.dtype = _dtype(graph, outputs[self._output].type)
        # One thread a call and as many calls as cores. On idle cores all threads in one call are as fast, but where
        # another process takes a core for a while, they wait for each other, and half the speed is lost.
        self._threads = ThreadPoolExecutor(usable_processors(), "onnx")
        self.pooling = _configured_pooling(folder) or self._pooling_of_graph(folder, graph, set(outputs))
        self.dimensions = int(self._run([self.encode(_PROBES[0], "", Encoding(self.max_input_length))]).shape[1])

    def _read_prompts(self, folder: Path) -> None:
        config = _read_json(folder / "config_sentence_transformers.json", {})
        self.prompts = dict(config.get("prompts") or {})
        self.default_prompt = config.get("default_prompt_name")
        if self.default_prompt is not None and self.default_prompt not in self.prompts:
            raise ModelUnavailableError(
                f"{folder / 'config_sentence_transformers.json'} has no prompt named {self.default_prompt}, its "
                "default_prompt_name: add it, or remove the default"
            )

    def _cased(self, whole: str) -> str:
        """Return what the tokenizer is given: sentence-transformers has a lowercase of its own before it."""
        return whole.lower() if self._is_lowercase else whole

    def encode(self, text: str, prompt: str, encoding: Encoding) -> Encoded:
        """Return the text's token ids; cut between tokens, special tokens kept, as TEI cuts."""
        whole = self._cased(prompt + text)
        encoded = self._tokenizer.encode(whole)
        length = len(encoded.ids)
        if length <= encoding.limit:
            return Encoded(prompt, text, length, length, encoded.ids)
        plain = self._tokenizer.encode(whole, add_special_tokens=False)
        specials = length - len(plain.ids)
        plain.truncate(max(encoding.limit - specials, 0), direction="left" if encoding.left else "right")
        start, stop = (plain.offsets[0][0], plain.offsets[-1][1]) if plain.ids else (0, 0)
        cut = self._tokenizer.post_process(plain)
        return Encoded(whole[start : len(prompt)], whole[max(start, len(prompt)) : stop], len(cut.ids), length, cut.ids)

    def tokenize(self, text: str, prompt: str, *, special_tokens: bool) -> list[Token]:
        """Return all tokens of prompt + text, with offsets in bytes; of the lowercase text if that is what is read."""
        whole = self._cased(prompt + text)
        encoded = self._tokenizer.encode(whole, add_special_tokens=special_tokens)
        byte = [0, *itertools.accumulate(len(character.encode()) for character in whole)]
        return [
            Token(number, name, True, None, None)
            if special
            else Token(number, whole[start:stop], False, byte[start], byte[stop])
            for number, name, special, (start, stop) in zip(
                encoded.ids, encoded.tokens, encoded.special_tokens_mask, encoded.offsets, strict=True
            )
        ]

    def embed(self, texts: Sequence[Encoded]) -> Vectors:
        """Return float32[len(texts), dimensions], not normalized.

        Texts of a length share a call of the graph, so that little is computed for padding.
        """
        vectors = np.empty((len(texts), self.dimensions), np.float32)
        calls = list(_group(texts))
        parts = self._threads.map(lambda rows: self._run([texts[row] for row in rows]), calls)
        for rows, part in zip(calls, parts, strict=True):
            vectors[rows] = part
        return vectors

    def _run(self, texts: Sequence[Encoded]) -> Vectors:
        """Return the vectors of one call of the graph."""
        (hidden,) = self._session.run([self._output], self._feed(texts))
        return _pool(hidden, [len(text.ids) for text in texts], self.pooling).astype(np.float32)

    def _feed(self, texts: Sequence[Encoded]) -> dict[str, npt.NDArray[Any]]:
        width = max(1, *(len(text.ids) for text in texts))
        ids = np.full((len(texts), width), self._pad_id)
        mask = np.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text.ids)] = text.ids
            mask[row, : len(text.ids)] = 1
        arrays = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(ids),  # of a single sentence
            "position_ids": np.tile(np.arange(width), (len(texts), 1)),
        }
        return {name: arrays[name].astype(dtype, copy=False) for name, dtype in self._inputs.items()}

    def _pooling_of_graph(self, folder: Path, graph: Path, outputs: set[str]) -> str:
        """Return the pooling that gives what the graph calls sentence_embedding.

        Optimum exports a sentence-transformers model as one graph, with both outputs and without 1_Pooling.
        """
        if "sentence_embedding" not in outputs:
            missing = folder / "1_Pooling" / "config.json"
            raise ModelUnavailableError(
                f"{missing} is missing, which says how a text's token vectors become one: copy it from the model's "
                f"repository, or export the model with {EXPORT}"
            )
        texts = [self.encode(text, "", Encoding(self.max_input_length)) for text in _PROBES]
        hidden, sentences = self._session.run([self._output, "sentence_embedding"], self._feed(texts))
        for pooling in _POOLING_NAMES.values():
            pooled = _pool(hidden, [len(text.ids) for text in texts], pooling)
            if pooled.shape == sentences.shape and cosines(pooled, sentences).min() >= _MIN_POOLING_COSINE:
                return pooling
        raise ModelUnavailableError(
            f"{graph} makes its sentence_embedding by more than pooling (cls, mean or last token), so it cannot be "
            "served: serve the model with TEI"
        )


def locate(path: Path) -> tuple[Path, Path]:
    """Return the folder and its graph; a folder's plain graph comes before its optimized ones."""
    if path.suffix == ".onnx" and path.is_file():
        return (path.parent.parent if path.parent.name == "onnx" else path.parent), path
    if not path.is_dir():
        raise ModelUnavailableError(
            f"--model {path} is neither {' nor '.join(MODELS)} nor a folder: export the model with {EXPORT}"
        )
    for plain in (path / "model.onnx", path / "onnx" / "model.onnx"):
        if plain.is_file():
            return path, plain
    others = sorted([*path.glob("model*.onnx"), *path.glob("onnx/model*.onnx")])
    if not others:
        raise ModelUnavailableError(f"{path / 'onnx' / 'model.onnx'} is missing: export the model with {EXPORT}")
    if len(others) > 1:
        raise ModelUnavailableError(
            f"{path} has {len(others)} graphs and no model.onnx: choose one, as in --model {others[0]}"
        )
    return path, others[0]


def _read_json(path: Path, default: dict[str, Any] | None = None, kind: type = dict) -> Any:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        if default is not None:
            return default
        raise ModelUnavailableError(f"{path} is missing: export the model with {EXPORT}") from None
    except ValueError as error:
        raise ModelUnavailableError(f"{path} is not JSON ({error}): export the model with {EXPORT}") from error
    if not isinstance(value, kind):
        raise ModelUnavailableError(f"{path} does not hold a JSON {_JSON[kind]}: export the model with {EXPORT}")
    return value


def _check_modules(folder: Path) -> None:
    """Refuse a model that does more to a text than transformer, pooling and normalization."""
    path = folder / "modules.json"
    for module in _read_json(path, kind=list) if path.exists() else []:
        name = str(module.get("type") if isinstance(module, dict) else module).rpartition(".")[2]
        if name not in ("Transformer", "Pooling", "Normalize"):
            raise ModelUnavailableError(
                f"{path} has a module {name}, which an ONNX export leaves out, so vectors would be wrong: serve the "
                "model with TEI"
            )


def _load_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelUnavailableError(f"{path} is missing: export the model with {EXPORT}")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise ModelUnavailableError(f"{path} cannot be read ({error}): export the model with {EXPORT}") from error
    # What the file has of these was the exporter's; texts are cut and padded here.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _max_input_length(folder: Path, config: Mapping[str, Any]) -> int:
    """Return how many tokens the model reads: as sentence-transformers limits it, and no more than it has positions."""
    sentence = _read_json(folder / "sentence_bert_config.json", {}).get("max_seq_length")
    tokenizer = _read_json(folder / "tokenizer_config.json", {}).get("model_max_length")
    if tokenizer is not None and tokenizer > _MAX_PLAUSIBLE_LENGTH:
        tokenizer = None
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if positions is not None and config.get("model_type") in _ROBERTA_LIKE:
        positions -= int(config.get("pad_token_id") or 0) + 1
    limit = sentence or tokenizer or positions
    if limit is None:
        raise ModelUnavailableError(
            f"{folder / 'sentence_bert_config.json'} is missing, and no other file says how many tokens the model "
            f'reads: write {{"max_seq_length": N}} into it, or export the model with {EXPORT}'
        )
    return int(min(limit, positions or limit))


def _configured_pooling(folder: Path) -> str | None:
    """Return the pooling of 1_Pooling/config.json; None without this file."""
    path = folder / "1_Pooling" / "config.json"
    if not path.exists():
        return None
    config = _read_json(path)
    modes = {name for name, value in config.items() if name.startswith("pooling_mode_") and value}
    if isinstance(mode := config.get("pooling_mode"), str):  # as sentence-transformers writes it since 5.4
        pooling = _POOLING_NAMES.get(mode)
    else:
        pooling = _POOLING_MODES.get(min(modes)) if len(modes) == 1 else None
    if pooling is None:
        raise ModelUnavailableError(
            f"{path} asks for another pooling than cls, mean or last token: it cannot be served"
        )
    return pooling


def _open_session(graph: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; a graph that was optimized before makes it warn
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class below this one
        raise ModelUnavailableError(f"{graph} cannot be loaded: {error}") from error


def _dtype(graph: Path, output_type: str) -> str:
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if any(content.find(operator) >= 0 for operator in _QUANTIZED_OPERATORS):
            return "int8"
    return "float16" if output_type == "tensor(float16)" else "float32"


def _group(texts: Sequence[Encoded]) -> Iterator[list[int]]:
    """Yield the rows of each call, longest first, so that no core has a long one left at the end."""
    call: list[int] = []
    width = 0
    for row in sorted(range(len(texts)), key=lambda row: -len(texts[row].ids)):
        if call and width * (len(call) + 1) > _MAX_CALL_TOKENS:
            yield call
            call = []
        width = width if call else len(texts[row].ids)
        call.append(row)
    if call:
        yield call


def _pool(hidden: Hidden, lengths: Sequence[int], pooling: str) -> Vectors:
    """Return one vector a text of its token vectors, float[n, width, dimensions]."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last_token":
        last: Vectors = hidden[np.arange(len(lengths)), np.array(lengths) - 1]
        return last
    rows: Vectors = np.stack(
        [each[:length].mean(axis=0, dtype=np.float32) for each, length in zip(hidden, lengths, strict=True)]
    )
    return rows


def cosines(one: Vectors, other: Vectors) -> Vectors:
    """Return the cosine of each row of one to the same row of the other, float32[n]."""
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosines: Vectors = np.einsum("nd,nd->n", one, other) / norms
    return cosines
