"""What a case's graph gives on long sequences: the original file in onnxruntime, by a caller who knows the truth.

Where one run is one step the states are carried by hand, else the whole sequence is run at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.search.truth import Array, Arrays, Axes, Case, Data, sized
from tidegate.bundle import TIME
from tidegate.ort import onnxruntime


@dataclass(frozen=True, slots=True)
class Sequence:
    """One row: what every input is given, [steps, …] each, and what every output tells, [steps, …].

    An input without a time axis where others have one is the same at every step.
    """

    inputs: Arrays
    outputs: Arrays


class Oracle:
    """The original file."""

    def __init__(self, case: Case) -> None:
        self.case = case
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            case.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._types = {item.name: item.type for item in self._session.get_inputs()}

    def sequence(self, seed: int, steps: int) -> Sequence:
        """Return a random sequence and what is right for it."""
        rng = np.random.default_rng(seed)
        inputs = {item.name: _random(self.case, item, steps, rng) for item in self.case.data}
        run = self._stepped if self.case.is_frame else self._whole
        return Sequence(inputs, run(inputs, steps))

    def _whole(self, inputs: Arrays, steps: int) -> Arrays:
        feeds = {state.input: state.zeros() for state in self.case.states} | self._constants()
        for item in self.case.data:
            feeds[item.name] = _arranged(item, inputs[item.name])
        if self.case.lengths is not None:
            feeds[self.case.lengths] = np.full(1, steps, np.int32)
        told = self._run(feeds)
        return {name: _by_step(told[name], axes) for name, axes in self.case.outputs.items()}

    def streams(self, row: Sequence, lengths: list[int], tolerance: float = 1e-3) -> bool:
        """Say whether the file, run over chunks of `lengths` with the true states carried over, gives what is right."""
        states: Arrays = {state.input: state.zeros() for state in self.case.states}
        start = 0
        for length in lengths:
            feeds = states | self._constants()
            for item in self.case.data:
                feeds[item.name] = _arranged(item, row.inputs[item.name][start : start + length])
            if self.case.lengths is not None:
                feeds[self.case.lengths] = np.full(1, length, np.int32)
            told = self._run(feeds)
            states = {state.input: told[state.output] for state in self.case.states}
            for name in self.case.outputs:
                wanted, found = row.outputs[name], _by_step(told[name], self.case.outputs[name])
                if len(found) != length or len(wanted) < start + length:
                    return False
                if np.abs(found.astype(float) - wanted[start : start + length].astype(float)).max() > tolerance:
                    return False
            start += length
        return True

    def _stepped(self, inputs: Arrays, steps: int) -> Arrays:
        states: Arrays = {state.input: state.zeros() for state in self.case.states}
        told: dict[str, list[Array]] = {name: [] for name in self.case.outputs}
        for step in range(steps):
            feeds = states | self._constants()
            for item in self.case.data:
                feeds[item.name] = _with_context(item, inputs[item.name], step)
            results = self._run(feeds)
            states = {state.input: results[state.output] for state in self.case.states}
            for name, rows in told.items():
                rows.append(results[name].reshape(-1))
        return {name: np.stack(rows) for name, rows in told.items()}

    def _run(self, feeds: Arrays) -> Arrays:
        names = [item.name for item in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, feeds), strict=True))

    def _constants(self) -> Arrays:
        shapes = {item.name: item.shape for item in self._session.get_inputs()}
        return {
            name: np.full(shapes[name], float(text), "int64" if "int64" in self._types[name] else "float32")
            for name, text in self.case.constants.items()
        }


def _random(case: Case, item: Data, steps: int, rng: np.random.Generator) -> Array:
    """Return [steps, …] of one input: of every scale, with silence and extremes among them."""
    shape = (steps, *item.step_shape)
    if item.num_ids:
        return rng.integers(0, item.num_ids, shape).astype(item.dtype)
    values = rng.normal(size=shape)
    kind = rng.random((steps, *(1 for _ in item.step_shape)))
    values = np.where(kind < 0.05, 0.0, np.where(kind > 0.93, values * 5, values))
    if not case.is_frame and not item.has_time:
        values = np.broadcast_to(values[:1], shape)
    return values.astype(item.dtype)


def _with_context(item: Data, rows: Array, step: int) -> Array:
    """Return what the graph takes at a step: the end of what was sent before, and what is sent now."""
    now: Array = rows[step].reshape(sized(item.sent, 1, 1))
    if not item.context:
        return now
    before = [np.zeros_like(now)] * -(-item.context // now.shape[item.along])
    before += [each.reshape(now.shape) for each in rows[:step]]
    whole: Array = np.concatenate([*before, now], axis=item.along)
    size = whole.shape[item.along]
    taken: Array = whole.take(range(size - item.context - now.shape[item.along], size), axis=item.along)
    return taken


def _arranged(item: Data, rows: Array) -> Array:
    """Return one row's steps with the axes where the file has them."""
    if not item.has_time:
        return rows[:1].reshape(sized(item.axes, 1, 1))
    if item.context:  # along time: silence before the first step
        rows = np.concatenate([np.zeros((item.context, *rows.shape[1:]), rows.dtype), rows])
    inner = [axis for axis in item.axes if axis != "batch"]
    time = inner.index(TIME)
    return np.moveaxis(rows, 0, time).reshape(sized(item.axes, 1, len(rows)))


def _by_step(array: Array, axes: Axes) -> Array:
    """Return an output as [steps, numbers]."""
    steps = array.shape[axes.index(TIME)]
    return np.moveaxis(array, axes.index(TIME), 0).reshape(steps, -1)
