"""Pieces that every rewriting of a graph needs: its constants, new nodes in their order, int8 weights with scales.

Knows ONNX's data structures and symmetric int8 rounding. Which operators become what is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass

Array = NDArray[Any]

MICROSOFT = "com.microsoft"
_STEPS = 127
"""Symmetric int8: -127 … 127, so that zero is zero and a weight and its negative round alike."""


class Rewriting:
    """A copy of a graph that is being rebuilt: constants by name, and the nodes so far, in topological order."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self._names = {name for node in model.graph.node for name in (*node.input, *node.output)}

    def constant(self, hint: str, value: Array) -> str:
        """Add a constant and return its name."""
        name = self._free(hint)
        self.constants[name] = value
        return name

    def integers(self, *values: int) -> str:
        """Add a constant list of int64, for axes, bounds and pads."""
        return self.constant("sizes", np.array(values, np.int64))

    def add(self, operator: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        """Add a node with one output and return the output's name."""
        name = output or self._free(operator.lower())
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def finish(self) -> onnx.ModelProto:
        """Return the rebuilt model, without nodes and constants that nothing uses."""
        graph = self.model.graph
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in self.constants.items())
        model = ir.from_proto(self.model)
        RemoveUnusedNodesPass()(model)
        if any(node.domain == MICROSOFT for node in model.graph):
            model.opset_imports.setdefault(MICROSOFT, 1)
        return ir.to_proto(model)

    def _free(self, hint: str) -> str:
        name = f"{hint}_q{len(self._names)}"
        self._names.add(name)
        return name


def rounded(weights: Array, axis: int) -> tuple[Array, Array]:
    """Round `weights` to int8 with one scale for each slice across `axis`; the scales keep that axis with size 1."""
    scales = np.abs(weights).max(axis=axis, keepdims=True).astype(np.float32) / np.float32(_STEPS)
    scales = np.where(scales == 0, np.float32(1), scales)
    return np.rint(weights / scales).astype(np.int8), scales


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Return the value of an attribute, `default` where `node` has none of that name."""
    for item in node.attribute:
        if item.name == name:
            return helper.get_attribute_value(item)
    return default
