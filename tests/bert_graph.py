"""A BERT encoder as an ONNX graph, node by node as PyTorch's exporter writes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Weights = Mapping[str, npt.NDArray[np.float32]]

_OPSET = 17  # the first with LayerNormalization
_IR_VERSION = 8
_MASKED = np.float32(-3.4e38)


class BertGraph:
    """Builds the graph; node by node, each method returning the name of its output.

    Args:
        weights: a Hugging Face BERT's, by their names there.
        config: its config.json.
        token_types: whether the graph has the input token_type_ids; without it, the type is 0.
    """

    def __init__(self, weights: Weights, config: Mapping[str, object], *, token_types: bool = True) -> None:
        self._weights = weights
        self._heads = int(str(config["num_attention_heads"]))
        self._hidden = int(str(config["hidden_size"]))
        self._layers = int(str(config["num_hidden_layers"]))
        self._epsilon = float(str(config["layer_norm_eps"]))
        self._token_types = token_types
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def build(self) -> onnx.ModelProto:
        """Return the model: int64[batch, sequence] inputs, last_hidden_state float32[batch, sequence, hidden]."""
        hidden, mask = self._embeddings(), self._mask()
        for layer in range(self._layers):
            hidden = self._layer(f"encoder.layer.{layer}", hidden, mask)
        self._nodes.append(helper.make_node("Identity", [hidden], ["last_hidden_state"]))
        names = ["input_ids", "attention_mask", *["token_type_ids"] * self._token_types]
        axes = ["batch_size", "sequence_length"]
        graph = helper.make_graph(
            self._nodes,
            "bert",
            [helper.make_tensor_value_info(name, TensorProto.INT64, axes) for name in names],
            [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*axes, self._hidden])],
            list(self._constants.values()),
        )
        opsets = [helper.make_opsetid("", _OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def _constant(self, name: str, value: npt.NDArray[np.generic]) -> str:
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def _integers(self, *values: int) -> str:
        return self._constant(f"integers_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def _scalar(self, value: float) -> str:
        return self._constant(f"scalar_{value!r}", np.array(value, np.float32))

    def _weight(self, name: str) -> str:
        return self._constant(name, self._weights[name])

    def _embeddings(self) -> str:
        words = self._node("Gather", self._weight("embeddings.word_embeddings.weight"), "input_ids")
        types = self._weight("embeddings.token_type_embeddings.weight")
        if self._token_types:
            types = self._node("Gather", types, "token_type_ids")
        else:
            types = self._node("Gather", types, self._integers(0))
        length = self._node("Slice", self._node("Shape", "input_ids"), self._integers(1), self._integers(2))
        table = self._weight("embeddings.position_embeddings.weight")
        positions = self._node("Slice", table, self._integers(0), length, self._integers(0))
        summed = self._node("Add", self._node("Add", words, types), positions)
        return self._normalized("embeddings.LayerNorm", summed)

    def _mask(self) -> str:
        """Return 0 where a token counts and a huge negative number where it does not, [batch, 1, 1, sequence]."""
        mask = self._node("Unsqueeze", "attention_mask", self._integers(1))
        mask = self._node("Unsqueeze", mask, self._integers(2))
        mask = self._node("Cast", mask, to=TensorProto.FLOAT)
        return self._node("Mul", self._node("Sub", self._scalar(1.0), mask), self._scalar(float(_MASKED)))

    def _layer(self, name: str, hidden: str, mask: str) -> str:
        attended = self._linear(
            f"{name}.attention.output.dense", self._attention(f"{name}.attention.self", hidden, mask)
        )
        hidden = self._normalized(f"{name}.attention.output.LayerNorm", self._node("Add", attended, hidden))
        inner = self._gelu(self._linear(f"{name}.intermediate.dense", hidden))
        outer = self._linear(f"{name}.output.dense", inner)
        return self._normalized(f"{name}.output.LayerNorm", self._node("Add", outer, hidden))

    def _attention(self, name: str, hidden: str, mask: str) -> str:
        query = self._by_head(f"{name}.query", hidden, [0, 2, 1, 3])
        key = self._by_head(f"{name}.key", hidden, [0, 2, 3, 1])
        value = self._by_head(f"{name}.value", hidden, [0, 2, 1, 3])
        scale = self._scalar(math.sqrt(self._hidden / self._heads))
        scores = self._node("Add", self._node("Div", self._node("MatMul", query, key), scale), mask)
        mixed = self._node("MatMul", self._node("Softmax", scores, axis=-1), value)
        return self._node(
            "Reshape", self._node("Transpose", mixed, perm=[0, 2, 1, 3]), self._integers(0, 0, self._hidden)
        )

    def _by_head(self, name: str, hidden: str, order: list[int]) -> str:
        shape = self._integers(0, 0, self._heads, self._hidden // self._heads)
        return self._node("Transpose", self._node("Reshape", self._linear(name, hidden), shape), perm=order)

    def _linear(self, name: str, hidden: str) -> str:
        weight = self._constant(f"{name}.weight", self._weights[f"{name}.weight"].T)
        return self._node("Add", self._weight(f"{name}.bias"), self._node("MatMul", hidden, weight))

    def _gelu(self, inner: str) -> str:
        grown = self._node("Erf", self._node("Div", inner, self._scalar(math.sqrt(2))))
        grown = self._node("Add", grown, self._scalar(1.0))
        return self._node("Mul", self._node("Mul", inner, grown), self._scalar(0.5))

    def _normalized(self, name: str, hidden: str) -> str:
        scale, bias = self._weight(f"{name}.weight"), self._weight(f"{name}.bias")
        return self._node("LayerNormalization", hidden, scale, bias, axis=-1, epsilon=self._epsilon)
