"""The device graph: a bundle's graph that takes its states from rows of an arena and puts the new ones into others.

What was ``x, states → outputs, states`` becomes ``x, arenas, sources, targets → outputs, arenas``: a Gather in front of
each state, a ScatterND behind it. ``sources`` [rows] are the rows of the arena that the states are in, ``targets``
[rows, 1] those that they go to. The two share no row, so the arena that goes out may be the one that came in.

An arena has its rows first, [capacity, …]: Gather and ScatterND move whole rows. Where a state has its batch elsewhere
it is transposed, where it has none (rows then run one by one) reshaped.

Numbers of fields: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tidegate.bundle import StateSpec
from tidegate.protobuf import Field, block, entries, integer, integers, text

SOURCES = "tidegate.sources"
TARGETS = "tidegate.targets"

_MODEL_GRAPH = 7
_NODE, _INITIALIZER, _INPUT, _OUTPUT = 1, 5, 11, 12
_INTS = 7
_DTYPES = {
    "float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "float64": 11
}  # fmt: skip


class ArenaNames(NamedTuple):
    """What a state's arena is called on its way in and out."""

    before: str
    after: str


def arena_names(index: int) -> ArenaNames:
    """Return the names for the state of this index."""
    return ArenaNames(f"tidegate.arena.{index}", f"tidegate.arena.{index}.next")


def device_graph(model: bytes, states: Sequence[StateSpec], kept: Sequence[str] = ()) -> bytes:
    """Wrap the ONNX file ``model``, whose states are ``states``.

    Args:
        model: A serialised ModelProto of opset 11 or later (ScatterND); its weights are copied as they are.
        states: The states, in the order of the arenas.
        kept: Names of outputs that must stay outputs, even where a state is the same tensor.

    Raises:
        ValueError: The file is not a serialised message.
    """
    hidden = {(_INPUT, state.input) for state in states}
    hidden |= {(_OUTPUT, state.output) for state in states if state.output not in kept}
    parts: list[bytes | memoryview] = []
    for entry in entries(model):
        if entry.number == _MODEL_GRAPH:
            parts.append(block(_MODEL_GRAPH, _wrapped(entry.content, states, hidden)))
        else:
            parts.append(entry.encoding)
    return b"".join(parts)


def _wrapped(graph: memoryview, states: Sequence[StateSpec], hidden: set[tuple[int, str]]) -> bytes:
    """Nodes come in the order in which they can run: those that gather, the model's, those that scatter."""
    body = [entry.encoding for entry in entries(graph) if (entry.number, _name(entry)) not in hidden]
    before = [part for index, state in enumerate(states) for part in _gather(state, index)]
    after = [part for index, state in enumerate(states) for part in _scatter(state, index)]
    rows = [_value(_INPUT, SOURCES, "int64", (None,)), _value(_INPUT, TARGETS, "int64", (None, 1))]
    return b"".join((*before, *body, *after, *rows))


def _name(entry: Field) -> str:
    """Return the name of an input or output of a graph; others have none that matters here."""
    if entry.number not in {_INPUT, _OUTPUT}:
        return ""
    return next((bytes(field.content).decode() for field in entries(entry.content) if field.number == 1), "")


def _gather(state: StateSpec, index: int) -> Iterator[bytes]:
    """Put the rows at ``sources`` where the graph expects its state."""
    arena = arena_names(index).before
    yield _value(_INPUT, arena, state.dtype, (None, *state.row_shape))
    if state.batch_axis == 0:
        yield _node("Gather", [arena, SOURCES], state.input)
        return
    rows = f"{arena}.rows"
    yield _node("Gather", [arena, SOURCES], rows)
    if state.batch_axis is None:
        yield _shape(f"{arena}.row_shape", state.row_shape)
        yield _node("Reshape", [rows, f"{arena}.row_shape"], state.input)
    else:
        yield _node("Transpose", [rows], state.input, perm=_rows_to(state.batch_axis, len(state.axes)))


def _scatter(state: StateSpec, index: int) -> Iterator[bytes]:
    """Put the graph's new state into the rows at ``targets``."""
    arena, after = arena_names(index)
    yield _value(_OUTPUT, after, state.dtype, (None, *state.row_shape))
    rows = state.output
    if state.batch_axis is None:
        rows = f"{after}.rows"
        yield _shape(f"{after}.rows_shape", (1, *state.row_shape))
        yield _node("Reshape", [state.output, f"{after}.rows_shape"], rows)
    elif state.batch_axis > 0:
        rows = f"{after}.rows"
        yield _node("Transpose", [state.output], rows, perm=_rows_from(state.batch_axis, len(state.axes)))
    yield _node("ScatterND", [arena, TARGETS, rows], after)


def _rows_to(axis: int, rank: int) -> list[int]:
    """Return the permutation that moves the first axis to ``axis``."""
    others = list(range(1, rank))
    return [*others[:axis], 0, *others[axis:]]


def _rows_from(axis: int, rank: int) -> list[int]:
    """Return the permutation that moves ``axis`` to the front: the inverse of ``_rows_to``."""
    return [axis, *(other for other in range(rank) if other != axis)]


def _node(operator: str, inputs: Sequence[str], output: str, perm: Sequence[int] = ()) -> bytes:
    """Return a NodeProto. Gather's axis is 0 by default, a Transpose has its ``perm``."""
    fields = [*(text(1, name) for name in inputs), text(2, output), text(3, f"{output}.{operator}"), text(4, operator)]
    if perm:
        fields.append(block(5, text(1, "perm") + integers(8, perm) + integer(20, _INTS)))
    return block(_NODE, b"".join(fields))


def _value(number: int, name: str, dtype: str, shape: Sequence[int | None]) -> bytes:
    """Return a ValueInfoProto; an axis of None may have any size."""
    axes = b"".join(block(1, b"" if size is None else integer(1, size)) for size in shape)
    tensor = integer(1, _DTYPES[dtype]) + block(2, axes)
    return block(number, text(1, name) + block(2, block(1, tensor)))


def _shape(name: str, shape: Sequence[int]) -> bytes:
    """Return a TensorProto of int64 [rank]."""
    return block(
        _INITIALIZER, integer(1, len(shape)) + integer(2, _DTYPES["int64"]) + integers(7, shape) + text(8, name)
    )
