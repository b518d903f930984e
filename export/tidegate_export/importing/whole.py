"""Compares a bundle with the file as it came: whole sequences, run at once, longer than all that it can look back on.

That is for a bundle whose states were lifted out of the graph: the file gives no state back, so it cannot be run step
by step by hand. And for one that runs step by step a graph that could run whole, for the sake of an input that comes
with each step. The file says what a whole sequence gives, from its own beginning. That is what the bundle must give in
one chunk, in pieces, and step by step.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence

import numpy as np
import onnx
from pydantic import ValidationError

from tidegate.bundle import BATCH, TIME, Manifest, TensorCodec, TensorSpec
from tidegate.errors import BundleError
from tidegate.proof import ABSOLUTE, excess, is_rounding, rounding
from tidegate.reach import analyse
from tidegate.replay import GraphRunner, Result, random_inputs
from tidegate_export.errors import ExportError
from tidegate_export.importing.foreign import Array, Arrays, Foreign, declared
from tidegate_export.importing.parity import ImportParity
from tidegate_export.importing.plan import Axes, Found, is_along_time, sized

_LENGTHS = (33, 12, 5, 2, 1, 64)
_ROWS = 3
_MARGIN, _MOST = 9, 4096
"""Steps of the longest sequence beyond the file's reach, and at most."""


def check_whole(
    original: onnx.ModelProto,
    found: Found,
    graph: bytes,
    manifest: Manifest,
    tolerance: float,
    slack: float,
    size: int | None = None,
) -> ImportParity:
    """Compare whole runs of the file with the bundle's, of several lengths, of one row and of more.

    Args:
        original: The file's graph as it came, constants inside.
        found: The graph with its states lifted out, before any axis was freed.
        graph: The bundle's.
        manifest: Its manifest.
        tolerance: What may differ.
        slack: The same as a share of an output's variation, where the graph rounds.
        size: The only number of steps that the file takes, if it fixes it.

    Raises:
        ExportError: They differ, or the file runs on no sequence.
    """
    whole, runner = _Whole(original, found), GraphRunner(graph, manifest)
    worst, largest, cases, most = -ABSOLUTE, 0.0, 0, tolerance
    is_lifted = any(state.input not in whole.names for state in found.states)
    sizes, far = (_LENGTHS, _far(original, found, whole.names)) if size is None else ((size,), 0)
    for seed, (rows, steps) in enumerate(_sizes(found, manifest, sizes, far)):
        inputs = whole.fixed_sides(random_inputs(manifest, rows, steps, np.random.default_rng(seed)), manifest)
        try:
            wanted = whole.run(inputs, manifest, rows, steps)
        except ExportError:
            continue  # so few steps, or so many rows, are not for it
        if any(wanted[spec.name].shape[1] != steps for spec in found.outputs if TIME in spec.axes):
            continue  # neither, if it does not give one row a step
        for lengths in _cuts(steps):
            result = runner.walk(inputs, lengths)
            got = {spec.name: _flat(result.outputs[spec.name], spec.axes) for spec in manifest.outputs}
            got |= {
                state.input: _flat(result.states[state.input], state.axes)
                for state in manifest.states
                if state.input in wanted
            }
            slacks = _roundings(runner, inputs, lengths, result) if steps > max(_LENGTHS) else {}
            for name in wanted:  # what the file gives once is what the last step gives
                got[name] = got[name][:, -wanted[name].shape[1] :]
            for name, values in wanted.items():
                if is_rounding(values, got[name], slacks.get(name, 0.0)):
                    continue
                worst = max(worst, excess(values, got[name]))
                largest = max(largest, _largest(values, got[name]))
                most = max(most, slack * float(np.std(values.astype(np.float64))) if values.size else 0.0)
            cases += 1
    if not cases:
        raise ExportError("the file runs on no whole sequence that the bundle could be compared with")
    if worst > most:
        how = "with its states lifted out" if is_lifted else "cannot stream: run step by step"
        raise ExportError(f"{how}, the graph differs from the file's run of the whole sequence by {worst:.2g}")
    return ImportParity(cases, largest, worst, "the file, run over whole sequences")


def _far(original: onnx.ModelProto, found: Found, names: Container[str]) -> int:
    """Return how long a sequence must be to show all that the file can look back on; 0 where that cannot be told."""
    try:
        about = Manifest(
            name="file",
            version="1",
            task="stream",
            cell="foreign",
            inputs=found.data,
            outputs=found.outputs,
            states=tuple(state for state in found.states if state.input in names),
            lengths=found.lengths,
            codec=TensorCodec(outputs=tuple(spec.name for spec in found.outputs)),
        )
        return min(analyse(original.SerializeToString(), about).steps + _MARGIN, _MOST)
    except (ValidationError, BundleError):
        return 0


def _roundings(runner: GraphRunner, inputs: Arrays, lengths: list[int], result: Result) -> dict[str, float]:
    """Return what roundings become over a long sequence."""
    if len(lengths) < 2:
        lengths = [1, lengths[0] - 1]
        result = runner.walk(inputs, lengths)
    return rounding(runner, inputs, lengths, result, np.random.default_rng(0))


def _sizes(found: Found, manifest: Manifest, lengths: Sequence[int], far: int) -> Iterator[tuple[int, int]]:
    yield from ((1, steps) for steps in lengths)
    if far > max(lengths):
        yield 1, far
    if found.has_batch and manifest.is_batchable and manifest.batch_invariant:
        yield from ((_ROWS, steps) for steps in lengths[:2])


def _cuts(steps: int) -> Iterator[list[int]]:
    yield [steps]
    if steps > 1:
        yield [1] * steps
    if steps > 4:
        yield [steps - 4, 1, 3]


class _Whole:
    """Runs the file's graph over whole sequences."""

    def __init__(self, original: onnx.ModelProto, found: Found) -> None:
        self._found = found
        self._foreign = Foreign(original)
        self._inputs = {item.name: item for item in declared(original.graph.input)}
        self.names = self._inputs.keys()
        self._along_time = {spec.name for spec in found.data if TIME in spec.axes}
        self._without_batch = {spec.name for spec in found.settings if spec.batch_axis is None}

    def fixed_sides(self, inputs: Arrays, manifest: Manifest) -> Arrays:
        """Return inputs in which what the file takes once per sequence is the same at every step, and what it takes
        once per run the same in every row.
        """
        fixed = dict(inputs)
        for spec in manifest.inputs:
            if spec.name not in self._along_time and spec.time_axis is not None:
                first = inputs[spec.name].take([0], spec.time_axis)
                fixed[spec.name] = np.repeat(first, inputs[spec.name].shape[spec.time_axis], spec.time_axis)
        for setting in manifest.settings:
            if setting.batch_axis is not None and setting.name in self._without_batch:
                array, axis = inputs[setting.name], setting.batch_axis
                fixed[setting.name] = np.repeat(array.take([0], axis), array.shape[axis], axis)
        return fixed

    def run(self, inputs: Arrays, manifest: Manifest, rows: int, steps: int) -> Arrays:
        """Return outputs, and last states by their inputs, as [rows, steps or 1, the rest]."""
        found = self._found
        feeds = {spec.name: self._fed(spec, inputs[spec.name]) for spec in manifest.inputs}
        for setting in found.settings:
            shape = sized(setting.axes, rows, 1)
            feeds[setting.name] = inputs[setting.name].ravel()[: math.prod(shape)].reshape(shape)
        states = [state for state in found.states if state.input in self._inputs]
        for state in states:
            first = found.initial.get(state.input, np.array(state.initial))
            feeds[state.input] = np.broadcast_to(first, sized(state.axes, rows, 1)).astype(state.dtype)
        if found.lengths is not None:
            item = self._inputs[found.lengths]
            feeds[item.name] = np.full([rows] * len(item.dims or ()), steps, item.dtype)
        results = self._foreign.run(feeds)
        told = {spec.name: _flat(results[spec.name], spec.axes) for spec in found.outputs}
        return told | {state.input: _flat(results[state.output], state.axes) for state in states}

    def _fed(self, spec: TensorSpec, array: Array) -> Array:
        """Turn what the bundle takes into what the file takes: its axes are the same but for a time that was added."""
        if spec.name not in self._along_time and spec.time_axis is not None:
            first: Array = array.take(0, spec.time_axis)
            return first
        context = self._found.contexts.get(spec.name)
        if context is None or spec.time_axis is None:
            return array
        if not is_along_time(context, spec.axes):
            raise ExportError("a context of each step's elements cannot be put in front of a whole sequence")
        shape = list(array.shape)
        shape[spec.time_axis] = context.size
        first = self._found.first_contexts.get(spec.name, np.zeros(1, array.dtype))
        return np.concatenate([np.broadcast_to(first, shape), array], spec.time_axis)


def _ordered(array: Array, axes: Axes) -> Array:
    """Return [rows, steps, …]: axes that are not there have one element."""
    words = [axes.index(word) if word in axes else None for word in (BATCH, TIME)]
    front = [at for at in words if at is not None]
    rest = [at for at in range(array.ndim) if at not in front]
    moved = array.transpose([*front, *rest])
    for place, at in enumerate(words):
        if at is None:
            moved = np.expand_dims(moved, place)
    return moved


def _flat(array: Array, axes: Axes) -> Array:
    ordered = _ordered(array, axes)
    return ordered.reshape(*ordered.shape[:2], -1)


def _largest(wanted: Array, got: Array) -> float:
    if wanted.shape != got.shape:
        return float("inf")
    return float(np.abs(wanted.astype(np.float64) - got.astype(np.float64)).max(initial=0.0))
