"""Recurrent cells written out in products: one step of [batch, features] from some states to the next.

Each stands as it is where one run is one step, or in the body of a `Scan`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from tests.search.builder import Builder, Value

Step = Callable[[Builder, Value, Sequence[str]], tuple[Value, list[str]]]


class Cell(NamedTuple):
    """A cell for an input of some width.

    Attributes:
        states: Shape behind the batch and dtype of each; None for a counter of one element.
        step: From an input and states to an output and their successors.
    """

    states: tuple[tuple[tuple[int, ...] | None, str], ...]
    step: Step


def plain(b: Builder, width: int) -> Cell:
    hidden = b.random.choice((3, 5, 8))

    def step(b: Builder, x: Value, states: Sequence[str]) -> tuple[Value, list[str]]:
        h = b.add("Tanh", b.add("Add", b.linear(x, hidden).name, b.linear(Value(states[0], hidden), hidden).name))
        return Value(h, hidden), [h]

    return Cell((((hidden,), "float32"),), step)


def gated(b: Builder, width: int) -> Cell:
    hidden = b.random.choice((4, 6, width))
    is_minimal = b.chance(0.4)

    def step(b: Builder, x: Value, states: Sequence[str]) -> tuple[Value, list[str]]:
        h = Value(states[0], hidden)
        both = x if is_minimal else b.concat([x, h])
        z = b.add("Sigmoid", b.linear(both, hidden).name)
        n = b.add("Tanh", b.linear(both, hidden).name)
        if b.random.random() < 0.5:
            h_next = b.add("Add", n, b.add("Mul", z, b.add("Sub", h.name, n)))
        else:
            keep = b.add("Mul", z, h.name)
            h_next = b.add("Add", keep, b.add("Mul", b.add("Sub", b.constant(1), z), n))
        return Value(h_next, hidden), [h_next]

    return Cell((((hidden,), "float32"),), step)


def long_short(b: Builder, width: int) -> Cell:
    hidden = b.random.choice((3, 4, 6))

    def step(b: Builder, x: Value, states: Sequence[str]) -> tuple[Value, list[str]]:
        both = b.concat([x, Value(states[0], hidden)])
        i, o, f, g = b.split(b.linear(both, 4 * hidden).name, [hidden] * 4)
        c = b.add(
            "Add", b.add("Mul", b.add("Sigmoid", f), states[1]), b.add("Mul", b.add("Sigmoid", i), b.add("Tanh", g))
        )
        h = b.add("Mul", b.add("Sigmoid", o), b.add("Tanh", c))
        return Value(h, hidden), [h, c]

    return Cell((((hidden,), "float32"), ((hidden,), "float32")), step)


def smoothed(b: Builder, width: int) -> Cell:
    rate = b.random.choice((0.02, 0.1, 0.5))

    def step(b: Builder, x: Value, states: Sequence[str]) -> tuple[Value, list[str]]:
        m = b.add("Add", b.add("Mul", states[0], b.constant(1 - rate)), b.add("Mul", x.name, b.constant(rate)))
        return Value(b.add("Sub", x.name, m), x.width), [m]

    return Cell((((width,), "float32"),), step)


def running_mean(b: Builder, width: int) -> Cell:
    dtype = b.random.choice(("float32", "int64", "int32"))

    def step(b: Builder, x: Value, states: Sequence[str]) -> tuple[Value, list[str]]:
        n = b.add("Add", states[1], b.constant(1, dtype))
        m = b.add("Add", states[0], b.add("Div", b.add("Sub", x.name, states[0]), b.cast(n, "float32")))
        return Value(b.add("Sub", x.name, m), x.width), [m, n]

    return Cell((((width,), "float32"), (None, dtype)), step)


def difference(b: Builder, width: int) -> Cell:
    def step(b: Builder, x: Value, states: Sequence[str]) -> tuple[Value, list[str]]:
        delta = Value(b.add("Sub", x.name, states[0]), x.width)
        return b.concat([x, delta]), [b.add("Identity", x.name)]

    return Cell((((width,), "float32"),), step)


def delay_line(b: Builder, width: int) -> Cell:
    """Each state goes into the next one's output, moved as it is."""
    length = b.random.choice((2, 3))

    def step(b: Builder, x: Value, states: Sequence[str]) -> tuple[Value, list[str]]:
        told = b.linear(b.concat([x, *(Value(state, width) for state in states)]), width)
        return Value(b.add("Tanh", told.name), width), [b.add("Identity", each) for each in (x.name, *states[:-1])]

    return Cell((((width,), "float32"),) * length, step)


def convolution(b: Builder, width: int) -> Cell:
    size = b.random.choice((1, 2, 4, 7, 12, 31))
    is_channels_first = b.chance(0.5)
    core = (width, size) if is_channels_first else (size, width)
    b.reach = max(b.reach, size)

    def step(b: Builder, x: Value, states: Sequence[str]) -> tuple[Value, list[str]]:
        axis = 2 if is_channels_first else 1
        whole = b.add("Concat", states[0], b.unsqueeze(x.name, axis), axis=axis)
        weights = np.random.default_rng(b.random.getrandbits(32)).normal(size=(width, size + 1)) * size**-0.5
        shaped = weights if is_channels_first else weights.T
        y = b.reduce("ReduceSum", b.add("Mul", whole, b.constant(shaped)), axis, keep=False)
        stop = size + 1 if b.chance(0.5) else 2**31 - 1
        return Value(b.add("Relu", y), width), [b.slice(whole, 1, stop, axis)]

    return Cell(((core, "float32"),), step)


def ring(b: Builder, width: int) -> Cell:
    """A buffer that is written at a counter modulo its size."""
    size = b.random.choice((3, 5, 20))
    b.reach = max(b.reach, size)
    is_bounded = b.chance(0.5)

    def step(b: Builder, x: Value, states: Sequence[str]) -> tuple[Value, list[str]]:
        place = b.add("Mod", states[1], b.constant([size], "int64"))
        here = b.add("Equal", b.constant(np.arange(size), "int64"), place)
        buffer = b.add("Where", b.unsqueeze(here, 0, 2), b.unsqueeze(x.name, 1), states[0])
        n = b.add("Add", states[1], b.constant([1], "int64"))
        if is_bounded:
            n = b.add("Mod", n, b.constant([size], "int64"))
        oldest = b.squeeze(b.add("Gather", buffer, b.add("Mod", n, b.constant([size], "int64")), axis=1), 1)
        return Value(b.add("Sub", x.name, oldest), width), [buffer, n]

    return Cell((((size, width), "float32"), (None, "int64")), step)


def peak(b: Builder, width: int) -> Cell:
    def step(b: Builder, x: Value, states: Sequence[str]) -> tuple[Value, list[str]]:
        p = b.add("Max", b.add("Mul", states[0], b.constant(0.95)), b.add("Abs", x.name))
        return Value(b.add("Div", x.name, b.add("Add", p, b.constant(1))), width), [p]

    return Cell((((width,), "float32"),), step)


def seen(b: Builder, width: int) -> Cell:
    """A flag: has something loud been heard."""

    def step(b: Builder, x: Value, states: Sequence[str]) -> tuple[Value, list[str]]:
        loud = b.add("Greater", b.reduce("ReduceMax", x.name, 1), b.constant(1.7))
        flag = b.add("Or", states[0], loud)
        return Value(b.add("Where", flag, x.name, b.add("Neg", x.name)), width), [flag]

    return Cell((((1,), "bool"),), step)


def half(b: Builder, width: int) -> Cell:
    b.slack = max(b.slack, 0.02)

    def step(b: Builder, x: Value, states: Sequence[str]) -> tuple[Value, list[str]]:
        m = b.add("Mul", b.add("Add", b.cast(states[0], "float32"), x.name), b.constant(0.5))
        return Value(b.add("Sub", x.name, m), width), [b.cast(m, "float16")]

    return Cell((((width,), "float16"),), step)


def rotation(b: Builder, width: int) -> Cell:
    """A diagonal state space model: complex modes that turn and decay."""
    modes = b.random.choice((2, 4))
    turn = np.random.default_rng(b.random.getrandbits(32)).uniform(0, 3, modes)
    decay = 1 - b.random.choice((0.3, 0.05, 0.01))

    def step(b: Builder, x: Value, states: Sequence[str]) -> tuple[Value, list[str]]:
        real, imaginary = (b.squeeze(part, 2) for part in b.split(states[0], [1, 1]))
        cos, sin = b.constant(decay * np.cos(turn)), b.constant(decay * np.sin(turn))
        u = b.linear(x, modes).name
        new_real = b.add("Add", b.add("Sub", b.add("Mul", real, cos), b.add("Mul", imaginary, sin)), u)
        new_imaginary = b.add("Add", b.add("Mul", real, sin), b.add("Mul", imaginary, cos))
        state = b.add("Concat", b.unsqueeze(new_real, 2), b.unsqueeze(new_imaginary, 2), axis=2)
        return Value(b.add("Tanh", new_real), modes), [state]

    return Cell((((modes, 2), "float32"),), step)


def linear_attention(b: Builder, width: int) -> Cell:
    size = b.random.choice((2, 3, 4))

    def step(b: Builder, x: Value, states: Sequence[str]) -> tuple[Value, list[str]]:
        q, k, v = (b.linear(x, size).name for _ in range(3))
        product = b.add("MatMul", b.unsqueeze(k, 2), b.unsqueeze(v, 1))
        s = b.add("Add", b.add("Mul", states[0], b.constant(0.9)), product)
        return Value(b.squeeze(b.add("MatMul", b.unsqueeze(q, 1), s), 1), size), [s]

    return Cell((((size, size), "float32"),), step)


def windowed_attention(b: Builder, width: int) -> Cell:
    """Attention over a cache of the last keys and values."""
    steps, size = b.random.choice((4, 9, 16)), b.random.choice((2, 4))
    b.reach = max(b.reach, steps)

    def step(b: Builder, x: Value, states: Sequence[str]) -> tuple[Value, list[str]]:
        q, k, v = (b.linear(x, size).name for _ in range(3))
        keys, values = (
            b.slice(b.add("Concat", cache, b.unsqueeze(new, 1), axis=1), 1, 2**31 - 1, 1)
            for cache, new in zip(states, (k, v), strict=True)
        )
        scores = b.add("MatMul", b.unsqueeze(q, 1), b.add("Transpose", keys, perm=[0, 2, 1]))
        weights = b.add("Softmax", scores, axis=-1)
        return Value(b.squeeze(b.add("MatMul", weights, values), 1), size), [keys, values]

    return Cell((((steps, size), "float32"),) * 2, step)


def position(b: Builder, width: int) -> Cell:
    dtype = b.random.choice(("int64", "int64", "int32", "float32"))

    def step(b: Builder, x: Value, states: Sequence[str]) -> tuple[Value, list[str]]:
        angles = b.add("Mul", b.cast(states[0], "float32"), b.constant(0.1 ** np.arange(width)))
        y = b.add("Add", x.name, b.add("Sin", angles))
        return Value(y, width), [b.add("Add", states[0], b.constant([1], dtype))]

    return Cell(((None, dtype),), step)


def warm_up(b: Builder, width: int) -> Cell:
    """Silent until a counter has reached a number: every step looks at its own, so cuts change nothing."""
    number = b.random.choice((5, 30, 100, 300))
    b.reach = max(b.reach, number)

    def step(b: Builder, x: Value, states: Sequence[str]) -> tuple[Value, list[str]]:
        is_warm = b.add("Less", b.constant([number], "int64"), states[0])
        y = b.add("Where", is_warm, x.name, b.add("Mul", x.name, b.constant(0.1)))
        return Value(y, width), [b.add("Add", states[0], b.constant([1], "int64"))]

    return Cell(((None, "int64"),), step)


def kalman(b: Builder, width: int) -> Cell:
    """A scalar filter for each feature: an estimate and its variance."""

    def step(b: Builder, x: Value, states: Sequence[str]) -> tuple[Value, list[str]]:
        mean, variance = states
        predicted = b.add("Add", variance, b.constant(0.1))
        gain = b.add("Div", predicted, b.add("Add", predicted, b.constant(1)))
        mean = b.add("Add", mean, b.add("Mul", gain, b.add("Sub", x.name, mean)))
        left = b.add("Mul", b.add("Sub", b.constant(1), gain), predicted)
        return Value(mean, width), [mean, left]

    return Cell((((width,), "float32"), ((width,), "float32")), step)


def adaptive_filter(b: Builder, width: int) -> Cell:
    """Normalised least mean squares: weights that learn to predict the first feature from the last inputs."""

    def step(b: Builder, x: Value, states: Sequence[str]) -> tuple[Value, list[str]]:
        weights, last = states
        predicted = b.reduce("ReduceSum", b.add("Mul", weights, last), 1)
        error = b.add("Sub", b.slice(x.name, 0, 1, 1), predicted)
        power = b.add("Add", b.reduce("ReduceSum", b.add("Mul", last, last), 1), b.constant(1))
        change = b.add("Mul", b.add("Div", b.add("Mul", error, b.constant(0.2)), power), last)
        learned = b.add("Add", weights, change)
        return b.concat([Value(error, 1), x]), [learned, b.add("Identity", x.name)]

    return Cell((((width,), "float32"), ((width,), "float32")), step)


CELLS = {
    cell.__name__: cell
    for cell in (
        plain, gated, long_short, smoothed, running_mean, difference, delay_line, convolution, ring, peak, seen, half,
        rotation, linear_attention, windowed_attention, position, warm_up, kalman, adaptive_filter,
    )
}  # fmt: skip
