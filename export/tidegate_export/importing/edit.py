"""Changes to a foreign graph that leave what it computes alone: constants put in, names changed, sizes forgotten.

Works on copies. Knows ONNX's data structures, not what the tensors mean. A head that ends in `Squeeze` without axes, as
many do, drops the time of a single step and the batch of a single row: `with_axes_kept` gives such outputs them back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from tidegate.bundle import BATCH, TIME
from tidegate_export.importing.foreign import Array, Declared, declared
from tidegate_export.importing.plan import Axes
from tidegate_export.importing.source import inner_graphs, integers, nodes


def with_constants(
    model: onnx.ModelProto, constants: Mapping[str, Array], inputs: Mapping[str, Declared]
) -> onnx.ModelProto:
    """Return the model with some inputs as constants.

    An axis that another input has by the same name takes its size from there, when the graph runs.
    """
    baked = copied(model)
    kept = [item for item in baked.graph.input if item.name not in constants]
    del baked.graph.input[:]
    baked.graph.input.extend(kept)
    for name, value in constants.items():
        places = _shared(inputs[name], [inputs[item.name] for item in kept])
        if not places:
            baked.graph.initializer.append(numpy_helper.from_array(value, name))
            continue
        new = list(_expanded(name, value, places))
        baked.graph.initializer.extend(item for item in new if isinstance(item, TensorProto))
        first = [item for item in new if isinstance(item, NodeProto)]
        rest = list(baked.graph.node)
        del baked.graph.node[:]
        baked.graph.node.extend([*first, *rest])
    return baked


def is_empty(item: Declared) -> bool:
    """Whether a tensor holds nothing, whatever its free axes are."""
    return 0 in (item.dims or ())


def empty(item: Declared) -> Array:
    """Return the only value of a tensor that holds nothing."""
    return np.zeros([dim if isinstance(dim, int) else 1 for dim in item.dims or ()], item.dtype)


def without_empty_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model without the outputs that hold nothing."""
    kept = copied(model)
    told = [
        item
        for item, known in zip(model.graph.output, declared(model.graph.output), strict=True)
        if not is_empty(known)
    ]
    del kept.graph.output[:]
    kept.graph.output.extend(told)
    return kept


def _shared(item: Declared, others: list[Declared]) -> list[tuple[str, int] | int]:
    """Return where each axis of `item` takes its size from; nothing where all are sizes."""
    places: list[tuple[str, int] | int] = []
    is_free = False
    for dim in item.dims or ():
        found = next(
            ((other.name, (other.dims or ()).index(dim)) for other in others if dim in (other.dims or ())), None
        )
        has_source = isinstance(dim, str) and found is not None
        is_free |= has_source
        places.append(found if has_source and found is not None else dim if isinstance(dim, int) else 1)
    return places if is_free else []


def _expanded(name: str, value: Array, places: list[tuple[str, int] | int]) -> Iterator[NodeProto | TensorProto]:
    yield numpy_helper.from_array(value, f"{name}/value")
    parts = []
    for index, place in enumerate(places):
        part = f"{name}/size{index}"
        parts.append(part)
        if isinstance(place, int):
            yield numpy_helper.from_array(np.array([place], np.int64), part)
            continue
        yield numpy_helper.from_array(np.array([place[1]], np.int64), f"{part}/axis")
        yield helper.make_node("Shape", [place[0]], [f"{part}/shape"])
        yield helper.make_node("Gather", [f"{part}/shape", f"{part}/axis"], [part])
    yield helper.make_node("Concat", parts, [f"{name}/shape"], axis=0)
    yield helper.make_node("Expand", [f"{name}/value", f"{name}/shape"], [name])


def with_free_axes(model: onnx.ModelProto, axes: Mapping[str, int], label: str) -> onnx.ModelProto:
    """Return the model with one axis of some inputs free, and all sizes that were inferred from it forgotten."""
    freed = copied(model)
    for item in freed.graph.input:
        if item.name in axes:
            item.type.tensor_type.shape.dim[axes[item.name]].dim_param = label
    _forget(freed.graph)
    return freed


def with_free_reshapes(model: onnx.ModelProto, which: int) -> onnx.ModelProto:
    """Return the model with a 1 of its constant shapes left open: exporters write the sizes of their example there.

    Opened is the first (`which` 0), the second (1) or a later 1. Whether that is right is for the caller to find out.
    """
    opened = copied(model)
    for graph in _graphs(opened.graph):
        constants = integers(graph)
        for index, node in enumerate(graph.node):
            shape = constants.get(node.input[1]) if node.op_type == "Reshape" else None
            ones = [at for at, size in enumerate(shape or []) if size == 1]
            if shape is None or len(ones) <= which:
                continue
            place = ones[which]
            open_ = [-1 if at == place else size for at, size in enumerate(shape)]
            if -1 in shape:
                open_[place] = 0  # as large as the input's axis at this place
            node.input[1] = f"{node.input[1]}/{index}"
            graph.initializer.append(numpy_helper.from_array(np.array(open_, np.int64), node.input[1]))
    return opened


def renamed(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Change names of values in place, in nested graphs too."""
    for node in nodes(graph):
        for field in (node.input, node.output):
            for index, name in enumerate(field):
                field[index] = names.get(name, name)
        for inner in inner_graphs(node):
            for item in inner.output:
                item.name = names.get(item.name, item.name)


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from _graphs(inner)


def _forget(graph: GraphProto) -> None:
    for inner in _graphs(graph):
        del inner.value_info[:]
        for item in inner.output:
            item.type.tensor_type.ClearField("shape")


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
