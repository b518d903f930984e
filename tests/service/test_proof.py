"""The streaming proof: what it passes, and the reason it gives for what it refuses. The graphs are made by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from tests.bundles import write_tiny_bundle, write_tiny_forecast_bundle, write_tiny_stream_bundle
from tidegate.bundle import Axis, Manifest, SettingSpec, StateSpec, TensorCodec, TensorSpec, read_bundle
from tidegate.errors import BundleError
from tidegate.proof import ABSOLUTE, check_bundle, excess, is_batch_invariant, prove
from tidegate.replay import GraphRunner, random_inputs, random_lengths, stream_together

WIDTH, HIDDEN = 2, 4
WEIGHTS = {
    "w": (1, 3 * HIDDEN, WIDTH),
    "r": (1, 3 * HIDDEN, HIDDEN),
    "w2": (2, 3 * HIDDEN, WIDTH),
    "r2": (2, 3 * HIDDEN, HIDDEN),
    "wl": (1, 4 * HIDDEN, WIDTH),
    "rl": (1, 4 * HIDDEN, HIDDEN),
}

GRU = 'all, h_out = GRU<hidden_size=4>(steps, w, r, "", "", h_in)'
TAIL = "flat = Squeeze(all, one) y = Transpose<perm=[1, 0, 2]>(flat)"


def graph(body: str, *, inputs: str = "", outputs: str = "") -> bytes:
    """Build a graph over x [batch, time, 2] and h_in out of ONNX's text format, with random weights."""
    head = inputs or "float[batch,time,2] x, float[1,batch,4] h_in"
    tail = outputs or "float[batch,time,4] y, float[1,batch,4] h_out"
    text = f'<ir_version: 10, opset_import: ["" : 21]> g ({head}) => ({tail}) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    words = set(re.findall(r"\w+", body))
    rng = np.random.default_rng(5)
    values: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = {
        name: rng.normal(scale=0.7, size=shape).astype(np.float32) for name, shape in WEIGHTS.items() if name in words
    }
    initializers = [numpy_helper.from_array(value, name) for name, value in values.items()]
    initializers += [numpy_helper.from_array(np.array([number], np.int64), name) for name, number in NUMBERS.items()]
    model.graph.initializer.extend(item for item in initializers if item.name in words)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


NUMBERS = {"zero": 0, "one": 1, "two": 2}


def gru(tail: str = TAIL) -> bytes:
    """Build the graph of one GRU layer."""
    return graph(f"steps = Transpose<perm=[1, 0, 2]>(x) {GRU} {tail}")


def manifest(
    *,
    x: tuple[Axis, ...] = ("batch", "time", WIDTH),
    y: tuple[Axis, ...] = ("batch", "time", HIDDEN),
    states: Sequence[tuple[str, str]] = (("h_in", "h_out"),),
    state_axes: tuple[Axis, ...] = (1, "batch", HIDDEN),
    batch_invariant: bool = True,
) -> Manifest:
    return Manifest(
        name="hand-made",
        version="1",
        task="stream",
        cell="gru",
        inputs=(TensorSpec(name="x", dtype="float32", axes=x),),
        outputs=(TensorSpec(name="y", dtype="float32", axes=y),),
        states=tuple(StateSpec(input=a, output=b, dtype="float32", axes=state_axes) for a, b in states),
        codec=TensorCodec(outputs=("y",)),
        batch_invariant=batch_invariant,
    )


def refusal(data: bytes, about: Manifest) -> BundleError:
    with pytest.raises(BundleError) as caught:
        prove(data, about)
    return caught.value


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_a_bundle_that_carries_its_state_passes(tmp_path: Path, cell: str) -> None:
    for write in (write_tiny_bundle, write_tiny_forecast_bundle, write_tiny_stream_bundle):
        proof = check_bundle(write(tmp_path, cell=cell))
        assert proof.passed
        assert proof.max_error <= ABSOLUTE
        assert proof.cases > 30
        assert proof.runtime.startswith("onnxruntime ")


def test_a_layer_that_ignores_the_state_it_is_given_is_refused() -> None:
    body = "steps = Transpose<perm=[1, 0, 2]>(x) all, final = GRU<hidden_size=4>(steps, w, r) h_out = Identity(h_in)"
    error = refusal(graph(f"{body} {TAIL}"), manifest())
    assert error.reason == "NOT_STREAMABLE"
    assert "memory that is not among the states" in error.message


def test_a_state_that_is_handed_back_unchanged_is_refused() -> None:
    body = 'steps = Transpose<perm=[1, 0, 2]>(x) all, final = GRU<hidden_size=4>(steps, w, r, "", "", h_in)'
    error = refusal(graph(f"{body} h_out = Identity(h_in) {TAIL}"), manifest())
    assert error.reason == "NOT_STREAMABLE"
    assert "memory that is not among the states" in error.message


def test_states_paired_crosswise_are_refused() -> None:
    data = graph(
        "steps = Transpose<perm=[1, 0, 2]>(x) "
        f'all, h_out, c_out = LSTM<hidden_size=4>(steps, wl, rl, "", "", h_in, c_in) {TAIL}',
        inputs="float[batch,time,2] x, float[1,batch,4] h_in, float[1,batch,4] c_in",
        outputs="float[batch,time,4] y, float[1,batch,4] h_out, float[1,batch,4] c_out",
    )
    assert prove(data, manifest(states=(("h_in", "h_out"), ("c_in", "c_out")))).passed
    assert refusal(data, manifest(states=(("h_in", "c_out"), ("c_in", "h_out")))).reason == "NOT_STREAMABLE"


def test_a_bidirectional_layer_is_refused_because_it_looks_ahead() -> None:
    data = graph(
        "steps = Transpose<perm=[1, 0, 2]>(x) "
        'all, h_out = GRU<hidden_size=4, direction="bidirectional">(steps, w2, r2, "", "", h_in) '
        "both = ReduceSum<keepdims=0>(all, one) y = Transpose<perm=[1, 0, 2]>(both)",
        inputs="float[batch,time,2] x, float[2,batch,4] h_in",
        outputs="float[batch,time,4] y, float[2,batch,4] h_out",
    )
    error = refusal(data, manifest(state_axes=(2, "batch", HIDDEN)))
    assert error.reason == "NOT_STREAMABLE"
    assert "looks ahead" in error.message


def test_a_mean_over_all_steps_is_refused_because_it_looks_ahead() -> None:
    tail = "flat = Squeeze(all, one) m = ReduceMean(flat, zero) z = Sub(flat, m) y = Transpose<perm=[1, 0, 2]>(z)"
    assert "looks ahead" in refusal(gru(tail), manifest()).message


def test_batchwise_layout_is_refused_by_its_name() -> None:
    data = graph(
        'all, h_out = GRU<hidden_size=4, layout=1>(x, w, r, "", "", h_in) y = Squeeze(all, two)',
        inputs="float[batch,time,2] x, float[batch,1,4] h_in",
        outputs="float[batch,time,4] y, float[batch,1,4] h_out",
    )
    error = refusal(data, manifest(state_axes=("batch", 1, HIDDEN)))
    assert error.reason == "NOT_STREAMABLE"
    assert "layout=1" in error.message


def test_rows_that_see_their_neighbours_are_found_and_run_alone() -> None:
    tail = "flat = Squeeze(all, one) m = ReduceMean(flat, one) z = Sub(flat, m) y = Transpose<perm=[1, 0, 2]>(z)"
    data = gru(tail)
    assert is_batch_invariant(gru(), manifest())
    assert not is_batch_invariant(data, manifest())
    assert refusal(data, manifest()).reason == "BATCH_DEPENDENT"
    assert prove(data, manifest(batch_invariant=False)).passed


def test_a_batch_of_one_that_is_fixed_is_proved_row_by_row() -> None:
    data = graph(
        f"steps = Transpose<perm=[1, 0, 2]>(x) {GRU} {TAIL}",
        inputs="float[1,time,2] x, float[1,1,4] h_in",
        outputs="float[1,time,4] y, float[1,1,4] h_out",
    )
    about = manifest(x=(1, "time", WIDTH), y=(1, "time", HIDDEN), state_axes=(1, 1, HIDDEN))
    assert not about.is_batchable
    assert prove(data, about).passed


def test_time_may_come_first_and_an_output_may_be_of_the_last_step_only() -> None:
    data = graph(
        'all, h_out = GRU<hidden_size=4>(x, w, r, "", "", h_in) y = Squeeze(h_out, zero)',
        inputs="float[time,batch,2] x, float[1,batch,4] h_in",
        outputs="float[batch,4] y, float[1,batch,4] h_out",
    )
    assert prove(data, manifest(x=("time", "batch", WIDTH), y=("batch", HIDDEN))).passed


def test_a_graph_that_rounds_coarsely_passes_within_a_tolerance_that_is_recorded() -> None:
    # What a cut changes here, a hundredth of a mean over the chunk, stands for scales that are taken over a chunk.
    tail = (
        "flat = Squeeze(all, one) m = ReduceMean(flat, zero) share = Constant<value = float {0.01}>() "
        "part = Mul(m, share) z = Add(flat, part) y = Transpose<perm=[1, 0, 2]>(z)"
    )
    assert refusal(gru(tail), manifest()).reason == "NOT_STREAMABLE"
    proof = prove(gru(tail), manifest(), tolerance=0.05)
    assert proof.tolerance == 0.05
    assert ABSOLUTE < proof.max_error <= 0.05


def test_outputs_below_the_tolerance_are_compared_by_their_own_size() -> None:
    remembers = f"{TAIL.replace('y =', 'each =')} sums = CumSum(each, one)"
    faint = gru(f"{remembers} tiny = Constant<value_float=1e-8>() y = Mul(sums, tiny)")
    with pytest.raises(BundleError, match=r"output y differs by .*, of at most .*: a memory that is not among"):
        prove(faint, manifest())
    forgets = gru(f"{TAIL.replace('y =', 'each =')} tiny = Constant<value_float=1e-8>() y = Mul(each, tiny)")
    assert prove(forgets, manifest()).passed


def test_what_happens_beyond_a_large_number_is_met() -> None:
    loud = "limit = Constant<value_float=30000.0>() over = Sub(x, limit) peaks = Relu(over) sums = CumSum(peaks, one)"
    remembers = f"{TAIL.replace('y =', 'each =')} {loud} all_sums = ReduceSum(sums, two) y = Add(each, all_sums)"
    with pytest.raises(BundleError, match=r"differs by .* landmarks as values"):
        prove(gru(remembers), manifest())


@pytest.mark.parametrize("limit", [20.0, 1234.5])
@pytest.mark.parametrize(
    "decides", ["over = Sub(level, limit) share = Relu(over)", "on = Greater(level, limit) share = Cast<to=1>(on)"]
)
def test_settings_are_set_far_from_their_defaults(decides: str, limit: float) -> None:
    sums = f"sums = CumSum(each, one) limit = Constant<value_float={limit}>()"
    remembers = f"{TAIL.replace('y =', 'each =')} {sums} {decides}"
    content = graph(
        f"steps = Transpose<perm=[1, 0, 2]>(x) {GRU} {remembers} some = Mul(sums, share) y = Add(each, some)",
        inputs="float[batch,time,2] x, float[1,batch,4] h_in, float[1] level",
    )
    setting = SettingSpec(name="level", dtype="float32", axes=(1,), default=(6.0,))
    with pytest.raises(BundleError, match=r"differs by .* between one chunk and several where a setting is \d+"):
        prove(content, manifest().model_copy(update={"settings": (setting,)}))


def test_not_a_number_never_passes() -> None:
    tail = "flat = Squeeze(all, one) z = Log(flat) y = Transpose<perm=[1, 0, 2]>(z)"
    assert refusal(gru(tail), manifest()).reason == "NOT_STREAMABLE"
    with pytest.raises(BundleError, match="cannot stream"):
        prove(gru(tail), manifest(), tolerance=1.0)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (manifest(states=(("hidden", "h_out"),)), "the graph's inputs are ['h_in', 'x']"),
        (manifest(states=(("h_in", "hidden"),)), "the graph has no output hidden"),
        (manifest(y=("batch", "time", 7)), "y has shape (1, 24, 4)"),
    ],
)
def test_a_manifest_of_another_graph_is_named_as_such(about: Manifest, message: str) -> None:
    error = refusal(gru(), about)
    assert error.reason == "BAD_BUNDLE"
    assert message in error.message


def test_what_is_no_graph_is_refused_with_the_runtimes_reason() -> None:
    error = refusal(b"not a model", manifest())
    assert error.reason == "BAD_BUNDLE"
    assert error.message.startswith("onnxruntime refuses the graph: ")


def test_equal_allows_a_ten_thousandth_of_the_value_and_a_hundred_thousandth_beside() -> None:
    assert excess(np.array([100.0, 0.0]), np.array([100.009, 0.000009])) <= ABSOLUTE
    assert excess(np.array([100.0]), np.array([100.02])) > ABSOLUTE
    assert excess(np.array([0.0]), np.array([0.00002])) > ABSOLUTE
    assert excess(np.array([np.inf, 1.0]), np.array([np.inf, 1.0])) <= ABSOLUTE
    assert excess(np.array([np.inf]), np.array([-np.inf])) == np.inf
    assert excess(np.array([np.nan]), np.array([np.nan])) == np.inf
    assert excess(np.zeros((2, 3)), np.zeros((3, 2))) == np.inf


@given(steps=st.integers(1, 30), seed=st.integers(0, 2**32 - 1))
def test_random_lengths_cut_a_sequence_into_chunks_without_loss(steps: int, seed: int) -> None:
    lengths = random_lengths(steps, np.random.default_rng(seed))
    assert sum(lengths) == steps
    assert min(lengths) >= 1


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6), seed=st.integers(0, 2**32 - 1))
def test_ragged_rows_in_changing_batches_give_what_each_gives_alone(lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    runner = GraphRunner(gru(), manifest())
    rows = [random_inputs(runner.manifest, 1, steps, rng) for steps in lengths]
    for row, steps, found in zip(rows, lengths, stream_together(runner, rows, lengths, rng), strict=True):
        expected = runner.walk(row, [steps])
        assert excess(expected.outputs["y"], found.outputs["y"]) <= ABSOLUTE
        assert excess(expected.states["h_in"], found.states["h_in"]) <= ABSOLUTE


def test_tokens_are_drawn_from_the_whole_vocabulary(tmp_path: Path) -> None:
    bundle = read_bundle(write_tiny_bundle(tmp_path))
    tokens = random_inputs(bundle.manifest, 4, 500, np.random.default_rng(0))["tokens"]
    assert tokens.dtype == np.int64
    assert (tokens.min(), tokens.max()) == (0, 64)
