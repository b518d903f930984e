"""Gives outputs back the axes that they lose where those have one element.

A head that ends in `Squeeze` without axes, as many do, drops the time of a single step and the batch of a single row.
Nothing but the shape is changed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from tidegate.bundle import BATCH, TIME
from tidegate_export.importing.edit import copied, renamed
from tidegate_export.importing.plan import Axes


def with_axes_kept(
    model: onnx.ModelProto, outputs: Mapping[str, Axes], rows_from: tuple[str, int] | None
) -> onnx.ModelProto:
    """Return the model with `outputs` reshaped to their axes.

    Args:
        model: Is left as it is.
        outputs: Axes by name.
        rows_from: An input and its batch axis, where an output has both a batch and a time.
    """
    kept = copied(model)
    names = {name: f"{name}/squeezed" for name in outputs}
    renamed(kept.graph, names)
    for name, axes in outputs.items():
        _add_reshape(kept.graph, names[name], name, axes, rows_from)
    return kept


def _add_reshape(
    graph: onnx.GraphProto, source: str, target: str, axes: Axes, rows_from: tuple[str, int] | None
) -> None:
    """Time is what is left; so is the batch where there is no time."""
    free = TIME if TIME in axes else BATCH
    parts = []
    for place, axis in enumerate(axes):
        part = f"{target}/size{place}"
        if axis == BATCH and free == TIME and rows_from is not None:
            graph.node.extend(_rows(part, *rows_from))
            graph.initializer.append(numpy_helper.from_array(np.array([rows_from[1]], np.int64), f"{part}/axis"))
        else:
            size = axis if isinstance(axis, int) else -1
            graph.initializer.append(numpy_helper.from_array(np.array([size], np.int64), part))
        parts.append(part)
    shape = helper.make_node("Concat", parts, [f"{target}/shape"], axis=0)
    graph.node.extend([shape, helper.make_node("Reshape", [source, f"{target}/shape"], [target])])


def _rows(part: str, name: str, axis: int) -> list[NodeProto]:
    shape = helper.make_node("Shape", [name], [f"{part}/shape"])
    return [shape, helper.make_node("Gather", [f"{part}/shape", f"{part}/axis"], [part])]
