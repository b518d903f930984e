"""The device graph is the bundle's graph with a Gather in front of each state and a ScatterND behind it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.service.engine.test_runner import bundle
from tests.service.serving import write_bundles
from tidegate.bundle import Axis, read_bundle
from tidegate.engine.device.graph import SOURCES, TARGETS, arena_names, device_graph
from tidegate.engine.runner import open_session

BODY = "y = Add(x, h) h_out = Add(h, h)"
STATES: dict[str, tuple[Axis, ...]] = {
    "first": ("batch", 2, 3),
    "second": (2, "batch", 3),
    "third": (2, 3, "batch"),
    "none": (2, 3),
}


def arena_of(rows: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.arange(rows * 6, dtype=np.float32).reshape(rows, 2, 3)


@pytest.mark.parametrize("kind", sorted(STATES))
def test_rows_come_from_the_sources_and_go_to_the_targets(tmp_path: Path, kind: str) -> None:
    axes = STATES[kind]
    model = bundle(tmp_path, "y = Identity(h) h_out = Add(h, x)", [(1,), axes, axes])
    session = open_session(device_graph(model.graph, model.manifest.states), kind, "cpu", 1)
    before, after = arena_names(0)
    arena, sources, targets = arena_of(7), np.array([4, 2]), np.array([[1], [5]])
    if kind == "none":
        sources, targets = sources[:1], targets[:1]
    one = np.ones(1, np.float32)
    y, found = session.run(["y", after], {"x": one, before: arena, SOURCES: sources, TARGETS: targets})
    axis = axes.index("batch") if "batch" in axes else None
    np.testing.assert_array_equal(y, arena[4] if axis is None else np.moveaxis(arena[sources], 0, axis))
    expected = arena.copy()
    expected[targets[:, 0]] = arena[sources] + 1
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["tiny-lstm", "tiny-gru", "tiny-rnn", "tiny-forecast", "tiny-stream"])
def test_every_kind_of_bundle_can_be_wrapped(tmp_path: Path, name: str) -> None:
    model = read_bundle(write_bundles(tmp_path) / name / "1")
    wrapped = onnx.load_from_string(device_graph(model.graph, model.manifest.states))
    onnx.checker.check_model(wrapped, full_check=True)
    arenas = [arena_names(index) for index in range(len(model.manifest.states))]
    assert {value.name for value in wrapped.graph.input} == {
        *(spec.name for spec in model.manifest.inputs), *(names.before for names in arenas), SOURCES, TARGETS
    }  # fmt: skip
    assert {value.name for value in wrapped.graph.output} == {
        *(spec.name for spec in model.manifest.outputs), *(names.after for names in arenas)
    }  # fmt: skip


def test_a_state_that_is_also_an_output_stays_one(tmp_path: Path) -> None:
    axes: list[tuple[Axis, ...]] = [("batch", 2), ("batch", 2), ("batch", 2)]
    model = bundle(tmp_path, BODY, axes)
    wrapped = onnx.load_from_string(device_graph(model.graph, model.manifest.states, kept=["h_out", "y"]))
    assert [value.name for value in wrapped.graph.output] == ["y", "h_out", arena_names(0).after]
