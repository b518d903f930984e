"""Compares a bundle's graph with the file it came from, run by hand: one step after the other, states and contexts
carried in plain numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from tidegate.bundle import TIME, Json, Manifest, TensorSpec
from tidegate.proof import ABSOLUTE, excess
from tidegate.replay import GraphRunner, random_inputs
from tidegate_export.errors import ExportError
from tidegate_export.importing.foreign import Array, Arrays, Foreign, declared, random_array
from tidegate_export.importing.plan import Found, context_axes, context_place, num_left, sized

_STEPS = 12
_SEEDS = range(3)


@dataclass(frozen=True, slots=True)
class ImportParity:
    """Sequences compared, and over their outputs and last states: the largest |Δ|, and the largest |Δ| - 1e-4·|x|."""

    cases: int
    largest: float
    max_error: float
    reference: str = "the file, run step by step"

    def as_json(self) -> Json:
        return {
            "cases": self.cases,
            "largest": self.largest,
            "max_error": self.max_error,
            "with": self.reference,
        }


def check_parity(found: Found, graph: bytes, manifest: Manifest, tolerance: float) -> ImportParity:
    """Compare, in one chunk and step by step.

    Args:
        found: The graph as the file has it, before any axis was freed.
        graph: The bundle's.
        manifest: Its manifest.
        tolerance: What may differ.

    Raises:
        ExportError: They differ.
    """
    runner, by_hand = GraphRunner(graph, manifest), _ByHand(found)
    worst, largest, cases = -ABSOLUTE, 0.0, 0
    for seed in _SEEDS:
        rng = np.random.default_rng(seed)
        inputs = random_inputs(manifest, 1, _STEPS, rng)
        firsts, contexts = _full_contexts(found, runner, rng) if seed else (runner.initial(1), {})
        inputs, (wanted, states) = _walked(by_hand, inputs, manifest, contexts, seed)
        for lengths in ([_STEPS], [1] * _STEPS):
            result = runner.walk(inputs, lengths, firsts)
            got = {spec.name: _rows(result.outputs[spec.name], spec) for spec in manifest.outputs}
            got |= {name: result.states[name].reshape(1, -1) for name in states}
            for name, values in {**wanted, **states}.items():
                last = values[-len(got[name]) :]  # of an output that is not per step, the last one
                worst = max(worst, excess(last, got[name]))
                largest = max(largest, _largest(last, got[name]))
            cases += 1
    if worst > tolerance:
        raise ExportError(f"the bundle differs from the file, run step by step, by {worst:.2g}: it cannot be imported")
    return ImportParity(cases, largest, worst)


def _walked(
    by_hand: _ByHand, inputs: Arrays, manifest: Manifest, contexts: Arrays, seed: int
) -> tuple[Arrays, tuple[Arrays, Arrays]]:
    """Run by hand, settings of whole numbers moved by `seed` where the file takes that; return what was run too."""
    wholes = [spec for spec in manifest.settings if spec.dtype.startswith(("int", "uint"))]
    is_signed = all(spec.dtype.startswith("int") for spec in wholes)
    for step in ((seed, -seed) if is_signed else (seed,)) if wholes and seed else ():
        moved = inputs | {spec.name: inputs[spec.name] + np.array(step, spec.dtype) for spec in wholes}
        with suppress(ExportError):  # which whole numbers it takes, nobody knows
            return moved, by_hand.walk(moved, manifest.inputs, contexts)
    return inputs, by_hand.walk(inputs, manifest.inputs, contexts)


def _full_contexts(found: Found, runner: GraphRunner, rng: np.random.Generator) -> tuple[Arrays, Arrays]:
    """Return first states of the bundle with contexts as in the middle of a sequence, and these contexts by input.

    A context may take thousands of steps to fill. There are none where first states are chosen by the graph.
    """
    firsts, contexts = runner.initial(1), {}
    if found.first_contexts or found.initial:
        return firsts, {}
    for spec in found.data:
        said = found.contexts.get(spec.name)
        if said is None:
            continue
        place = context_place(said, spec.axes)
        assert place is not None  # the exploration found it
        name = f"{spec.name}.context_in"
        full = firsts[name] = random_array(spec.dtype, firsts[name].shape, rng)
        if full.shape[place] != said.size:  # whole steps are kept, of which the last elements are the context
            time = spec.axes.index(TIME)
            full = np.concatenate(np.split(full, full.shape[time], time), place)
        contexts[spec.name] = full.take(range(full.shape[place] - said.size, full.shape[place]), place)
    return firsts, contexts


class _ByHand:
    """Runs the file's graph as a program would that knows its states."""

    def __init__(self, found: Found) -> None:
        self._found = found
        self._foreign = Foreign(found.model)

    def walk(self, inputs: Arrays, specs: Sequence[TensorSpec], firsts: Arrays) -> tuple[Arrays, Arrays]:
        """Return [steps, …] of every output and [1, …] of every last state, each flat behind the first axis.

        `firsts` are the first contexts by input, where they are not those of a sequence that begins.
        """
        states = {state.input: self._first(state.input) for state in self._found.states}
        contexts = {name: self._first_context(name) for name in self._found.contexts} | firsts
        told: dict[str, list[Array]] = {spec.name: [] for spec in self._found.outputs}
        by_name = {spec.name: spec for spec in specs}
        settings = {spec.name: inputs[spec.name].reshape(sized(spec.axes, 1, 1)) for spec in self._found.settings}
        for step in range(_STEPS):
            feeds = states | settings
            for spec in self._found.data:
                rows = inputs[spec.name].take([step], axis=by_name[spec.name].axes.index(TIME))
                feeds[spec.name] = self._with_context(spec, rows, contexts)
            if self._found.lengths is not None:
                feeds[self._found.lengths] = np.ones(1, self._length_type())
            results = self._foreign.run(feeds)
            states = {state.input: results[state.output] for state in self._found.states}
            for name, values in told.items():
                values.append(results[name].reshape(1, -1))
        return (
            {name: np.concatenate(values) for name, values in told.items()},
            {name: values.reshape(1, -1) for name, values in states.items()},
        )

    def _first(self, name: str) -> Array:
        state = next(state for state in self._found.states if state.input == name)
        shape = sized(state.axes, 1, 1)
        if name in self._found.initial:
            return np.broadcast_to(self._found.initial[name], shape).astype(state.dtype)
        return np.full(shape, state.initial, state.dtype)

    def _first_context(self, name: str) -> Array:
        spec = next(spec for spec in self._found.data if spec.name == name)
        shape = sized(context_axes(self._found.contexts[name], spec.axes), 1, 1)
        first = self._found.first_contexts.get(name)
        return np.zeros(shape, spec.dtype) if first is None else np.broadcast_to(first, shape)

    def _with_context(self, spec: TensorSpec, rows: Array, contexts: Arrays) -> Array:
        """Return what one run takes: the context, and what is new behind it; keep the end of both."""
        shape = list(sized(spec.axes, 1, 1))
        if spec.name not in contexts:
            return rows.reshape(shape)
        said = self._found.contexts[spec.name]
        place = context_place(said, spec.axes)
        assert place is not None  # the exploration found it
        shape[place] = num_left(said, spec.axes)
        whole = np.concatenate([contexts[spec.name], rows.reshape(shape)], place)
        contexts[spec.name] = whole.take(range(whole.shape[place] - said.size, whole.shape[place]), place)
        return whole

    def _length_type(self) -> str:
        return {item.name: item.dtype for item in declared(self._found.model.graph.input)}[self._found.lengths or ""]


def _largest(wanted: Array, got: Array) -> float:
    if wanted.shape != got.shape:
        return float("inf")
    return float(np.abs(wanted.astype(np.float64) - got.astype(np.float64)).max(initial=0.0))


def _rows(array: Array, spec: TensorSpec) -> Array:
    """Return [steps, …] of one row; [1, …] where the output is not per step."""
    if spec.time_axis is None:
        return array.reshape(1, -1)
    return np.moveaxis(array, spec.time_axis, 0).reshape(array.shape[spec.time_axis], -1)
