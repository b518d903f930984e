"""Takes the branches that a graph always takes: an `If` on a constant or on the shape of a state is no question.

With them go the layers and weights of the branches that are never run, which would look like layers without state. A
condition counts as settled where no input's values reach it, only shapes and constants, and where it came out the same
for several numbers of rows.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper

from tidegate_export.errors import ExportError
from tidegate_export.importing.edit import copied, renamed
from tidegate_export.importing.foreign import Arrays, Foreign, random_array
from tidegate_export.importing.plan import Found, sized
from tidegate_export.importing.source import attribute, copied_node, reads

_MOST_ROUNDS = 64
_ROWS = (1, 2, 3, 17)
_STEPS = 5
_SHAPES = {"Shape", "Size"}


def with_branches_taken(found: Found) -> Found:
    """Return `found` with a graph in which every settled `If` is replaced by the branch that it takes."""
    model = copied(found.model)
    for round_ in range(_MOST_ROUNDS):
        settled = _settled(model, found)
        if not settled:
            break
        _take(model.graph, settled, f"branch{round_}")
    _drop_unused(model.graph)
    return replace(found, model=model)


def _settled(model: onnx.ModelProto, found: Found) -> dict[str, bool]:
    """Return the conditions at the top that always come out the same, and how."""
    open_ = _reached_by_values(model.graph)
    conditions = {node.input[0] for node in model.graph.node if node.op_type == "If"} - open_
    known = {item.name for item in model.graph.output}
    asked = copied(model)
    asked.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.BOOL, None) for name in sorted(conditions - known)
    )
    if not conditions:
        return {}
    try:
        foreign = Foreign(asked)
        runs = [foreign.run(_feeds(found, rows)) for rows in (_ROWS if found.has_batch else _ROWS[:1])]
    except ExportError:  # a condition that is no value of its own: leave the graph as it is
        return {}
    values = {name: {bool(run[name].all()) for run in runs} for name in conditions}
    return {name: seen.pop() for name, seen in values.items() if len(seen) == 1}


def _reached_by_values(graph: GraphProto) -> set[str]:
    """Return the names whose values hang on the values of inputs, not only on their shapes."""
    reached = {item.name for item in graph.input}
    for node in graph.node:
        if node.op_type not in _SHAPES and not reached.isdisjoint(reads(node)):
            reached.update(node.output)
    return reached


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


def _take(graph: GraphProto, settled: dict[str, bool], prefix: str) -> None:
    kept: list[NodeProto] = []
    for index, node in enumerate(graph.node):
        if node.op_type != "If" or node.input[0] not in settled:
            kept.append(node)
            continue
        branch = attribute(node, "then_branch" if settled[node.input[0]] else "else_branch")
        assert isinstance(branch, GraphProto)
        kept.extend(_inlined(branch, node, f"{prefix}/{index}", graph))
    nodes = [copied_node(node) for node in kept]
    del graph.node[:]
    graph.node.extend(nodes)


def _inlined(branch: GraphProto, node: NodeProto, prefix: str, graph: GraphProto) -> list[NodeProto]:
    """Return the branch's nodes under names of their own, and what hands its results on."""
    own = {item.name for item in branch.initializer} | {name for item in branch.node for name in item.output if name}
    names = {name: f"{prefix}/{name}" for name in own}
    results = [names.get(item.name, item.name) for item in branch.output]
    taken = GraphProto()
    taken.CopyFrom(branch)
    renamed(taken, names)
    for item in taken.initializer:
        item.name = names[item.name]
        graph.initializer.append(item)
    hand_on = [
        helper.make_node("Identity", [source], [target])
        for source, target in zip(results, node.output, strict=True)
        if target
    ]
    return [*taken.node, *hand_on]


def _drop_unused(graph: GraphProto) -> None:
    wanted = {item.name for item in graph.output}
    needed = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            needed.append(copied_node(node))
            wanted.update(reads(node))
    constants = [item for item in graph.initializer if item.name in wanted]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(needed))
    graph.initializer.extend(constants)
