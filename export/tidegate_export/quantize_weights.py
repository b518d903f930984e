"""Weights kept as int8 and turned back into fp32 by the graph, activations untouched: the *weight-only* method.

The way back is Cast and Mul, which onnxruntime computes once, at load: the file is a quarter, speed and independence of
the batch are fp32's. (`DequantizeLinear` says the same, but onnxruntime leaves it in place and repeats it every run.)
"""

from __future__ import annotations

import onnx

from tidegate_export.errors import ExportError
from tidegate_export.quantize_graph import Rewriting, rounded

_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_FEWEST = 256
"""A smaller tensor is not worth two more nodes."""


def quantize_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` with int8 weights of recurrent operators, matrices and tables.

    Raises:
        ExportError: It has none.
    """
    rewriting = Rewriting(model)
    axes = {name: axis for node in model.graph.node for name, axis in _weights_of(node).items()}
    axes = {name: axis for name, axis in axes.items() if _is_worth_it(rewriting, name)}
    if not axes:
        raise ExportError("the graph has no constant weights at its top level")
    for name, axis in axes.items():
        small, scales = rounded(rewriting.constants.pop(name), axis)
        whole = rewriting.add("Cast", [rewriting.constant("weights", small)], to=onnx.TensorProto.FLOAT)
        rewriting.add("Mul", [whole, rewriting.constant("scales", scales)], output=name)
    rewriting.nodes.extend(model.graph.node)
    return rewriting.finish()


def _weights_of(node: onnx.NodeProto) -> dict[str, int]:
    """Return the inputs that may be weights, each with the axis along which one scale holds."""
    if node.op_type in _RECURRENT:
        return {node.input[1]: 2, node.input[2]: 2}  # [directions, gates·hidden, columns]
    if node.op_type == "MatMul":
        return {node.input[1]: 0}
    if node.op_type == "Gather":
        return {node.input[0]: -1}
    return {}


def _is_worth_it(rewriting: Rewriting, name: str) -> bool:
    value = rewriting.constants.get(name)
    return value is not None and value.dtype == "float32" and value.ndim > 1 and value.size >= _FEWEST
