"""Takes the branches that a graph always takes: an `If` on a constant or on the shape of a state is no question.

With them go the layers and weights of the branches that are never run, which would look like layers without state. A
condition counts as settled if no input's values reach it, only shapes and constants, and if it came out the same for
several numbers of rows.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tidegate_export.errors import ExportError
from tidegate_export.importing.flow import Flow
from tidegate_export.importing.foreign import Arrays, Foreign, random_array
from tidegate_export.importing.plan import Found, sized

_MOST_ROUNDS = 64
_ROWS = (1, 2, 3, 17)
_STEPS = 5


def with_branches_taken(found: Found) -> Found:
    """Return `found` with a graph in which every settled `If` is replaced by the branch that it takes."""
    model = ir.from_proto(found.model)
    for round_ in range(_MOST_ROUNDS):
        settled = _settled(model, found)
        if not settled:
            break
        for number, node in enumerate([node for node in model.graph if node.op_type == "If"]):
            condition = node.inputs[0]
            if condition is not None and condition.name in settled:
                _take(node, "then_branch" if settled[condition.name] else "else_branch", f"branch{round_}/{number}")
    RemoveUnusedNodesPass()(model)
    return replace(found, model=ir.to_proto(model))


def _settled(model: ir.Model, found: Found) -> dict[str, bool]:
    """Return the conditions at the top that always come out the same, and how."""
    conditions = {node.inputs[0] for node in model.graph if node.op_type == "If"} - Flow(model.graph).values_reached()
    names = {value.name or "" for value in conditions if value is not None}
    if not names:
        return {}
    asked = ir.to_proto(model)
    known = {item.name for item in asked.graph.output}
    asked.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.BOOL, None) for name in sorted(names - known)
    )
    try:
        foreign = Foreign(asked)
        runs = [foreign.run(_feeds(found, rows)) for rows in (_ROWS if found.has_batch else _ROWS[:1])]
    except ExportError:  # a condition that is no value of its own: leave the graph as it is
        return {}
    values = {name: {bool(run[name].all()) for run in runs} for name in names}
    return {name: seen.pop() for name, seen in values.items() if len(seen) == 1}


def _feeds(found: Found, rows: int) -> Arrays:
    rng = np.random.default_rng(0)
    feeds = {
        spec.name: random_array(spec.dtype, sized(spec.axes, rows, 1 if found.is_frame else _STEPS), rng)
        for spec in found.data
    }
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
