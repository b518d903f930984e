"""int8 with fixed activation scales: the LSTM operator of onnxruntime, made to find the same scale in every run.

`DynamicQuantizeLSTM` takes the scale of its input over all rows and steps of a run, and that of its hidden state over
all rows of a step: a row's result depends on its neighbours and on how its sequence is cut. Here two columns are added
to both, *pins* that stand at the least and the greatest value possible. Their weights are zero, so they change nothing
but the range that the operator sees, and that is now always the same. The pins of the hidden state are two more units
whose gates are held by their bias: f = 1, i = 0, o = 1, c = ±20, hence h = ±1 for ever.

Integer products are exact, so what is left of the dependence is what fp32 has. Knows nothing of files or bundles.

A fixed scale needs *bounds* of a tensor that hold for every input: an LSTM's output lies in -1 … 1, a table's row in
its range. `find_bounds` follows the nodes in order and gives up, tensor by tensor, where nothing certain is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx

from tidegate.bundle import StateSpec
from tidegate_export.errors import ExportError
from tidegate_export.quantize_graph import MICROSOFT, Array, Rewriting, attribute, rounded


class Bounds(NamedTuple):
    """The least and the greatest value that a tensor can have."""

    low: float
    high: float


UNIT = Bounds(-1.0, 1.0)

_KEEP_VALUES = frozenset(
    {"Transpose", "Squeeze", "Unsqueeze", "Slice", "Reshape", "Identity", "Gather", "Flatten", "Expand", "Split"}
)
_RANGES = {"Tanh": UNIT, "Sigmoid": Bounds(0.0, 1.0), "Softmax": Bounds(0.0, 1.0)}


PINS = 2
_OPEN = 50.0
"""A gate's bias with which the sigmoid is 1 (negated: 0) in fp32."""
_CELL = 20.0
"""tanh of it is 1 in fp32."""
_CELL_BOUNDS = Bounds(-_CELL, _CELL)
_SHAPE_WITH_END = 15
"""The opset from which on Shape can leave the last axis out."""


def quantize_static(model: onnx.ModelProto, states: Sequence[StateSpec]) -> onnx.ModelProto:
    """Return `model` with int8 LSTM layers of fixed scales, and int8 matrices where their input is bounded.

    Raises:
        ExportError: No layer can be had that way.
    """
    opset = next(item.version for item in model.opset_import if not item.domain)
    if opset < _SHAPE_WITH_END:
        raise ExportError(f"fixed scales need opset {_SHAPE_WITH_END} or newer, the graph has {opset}")
    pinned = _Pinned(model, find_bounds(model.graph, Rewriting(model).constants, states))
    reasons = [reason for node in model.graph.node if (reason := pinned.take(node))]
    if not pinned.num_layers:
        raise ExportError(
            f"no LSTM layer can have fixed scales: {reasons[0] if reasons else 'there is none in the graph'}"
        )
    return pinned.rewriting.finish()


class _Pinned:
    """A graph on its way to int8: `take` its nodes in order."""

    def __init__(self, model: onnx.ModelProto, bounds: dict[str, Bounds]) -> None:
        self.rewriting = Rewriting(model)
        self.num_layers = 0
        self._bounds = bounds
        self._makers = {name: node for node in model.graph.node for name in node.output}
        self._wide: dict[tuple[str, Bounds], str] = {}

    def take(self, node: onnx.NodeProto) -> str | None:
        """Add `node`, as int8 where that can be; return why an LSTM stays as it is."""
        if node.op_type == "LSTM":
            reason = self._refusal(node)
            if reason is None:
                self._add_layer(node)
                return None
            self.rewriting.nodes.append(node)
            return reason
        if self._is_int8_matrix(node):
            self._add_matrix(node)
        elif pins := self._common_pins(node):
            self._add_joined(node, pins)
        else:
            self.rewriting.nodes.append(node)
        return None

    def _refusal(self, node: onnx.NodeProto) -> str | None:
        name = node.name or node.output[0]
        inputs = [*node.input, *([""] * (8 - len(node.input)))]
        if not is_plain(node) or attribute(node, "direction", b"forward") != b"forward" or inputs[7]:
            return f"{name} has activations, a direction or peepholes of its own"
        if any(weights not in self.rewriting.constants for weights in node.input[1:3]):
            return f"{name} has weights that are not constant"
        for tensor in (inputs[0], *filter(None, [inputs[5]])):
            if tensor not in self._bounds:
                return f"{name} reads {tensor}, whose values have no certain bounds (use --method dynamic)"
        return None

    def _add_layer(self, node: onnx.NodeProto) -> None:
        constants = self.rewriting.constants
        inputs = [*node.input, *([""] * (7 - len(node.input)))]
        hidden = attribute(node, "hidden_size")
        bias = constants[inputs[3]] if inputs[3] else np.zeros((1, 8 * hidden), np.float32)
        wide = [self._wider(inputs[0], self._bounds[inputs[0]])]
        wide += [self._wider(name, bounds) for name, bounds in zip(inputs[5:7], (UNIT, _CELL_BOUNDS), strict=True)]
        weights = [_with_pins(constants[inputs[1]], hidden), _with_pins(constants[inputs[2]], hidden)]
        small = [rounded(array, axis=2) for array in weights]
        matrices = [self.rewriting.constant("weights", array.transpose(0, 2, 1)) for array, _ in small]
        scales = [self.rewriting.constant("scales", scale[:, :, 0]) for _, scale in small]
        zeros = self.rewriting.constant("zeros", np.zeros((1, 4 * (hidden + PINS)), np.int8))
        outputs = [name and f"{name}.pinned" for name in node.output]
        self.rewriting.nodes.append(
            onnx.helper.make_node(
                "DynamicQuantizeLSTM",
                [
                    wide[0],
                    *matrices,
                    self.rewriting.constant("bias", _pinned_bias(bias, hidden)),
                    inputs[4],
                    *wide[1:],
                    "",  # peepholes
                    *(name for scale in scales for name in (scale, zeros)),
                ],
                outputs,
                domain=MICROSOFT,
                hidden_size=hidden + PINS,
            )
        )
        self._give_narrow(node, outputs)
        self.num_layers += 1

    def _give_narrow(self, node: onnx.NodeProto, outputs: Sequence[str]) -> None:
        """Provide the layer's outputs under their names, without pins, for whoever reads them."""
        for name, wide, pins in zip(node.output, outputs, (UNIT, UNIT, _CELL_BOUNDS), strict=False):
            if name:
                self._narrow(name, wide, pins)

    def _narrow(self, name: str, wide: str, pins: Bounds) -> None:
        bounds = [self.rewriting.integers(value) for value in (0, -PINS, -1)]
        self.rewriting.add("Slice", [wide, *bounds], output=name)
        self._wide[name, pins] = wide

    def _common_pins(self, node: onnx.NodeProto) -> Bounds | None:
        """Return the pins that all parts of a Concat before the last axis have already."""
        if node.op_type != "Concat" or attribute(node, "axis") not in {0, 1}:
            return None
        common = (pins for pins in (UNIT, _CELL_BOUNDS) if all((name, pins) in self._wide for name in node.input))
        return next(common, None)

    def _add_joined(self, node: onnx.NodeProto, pins: Bounds) -> None:
        """Join first and drop the pins then: one copy instead of one for each part."""
        parts = [self._wide[name, pins] for name in node.input]
        self._narrow(node.output[0], self.rewriting.add("Concat", parts, axis=attribute(node, "axis")), pins)

    def _wider(self, name: str, pins: Bounds) -> str:
        """Return a tensor like `name` with `pins` as two more columns, taken from as far up as possible."""
        if (name, pins) not in self._wide:
            self._wide[name, pins] = self._widen(name, pins)
        return self._wide[name, pins]

    def _widen(self, name: str, pins: Bounds) -> str:
        rewriting, maker = self.rewriting, self._makers.get(name)
        if maker is not None and self._keeps_last_axis(maker):
            source = self._wider(maker.input[0], pins)
            again = onnx.NodeProto()
            again.CopyFrom(maker)
            again.name = ""
            again.input[0], again.output[0] = source, f"{name}.pinned{pins.high:g}"
            rewriting.nodes.append(again)
            return again.output[0]
        if maker is not None and self._is_lookup(maker):
            table = rewriting.constants[maker.input[0]]
            columns = np.tile(np.array(pins, np.float32)[::-1], (len(table), 1))
            wide = rewriting.constant("table", np.concatenate((table, columns), axis=1))
            return rewriting.add("Gather", [wide, maker.input[1]])
        shape = rewriting.add("Shape", [name], end=-1)
        shape = rewriting.add("Concat", [shape, rewriting.integers(PINS)], axis=0)
        pair = rewriting.constant("pins", np.array([pins.high, pins.low], np.float32))
        return rewriting.add("Concat", [name, rewriting.add("Expand", [pair, shape])], axis=-1)

    def _keeps_last_axis(self, node: onnx.NodeProto) -> bool:
        """Whether `node` moves, drops or cuts axes before the last one of a tensor of rank 3 or more."""
        axes = [int(axis) for axis in self._integers(node, {"Squeeze": 1, "Slice": 3}.get(node.op_type))]
        if node.op_type == "Transpose":
            order = list(attribute(node, "perm", []))
            return bool(order) and order[-1] == len(order) - 1
        return node.op_type in {"Squeeze", "Slice"} and bool(axes) and all(axis in {0, 1} for axis in axes)

    def _integers(self, node: onnx.NodeProto, index: int | None) -> Array:
        if index is None or len(node.input) <= index:
            return np.array([], np.int64)
        return self.rewriting.constants.get(node.input[index], np.array([], np.int64))

    def _is_lookup(self, node: onnx.NodeProto) -> bool:
        table = self.rewriting.constants.get(node.input[0])
        return node.op_type == "Gather" and attribute(node, "axis", 0) == 0 and table is not None and table.ndim == 2

    def _is_int8_matrix(self, node: onnx.NodeProto) -> bool:
        if node.op_type != "MatMul" or node.input[0] not in self._bounds:
            return False
        matrix = self.rewriting.constants.get(node.input[1])
        return matrix is not None and matrix.ndim == 2

    def _add_matrix(self, node: onnx.NodeProto) -> None:
        low, high = self._bounds[node.input[0]]
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / 255 or 1.0
        weights, scales = rounded(self.rewriting.constants[node.input[1]], axis=0)
        add = self.rewriting.constant
        unit = add("scale", np.array(scale, np.float32))
        zero = add("zero", np.array(round(-low / scale), np.uint8))
        small = self.rewriting.add("QuantizeLinear", [node.input[0], unit, zero])
        matrix, per_column = add("weights", weights), add("scales", scales[0])
        zeros = add("zeros", np.zeros(len(scales[0]), np.int8))
        self.rewriting.add(
            "MatMulIntegerToFloat",
            [small, matrix, unit, per_column, zero, zeros],
            output=node.output[0],
            domain=MICROSOFT,
        )


def _with_pins(weights: Array, hidden: int) -> Array:
    """Add the pins' units and columns, all zero: [1, 4·hidden, columns] → [1, 4·(hidden + 2), columns + 2]."""
    gates = weights.reshape(4, hidden, -1)
    wider: Array = np.pad(gates, ((0, 0), (0, PINS), (0, PINS)))
    return wider.reshape(1, 4 * (hidden + PINS), -1)


def _pinned_bias(bias: Array, hidden: int) -> Array:
    """Hold the pins' gates: [1, 8·hidden] → [1, 8·(hidden + 2)]; ONNX orders the gates i, o, f, c."""
    gates: Array = np.pad(bias.reshape(8, hidden), ((0, 0), (0, PINS)))
    gates[0, hidden:] = -_OPEN
    gates[1:3, hidden:] = _OPEN
    return gates.reshape(1, -1)


def find_bounds(
    graph: onnx.GraphProto, constants: Mapping[str, Array], states: Sequence[StateSpec]
) -> dict[str, Bounds]:
    """Return the bounds of every tensor that has certain ones.

    A state has those of what the graph gives for it, provided that it begins inside them.
    """
    fixed = {
        name: Bounds(float(np.min(value)), float(np.max(value)))
        for name, value in constants.items()
        if value.dtype.kind == "f" and value.size
    }
    after = _follow(graph, fixed)
    kept = {
        state.input: bounds
        for state in states
        if (bounds := after.get(state.output)) is not None and bounds.low <= state.initial <= bounds.high
    }
    return _follow(graph, fixed | kept)


def _follow(graph: onnx.GraphProto, known: dict[str, Bounds]) -> dict[str, Bounds]:
    bounds = dict(known)
    for node in graph.node:
        for index, output in enumerate(node.output):
            found = _bounds_of(node, index, bounds)
            if output and found is not None:
                bounds[output] = found
    return bounds


def _bounds_of(node: onnx.NodeProto, index: int, bounds: Mapping[str, Bounds]) -> Bounds | None:
    if node.op_type in _RANGES:
        return _RANGES[node.op_type]
    if node.op_type == "LSTM":
        # h = o·tanh(c) whatever c is; c itself, the third output, may grow without end.
        return UNIT if is_plain(node) and index < 2 else None
    if node.op_type in _KEEP_VALUES:
        return bounds.get(node.input[0])
    if node.op_type == "Concat":
        parts = [bounds.get(name) for name in node.input]
        known = [part for part in parts if part is not None]
        if len(known) == len(parts):
            return Bounds(min(part.low for part in known), max(part.high for part in known))
    return None


def is_plain(node: onnx.NodeProto) -> bool:
    """Whether an LSTM operator computes what it does by default: no other activations, clipping or coupled gates."""
    return not attribute(node, "input_forget", 0) and all(
        attribute(node, name) is None for name in ("activations", "clip")
    )
