"""The ways to make a graph smaller: `static`, `dynamic`, `weight-only` and `fp16`, each a function of graph and states.

Knows which way can do what with which cell, and says so. How the result is proved, measured and written is not known
here.

`weight-only` keeps weights as int8 and turns them back by Cast and Mul, which onnxruntime computes once, at load: the
file is a quarter, speed and independence of the batch are fp32's. (`DequantizeLinear` says the same, but onnxruntime
leaves it in place and repeats it every run.)
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

import onnx

from tidegate.bundle import Manifest
from tidegate_export.errors import ExportError
from tidegate_export.quantize_graph import Rewriting, rounded
from tidegate_export.quantize_static import quantize_static

Method: TypeAlias = Literal["static", "dynamic", "weight-only", "fp16"]

_WHOLE = ("ReduceLogSumExp", "LogSoftmax", "GatherElements", "Sub", "Div", "Softplus", "CumSum")
"""Operators behind the head that stay fp32: half of a bit's third decimal would be lost in surprise."""


def rewrite(graph: bytes, manifest: Manifest, method: Method) -> tuple[bytes, Manifest]:
    """Return `graph` rewritten, and what the manifest then says of its tensors.

    Raises:
        ExportError: The method cannot do anything with this graph.
    """
    model = onnx.load_from_string(graph)
    if method == "fp16":
        states = [
            state.model_copy(update={"dtype": "float16"}) if state.dtype == "float32" else state
            for state in manifest.states
        ]
        manifest = manifest.model_copy(update={"states": tuple(states)})
        return _serialized(_half(model, manifest)), manifest
    if method == "weight-only":
        return _serialized(quantize_weights(model)), manifest
    _refuse_without_lstm(model, method)
    small = quantize_static(model, manifest.states) if method == "static" else _dynamic(model)
    return _serialized(small), manifest


def operators(graph: bytes) -> dict[str, int]:
    """Count the operators that hold weights: what became int8, and what did not."""
    telling = ("LSTM", "GRU", "RNN", "MatMul", "MatMulInteger")
    names = [node.op_type for node in onnx.load_from_string(graph).graph.node]
    kept = Counter(name for name in names if name in telling or name.startswith(("Dynamic", "MatMulInteger")))
    return dict(sorted(kept.items()))


def _refuse_without_lstm(model: onnx.ModelProto, method: Method) -> None:
    found = {node.op_type for node in model.graph.node}
    if "LSTM" in found:
        return
    cells = sorted(found & {"GRU", "RNN"})
    what = f"{' and '.join(cells)} operators" if cells else "no recurrent operator at its top level"
    reason = "onnxruntime computes only LSTM in int8 (DynamicQuantizeLSTM)"
    raise ExportError(
        f"--method {method} needs an LSTM; the graph has {what}, and {reason}: --method weight-only makes the file "
        "smaller, not faster"
    )


def _dynamic(model: onnx.ModelProto) -> onnx.ModelProto:
    """Leave it to onnxruntime: scales of activations are taken anew in every run, over all that is in it."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, _without_advice():
        path = Path(folder) / "model.onnx"
        quantize_dynamic(
            model, path, op_types_to_quantize=["LSTM", "MatMul"], per_channel=True, weight_type=QuantType.QInt8
        )
        return onnx.load(path)


def _half(model: onnx.ModelProto, manifest: Manifest) -> onnx.ModelProto:
    """Weights, activations and states in fp16; inputs and outputs, and what surprise is computed with, stay fp32."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    half = {name for state in manifest.states for name in (state.input, state.output) if state.dtype == "float16"}
    whole = [item.name for item in (*model.graph.input, *model.graph.output) if item.name not in half]
    blocked = [*DEFAULT_OP_BLOCK_LIST, *_WHOLE]
    converted = OnnxModel(convert_float_to_float16(model, keep_io_types=whole, op_block_list=blocked))
    converted.topological_sort()  # it leaves its casts at the end
    half_model: onnx.ModelProto = converted.model
    return half_model


def _serialized(model: onnx.ModelProto) -> bytes:
    model.ClearField("doc_string")
    model.graph.ClearField("doc_string")
    del model.metadata_props[:]
    return bytes(model.SerializeToString(deterministic=True))


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keep the quantizer's advice to preprocess the graph from a user: exported graphs need none."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


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
