"""Fused and int8 graphs from a plain export, by ONNX Runtime's own tools, and compared with it before they are kept."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers import optimizer

from pipeline.embedded_tei.models.onnx_model import OnnxModel, cosines, locate
from pipeline.embedded_tei.models.registry import Encoding, ModelUnavailableError

FUSED, INT8 = "model_optimized.onnx", "model_int8.onnx"

_MIN_COSINES = {FUSED: 0.9999, INT8: 0.99}
_SENTENCE = "The river rises in the mountains and runs through three countries before it reaches the sea. "
_TEXTS = [
    "Bread",
    "Where does the Nile flow into the sea?",
    "أين يصب نهر النيل؟",
    _SENTENCE,
    _SENTENCE * 5,
    _SENTENCE * 40,
]


def optimize(path: Path) -> dict[Path, float]:
    """Write a fused and an int8 graph beside a folder's plain one.

    Return the graphs and their lowest cosine to the plain graph, on a few texts.

    Raises:
        ModelUnavailableError: if the model cannot be served, or a graph gives other vectors; that graph is not kept.
        OSError: if the folder cannot be written to.
    """
    graph = locate(path)[1]
    plain = OnnxModel(graph)
    if plain.dtype != "float32":
        raise ModelUnavailableError(f"{graph} is {plain.dtype} already: --optimize needs a plain float32 export")
    return dict([_make(plain, graph, FUSED, _fuse), _make(plain, graph, INT8, _quantize)])


def _make(plain: OnnxModel, graph: Path, name: str, write: Callable[[Path, Path], None]) -> tuple[Path, float]:
    target = graph.with_name(name)
    staged = target.with_name(f".{name}")
    try:
        write(graph, staged)
        cosine = _compare(plain, OnnxModel(staged))
        if not cosine >= _MIN_COSINES[name]:  # written so that NaN fails
            raise ModelUnavailableError(
                f"{target} is not kept: its vectors differ from those of {graph} (cosine {cosine:.4f}, at least "
                f"{_MIN_COSINES[name]} is needed); serve the folder without --optimize"
            )
        staged.replace(target)
    finally:
        staged.unlink(missing_ok=True)
    return target, cosine


def _compare(plain: OnnxModel, other: OnnxModel) -> float:
    texts = [plain.encode(text, "", Encoding(plain.max_input_length)) for text in _TEXTS]
    return float(cosines(plain.embed(texts), other.embed(texts)).min())


def _fuse(graph: Path, target: Path) -> None:
    # Most encoders are exported with BERT's patterns; what is not recognized stays as it is. Level 0 leaves out the
    # fusions for this machine alone, which ONNX Runtime makes anyway when it loads the graph.
    optimizer.optimize_model(str(graph), model_type="bert", opt_level=0).save_model_to_file(str(target))


def _quantize(graph: Path, target: Path) -> None:
    """Write the graph with matrices in int8, one scale a column, and activations in int8 as they come."""
    model = onnx.load(graph, load_external_data=False)
    shapes = {each.name: tuple(each.dims) for each in model.graph.initializer}
    # The second matrix of each feed-forward block, more rows than columns, reads what GELU lets through: a few huge
    # values that leave 8 bits too little for the others. In float32 they lift the worst cosine from 0.988 to 0.995.
    kept = [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and (shape := shapes.get(node.input[1])) and shape[0] > shape[-1]
    ]
    logging.disable(logging.WARNING)  # of advice to prepare the graph; what that is good for, the comparison shows
    try:
        quantize_dynamic(
            graph,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=kept,
        )
    finally:
        logging.disable(logging.NOTSET)
