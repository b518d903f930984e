"""Takes the branches that a graph always takes: an `If` on a constant or on the shape of a state is no question.

With them go the layers and weights of the branches that are never run, which would look like layers without state. A
condition counts as settled if no input's values reach it, only shapes and constants, and if it and what it compares
came out the same for several sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
from onnx import ValueInfoProto
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tidegate_export.errors import ExportError
from tidegate_export.importing.edit import copied
from tidegate_export.importing.flow import Flow
from tidegate_export.importing.foreign import Arrays, Foreign, random_array
from tidegate_export.importing.plan import Found, sized

_MOST_ROUNDS = 64
_ROWS = (1, 2, 3, 17)
_STEPS = (5, 9)
_PICKS = frozenset({"Cast", "Gather", "Identity", "Reshape", "Shape", "Size", "Slice", "Squeeze", "Unsqueeze"})
_COMPARES = frozenset({"Equal", "Greater"})


def with_branches_taken(found: Found) -> Found:
    """Return `found` with a graph in which every settled `If` is replaced by the branch that it takes."""
    try:
        sizes = itertools.product(_ROWS if found.has_batch else _ROWS[:1], _STEPS[:1] if found.is_frame else _STEPS)
        feeds = [_feeds(found, rows, 1 if found.is_frame else steps) for rows, steps in sizes]
    except ExportError:  # what the lengths are is not known here
        return found
    return replace(found, model=take_branches(found.model, feeds))


def take_branches(proto: onnx.ModelProto, feeds: Sequence[Arrays]) -> onnx.ModelProto:
    """Return the model with every settled `If` replaced by the branch that it takes on all of `feeds`."""
    model = ir.from_proto(copied(proto))  # a new name of a weight would become its name in the proto too
    for round_ in range(_MOST_ROUNDS):
        settled = _settled(model, feeds)
        if not settled:
            break
        for number, node in enumerate([node for node in model.graph if node.op_type == "If"]):
            condition = node.inputs[0]
            if condition is not None and condition.name in settled:
                _take(node, "then_branch" if settled[condition.name] else "else_branch", f"branch{round_}/{number}")
    RemoveUnusedNodesPass()(model)
    return ir.to_proto(model)


def _settled(model: ir.Model, feeds: Sequence[Arrays]) -> dict[str, bool]:
    """Return the conditions at the top that come out the same whatever the sizes are, and how."""
    conditions = {node.inputs[0] for node in model.graph if node.op_type == "If"} - Flow(model.graph).values_reached()
    grounds = {value.name or "": _grounds(value) for value in conditions if value is not None}
    if not grounds:
        return {}
    asked = ir.to_proto(model)
    known = {item.name for item in asked.graph.output}
    names = {name for some in grounds.values() for name in some} | grounds.keys()
    asked.graph.output.extend(ValueInfoProto(name=name) for name in sorted(names - known))
    try:
        foreign = Foreign(asked)
        runs = [foreign.run(each) for each in feeds]
    except ExportError:  # a condition that is no value of its own: leave the graph as it is
        return {}
    return {
        name: bool(runs[0][name].all())
        for name, some in grounds.items()
        if all(np.array_equal(run[each], runs[0][each]) for run in runs for each in {name, *some})
    }


def _grounds(condition: ir.Value) -> set[str]:
    """Return the values that a condition is computed from.

    `steps > 100` is false at every size that is tried here, and no constant: it counts as settled only if what it
    compares stays the same too. What merely picks an element is the end of the way: one axis of a shape may be fixed.
    """
    found: set[str] = set()
    todo = [condition]
    while todo:
        value = todo.pop()
        node = value.producer()
        if node is None or value.name is None or value.name in found:
            continue
        found.add(value.name)
        if node.op_type not in _PICKS and not _asks_for_nothing(node):
            todo += [item for item in node.inputs if item is not None]
    return found


def _asks_for_nothing(node: ir.Node) -> bool:
    """Whether a node compares with 0, as in `Size(state) == 0`: no size in a run is that small."""
    constants = [None if item is None else ir.convenience.get_const_tensor(item) for item in node.inputs]
    return node.op_type in _COMPARES and any(item is not None and not item.numpy().any() for item in constants)


def _feeds(found: Found, rows: int, steps: int) -> Arrays:
    rng = np.random.default_rng(0)
    feeds = {spec.name: random_array(spec.dtype, sized(spec.axes, rows, steps), rng) for spec in found.data}
    feeds |= {state.input: np.zeros(sized(state.axes, rows, 1), state.dtype) for state in found.states}
    if found.lengths is not None:
        raise ExportError("lengths are not known here")
    return feeds


def _take(node: ir.Node, which: str, prefix: str) -> None:
    """Put the branch's nodes, under names of their own, in the node's place."""
    graph, branch = node.graph, node.attributes[which].as_graph()
    assert isinstance(graph, ir.Graph)
    results = list(branch.outputs)
    branch.outputs.clear()
    for value in list(branch.initializers.values()):
        del branch.initializers[value.name or ""]
        value.name = f"{prefix}/{value.name}"
        graph.register_initializer(value)
    inner = list(branch)
    branch.remove(inner)
    for item in inner:
        for value in item.outputs:
            value.name = f"{prefix}/{value.name}" if value.name else value.name
    # A result may be a value of the outer graph, and an output of the graph keeps its name: so it is handed on.
    hand_on = [ir.node("Identity", [result]) for result in results]
    for item, output in zip(hand_on, node.outputs, strict=True):
        item.outputs[0].name, item.outputs[0].type = output.name, output.type
        item.outputs[0].shape = output.shape
    graph.insert_before(node, [*inner, *hand_on])
    ir.convenience.replace_all_uses_with(
        node.outputs, [item.outputs[0] for item in hand_on], replace_graph_outputs=True
    )
    graph.remove(node, safe=True)
