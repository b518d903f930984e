"""Memories that reach further back than short sequences show: read off the graph, and found by the proof."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.export.importing.graphs import Net
from tidegate.bundle import Manifest, StateSpec, TensorCodec, TensorSpec
from tidegate.errors import BundleError
from tidegate.proof import prove
from tidegate.reach import analyse

WIDTH, HIDDEN = 2, 4
FAR = 2**31 - 1


class Streaming(Net):
    """A GRU over x [batch, time, 2] that gives `plain` [batch, time, 4]; what is added makes y of it."""

    def __init__(self, *, dtype: int = TensorProto.FLOAT) -> None:
        super().__init__(opset=18)
        self.states = [StateSpec(input="h", output="h_out", dtype="float32", axes=(1, "batch", HIDDEN))]
        self.dtype = dtype
        width = () if dtype == TensorProto.INT64 else (WIDTH,)
        self.x = self.input("x", "batch", "time", *width, dtype=dtype)
        self.input("h", 1, "batch", HIDDEN)
        self.last = ""
        self.plain = "" if dtype == TensorProto.INT64 else self.gru(self.x)

    def gru(self, x: str, width: int = WIDTH) -> str:
        steps = self.add("Transpose", x, perm=[1, 0, 2])
        y, (self.last,) = self.layer("GRU", steps, ["h"], width, HIDDEN)
        return self.add("Transpose", y, perm=[1, 0, 2])

    def cast(self, x: str, dtype: int) -> str:
        """Cast, whose attribute `to` the builder takes for the name of the output."""
        (output,) = helper.make_node("Cast", [x], [f"{x}_cast{len(self.nodes)}"], to=dtype).output
        self.nodes.append(helper.make_node("Cast", [x], [output], to=dtype))
        return str(output)

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.int64 if isinstance(value, int) else np.float32))

    @property
    def time(self) -> str:
        """The number of steps."""
        return self.add("Gather", self.add("Shape", self.x), self.number(1))

    @property
    def positions(self) -> str:
        return self.add("Range", self.number(0), self.time, self.number(1))

    def gate(self, condition: str) -> str:
        """Keep the steps, [time] or all, where a condition holds."""
        factor = self.cast(condition, TensorProto.FLOAT)
        return self.add("Mul", self.plain, self.add("Unsqueeze", factor, self.integers(-1)))

    def shifted(self, x: str, lag: int) -> str:
        padded = self.add("Pad", x, self.integers(0, lag, 0, 0, 0, 0))
        return self.add("Slice", padded, self.integers(0), self.integers(-lag), self.integers(1))

    def state(self, name: str, dtype: str, *axes: int | str, initial: float = 0.0) -> str:
        self.states.append(
            StateSpec.model_validate(
                {"input": name, "output": f"{name}_out", "dtype": dtype, "axes": axes, "initial": initial}
            )
        )
        return self.input(name, *axes, dtype=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def done(self, y: str, **news: str) -> tuple[bytes, Manifest]:
        self.output(y, "y", "batch", "time", HIDDEN)
        for state in self.states:
            source = self.last if state.input == "h" else news[state.input]
            self.output(source, state.output, *state.axes, dtype=helper.np_dtype_to_tensor_dtype(np.dtype(state.dtype)))
        is_ids = self.dtype == TensorProto.INT64
        x = TensorSpec(
            name="x", dtype="int64" if is_ids else "float32", axes=("batch", "time", *(() if is_ids else (WIDTH,)))
        )
        about = Manifest(
            name="hand-made",
            version="1",
            task="stream",
            cell="foreign",
            inputs=(x,),
            outputs=(TensorSpec(name="y", dtype="float32", axes=("batch", "time", HIDDEN)),),
            states=tuple(self.states),
            codec=TensorCodec(outputs=("y",)),
        )
        return self.model().SerializeToString(), about


def refusal(net: Streaming, y: str, **news: str) -> BundleError:
    with pytest.raises(BundleError) as caught:
        prove(*net.done(y, **news))
    return caught.value


Trap = Callable[[Streaming], str]
TRAPS: dict[str, Trap] = {}


def trap(function: Trap) -> Trap:
    TRAPS[function.__name__] = function
    return function


@trap
def seasonal_difference(net: Streaming) -> str:
    return net.add("Sub", net.plain, net.shifted(net.plain, 300))


@trap
def lag_of_several_lags(net: Streaming) -> str:
    shifted = net.plain
    for _ in range(5):
        shifted = net.shifted(shifted, 70)
    return net.add("Sub", net.plain, shifted)


@trap
def dilated_convolution(net: Streaming) -> str:
    channels = net.add("Transpose", net.plain, perm=[0, 2, 1])
    after = net.add("Conv", channels, net.random(HIDDEN, HIDDEN, 2), dilations=[290], pads=[290, 0])
    return net.add("Transpose", after, perm=[0, 2, 1])


@trap
def stack_of_dilated_convolutions_that_forget_the_near_past(net: Streaming) -> str:
    channels = net.add("Transpose", net.plain, perm=[0, 2, 1])
    weights = np.zeros((HIDDEN, HIDDEN, 2), np.float32)
    weights[:, :, 0] = np.eye(HIDDEN)
    after = channels
    for dilation in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        after = net.add("Conv", after, net.constant(weights), dilations=[dilation], pads=[dilation, 0])
    return net.add("Transpose", net.add("Add", channels, after), perm=[0, 2, 1])


@trap
def pool_over_many_steps(net: Streaming) -> str:
    channels = net.add("Transpose", net.plain, perm=[0, 2, 1])
    pooled = net.add(
        "MaxPool", net.add("Transpose", net.shifted(net.plain, 250), perm=[0, 2, 1]), kernel_shape=[64], pads=[63, 0]
    )
    return net.add("Transpose", net.add("Add", channels, pooled), perm=[0, 2, 1])


@trap
def positions_below_a_limit(net: Streaming) -> str:
    return net.gate(net.add("Less", net.positions, net.number(700)))


@trap
def positions_modulo(net: Streaming) -> str:
    rest = net.add("Mod", net.positions, net.number(500))
    return net.gate(net.add("Equal", rest, net.positions))


@trap
def positions_divided(net: Streaming) -> str:
    part = net.add("Div", net.positions, net.number(400))
    return net.gate(net.add("Equal", part, net.number(0)))


@trap
def scaled_positions(net: Streaming) -> str:
    positions = net.cast(net.positions, TensorProto.FLOAT)
    return net.gate(net.add("Less", net.add("Mul", positions, net.number(0.01)), net.number(6.0)))


@trap
def clipped_positions(net: Streaming) -> str:
    bounded = net.add("Clip", net.positions, net.number(0), net.number(333))
    return net.gate(net.add("Equal", bounded, net.positions))


@trap
def length_over_a_limit(net: Streaming) -> str:
    return net.gate(net.add("Less", net.add("Unsqueeze", net.time, net.integers(0)), net.integers(999)))


@trap
def exactly_one_length(net: Streaming) -> str:
    is_it = net.add("Equal", net.add("Unsqueeze", net.time, net.integers(0)), net.integers(57))
    return net.gate(net.add("Not", is_it))


@trap
def last_steps_of_a_long_past(net: Streaming) -> str:
    """x[:-280] in front of which zeros are put again."""
    cut = net.add("Slice", net.plain, net.integers(0), net.integers(-280), net.integers(1))
    counts = net.add("Sub", net.add("Shape", net.plain), net.add("Shape", cut))
    zeros = net.add(
        "ConstantOfShape", net.add("Add", counts, net.add("Mul", net.add("Shape", cut), net.integers(1, 0, 1)))
    )
    return net.add("Add", net.plain, net.add("Concat", zeros, cut, axis=1))


@trap
def gather_of_an_early_step(net: Streaming) -> str:
    """What lies 260 steps back, of clipped positions."""
    index = net.add("Max", net.add("Sub", net.positions, net.number(260)), net.number(0))
    early = net.add("Gather", net.plain, index, axis=1)
    first = net.add("Slice", net.plain, net.integers(0), net.integers(1), net.integers(1))
    is_late = net.add("Unsqueeze", net.add("Greater", index, net.number(0)), net.integers(-1))
    return net.add("Where", is_late, early, net.add("Add", net.plain, net.add("Sub", first, first)))


@trap
def table_of_positions(net: Streaming) -> str:
    table = np.zeros((4000, HIDDEN), np.float32)
    table[900:] = 1
    return net.add("Add", net.plain, net.add("Gather", net.constant(table), net.positions))


@trap
def slice_of_a_table_of_positions(net: Streaming) -> str:
    table = np.zeros((3000, HIDDEN), np.float32)
    table[2500:] = 1
    length = net.add("Unsqueeze", net.time, net.integers(0))
    return net.add("Add", net.plain, net.add("Slice", net.constant(table), net.integers(0), length, net.integers(0)))


@trap
def running_count(net: Streaming) -> str:
    ones = net.add("Expand", net.number(0.5), net.add("Unsqueeze", net.time, net.integers(0)))
    return net.gate(net.add("Less", net.add("CumSum", ones, net.number(0)), net.number(300.0)))


@trap
def running_count_of_events(net: Streaming) -> str:
    is_event = net.cast(net.add("Greater", net.plain, net.number(0.0)), TensorProto.INT64)
    count = net.add("ReduceMax", net.add("CumSum", is_event, net.number(1)), net.integers(0, 2), keepdims=0)
    return net.gate(net.add("Less", count, net.number(400)))


@trap
def fixed_lengths_of_rows(net: Streaming) -> str:
    rows = net.add("Gather", net.add("Shape", net.x), net.number(0))
    length = net.add("Min", net.number(350), net.time)
    lengths = net.cast(net.add("Expand", length, net.add("Unsqueeze", rows, net.integers(0))), TensorProto.INT32)
    steps = net.add("Transpose", net.x, perm=[1, 0, 2])
    outputs = [net.add("Identity", "h"), "y_all", "h_last"]
    weights = [net.random(1, 3 * HIDDEN, WIDTH), net.random(1, 3 * HIDDEN, HIDDEN)]
    net.nodes.append(
        helper.make_node("GRU", [steps, *weights, "", lengths, outputs[0]], outputs[1:], hidden_size=HIDDEN)
    )
    net.last = "h_last"
    return net.add("Transpose", net.add("Squeeze", "y_all", net.integers(1)), perm=[1, 0, 2])


@trap
def branch_on_the_length(net: Streaming) -> str:
    condition = net.add("Greater", net.time, net.number(450))
    names = {"then_branch": "Neg", "else_branch": "Identity"}
    branches = {
        name: helper.make_graph(
            [helper.make_node(operator, [net.plain], [f"{name}_y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)],
        )
        for name, operator in names.items()
    }
    node = helper.make_node("If", [condition], ["chosen"])
    node.attribute.extend(helper.make_attribute(name, graph) for name, graph in branches.items())
    net.nodes.append(node)
    return "chosen"


@trap
def loop_of_a_fixed_number_of_turns(net: Streaming) -> str:
    """300 turns that shift by one step each."""
    values = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["goes_on"], ["goes_on_still"]),
            helper.make_node("Pad", ["carried", "pads"], ["padded"]),
            helper.make_node("Slice", ["padded", "begin", "end", "axis"], ["moved"]),
        ],
        "body",
        [
            values("turn", TensorProto.INT64, []),
            values("goes_on", TensorProto.BOOL, []),
            values("carried", TensorProto.FLOAT, None),
        ],
        [values("goes_on_still", TensorProto.BOOL, []), values("moved", TensorProto.FLOAT, None)],
        [
            helper.make_tensor("pads", TensorProto.INT64, [6], [0, 1, 0, 0, 0, 0]),
            *(helper.make_tensor(n, TensorProto.INT64, [1], [v]) for n, v in (("begin", 0), ("end", -1), ("axis", 1))),
        ],
    )
    moved = net.add("Loop", net.number(300), "", net.plain, body=body)
    return net.add("Add", net.plain, moved)


@trap
def scatter_at_a_fixed_step(net: Streaming) -> str:
    """The output is zero at step 270, if there is one."""
    index = net.add("Min", net.number(270), net.add("Sub", net.time, net.number(1)))
    is_there = net.add("Equal", net.positions, net.add("Mul", index, net.number(1)))
    late = net.add("And", is_there, net.add("Equal", index, net.number(270)))
    return net.gate(net.add("Not", late))


@trap
def large_values(net: Streaming) -> str:
    """A step that follows a large value."""
    before = net.shifted(net.x, 1)
    is_large = net.add(
        "Greater", net.add("ReduceMax", net.add("Abs", before), net.integers(2), keepdims=0), net.number(5.0)
    )
    return net.gate(net.add("Not", is_large))


@trap
def length_limit_of_a_scan_that_counts_anew(net: Streaming) -> str:
    values = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Add", ["count", "one"], ["count_out"]),
            helper.make_node("Less", ["count", "limit"], ["is_early"]),
            helper.make_node("Cast", ["is_early"], ["factor"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["step", "factor"], ["kept"]),
        ],
        "body",
        [values("count", TensorProto.INT64, []), values("step", TensorProto.FLOAT, None)],
        [values("count_out", TensorProto.INT64, []), values("kept", TensorProto.FLOAT, None)],
        [
            helper.make_tensor("one", TensorProto.INT64, [], [1]),
            helper.make_tensor("limit", TensorProto.INT64, [], [600]),
        ],
    )
    first = net.number(0)
    net.nodes.append(
        helper.make_node(
            "Scan", [first, net.plain], ["counted", "kept_all"], body=body, num_scan_inputs=1,
            scan_input_axes=[1], scan_output_axes=[1],
        )
    )  # fmt: skip
    return "kept_all"


@trap
def convolution_over_steps_and_columns(net: Streaming) -> str:
    image = net.add("Unsqueeze", net.plain, net.integers(1))
    after = net.add("Conv", image, net.random(1, 1, 2, 1), dilations=[270, 1], pads=[270, 0, 0, 0])
    return net.add("Squeeze", after, net.integers(1))


@trap
def lag_of_steps_and_columns_in_one_axis(net: Streaming) -> str:
    flat = net.add("Reshape", net.plain, net.integers(0, -1))
    padded = net.add("Pad", flat, net.integers(0, 300 * HIDDEN, 0, 0))
    before = net.add("Slice", padded, net.integers(0), net.integers(-300 * HIDDEN), net.integers(1))
    return net.add("Add", net.plain, net.add("Reshape", before, net.integers(0, -1, HIDDEN)))


@trap
def positions_divided_and_rounded(net: Streaming) -> str:
    part = net.add("Div", net.cast(net.positions, TensorProto.FLOAT), net.number(444.0))
    return net.gate(net.add("Less", net.add("Floor", part), net.number(0.5)))


def squares(net: Streaming) -> str:
    """Return the shape [time, time]."""
    time = net.add("Unsqueeze", net.time, net.integers(0))
    return net.add("Concat", time, time, axis=0)


@trap
def all_steps_long_before(net: Streaming) -> str:
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    early = net.add("Trilu", net.add("ConstantOfShape", squares(net), value=one), net.number(-300), upper=0)
    return net.add("Add", net.plain, net.add("MatMul", early, net.plain))


@trap
def step_long_before_by_a_diagonal(net: Streaming) -> str:
    diagonal = net.add("EyeLike", net.add("ConstantOfShape", squares(net)), k=-310)
    return net.add("Add", net.plain, net.add("Einsum", diagonal, net.plain, equation="ts,bsf->btf"))


def curved(operator: str, factor: float, limit: float) -> Trap:
    def limited(net: Streaming) -> str:
        positions = net.add("Add", net.cast(net.positions, TensorProto.FLOAT), net.number(1.0))
        bent = net.add(operator, net.add("Mul", positions, net.number(factor)))
        return net.gate(net.add("Less", bent, net.number(limit)))

    return limited


TRAPS |= {
    "root_of_positions": curved("Sqrt", 1.0, 25.0),
    "logarithm_of_positions": curved("Log", 1.0, 6.5),
    "sine_of_positions": curved("Sin", 0.001, 0.9),
    "exponent_of_positions": curved("Exp", 0.01, 400.0),
}


@trap
def table_of_positions_as_one_hot_rows(net: Streaming) -> str:
    rows = net.add("OneHot", net.positions, net.number(900), net.constant(np.array([0, 1], np.float32)))
    is_there = net.add("ReduceSum", rows, net.integers(1), keepdims=0)
    return net.add("Mul", net.plain, net.add("Unsqueeze", is_there, net.integers(1)))


def loudest_before(net: Streaming) -> str:
    """Return the largest |x| of the step before, [batch, time]."""
    return net.add("ReduceMax", net.add("Abs", net.shifted(net.x, 1)), net.integers(2), keepdims=0)


@trap
def very_large_values(net: Streaming) -> str:
    return net.gate(net.add("Less", loudest_before(net), net.number(50000.0)))


@trap
def very_small_values(net: Streaming) -> str:
    loudest = loudest_before(net)
    is_tiny = net.add("And", net.add("Less", loudest, net.number(1e-7)), net.add("Greater", loudest, net.number(0.0)))
    return net.gate(net.add("Not", is_tiny))


@trap
def delay_line_of_a_scan_that_begins_anew(net: Streaming) -> str:
    values = helper.make_tensor_value_info
    numbers = {"axis": 1, "first": 0, "second": 1, "end": FAR}
    body = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["step", "axis"], ["newest"]),
            helper.make_node("Concat", ["line", "newest"], ["longer"], axis=1),
            helper.make_node("Slice", ["longer", "first", "second", "axis"], ["oldest"]),
            helper.make_node("Slice", ["longer", "second", "end", "axis"], ["line_out"]),
            helper.make_node("Squeeze", ["oldest", "axis"], ["old"]),
            helper.make_node("Add", ["step", "old"], ["both"]),
        ],
        "body",
        [values("line", TensorProto.FLOAT, None), values("step", TensorProto.FLOAT, None)],
        [values("line_out", TensorProto.FLOAT, None), values("both", TensorProto.FLOAT, None)],
        [helper.make_tensor(name, TensorProto.INT64, [1], [number]) for name, number in numbers.items()],
    )
    batch = net.add("Slice", net.add("Shape", net.x), net.integers(0), net.integers(1))
    line = net.add("Expand", net.number(0.0), net.add("Concat", batch, net.integers(320, HIDDEN), axis=0))
    names = {"num_scan_inputs": 1, "scan_input_axes": [1], "scan_output_axes": [1]}
    node = helper.make_node("Scan", [line, net.plain], ["line_end", "delayed"])
    node.attribute.extend(helper.make_attribute(name, value) for name, value in {"body": body, **names}.items())
    net.nodes.append(node)
    return "delayed"


def test_a_number_of_rows_that_the_graph_compares_with_is_reached() -> None:
    net = Streaming()
    rows = net.add("Gather", net.add("Shape", net.x), net.number(0))
    y = net.gate(net.add("Less", net.add("Unsqueeze", rows, net.integers(0)), net.integers(100)))
    assert refusal(net, y).reason == "BATCH_DEPENDENT"


@pytest.mark.parametrize("name", TRAPS)
def test_a_memory_beyond_short_sequences_is_refused(name: str) -> None:
    net = Streaming()
    error = refusal(net, TRAPS[name](net))
    assert error.reason == "NOT_STREAMABLE", error.message


def lagged(net: Streaming, lag: int, *, is_state: bool) -> tuple[bytes, Manifest]:
    """Add what was `lag` steps before, from zeros in front of the chunk or out of a state."""
    if not is_state:
        return net.done(net.add("Add", net.plain, net.shifted(net.plain, lag)))
    buffer = net.state("past", "float32", "batch", lag, HIDDEN)
    joined = net.add("Concat", buffer, net.plain, axis=1)
    begin, axis = net.integers(0), net.integers(1)
    before = net.add("Slice", joined, begin, net.add("Unsqueeze", net.time, begin), axis)
    past = net.add("Slice", joined, net.integers(-lag), net.integers(FAR), axis)
    return net.done(net.add("Add", net.plain, before), past=past)


def convolved(net: Streaming, dilation: int, taps: int, *, is_state: bool) -> tuple[bytes, Manifest]:
    """Convolve with `taps` taps, zeros or a state in front."""
    channels = net.add("Transpose", net.plain, perm=[0, 2, 1])
    weights, span = net.random(HIDDEN, HIDDEN, taps), dilation * (taps - 1)
    if not is_state:
        after = net.add("Conv", channels, weights, dilations=[dilation], pads=[span, 0])
        return net.done(net.add("Transpose", after, perm=[0, 2, 1]))
    joined = net.add("Concat", net.state("past", "float32", "batch", HIDDEN, span), channels, axis=2)
    after = net.add("Conv", joined, weights, dilations=[dilation])
    past = net.add("Slice", joined, net.integers(-span), net.integers(FAR), net.integers(2))
    return net.done(net.add("Transpose", after, perm=[0, 2, 1]), past=past)


@settings(max_examples=12)
@given(lag=st.integers(1, 600))
def test_a_lag_of_any_length_passes_as_a_state_and_only_so(lag: int) -> None:
    assert prove(*lagged(Streaming(), lag, is_state=True)).passed
    outside = lagged(Streaming(), lag, is_state=False)
    assert analyse(*outside).steps >= lag
    with pytest.raises(BundleError, match="cannot stream"):
        prove(*outside)


@settings(max_examples=12)
@given(dilation=st.integers(1, 300), taps=st.integers(2, 3))
def test_a_convolution_of_any_span_passes_as_a_state_and_only_so(dilation: int, taps: int) -> None:
    assert prove(*convolved(Streaming(), dilation, taps, is_state=True)).passed
    outside = convolved(Streaming(), dilation, taps, is_state=False)
    assert analyse(*outside).steps >= dilation * (taps - 1)
    with pytest.raises(BundleError, match="cannot stream"):
        prove(*outside)


def counted(net: Streaming, dtype: str, limit: float, *, is_by_step: bool) -> tuple[bytes, Manifest]:
    """Give zeros once a counter is over a limit: from the very step, or only from the next chunk on."""
    count = net.state("count", dtype)
    number = net.number(float(limit) if dtype == "float32" else int(limit))
    time, positions = net.time, net.positions
    if dtype == "float32":
        time, positions = net.cast(time, TensorProto.FLOAT), net.cast(positions, TensorProto.FLOAT)
    now = net.add("Add", count, positions) if is_by_step else net.add("Unsqueeze", count, net.integers(0))
    return net.done(net.gate(net.add("Less", now, number)), count=net.add("Add", count, time))


@pytest.mark.parametrize("limit", [50, 700, 4097, 5_000_000])
@pytest.mark.parametrize("dtype", ["int64", "float32"])
def test_a_counter_is_followed_across_its_limit(dtype: str, limit: int) -> None:
    assert prove(*counted(Streaming(), dtype, limit, is_by_step=True)).passed
    with pytest.raises(BundleError, match="cannot stream"):
        prove(*counted(Streaming(), dtype, limit, is_by_step=False))


def faded(net: Streaming, *, is_by_step: bool) -> tuple[bytes, Manifest]:
    """Give zeros once a level that fades by a thousandth a step, and is kept less 1, is under a thousandth."""
    level = net.state("level", "float32")
    full = net.add("Add", level, net.number(1.0))
    after, rest = (
        net.add("Mul", full, net.add("Pow", net.number(0.999), net.cast(steps, TensorProto.FLOAT)))
        for steps in (net.positions, net.time)
    )
    now = after if is_by_step else net.add("Unsqueeze", full, net.integers(0))
    return net.done(net.gate(net.add("Less", net.number(0.001), now)), level=net.add("Sub", rest, net.number(1.0)))


def test_a_counter_is_followed_across_a_limit_that_it_meets_with_a_number_added() -> None:
    assert prove(*faded(Streaming(), is_by_step=True)).passed
    with pytest.raises(BundleError, match="cannot stream"):
        prove(*faded(Streaming(), is_by_step=False))


def summed(net: Streaming, limit: float, *, is_by_step: bool) -> tuple[bytes, Manifest]:
    """Give zeros once the sum of all values is over a limit."""
    total = net.state("total", "float32", "batch")
    loud = net.add("ReduceSum", net.add("Abs", net.x), net.integers(2), keepdims=0)
    column = net.add("Unsqueeze", total, net.integers(1))
    so_far = net.add("Add", net.add("CumSum", loud, net.number(1)), column)
    now = so_far if is_by_step else net.add("Expand", column, net.add("Shape", so_far))
    news = net.add("Add", total, net.add("ReduceSum", loud, net.integers(1), keepdims=0))
    return net.done(net.gate(net.add("Less", now, net.number(limit))), total=news)


def test_a_running_sum_is_followed_across_its_limit() -> None:
    assert prove(*summed(Streaming(), 1e6, is_by_step=True)).passed
    with pytest.raises(BundleError, match="cannot stream"):
        prove(*summed(Streaming(), 1e6, is_by_step=False))


def positioned(net: Streaming, size: int, dtype: str) -> tuple[bytes, Manifest]:
    """Add an embedding of the position, which a state counts."""
    position = net.state("position", dtype)
    time, positions = net.time, net.positions
    if dtype == "int32":
        time, positions = net.cast(time, TensorProto.INT32), net.cast(positions, TensorProto.INT32)
    rows = net.add("Gather", net.random(size, HIDDEN), net.add("Add", position, positions))
    return net.done(net.add("Add", net.plain, rows), position=net.add("Add", position, time))


@pytest.mark.parametrize("size", [100, 2000, 6000])
def test_a_table_of_positions_passes_up_to_its_end(size: int) -> None:
    assert prove(*positioned(Streaming(), size, "int64")).passed
    assert prove(*positioned(Streaming(), size, "int32")).passed


def repeated(net: Streaming) -> tuple[bytes, Manifest]:
    """Turn as often as the loudest value says; what comes of it is nothing."""
    values = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["goes_on"], ["goes_on_still"]), helper.make_node("Identity", ["a"], ["b"])],
        "body",
        [
            values("turn", TensorProto.INT64, []),
            values("goes_on", TensorProto.BOOL, []),
            values("a", TensorProto.FLOAT, None),
        ],
        [values("goes_on_still", TensorProto.BOOL, []), values("b", TensorProto.FLOAT, None)],
    )
    loudest = net.cast(net.add("ReduceMax", net.add("Abs", net.x), keepdims=0), TensorProto.INT64)
    return net.done(net.add("Loop", loudest, "", net.plain, body=body))


def test_a_reach_that_the_data_decides_is_refused_unless_the_user_states_one() -> None:
    about = repeated(Streaming())
    with pytest.raises(BundleError, match=r"as many turns as the data says.*--reach N") as caught:
        prove(*about)
    assert caught.value.reason == "NOT_STREAMABLE"
    proof = prove(*about, reach=60)
    assert (proof.reach, proof.reach_from) == (60, "stated")


def test_a_stated_reach_is_never_less_than_what_the_graph_tells() -> None:
    about = lagged(Streaming(), 300, is_state=True)
    assert prove(*about, reach=10).reach == analyse(*about).steps
    assert prove(*about, reach=2000).reach == 2000
    with pytest.raises(BundleError, match="cannot stream"):
        prove(*lagged(Streaming(), 300, is_state=False), reach=10)


def test_widths_and_endless_bounds_are_no_distances() -> None:
    net = Streaming()
    wide = net.add("Reshape", net.linear(net.plain, HIDDEN, 3000), net.integers(0, 0, 3, 1000))
    part = net.add("Slice", wide, net.integers(900), net.integers(FAR), net.integers(3))
    later = net.add("Slice", part, net.integers(0), net.integers(FAR), net.integers(1))
    y = net.linear(net.add("Gather", later, net.number(2), axis=2), 100, HIDDEN)
    found = analyse(*net.done(y))
    assert found.steps == 0
    assert not found.unbounded


def test_ids_come_from_the_whole_table_that_they_index() -> None:
    net = Streaming(dtype=TensorProto.INT64)
    embedded = net.add("Gather", net.random(500, 3), net.x)
    y = net.gru(embedded, 3)
    about = net.done(y)
    assert analyse(*about).vocabularies == {"x": 500}
    assert prove(*about).passed


def test_an_id_above_one_that_begins_anew_in_each_chunk_is_refused() -> None:
    net = Streaming(dtype=TensorProto.INT64)
    y = net.gru(net.add("Gather", net.random(500, 3), net.x), 3)
    is_special = net.cast(net.add("Equal", net.x, net.number(77)), TensorProto.FLOAT)
    seen = net.add("Unsqueeze", net.add("CumSum", is_special, net.number(1)), net.integers(2))
    assert refusal(net, net.add("Add", y, seen)).reason == "NOT_STREAMABLE"
