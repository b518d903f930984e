"""What keeps a graph from streaming, one kind each: a memory, a look ahead or a choice that is in no state."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto, helper

from tests.search.blocks import convolved
from tests.search.builder import Builder, Value
from tests.search.truth import Trap

Block = Callable[[Builder, Value], Value]

_MEMORY = r"memory|remembers|not among the states|in no state|reach|steps back|earlier steps|begins anew|state"
_AHEAD = r"ahead|later steps|backward|bidirectional|end of the sequence|turns the sequence|whole sequence|all steps"
_LENGTH = r"length|chunk|cut|position|number of steps|how many steps|sizes of a whole run|reach|memory|steps"
_RATE = r"not one a step|subsampl|rate|one a step|every \d|steps? (?:give|become)|fewer|number of steps"
_CHANCE = r"random|deterministic|differ|chance|noise|RandomNormal|Dropout"
_LARGE = 2**31 - 1


def _lagged(b: Builder, x: str, lag: int) -> str:
    """Return [T, B, F] of which step t is step t - lag of `x`."""
    padded = b.add("Pad", x, b.integers(lag, 0, 0, 0, 0, 0))
    return b.add("Slice", padded, b.integers(0), b.num_steps(x), b.integers(0))


def _both(b: Builder, x: Value, other: str) -> Value:
    return b.linear(b.concat([x, Value(other, x.width)]), 6)


def _lag_of(b: Builder) -> int:
    lag = int(b.random.choice((1, 2, 5, 12, 23, 24, 25, 39, 40, 41, 48, 100, 200, 400)))
    b.reach = max(b.reach, lag)
    return lag


def lag(b: Builder, x: Value) -> Value:
    return _both(b, x, _lagged(b, x.name, _lag_of(b)))


def dilated(b: Builder, x: Value) -> Value:
    kernel, dilation = b.random.choice(((2, 1), (3, 1), (3, 8), (2, 32), (2, 64), (5, 16), (3, 128)))
    size = (kernel - 1) * dilation
    b.reach = max(b.reach, size)
    y = convolved(b, b.add("Transpose", x.name, perm=[1, 2, 0]), x.width, 6, kernel, dilation, (size, 0))
    return Value(b.add("Tanh", b.add("Transpose", y, perm=[2, 0, 1])), 6)


def dilated_stack(b: Builder, x: Value) -> Value:
    """Each convolution reaches less far than the proof's sequences, all together further."""
    total = 0
    for dilation in (1, 2, 4, 8, 16):
        y = convolved(b, b.add("Transpose", x.name, perm=[1, 2, 0]), x.width, 4, 3, dilation, (2 * dilation, 0))
        x = Value(b.add("Tanh", b.add("Transpose", y, perm=[2, 0, 1])), 4)
        total += 2 * dilation
    b.reach = max(b.reach, total)
    return x


def ahead(b: Builder, x: Value) -> Value:
    steps = b.random.choice((1, 2, 7, 13, 30, 60))
    b.reach = max(b.reach, steps)
    padded = b.add("Pad", x.name, b.integers(0, 0, 0, steps, 0, 0))
    return _both(b, x, b.slice(padded, steps, _LARGE, 0))


def centred_convolution(b: Builder, x: Value) -> Value:
    half = b.random.choice((1, 2, 4))
    b.reach = max(b.reach, half)
    y = convolved(b, b.add("Transpose", x.name, perm=[1, 2, 0]), x.width, 6, 2 * half + 1, 1, (half, half))
    return Value(b.add("Tanh", b.add("Transpose", y, perm=[2, 0, 1])), 6)


def backward(b: Builder, x: Value) -> Value:
    hidden, direction = 4, b.random.choice(("reverse", "bidirectional"))
    num = 2 if direction == "bidirectional" else 1
    rng = np.random.default_rng(b.random.getrandbits(32))
    weights = [b.constant(rng.normal(scale=0.4, size=(num, 3 * hidden, width))) for width in (x.width, hidden)]
    y = b.add("GRU", x.name, *weights, hidden_size=hidden, direction=direction)  # [T, directions, B, H]
    y = b.add("Transpose", y, perm=[0, 2, 1, 3])
    return Value(b.add("Reshape", y, b.integers(0, 0, num * hidden)), num * hidden)


def turned(b: Builder, x: Value) -> Value:
    """A forward layer over a sequence turned around."""
    hidden = 4
    rng = np.random.default_rng(b.random.getrandbits(32))
    weights = [b.constant(rng.normal(scale=0.4, size=(1, hidden, width))) for width in (x.width, hidden)]
    y = b.squeeze(b.add("RNN", b.slice(x.name, -1, -_LARGE, 0, -1), *weights, hidden_size=hidden), 1)
    return Value(b.slice(y, -1, -_LARGE, 0, -1), hidden)


def mean_of_all(b: Builder, x: Value) -> Value:
    return Value(b.add("Sub", x.name, b.reduce("ReduceMean", x.name, 0)), x.width)


def loudest(b: Builder, x: Value) -> Value:
    """Scaled by the chunk's maximum."""
    top = b.add("Add", b.reduce("ReduceMax", b.add("Abs", x.name), 0), b.constant(1))
    return Value(b.add("Div", x.name, top), x.width)


def attention(b: Builder, x: Value) -> Value:
    size = 4
    q, k, v = (b.add("Transpose", b.linear(x, size).name, perm=[1, 0, 2]) for _ in range(3))
    scores = b.add("MatMul", q, b.add("Transpose", k, perm=[0, 2, 1]))
    y = b.add("MatMul", b.add("Softmax", scores, axis=-1), v)
    return Value(b.add("Transpose", y, perm=[1, 0, 2]), size)


def cumulative(b: Builder, x: Value) -> Value:
    total = b.add("CumSum", x.name, b.constant(0, "int64"))
    return Value(b.add("Tanh", b.add("Mul", total, b.constant(0.05))), x.width)


def _span(b: Builder, x: Value) -> str:
    """Return the number of each step within the chunk, [T, 1, 1]."""
    steps = b.squeeze(b.num_steps(x.name), 0)
    span = b.add("Range", b.constant(0, "int64"), steps, b.constant(1, "int64"))
    return b.unsqueeze(span, 1, 2)


def positions(b: Builder, x: Value) -> Value:
    angles = b.add("Mul", b.cast(_span(b, x), "float32"), b.constant(0.3 ** np.arange(x.width)))
    return Value(b.add("Add", x.name, b.add("Sin", angles)), x.width)


def late_positions(b: Builder, x: Value) -> Value:
    """Steps far into a chunk are another thing than the first ones."""
    number = b.random.choice((10, 26, 60, 150, 300))
    b.reach = max(b.reach, number)
    is_late = b.add("Less", b.constant([number], "int64"), _span(b, x))
    return Value(b.add("Where", is_late, b.add("Mul", x.name, b.constant(0.2)), x.name), x.width)


def table(b: Builder, x: Value) -> Value:
    """Positions looked up in a table that ends."""
    size = b.random.choice((50, 128, 512))
    b.reach = max(b.reach, size)
    values = np.random.default_rng(b.random.getrandbits(32)).normal(size=(size, x.width))
    place = b.add("Min", b.squeeze(_span(b, x), 1, 2), b.constant(size - 1, "int64"))
    return Value(b.add("Add", x.name, b.unsqueeze(b.add("Gather", b.constant(values), place), 1)), x.width)


def limit(b: Builder, x: Value) -> Value:
    """A chunk longer than a number is treated in another way."""
    number = b.random.choice((12, 30, 64, 100, 256, 400))
    b.reach = max(b.reach, number)
    is_long = b.add("Less", b.integers(number), b.num_steps(x.name))
    if b.chance(0.5):
        return Value(b.add("Where", is_long, b.add("Mul", x.name, b.constant(0.1)), x.name), x.width)
    return either(b, x, is_long)


def single(b: Builder, x: Value) -> Value:
    """A chunk of one step is treated in another way."""
    return either(b, x, b.add("Equal", b.num_steps(x.name), b.integers(1)))


def on_data(b: Builder, x: Value) -> Value:
    """A branch for the whole chunk, chosen by what is in it."""
    flat = b.add("Reshape", x.name, b.integers(-1))
    return either(b, x, b.add("Greater", b.reduce("ReduceMean", flat, 0), b.constant([0.0])))


def either(b: Builder, x: Value, condition: str) -> Value:
    """Take one of two branches."""
    tag = b.random.getrandbits(40)
    bodies = []
    for factor in (0.2, 1.0):
        with b.nested():
            told = b.add("Mul", x.name, b.constant(factor))
            bodies.append(b.net.body(f"branch_{tag}", [], {told: TensorProto.FLOAT}))
    node = helper.make_node("If", [condition], [f"chosen_{tag}"], then_branch=bodies[0], else_branch=bodies[1])
    b.net.nodes.append(node)
    return Value(f"chosen_{tag}", x.width)


def noise(b: Builder, x: Value) -> Value:
    y = b.add(b.random.choice(("RandomNormalLike", "RandomUniformLike")), x.name)
    return Value(b.add("Add", x.name, b.add("Mul", y, b.constant(0.3))), x.width)


def dropout(b: Builder, x: Value) -> Value:
    return Value(b.add("Dropout", x.name, b.constant(0.5), b.constant(True, "bool")), x.width)


def rare_lag(b: Builder, x: Value) -> Value:
    """Remembers only where the input is large, which standard normal numbers hardly are, or where an id is above 1."""
    source = b.sources[0]
    if b.ids:
        is_rare = b.add("Less", b.constant(1, "int64"), b.ids)
    else:
        largest = b.reduce("ReduceMax", b.add("Abs", source.name), -1)
        is_rare = b.add("Less", b.constant(b.random.choice((3.5, 5.0, 6.0))), largest)
    return Value(b.add("Where", is_rare, _lagged(b, x.name, 1), x.name), x.width)


def counted(b: Builder, x: Value) -> Value:
    """A counter that all steps of a chunk compare at the value of the first."""
    number = b.random.choice((7, 40, 100, 300, 1000, 5000))
    b.reach = max(b.reach, number)
    state, carry = b.add_counter()
    is_late = b.add("Less", b.constant([number], "int64"), state)
    carry(b.add("Add", state, b.num_steps(x.name)))
    return Value(b.add("Where", is_late, b.add("Mul", x.name, b.constant(0.2)), x.name), x.width)


def growing(b: Builder, x: Value) -> Value:
    """Attention over a cache that grows."""
    size = 4
    name, target = f"kv_{b.random.getrandbits(20)}", f"kv_out_{b.random.getrandbits(20)}"
    batch = [b._dim("batch")]  # noqa: SLF001
    b.net.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [*batch, "past_len", size]))
    cache = b.add("Concat", name, b.add("Transpose", b.linear(x, size).name, perm=[1, 0, 2]), axis=1)
    q = b.add("Transpose", b.linear(x, size).name, perm=[1, 0, 2])
    scores = b.add("MatMul", q, b.add("Transpose", cache, perm=[0, 2, 1]))
    y = b.add("MatMul", b.add("Softmax", scores, axis=-1), cache)
    b.net.output(cache, target, *batch, "total_len", size)
    return Value(b.add("Transpose", y, perm=[1, 0, 2]), size)


def forgotten(b: Builder, x: Value) -> Value:
    """A state that is multiplied by nothing before it is used: each chunk begins anew."""
    hidden = 4
    state, carry = b.add_state((hidden,))
    rng = np.random.default_rng(b.random.getrandbits(32))
    weights = [b.constant(rng.normal(scale=0.4, size=(1, hidden, width))) for width in (x.width, hidden)]
    tag = b.random.getrandbits(40)
    first = b.unsqueeze(b.add("Mul", state, b.constant(0.0)), 0)
    names = [f"Y_{tag}", f"last_{tag}"]
    b.net.nodes.append(helper.make_node("RNN", [x.name, *weights, "", "", first], names, hidden_size=hidden))
    carry(b.squeeze(names[1], 0))
    return Value(b.squeeze(names[0], 1), hidden)


def halved(b: Builder, x: Value) -> Value:
    """One output step for every two: the last block of its graph."""
    return Value(b.slice(x.name, 0, _LARGE, 0, 2), x.width)


def shortened(b: Builder, x: Value) -> Value:
    """A convolution that gives fewer steps than it takes."""
    y = convolved(b, b.add("Transpose", x.name, perm=[1, 2, 0]), x.width, 6, 3, 1)
    return Value(b.add("Transpose", y, perm=[2, 0, 1]), 6)


TRAPS: dict[str, tuple[Block, str]] = {
    "lag": (lag, _MEMORY),
    "dilated": (dilated, _MEMORY),
    "dilated_stack": (dilated_stack, _MEMORY),
    "ahead": (ahead, _AHEAD),
    "centred_convolution": (centred_convolution, f"{_AHEAD}|{_MEMORY}"),
    "backward": (backward, _AHEAD),
    "turned": (turned, _AHEAD),
    "mean_of_all": (mean_of_all, f"{_AHEAD}|{_MEMORY}"),
    "loudest": (loudest, f"{_AHEAD}|{_MEMORY}"),
    "attention": (attention, f"{_AHEAD}|attention"),
    "cumulative": (cumulative, _MEMORY),
    "positions": (positions, f"{_MEMORY}|{_LENGTH}"),
    "late_positions": (late_positions, f"{_MEMORY}|{_LENGTH}"),
    "table": (table, f"{_MEMORY}|{_LENGTH}"),
    "limit": (limit, f"{_MEMORY}|{_LENGTH}"),
    "single": (single, f"{_MEMORY}|{_LENGTH}"),
    "on_data": (on_data, f"{_AHEAD}|data|{_MEMORY}"),
    "noise": (noise, _CHANCE),
    "dropout": (dropout, _CHANCE),
    "rare_lag": (rare_lag, _MEMORY),
    "counted": (counted, f"count|{_MEMORY}|{_LENGTH}"),
    "growing": (growing, r"longer than it went in|grow"),
    "forgotten": (forgotten, _MEMORY),
    "halved": (halved, _RATE),
    "shortened": (shortened, f"{_RATE}|fewer|{_AHEAD}|{_MEMORY}"),
}
LAST = {"halved", "shortened"}
"""Traps that change the number of steps: nothing can be wired behind them."""


def spring(b: Builder, name: str, x: Value) -> Value:
    """Wire the trap `name` behind `x`, and note the truth."""
    block, reason = TRAPS[name]
    b.trap = Trap(name, reason, is_random=name in {"noise", "dropout"})
    return block(b, x)
