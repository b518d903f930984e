"""`tidegate import` where one run is one step: what is data and what a state, by what the graph does with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.export.importing.graphs import Net
from tests.export.importing.importing import axes, by_hand, imported, pairs, refusal, said, walked
from tidegate_export.importing.importer import run

WIDTH, HIDDEN = 16, 8


def cell(net: Net, before: str, *inputs: str, width: int) -> str:
    """Add a plain cell: a new state of what goes in and the state before."""
    together = net.add("Concat", *inputs, before, axis=1)
    return net.add("Tanh", net.linear(together, width + HIDDEN, HIDDEN))


def enhancer(
    kind: str = "mask",
    frame: tuple[str, str] = ("input_frame", "output_frame"),
    state: tuple[str, str] = ("state_in", "state_out"),
    *,
    has_reference: bool = True,
    rows: int | str = 1,
) -> Net:
    """A frame in and an enhanced frame of its shape out, beside a true state and, maybe, an echo's reference."""
    net = Net()
    inputs = [net.input(frame[0], rows, WIDTH)]
    if has_reference:
        inputs.append(net.input("ref", rows, WIDTH))
    after = cell(net, net.input(state[0], 1, HIDDEN), *inputs, width=WIDTH * len(inputs))
    made = net.add("Tanh", net.linear(after, HIDDEN, WIDTH))
    match kind:
        case "mask":
            out = net.add("Mul", frame[0], net.add("Sigmoid", made))
        case "residual":
            out = net.add("Add", frame[0], made)
        case "gate":  # the frame where somebody speaks, a tenth of it elsewhere
            is_speech = net.add("Greater", net.linear(after, HIDDEN, 1), net.constant(np.zeros(1, np.float32)))
            out = net.add(
                "Where", is_speech, frame[0], net.add("Mul", frame[0], net.constant(np.full(1, 0.1, np.float32)))
            )
        case "bands":  # the low band as it is, the high one made anew
            low = net.add("Slice", frame[0], net.integers(0), net.integers(4), net.integers(1))
            high = net.add("Slice", made, net.integers(4), net.integers(WIDTH), net.integers(1))
            out = net.add("Concat", low, high, axis=1)
        case "spectrum":  # there, masked, and back
            out = net.linear(net.add("Mul", net.linear(frame[0], WIDTH, WIDTH), made), WIDTH, WIDTH)
        case _:
            out = made
    net.output(out, frame[1], rows, WIDTH)
    net.output(after, state[1], 1, HIDDEN)
    net.output(net.add("Sigmoid", net.linear(after, HIDDEN, 1)), "vad", rows, 1)
    return net


@pytest.mark.parametrize("kind", ["mask", "residual", "gate", "bands", "spectrum", "made anew"])
@pytest.mark.parametrize("has_reference", [True, False])
def test_a_frame_that_comes_out_enhanced_is_data(tmp_path: Path, kind: str, *, has_reference: bool) -> None:
    bundle = imported(enhancer(kind, has_reference=has_reference), tmp_path)
    assert pairs(bundle) == {"state_in": "state_out"}
    assert [spec.name for spec in bundle.manifest.inputs] == ["input_frame", "ref"][: 1 + has_reference]
    assert [spec.name for spec in bundle.manifest.outputs] == ["output_frame", "vad"]


@pytest.mark.parametrize("frame", [("mic", "mic_out"), ("audio_in", "audio_out"), ("x", "y"), ("noisy", "enhanced")])
def test_the_frame_is_data_whatever_it_is_called(tmp_path: Path, frame: tuple[str, str]) -> None:
    for version, kind in enumerate(("mask", "residual"), 1):
        bundle = imported(enhancer(kind, frame), tmp_path, version=version)
        assert pairs(bundle) == {"state_in": "state_out"}


def test_what_went_in_is_served_and_what_came_out_is_what_the_file_gives(tmp_path: Path) -> None:
    net = enhancer()
    bundle = imported(net, tmp_path)
    rng = np.random.default_rng(0)
    x, ref = rng.normal(size=(2, 1, 5, WIDTH)).astype(np.float32)
    got = walked(bundle, [2, 3], {"input_frame": x, "ref": ref}).outputs["output_frame"]
    state = np.zeros((1, HIDDEN), np.float32)
    for step in range(5):
        alone = by_hand(net, {"input_frame": x[:, step], "ref": ref[:, step], "state_in": state})
        np.testing.assert_allclose(got[:, step], alone["output_frame"], atol=1e-6)
        state = alone["state_out"]


def test_a_batch_that_only_the_data_declares_is_freed_in_the_state_too(tmp_path: Path) -> None:
    bundle = imported(enhancer(frame=("mic", "mic_out"), state=("h", "h_out"), rows="batch"), tmp_path)
    assert pairs(bundle) == {"h": "h_out"}
    assert axes(bundle)["mic"] == ("batch", "time", WIDTH)
    assert bundle.manifest.states[0].axes == ("batch", HIDDEN)


def test_a_frame_that_may_be_a_state_by_all_that_is_known_is_asked_for(tmp_path: Path) -> None:
    """Scaled and added to, and called alike: a running mean of the frames looks the same."""
    net = enhancer("residual", ("a_in", "a_out"))
    told = refusal(net, tmp_path)
    assert "nothing proves whether a_in is a state or data" in told
    assert "--state INPUT:OUTPUT (of these a_in:a_out may be)" in told
    assert "--data NAME" in told
    assert pairs(imported(net, tmp_path, data=["a_in"])) == {"state_in": "state_out"}
    only = imported(net, tmp_path, states=["state_in:state_out"], version=2)
    assert pairs(only) == {"state_in": "state_out"}
    both = imported(net, tmp_path, states=["state_in:state_out", "a_in:a_out"], version=3)
    assert set(pairs(both)) == {"state_in", "a_in"}


def complex_mask(names: tuple[str, str]) -> Net:
    """A spectrum in two parts, turned and scaled."""
    net = Net()
    real, imag = (net.input(f"{name}_in", 1, WIDTH) for name in names)
    after = cell(net, net.input("h", 1, HIDDEN), real, imag, width=2 * WIDTH)
    a, b = (net.linear(after, HIDDEN, WIDTH) for _ in range(2))
    net.output(net.add("Sub", net.add("Mul", real, a), net.add("Mul", imag, b)), f"{names[0]}_out", 1, WIDTH)
    net.output(net.add("Add", net.add("Mul", real, b), net.add("Mul", imag, a)), f"{names[1]}_out", 1, WIDTH)
    net.output(after, "h_out", 1, HIDDEN)
    return net


def test_two_parts_that_only_scale_each_other_are_data(tmp_path: Path) -> None:
    assert pairs(imported(complex_mask(("real", "imag")), tmp_path)) == {"h": "h_out"}


def test_two_parts_under_names_that_say_nothing_are_asked_for(tmp_path: Path) -> None:
    assert "one_in:one_out, other_in:other_out may be" in refusal(complex_mask(("one", "other")), tmp_path)


def test_caches_and_counters_are_states_by_what_the_graph_does(tmp_path: Path) -> None:
    """A cache that is cut and joined apart from what reads it, under names that say nothing."""
    net = Net()
    row = net.add("Unsqueeze", net.linear(net.input("p", 1, WIDTH), WIDTH, HIDDEN), net.integers(1))
    net.input("q", 1, 2, HIDDEN)
    kept = net.add("Slice", "q", net.integers(1), net.integers(9), net.integers(1))
    net.output(net.add("Concat", kept, row, axis=1), "u", 1, 2, HIDDEN)
    flat = net.add("Reshape", net.add("Concat", "q", row, axis=1), net.integers(1, 3 * HIDDEN))
    net.output(net.add("Tanh", net.linear(flat, 3 * HIDDEN, WIDTH)), "v", 1, WIDTH)
    net.output(net.add("Add", net.input("r", 1), net.constant(np.ones(1, np.float32))), "w", 1)
    assert pairs(imported(net, tmp_path)) == {"q": "u", "r": "w"}


def test_what_the_last_step_made_is_a_state_though_it_hangs_on_no_state(tmp_path: Path) -> None:
    """A token shift: the next step gets what this one made of its input."""
    net = Net()
    made = net.add("Relu", net.linear(net.input("x", 1, WIDTH), WIDTH, HIDDEN))
    net.output(made, "shift_state_out", 1, HIDDEN)
    both = net.add("Concat", made, net.input("shift_state_in", 1, HIDDEN), axis=1)
    net.output(net.linear(both, 2 * HIDDEN, WIDTH), "y", 1, WIDTH)
    assert pairs(imported(net, tmp_path)) == {"shift_state_in": "shift_state_out"}


def test_the_state_of_a_model_of_the_world_is_asked_for(tmp_path: Path) -> None:
    """`next_state` is what the model foresees: nobody knows whether the caller wants to feed it back."""
    net = Net()
    net.input("state", 1, WIDTH)
    net.input("action", 1, 4)
    first = net.add("Unsqueeze", net.add("Concat", "state", "action", axis=1), net.integers(0))
    top, (last,) = net.layer("GRU", first, [net.input("h", 1, 1, HIDDEN)], WIDTH + 4, HIDDEN)
    change = net.linear(net.add("Squeeze", top, net.integers(0)), HIDDEN, WIDTH)
    net.output(net.add("Add", "state", change), "next_state", 1, WIDTH)
    net.output(last, "hn", 1, 1, HIDDEN)
    assert "state:next_state may be" in refusal(net, tmp_path)
    assert pairs(imported(net, tmp_path, data=["state"])) == {"h": "hn"}


def test_along_time_a_value_for_the_whole_sequence_is_no_state_because_its_shape_comes_out(tmp_path: Path) -> None:
    """A score after the last step has the speaker's vector's shape; at zero, as states begin, it would even fit."""
    net = Net()
    top, (last,) = net.layer("GRU", net.input("x", "time", "batch", 4), [net.input("h", 1, "batch", 8)], 4, 8)
    net.input("voice", "batch", 8)
    net.output(top, "y", "time", "batch", 8)
    net.output(last, "hn", 1, "batch", 8)
    net.output(net.add("Mul", net.add("Squeeze", last, net.integers(0)), "voice"), "voice_out", "batch", 8)
    bundle = imported(net, tmp_path)
    assert pairs(bundle) == {"h": "hn"}
    assert axes(bundle)["voice"] == ("batch", "time", 8)


def test_what_was_decided_and_why_is_printed_and_kept(tmp_path: Path) -> None:
    net = enhancer()
    gain = net.input("gain", 1, 1)
    net.output(net.add("Mul", "vad", gain), "loud", 1, 1)
    told, is_done = run(said(net, tmp_path, data=["ref"], constants=["gain=2"]))
    assert is_done
    lines = told.splitlines()
    assert lines[1].split() == ["tensor", "is", "axes", "with", "because"]
    assert any(line.startswith("input_frame") and "as a state it would be zero for ever" in line for line in lines)
    assert any(line.split()[:2] == ["ref", "data"] and line.endswith("as you said") for line in lines)
    bundle = imported(net, tmp_path, data=["ref"], constants=["gain=2"], version=2)
    kept = {item["tensor"]: item for item in bundle.manifest.provenance["import"]["decisions"]}
    assert {name: item["role"] for name, item in kept.items()} == {
        "input_frame": "data",
        "ref": "data",
        "state_in": "state",
        "gain": "constant",
        "output_frame": "output",
        "vad": "output",
        "loud": "output",
    }
    assert kept["state_in"] == {
        "tensor": "state_in",
        "role": "state",
        "axes": ["batch", HIDDEN],
        "with": "state_out",
        "because": "the graph mixes it with others, and makes other outputs of it, their names agree",
    }


def test_a_state_that_is_only_zero_together_with_data_is_asked_for(tmp_path: Path) -> None:
    """A running mean of the frames: it would stay zero only if the frames did."""
    net = enhancer(has_reference=False)
    tenth, rest = (net.constant(np.full(1, value, np.float32)) for value in (0.1, 0.9))
    frame = net.add("Transpose", net.add("Mul", "input_frame", tenth), perm=[1, 0])
    mean = net.input("s_2", WIDTH, 1)
    net.output(net.add("Add", net.add("Mul", mean, rest), frame), "new_s", WIDTH, 1)
    net.output(net.linear(net.add("Transpose", mean, perm=[1, 0]), WIDTH, 2), "level", 1, 2)
    assert "s_2:new_s" in refusal(net, tmp_path)
    found = pairs(imported(net, tmp_path, states=["state_in:state_out", "s_2:new_s"]))
    assert found == {"state_in": "state_out", "s_2": "new_s"}


@pytest.mark.parametrize("state", ["h", "audio"])
def test_names_say_what_is_data_only_where_no_state_is_called_so(tmp_path: Path, state: str) -> None:
    """Weights that adapt, called `x`, beside a layer whose state is called as a state is, or as data."""
    net = Net()
    mic = net.input("mic", 1, 4)
    top, (last,) = net.layer(
        "GRU", net.add("Unsqueeze", mic, net.integers(0)), [net.input(state, 1, 1, HIDDEN)], 4, HIDDEN
    )
    made = net.linear(net.add("Squeeze", top, net.integers(0)), HIDDEN, 4)
    heard = net.add("ReduceSum", net.add("Mul", net.input("x", 1, 4), mic), net.integers(1), keepdims=1)
    net.output(net.add("Concat", heard, made, axis=1), "mask", 1, 5)
    net.output(last, "hn" if state == "h" else "prob", 1, 1, HIDDEN)
    wrong = net.add("Sub", heard, net.constant(np.ones(1, np.float32)))
    net.output(net.add("Add", "x", net.add("Mul", mic, wrong)), "score", 1, 4)
    if state == "h":
        assert pairs(imported(net, tmp_path)) == {"h": "hn"}
    else:
        assert "x:score" in refusal(net, tmp_path)
