"""How wide an input is whose file leaves its width open: the weights that it meets say so.

Exporters that trace mark every axis of an input as free, the features too. Only sizes are read here; which axis of the
input it is, is tried.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from tidegate_export.importing.flow import Flow, Link

_LAYERS = ("LSTM", "GRU", "RNN")


def widths(flow: Flow, inputs: Sequence[str]) -> dict[str, int]:
    """Return the number of features of those inputs whose values meet weights unchanged."""
    met = [pair for node in flow.graph for pair in _met(node)]
    found = {}
    for name, links in flow.input_links(inputs).items():
        sizes = [size for value, size in met if value is not None and links.get(value) is Link.MOVED]
        if sizes:
            found[name] = sizes[0]
    return found


def _met(node: ir.Node) -> list[tuple[ir.Value | None, int]]:
    """Return which values a node takes, with the width that its weights ask of them."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    weight = None if value is None else ir.convenience.get_const_tensor(value)
    dims = [] if weight is None else list(weight.shape.numpy())
    if node.op_type in _LAYERS and len(dims) == 3:
        hidden = node.attributes.get_int("hidden_size", None)
        states = [] if hidden is None else [(state, hidden) for state in node.inputs[5:7]]
        return [(node.inputs[0], dims[2]), *states]
    if node.op_type in {"MatMul", "MatMulInteger"} and len(dims) == 2:
        return [(node.inputs[0], dims[0])]
    if node.op_type == "Gemm" and len(dims) == 2:
        return [(node.inputs[0], dims[1 if node.attributes.get_int("transB", 0) else 0])]
    return []
