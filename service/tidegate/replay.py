"""Replays a bundle's graph as the server runs it, on random sequences, in any cut and any company.

Speaks in the manifest's names: rows are cut along time and stacked along the batch wherever those axes are. Runs go
through the engine's runner, and states through its arena, so that what is proved is what is served. Knows nothing of
what is proved with it, nor of sessions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tidegate.bundle import BATCH, GRAPH, TIME, Bundle, Manifest, SettingSpec, StateSpec, TensorSpec, TokenCodec
from tidegate.codecs.settings import default_of
from tidegate.engine.arena import INITIAL, Arena, Budget, Plane
from tidegate.engine.runner import Runner, from_graph, to_graph
from tidegate.errors import BundleError, InvalidInputError
from tidegate.ort import FAILURES

Array: TypeAlias = NDArray[Any]
Tensors: TypeAlias = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Result:
    """Outputs by name, and states by the name of their *input*, after some steps of some rows."""

    outputs: Tensors
    states: Tensors


class StatePool:
    """States of some rows in slots of the engine's arena, as the server keeps those of its sessions."""

    def __init__(self, manifest: Manifest, rows: int) -> None:
        planes = [Plane.of_state(state) for state in manifest.states]
        self._states = manifest.states
        self._arena = Arena(planes, Budget(rows * max(1, sum(plane.row_bytes for plane in planes))))
        self._slots = np.array([self._arena.allocate() for _ in range(rows)], np.intp)
        self._has_begun = np.zeros(rows, bool)

    def gather(self, rows: Sequence[int]) -> list[Array]:
        """Return the states of `rows` as the runner takes them; of those that have not begun, the initial ones."""
        chosen = np.array(rows, np.intp)
        return self._arena.gather(np.where(self._has_begun[chosen], self._slots[chosen], INITIAL), len(self._states))

    def scatter(self, rows: Sequence[int], values: Sequence[Array]) -> None:
        """Keep the states of `rows` as the runner gives them.

        Raises:
            BundleError: One has another shape than the manifest says.
        """
        chosen = np.array(rows, np.intp)
        for state, value in zip(self._states, values, strict=True):
            axes = state.axes if state.batch_axis is not None else (BATCH, *state.axes)
            wanted = tuple(axis if isinstance(axis, int) else len(rows) for axis in axes)
            if value.shape != wanted:
                found = value.shape if state.batch_axis is not None else value.shape[1:]
                raise BundleError(f"{state.output} has shape {found}, the manifest says {state.axes}")
        self._arena.scatter(self._slots[chosen], values)
        self._has_begun[chosen] = True

    def move(self, row: int) -> None:
        """Take the states of a row away and put them back as a snapshot does: as bytes."""
        if self._has_begun[row]:
            self._arena.load(int(self._slots[row]), self._arena.dump(int(self._slots[row])))


class GraphRunner:
    """A graph in the engine's runner on one CPU thread, spoken to in the manifest's names."""

    def __init__(self, graph: bytes, manifest: Manifest) -> None:
        """Load `graph`, the content of an ONNX file.

        Raises:
            BundleError: The runtime refuses the graph, or the manifest names what it does not have.
        """
        self.manifest = manifest
        bundle = Bundle(Path(manifest.name) / manifest.version, manifest, "", {GRAPH: graph})
        try:
            self._runner = Runner(bundle)
        except BundleError as error:
            raise (_refused(error.__cause__) if error.__cause__ else error) from error

    def initial(self, rows: int) -> Tensors:
        """Return the states of `rows` sequences that have not begun."""
        return initial_states(self.manifest, rows)

    def run(self, inputs: Tensors, states: Tensors) -> Result:
        """Run all of `inputs` (rows of equal length) from `states`, once.

        Raises:
            BundleError: The runtime fails, or refuses the values (reason REFUSED_BY_MODEL).
        """
        outputs, news = self._run(inputs, self._to_engine(states))
        return Result(outputs, self._from_engine(news))

    def walk(self, inputs: Tensors, lengths: Sequence[int], states: Tensors | None = None) -> Result:
        """Run `inputs` in consecutive chunks of `lengths` steps, states kept in the engine's arena.

        Outputs are joined along time; one without a time axis is the last chunk's.
        """
        rows = range(self._rows(inputs))
        pool = StatePool(self.manifest, len(rows))
        if states is not None:
            pool.scatter(rows, self._to_engine(states))
        pieces, start = [], 0
        for length in lengths:
            pieces.append(self.step(pool, rows, self.cut(inputs, start, start + length)))
            start += length
        return Result(self.join(pieces), self.states_of(pool, rows))

    def step(self, pool: StatePool, rows: Sequence[int], inputs: Tensors) -> Tensors:
        """Run `inputs` from the states that `rows` have in `pool`, keep the new ones there, and return the outputs."""
        outputs, news = self._run(inputs, pool.gather(rows))
        pool.scatter(rows, news)
        return outputs

    def pool(self, rows: int) -> StatePool:
        """Return room for the states of `rows` sequences that have not begun."""
        return StatePool(self.manifest, rows)

    def serve(self, pool: StatePool, encoded: Sequence[Array]) -> Tensors:
        """Run one row as the codec encodes it, [steps, …] an input, and its settings; return the outputs as the codec
        reads them.
        """
        outputs, news = self._called([array[None] for array in encoded], pool.gather([0]))
        pool.scatter([0], news)
        return outputs

    def states_of(self, pool: StatePool, rows: Sequence[int]) -> Tensors:
        """Return the states of `rows` in `pool`, as the graph has them."""
        return self._from_engine(pool.gather(rows))

    def _run(self, inputs: Tensors, states: Sequence[Array]) -> tuple[Tensors, list[Array]]:
        manifest = self.manifest
        outputs, news = self._called([from_graph(spec, inputs[spec.name]) for spec in manifest.sources], states)
        return {spec.name: to_graph(spec, outputs[spec.name]) for spec in manifest.outputs}, news

    def _called(self, inputs: Sequence[Array], states: Sequence[Array]) -> tuple[Tensors, list[Array]]:
        try:
            return self._runner.run(inputs, states)
        except InvalidInputError as error:
            raise _refused(error.__cause__ or error, reason=error.reason) from error
        except FAILURES as error:
            raise _refused(error) from error
        except ValueError as error:  # an output of fewer axes, which cannot be brought into order
            raise BundleError("the graph's outputs do not have the axes that the manifest says") from error

    def _to_engine(self, states: Tensors) -> list[Array]:
        return [
            states[state.input] if state.batch_axis is not None else np.asarray(states[state.input])[None]
            for state in self.manifest.states
        ]

    def _from_engine(self, values: Sequence[Array]) -> Tensors:
        return {
            state.input: value if state.batch_axis is not None else np.asarray(value[0])
            for state, value in zip(self.manifest.states, values, strict=True)
        }

    def cut(self, inputs: Tensors, start: int, stop: int) -> Tensors:
        """Return steps `start` to `stop` of `inputs`."""
        return {spec.name: part(inputs[spec.name], spec.time_axis, start, stop) for spec in self.manifest.sources}

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
            inputs[spec.name].shape[spec.batch_axis] for spec in self.manifest.sources if spec.batch_axis is not None
        ]
        return int(sizes[0]) if sizes else 1


def initial_states(manifest: Manifest, rows: int) -> Tensors:
    """Return the states of `rows` sequences that have not begun."""
    return {state.input: _filled(state, rows) for state in manifest.states}


def random_inputs(
    manifest: Manifest,
    rows: int,
    steps: int,
    rng: np.random.Generator,
    vocabularies: Mapping[str, int] | None = None,
) -> Tensors:
    """Make inputs of `rows` sequences from the manifest: tokens of the vocabulary, or values standard normal; and a
    value of each setting, near its default.

    `vocabularies` says of inputs how many ids they take, as `reach` reads it off the graph.
    """
    sizes, known = {BATCH: rows, TIME: steps}, vocabularies or {}
    inputs = {
        spec.name: _random_input(spec, sizes, known.get(spec.name) or _num_values(manifest), rng)
        for spec in manifest.inputs
    }
    return inputs | {spec.name: _random_setting(spec, rows, rng) for spec in manifest.settings}


def random_lengths(steps: int, rng: np.random.Generator) -> list[int]:
    """Cut `steps` at random places into chunks of at least one step."""
    cuts = [0, *(step for step in range(1, steps) if rng.random() < 0.3), steps]
    return [stop - start for start, stop in itertools.pairwise(cuts)]


def stream_together(
    runner: GraphRunner, rows: Sequence[Tensors], lengths: Sequence[int], rng: np.random.Generator
) -> list[Result]:
    """Run ragged `rows` in random batches: each turn, some that are not done advance by the same number of steps."""
    positions = [0] * len(rows)
    pool = StatePool(runner.manifest, len(rows))
    pieces: list[list[Tensors]] = [[] for _ in rows]
    for chosen, length in _turns(positions, lengths, rng):
        cuts = [runner.cut(rows[i], positions[i], positions[i] + length) for i in chosen]
        outputs = runner.step(pool, chosen, runner.stack(cuts, runner.manifest.sources))
        for place, i in enumerate(chosen):
            pieces[i].append(runner.row(outputs, runner.manifest.outputs, place))
            positions[i] += length
        pool.move(chosen[0])
    return [Result(runner.join(piece), runner.states_of(pool, [row])) for row, piece in enumerate(pieces)]


def _turns(
    positions: Sequence[int], lengths: Sequence[int], rng: np.random.Generator
) -> Iterator[tuple[list[int], int]]:
    """Yield rows in random order and a length that all have left, until the caller's `positions` are at the end."""
    while live := [i for i, length in enumerate(lengths) if positions[i] < length]:
        chosen = [int(i) for i in rng.permutation(live)[: rng.integers(1, len(live) + 1)]]
        yield chosen, int(rng.integers(1, min(lengths[i] - positions[i] for i in chosen) + 1))


def _random_input(spec: TensorSpec, sizes: dict[str, int], num_values: int, rng: np.random.Generator) -> Array:
    # An axis with another label may have any size: two.
    shape = tuple(axis if isinstance(axis, int) else sizes.get(axis, 2) for axis in spec.axes)
    if spec.dtype.startswith("float"):
        return rng.standard_normal(shape).astype(spec.dtype)
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "iu":
        num_values = min(num_values, int(np.iinfo(dtype).max))
    ids = rng.integers(0, num_values, shape)
    steps = spec.time_axis
    if steps is not None and num_values <= ids.shape[steps]:  # there is room for every id
        every = rng.permutation(ids.shape[steps]) % num_values
        ids = np.broadcast_to(every.reshape([-1 if axis == steps else 1 for axis in range(ids.ndim)]), shape)
    return ids.astype(dtype)


def _random_setting(spec: SettingSpec, rows: int, rng: np.random.Generator) -> Array:
    """Make a value for each row: half to one and a half of the default, so that its sign stays, or up to 1 where it is
    0; true or false; of whole numbers, of which nobody knows what they may be, the default.
    """
    value = default_of(spec)
    several = np.repeat(value[None], rows if spec.batch_axis is not None else 1, axis=0)
    if spec.dtype.startswith("float"):
        factors = rng.uniform(0.5, 1.5, several.shape)
        numbers = np.multiply(several, factors, dtype=np.float64)
        several = np.where(several == 0, factors - 0.5, numbers).astype(spec.dtype)
    elif spec.dtype == "bool":
        several = rng.integers(0, 2, several.shape).astype(spec.dtype)
    return several[0, ...] if spec.batch_axis is None else np.moveaxis(several, 0, spec.batch_axis)


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


def _refused(error: BaseException, *, reason: str = "BAD_BUNDLE") -> BundleError:
    text = " ".join(str(error).split())
    if "layout" in text.lower():
        return not_streamable("a recurrent operator has layout=1, which onnxruntime's CPU kernels refuse")
    if "Failed to allocate memory" in text:
        return BundleError("the graph asks for more memory than there is", reason="OUT_OF_MEMORY")
    return BundleError(f"onnxruntime refuses the graph: {text}", reason=reason)


def not_streamable(message: str) -> BundleError:
    """Return the error that says why a graph cannot stream."""
    return BundleError(f"cannot stream: {message}", reason="NOT_STREAMABLE")
