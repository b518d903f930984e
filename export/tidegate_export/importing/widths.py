"""How wide an input is whose file leaves its width open: the weights that it meets say so.

Exporters that trace mark every axis of an input as free, the features too. Only sizes are read here; which axis of the
input it is, is tried.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import GraphProto, NodeProto, TensorProto

from tidegate_export.importing.flow import Flow, Link
from tidegate_export.importing.source import attribute, constants

_LAYERS = ("LSTM", "GRU", "RNN")


def widths(graph: GraphProto, flow: Flow, inputs: Sequence[str]) -> dict[str, int]:
    """Return the number of features of those inputs whose values meet weights unchanged."""
    known = constants(graph)
    met = [pair for node in graph.node for pair in _met(node, known)]
    found = {}
    for name in inputs:
        links = flow.links(name)
        sizes = [size for value, size in met if links.get(value) is Link.MOVED]
        if sizes:
            found[name] = sizes[0]
    return found


def _met(node: NodeProto, known: dict[str, TensorProto]) -> list[tuple[str, int]]:
    """Return which values a node takes, with the width that its weights ask of them."""
    weight = known.get(node.input[1]) if len(node.input) > 1 else None
    dims = [] if weight is None else list(weight.dims)
    if node.op_type in _LAYERS and len(dims) == 3:
        hidden = attribute(node, "hidden_size")
        states = [(name, hidden) for name in node.input[5:7] if name and isinstance(hidden, int)]
        return [(node.input[0], dims[2]), *states]
    if node.op_type in {"MatMul", "MatMulInteger"} and len(dims) == 2:
        return [(node.input[0], dims[0])]
    if node.op_type == "Gemm" and len(dims) == 2:
        return [(node.input[0], dims[1 if attribute(node, "transB") else 0])]
    return []
