"""Turns recurrent layers that take the batch first (`layout=1`) into such that take the time first.

onnxruntime's CPU kernels refuse the former. Values are only moved, so the results are the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import onnx
from onnx import GraphProto, NodeProto, helper

from tidegate_export.importing.source import RECURRENT, attribute, inner_graphs

_SWAPPED = (1, 0, 2)
_ROWS_FIRST = (2, 0, 1, 3)
"""Of Y [time, directions, batch, hidden]."""


def put_time_first(model: onnx.ModelProto) -> None:
    """Change the layers of a model in place, those of nested graphs too."""
    _put_time_first(model.graph, count())


def _put_time_first(graph: GraphProto, numbers: Iterator[int]) -> None:
    changed: list[NodeProto] = []
    for node in graph.node:
        for inner in inner_graphs(node):
            _put_time_first(inner, numbers)
        if node.op_type in RECURRENT and attribute(node, "layout") == 1:
            changed += _time_first(node, f"layout/{next(numbers)}")
        else:
            changed.append(node)
    copies = [_copied(node) for node in changed]
    del graph.node[:]
    graph.node.extend(copies)


def _time_first(node: NodeProto, stem: str) -> Iterator[NodeProto]:
    layer = _copied(node)
    rest = [item for item in layer.attribute if item.name != "layout"]
    del layer.attribute[:]
    layer.attribute.extend(rest)
    for place in (0, 5, 6):
        if len(layer.input) > place and layer.input[place]:
            name = f"{stem}/in{place}"
            yield helper.make_node("Transpose", [layer.input[place]], [name], perm=_SWAPPED)
            layer.input[place] = name
    after = []
    for place, order in enumerate((_ROWS_FIRST, _SWAPPED, _SWAPPED)):
        if len(layer.output) > place and layer.output[place]:
            name = f"{stem}/out{place}"
            after.append(helper.make_node("Transpose", [name], [layer.output[place]], perm=order))
            layer.output[place] = name
    yield layer
    yield from after


def _copied(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
