"""Arena and runner of a device, here the CPU: they give what copies on the host give, and lose no row."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.service.engine.test_runner import bundle
from tests.service.serving import write_bundles
from tests.service.settings import write_bundle_with_settings
from tidegate.api import Tensor
from tidegate.bundle import GRAPH, Axis, Bundle, Manifest, StateSpec, TensorCodec, TensorSpec, read_bundle
from tidegate.engine.arena import INITIAL, Arena, Budget, Plane
from tidegate.engine.device.arena import FIRST_ROW, INITIAL_ROW, SPARE_ROW, DeviceArena, DeviceMemory
from tidegate.engine.device.runner import DeviceRunner, open_device_runner
from tidegate.engine.runner import Runner
from tidegate.errors import BundleError
from tidegate.proof import ABSOLUTE, excess
from tidegate.replay import random_inputs

MODELS = ("tiny-lstm", "tiny-gru", "tiny-rnn", "tiny-forecast", "tiny-stream", "tuned")
NUM_SESSIONS = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_bundles(tmp_path_factory.mktemp("bundles"))
    write_bundle_with_settings(root)
    return root


class Pair:
    """The same slots in both arenas, and a runner beside each."""

    def __init__(self, model: Bundle, capacity: int, *, fills: bool = True) -> None:
        self.model = model
        states = model.manifest.states
        self.memory = DeviceMemory(states, "cpu", capacity)
        self.device = DeviceArena(self.memory, None, Budget(1 << 20))
        self.host = Arena([Plane.of_state(state) for state in states], Budget(1 << 20))
        self.device_runner = open_device_runner(model, self.memory, fills=fills)
        self.host_runner = Runner(model)
        self.slots = [self.device.allocate() for _ in range(NUM_SESSIONS)]
        assert self.slots == [self.host.allocate() for _ in range(NUM_SESSIONS)]

    def step(self, sources: Sequence[int], targets: Sequence[int], kept: Sequence[int], inputs: list[Tensor]) -> None:
        """Run both, compare, and write only the rows ``kept``."""
        count = len(self.model.manifest.states)
        expected, news = self.host_runner.run(inputs, self.host.gather(np.array(sources), count))
        found, rows = self.device_runner.run(inputs, self.device.gather(np.array(sources), count))
        for name, output in expected.items():
            assert excess(output, found[name]) <= ABSOLUTE
        if kept:
            chosen = np.array(kept)
            slots = np.array(targets)[chosen]
            self.host.scatter(slots, self.host.select(chosen, news))
            self.device.scatter(slots, self.device.select(chosen, rows))

    def states(self, slot: int) -> list[tuple[Tensor, Tensor]]:
        return [(self.host.read(slot, n), self.device.read(slot, n)) for n in range(len(self.model.manifest.states))]


@given(
    name=st.sampled_from(MODELS),
    ticks=st.lists(
        st.tuples(st.permutations(range(NUM_SESSIONS)), st.integers(1, NUM_SESSIONS), st.sampled_from([1, 1, 1, 3])),
        min_size=1,
        max_size=8,
    ),
    capacity=st.sampled_from([1, 8, 64]),
    fills=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_device_gives_what_copies_on_the_host_give(
    root: Path, name: str, ticks: list[tuple[list[int], int, int]], capacity: int, fills: bool, seed: int
) -> None:
    pair = Pair(read_bundle(root / name / "1"), capacity, fills=fills)
    rng = np.random.default_rng(seed)
    begun: set[int] = set()
    for order, rows, steps in ticks:
        targets = [pair.slots[index] for index in order[:rows]]
        sources = [slot if slot in begun else INITIAL for slot in targets]
        kept = [row for row in range(rows) if rng.random() < 0.7]
        inputs = random_inputs(pair.model.manifest, rows, steps, rng)
        pair.step(sources, targets, kept, [inputs[spec.name] for spec in pair.model.manifest.sources])
        begun.update(targets[row] for row in kept)
        if begun and rng.random() < 0.3:
            slot = min(begun)
            begun.discard(slot)
            for arena in (pair.host, pair.device):
                arena.free(slot)
            assert pair.host.allocate() == pair.device.allocate()
    for slot in begun:
        for expected, found in pair.states(slot):
            assert excess(expected, found) <= ABSOLUTE
    pair.device.gather(np.array([], np.intp), len(pair.model.manifest.states))
    assert pair.device.num_rows_used == len(begun)


def test_a_run_that_is_not_kept_leaves_states_as_they_were_and_gives_its_rows_back(root: Path) -> None:
    pair = Pair(read_bundle(root / "tiny-lstm" / "1"), 8)
    slot = pair.slots[0]
    tokens: list[Tensor] = [np.array([[3]])]
    pair.step([INITIAL], [slot], [0], tokens)
    before = [found.copy() for _, found in pair.states(slot)]
    for _ in range(50):
        pair.step([slot], [slot], [], tokens)
    for was, (_, found) in zip(before, pair.states(slot), strict=True):
        np.testing.assert_array_equal(was, found)
    assert pair.memory.capacity == 8


def test_sources_and_targets_share_no_row(root: Path) -> None:
    pair = Pair(read_bundle(root / "tiny-gru" / "1"), 64)
    slots = np.array(pair.slots)
    seen: set[int] = set()
    for _ in range(5):
        sources, targets = pair.device.gather(slots, 1)
        assert not set(sources.tolist()) & set(targets.tolist())
        assert not {INITIAL_ROW, SPARE_ROW} & set(targets.tolist())
        pair.device.scatter(slots, [targets])
        seen |= set(targets.tolist())
    assert len(seen) == 2 * NUM_SESSIONS  # two sets of rows take turns


def test_growing_moves_nothing_out_of_its_row() -> None:
    spec = StateSpec(input="in", output="out", dtype="float32", axes=(2, "batch", 3), initial=0.5)
    memory = DeviceMemory([spec], "cpu", 4)
    memory.arrays[0].numpy()[2:] = 7
    array = memory.arrays[0]
    memory.grow(4)
    assert (memory.capacity, memory.generation, memory.arrays[0]) == (4, 0, array)
    memory.grow(5)
    assert (memory.capacity, memory.generation) == (8, 1)
    assert (memory.read(INITIAL_ROW, 0) == 0.5).all()
    assert (memory.read(3, 0) == 7).all()
    assert memory.read(3, 0).shape == (2, 3)


def test_the_kept_output_lies_on_the_host() -> None:
    spec = StateSpec(input="in", output="out", dtype="float32", axes=(2, "batch", 3))
    budget = Budget(1 << 12)
    arena = DeviceArena(DeviceMemory([spec], "cpu", 4), Plane(np.dtype(np.float32), (5,), 0), budget)
    slots = np.array([arena.allocate(), arena.allocate()])
    _, targets = arena.gather(slots, 1)
    arena.scatter(slots, [targets, np.arange(10, dtype=np.float32).reshape(2, 5)])
    np.testing.assert_array_equal(arena.read(int(slots[1]), 1), [5, 6, 7, 8, 9])
    assert (arena.slot_bytes, budget.used) == (4 * (6 + 5), 2 * 44)


def test_a_filled_run_returns_only_its_own_rows_and_never_touches_the_initial_state(root: Path) -> None:
    pair = Pair(read_bundle(root / "tiny-lstm" / "1"), 64)
    rows = pair.slots[:5]
    outputs, _ = pair.device_runner.run([np.full((5, 1), 3)], pair.device.gather(np.array(rows), 2))
    assert {name: len(output) for name, output in outputs.items()} == {"logits": 5, "surprise": 5}
    assert not pair.memory.read(INITIAL_ROW, 0).any()
    assert pair.memory.read(SPARE_ROW, 0).any()


def test_outputs_stay_what_they_are_when_the_binding_is_used_again(root: Path) -> None:
    pair = Pair(read_bundle(root / "tiny-lstm" / "1"), 64)
    rows = pair.device.gather(np.array(pair.slots[:2]), 2)
    first, _ = pair.device_runner.run([np.array([[1], [2]])], rows)
    before = {name: output.copy() for name, output in first.items()}
    second, _ = pair.device_runner.run([np.array([[3], [4]])], rows)
    for name, output in first.items():
        np.testing.assert_array_equal(output, before[name])
    assert (first["logits"] != second["logits"]).any()


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_a_lengths_input_is_told_how_long_each_row_is(tmp_path: Path, dtype: str) -> None:
    axes: list[tuple[Axis, ...]] = [("batch", "time", 2), ("batch",), ("batch", 2)]
    body = "y = Cast<to=1>(n) h_out = Add(h, h)"
    model = bundle(tmp_path, body, axes, lengths="n", extra=f", {dtype}[batch] n")
    runner = open_device_runner(model, DeviceMemory(model.manifest.states, "cpu", 16))
    outputs, _ = runner.run([np.zeros((3, 4, 2), np.float32)], [np.array([0, 0, 0]), np.array([2, 3, 4])])
    np.testing.assert_array_equal(outputs["y"], [4, 4, 4])


def test_an_axis_of_any_size_is_made_by_the_runtime(tmp_path: Path) -> None:
    axes: list[tuple[Axis, ...]] = [("batch", "time", 2), ("batch", "anything"), ("batch", 2)]
    model = bundle(tmp_path, "y = Concat<axis=1>(h, h, h) h_out = Add(h, h)", axes)
    runner = open_device_runner(model, DeviceMemory(model.manifest.states, "cpu", 16))
    for _ in range(2):
        outputs, _ = runner.run([np.zeros((3, 1, 2), np.float32)], [np.array([0, 0, 0]), np.array([2, 3, 4])])
        assert outputs["y"].shape == (3, 6)


def test_a_broken_graph_is_refused_with_its_file(tmp_path: Path) -> None:
    axes: list[tuple[Axis, ...]] = [("batch", "time", 2), ("batch", "time", 2), ("batch", 1, 2)]
    model = bundle(tmp_path, "y = Add(x, h) h_out = Add(h, h)", axes)
    memory = DeviceMemory(model.manifest.states, "cpu", FIRST_ROW)
    for content in (b"not a graph", b"", model.graph[:-10]):
        with pytest.raises(BundleError, match=r"model\.onnx") as caught:
            open_device_runner(replace(model, files={GRAPH: content}), memory)
        assert caught.value.reason == "GRAPH_REFUSED"


def test_a_graph_that_can_be_replayed_is_captured(root: Path) -> None:
    for name in MODELS:
        model = read_bundle(root / name / "1")
        runner = open_device_runner(model, DeviceMemory(model.manifest.states, "cpu", 16), captures=True)
        assert runner.captures


def test_a_graph_that_differs_when_it_is_replayed_runs_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    axes: list[tuple[Axis, ...]] = [("batch", "time", 2), ("batch", "time", 2), ("batch", 1, 2)]
    model = bundle(tmp_path, "r = RandomUniformLike(x) y = Add(r, h) h_out = Add(h, h)", axes)
    with caplog.at_level(logging.WARNING):
        runner = open_device_runner(model, DeviceMemory(model.manifest.states, "cpu", 16), captures=True)
    assert isinstance(runner, DeviceRunner)
    assert not runner.captures
    assert "no CUDA graphs: y of a replayed run is not that of a plain one" in caplog.text


NO_AXES = [
    ("int64", "h_out = Add(h, one)"),
    ("float", "h_out = Add(h, one)"),
    ("float16", "h_out = Add(h, one)"),
    ("bool", "h_out = Not(h)"),
]


@pytest.mark.parametrize(("dtype", "body"), NO_AXES)
def test_a_state_without_axes_is_kept_by_both_arenas_alike(dtype: str, body: str) -> None:
    text = f"""<ir_version: 10, opset_import: ["" : 21]> g (float[time,2] x, {dtype}[] h)
        => (float[time,2] y, {dtype}[] h_out) {{
            number = Constant<value = float {{1}}>() one = CastLike(number, h)
            h_float = Cast<to=1>(h) y = Add(x, h_float) {body} }}"""
    axes: tuple[Axis, ...] = ("time", 2)
    manifest = Manifest(
        name="hand-made",
        version="1",
        task="stream",
        cell="foreign",
        inputs=(TensorSpec(name="x", dtype="float32", axes=axes),),
        outputs=(TensorSpec(name="y", dtype="float32", axes=axes),),
        states=(StateSpec.model_validate({"input": "h", "output": "h_out", "dtype": KINDS[dtype], "axes": ()}),),
        codec=TensorCodec(outputs=("y",)),
    )
    model = onnx.parser.parse_model(text)
    pair = Pair(Bundle(Path(), manifest, "", {GRAPH: model.SerializeToString()}), 8)
    first, second = pair.slots[:2]
    x: Tensor = np.zeros((1, 1, 2), np.float32)
    pair.step([INITIAL], [first], [0], [x])
    for arena in (pair.host, pair.device):
        arena.load(second, arena.dump(first))
    pair.step([second], [second], [0], [x])
    for slot, steps in ((first, 1), (second, 2)):
        wanted = steps % 2 if dtype == "bool" else steps
        assert [float(value) for value in pair.states(slot)[0]] == [wanted, wanted]


KINDS = {"int64": "int64", "float": "float32", "float16": "float16", "bool": "bool"}
