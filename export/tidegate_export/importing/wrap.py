"""Puts a foreign graph into the form of a bundle: a time axis on everything, contexts and first states as states.

Where one run of the graph is one step, it becomes the body of an ONNX `Scan` over the time axis: the server then knows
nothing of frames. A *context*, the last elements of an input that the graph wants again, becomes a state that is put in
front of the next step. First states that are not one number everywhere are chosen by a flag that every session starts
without. All of it is exact: values are only moved.

Only operators that mean the same since opset 9 are used, for the foreign graph keeps its opset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from tidegate.bundle import BATCH, TIME, StateSpec, TensorSpec
from tidegate_export.errors import ExportError
from tidegate_export.importing.edit import renamed
from tidegate_export.importing.foreign import Array
from tidegate_export.importing.plan import Axes, Found, context_axes, context_place, is_along_time, num_left

_OPSET_OF_SCAN = 9
_OPSET_OF_SLICE_INPUTS = 10
_OPSET_OF_UNSQUEEZE_INPUTS = 13


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A graph in a bundle's form, and what its manifest says of its tensors."""

    graph: bytes
    data: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...]
    outputs: tuple[TensorSpec, ...]


def wrap(found: Found, opset: int) -> Wrapped:
    """Return `found` as a bundle's graph.

    Raises:
        ExportError: Its opset is too old, or a context does not fit.
    """
    if found.is_frame and opset < _OPSET_OF_SCAN:
        raise ExportError(
            f"the graph takes one step a run, and opset {opset} has no loop for that: export with opset 9 or later"
        )
    wiring = _Wiring(found, opset)
    model = onnx.ModelProto()
    model.CopyFrom(found.model)
    wrapped = wiring.framed(model.graph) if found.is_frame else wiring.plain(model.graph)
    wrapped.name = found.model.graph.name or "imported"
    model.graph.CopyFrom(wrapped)
    del model.metadata_props[:]
    model.ClearField("doc_string")
    data, states, outputs = wiring.data, wiring.states, wiring.outputs
    return Wrapped(model.SerializeToString(deterministic=True), tuple(data), tuple(states), tuple(outputs))


@dataclass(frozen=True, slots=True)
class _First:
    """A state whose value before the first step is no single number: where it comes from and goes to."""

    source: str
    target: str
    axes: Axes
    value: Array


@dataclass(slots=True)
class _Wiring:
    """Nodes before and after the foreign ones, and the tensors at the edges."""

    found: Found
    opset: int
    before: list[NodeProto] = field(default_factory=list)
    after: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    data: list[TensorSpec] = field(default_factory=list)
    states: list[StateSpec] = field(default_factory=list)
    outputs: list[TensorSpec] = field(default_factory=list)
    firsts: list[_First] = field(default_factory=list)

    def plain(self, graph: GraphProto) -> GraphProto:
        """Wire a graph that has a time axis of its own."""
        names = {spec.name: f"{spec.name}/whole" for spec in self.found.data if spec.name in self.found.contexts}
        names |= {name: f"{name}/first" for name in self.found.initial}
        renamed(graph, names)
        for state in self.found.states:
            self.states.append(state)
            if state.input in self.found.initial:
                self._first(state, state.input, names[state.input])
        self.outputs += self.found.outputs
        for spec in self.found.data:
            self.data.append(self._plain_context(spec) if spec.name in names else spec)
        self._begin("begun_in")
        graph_nodes = [*self.before, *graph.node, *self.after]
        inputs = [_value(spec.name, spec.dtype, spec.axes) for spec in self.data]
        if self.found.lengths is not None:
            inputs += [item for item in self.found.model.graph.input if item.name == self.found.lengths]
        inputs += self._setting_inputs()
        return helper.make_graph(
            graph_nodes,
            "plain",
            [*inputs, *(_value(state.input, state.dtype, state.axes) for state in self.states)],
            self._edge_outputs(),
            [*graph.initializer, *self.constants],
        )

    def framed(self, graph: GraphProto) -> GraphProto:
        """Make the graph the body of a Scan."""
        found = self.found
        names = [spec.name for spec in (*found.data, *found.outputs)]
        names += [name for state in found.states for name in (state.input, state.output)]
        renamed(graph, {name: f"{name}/run" for name in names})
        for state in found.states:
            self.states.append(state)
            if state.input in found.initial:
                self._first(state, f"{state.input}/before", f"{state.input}/run")
            else:
                self._move(f"{state.input}/before", f"{state.input}/run")
            self._move(f"{state.output}/run", f"{state.output}/after", is_after=True)
        for spec in found.data:
            self._frame_in(spec)
        for spec in found.outputs:
            self._frame_out(spec)
        self._begin("begun_in/before")
        body = helper.make_graph(
            [*self.before, *graph.node, *self.after],
            "step",
            [
                *(_value(f"{state.input}/before", state.dtype, state.axes) for state in self.states),
                *(_value(f"{spec.name}/step", spec.dtype, _without_time(spec.axes)) for spec in self.data),
            ],
            [
                *(_value(f"{state.output}/after", state.dtype, state.axes) for state in self.states),
                *(_value(f"{spec.name}/step", spec.dtype, _without_time(spec.axes)) for spec in self.outputs),
            ],
            [*graph.initializer, *self.constants],
        )
        scan = helper.make_node(
            "Scan",
            [*(state.input for state in self.states), *(spec.name for spec in self.data)],
            [*(state.output for state in self.states), *(spec.name for spec in self.outputs)],
            body=body,
            num_scan_inputs=len(self.data),
            scan_input_axes=[spec.axes.index(TIME) for spec in self.data],
            scan_output_axes=[spec.axes.index(TIME) for spec in self.outputs],
        )
        inputs = [*self.data, *(TensorSpec(name=s.input, dtype=s.dtype, axes=s.axes) for s in self.states)]
        # The body sees settings as values of the graph around it, the same in every step.
        edges = [*(_value(spec.name, spec.dtype, spec.axes) for spec in inputs), *self._setting_inputs()]
        return helper.make_graph([scan], "framed", edges, self._edge_outputs())

    def _setting_inputs(self) -> list[ValueInfoProto]:
        return [_value(spec.name, spec.dtype, spec.axes) for spec in self.found.settings]

    # ---- contexts

    def _plain_context(self, spec: TensorSpec) -> TensorSpec:
        """Put the steps, or the elements of the steps before, in front of each."""
        context, name = self.found.contexts[spec.name], spec.name
        time, place = spec.axes.index(TIME), self._place(spec)
        if is_along_time(context, spec.axes):
            before = self._context_state(spec, context_axes(context, spec.axes), "context_in", f"{name}/context")
            self._join([before, name], f"{name}/whole", time)
            self._slice(f"{name}/whole", f"{name}.context_out", time, -context.size)
            return spec
        sent, left, source = self._sent(spec), num_left(context, spec.axes), name
        if len(sent.axes) < len(spec.axes):
            source = f"{name}/frames"
            self._unsqueeze(name, source, place)
        steps = -(-context.size // left)
        if steps == 1:
            self._slice(source, f"{name}/tails", place, -context.size)
            axes = context_axes(context, spec.axes)
        else:  # the context reaches back over several steps: these are kept whole
            self._move(source, f"{name}/tails")
            axes = _replaced(_replaced(spec.axes, place, left), time, steps)
        before = self._context_state(spec, axes, "context_in", f"{name}/context")
        self._join([before, f"{name}/tails"], f"{name}/history", time)
        for step in range(steps):
            self._slice(f"{name}/history", f"{name}/before{step}", time, step, step - steps)
        self._slice(f"{name}/history", f"{name}.context_out", time, -steps)
        self._join([*(f"{name}/before{step}" for step in range(steps)), source], f"{name}/joined", place)
        self._slice(f"{name}/joined", f"{name}/whole", place, -(context.size + left))
        return sent

    def _context_state(self, spec: TensorSpec, axes: Axes, source: str, target: str) -> str:
        """Add the state; return the tensor that holds the context, the first one chosen where that is needed."""
        name = spec.name
        first = self.found.first_contexts.get(name)
        value = 0.0 if first is None or np.ptp(first) else first.flat[0].item()
        state = StateSpec(
            input=f"{name}.context_in",
            output=f"{name}.context_out",
            dtype=spec.dtype,
            axes=axes,
            initial=value,
        )
        self.states.append(state)
        if first is None or not np.ptp(first):
            return f"{name}.{source}"
        self.firsts.append(_First(f"{name}.{source}", target, axes, self._as_steps(first, spec, axes)))
        return target

    def _as_steps(self, first: Array, spec: TensorSpec, axes: Axes) -> Array:
        """Return a first context as the state has it, which may keep whole steps; what is too much is never seen."""
        place = self._place(spec)
        size = axes[place]
        if TIME not in spec.axes or size == first.shape[place]:
            return first
        time = spec.axes.index(TIME)
        steps = axes[time]
        assert isinstance(size, int)
        assert isinstance(steps, int)
        more = [(0, 0)] * first.ndim
        more[place] = (steps * size - first.shape[place], 0)
        return np.concatenate(np.split(np.pad(first, more), steps, place), time)

    def _place(self, spec: TensorSpec) -> int:
        place = context_place(self.found.contexts[spec.name], spec.axes)
        assert place is not None  # the exploration found it
        return place

    def _sent(self, spec: TensorSpec) -> TensorSpec:
        """Return what a caller sends of an input with a context: what is new, without an axis of one element."""
        context, place = self.found.contexts[spec.name], self._place(spec)
        if is_along_time(context, spec.axes):
            return spec
        left = num_left(context, spec.axes)
        axes = _replaced(spec.axes, place, left)
        if left == 1 and not context.keeps_axis:
            axes = (*axes[:place], *axes[place + 1 :])
        return spec.model_copy(update={"axes": axes})

    # ---- frames

    def _frame_in(self, spec: TensorSpec) -> None:
        """Turn one step into what the graph takes: with its context, and a time axis of one step if it has one."""
        name, sent = spec.name, spec
        context = self.found.contexts.get(name)
        if context is None:
            self._as_run(f"{name}/step", f"{name}/run", _without_time(spec.axes), spec.axes)
        else:
            sent, place = self._sent(spec), self._place(spec)
            piece = _replaced(spec.axes, place, num_left(context, spec.axes))
            self._as_run(f"{name}/step", f"{name}/piece", _without_time(sent.axes), piece)
            axes = context_axes(context, spec.axes)
            before = self._context_state(spec, axes, "context_in/before", f"{name}/context")
            self._join([before, f"{name}/piece"], f"{name}/run", place)
            self._slice(f"{name}/run", f"{name}.context_out/after", place, -context.size)
        self.data.append(sent.model_copy(update={"axes": _with_time(sent.axes)}))

    def _as_run(self, source: str, target: str, step: Axes, run: Axes) -> None:
        if step == run:
            self._move(source, target)
        else:
            self._reshape(source, target, run)

    def _frame_out(self, spec: TensorSpec) -> None:
        if TIME in spec.axes:
            self._reshape(f"{spec.name}/run", f"{spec.name}/step", _without_time(spec.axes), is_after=True)
        else:
            self._move(f"{spec.name}/run", f"{spec.name}/step", is_after=True)
        self.outputs.append(spec.model_copy(update={"axes": _with_time(spec.axes)}))

    # ---- first states

    def _first(self, state: StateSpec, source: str, target: str) -> None:
        self.firsts.append(_First(source, target, state.axes, self.found.initial[state.input]))

    def _begin(self, flag: str) -> None:
        """Choose the first states until the flag, which every run sets, says that the sequence has begun."""
        if not self.firsts:
            return
        axes: Axes = (BATCH,) if self.found.has_batch else (1,)
        self.states.append(StateSpec(input="begun_in", output="begun_out", dtype="bool", axes=axes))
        chosen: list[NodeProto] = []
        for first in self.firsts:
            constant = self._constant(f"{first.target}/value", first.value)
            shape = [-1 if axis == BATCH else 1 for axis in first.axes]
            begun = self._constant(f"{first.target}/shape", np.array(shape, np.int64))
            chosen += [
                helper.make_node("Reshape", [flag, begun], [f"{first.target}/begun"]),
                helper.make_node("Where", [f"{first.target}/begun", first.source, constant], [first.target]),
            ]
        self.before[:0] = chosen  # contexts are read by what stands in `before`
        done = flag.replace("_in", "_out").replace("before", "after")
        self.before.append(helper.make_node("Not", [flag], [f"{flag}/not"]))
        self.before.append(helper.make_node("Or", [flag, f"{flag}/not"], [done]))

    # ---- nodes

    def _edge_outputs(self) -> list[ValueInfoProto]:
        return [
            *(_value(spec.name, spec.dtype, spec.axes) for spec in self.outputs),
            *(_value(state.output, state.dtype, state.axes) for state in self.states),
        ]

    def _move(self, source: str, target: str, *, is_after: bool = False) -> None:
        (self.after if is_after else self.before).append(helper.make_node("Identity", [source], [target]))

    def _join(self, sources: Sequence[str], target: str, axis: int) -> None:
        self.before.append(helper.make_node("Concat", sources, [target], axis=axis))

    def _unsqueeze(self, source: str, target: str, axis: int) -> None:
        if self.opset < _OPSET_OF_UNSQUEEZE_INPUTS:
            node = helper.make_node("Unsqueeze", [source], [target], axes=[axis])
        else:
            place = self._constant(f"{target}/axis", np.array([axis], np.int64))
            node = helper.make_node("Unsqueeze", [source, place], [target])
        self.before.append(node)

    def _slice(self, source: str, target: str, axis: int, start: int, stop: int = np.iinfo(np.int32).max) -> None:
        if self.opset < _OPSET_OF_SLICE_INPUTS:
            node = helper.make_node("Slice", [source], [target], axes=[axis], starts=[start], ends=[stop])
        else:
            bounds = [
                self._constant(f"{target}/{word}", np.array([value], np.int64))
                for word, value in (("start", start), ("stop", stop), ("axis", axis))
            ]
            node = helper.make_node("Slice", [source, *bounds], [target])
        self.before.append(node)

    def _reshape(self, source: str, target: str, axes: Axes, *, is_after: bool = False) -> None:
        """Give a tensor these axes, time being one step; the batch is what is left."""
        shape = [axis if isinstance(axis, int) else -1 if axis == BATCH else 1 for axis in axes]
        constant = self._constant(f"{target}/shape", np.array(shape, np.int64))
        (self.after if is_after else self.before).append(helper.make_node("Reshape", [source, constant], [target]))

    def _constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name


def _value(name: str, dtype: str, axes: Axes | None) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), axes)


def _without_time(axes: Axes) -> Axes:
    return tuple(axis for axis in axes if axis != TIME)


def _with_time(axes: Axes) -> Axes:
    """Return the axes of many steps: time behind a batch that comes first, else first."""
    if TIME in axes:
        return axes
    return (BATCH, TIME, *axes[1:]) if axes[:1] == (BATCH,) else (TIME, *axes)


def _replaced(axes: Axes, at: int, axis: int) -> Axes:
    return (*axes[:at], axis, *axes[at + 1 :])
