"""Builds one graph together with its truth: edges in many layouts and names, a pool of tensors to wire blocks to.

Inside, a tensor of features is [batch, features] where one run is one step, else [time, batch, features]; a state is
[batch, …]. What a file shows at its edges is another matter: that is chosen here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto, helper

from tests.export.importing.graphs import Net
from tests.search.truth import Axes, Case, Data, State, Trap
from tidegate.bundle import BATCH, TIME

ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "float64": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
}
_BATCH_NAMES = ("batch", "N", "batch_size", "B")
_TIME_NAMES = ("time", "T", "seq_len", "frames", "L")
_STATE_NAMES = ("h", "c", "cache", "state", "mem", "buf", "hidden", "s", "rnn", "conv_cache", "past", "ctx")
_DATA_NAMES = ("x", "input", "mic", "feats", "audio", "frame", "obs", "features", "speech", "ref", "in0", "signal")
_OUTPUT_NAMES = ("y", "output", "logits", "prob", "mask", "score", "enh", "vad", "out0", "gain")


class Value(NamedTuple):
    """A tensor of features and how many there are."""

    name: str
    width: int


class Builder:
    """One graph in the making."""

    def __init__(self, seed: int, *, is_frame: bool) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.is_frame = is_frame
        self.net = Net(seed, opset=self.random.choice((13, 15, 17, 17, 18, 21)))
        self.data: list[Data] = []
        self.states: list[State] = []
        self.outputs: dict[str, Axes] = {}
        self.constants: dict[str, str] = {}
        self.lengths: str | None = None
        self.wants_lengths = False
        self.reach = 0
        self.slack = 0.0
        self.is_within_frame = False
        self.trap: Trap | None = None
        self.notes: list[str] = []
        self.pool: list[Value] = []
        self.sources: list[Value] = []
        """The inputs as features."""
        self.ids = ""
        """Ids as [T, B, 1], of a sequence of more than two tokens."""
        self.sprung: Value | None = None
        """What the trap gives: it must reach an output."""
        self._taken: set[str] = set()
        self._num_axes = 0
        self.axis_names = self.random.choices(("shared", "own", "fixed"), (5, 3, 2))[0]
        self.batch_place = self.random.choices(("first", "second", "nowhere"), (5, 2, 2))[0]
        self.names = self.random.choices(
            ("clear", "numbered", "tf", "misleading", "swapped", "meaningless"), (6, 2, 1, 2, 1, 2)
        )[0]
        self._batch_name, self._time_name = self.random.choice(_BATCH_NAMES), self.random.choice(_TIME_NAMES)
        self._pending: list[tuple[str, Axes, str, str]] = []

    @property
    def has_batch(self) -> bool:
        return self.batch_place != "nowhere"

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    # ---- operators

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        return self.net.add(operator, *inputs, **attributes)

    def constant(self, value: Any, dtype: str = "float32") -> str:
        return self.net.constant(np.array(value, dtype))

    def integers(self, *values: int) -> str:
        return self.net.integers(*values)

    def linear(self, x: Value, width: int) -> Value:
        """Multiply by weights that keep the scale."""
        size = np.random.default_rng(self.random.getrandbits(32)).normal(scale=x.width**-0.5, size=(x.width, width))
        return Value(self.add("MatMul", x.name, self.constant(size)), width)

    def reduce(self, operator: str, x: str, axis: int, *, keep: bool = True) -> str:
        axes_are_inputs = self.net.opset >= (13 if operator == "ReduceSum" else 18)
        if axes_are_inputs:
            return self.add(operator, x, self.integers(axis), keepdims=int(keep))
        return self.add(operator, x, axes=[axis], keepdims=int(keep))

    def cast(self, x: str, dtype: str) -> str:
        target = self.net._free("t")  # noqa: SLF001 - `add` has another meaning for `to`
        self.net.nodes.append(helper.make_node("Cast", [x], [target], to=ONNX_TYPES[dtype]))
        return target

    def slice(self, x: str, start: int, stop: int, axis: int, step: int = 1) -> str:
        bounds = (self.integers(value) for value in (start, stop, axis, step))
        return self.add("Slice", x, *bounds)

    def split(self, x: str, sizes: Sequence[int], axis: int = -1) -> list[str]:
        ends = np.cumsum(sizes)
        return [self.slice(x, int(end) - size, int(end), axis) for size, end in zip(sizes, ends, strict=True)]

    def unsqueeze(self, x: str, *axes: int) -> str:
        return self.add("Unsqueeze", x, self.integers(*axes))

    def squeeze(self, x: str, *axes: int) -> str:
        return self.add("Squeeze", x, self.integers(*axes))

    def concat(self, values: Sequence[Value]) -> Value:
        if len(values) == 1:
            return values[0]
        joined = self.add("Concat", *(value.name for value in values), axis=-1)
        return Value(joined, sum(value.width for value in values))

    def num_steps(self, x: str) -> str:
        """Return the number of steps of x [T, B, F], shape [1]."""
        return self.slice(self.add("Shape", x), 0, 1, 0)

    @contextmanager
    def nested(self) -> Iterator[None]:
        """Build nodes for a nested graph: `net.body` takes them inside the block."""
        net, outside = self.net, (self.net.nodes, self.net.weights)
        net.nodes, net.weights = [], []
        try:
            yield
        finally:
            net.nodes, net.weights = outside

    # ---- edges

    def add_data(self, width: int, kind: str = "real") -> Value:
        """Add an input, and return its features inside."""
        name = self._data_name()
        dtype = "float32"
        if kind == "tokens":
            return self._tokens(name, width)
        if kind == "half":
            dtype = "float16"
        axes = self._frame_axes(width) if self.is_frame else self._time_axes(width)
        self._declare(name, axes, dtype)
        self.data.append(Data(name, axes, dtype))
        x = name if dtype == "float32" else self.cast(name, "float32")
        value = Value(self._frame_in(x, axes, width) if self.is_frame else self._time_in(x, axes), width)
        self.pool.append(value)
        self.sources.append(value)
        return value

    def add_window(self) -> Value:
        """Add an input of which the graph wants the last elements again: a window over what is sent."""
        name, width = self._data_name(), self.random.choice((1, 3, 4))
        context = self.random.choice((1, 2, 5, 15, 40))
        self.reach = max(self.reach, context)
        if not self.is_frame:
            axes: Axes = (BATCH, TIME, width) if self.has_batch else (TIME, width)
            data = Data(name, axes, context=context, along=axes.index(TIME))
            self._declare(name, axes, "float32")
            self.data.append(data)
            x = self._time_in(name, axes)
            kernel = np.random.default_rng(self.random.getrandbits(32)).normal(size=(5, width, context + 1))
            y = self.add(
                "Conv", self.add("Transpose", x, perm=[1, 2, 0]), self.constant(kernel * (width * context) ** -0.5)
            )
            value = Value(self.add("Transpose", y, perm=[2, 0, 1]), 5)
        else:
            new = self.random.choice((1, 1, 4))
            batch: Axes = (BATCH,) if self.has_batch else (1,)
            size = context + new
            axes = self.random.choice(((*batch, size), (*batch, size, width), (*batch, width, size)))
            data = Data(name, axes, context=context, along=axes.index(size))
            if axes.count(size) > 1:
                data = Data(name, (*batch, size, width), context=context, along=1)
            self._declare(name, data.axes, "float32")
            self.data.append(data)
            total = int(np.prod([axis for axis in data.axes[1:] if isinstance(axis, int)]))
            value = self.linear(Value(self.add("Reshape", name, self.integers(-1, total)), total), 5)
        value = Value(self.add("Tanh", value.name), value.width)
        self.pool.append(value)
        self.sources.append(value)
        self.notes.append(f"window{context}")
        return value

    def _tokens(self, name: str, width: int) -> Value:
        num = self.random.choice((2, 3, 7, 40))
        batch: Axes = (BATCH,) if self.has_batch else ()
        time: Axes = () if self.is_frame else (TIME,)
        axes = (*batch, *time) if self.batch_place == "first" else (*time, *batch)
        if self.is_frame and not axes:
            axes = (1,)
        self._declare(name, axes, "int64")
        self.data.append(Data(name, axes, "int64", num))
        table = np.random.default_rng(self.random.getrandbits(32)).normal(size=(num, width))
        x = self.add("Gather", self.constant(table), name)
        if not self.is_frame and num > 2:
            ids = self.unsqueeze(name, len(axes))
            self.ids = self._time_in(ids, (*axes, 1))
        if not self.is_frame:
            x = self._time_in(x, (*axes, width))
        value = Value(x, width)
        self.pool.append(value)
        self.sources.append(value)
        return value

    def add_vector(self, width: int) -> Value:
        """Add an input without a time axis where others have one: it comes with every step, here always the same."""
        name = self._data_name()
        axes: Axes = (BATCH, width) if self.has_batch else (width,)
        self._declare(name, axes, "float32")
        self.data.append(Data(name, axes))
        x = name if self.has_batch else self.unsqueeze(name, 0)
        return Value(x, width)

    def _frame_axes(self, width: int) -> Axes:
        if not self.has_batch:
            return self.random.choice(((width,), (1, width), (1, 1, width)))
        if self.batch_place == "second":
            return (1, BATCH, width)
        folded = ((BATCH, 2, width // 2),) if width % 2 == 0 else ()
        return self.random.choice(((BATCH, width), (BATCH, width), (BATCH, 1, width), (BATCH, width, 1), *folded))

    def _frame_in(self, x: str, axes: Axes, width: int) -> str:
        return x if axes == (BATCH, width) else self.add("Reshape", x, self.integers(-1, width))

    def _time_axes(self, width: int) -> Axes:
        if not self.has_batch:
            return self.random.choice(((TIME, width), (TIME, width), (TIME, 1, width)))
        if self.batch_place == "second":
            return (TIME, BATCH, width)
        return self.random.choice(
            ((BATCH, TIME, width), (BATCH, TIME, width), (BATCH, TIME, width), (BATCH, width, TIME))
        )

    def _time_in(self, x: str, axes: Axes) -> str:
        if BATCH not in axes:
            return self.unsqueeze(x, 1) if len(axes) == 2 else x
        place = (axes.index(TIME), axes.index(BATCH), 3 - axes.index(TIME) - axes.index(BATCH))
        return x if place == (0, 1, 2) else self.add("Transpose", x, perm=list(place))

    def add_output(self, x: Value, like: Data | None = None) -> None:
        """Hand out features; in the layout of an input where it is given."""
        name = self._output_name(like)
        if self.is_frame:
            self._frame_out(x, name, like)
        else:
            self._time_out(x, name, like)

    def _frame_out(self, x: Value, name: str, like: Data | None) -> None:
        axes: Axes = like.axes if like is not None else ((BATCH, x.width) if self.has_batch else (1, x.width))
        shape = [axis if isinstance(axis, int) else -1 for axis in axes]
        source = x.name if axes == (BATCH, x.width) else self.add("Reshape", x.name, self.integers(*shape))
        self.outputs[name] = axes
        self._expose(source, name, axes, "float32")

    def _time_out(self, x: Value, name: str, like: Data | None) -> None:
        axes = like.axes if like is not None else self._time_axes(x.width)
        if not self.has_batch:
            source = self.squeeze(x.name, 1) if len(axes) == 2 else x.name
        else:
            inside: Axes = (TIME, BATCH, x.width)
            perm = [inside.index(axis) for axis in axes]
            source = x.name if perm == [0, 1, 2] else self.add("Transpose", x.name, perm=perm)
        self.outputs[name] = axes
        self._expose(source, name, axes, "float32")

    def add_state(self, core: tuple[int, ...], dtype: str = "float32") -> tuple[str, Callable[[str], None]]:
        """Add a state; return its tensor inside, [batch, …], and what takes its successor."""
        source, target = self._state_names()
        place = min(self.random.choice((0, 0, 1, len(core))), len(core))
        leading = bool(core) and self.chance(0.25)
        batch: Axes = (BATCH,) if self.has_batch else ()
        axes: Axes = (*((1,) if leading else ()), *core[:place], *batch, *core[place:])
        if not axes:
            axes = (1,)
        inside, outside = self._layout(place, len(core), leading=leading) if core or self.has_batch else (_same, _same)
        self._declare(source, axes, dtype)
        self.states.append(State(source, target, axes, dtype))
        return inside(source), lambda new: self._hand_out(outside(new), target, axes, dtype)

    def _layout(self, place: int, rank: int, *, leading: bool) -> tuple[Callable[[str], str], Callable[[str], str]]:
        """Return what takes a state's tensor in, to [batch, …], and what brings it out again."""
        rest = [axis for axis in range(rank + 1) if axis != place]
        back = [*range(1, place + 1), 0, *range(place + 1, rank + 1)]

        def inside(x: str) -> str:
            x = self.squeeze(x, 0) if leading else x
            if not self.has_batch:
                return self.unsqueeze(x, 0)
            return self.add("Transpose", x, perm=[place, *rest]) if place else x

        def outside(x: str) -> str:
            if not self.has_batch:
                x = self.squeeze(x, 0)
            elif place:
                x = self.add("Transpose", x, perm=back)
            return self.unsqueeze(x, 0) if leading else x

        return inside, outside

    def add_counter(self, dtype: str = "int64") -> tuple[str, Callable[[str], None]]:
        """Add a state of one number; inside it has one element, whatever its axes."""
        source, target = self._state_names()
        axes: Axes = self.random.choice(((), (1,), (1, 1), (1,)))
        self._declare(source, axes, dtype)
        self.states.append(State(source, target, axes, dtype))
        x = source if axes == (1,) else self.add("Reshape", source, self.integers(1))

        def carry(new: str) -> None:
            shape = self.net.constant(np.array([1] * len(axes), np.int64))
            y = new if axes == (1,) else self.add("Reshape", new, shape)
            self._hand_out(y, target, axes, dtype)

        return x, carry

    def _hand_out(self, source: str, target: str, axes: Axes, dtype: str) -> None:
        # Outputs of states come last, or among the others: files do both.
        self._pending.append((source, axes, dtype, target))

    def add_setting(self, value: float) -> str:
        """Add a single number that a caller must say once."""
        name = self._free(self.random.choice(("sr", "rate", "mode", "atten_lim", "threshold")))
        is_whole = isinstance(value, int)
        axes: Axes = self.random.choice(((), (1,)))
        self._declare(name, axes, "int64" if is_whole else "float32")
        self.constants[name] = str(value)
        return self.add("Reshape", name, self.integers(1)) if not axes else name

    def layer_lengths(self) -> str:
        """Return the input that says how many steps there are, if this graph has one; it comes with its first layer."""
        if self.lengths is not None or not self.wants_lengths:
            return self.lengths or ""
        name = self._free(self.random.choice(("lengths", "x_len", "seq_lens", "input_length")))
        self._declare(name, (BATCH,) if self.has_batch else (1,), "int32")
        self.lengths = name
        return name

    def finish(self, kind: str) -> Case:
        """Return the case; the pool is left."""
        states = self._pending
        for source, axes, dtype, target in states:
            self._expose(source, target, axes, dtype)
        if self.chance(0.4):  # any order, which tells nothing
            self.random.shuffle(self.net.outputs)
        if self.chance(0.3):
            self.random.shuffle(self.net.inputs)
        model = self.net.model()
        return Case(
            seed=self.seed,
            kind=kind,
            model=model,
            data=tuple(self.data),
            states=tuple(self.states),
            outputs=dict(self.outputs),
            is_frame=self.is_frame,
            reach=self.reach,
            constants=dict(self.constants),
            lengths=self.lengths,
            trap=self.trap,
            is_within_frame=self.is_within_frame,
            has_batch=self.has_batch,
            slack=self.slack,
            notes=(self.names, self.axis_names, self.batch_place, *self.notes),
        )

    # ---- names

    def _expose(self, source: str, name: str, axes: Axes, dtype: str) -> None:
        self.add("Identity", source, to=name)
        self.net.outputs.append(helper.make_tensor_value_info(name, ONNX_TYPES[dtype], self._dims(axes)))

    def _declare(self, name: str, axes: Axes, dtype: str) -> None:
        info = helper.make_tensor_value_info(name, ONNX_TYPES[dtype], self._dims(axes))
        self.net.inputs.append(info)

    def _dims(self, axes: Axes) -> list[int | str]:
        return [axis if isinstance(axis, int) else self._dim(axis) for axis in axes]

    def _dim(self, axis: str) -> int | str:
        if self.axis_names == "own":
            self._num_axes += 1
            return f"unk__{self._num_axes}"
        if axis == BATCH:
            return 1 if self.axis_names == "fixed" else self._batch_name
        return self._time_name

    def _data_name(self) -> str:
        if self.names == "numbered":
            return self._free("input_1")
        if self.names == "misleading" and self.chance(0.5):
            return self._free(self.random.choice(("state_in", "h", "cache", "audio_in", "input_frame")))
        return self._free(self.random.choice(_DATA_NAMES))

    def _output_name(self, like: Data | None) -> str:
        if like is not None and self.chance(0.7):  # the masked input: names that agree
            for before, after in (("in", "out"), ("input", "output")):
                if before in like.name.split("_"):
                    return self._free("_".join(after if word == before else word for word in like.name.split("_")))
            return self._free(f"{like.name}_out")
        if self.names == "numbered":
            return self._free("output_1")
        return self._free(self.random.choice(_OUTPUT_NAMES))

    def _state_names(self) -> tuple[str, str]:
        stem = self._free(self.random.choice(_STATE_NAMES))
        if self.names == "clear":
            before, after = self.random.choice(
                (("{}_in", "{}_out"), ("{}", "{}n"), ("{}", "new_{}"), ("past_{}", "present_{}"))
            )
            return self._free(before.format(stem)), self._free(after.format(stem))
        if self.names == "numbered":
            return self._free("input_1"), self._free("output_1")
        if self.names == "tf":
            return self._free(f"serving_default_{stem}:0"), self._free("StatefulPartitionedCall:0")
        if self.names == "misleading":
            return self._free(self.random.choice(_DATA_NAMES)), self._free(self.random.choice(_OUTPUT_NAMES))
        if self.names == "swapped":  # what follows is called like another state's input
            number = len(self.states)
            return self._free(f"s{number}_in"), self._free(f"s{number ^ 1}_out")
        return self._free(f"onnx::Gather_{self.random.randrange(1000)}"), self._free(str(self.random.randrange(1000)))

    def _free(self, name: str) -> str:
        """Return the name, or one like it that nothing has yet."""
        found, number = name, 1
        while found in self._taken:
            number += 1
            stem, separator, port = name.partition(":")
            base = stem.rstrip("0123456789").rstrip("_") if stem[-1:].isdigit() else stem
            found = f"{base}_{number}{separator}{port}"
        self._taken.add(found)
        return found


def _same(x: str) -> str:
    return x
