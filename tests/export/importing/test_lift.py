"""`tidegate import`: memory inside a graph is taken out, and gives what the file gives for whole sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.export.importing.graphs import GATES, Net
from tests.export.importing.importing import by_hand, imported, walked
from tidegate.bundle import Bundle

Array = NDArray[Any]
CUTS = ([9], [1] * 9, [4, 1, 4])


def assert_streams_as_the_file(net: Net, bundle: Bundle, x: Array, **more: Array) -> None:
    """Compare one chunk, single steps and pieces with the file's run of the whole sequence, time on any axis."""
    wanted = by_hand(net, {"x": x, **more})
    for cut in CUTS:
        got = walked(bundle, cut, {"x": x}).outputs
        for name, values in wanted.items():
            np.testing.assert_allclose(got[name], values, rtol=1e-4, atol=1e-5, err_msg=f"{name} {cut}")


def random(*shape: int) -> Array:
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def stack(cell: str, layers: int = 1, **attributes: Any) -> Net:
    net = Net()
    top = net.input("x", "time", "batch", 4)
    for layer in range(layers):
        top, _ = net.layer(cell, top, [], 8 if layer else 4, 8, **attributes)
    net.output(net.linear(top, 8, 3), "y")
    return net


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("layers", [1, 3])
def test_the_state_of_layers_without_state_tensors_is_lifted_out(tmp_path: Path, cell: str, layers: int) -> None:
    net = stack(cell, layers)
    bundle = imported(net, tmp_path)
    assert len(bundle.manifest.states) == layers * (2 if cell == "LSTM" else 1)
    assert {state.axes for state in bundle.manifest.states} == {(1, "batch", 8)}
    assert bundle.manifest.batch_invariant
    assert f"lifted out of {cell}" in (bundle.path / "card.md").read_text()
    assert_streams_as_the_file(net, bundle, random(9, 2, 4))
