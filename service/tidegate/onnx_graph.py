"""The nodes and constants of an ONNX file, read without the package ``onnx``: what the analysis of a graph needs.

Weights are not copied: a tensor holds a view of the file, and its numbers are read when they are asked for.

Numbers of fields: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidegate.limits import MAX_GRAPH_DEPTH, MAX_GRAPH_FIELDS
from tidegate.protobuf import Field, block, entries, number, numbers, text

MODEL_GRAPH = 7
_GRAPH_OUTPUT = 12

_DTYPES = {
    1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8", 12: "<u4",
    13: "<u8",
}  # fmt: skip
_FLOATS, _INT32S, _INT64S, _DOUBLES, _UINT64S = 4, 5, 7, 10, 11


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor of the file: its shape, and where its numbers are."""

    dims: tuple[int, ...]
    data_type: int
    entries: tuple[Field, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.dims, dtype=np.float64))

    def array(self) -> NDArray[Any] | None:
        """Return its numbers; None where they are of a type that numpy does not have, or not what the shape says."""
        dtype = _DTYPES.get(self.data_type)
        if dtype is None:
            return None
        raw = [entry.content for entry in self.entries if entry.number == 9]
        if raw:
            array = np.frombuffer(b"".join(raw), np.uint8)
            found = array.view(dtype) if len(array) == self.size * np.dtype(dtype).itemsize else None
        else:
            found = self._typed(dtype)
        return None if found is None or found.size != self.size else found.reshape(self.dims)

    def _typed(self, dtype: str) -> NDArray[Any] | None:
        whole = [n for entry in self.entries if entry.number in {_INT32S, _INT64S, _UINT64S} for n in numbers(entry)]
        if whole:
            if dtype == "<f2":  # half precision lies in the bits of whole numbers
                return np.array(whole, np.uint16).view(np.float16)
            return np.array(whole).astype(dtype)
        parts = [entry for entry in self.entries if entry.number in {_FLOATS, _DOUBLES}]
        content = b"".join(bytes(part.content) if len(part.content) else _fixed(part) for part in parts)
        kind = "<f8" if any(part.number == _DOUBLES for part in parts) else "<f4"
        return np.frombuffer(content, kind).astype(dtype) if len(content) % np.dtype(kind).itemsize == 0 else None


@dataclass(frozen=True, slots=True)
class Attribute:
    """What a node's attribute holds: one of these."""

    whole: tuple[int, ...] = ()
    floats: tuple[float, ...] = ()
    word: str = ""
    tensor: Constant | None = None
    graphs: tuple[Graph, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """One operator; an input that is left out has an empty name."""

    operator: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]

    def input(self, index: int) -> str:
        """Return the name of an input, empty where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def integers(self, name: str) -> tuple[int, ...]:
        """Return the whole numbers of an attribute, none where it is left out."""
        found = self.attributes.get(name)
        return () if found is None else found.whole

    def integer(self, name: str, default: int) -> int:
        """Return the whole number of an attribute."""
        return (*self.integers(name), default)[0]

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """The graphs inside, in the order of the attributes."""
        return tuple(graph for attribute in self.attributes.values() for graph in attribute.graphs)


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in the order in which they can run, with the constants beside them."""

    nodes: tuple[Node, ...]
    constants: Mapping[str, Constant]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(slots=True)
class _Room:
    """Fields that may still be read."""

    left: int = field(default=MAX_GRAPH_FIELDS)


def read_graph(model: bytes) -> Graph:
    """Read the graph of an ONNX file.

    Raises:
        ValueError: It is not one, or is larger or deeper than a graph may be.
    """
    room = _Room()
    for entry in _fields(memoryview(model), room):
        if entry.number == MODEL_GRAPH:
            return _graph(entry.content, room, 1)
    raise ValueError("it holds no graph")


def with_outputs(model: bytes, names: Iterable[str]) -> bytes:
    """Return an ONNX file whose graph gives these tensors out as well; their types are for the runtime to find."""
    added = b"".join(block(_GRAPH_OUTPUT, text(1, name)) for name in names)
    parts: list[bytes | memoryview] = []
    for entry in entries(model):
        is_graph = entry.number == MODEL_GRAPH
        parts.append(block(MODEL_GRAPH, b"".join((entry.content, added))) if is_graph else entry.encoding)
    return b"".join(parts)


def _fields(message: memoryview, room: _Room) -> Iterator[Field]:
    for entry in entries(message):
        room.left -= 1
        if room.left < 0:
            raise ValueError(f"more than {MAX_GRAPH_FIELDS:,} fields")
        yield entry


def _graph(message: memoryview, room: _Room, depth: int) -> Graph:
    if depth > MAX_GRAPH_DEPTH:
        raise ValueError(f"graphs lie within each other {MAX_GRAPH_DEPTH} deep")
    nodes: list[Node] = []
    constants: dict[str, Constant] = {}
    inputs: list[str] = []
    outputs: list[str] = []
    for entry in _fields(message, room):
        match entry.number:
            case 1:
                nodes.append(_node(entry.content, room, depth))
            case 5:
                name, constant = _tensor(entry.content, room)
                constants[name] = constant
            case 11:
                inputs.append(_name(entry.content, room))
            case 12:
                outputs.append(_name(entry.content, room))
            case _:
                pass
    return Graph(tuple(nodes), constants, tuple(inputs), tuple(outputs))


def _node(message: memoryview, room: _Room, depth: int) -> Node:
    words: dict[int, list[str]] = {1: [], 2: [], 3: [""], 4: [""], 7: [""]}
    attributes: dict[str, Attribute] = {}
    for entry in _fields(message, room):
        if entry.number in words:
            words[entry.number].append(_text(entry))
        elif entry.number == 5:
            name, attribute = _attribute(entry.content, room, depth)
            attributes[name] = attribute
    return Node(words[4][-1], words[7][-1], words[3][-1], tuple(words[1]), tuple(words[2]), attributes)


def _attribute(message: memoryview, room: _Room, depth: int) -> tuple[str, Attribute]:
    name = word = ""
    whole: list[int] = []
    floats: list[float] = []
    tensor: Constant | None = None
    graphs: list[Graph] = []
    for entry in _fields(message, room):
        match entry.number:
            case 1:
                name = _text(entry)
            case 2:
                floats += _floats(_fixed(entry))
            case 3:
                whole.append(number(entry))
            case 4:
                word = _text(entry)
            case 5 | 10:
                _, tensor = _tensor(entry.content, room)
            case 6 | 11:
                graphs.append(_graph(entry.content, room, depth + 1))
            case 7:
                floats += _floats(bytes(entry.content) if len(entry.content) else _fixed(entry))
            case 8:
                whole += numbers(entry)
            case _:
                pass
    return name, Attribute(tuple(whole), tuple(floats), word, tensor, tuple(graphs))


def _tensor(message: memoryview, room: _Room) -> tuple[str, Constant]:
    name, dims, data_type = "", list[int](), 0
    held: list[Field] = []
    for entry in _fields(message, room):
        match entry.number:
            case 1:
                dims += numbers(entry)
            case 2:
                data_type = number(entry)
            case 8:
                name = _text(entry)
            case 4 | 5 | 7 | 9 | 10 | 11:
                held.append(entry)
            case _:
                pass
    if any(dim < 0 for dim in dims):
        raise ValueError(f"the tensor {name!r} has a negative size")
    return name, Constant(tuple(dims), data_type, tuple(held))


def _name(message: memoryview, room: _Room) -> str:
    return next((_text(entry) for entry in _fields(message, room) if entry.number == 1), "")


def _text(entry: Field) -> str:
    return bytes(entry.content).decode("utf-8", "replace")


def _fixed(entry: Field) -> bytes:
    """Return the bytes of a number of fixed size: the last four or eight of the field."""
    return bytes(entry.encoding[-4:] if entry.encoding[0] & 7 == 5 else entry.encoding[-8:])


def _floats(content: bytes) -> list[float]:
    if len(content) % 4:
        raise ValueError("numbers of another size than four bytes")
    return list(struct.unpack(f"<{len(content) // 4}f", content))
