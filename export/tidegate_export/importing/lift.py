"""Takes memory out of a graph that keeps it inside: a layer's first and last state, what a convolution pads in front.

Half of all recurrent files have no state tensors: every run begins with zeros. Such a layer gets an input and an output
for its state; a padding in front of the steps becomes a cache of the last ones. Each change is exact as long as the
axis is the time. That is the caller's to find out, and for the streaming proof to decide: a lift is a proposal.

Which axis a layer runs along, and how large its state is, is seen by running the graph at several sizes (`extents`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from tidegate.bundle import BATCH, TIME
from tidegate_export.errors import ExportError
from tidegate_export.importing.branches import take_branches
from tidegate_export.importing.edit import copied, with_free_axes
from tidegate_export.importing.evidence import time_likelihood
from tidegate_export.importing.extents import Extent, Trials, extents, find_trials, observe
from tidegate_export.importing.flow import trace
from tidegate_export.importing.foreign import Array, Declared
from tidegate_export.importing.source import RECURRENT, attribute, called, constants

Dims: TypeAlias = tuple[int | str, ...]
Observed: TypeAlias = Mapping[str, Sequence[Array]]

_MOST_STATE = 1 << 22
"""Elements of one row's state, all that a session could keep."""

_LAST = np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True)
class LiftedState:
    """A state that was inside: names of its two ends, its axes as the file names them, and what it begins with."""

    input: str
    output: str
    dims: Dims
    first: Array
    """Batch axis of size 1."""
    reason: str

    @property
    def declared(self) -> Declared:
        return Declared(self.input, self.first.dtype.name, self.dims)


@dataclass(frozen=True, slots=True)
class Lifted:
    """A graph with memory taken out along one free axis, and what still is inside."""

    model: onnx.ModelProto
    symbol: str
    """The free axis that is the time if this lift is right."""
    data: tuple[Declared, ...]
    """What the graph took before, with the axes that are the time and the batch by those names."""
    rows: str | None = None
    """The free axis that is the batch, if a state has one."""
    states: tuple[LiftedState, ...] = ()
    has_layers: bool = False
    """A recurrent layer is among what states were lifted out of: as it is, the graph cannot stream."""
    kept: tuple[str, ...] = ()
    """What along that axis could not be taken out, each with the reason."""

    @property
    def inputs(self) -> list[Declared]:
        return [*self.data, *(state.declared for state in self.states)]

    @property
    def sequences(self) -> frozenset[str]:
        """The inputs with a time axis."""
        return frozenset(item.name for item in self.data if TIME in (item.dims or ()))

    @property
    def pairs(self) -> dict[str, str]:
        return {state.input: state.output for state in self.states}

    @property
    def initial(self) -> dict[str, Array]:
        return {state.input: state.first for state in self.states if state.first.any()}

    @property
    def reasons(self) -> dict[str, str]:
        return {state.input: state.reason for state in self.states}

    def firsts(self, trials: Trials, trial: int) -> dict[str, Array]:
        """Return what the states begin with, of so many rows as a trial has."""
        rows = 1 if self.rows is None else trials.sizes[trial][trials.symbols.index(self.rows)]
        shapes = {state.input: [rows if isinstance(dim, str) else dim for dim in state.dims] for state in self.states}
        return {state.input: np.broadcast_to(state.first, shapes[state.input]) for state in self.states}


@dataclass(frozen=True, slots=True)
class Survey:
    """What a graph does along its free axes, as far as a few runs tell."""

    model: onnx.ModelProto
    """Its settled branches taken."""
    trials: Trials | None
    lifts: tuple[Lifted, ...] = ()
    """What can be tried, the likeliest first."""
    backward: tuple[str, ...] = ()
    """What reads a free axis from its end, each named."""
    fixed: tuple[int, ...] = ()
    """Numbers of steps that forward layers take, where the file fixes them."""


@dataclass(frozen=True, slots=True)
class Freed:
    """A graph of which the file fixes the number of steps, with that axis free."""

    model: onnx.ModelProto
    inputs: tuple[Declared, ...]
    size: int


def free_steps(seen: Survey, inputs: Sequence[Declared]) -> Iterator[Freed]:
    """Yield the graph with an axis free that a layer runs along, if all inputs have an axis of that size.

    Whether the graph then takes other numbers of steps is for the caller to find out.
    """
    for size in seen.fixed:
        axes = {item.name: (item.dims or ()).index(size) for item in inputs if (item.dims or ()).count(size) == 1}
        if len(axes) < len(inputs):
            continue
        freed = with_free_axes(seen.model, axes, "steps")
        _open_reshapes(freed.graph, size)
        told = tuple(replace(item, dims=_replaced(item.dims or (), axes[item.name], TIME)) for item in inputs)
        yield Freed(freed, told, size)


def _open_reshapes(graph: onnx.GraphProto, size: int) -> None:
    known = constants(graph)
    for index, node in enumerate(graph.node):
        if node.op_type != "Reshape" or node.input[1] not in known:
            continue
        shape = numpy_helper.to_array(known[node.input[1]]).tolist()
        if shape.count(size) == 1 and -1 not in shape:
            name = f"{node.input[1]}/steps{index}"
            opened = np.array([-1 if each == size else each for each in shape], np.int64)
            graph.initializer.append(numpy_helper.from_array(opened, name))
            node.input[1] = name


def _replaced(dims: Dims, at: int, dim: int | str) -> Dims:
    return (*dims[:at], dim, *dims[at + 1 :])


def survey(model: onnx.ModelProto, inputs: Sequence[Declared], *, is_within_frame: bool = False) -> Survey:
    """Find out what can be lifted.

    Args:
        model: The graph.
        inputs: Its inputs, with the axes that the caller named.
        is_within_frame: The caller says that layers without state run across each frame: they stay as they are.
    """
    trials = find_trials(model, inputs, fed_lengths(model))
    if trials is None:
        return Survey(model, None)
    taken = _with_names(take_branches(model, trials.feeds))
    places = list(_places(taken, is_within_frame=is_within_frame))
    try:
        observed = observe(taken, trials, {name for place in places for name in place.asked})
    except ExportError:
        return Survey(taken, trials)
    reached = {value.name for value in trace(taken).values_reached() if value.name}
    view = _View(taken, trials, observed, reached)
    backward = tuple(_backward(place.node) for place in places if place.is_backward and view.follows(place))
    found = [_lift(view, places, symbol, inputs) for symbol in trials.symbols]
    order = {symbol: place for place, symbol in enumerate(trials.symbols)}
    lifts = sorted(found, key=lambda item: (len(item.states), time_likelihood(item.symbol), order[item.symbol]))
    return Survey(taken, trials, tuple(reversed(lifts)), backward, _fixed(view, places))


def _fixed(view: _View, places: Sequence[_Place]) -> tuple[int, ...]:
    layers = [place for place in places if place.lift is _lift_slots and not place.is_backward]
    found = [extent.size for place in layers if (extent := view.axis(place)) is not None and extent.is_fixed]
    return tuple(dict.fromkeys(size for size in found if size > 1))


def fed_lengths(model: onnx.ModelProto) -> set[str]:
    """Return the inputs that say to a recurrent layer how long each row is."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found = set()
    for node in model.graph.node:
        name = node.input[4] if node.op_type in RECURRENT and len(node.input) > 4 else ""
        while name in makers and makers[name].op_type in {"Cast", "Identity", "Reshape", "Squeeze"}:
            name = makers[name].input[0]
        found.add(name)
    return found & {item.name for item in model.graph.input}


# ---- where memory may be


class _Place(NamedTuple):
    """A node that may keep memory along an axis of a value."""

    node: NodeProto
    number: int
    """Its place among the nodes."""
    sequence: str
    axis: int
    is_backward: bool
    lift: Callable[[_View, _Place, _Edit, str], None]
    asked: frozenset[str]
    """Values that must be seen to tell."""
    slots: tuple[tuple[int, int], ...] = ()
    """Of each state: its place among the node's inputs and outputs."""


_CELL_SLOTS = {"LSTM": ((5, 1), (6, 2)), "DynamicQuantizeLSTM": ((5, 1), (6, 2)), "GRU": ((5, 1),), "RNN": ((5, 1),)}


def _places(model: onnx.ModelProto, *, is_within_frame: bool) -> Iterator[_Place]:
    for index, node in enumerate(model.graph.node):
        maker = _PLACES.get(node.op_type)
        for place in maker(node, index) if maker is not None else ():
            stays = is_within_frame and node.op_type in RECURRENT
            yield place._replace(lift=_lift_nothing) if stays else place


def _asked(node: NodeProto, *more: str) -> frozenset[str]:
    return frozenset(name for name in (*node.input, *node.output, *more) if name)


def _layer(node: NodeProto, index: int) -> Iterator[_Place]:
    is_backward = attribute(node, "direction") in {b"reverse", b"bidirectional"}
    yield _Place(node, index, node.input[0], 0, is_backward, _lift_slots, _asked(node), _CELL_SLOTS[node.op_type])


def _linear_attention(node: NodeProto, index: int) -> Iterator[_Place]:
    yield _Place(node, index, node.input[0], 1, False, _lift_slots, _asked(node), ((3, 1),))


def _causal_conv(node: NodeProto, index: int) -> Iterator[_Place]:
    axis = 1 if attribute(node, "channels_last") else 2
    yield _Place(node, index, node.input[0], axis, False, _lift_slots, _asked(node), ((3, 1),))


def _scan(node: NodeProto, index: int) -> Iterator[_Place]:
    num_scanned = attribute(node, "num_scan_inputs")
    assert isinstance(num_scanned, int)
    num_states = len(node.input) - num_scanned
    axes, directions = attribute(node, "scan_input_axes"), attribute(node, "scan_input_directions")
    axis = axes[0] if isinstance(axes, list) and axes else 0
    is_backward = isinstance(directions, list) and any(directions)
    slots = tuple((place, place) for place in range(num_states))
    yield _Place(node, index, node.input[num_states], axis, is_backward, _lift_slots, _asked(node), slots)


def _conv(node: NodeProto, index: int) -> Iterator[_Place]:
    kernel = attribute(node, "kernel_shape")
    if isinstance(kernel, list):
        for spatial in range(len(kernel)):
            yield _Place(node, index, node.input[0], spatial + 2, False, _lift_conv, _asked(node))


def _pad(node: NodeProto, index: int) -> Iterator[_Place]:
    for axis in range(_MOST_AXES):
        yield _Place(node, index, node.input[0], axis, False, _lift_pad, _asked(node))


def _concat(node: NodeProto, index: int) -> Iterator[_Place]:
    axis = attribute(node, "axis")
    if len(node.input) == 2 and isinstance(axis, int):
        yield _Place(node, index, node.input[1], axis, False, _lift_concat, _asked(node))


def _cum_sum(node: NodeProto, index: int) -> Iterator[_Place]:
    is_backward = bool(attribute(node, "reverse"))
    for axis in range(_MOST_AXES):
        yield _Place(node, index, node.input[0], axis, is_backward, _lift_cum_sum, _asked(node))


def _slice(node: NodeProto, index: int) -> Iterator[_Place]:
    """A slice that turns a sequence around."""
    for axis in range(_MOST_AXES):
        yield _Place(node, index, node.input[0], axis, True, _lift_nothing, _asked(node))


def _range(node: NodeProto, index: int) -> Iterator[_Place]:
    """What counts the steps of a run; only looked at."""
    yield _Place(node, index, node.output[0], 0, False, _lift_nothing, _asked(node))


def _over_axes(node: NodeProto, index: int) -> Iterator[_Place]:
    """What may be taken over all steps, as a mean is."""
    for axis in range(_MOST_AXES):
        yield _Place(node, index, node.input[0], axis, False, _note_whole, _asked(node))


def _over_last(node: NodeProto, index: int) -> Iterator[_Place]:
    yield _Place(node, index, node.input[0], -1, False, _note_whole, _asked(node))


def _attention(node: NodeProto, index: int) -> Iterator[_Place]:
    yield _Place(node, index, node.input[0], -2, False, _note_whole, _asked(node))


_MOST_AXES = 5

_REDUCTION_WORDS = """
    ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceSumSquare
    ArgMax ArgMin Softmax LogSoftmax GlobalAveragePool GlobalMaxPool InstanceNormalization GroupNormalization
    LayerNormalization MeanVarianceNormalization LpNormalization AveragePool MaxPool
"""
_REDUCTIONS = _REDUCTION_WORDS.split()

_PLACES: Mapping[str, Callable[[NodeProto, int], Iterator[_Place]]] = {
    **dict.fromkeys(RECURRENT, _layer),
    "LinearAttention": _linear_attention,
    "CausalConvWithState": _causal_conv,
    "Scan": _scan,
    "Conv": _conv,
    "Pad": _pad,
    "Concat": _concat,
    "CumSum": _cum_sum,
    "Slice": _slice,
    "ReverseSequence": _slice,
    **dict.fromkeys(_REDUCTIONS, _over_axes),
    "MatMul": _over_last,
    **dict.fromkeys(("Range", "Gather"), _range),
    **dict.fromkeys(("Attention", "MultiHeadAttention", "GroupQueryAttention"), _attention),
}


# ---- what was seen


@dataclass(frozen=True, slots=True)
class _View:
    """A graph, and the values that it computes at several sizes."""

    model: onnx.ModelProto
    trials: Trials
    observed: Observed
    reached: set[str]
    """Values that hang on the values of inputs."""

    def values(self, name: str) -> Sequence[Array]:
        """Return a value in every trial; nothing where it was not seen."""
        constant = constants(self.model.graph).get(name)
        if constant is not None:
            return [numpy_helper.to_array(constant)] * len(self.trials.feeds)
        if name in self.trials.feeds[0]:
            return [feeds[name] for feeds in self.trials.feeds]
        return self.observed.get(name, ())

    def extents(self, name: str) -> tuple[Extent, ...]:
        arrays = self.values(name)
        return (extents(arrays, self.trials) or ()) if arrays else ()

    def axis(self, place: _Place) -> Extent | None:
        found = self.extents(place.sequence)
        axis = place.axis + len(found) if place.axis < 0 else place.axis
        return found[axis] if axis < len(found) else None

    def follows(self, place: _Place) -> bool:
        """Whether a node reads a free axis as a sequence; of a slice, whether it turns it around."""
        extent = self.axis(place)
        if extent is None or extent.symbol is None:
            return False
        return place.node.op_type not in _TURNS or self._is_turned(place)

    def _is_turned(self, place: _Place) -> bool:
        before, after = self.values(place.sequence), self.values(place.node.output[0])
        return bool(before and after) and all(
            x.shape == y.shape and x.shape[place.axis] > 1 and np.array_equal(np.flip(x, place.axis), y)
            for x, y in zip(before, after, strict=True)
        )

    def constant(self, name: str) -> Array | None:
        """Return a value that hangs on no input and no size."""
        arrays = self.values(name)
        if not arrays or name in self.reached:
            return None
        return arrays[0] if all(np.array_equal(array, arrays[0]) for array in arrays) else None


# ---- taking it out


@dataclass(slots=True)
class _Edit:
    """A copy of the graph that is being changed: nodes in front of, in place of, and behind the old ones."""

    graph: onnx.GraphProto
    opset: int
    taken: set[str]
    before: dict[int, list[NodeProto]] = field(default_factory=dict)
    instead: dict[int, list[NodeProto]] = field(default_factory=dict)
    behind: list[NodeProto] = field(default_factory=list)
    states: list[LiftedState] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    has_layers: bool = False

    def fresh(self, name: str) -> str:
        """Return a name that nothing has yet."""
        found, count = name, 1
        while found in self.taken:
            count += 1
            found = f"{name}.{count}"
        self.taken.add(found)
        return found

    def constant(self, name: str, *values: int) -> str:
        found = self.fresh(name)
        self.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), found))
        return found

    def cut(self, source: str, target: str, axis: int, start: int, stop: int = _LAST) -> NodeProto:
        if self.opset < _OPSET_OF_SLICE_INPUTS:
            return helper.make_node("Slice", [source], [target], axes=[axis], starts=[start], ends=[stop])
        words = (("start", start), ("stop", stop), ("axis", axis))
        bounds = [self.constant(f"{target}/{word}", value) for word, value in words]
        return helper.make_node("Slice", [source, *bounds], [target])

    def state(self, owner: str, kind: str, inside: tuple[Extent, ...], first: Array, index: int) -> tuple[str, str]:
        """Add the two ends of a state; return the names by which the graph reads it, and gives it back.

        Args:
            owner: The node that it is taken out of, as a person finds it.
            kind: What it is called there.
            inside: Its axes in the graph. One of several elements per row of a batch is split in two outside.
            first: What it begins with, in the graph, batch axis of size 1 (or so many elements as a row has).
            index: The node in front of which it is read.
        """
        stem = f"lifted.{len(self.states)}.{kind}"
        source, target = self.fresh(f"{stem}_in"), self.fresh(f"{stem}_out")
        dims: list[int | str] = []
        for extent in inside:
            factor = int(extent.factor)
            dims += [extent.size] if extent.symbol is None else [extent.symbol, *([factor] if factor > 1 else [])]
        folded = next((axis for axis, extent in enumerate(inside) if extent.symbol and extent.factor > 1), None)
        if folded is None:
            outside, value = target, first
            read = source
        else:
            read, outside = self.fresh(f"{source}/folded"), self.fresh(f"{target}/folded")
            factor = int(inside[folded].factor)
            value = first.reshape(*first.shape[:folded], 1, factor, *first.shape[folded + 1 :])
            joined = [-1 if axis == folded else extent.size for axis, extent in enumerate(inside)]
            split = [size for axis, size in enumerate(joined) for size in ([-1, factor] if axis == folded else [size])]
            self.before.setdefault(index, []).append(
                helper.make_node("Reshape", [source, self.constant(f"{read}/shape", *joined)], [read])
            )
            self.behind.append(
                helper.make_node("Reshape", [outside, self.constant(f"{outside}/shape", *split)], [target])
            )
        kind_ = helper.np_dtype_to_tensor_dtype(first.dtype)
        free = [None if isinstance(dim, str) else dim for dim in dims]
        self.graph.input.append(helper.make_tensor_value_info(source, kind_, free))
        self.graph.output.append(helper.make_tensor_value_info(target, kind_, free))
        self.states.append(LiftedState(source, target, tuple(dims), value, f"lifted out of {owner}"))
        return read, outside

    def done(self) -> None:
        """Put the nodes in their places."""
        nodes = [
            node
            for index, old in enumerate(self.graph.node)
            for node in (*self.before.get(index, ()), *self.instead.get(index, (old,)))
        ]
        del self.graph.node[:]
        self.graph.node.extend([*nodes, *self.behind])


_OPSET_OF_SLICE_INPUTS = 10


def _lift(view: _View, places: Sequence[_Place], symbol: str, inputs: Sequence[Declared]) -> Lifted:
    """Take out all memory along `symbol`."""
    model = copied(view.model)
    opset = next((item.version for item in model.opset_import if item.domain in {"", "ai.onnx"}), 0)
    edit = _Edit(model.graph, opset, _names(model.graph))
    for place in places:
        extent = view.axis(place)
        is_noted = place.lift is _note_whole and extent is not None and extent.symbol == symbol
        if extent is None or not (extent.is_along(symbol) or is_noted):
            continue
        if place.is_backward:
            if view.follows(place):
                edit.kept.append(_backward(place.node))
            continue
        place.lift(view, place, edit, symbol)
    edit.kept += _by_run(view, symbol)
    edit.done()
    rows = dict.fromkeys(dim for state in edit.states for dim in state.dims if isinstance(dim, str))
    names = {symbol: TIME} | dict.fromkeys(rows, BATCH)
    classes = {name: view.trials.symbol_of(name) for name in view.trials.classing}
    meant = {name: names[one] for name, one in classes.items() if one in names}
    states = [replace(state, dims=_renamed(state.dims, meant)) for state in edit.states]
    data = [replace(item, dims=_renamed(item.dims or (), meant)) for item in inputs]
    row = next(iter(rows), None)
    return Lifted(model, symbol, tuple(data), row, tuple(states), edit.has_layers, tuple(edit.kept))


def _by_run(view: _View, symbol: str) -> Iterator[str]:
    """Yield what hangs on a whole run: positions that are counted from its beginning, and decisions."""
    for node in view.model.graph.node:
        if node.op_type == "If":
            by = "the data of a whole run" if node.input[0] in view.reached else "how many steps a run has"
            yield f"{called(node)} decides by {by}"
        elif node.op_type == "Loop" and any(name in view.reached for name in node.input[:2]):
            yield f"{called(node)} turns as often as the values of a whole run say"
        elif node.op_type in _SCALED_BY_RUN:
            yield f"{called(node)} takes its int8 scales over a whole run: export in fp32 or with fixed scales"
        elif node.op_type in _COUNTS and not view.reached & set(node.output):
            arrays, seen = view.values(node.output[0]), view.extents(node.output[0])
            if any(extent.is_along(symbol) and _is_uneven(arrays[0], axis) for axis, extent in enumerate(seen)):
                yield f"{called(node)} counts steps from the beginning of each run"


_SCALED_BY_RUN = ("DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul")
_COUNTS = ("Range", "Slice", "Gather", "CumSum")


def _is_uneven(array: Array, axis: int) -> bool:
    return not np.array_equal(array, np.roll(array, 1, axis))


def _renamed(dims: Dims, names: Mapping[str, str]) -> Dims:
    """Return axes by the names of what they are known to be; of two that were one, the first."""
    found: list[int | str] = []
    for dim in dims:
        name = names.get(dim, dim) if isinstance(dim, str) else dim
        found.append(dim if name in found and isinstance(name, str) else name)
    return tuple(found)


def _backward(node: NodeProto) -> str:
    if attribute(node, "direction") == b"bidirectional":
        return f"{called(node)} is bidirectional"
    return f"{called(node)} {'turns the sequence around' if node.op_type in _TURNS else 'runs backward'}"


_TURNS = ("Slice", "ReverseSequence")


def _lift_nothing(view: _View, place: _Place, edit: _Edit, symbol: str) -> None:
    """Of what merely is looked at."""


def _note_whole(view: _View, place: _Place, edit: _Edit, symbol: str) -> None:
    """Note what is taken over all steps."""
    node, rank = place.node, len(view.extents(place.sequence))
    if node.op_type in _POOLS:
        kernel = attribute(node, "kernel_shape")
        size = kernel[place.axis - 2] if isinstance(kernel, list) and 2 <= place.axis < len(kernel) + 2 else 1
        if size > 1:
            edit.kept.append(f"{called(node)} is taken over {size} steps")
    elif place.axis < 0 or place.axis in _axes_over(view, node, rank):
        edit.kept.append(f"{called(node)} is taken over all steps")


_POOLS = ("AveragePool", "MaxPool")


def _axes_over(view: _View, node: NodeProto, rank: int) -> set[int]:
    """Return the axes that a node takes something over."""
    if node.op_type in {"GlobalAveragePool", "GlobalMaxPool", "InstanceNormalization", "GroupNormalization"}:
        return set(range(2, rank))
    axes = attribute(node, "axes")
    if isinstance(axes, list):
        return {int(axis) % rank for axis in axes}
    axis = attribute(node, "axis")
    if isinstance(axis, int):
        return set(range(axis % rank, rank)) if node.op_type == "LayerNormalization" else {axis % rank}
    if node.op_type.startswith("Reduce"):
        given = view.constant(node.input[1]) if len(node.input) > 1 and node.input[1] else None
        return set(range(rank)) if given is None else {int(each) % rank for each in given.flat}
    return {0} if node.op_type.startswith("Arg") else {rank - 1}


def _lift_slots(view: _View, place: _Place, edit: _Edit, symbol: str) -> None:
    """Take out the states of a node that has places for them."""
    node = edit.graph.node[place.number]
    for source, target in place.slots:
        name = node.input[source] if len(node.input) > source else ""
        if name in view.trials.feeds[0]:  # it is an input already
            continue
        inside = view.extents(node.output[target])
        last = view.values(node.output[target])
        if not _can_be_state(inside, symbol) or not last:
            edit.kept.append(f"the state of {called(node)} has a size that changes with the number of steps")
            continue
        first = _first(view, name, inside, last[0].dtype)
        if first is None:
            continue
        kind = ("h", "c")[source - 5] if node.op_type in RECURRENT else "state"
        read, outside = edit.state(called(node), kind, inside, first, place.number)
        edit.has_layers = True
        while len(node.input) <= source:
            node.input.append("")
        node.input[source] = read
        edit.behind.insert(0, helper.make_node("Identity", [node.output[target]], [outside]))


def _first(view: _View, name: str, inside: Sequence[Extent], dtype: np.dtype) -> Array | None:
    """Return what a state begins with, the same in every row and for every size; None where there is no such thing."""
    shape = [int(extent.factor) if extent.symbol else extent.size for extent in inside]
    if not name:
        return np.zeros(shape, dtype)
    if name in view.reached:
        return None
    values = view.values(name)
    if not values:
        return None
    rows = [_row(array, inside, shape) for array in values]
    firsts = [row for row in rows if row is not None and np.array_equal(row, row if rows[0] is None else rows[0])]
    if len(firsts) < len(rows) or not np.isfinite(firsts[0]).all():
        return None
    return firsts[0].astype(dtype)


def _row(array: Array, inside: Sequence[Extent], shape: Sequence[int]) -> Array | None:
    """Return one row of what states begin with; None where rows differ."""
    if array.ndim != len(shape):
        return None
    first = array
    for axis, extent in enumerate(inside):
        if extent.symbol:
            first = first.take(range(min(shape[axis], first.shape[axis])), axis)
    is_one = list(first.shape) == list(shape) and np.array_equal(array, _repeated(first, array.shape))
    return first if is_one else None


def _repeated(first: Array, shape: Sequence[int]) -> Array:
    return np.tile(first, [math.ceil(size / own) for size, own in zip(shape, first.shape, strict=True)])


def _can_be_state(inside: Sequence[Extent], symbol: str) -> bool:
    """Whether a value's axes are fixed, but for one that follows the batch."""
    free = [extent for extent in inside if not extent.is_fixed]
    is_sound = all(
        extent.symbol not in {None, symbol}
        and not extent.is_mixed
        and not extent.offset
        and extent.factor.denominator == 1
        for extent in free
    )
    size = math.prod(extent.size for extent in inside if extent.is_fixed)
    return len(free) <= 1 and is_sound and size <= _MOST_STATE


# ---- paddings in front


class _Padding(NamedTuple):
    """What is put in front of a sequence, and cut off at its end."""

    size: int
    value: float
    cropped: int = 0


def _cache(view: _View, place: _Place, edit: _Edit, symbol: str, source: str, padding: _Padding) -> str | None:
    """Put the last steps in front of `source`; return the name of the whole, None where they cannot be a state."""
    seen = view.extents(source)
    arrays = view.values(source)
    if not seen or not arrays:
        return None
    axis = place.axis + len(seen) if place.axis < 0 else place.axis
    inside = tuple(Extent(padding.size) if at == axis else extent for at, extent in enumerate(seen))
    owner = called(place.node)
    if not _can_be_state(inside, symbol):
        edit.kept.append(f"{owner} looks {padding.size} steps back, over an axis of which the size changes")
        return None
    shape = [int(extent.factor) if extent.symbol else extent.size for extent in inside]
    first = np.full(shape, padding.value, arrays[0].dtype)
    read, outside = edit.state(owner, "cache", inside, first, place.number)
    whole = edit.fresh(f"{read}/whole")
    edit.before.setdefault(place.number, []).append(helper.make_node("Concat", [read, source], [whole], axis=axis))
    edit.behind.insert(0, edit.cut(whole, outside, axis, -padding.size))
    return whole


def _lift_conv(view: _View, place: _Place, edit: _Edit, symbol: str) -> None:
    """Make a cache of what a convolution pads in front; what it pads behind must be cut off again."""
    node = edit.graph.node[place.number]
    pads, kernel = _pads(node), attribute(node, "kernel_shape")
    if pads is None or not isinstance(kernel, list):
        return
    spatial, count = place.axis - 2, len(kernel)
    front, back = pads[spatial], pads[spatial + count]
    if front <= 0 and back <= 0:
        return
    stride = _strides(node, count)[spatial]
    if stride != 1:
        edit.kept.append(f"{called(node)} gives one step for every {stride}")
        return
    chomped = _chomped(view, edit, place, back) if back > 0 else None
    if back > 0 and chomped is None:
        edit.kept.append(f"{called(node)} looks {_steps(back)} ahead")
        return
    if front > 0:
        whole = _cache(view, place, edit, symbol, node.input[0], _Padding(front, 0.0))
        if whole is None:
            return
        node.input[0] = whole
    pads[spatial] = pads[spatial + count] = 0
    _set_pads(node, pads)
    if chomped is not None:
        cut = edit.graph.node[chomped]
        edit.instead[chomped] = [helper.make_node("Identity", [cut.input[0]], [cut.output[0]])]


def _pads(node: NodeProto) -> list[int] | None:
    """Return a convolution's paddings, in front of all spatial axes, then behind; None where they hang on the sizes."""
    kernel = attribute(node, "kernel_shape")
    assert isinstance(kernel, list)
    count = len(kernel)
    given, way = attribute(node, "pads"), attribute(node, "auto_pad")
    if way in {None, b"NOTSET"}:
        return list(given) if isinstance(given, list) else [0] * 2 * count
    if way == b"VALID":
        return [0] * 2 * count
    if any(size != 1 for size in _strides(node, count)):
        return None
    dilations = attribute(node, "dilations")
    spread = dilations if isinstance(dilations, list) else [1] * count
    totals = [step * (size - 1) for step, size in zip(spread, kernel, strict=True)]
    less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return [*more, *less] if way == b"SAME_LOWER" else [*less, *more]


def _strides(node: NodeProto, count: int) -> list[int]:
    strides = attribute(node, "strides")
    return strides if isinstance(strides, list) else [1] * count


def _set_pads(node: NodeProto, pads: Sequence[int]) -> None:
    rest = [item for item in node.attribute if item.name not in {"pads", "auto_pad"}]
    del node.attribute[:]
    node.attribute.extend([*rest, helper.make_attribute("pads", list(pads))])


def _chomped(view: _View, edit: _Edit, place: _Place, size: int) -> int | None:
    """Return the only node that reads a convolution's result, if it cuts off the last `size` steps."""
    result = place.node.output[0]
    readers = [index for index, node in enumerate(view.model.graph.node) if result in node.input]
    if len(readers) != 1 or result in {item.name for item in view.model.graph.output}:
        return None
    reader = view.model.graph.node[readers[0]]
    whole, rest = view.observed.get(result, ()), _output_of(view, reader)
    if reader.op_type != "Slice" or not whole or not rest:
        return None
    is_cut = all(
        np.array_equal(x.take(range(x.shape[place.axis] - size), place.axis), y)
        for x, y in zip(whole, rest, strict=True)
    )
    return readers[0] if is_cut else None


def _output_of(view: _View, node: NodeProto) -> Sequence[Array]:
    return view.observed.get(node.output[0], ())


def _lift_pad(view: _View, place: _Place, edit: _Edit, symbol: str) -> None:
    """Make a cache of what a Pad puts in front; it may cut as much off at the end, as a delay does."""
    node = edit.graph.node[place.number]
    seen = view.extents(node.input[0])
    pads = _pad_sizes(view, node, len(seen))
    if pads is None or place.axis >= len(seen):
        if pads is None and place.axis == 0:
            edit.kept.append(f"{called(node)} pads by a number that is computed")
        return
    front, back = pads[place.axis], pads[place.axis + len(seen)]
    if front == 0 and back <= 0:
        return
    if back > 0 or front < 0:
        edit.kept.append(f"{called(node)} looks {_steps(max(back, -front))} ahead")
        return
    if attribute(node, "mode") not in {None, b"constant"}:
        mode = attribute(node, "mode")
        told = mode.decode() if isinstance(mode, bytes) else str(mode)
        edit.kept.append(f"{called(node)} pads {_steps(front)} in front by mode {told}, not by a constant")
        return
    value = _pad_value(view, node)
    if value is None or front < -back:
        return
    whole = _cache(view, place, edit, symbol, node.input[0], _Padding(front, value))
    if whole is None:
        return
    pads[place.axis] = 0
    rest = _rest_of_pad(edit, node, whole, pads)
    edit.instead[place.number] = rest


def _pad_sizes(view: _View, node: NodeProto, rank: int) -> list[int] | None:
    given = attribute(node, "pads")
    if isinstance(given, list):
        return list(given)
    sizes = view.constant(node.input[1]) if len(node.input) > 1 else None
    if sizes is None:
        return None
    axes = list(range(rank))
    if len(node.input) > 3 and node.input[3]:
        told = view.constant(node.input[3])
        if told is None:
            return None
        axes = [int(axis) % rank for axis in told]
    pads = [0] * 2 * rank
    for place, axis in enumerate(axes):
        pads[axis], pads[axis + rank] = int(sizes[place]), int(sizes[place + len(axes)])
    return pads


def _pad_value(view: _View, node: NodeProto) -> float | None:
    given = attribute(node, "value")
    if isinstance(given, float):
        return given
    if len(node.input) < 3 or not node.input[2]:
        return 0.0
    value = view.constant(node.input[2])
    return None if value is None or value.size != 1 or not np.isfinite(value).all() else float(value.flat[0])


def _rest_of_pad(edit: _Edit, node: NodeProto, whole: str, pads: Sequence[int]) -> list[NodeProto]:
    """Return the Pad of what is left to pad, or to cut off."""
    if not any(pads):
        return [helper.make_node("Identity", [whole], [node.output[0]])]
    rest = copied_node(node)
    rest.input[0] = whole
    if attribute(node, "pads") is not None:
        kept = [item for item in rest.attribute if item.name != "pads"]
        del rest.attribute[:]
        rest.attribute.extend([*kept, helper.make_attribute("pads", list(pads))])
    else:
        rest.input[1] = edit.constant(f"{whole}/pads", *pads)
        del rest.input[3:]
    return [rest]


def _lift_concat(view: _View, place: _Place, edit: _Edit, symbol: str) -> None:
    """Make a cache of constant steps that are put in front of others, of which the last may have been cut off."""
    node = edit.graph.node[place.number]
    name, source = node.input
    blanks, seen = view.extents(name), view.extents(source)
    axis = place.axis + len(seen) if place.axis < 0 else place.axis
    if name in view.reached or len(blanks) != len(seen) or not blanks[axis].is_fixed:
        return
    inside = tuple(blanks[axis] if at == axis else extent for at, extent in enumerate(seen))
    dtype = view.values(name)[0].dtype
    first = _first(view, name, inside, dtype) if _can_be_state(inside, symbol) else None
    if first is None:
        edit.kept.append(f"{called(node)} puts {_steps(blanks[axis].size)} in front")
        return
    source, cropped = _uncut(view, source, axis)
    size = blanks[axis].size
    if cropped > size:
        return
    read, outside = edit.state(called(node), "cache", inside, first, place.number)
    whole = edit.fresh(f"{read}/whole")
    joined = helper.make_node("Concat", [read, source], [whole], axis=axis)
    edit.behind.insert(0, edit.cut(whole, outside, axis, -size))
    if cropped:
        edit.instead[place.number] = [joined, edit.cut(whole, node.output[0], axis, 0, -cropped)]
    else:
        edit.instead[place.number] = [joined, helper.make_node("Identity", [whole], [node.output[0]])]


def _uncut(view: _View, name: str, axis: int) -> tuple[str, int]:
    """Return what a Slice cut the last steps off of, and how many."""
    maker = next((node for node in view.model.graph.node if name in node.output), None)
    if maker is None or maker.op_type != "Slice":
        return name, 0
    before, after = view.values(maker.input[0]), view.values(name)
    if not before or not after or before[0].ndim != after[0].ndim:
        return name, 0
    size = before[0].shape[axis] - after[0].shape[axis]
    is_cut = size > 0 and all(
        np.array_equal(x.take(range(x.shape[axis] - size), axis), y) for x, y in zip(before, after, strict=True)
    )
    return (maker.input[0], size) if is_cut else (name, 0)


def _lift_cum_sum(view: _View, place: _Place, edit: _Edit, symbol: str) -> None:
    """Carry the sum so far: it goes in front of the next steps, as if it were one."""
    node = edit.graph.node[place.number]
    told = view.constant(node.input[1])
    seen, arrays = view.extents(node.input[0]), view.values(node.input[0])
    if told is None or not seen or int(told.flat[0]) % len(seen) != place.axis or arrays[0].dtype.kind != "f":
        return
    inside = tuple(Extent(1) if at == place.axis else extent for at, extent in enumerate(seen))
    if not _can_be_state(inside, symbol):
        edit.kept.append(f"{called(node)} sums over an axis beside one of which the size changes")
        return
    shape = [int(extent.factor) if extent.symbol else extent.size for extent in inside]
    read, outside = edit.state(called(node), "sum", inside, np.zeros(shape, arrays[0].dtype), place.number)
    whole, sums = edit.fresh(f"{read}/whole"), edit.fresh(f"{read}/sums")
    is_exclusive = bool(attribute(node, "exclusive"))
    bounds = (0, -1) if is_exclusive else (1, _LAST)
    edit.instead[place.number] = [
        helper.make_node("Concat", [read, node.input[0]], [whole], axis=place.axis),
        helper.make_node("CumSum", [whole, node.input[1]], [sums]),
        edit.cut(sums, node.output[0], place.axis, *bounds),
    ]
    edit.behind.insert(0, edit.cut(sums, outside, place.axis, -1))


# ---- names


def _with_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with a name for every last state of its layers, so that it can be seen and taken out."""
    named = copied(model)
    taken = _names(named.graph)
    for index, node in enumerate(named.graph.node):
        for _, target in _slots_of(node):
            while len(node.output) <= target:
                node.output.append("")
            if not node.output[target]:
                node.output[target] = f"lifted/{index}/{target}"
                assert node.output[target] not in taken
    return named


def _slots_of(node: NodeProto) -> Sequence[tuple[int, int]]:
    if node.op_type in {"LinearAttention", "CausalConvWithState"}:
        return ((3, 1),)
    return _CELL_SLOTS.get(node.op_type, ())


def _names(graph: onnx.GraphProto) -> set[str]:
    return {name for node in graph.node for name in (*node.input, *node.output)} | {
        item.name for items in (graph.input, graph.initializer) for item in items
    }


def copied_node(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _steps(number: int) -> str:
    return "1 step" if number == 1 else f"{number} steps"
