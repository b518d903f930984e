"""Blocks that a graph is wired of: cells and layers with their states at the edges, and what has no memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from onnx import TensorProto, helper

from tests.export.importing.graphs import GATES
from tests.search.builder import ONNX_TYPES, Builder, Value
from tests.search.cells import CELLS, Cell


def pointwise(b: Builder, x: Value) -> Value:
    """Something of each step alone."""
    match b.random.randrange(5):
        case 0:
            return Value(b.add(b.random.choice(("Relu", "Tanh", "Sigmoid", "Abs")), b.linear(x, 6).name), 6)
        case 1:  # residual
            return Value(b.add("Add", x.name, b.add("Tanh", b.linear(x, x.width).name)), x.width)
        case 2:  # gated
            gate = b.add("Sigmoid", b.linear(x, x.width).name)
            return Value(b.add("Mul", x.name, gate), x.width)
        case 3:  # normalised over the features
            mean = b.reduce("ReduceMean", x.name, -1)
            centred = b.add("Sub", x.name, mean)
            spread = b.add(
                "Sqrt", b.add("Add", b.reduce("ReduceMean", b.add("Mul", centred, centred), -1), b.constant(1e-3))
            )
            return Value(b.add("Div", centred, spread), x.width)
        case _:
            return b.concat([x, Value(b.add("Relu", b.linear(x, 4).name), 4)])


def frame_cell(b: Builder, x: Value) -> Value:
    """A cell with its states at the edges; one run is one step."""
    cell = _cell(b, x.width)
    states, carries = zip(*(_edge(b, *spec) for spec in cell.states), strict=True)
    y, news = cell.step(b, x, states)
    for carry, new in zip(carries, news, strict=True):
        carry(new)
    return y


def _cell(b: Builder, width: int) -> Cell:
    name = b.random.choice(sorted(CELLS))
    b.notes.append(name)
    return CELLS[name](b, width)


def _edge(b: Builder, core: tuple[int, ...] | None, dtype: str) -> tuple[str, Callable[[str], None]]:
    return b.add_counter(dtype) if core is None else b.add_state(core, dtype)


def frame_layer(b: Builder, x: Value) -> Value:
    """An operator of ONNX over one step."""
    y = time_layer(b, Value(b.unsqueeze(x.name, 0), x.width))
    return Value(b.squeeze(y.name, 0), y.width)


def time_layer(b: Builder, x: Value, *, is_lifted: bool = False) -> Value:
    """LSTM, GRU or RNN over x [T, B, F]; states at the edges, or nowhere (`is_lifted`)."""
    cell = b.random.choice(("LSTM", "GRU", "GRU", "RNN"))
    hidden = b.random.choice((3, 5, 8))
    layers = b.random.choice((1, 1, 2, 3))
    num = 2 if cell == "LSTM" else 1
    attributes = {"linear_before_reset": 1} if cell == "GRU" and b.chance(0.5) else {}
    b.notes.append(f"{cell}{layers}{'-' if is_lifted else ''}")
    if is_lifted:
        for _ in range(layers):
            x = _layer(b, cell, x, hidden, [_first(b, x, hidden) for _ in range(num)], attributes)[0]
        return x
    shape = b.random.choice((_apart, _stacked, _flat)) if num == 2 or layers > 1 else _apart
    for layer in shape(b, hidden, layers, num):
        x, lasts = _layer(b, cell, x, hidden, layer.firsts, attributes)
        layer.carry(lasts)
    return x


class _Edges(NamedTuple):
    """The states of one layer as its operator takes them, [1, B, H] each, and what takes the last ones."""

    firsts: Sequence[str]
    carry: Callable[[Sequence[str]], None]


def _apart(b: Builder, hidden: int, layers: int, num: int) -> Iterator[_Edges]:
    """A tensor for each state."""
    for _ in range(layers):
        states, carries = zip(*(b.add_state((hidden,)) for _ in range(num)), strict=True)

        def carry(lasts: Sequence[str], carries: Sequence[Callable[[str], None]] = carries) -> None:
            for each, last in zip(carries, lasts, strict=True):
                each(b.squeeze(last, 0))

        yield _Edges([b.unsqueeze(state, 0) for state in states], carry)


def _stacked(b: Builder, hidden: int, layers: int, num: int) -> Iterator[_Edges]:
    """A tensor [B, layers, H] each for h and c."""
    states, carries = zip(*(b.add_state((layers, hidden)) for _ in range(num)), strict=True)
    parts = [b.split(state, [1] * layers, axis=1) for state in states]
    news: list[list[str]] = [[] for _ in states]

    def carry(lasts: Sequence[str]) -> None:
        for new, last in zip(news, lasts, strict=True):
            new.append(b.add("Transpose", last, perm=[1, 0, 2]))

    for place in range(layers):
        yield _Edges([b.add("Transpose", part[place], perm=[1, 0, 2]) for part in parts], carry)
    for each, new in zip(carries, news, strict=True):
        each(b.add("Concat", *new, axis=1) if layers > 1 else new[0])


def _flat(b: Builder, hidden: int, layers: int, num: int) -> Iterator[_Edges]:
    """All states side by side in one tensor."""
    state, carry_all = b.add_state((layers * num * hidden,))
    flat = b.split(state, [hidden] * (layers * num))
    after: list[str] = []
    for place in range(layers):
        firsts = [b.unsqueeze(part, 0) for part in flat[place * num : place * num + num]]
        yield _Edges(firsts, lambda lasts: after.extend(b.squeeze(last, 0) for last in lasts))
    carry_all(b.add("Concat", *after, axis=1) if len(after) > 1 else after[0])


def _layer(
    b: Builder, cell: str, x: Value, hidden: int, firsts: Sequence[str], attributes: dict[str, int]
) -> tuple[Value, list[str]]:
    size = GATES[cell] * hidden
    rng = np.random.default_rng(b.random.getrandbits(32))
    weights = [
        b.constant(rng.normal(scale=0.4, size=shape))
        for shape in ((1, size, x.width), (1, size, hidden), (1, 2 * size))
    ]
    lengths = b.layer_lengths()
    tag = b.random.getrandbits(40)
    num = 2 if cell == "LSTM" else 1
    names = [f"Y_{tag}", *(f"last{place}_{tag}" for place in range(num))]
    inputs = [x.name, *weights, lengths, *firsts]
    while not inputs[-1]:
        inputs.pop()
    node = helper.make_node(cell, inputs, names, name=names[0])
    node.attribute.extend(
        helper.make_attribute(key, value) for key, value in {**attributes, "hidden_size": hidden}.items()
    )
    b.net.nodes.append(node)
    return Value(b.squeeze(names[0], 1), hidden), names[1:]


def _first(b: Builder, x: Value, hidden: int) -> str:
    """Return the first state of a layer that has no state tensors: none, zeros by the batch's size, or learned."""
    match b.random.randrange(4):
        case 0 | 1:
            return ""
        case 2:
            rows = b.slice(b.add("Shape", x.name), 1, 2, 0)
            shape = b.add("Concat", b.integers(1), rows, b.integers(hidden), axis=0)
            return b.add("ConstantOfShape", shape)
        case _:
            learned = b.constant(np.random.default_rng(b.random.getrandbits(32)).normal(size=(1, 1, hidden)))
            rows = b.slice(b.add("Shape", x.name), 1, 2, 0)
            return b.add("Expand", learned, b.add("Concat", b.integers(1), rows, b.integers(1), axis=0))


def scanned_cell(b: Builder, x: Value, *, is_lifted: bool = False) -> Value:
    """A cell in the body of a `Scan` over x [T, B, F]."""
    cell = _cell(b, x.width)
    b.notes.append("scan-" if is_lifted else "scan")
    if is_lifted:
        rows = b.slice(b.add("Shape", x.name), 1, 2, 0)
        firsts = [_zeros(b, rows, *spec) for spec in cell.states]
        edges = []
    else:
        edges = [_edge(b, *spec) for spec in cell.states]
        firsts = [edge[0] for edge in edges]
    tag = b.random.getrandbits(40)
    with b.nested():
        names = [f"before{i}_{tag}" for i in range(len(firsts))]
        y, news = cell.step(b, Value(f"x_{tag}", x.width), names)
        afters = [b.add("Identity", new) for new in news]
        told = b.add("Identity", y.name)
        parameters = [
            helper.make_tensor_value_info(name, ONNX_TYPES[dtype], [1] if core is None else [f"rows_{tag}", *core])
            for name, (core, dtype) in zip(names, cell.states, strict=True)
        ]
        parameters.append(helper.make_tensor_value_info(f"x_{tag}", TensorProto.FLOAT, [f"rows_{tag}", x.width]))
        results = {after: ONNX_TYPES[dtype] for after, (_, dtype) in zip(afters, cell.states, strict=True)}
        body = b.net.body(f"body_{tag}", parameters, {**results, told: TensorProto.FLOAT})
    lasts = [f"after{i}_{tag}" for i in range(len(firsts))]
    scan = helper.make_node(
        "Scan", [*firsts, x.name], [*lasts, f"all_{tag}"], name=f"scan_{tag}", body=body, num_scan_inputs=1
    )
    b.net.nodes.append(scan)
    for (_, carry), last in zip(edges, lasts, strict=False):
        carry(last)
    return Value(f"all_{tag}", y.width)


def _zeros(b: Builder, rows: str, core: tuple[int, ...] | None, dtype: str) -> str:
    if core is None:
        return b.constant([0], dtype)
    shape = b.add("Concat", rows, b.integers(*core), axis=0)
    return b.add("ConstantOfShape", shape, value=helper.make_tensor("zero", ONNX_TYPES[dtype], [1], [0]))


def time_convolution(b: Builder, x: Value) -> Value:
    """A causal convolution over [T, B, F] with a cache of the steps before."""
    kernel, dilation = b.random.choice(((2, 1), (3, 1), (5, 1), (2, 4), (3, 3), (2, 16), (9, 4)))
    size, width = (kernel - 1) * dilation, b.random.choice((4, 6))
    b.reach = max(b.reach, size)
    b.notes.append(f"conv{size}")
    is_channels_first = b.chance(0.6)
    state, carry = b.add_state((x.width, size) if is_channels_first else (size, x.width))
    cache = state if is_channels_first else b.add("Transpose", state, perm=[0, 2, 1])
    whole = b.add("Concat", cache, b.add("Transpose", x.name, perm=[1, 2, 0]), axis=2)
    y = convolved(b, whole, x.width, width, kernel, dilation)
    last = b.slice(whole, -size, 2**31 - 1, 2)
    carry(last if is_channels_first else b.add("Transpose", last, perm=[0, 2, 1]))
    return Value(b.add("Tanh", b.add("Transpose", y, perm=[2, 0, 1])), width)


def convolved(
    b: Builder, x: str, width: int, size: int, kernel: int, dilation: int, pads: tuple[int, int] = (0, 0)
) -> str:
    """Convolve x [B, F, T] along time."""
    weights = (
        np.random.default_rng(b.random.getrandbits(32)).normal(size=(size, width, kernel)) * (width * kernel) ** -0.5
    )
    return b.add("Conv", x, b.constant(weights), dilations=[dilation], kernel_shape=[kernel], pads=list(pads))


def time_difference(b: Builder, x: Value) -> Value:
    """Each step less the one before it."""
    b.notes.append("delta")
    state, carry = b.add_state((x.width,))
    whole = b.add("Concat", b.unsqueeze(state, 0), x.name, axis=0)
    before = b.slice(whole, 0, -1, 0)
    last = b.slice(x.name, -1, 2**31 - 1, 0)
    carry(b.squeeze(last, 0))
    return b.concat([x, Value(b.add("Sub", x.name, before), x.width)])


def time_positions(b: Builder, x: Value) -> Value:
    """Waves added by a counter that goes on from run to run."""
    b.notes.append("positions")
    dtype = b.random.choice(("int64", "int64", "int32"))
    state, carry = b.add_counter(dtype)
    steps = b.num_steps(x.name)
    span = b.add("Range", b.constant(0, "int64"), b.squeeze(steps, 0), b.constant(1, "int64"))
    places = b.add("Add", b.cast(state, "float32"), b.cast(span, "float32"))
    angles = b.add("Mul", b.unsqueeze(places, 1, 2), b.constant(0.1 ** np.arange(x.width)))
    carry(b.add("Add", state, steps if dtype == "int64" else b.cast(steps, dtype)))
    return Value(b.add("Add", x.name, b.add("Sin", angles)), x.width)


def within_frame(b: Builder, x: Value) -> Value:
    """A layer over the features of a frame: it begins anew in each, and no state goes on."""
    b.is_within_frame = True
    b.notes.append("within")
    across = b.add("Transpose", b.unsqueeze(x.name, 2), perm=[1, 0, 2])  # [F, B, 1]
    y, _ = _layer(b, "GRU", Value(across, 1), 3, [], {})
    moved = b.add("Transpose", y.name, perm=[1, 0, 2])
    return Value(b.add("Reshape", moved, b.integers(-1, 3 * x.width)), 3 * x.width)


def mixed(b: Builder, x: Value) -> Value:
    """Rows see their neighbours: each must run alone."""
    b.notes.append("mixed")
    axis = 0 if b.is_frame else 1
    mean = b.add("Mul", b.reduce("ReduceMean", x.name, axis), b.constant(0.5))
    return Value(b.add("Sub", x.name, mean), x.width)


FRAME_BLOCKS: tuple[Callable[[Builder, Value], Value], ...] = (frame_cell, frame_cell, frame_cell, frame_layer)
TIME_BLOCKS: tuple[Callable[[Builder, Value], Value], ...] = (
    time_layer, time_layer, scanned_cell, time_convolution, time_difference, time_positions,
)  # fmt: skip
