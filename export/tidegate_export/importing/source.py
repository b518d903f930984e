"""Reads an ONNX file that may be anything: broken, hostile, or a model that no session could stream.

Knows the file format and what may be refused by looking alone. Nothing is run here.
"""

from __future__ import annotations

import hashlib
import math
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper
from onnx_ir.passes.common import RemoveInitializersFromInputsPass, TopologicalSortPass

from tidegate.ort import is_known, newest_opset, onnxruntime
from tidegate_export.errors import ExportError

MOST_BYTES = 2_000_000_000
"""A protobuf message ends at 2 GiB, and a bundle's graph is one."""

MOST_ELEMENTS = 1 << 27
"""Of one tensor: half a gigabyte in fp32, beyond any state or step."""

MOST_NODES = 1_000_000
"""Of a graph with its local functions put in."""

RECURRENT = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")

_KNOWN_DOMAINS = ("ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")

Graphs: TypeAlias = Iterator[GraphProto]


@dataclass(frozen=True, slots=True)
class ImportSource:
    """A model with all its weights inside, local functions inlined, and where it came from."""

    model: onnx.ModelProto
    file: str
    sha256: str

    @property
    def opset(self) -> int:
        return next((item.version for item in self.model.opset_import if item.domain in {"", "ai.onnx"}), 0)


def read_source(path: Path) -> ImportSource:
    """Read the file and refuse what can be refused by looking.

    Raises:
        ExportError: With the reason and what to do.
    """
    data = _read(path)
    model = _parsed(data, path)
    model.ClearField("training_info")  # graphs of how it was trained: nothing that is served
    _load_external(model, path.parent)
    for tensor in _tensors(model):
        _check_size(tensor)
    if model.functions:
        _check_functions(model)
        _say_defaults(model)
        model = onnx.inliner.inline_local_functions(model)
    model = _in_order(model)
    _check_opset(model)
    for node in nodes(model.graph):
        _check_operator(node, model)
    return ImportSource(model, path.name, hashlib.sha256(data).hexdigest())


def nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Yield all nodes, those of nested graphs after the node that holds them."""
    yield from _with_inner(graph.node)


def inner_graphs(node: NodeProto) -> Graphs:
    """Yield the graphs that a node holds: branches of If, bodies of Loop and Scan."""
    for item in node.attribute:
        if item.type == AttributeProto.GRAPH:
            yield item.g
        yield from item.graphs


def constants(graph: GraphProto) -> dict[str, TensorProto]:
    """Return the constants of one graph, nested ones left out."""
    found = {item.name: item for item in graph.initializer}
    for node in graph.node:
        value = attribute(node, "value") if node.op_type == "Constant" else None
        if isinstance(value, TensorProto):
            found[node.output[0]] = value
    return found


def integers(graph: GraphProto) -> dict[str, list[int]]:
    """Return the constant lists of int64 of one graph."""
    lists = {
        name: item
        for name, item in constants(graph).items()
        if item.data_type == TensorProto.INT64 and len(item.dims) == 1
    }
    return {name: numpy_helper.to_array(item).tolist() for name, item in lists.items()}


def attribute(node: NodeProto, name: str) -> object:
    """Return the value of an attribute, None where the node has none of that name."""
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), None)


def called(node: NodeProto) -> str:
    """Return what a person can find the node by."""
    return f"{node.op_type} {node.name or (node.output[0] if node.output else '')!r}"


def _read(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ExportError(f"{path} is not a file")
        if path.stat().st_size > MOST_BYTES:
            raise ExportError(f"{path} has {path.stat().st_size:,} bytes: a bundle's graph may have {MOST_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}") from error


def _parsed(data: bytes, path: Path) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ExportError(f"{path} is not an ONNX file, or is cut off: copy or download it again") from error
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise ExportError(f"{path} is not an ONNX model, or is cut off: it has no graph with outputs, or no opset")
    return model


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield every constant of the model: of its graph, of its local functions, and of all that is nested in them."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _attribute_tensors(function.attribute_proto)
        for node in function.node:
            yield from _attribute_tensors(node.attribute)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from _sparse_tensors(sparse)
    for node in graph.node:
        yield from _attribute_tensors(node.attribute)


def _attribute_tensors(attributes: Iterable[AttributeProto]) -> Iterator[TensorProto]:
    """Yield what attributes hold in any of their fields, whatever type they say they are of."""
    for item in attributes:
        if item.HasField("t"):
            yield item.t
        yield from item.tensors
        for sparse in (*([item.sparse_tensor] if item.HasField("sparse_tensor") else ()), *item.sparse_tensors):
            yield from _sparse_tensors(sparse)
        for graph in (*([item.g] if item.HasField("g") else ()), *item.graphs):
            yield from _graph_tensors(graph)


def _sparse_tensors(sparse: SparseTensorProto) -> Iterator[TensorProto]:
    yield sparse.values  # where they lie is looked at first
    yield sparse.indices
    name = sparse.values.name or sparse.indices.name
    raise ExportError(f"{name!r} is a sparse constant: save the model with dense ones")


def _load_external(model: onnx.ModelProto, folder: Path) -> None:
    """Take weights that lie in files of their own into the model; only from the model's folder."""
    total = model.ByteSize()
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            total += _fill(tensor, folder, MOST_BYTES - total)
        tensor.ClearField("external_data")  # of one whose data is here, it would be said for nothing
        tensor.ClearField("data_location")


def _fill(tensor: TensorProto, folder: Path, room: int) -> int:
    entries = {item.key: item.value for item in tensor.external_data}
    file = _external_file(tensor.name, entries.get("location", ""), folder)
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
    except ValueError as error:
        raise ExportError(f"{tensor.name!r} has external data at no number: the file is damaged") from error
    size = file.stat().st_size
    length = size - offset if "length" not in entries else length
    if offset < 0 or length < 0 or offset + length > size:
        raise ExportError(
            f"{tensor.name!r} lies at {offset} to {offset + length} of {file.name}, which has {size} bytes: "
            "the file is cut off"
        )
    if length > room:
        raise ExportError(f"the model has more than {MOST_BYTES:,} bytes with its external data: no bundle holds that")
    try:
        with file.open("rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
    except OSError as error:
        raise ExportError(
            f"{tensor.name!r} has its data in {file.name!r}, which cannot be read: {error.strerror}"
        ) from error
    return length


def _external_file(name: str, location: str, folder: Path) -> Path:
    """Return the file, which must lie in the model's folder, links resolved."""
    if not location:
        raise ExportError(f"{name!r} has external data in no file: the model is damaged")
    root = folder.resolve()
    try:
        file = (root / location).resolve()
        is_inside = not Path(location).is_absolute() and file.is_relative_to(root)
        is_file = is_inside and file.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, links in a circle
        raise ExportError(f"{name!r} has its data in {location[:100]!r}, which is no file's name") from error
    if not is_inside:
        raise ExportError(
            f"{name!r} has its data in {location!r}, outside the model's folder: put the data file beside the model"
        )
    if not is_file:
        raise ExportError(f"{name!r} has its data in {location!r}, which is not beside the model: copy it there")
    return file


def _check_size(tensor: TensorProto) -> None:
    """Refuse a constant that says it is larger, or smaller, than its data."""
    dims = list(tensor.dims)
    count = math.prod(dims)
    if any(dim < 0 for dim in dims) or count > MOST_ELEMENTS * 4:
        raise ExportError(f"constant {tensor.name!r} declares the shape {dims}: the file is damaged")
    try:
        found = numpy_helper.to_array(tensor).size if count else 0
    except (ValueError, TypeError, KeyError) as error:
        raise ExportError(
            f"constant {tensor.name!r} declares the shape {dims}, its data is of another size: the file is damaged"
        ) from error
    assert found == count


def _in_order(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with constants that are no inputs, and with nodes behind what they read.

    Some converters leave them otherwise, and onnxruntime does not mind.
    """
    model.ir_version = max(model.ir_version, 4)  # before, every constant was an input too
    try:
        graph = ir.from_proto(model)
    except ir.serde.SerdeError as error:
        raise ExportError(f"the graph is not sound, the file is damaged: {error.__cause__ or error}") from error
    RemoveInitializersFromInputsPass()(graph)
    try:
        TopologicalSortPass()(graph)
    except ValueError as error:
        raise ExportError("the graph has a cycle: a node reads what comes of it") from error
    return ir.to_proto(graph)


def _check_functions(model: onnx.ModelProto) -> None:
    """Refuse local functions that call each other until millions of nodes come of them, or without an end.

    They are counted, not expanded: 30 functions that each call the next twice are a billion nodes.
    """
    calls = {
        (item.domain, item.name, item.overload): [_callee(node) for node in _with_inner(item.node)]
        for item in model.functions
    }
    try:
        order = list(
            TopologicalSorter(
                {key: [c for c in called_ if c in calls] for key, called_ in calls.items()}
            ).static_order()
        )
    except CycleError as error:
        raise ExportError(f"the local function {error.args[1][0][1]!r} calls itself: no graph comes of it") from error
    sizes: dict[tuple[str, str, str], int] = {}
    for key in order:
        sizes[key] = sum(sizes.get(other, 1) for other in calls[key])
    if sum(sizes.get(_callee(node), 1) for node in nodes(model.graph)) > MOST_NODES:
        raise ExportError(f"local functions expand to more than {MOST_NODES:,} nodes: the file is damaged or hostile")


def _callee(node: NodeProto) -> tuple[str, str, str]:
    return node.domain, node.op_type, node.overload


def _say_defaults(model: onnx.ModelProto) -> None:
    """Write the default attributes of local functions at their calls: the inliner leaves them out."""
    defaults = {(item.domain, item.name, item.overload): item.attribute_proto for item in model.functions}
    callers = [*nodes(model.graph), *(inner for item in model.functions for inner in _with_inner(item.node))]
    for node in callers:
        said = {item.name for item in node.attribute}
        node.attribute.extend(item for item in defaults.get(_callee(node), ()) if item.name not in said)


def _with_inner(some: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in some:
        yield node
        for inner in inner_graphs(node):
            yield from nodes(inner)


def _check_operator(node: NodeProto, model: onnx.ModelProto) -> None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    if domain and domain not in _KNOWN_DOMAINS:
        raise ExportError(
            f"{called(node)} is a custom operator of {domain!r}, which onnxruntime does not have: export the model "
            "with standard operators, or with the operator as a local function"
        )
    opset = next((item.version for item in model.opset_import if item.domain in {"", "ai.onnx"}), 0)
    if not domain and not _is_standard(node.op_type, opset):
        since = _first_opset(node.op_type)
        if since is not None:
            raise ExportError(
                f"{called(node)} came with opset {since}, and the file says opset {opset}: export the model with opset "
                f"{since} or later"
            )
        raise ExportError(f"{called(node)} is no operator of ONNX (opset {opset}): export the model with standard ones")
    if domain and not is_known(domain, node.op_type):
        raise ExportError(
            f"{called(node)} is no operator of {domain!r} that onnxruntime {onnxruntime.__version__} has: export the "
            "model with standard operators"
        )


def _first_opset(operator: str) -> int | None:
    """Return the opset that an operator came with, None where there is no such operator."""
    newest = onnx.defs.onnx_opset_version()
    return next((opset for opset in range(1, newest + 1) if _is_standard(operator, opset)), None)


def _check_opset(model: onnx.ModelProto) -> None:
    newest = newest_opset()
    for item in model.opset_import:
        if item.domain in {"", "ai.onnx"} and item.version > newest:
            raise ExportError(
                f"the file is of opset {item.version}, onnxruntime {onnxruntime.__version__} knows up to {newest}: "
                f"export the model with opset {newest} or earlier, or install a newer onnxruntime"
            )


def _is_standard(operator: str, opset: int) -> bool:
    try:
        onnx.defs.get_schema(operator, opset or 1)
    except onnx.defs.SchemaError:
        return False
    return True


def dtype_of(elem_type: int) -> str:
    """Return numpy's name of an ONNX element type; empty where there is none."""
    try:
        return np.dtype(helper.tensor_dtype_to_np_dtype(elem_type)).name
    except (KeyError, TypeError):
        return ""
