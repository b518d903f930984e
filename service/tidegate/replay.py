"""Replays a bundle's graph in onnxruntime, on random sequences, in any cut and any company.

Speaks in the manifest's names: rows are cut along time and stacked along the batch wherever those axes are. Needs numpy
and onnxruntime only. Knows nothing of what is proved with it, nor of sessions or the engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tidegate.bundle import BATCH, TIME, Manifest, StateSpec, TensorSpec, TokenCodec
from tidegate.errors import BundleError
from tidegate.ort import FAILURES, check_edges, load_session

Array: TypeAlias = NDArray[Any]
Tensors: TypeAlias = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Result:
    """Outputs by name, and states by the name of their *input*, after some steps of some rows."""

    outputs: Tensors
    states: Tensors


class GraphRunner:
    """A graph in onnxruntime on one CPU thread, spoken to in the manifest's names."""

    def __init__(self, graph: bytes, manifest: Manifest) -> None:
        """Load `graph`, the content of an ONNX file.

        Raises:
            BundleError: The runtime refuses the graph, or the manifest names what it does not have.
        """
        self.manifest = manifest
        try:
            self._session = load_session(graph)
        except FAILURES as error:
            raise _refused(error) from error
        self._fetches = [spec.name for spec in manifest.outputs] + [state.output for state in manifest.states]
        check_edges(self._session, manifest)

    def initial(self, rows: int) -> Tensors:
        """Return the states of `rows` sequences that have not begun."""
        return {state.input: _filled(state, rows) for state in self.manifest.states}

    def run(self, inputs: Tensors, states: Tensors) -> Result:
        """Run all of `inputs` (rows of equal length) from `states`, once.

        Raises:
            BundleError: The runtime fails.
        """
        feeds = {**inputs, **states}
        if self.manifest.lengths is not None:
            feeds[self.manifest.lengths] = self._lengths(inputs)
        try:
            values = dict(zip(self._fetches, self._session.run(self._fetches, feeds), strict=True))
        except FAILURES as error:
            raise _refused(error) from error
        outputs = {spec.name: values[spec.name] for spec in self.manifest.outputs}
        return Result(outputs, {state.input: values[state.output] for state in self.manifest.states})

    def walk(self, inputs: Tensors, lengths: Sequence[int], states: Tensors | None = None) -> Result:
        """Run `inputs` in consecutive chunks of `lengths` steps, state carried along.

        Outputs are joined along time; one without a time axis is the last chunk's.
        """
        carried = self.initial(self._rows(inputs)) if states is None else states
        pieces, start = [], 0
        for length in lengths:
            piece = self.run(self.cut(inputs, start, start + length), carried)
            pieces.append(piece.outputs)
            carried, start = piece.states, start + length
        return Result(self.join(pieces), carried)

    def cut(self, inputs: Tensors, start: int, stop: int) -> Tensors:
        """Return steps `start` to `stop` of `inputs`."""
        return {spec.name: part(inputs[spec.name], spec.time_axis, start, stop) for spec in self.manifest.inputs}

    def join(self, pieces: Sequence[Tensors]) -> Tensors:
        """Return the outputs of consecutive chunks as those of one."""
        return {
            spec.name: _joined([piece[spec.name] for piece in pieces], spec.time_axis) for spec in self.manifest.outputs
        }

    def stack(self, rows: Sequence[Tensors], specs: Sequence[TensorSpec | StateSpec]) -> Tensors:
        """Return the tensors of several single rows as one batch; the inverse of `row`."""
        return {_key(spec): _joined([row[_key(spec)] for row in rows], spec.batch_axis) for spec in specs}

    def row(self, batch: Tensors, specs: Sequence[TensorSpec | StateSpec], index: int) -> Tensors:
        """Return row `index` of a batch as a batch of one."""
        return {_key(spec): part(batch[_key(spec)], spec.batch_axis, index, index + 1) for spec in specs}

    def row_of(self, result: Result, index: int) -> Result:
        """Return what `result` holds of row `index`."""
        manifest = self.manifest
        outputs = self.row(result.outputs, manifest.outputs, index)
        return Result(outputs, self.row(result.states, manifest.states, index))

    def _rows(self, inputs: Tensors) -> int:
        sizes = [
            inputs[spec.name].shape[spec.batch_axis] for spec in self.manifest.inputs if spec.batch_axis is not None
        ]
        return int(sizes[0]) if sizes else 1

    def _lengths(self, inputs: Tensors) -> Array:
        steps = next(
            inputs[spec.name].shape[spec.time_axis] for spec in self.manifest.inputs if spec.time_axis is not None
        )
        kind = {item.name: item.type for item in self._session.get_inputs()}[self.manifest.lengths]
        return np.full(self._rows(inputs), steps, dtype=kind.removeprefix("tensor(").removesuffix(")"))


def random_inputs(manifest: Manifest, rows: int, steps: int, rng: np.random.Generator) -> Tensors:
    """Make inputs of `rows` sequences from the manifest: tokens of the vocabulary, or values standard normal."""
    return {spec.name: _random_input(manifest, spec, {BATCH: rows, TIME: steps}, rng) for spec in manifest.inputs}


def random_lengths(steps: int, rng: np.random.Generator) -> list[int]:
    """Cut `steps` at random places into chunks of at least one step."""
    cuts = [0, *(step for step in range(1, steps) if rng.random() < 0.3), steps]
    return [stop - start for start, stop in itertools.pairwise(cuts)]


def stream_together(
    runner: GraphRunner, rows: Sequence[Tensors], lengths: Sequence[int], rng: np.random.Generator
) -> list[Result]:
    """Run ragged `rows` in random batches: each turn, some that are not done advance by the same number of steps."""
    positions = [0] * len(rows)
    states = [runner.initial(1) for _ in rows]
    pieces: list[list[Tensors]] = [[] for _ in rows]
    for chosen, length in _turns(positions, lengths, rng):
        cuts = [runner.cut(rows[i], positions[i], positions[i] + length) for i in chosen]
        inputs = runner.stack(cuts, runner.manifest.inputs)
        result = runner.run(inputs, runner.stack([states[i] for i in chosen], runner.manifest.states))
        for place, i in enumerate(chosen):
            own = runner.row_of(result, place)
            pieces[i].append(own.outputs)
            states[i] = own.states
            positions[i] += length
    return [Result(runner.join(piece), state) for piece, state in zip(pieces, states, strict=True)]


def _turns(
    positions: Sequence[int], lengths: Sequence[int], rng: np.random.Generator
) -> Iterator[tuple[list[int], int]]:
    """Yield rows in random order and a length that all have left, until the caller's `positions` are at the end."""
    while live := [i for i, length in enumerate(lengths) if positions[i] < length]:
        chosen = [int(i) for i in rng.permutation(live)[: rng.integers(1, len(live) + 1)]]
        yield chosen, int(rng.integers(1, min(lengths[i] - positions[i] for i in chosen) + 1))


def _random_input(manifest: Manifest, spec: TensorSpec, sizes: dict[str, int], rng: np.random.Generator) -> Array:
    # An axis with another label may have any size: two.
    shape = tuple(axis if isinstance(axis, int) else sizes.get(axis, 2) for axis in spec.axes)
    if spec.dtype.startswith("float"):
        return rng.standard_normal(shape).astype(spec.dtype)
    return rng.integers(0, _num_values(manifest), shape).astype(spec.dtype)


def _num_values(manifest: Manifest) -> int:
    """Return how many values an integer input may have: the vocabulary's, else two, which every embedding has."""
    if isinstance(manifest.codec, TokenCodec):
        size = manifest.output(manifest.codec.output).axes[-1]
        return size if isinstance(size, int) else 2
    return 2


def _filled(state: StateSpec, rows: int) -> Array:
    shape = tuple(axis if isinstance(axis, int) else rows for axis in state.axes)
    return np.full(shape, state.initial, dtype=state.dtype)


def _key(spec: TensorSpec | StateSpec) -> str:
    return spec.input if isinstance(spec, StateSpec) else spec.name


def part(array: Array, axis: int | None, start: int, stop: int) -> Array:
    """Return `start` to `stop` of `axis`; all of `array` where it has no such axis."""
    if axis is None:
        return array
    return array[(slice(None),) * axis + (slice(start, stop),)]


def _joined(arrays: Sequence[Array], axis: int | None) -> Array:
    return arrays[-1] if axis is None else np.concatenate(arrays, axis)


def _refused(error: Exception) -> BundleError:
    text = " ".join(str(error).split())
    if "layout" in text.lower():
        return not_streamable("a recurrent operator has layout=1, which onnxruntime's CPU kernels refuse")
    if "Failed to allocate memory" in text:
        return BundleError("the graph asks for more memory than there is", reason="OUT_OF_MEMORY")
    return BundleError(f"onnxruntime refuses the graph: {text}")


def not_streamable(message: str) -> BundleError:
    """Return the error that says why a graph cannot stream."""
    return BundleError(f"cannot stream: {message}", reason="NOT_STREAMABLE")
