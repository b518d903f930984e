"""Foreign graphs with random weights, as exporters of the wild write them; made without torch in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Dims = Sequence[int | str | None]
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


class Net:
    """Collects nodes, weights and edges of a graph; most methods return the name of the tensor that they add."""

    def __init__(self, seed: int = 0, opset: int = 17) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.opset = opset
        self.opsets: list[onnx.OperatorSetIdProto] = []
        self._random = np.random.default_rng(seed)
        self._count = 0

    def input(self, name: str, *dims: int | str | None, dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, dims))
        return name

    def output(self, source: str, name: str, *dims: int | str | None, dtype: int = TensorProto.FLOAT) -> None:
        """Hand `source` out under `name`; without dims the file says nothing of its shape."""
        self.add("Identity", source, to=name)
        self.outputs.append(helper.make_tensor_value_info(name, dtype, dims or None))

    def constant(self, value: NDArray[Any]) -> str:
        name = self._free("w")
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def random(self, *shape: int) -> str:
        return self.constant(self._random.normal(scale=0.5, size=shape).astype(np.float32))

    def add(self, operator: str, *inputs: str, to: str = "", num_outputs: int = 1, **attributes: Any) -> str:
        outputs = [to or self._free("t"), *(self._free("t") for _ in range(num_outputs - 1))]
        self.nodes.append(helper.make_node(operator, list(inputs), outputs, **attributes))
        return outputs[0]

    def layer(
        self, cell: str, x: str, states: Sequence[str], width: int, hidden: int, **attributes: Any
    ) -> tuple[str, list[str]]:
        """Add a recurrent layer over x [T, B, width]; return its outputs [T, B, hidden] and its last states."""
        size, directions = GATES[cell] * hidden, 2 if attributes.get("direction") == "bidirectional" else 1
        weights = [self.random(directions, size, width), self.random(directions, size, hidden)]
        inputs = [x, *weights, self.random(directions, 2 * size), "", *states]
        results = [self._free("y"), *(self._free("s") for _ in ("h", "c")[: 2 if cell == "LSTM" else 1])]
        self.nodes.append(helper.make_node(cell, inputs, results, hidden_size=hidden, **attributes))
        moved = self.add("Transpose", results[0], perm=[0, 2, 1, 3])
        return self.add("Reshape", moved, self.integers(0, 0, -1)), results[1:]

    def linear(self, x: str, width: int, size: int, to: str = "") -> str:
        return self.add("MatMul", x, self.random(width, size), to=to)

    def body(self, name: str, parameters: Sequence[onnx.ValueInfoProto], results: Mapping[str, int]) -> onnx.GraphProto:
        """Return what was added so far as a nested graph, and begin anew."""
        outputs = [helper.make_tensor_value_info(result, dtype, None) for result, dtype in results.items()]
        graph = helper.make_graph(self.nodes, name, list(parameters), outputs, self.weights)
        self.nodes, self.weights = [], []
        return graph

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "foreign", self.inputs, self.outputs, self.weights)
        opsets = [helper.make_opsetid("", self.opset), *self.opsets]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def save(self, path: Path) -> Path:
        path.write_bytes(self.model().SerializeToString())
        return path

    def _free(self, hint: str) -> str:
        self._count += 1
        return f"{hint}{self._count}"


def lstm(
    x: Dims = ("time", "batch", 4),
    state: Dims = (1, "batch", 8),
    names: Sequence[str] = ("x", "h_in", "c_in", "y", "h_out", "c_out"),
    cell: str = "LSTM",
    opset: int = 17,
    **attributes: Any,
) -> Net:
    """Return one layer, time first, with a linear head of 3."""
    net = Net(opset=opset)
    net.input(names[0], *x)
    states = [net.input(name, *state) for name in names[1 : 3 if cell == "LSTM" else 2]]
    top, last = net.layer(cell, names[0], states, 4, 8, **attributes)
    net.output(net.linear(top, 16 if attributes.get("direction") == "bidirectional" else 8, 3), names[3])
    for source, name in zip(last, names[4:], strict=False):
        net.output(source, name)
    return net
