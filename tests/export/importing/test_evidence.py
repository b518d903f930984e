"""`tidegate import` of graphs whose names say nothing or lie: what the graph does with a value counts for more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto

from tests.export.importing.graphs import Net, lstm
from tests.export.importing.importing import axes, by_hand, imported, pairs, refusal, said, walked
from tidegate_export.importing.importer import run


def crossed() -> Net:
    """Two layers of one step a run; the outputs' names are swapped."""
    net = Net()
    net.input("x", 1, 1, 4)
    top, (first,) = net.layer("GRU", "x", [net.input("h0_in", 1, 1, 8)], 4, 8)
    top, (second,) = net.layer("GRU", top, [net.input("h1_in", 1, 1, 8)], 8, 8)
    net.output(top, "y")
    net.output(first, "h1_out")
    net.output(second, "h0_out")
    return net


def test_a_layer_that_carries_a_state_outweighs_names_that_lie(tmp_path: Path) -> None:
    assert pairs(imported(crossed(), tmp_path)) == {"h0_in": "h1_out", "h1_in": "h0_out"}


def policy() -> Net:
    """A recurrent policy: one step a run, rows of `episode_starts` set the state back."""
    net = Net()
    net.input("obs", "n", 4)
    states = [net.input(name, 1, "n", 8) for name in ("lstm_h", "lstm_c")]
    kept = net.add("Sub", net.constant(np.array(1, np.float32)), net.input("episode_starts", "n"))
    column = net.add("Reshape", kept, net.integers(1, -1, 1))
    masked = [net.add("Mul", state, column) for state in states]
    top, last = net.layer("LSTM", net.add("Unsqueeze", "obs", net.integers(0)), masked, 4, 8)
    net.output(net.linear(net.add("Squeeze", top, net.integers(0)), 8, 2), "actions", "n", 2)
    for source, name in zip(last, ("hidden", "cell"), strict=True):
        net.output(source, name, 1, "n", 8)
    return net


def test_a_state_that_a_mask_sets_back_is_found_and_the_mask_comes_with_every_step(tmp_path: Path) -> None:
    bundle = imported(policy(), tmp_path)
    assert pairs(bundle) == {"lstm_h": "hidden", "lstm_c": "cell"}
    assert axes(bundle) == {
        "obs": ("batch", "time", 4),
        "episode_starts": ("batch", "time"),
        "actions": ("batch", "time", 2),
    }
    obs = np.random.default_rng(0).normal(size=(1, 4, 4)).astype(np.float32)
    starts = np.array([[0, 0, 1, 0]], np.float32)
    got = walked(bundle, [1, 3], {"obs": obs, "episode_starts": starts}).outputs["actions"]
    h, c = np.zeros((2, 1, 1, 8), np.float32)
    for step in range(4):
        feeds = {"obs": obs[:, step], "episode_starts": starts[:, step], "lstm_h": h, "lstm_c": c}
        alone = by_hand(policy(), feeds)
        np.testing.assert_allclose(got[:, step], alone["actions"], atol=1e-6)
        h, c = alone["hidden"], alone["cell"]


def ring() -> Net:
    """A ring of the last four rows, and one counter for the whole run: rows cannot share it."""
    net = Net()
    net.input("x", "batch", 8)
    net.input("ring", "batch", 4, 8)
    place = net.add("Mod", net.input("at", 1, dtype=TensorProto.INT64), net.integers(4))
    here = net.add("Reshape", net.add("Equal", net.integers(0, 1, 2, 3), place), net.integers(1, 4, 1))
    new = net.add("Where", here, net.add("Unsqueeze", "x", net.integers(1)), "ring")
    net.output(new, "ring_out", "batch", 4, 8)
    net.output(net.add("Add", "at", net.integers(1)), "at_out", 1, dtype=TensorProto.INT64)
    net.output(net.linear(net.add("ReduceMax", new, axes=[1], keepdims=0), 8, 3), "y", "batch", 3)
    return net


def test_a_counter_that_rows_would_share_makes_them_run_one_by_one(tmp_path: Path) -> None:
    bundle = imported(ring(), tmp_path)
    assert pairs(bundle) == {"ring": "ring_out", "at": "at_out"}
    assert not bundle.manifest.is_batchable
    result = walked(bundle, [3, 4])
    assert result.states["at"].tolist() == [7]


def attention(new_steps: int | str) -> Net:
    """A step of a decoder that keeps all keys and values."""
    net = Net()
    net.input("x", "batch", new_steps, 8)
    grown = []
    for name in ("key", "value"):
        past = net.input(f"past_{name}", "batch", "past", 8)
        grown.append(net.add("Concat", past, net.linear("x", 8, 8), axis=1))
        net.output(grown[-1], f"present_{name}", "batch", "all", 8)
    scores = net.add("MatMul", net.linear("x", 8, 8), net.add("Transpose", grown[0], perm=[0, 2, 1]))
    net.output(net.add("MatMul", net.add("Softmax", scores, axis=-1), grown[1]), "y", "batch", new_steps, 8)
    return net


def test_a_cache_of_all_keys_is_refused_for_it_grows(tmp_path: Path) -> None:
    for steps in (1, "new"):
        told = refusal(attention(steps), tmp_path)
        assert "looks like a state" in told
        assert "a cache that grows cannot be one" in told


def test_a_state_that_nothing_changes_is_told(tmp_path: Path) -> None:
    """A speaker's vector that goes in and comes out: nobody could ever set it."""
    net = Net()
    top, (last,) = net.layer("GRU", net.input("x", "t", "b", 4), [net.input("h", 1, "b", 8)], 4, 8)
    added = net.add("Unsqueeze", net.linear(net.input("voice", "b", 5), 5, 8), net.integers(0))
    net.output(net.add("Add", top, added), "y")
    net.output(last, "hn")
    net.output("voice", "voice_out")
    told, is_done = run(said(net, tmp_path))
    assert is_done
    assert "voice is handed on as it came: every session keeps its first value" in told
    assert "--initial" in told


def test_a_layer_over_a_sequence_that_was_turned_around_is_refused_as_backward(tmp_path: Path) -> None:
    """How some exporters write a bidirectional layer: a forward one between two reversals."""
    net = Net()
    ends = (net.integers(-1), net.integers(-(2**31)), net.integers(0), net.integers(-1))
    back, (last,) = net.layer(
        "GRU", net.add("Slice", net.input("x", "t", "b", 4), *ends), [net.input("h", 1, "b", 8)], 4, 8
    )
    net.output(net.add("Slice", back, *ends), "y")
    net.output(last, "hn")
    told = refusal(net, tmp_path)
    assert "turns the sequence around" in told
    assert "a model that only runs forward" in told


def test_names_as_tensorflow_numbers_them_hint_by_what_stands_before_the_number(tmp_path: Path) -> None:
    net = lstm(names=("model/x:0", "state/h:0", "state/c:0", "out:0", "h_out:0", "c_out:0"))
    told, is_done = run(said(net, tmp_path))
    assert is_done
    rows = [line.split(maxsplit=6) for line in told.splitlines()]
    assert ["state/h:0", "state", "[1,", "batch,", "8]", "h_out:0", "proved by streaming"] in rows
