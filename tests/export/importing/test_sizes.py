"""`tidegate import` of graphs that hide their sizes: free widths, axes that vanish at one, axes of nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.export.importing.graphs import Net, lstm
from tests.export.importing.importing import axes, by_hand, imported, pairs, walked
from tidegate.proof import check_bundle


def squeezed(*x: int | str, rows: int | str) -> Net:
    """A GRU whose head drops every axis of size 1: the time of a single step, the batch of a single row."""
    net = Net()
    top, (last,) = net.layer("GRU", net.input("x", *x), [net.input("h", 1, rows, 8)], 4, 8)
    net.output(net.add("Squeeze", net.linear(top, 8, 1)), "y")
    net.output(last, "hn")
    return net


@pytest.mark.parametrize(
    ("x", "rows", "wanted"),
    [(("t", "b", 4), "b", ("time", "batch")), (("t", 1, 4), 1, ("time",)), ((1, "b", 4), "b", ("batch", "time"))],
)
def test_an_output_that_loses_its_axes_of_one_keeps_them(
    tmp_path: Path, x: tuple[int | str, ...], rows: int | str, wanted: tuple[str, ...]
) -> None:
    net = squeezed(*x, rows=rows)
    bundle = imported(net, tmp_path)
    assert axes(bundle)["y"] == wanted
    assert check_bundle(bundle.path).passed
    values = np.random.default_rng(0).normal(size=(6, 1, 4)).astype(np.float32)
    h = np.zeros((1, 1, 8), np.float32)
    rows_of_x = values.reshape([6 if axis == "time" else 4 if axis == 4 else 1 for axis in axes(bundle)["x"]])
    got = walked(bundle, [1, 2, 3], {"x": rows_of_x}).outputs["y"]
    for step in range(6):
        alone = by_hand(net, {"x": values[step : step + 1], "h": h})
        np.testing.assert_allclose(got.reshape(6)[step], alone["y"], atol=1e-6)
        h = alone["hn"]


@pytest.mark.parametrize(
    ("x", "wanted"),
    [(("d0", "d1"), ("time", 4)), ((None, None), ("time", 4)), (("time", "features"), ("time", 4))],
)
def test_a_width_that_the_file_leaves_open_is_read_off_the_weights(
    tmp_path: Path, x: tuple[str | None, ...], wanted: tuple[object, ...]
) -> None:
    net = Net()
    rows = net.add("Unsqueeze", net.input("x", *x), net.integers(1))
    first = net.add("Unsqueeze", net.input("state_0_hidden_in", 8), net.integers(0, 1))
    top, (last,) = net.layer("RNN", rows, [first], 4, 8)
    net.output(net.add("Squeeze", net.linear(top, 8, 1)), "y")
    net.output(net.add("Squeeze", last, net.integers(0, 1)), "recurrent_state_squeeze_0_13")
    bundle = imported(net, tmp_path)
    assert axes(bundle)["x"] == wanted
    assert pairs(bundle) == {"state_0_hidden_in": "recurrent_state_squeeze_0_13"}


def test_a_width_in_front_of_the_time_is_read_off_the_weights(tmp_path: Path) -> None:
    net = Net()
    moved = net.add("Transpose", net.input("x", "p", "q", "r"), perm=[2, 0, 1])
    top, (last,) = net.layer("GRU", moved, [net.input("h", 1, "p", 8)], 4, 8)
    net.output(top, "y")
    net.output(last, "hn")
    assert axes(imported(net, tmp_path))["x"] == ("batch", 4, "time")


def test_an_input_of_nothing_is_left_out(tmp_path: Path) -> None:
    """A cache of no layers, as exporters leave it where a configuration has none."""
    net = lstm()
    net.output(net.input("cache", 0, "batch", 8), "cache_out", 0, "batch", 8)
    wide = net.add(
        "Concat", net.input("none", "batch", 0), net.linear(net.add("Squeeze", "h_out", net.integers(0)), 8, 2), axis=1
    )
    net.output(wide, "told", "batch", 2)
    bundle = imported(net, tmp_path)
    assert pairs(bundle) == {"h_in": "h_out", "c_in": "c_out"}
    assert set(axes(bundle)) == {"x", "y", "told"}
