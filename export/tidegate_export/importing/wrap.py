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
from tidegate_export.importing.plan import Axes, Found, is_along_time

_OPSET_OF_SCAN = 9
_OPSET_OF_SLICE_INPUTS = 10


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

    def plain(self, graph: GraphProto) -> GraphProto:
        """Wire a graph that has a time axis of its own."""
        names = {spec.name: f"{spec.name}/whole" for spec in self.found.data if spec.name in self.found.contexts}
        names |= {name: f"{name}/first" for name in self.found.initial}
        renamed(graph, names)
        self.states += self.found.states
        self.outputs += self.found.outputs
        for spec in self.found.data:
            self.data.append(self._plain_context(spec) if spec.name in names else spec)
        self._begin("begun_in", {name: (name, names[name]) for name in self.found.initial})
        graph_nodes = [*self.before, *graph.node, *self.after]
        inputs = [_value(spec.name, spec.dtype, spec.axes) for spec in self.data]
        if self.found.lengths is not None:
            inputs += [item for item in self.found.model.graph.input if item.name == self.found.lengths]
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
        firsts = {}
        for state in found.states:
            self.states.append(state)
            if state.input in found.initial:
                firsts[state.input] = (f"{state.input}/before", f"{state.input}/run")
            else:
                self._move(f"{state.input}/before", f"{state.input}/run")
            self._move(f"{state.output}/run", f"{state.output}/after", is_after=True)
        for spec in found.data:
            self._frame_in(spec)
        for spec in found.outputs:
            self._frame_out(spec)
        self._begin("begun_in/before", firsts)
        body = helper.make_graph(
            [*self.before, *graph.node, *self.after],
            "step",
            [
                *(_value(f"{state.input}/before", state.dtype, state.axes) for state in self.states),
                *(_value(f"{spec.name}/step", spec.dtype, _without_time(spec.axes)) for spec in self.data),
            ],
            [
                *(_value(f"{state.output}/after", state.dtype, None) for state in self.states),
                *(_value(f"{spec.name}/step", spec.dtype, None) for spec in self.outputs),
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
        edges = [_value(spec.name, spec.dtype, spec.axes) for spec in inputs]
        return helper.make_graph([scan], "framed", edges, self._edge_outputs())

    # ---- contexts

    def _plain_context(self, spec: TensorSpec) -> TensorSpec:
        """Put the steps, or the elements of the step before, in front of each."""
        context = self.found.contexts[spec.name]
        time, last, name = spec.axes.index(TIME), len(spec.axes) - 1, spec.name
        if is_along_time(context, spec.axes):
            self._context_state(spec, _replaced(spec.axes, time, context.size))
            self._join([f"{name}.context_in", name], f"{name}/whole", time)
            self._slice(f"{name}/whole", f"{name}.context_out", time, -context.size)
            return spec
        step = self._shortened(spec)
        size = step.axes[last]
        if isinstance(size, int) and size < context.size:
            raise ExportError(f"--context {name}={context.size}: a step has only {size} elements")
        self._context_state(spec, _replaced(_replaced(spec.axes, last, context.size), time, 1))
        self._slice(name, f"{name}/tails", last, -context.size)
        self._join([f"{name}.context_in", f"{name}/tails"], f"{name}/shifted", time)
        self._slice(f"{name}/shifted", f"{name}/contexts", time, 0, -1)
        self._slice(f"{name}/tails", f"{name}.context_out", time, -1)
        self._join([f"{name}/contexts", name], f"{name}/whole", last)
        return step

    def _context_state(self, spec: TensorSpec, axes: Axes) -> None:
        name = spec.name
        self.states.append(
            StateSpec(input=f"{name}.context_in", output=f"{name}.context_out", dtype=spec.dtype, axes=axes)
        )

    def _shortened(self, spec: TensorSpec) -> TensorSpec:
        """Return what a caller sends where the context is counted along the last axis."""
        size, whole = self.found.contexts[spec.name].size, spec.axes[-1]
        if not isinstance(whole, int) or whole <= size:
            raise ExportError(f"--context {spec.name}={size}: the graph takes {whole} elements in all")
        return spec.model_copy(update={"axes": _replaced(spec.axes, len(spec.axes) - 1, whole - size)})

    # ---- frames

    def _frame_in(self, spec: TensorSpec) -> None:
        """Turn one step into what the graph takes: with its context, and a time axis of one step if it has one."""
        name, step = spec.name, spec
        source = f"{name}/step"
        context = self.found.contexts.get(name)
        if context is not None:
            if context.is_time:
                raise ExportError(f"--context {name}: one run is one step, there is no time axis to count along")
            step = self._shortened(spec)
            axes = _without_time(spec.axes)
            self._context_state(spec, _replaced(axes, len(axes) - 1, context.size))
            self._join([f"{name}.context_in/before", source], f"{name}/joined", len(axes) - 1)
            self._slice(f"{name}/joined", f"{name}.context_out/after", len(axes) - 1, -context.size)
            source = f"{name}/joined"
        if TIME in spec.axes:
            self._reshape(source, f"{name}/run", spec.axes)
        else:
            self._move(source, f"{name}/run")
        self.data.append(step.model_copy(update={"axes": _with_time(step.axes)}))

    def _frame_out(self, spec: TensorSpec) -> None:
        if TIME in spec.axes:
            self._reshape(f"{spec.name}/run", f"{spec.name}/step", _without_time(spec.axes), is_after=True)
        else:
            self._move(f"{spec.name}/run", f"{spec.name}/step", is_after=True)
        self.outputs.append(spec.model_copy(update={"axes": _with_time(spec.axes)}))

    # ---- first states

    def _begin(self, flag: str, firsts: dict[str, tuple[str, str]]) -> None:
        """Choose the first state until the flag, which every run sets, says that the sequence has begun."""
        if not firsts:
            return
        axes: Axes = (BATCH,) if self.found.has_batch else (1,)
        self.states.append(StateSpec(input="begun_in", output="begun_out", dtype="bool", axes=axes))
        for state in self.found.states:
            if state.input not in firsts:
                continue
            source, target = firsts[state.input]
            constant = self._constant(f"{target}/value", self.found.initial[state.input])
            shape = tuple(BATCH if axis == BATCH else 1 for axis in state.axes)
            self._reshape(flag, f"{target}/begun", shape)
            self.before.append(helper.make_node("Where", [f"{target}/begun", source, constant], [target]))
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
