"""How far a graph can look back outside of its states, read off the graph: the proof's sequences are longer than that.

Every number of a graph that can act along time counts: a convolution's kernel and dilation, bounds of Slice, Pad and
Gather, sizes of tables that positions index, numbers that lengths, positions and counters are compared with, numbers of
turns of a Loop. Numbers of nodes behind each other are added up. Which axes grow with the time is not derived but
seen: the graph runs at three lengths with every inner tensor as an output. Within the bodies of Loop and If nothing is
seen, and every axis may be time. The result is an upper bound: too large a number makes a proof longer, never wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tidegate.bundle import Manifest
from tidegate.engine.runner import lengths_input
from tidegate.errors import BundleError
from tidegate.onnx_graph import Constant, Graph, Node, read_graph, with_outputs
from tidegate.ort import FAILURES, load_session
from tidegate.replay import Array, initial_states, random_inputs

MOST_COUNTED = 4096
"""Steps up to which a counter is counted up from the first step; a larger number is approached from just below."""

_LENGTHS = (24, 17, 9)
_SMALL = 4096
"""Elements of a tensor whose numbers are looked at."""
_MOST_OFFSETS = 4
"""Numbers added to a counter that are looked at, the largest first."""
_LOUD = 100.0
"""Beyond it, a number that is added to data lies outside of what random data has."""
_ENDLESS = float(2**31 - 2)
"""What exporters write for "to the end"."""

_MOVES = {
    "Identity", "Cast", "CastLike", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Tile", "Flatten",
    "Slice", "Gather", "GatherND", "GatherElements", "Concat", "Split", "Pad", "Scatter", "ScatterND",
    "ScatterElements", "SequenceAt", "SequenceConstruct", "SplitToSequence", "ConcatFromSequence", "DepthToSpace",
    "SpaceToDepth",
}  # fmt: skip
"""What moves numbers and changes none."""
_ARITHMETIC = {
    "Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Clip", "Neg", "Abs", "Floor", "Ceil", "Round", "Sum", "Mean",
    "CumSum", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceMean", "ReduceL1", "Range", "BitShift", "Relu", "PRelu",
}  # fmt: skip
_ORDERS = {"Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Equal"}
_MEETS = {*_ORDERS, "Min", "Max", "Clip", "Mod", "Add", "Sub", "Div", "Mul", "Sum", "Range", "Where"}
"""Where a number of the graph may be a limit of what is counted."""
_SUMS = {"CumSum", "ReduceSum", "ReduceL1", "ReduceSumSquare", "ArgMax", "ArgMin", "NonZero"}
_CURVES = {
    "Sqrt", "Pow", "Log", "Exp", "Sin", "Cos", "Tan", "Sinh", "Cosh", "Tanh", "Sigmoid", "Erf", "Softplus", "Softsign",
    "Reciprocal", "Elu", "Selu", "HardSigmoid", "Gelu", "Atan", "Asinh", "Sign",
}  # fmt: skip
"""What makes of a number of steps one whose limits cannot be told: they count as `MOST_COUNTED` steps."""
_ROUNDS = {"Floor", "Ceil", "Round", "Cast"}
_FORWARDS_ANYTHING = {"Shape", "Size"}
_CONVOLUTIONS = {
    "Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "FusedConv": 1, "NhwcFusedConv": 1, "QLinearConv": 3,
    "DeformConv": 1, "CausalConvWithState": 1,
}  # fmt: skip
"""Operator → which of its inputs is the kernel."""
_POOLS = {"MaxPool", "AveragePool", "LpPool", "QLinearAveragePool", "Col2Im", "MaxUnpool"}
_SHAPERS = {"Range", "ConstantOfShape", "Expand", "Tile", "Pad", "Slice", "Split", "TopK", "OneHot", "Reshape"}
"""What makes tensors of a size that its inputs tell."""
_RECURRENT = {"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"}
_NO_SPAN = {
    "axis", "axes", "keepdims", "to", "perm", "hidden_size", "num_heads", "kv_num_heads", "q_num_heads", "group",
    "groups", "batch_dims", "direction", "linear_before_reset", "layout", "input_forget", "transA", "transB",
    "exclusive", "reverse", "allowzero", "saturate", "largest", "sorted", "select_last_index", "fmod", "interleaved",
    "noop_with_empty_axes", "channels_last", "rotary_embedding_dim", "unidirectional", "do_rotary", "stash_type",
    "block_size", "K", "N", "bits", "accuracy_level", "training_mode", "num_groups", "dtype", "num_outputs", "scale",
    "output_dtype", "is_causal", "is_packed_batching", "num_scan_inputs", "onesided", "inverse", "sample_size",
}  # fmt: skip
"""Whole-number attributes that are no distances."""


@dataclass(frozen=True, slots=True)
class Reach:
    """What an analysis found."""

    steps: int = 0
    """No memory outside of the states reaches back more steps than this."""
    why: str = ""
    """The largest number that counts, and its node."""
    unbounded: str = ""
    """Why there is no such bound; empty where there is one."""
    marks: tuple[int, ...] = ()
    """The single numbers of steps: the proof cuts there."""
    vocabularies: Mapping[str, int] = field(default_factory=dict)
    """Of inputs that index a table: its size."""
    landmarks: tuple[float, ...] = ()
    """Numbers that values of the data are compared with."""
    counters: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Of states that are compared: numbers that they are compared with, or the sizes of tables that they index."""


def analyse(graph: bytes, manifest: Manifest) -> Reach:
    """Find out how far `graph` reaches.

    Raises:
        BundleError: It is not an ONNX file.
    """
    try:
        read = read_graph(graph)
    except ValueError as error:
        raise BundleError(f"onnxruntime refuses the graph: {error}") from error
    seen = _seen(graph, read, manifest)
    counting = frozenset(state.input for state in manifest.states)
    while True:
        analysis = _Analysis(manifest, seen, counting)
        found = analysis.walk_main(read)
        uncounted = {state.input for state in manifest.states if found[state.output].has_data} & counting
        if not uncounted:
            return analysis.result()
        counting -= uncounted


# ---- what is seen


@dataclass(frozen=True, slots=True)
class _Seen:
    """Of one tensor: its shapes at `_LENGTHS`, and its numbers where there are few."""

    shapes: tuple[tuple[int, ...], ...]
    values: tuple[Array, ...] | None
    dtype: np.dtype[np.generic]

    def rate(self, axis: int) -> float | None:
        """Return how many steps an element along `axis` stands for; None where the axis does not grow with time."""
        sizes = [shape[axis] if -len(shape) <= axis < len(shape) else 1 for shape in self.shapes]
        if len(set(sizes)) == 1:
            return None
        return (_LENGTHS[0] - _LENGTHS[-1]) / max(1, abs(sizes[0] - sizes[-1]))

    @property
    def rates(self) -> list[float]:
        return [rate for axis in range(len(self.shapes[0])) if (rate := self.rate(axis)) is not None]

    def offsets(self) -> list[float] | None:
        """Return of each number what is left of it without what is proportional to the length."""
        if self.values is None or len({value.shape for value in self.values}) != 1:
            return None
        first, middle, last = (value.astype(np.float64).ravel() for value in self.values)
        slope = np.round((first - last) / (_LENGTHS[0] - _LENGTHS[-1]), 9)
        rest = last - slope * _LENGTHS[-1]
        is_linear = np.isclose(middle - slope * _LENGTHS[1], rest)
        return [
            float(value) for value in np.where(is_linear, np.abs(rest), np.abs(np.stack([first, middle, last])).max(0))
        ]


def _seen(model: bytes, graph: Graph, manifest: Manifest) -> dict[str, _Seen]:
    """Run the graph at three lengths with all tensors as outputs; nothing where that cannot be done."""
    names = {spec.name for spec in manifest.sources} | {state.input for state in manifest.states}
    inner = [name for node in graph.nodes for name in node.outputs if name]
    rng = np.random.default_rng(0)
    found: dict[str, list[Array]] = {}
    try:
        session = load_session(
            with_outputs(model, [name for name in inner if name not in graph.outputs]), is_optimised=False
        )
        lengths = lengths_input(session, manifest.lengths)
        for steps in _LENGTHS:
            feeds = {**random_inputs(manifest, 1, steps, rng), **initial_states(manifest, 1)}
            if lengths is not None:
                feeds[lengths[0]] = np.full(1, steps, lengths[1])
            for name, value in zip(inner, session.run(inner, feeds), strict=True):
                if isinstance(value, np.ndarray | np.generic):
                    found.setdefault(name, []).append(np.asarray(value))
            for name in names:
                found.setdefault(name, []).append(np.asarray(feeds[name]))
    except (*FAILURES, MemoryError, ValueError):
        return {}
    return {
        name: _Seen(
            tuple(value.shape for value in values),
            tuple(value.copy() for value in values) if max(value.size for value in values) <= _SMALL else None,
            values[0].dtype,
        )
        for name, values in found.items()
        if len(values) == len(_LENGTHS) and len({value.ndim for value in values}) == 1
    }


# ---- what is derived


@dataclass(frozen=True, slots=True)
class _Info:
    """What a tensor depends on."""

    back: float = 0.0
    """Steps that the numbers on the way to it add up to."""
    has_data: bool = False
    """On values of the data, or of states that hold what came of them."""
    has_position: bool = False
    """It counts: on the length, a position in the chunk, a counter."""
    counters: frozenset[str] = frozenset()
    """States whose numbers it has, moved or added to."""
    gain: float = 1.0
    """What one step more adds to it."""
    is_curved: bool = False
    """It grows otherwise than evenly."""
    ids: frozenset[str] = frozenset()
    """Inputs whose numbers it has, only moved."""
    value: Array | None = None
    """Its numbers, of a constant."""
    size: tuple[int, ...] | None = None
    """Its shape, of a constant."""

    @property
    def is_constant(self) -> bool:
        return not (self.has_data or self.has_position or self.counters)

    def merged(self, other: _Info) -> _Info:
        """Return what holds where it may be either."""
        return _Info(
            max(self.back, other.back),
            self.has_data or other.has_data,
            self.has_position or other.has_position,
            self.counters | other.counters,
            min(self.gain, other.gain),
            self.is_curved or other.is_curved,
            self.ids | other.ids,
        )


_NOTHING = _Info()


class _Analysis:
    """One walk over a graph, given which states count steps and nothing else."""

    def __init__(self, manifest: Manifest, seen: Mapping[str, _Seen], counting: frozenset[str]) -> None:
        self._manifest = manifest
        self._seen = seen
        self._counting = counting
        self._marks: dict[float, str] = {}
        self._unbounded = ""
        self._vocabularies: dict[str, int] = {}
        self._landmarks: set[float] = set()
        self._counters: dict[str, set[float]] = {}
        self._offsets: dict[str, set[float]] = {}
        self._most = 0.0

    def walk_main(self, graph: Graph) -> dict[str, _Info]:
        scope: dict[str, _Info] = {}
        scope |= {spec.name: _Info(has_data=True) for spec in self._manifest.settings}
        scope |= {spec.name: _Info(has_data=True, ids=frozenset({spec.name})) for spec in self._manifest.inputs}
        for state in self._manifest.states:
            own = frozenset({state.input})
            counts = state.input in self._counting
            scope[state.input] = _Info(has_data=not counts, has_position=counts, counters=own)
        if self._manifest.lengths is not None:
            scope[self._manifest.lengths] = _Info(has_position=True)
        found = self._walk(graph, scope, is_timeless=False)
        self._most = max([info.back for name, info in found.items() if name in graph.outputs], default=0.0)
        return found

    def result(self) -> Reach:
        steps = math.ceil(self._most)
        return Reach(
            steps=steps,
            why=self._marks[max(self._marks)] if self._marks else "",
            unbounded=self._unbounded,
            marks=tuple(sorted({math.ceil(mark) for mark in self._marks if mark > 1})),
            vocabularies=dict(self._vocabularies),
            landmarks=tuple(sorted(self._landmarks)),
            counters={name: self._starts(name, values) for name, values in self._counters.items()},
        )

    def _starts(self, name: str, limits: set[float]) -> tuple[float, ...]:
        """Limits of a counter, and what it is itself where it meets them with a number added."""
        offsets = sorted(self._offsets.get(name, set()), key=abs, reverse=True)[:_MOST_OFFSETS]
        moved = {limit + sign * offset for limit in limits for offset in offsets for sign in (-1, 1)}
        return tuple(sorted(limits | moved))

    def _walk(self, graph: Graph, scope: Mapping[str, _Info], *, is_timeless: bool) -> dict[str, _Info]:
        found = dict(scope)
        for name, constant in graph.constants.items():
            found.setdefault(name, _constant_info(constant))
        for node in graph.nodes:
            view = _View(self, node, found, is_timeless=is_timeless, seen=self._seen)
            found |= {name: info for name, info in zip(node.outputs, view.outputs(), strict=False) if name}
        return found

    # ---- what a view reports

    def mark(self, steps: float, node: Node, what: str) -> None:
        if steps > 0:
            self._marks.setdefault(steps, f"{what} of {node.operator} {(node.name or node.outputs[0])!r}")

    def refuse(self, node: Node, why: str) -> None:
        self._unbounded = self._unbounded or f"{node.operator} {(node.name or node.outputs[0])!r} {why}"

    def index(self, inputs: Iterable[str], size: int) -> None:
        for name in inputs:
            self._vocabularies[name] = min(size, self._vocabularies.get(name, size))

    def landmark(self, values: Iterable[float]) -> None:
        self._landmarks.update(values)

    def count(self, states: Iterable[str], values: Iterable[float]) -> None:
        for name in states:
            self._counters.setdefault(name, set()).update(values)

    def offset(self, states: Iterable[str], values: Iterable[float]) -> None:
        for name in states:
            self._offsets.setdefault(name, set()).update(values)

    def body(self, graph: Graph, scope: Mapping[str, _Info], *, is_timeless: bool) -> dict[str, _Info]:
        return self._walk(graph, scope, is_timeless=is_timeless)


def _constant_info(constant: Constant) -> _Info:
    return _Info(value=constant.array() if constant.size <= _SMALL else None, size=constant.dims)


class _View:
    """One node: what its outputs depend on."""

    def __init__(
        self,
        analysis: _Analysis,
        node: Node,
        scope: dict[str, _Info],
        *,
        is_timeless: bool,
        seen: Mapping[str, _Seen],
    ) -> None:
        self._analysis = analysis
        self._node = node
        self._scope = scope
        self._is_timeless = is_timeless
        self._seen = seen
        self._infos = [scope.get(name, _NOTHING) for name in node.inputs]

    # ---- of an input

    def _info(self, index: int) -> _Info:
        return self._infos[index] if index < len(self._infos) else _NOTHING

    def _has(self, index: int) -> bool:
        return bool(self._node.input(index))

    def _shape(self, index: int) -> tuple[int, ...] | None:
        """Return the shape of an input, at the first length; None where it is not known."""
        seen = self._seen.get(self._node.input(index))
        return seen.shapes[0] if seen is not None else self._info(index).size

    def _rate(self, name: str, axis: int) -> float | None:
        """Return how many steps an element of a tensor's axis stands for; None where the axis is not along time."""
        if self._is_timeless:
            return None
        seen = self._seen.get(name)
        if seen is not None:
            return seen.rate(axis)
        info = self._scope.get(name, _NOTHING)
        return None if info.size is not None else 1.0

    def _is_along_time(self, index: int, axis: int) -> bool:
        return self._rate(self._node.input(index), axis) is not None

    def _grows(self, index: int) -> bool:
        """Whether an input has an axis along time."""
        if self._is_timeless:
            return False
        seen = self._seen.get(self._node.input(index))
        return bool(seen.rates) if seen is not None else self._info(index).size is None

    def _numbers(self, index: int, attribute: str = "") -> list[float] | None:
        """Return the numbers of an input, or of the attribute that older opsets have, without what follows the length.

        None where they are not known.
        """
        if attribute and attribute in self._node.attributes:
            held = self._node.attributes[attribute]
            return [float(value) for value in held.whole or held.floats]
        if not self._has(index):
            return []
        value = self._info(index).value
        if value is not None:
            return [float(number) for number in np.asarray(value, np.float64).ravel()]
        seen = self._seen.get(self._node.input(index))
        return None if seen is None else seen.offsets()

    # ---- of the outputs

    def outputs(self) -> list[_Info]:
        node = self._node
        if node.operator == "Constant":
            return [self._constant()]
        if node.graphs:
            return self._nested()
        info = self._plain()
        if node.operator in _FORWARDS_ANYTHING:
            return [self._length(info)]
        own = self._span()
        self._analysis.mark(own, node, f"{own:g} steps")
        info = replace(info, back=info.back + own)
        return [info] * max(1, len(node.outputs))

    def _constant(self) -> _Info:
        held = next(iter(self._node.attributes.values()), None)
        if held is None:
            return _NOTHING
        if held.tensor is not None:
            return _constant_info(held.tensor)
        numbers = held.whole or held.floats
        name = next(iter(self._node.attributes))
        array = np.array(numbers[0] if name in {"value_int", "value_float"} and numbers else numbers)
        return _Info(value=array, size=array.shape)

    def _length(self, info: _Info) -> _Info:
        """Shape and Size: they depend on no value."""
        seen = self._seen.get(self._node.outputs[0])
        if seen is not None and seen.values is not None:
            first = seen.values[0]
            if all(np.array_equal(first, other) for other in seen.values):
                return _Info(info.back, value=first, size=first.shape)
        elif self._is_timeless or self._info(0).size is not None:
            return _Info(info.back)
        return _Info(info.back, has_position=True)

    def _plain(self) -> _Info:
        """What comes of the inputs, the node's own span left out."""
        node, operator = self._node, self._node.operator
        known = [info for info, name in zip(self._infos, node.inputs, strict=True) if name]
        back = max((info.back for info in known), default=0.0)
        has_data = any(info.has_data for info in known)
        sources = self._sources()
        counters = frozenset[str]().union(*(info.counters for info in sources))
        ids = frozenset[str]()
        if operator in _MOVES or operator == "Where":
            ids = ids.union(*(info.ids for info in sources))
        has_position = any(info.has_position for info in sources) and not self._is_mixed(sources)
        gain = min((info.gain for info in sources if info.has_position or info.counters), default=1.0)
        if operator in _SUMS and self._sums_over_time():
            has_position, gain = True, 0.25  # of what happens at every step, now and then, or seldom
        if operator in {"Mul", "Div"} and (has_position or counters):
            gain = self._scaled(gain)
        value = self._folded()
        if has_position or counters or has_data:
            value = None
        is_curved = has_position and (operator in _CURVES or any(info.is_curved for info in sources))
        size = None if value is None else value.shape
        return _Info(back, has_data, has_position, counters, gain, is_curved, ids, value, size)

    def _sources(self) -> list[_Info]:
        """The inputs whose numbers the outputs have."""
        operator = self._node.operator
        if operator in {"Gather", "GatherND", "GatherElements", "Reshape", "Expand", "Tile", "Slice", "Pad", "Split"}:
            return self._infos[:1]
        if operator in {"Unsqueeze", "Squeeze", "CumSum", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceMean"}:
            return self._infos[:1]
        if operator == "Where":
            return self._infos[1:]
        if operator in {"Scatter", "ScatterND", "ScatterElements"}:
            return [self._info(0), self._info(2)]
        if operator in _CURVES:  # of positions and counters alone: what is mixed with data counts no more
            return [info for info in self._infos if info.has_position and not info.has_data]
        return self._infos if operator in _MOVES | _ARITHMETIC else []

    def _is_mixed(self, sources: Sequence[_Info]) -> bool:
        """Whether positions are mixed into data in floating point, as embeddings of them are: that counts no more."""
        if not any(info.has_data and not info.has_position for info in sources):
            return False
        seen = self._seen.get(self._node.outputs[0])
        return seen is not None and seen.dtype.kind == "f"

    def _sums_over_time(self) -> bool:
        if self._node.operator == "CumSum":
            axis = self._info(1).value
            axes = [int(value) for value in np.ravel(axis)] if axis is not None else []
        else:
            axes = list(self._node.integers("axes")) or [int(n) for n in self._numbers(1) or []]
            axes = axes or list(self._node.integers("axis"))
        if not axes:
            return self._grows(0)
        return any(self._is_along_time(0, axis) for axis in axes)

    def _scaled(self, gain: float) -> float:
        for info in self._infos:
            if info.is_constant and info.value is not None and info.value.size:
                factors = np.abs(np.asarray(info.value, np.float64))
                factors = factors[np.isfinite(factors) & (factors > 0)]
                if factors.size:
                    gain = gain * factors.min() if self._node.operator == "Mul" else gain / factors.max()
        return float(min(max(gain, 1e-6), 1e12))

    def _folded(self) -> Array | None:
        """Return the numbers that a node makes of constants, as they were seen."""
        if not all(info.is_constant for info in self._infos):
            return None
        seen = self._seen.get(self._node.outputs[0]) if self._node.outputs else None
        if seen is None or seen.values is None or self._node.operator.startswith("Random"):
            return None
        return seen.values[0]

    # ---- how many steps the node itself adds

    def _span(self) -> float:
        own = self._met() + self._rounded()
        self._look_up()
        if self._is_timeless or not self._is_sized_well():
            return own
        operator = self._node.operator
        return own + (_SPANS[operator](self) if operator in _SPANS else self._by_attributes())

    def _met(self) -> float:
        """What is counted meets numbers of the graph."""
        node, operator = self._node, self._node.operator
        if operator not in _MEETS:
            return 0.0
        infos = self._infos[1:] if operator == "Where" else self._infos
        counted = [info for info in infos if info.has_position or info.counters]
        if (
            operator in _ORDERS | {"Mod"}
            and any(info.has_position for info in counted)
            and any(info.has_data and not info.has_position for info in infos)
        ):
            self._analysis.refuse(node, "compares a number of steps with data")
        limits = self._limits(infos)
        if not limits:
            return 0.0
        if any(info.has_data for info in infos):
            self._analysis.landmark(self._landmarks(limits[:16]))
        if not counted or operator in {"Mul", "Where"}:
            return 0.0
        gain = min(info.gain for info in counted)
        sizes = [abs(limit) / gain for limit in limits]
        if operator in _ORDERS | {"Min", "Max", "Clip"} and any(info.is_curved for info in counted):
            sizes.append(MOST_COUNTED)
        states = frozenset[str]().union(*(info.counters for info in counted))
        if operator == "Div" and any(info.value is not None and info.value.dtype.kind == "f" for info in infos):
            return 0.0
        if states and operator not in {"Add", "Sub", "Div", "Sum"}:
            self._analysis.count(states, [limit / gain for limit in limits[:16]])
        elif states and operator in {"Add", "Sub"}:
            self._analysis.offset(states, [limit / gain for limit in limits[:16]])
        counts = any(info.has_position for info in counted)
        return max([size for size in sizes if counts and not (states and size > MOST_COUNTED)], default=0.0)

    def _landmarks(self, limits: Sequence[float]) -> Sequence[float]:
        """Return of some limits those at which what is done with data may change."""
        if self._node.operator in {"Add", "Sub"}:
            # A rectifier behind it makes a limit of it. Smaller ones are met anyway.
            return [limit for limit in limits if abs(limit) > _LOUD]
        return limits if self._node.operator in _ORDERS | {"Min", "Max", "Clip", "Mod"} else ()

    def _rounded(self) -> float:
        """Parts of a number of steps that are rounded away: it takes many to make a whole one."""
        info = self._info(0)
        if self._node.operator not in _ROUNDS or not info.has_position or info.gain >= 1:
            return 0.0
        seen = self._seen.get(self._node.outputs[0])
        if self._node.operator == "Cast" and (seen is None or seen.dtype.kind == "f"):
            return 0.0
        return self._table(1 / info.gain, info.counters)

    def _limits(self, infos: Sequence[_Info]) -> list[float]:
        """Return the numbers of constant operands and attributes, the endless ones left out; the largest, if many."""
        found: list[float] = []
        for info in infos:
            if info.is_constant and info.value is not None and info.value.dtype.kind in "iuf":
                found += np.unique(np.asarray(info.value, np.float64)).tolist()
        if self._node.operator == "Clip":
            found += [
                n
                for name in ("min", "max")
                if name in self._node.attributes
                for n in self._node.attributes[name].floats
            ]
        found = [limit for limit in found if math.isfinite(limit) and 0 < abs(limit) < _ENDLESS]
        return sorted(found, key=abs, reverse=True)

    def _look_up(self) -> None:
        """Tables: how many ids there are for inputs, and how far counters and positions go."""
        node = self._node
        if node.operator in {"Gather", "GatherElements"} and node.domain == "":
            table, index, axis = self._shape(0), self._info(1), node.integer("axis", 0)
            if table is None or not -len(table) <= axis < len(table) or self._is_along_time(0, axis):
                return
            size = table[axis]
        elif node.operator == "OneHot":
            depth = self._numbers(1)
            if not depth:
                return
            size, index = int(depth[0]), self._info(0)
        else:
            return
        if index.ids and not index.has_position:
            self._analysis.index(index.ids, size)
        if index.counters:
            self._analysis.count(index.counters, [size / index.gain])

    def _is_sized_well(self) -> bool:
        """Say that sizes of tensors along time come from the data where they do."""
        if self._node.operator not in _SHAPERS:
            return True
        first = 0 if self._node.operator in {"Range", "ConstantOfShape"} else 1
        rest = range(first, len(self._node.inputs))
        if self._node.operator == "Pad":
            rest = range(1, 2)
        told = [index for index in rest if self._has(index) and self._info(index).has_data]
        if not told or (self._node.operator not in {"Range", "ConstantOfShape"} and not self._grows(0)):
            return True
        if self._node.operator == "OneHot":
            return True
        self._analysis.refuse(self._node, "has a length that depends on the data")
        return False

    def hot(self) -> float:
        depth, index = self._numbers(1), self._info(0)
        return self._table(depth[0] / index.gain, index.counters) if depth and index.has_position else 0.0

    def row_lengths(self) -> float:
        return self._told(4 if self._node.operator in _RECURRENT else 1, "the lengths of its rows")

    def chosen_most(self) -> float:
        is_along_time = self._is_along_time(0, self._node.integer("axis", -1))
        return self._told(1, "a number of steps") if is_along_time else 0.0

    def parts(self) -> float:
        rate = self._rate(self._node.input(0), self._node.integer("axis", 0))
        return _largest_of(self._numbers(1, "split"), rate)

    def diagonal(self) -> float:
        return _largest_of(self._numbers(1), 1.0) if self._grows(0) else 0.0

    def picked(self) -> float:
        if self._info(0).has_data and self._grows(0):
            self._analysis.refuse(self._node, "gives as many elements as the data says")
        return 0.0

    def frames(self) -> float:
        if not self._grows(0):
            return 0.0
        return sum(_largest_of(self._numbers(index), 1.0) for index in range(1, len(self._node.inputs)))

    def window(self) -> float:
        """Convolutions and pools: what the kernel spans, and the padding."""
        node, x = self._node, self._node.input(0)
        kernel: Sequence[int] = node.integers("kernel_shape")
        if not kernel and node.operator in _CONVOLUTIONS:
            weights = self._shape(_CONVOLUTIONS[node.operator])
            kernel = weights[2:] if weights is not None else ()
        pads, dilations = node.integers("pads"), node.integers("dilations")
        total = 0.0
        for axis, size in enumerate(kernel):
            rate = self._rate(x, axis + 2)
            if rate is not None:
                dilation = dilations[axis] if axis < len(dilations) else 1
                padding = sum(abs(pads[side]) for side in (axis, axis + len(kernel)) if side < len(pads))
                total += ((size - 1) * dilation + padding) * rate
        return total

    def _axes(self, index: int, attribute: str, count: int) -> list[int | None]:
        """Return the axes that an input names; None for one that is not known."""
        if self._has(index) or attribute in self._node.attributes:
            named = self._numbers(index, attribute)
            return [None] * count if named is None else [int(axis) for axis in named]
        return list(range(count))

    def _along(self, axis: int | None) -> float | None:
        """Return the rate of an axis of the first input, or of the output, which may be cut to follow the time."""
        if axis is None:
            return 1.0 if self._grows(0) else None
        return self._rate(self._node.input(0), axis)

    def sliced(self) -> float:
        starts, ends = self._numbers(1, "starts"), self._numbers(2, "ends")
        count = max(len(starts or ()), len(ends or ()), 1)
        total = 0.0
        for place, axis in enumerate(self._axes(3, "axes", count)):
            rate = self._along(axis)
            if rate is not None:
                bounds = [numbers[place] for numbers in (starts, ends) if numbers is not None and place < len(numbers)]
                total += _largest_of(bounds, rate)
            elif axis is not None:
                total += self._cut_to_time(axis)
        return total

    def _cut_to_time(self, axis: int) -> float:
        """A table of fixed size of which as much is taken as there are steps: no more steps than that are there."""
        shape, seen = self._shape(0), self._seen.get(self._node.outputs[0])
        if shape is None or seen is None or not -len(shape) <= axis < len(shape) or seen.rate(axis) is None:
            return 0.0
        return self._table(shape[axis], self._info(1).counters)

    def _table(self, size: float, counters: frozenset[str]) -> float:
        return 0.0 if counters and size > MOST_COUNTED else size

    def padded(self) -> float:
        pads = self._numbers(1, "pads")
        if pads is None:
            return 0.0
        axes = self._axes(3, "axes", len(pads) // 2)
        total = 0.0
        for place, axis in enumerate(axes):
            rate = self._along(axis)
            if rate is not None:
                sides = [pads[index] for index in (place, place + len(axes)) if index < len(pads)]
                total += sum(_largest_of([side], rate) for side in sides)
        return total

    def gathered(self) -> float:
        index, axis = self._info(1), self._node.integer("axis", 0)
        rate = self._rate(self._node.input(0), axis)
        if rate is None:
            shape = self._shape(0)
            if index.has_position and shape is not None and -len(shape) <= axis < len(shape) and shape[axis] > 1:
                return self._table(shape[axis] / index.gain, index.counters)
            return 0.0
        if index.has_data:
            if self._node.input(0) in self._seen:
                self._analysis.refuse(self._node, "takes the steps that the data says")
            return 0.0
        return _largest_of(self._numbers(1), rate)

    def gathered_within(self) -> float:
        shape, index, first = self._shape(1), self._info(1), self._node.integer("batch_dims", 0)
        axes = range(first, first + (shape[-1] if shape else 1))
        rates = [rate for axis in axes if (rate := self._rate(self._node.input(0), axis)) is not None]
        if not rates:
            sizes = self._shape(0)
            if index.has_position and sizes is not None:
                return self._table(max([sizes[axis] for axis in axes if axis < len(sizes)], default=0), index.counters)
            return 0.0
        if index.has_data:
            self._analysis.refuse(self._node, "takes the steps that the data says")
            return 0.0
        return _largest_of(self._numbers(1), max(rates))

    def _told(self, index: int, what: str) -> float:
        if not self._has(index):
            return 0.0
        if self._info(index).has_data:
            self._analysis.refuse(self._node, f"takes {what} from the data")
            return 0.0
        return _largest_of(self._numbers(index), 1.0)

    def _by_attributes(self) -> float:
        """Of an operator that is not known: its whole numbers, and the size of its kernel if it has one."""
        node = self._node
        if not any(self._grows(index) for index in range(len(node.inputs))):
            return 0.0
        whole = [n for name, held in node.attributes.items() if name not in _NO_SPAN for n in held.whole]
        return float(sum(abs(n) for n in whole if 1 < abs(n) < _ENDLESS))

    # ---- graphs within

    def _nested(self) -> list[_Info]:
        node = self._node
        if node.operator == "If":
            return self._branches()
        if node.operator in {"Loop", "Scan"}:
            return self._turns()
        infos = [self._bodies(graph, {}, is_timeless=self._is_timeless) for graph in node.graphs]
        return [info for found in infos for info in found] or [_NOTHING]

    def _bodies(self, graph: Graph, scope: Mapping[str, _Info], *, is_timeless: bool) -> list[_Info]:
        found = self._analysis.body(graph, {**self._scope, **scope}, is_timeless=is_timeless)
        return [found.get(name, _NOTHING) for name in graph.outputs]

    def _branches(self) -> list[_Info]:
        condition = self._info(0)
        results = [self._bodies(graph, {}, is_timeless=self._is_timeless) for graph in self._node.graphs]
        merged = [_merged(infos) for infos in zip(*results, strict=False)]
        return [
            replace(info, back=max(info.back, condition.back), has_data=info.has_data or condition.has_data)
            for info in merged
        ]

    def _turns(self) -> list[_Info]:
        """Loop and Scan: what is carried from turn to turn is looked at twice."""
        node, (graph, *_) = self._node, self._node.graphs
        is_loop = node.operator == "Loop"
        num_carried = len(graph.inputs) - (2 if is_loop else node.integer("num_scan_inputs", 1))
        carried = list(self._infos[2 : 2 + num_carried] if is_loop else self._infos[:num_carried])
        names = graph.inputs[2:] if is_loop else graph.inputs[:num_carried]
        scope: dict[str, _Info] = {}
        trips = self._info(0)
        if is_loop:
            scope[graph.inputs[0]] = _Info(has_position=not trips.is_constant or not self._has(0))
            scope[graph.inputs[1]] = _NOTHING
        else:
            scope |= dict(zip(graph.inputs[num_carried:], self._infos[num_carried:], strict=False))
        is_timeless = self._is_timeless or not self._holds_time(graph, 2 if is_loop else num_carried)
        # What begins anew in each run counts the steps of the run.
        current = [
            replace(info, has_position=True, value=None) if info.is_constant else replace(info, value=None)
            for info in carried
        ]
        results: list[_Info] = []
        for _ in range(2):
            scope |= dict(zip(names, current, strict=False))
            results = self._bodies(graph, scope, is_timeless=is_timeless)
            after = results[1:] if is_loop else results
            current = [_merged((before, info)) for before, info in zip(current, after, strict=False)]
        own = self._turned(results, is_timeless=is_timeless) if is_loop else 0.0
        own += self._delayed(carried, 2 if is_loop else 0)
        self._analysis.mark(own, node, f"{own:g} turns")
        found = results[1:] if is_loop else results
        before = max((info.back for info in self._infos), default=0.0)
        # A Loop's own results are merged with what went in: it may turn not at all.
        return [replace(info, back=max(info.back, before) + own, value=None, size=None) for info in found]

    def _delayed(self, carried: Sequence[_Info], first: int) -> float:
        """What is carried from turn to turn, and is no state: it may be a line of as many steps as it is long."""
        if self._is_timeless:
            return 0.0
        lines = [self._shape(first + place) for place, info in enumerate(carried) if not info.counters]
        return float(max((max(shape) for shape in lines if shape), default=0))

    def _turned(self, results: Sequence[_Info], *, is_timeless: bool) -> float:
        trips, condition = self._info(0), results[0] if results else _NOTHING
        if self._has(0) and trips.is_constant:
            if is_timeless:
                return 0.0
            most = _largest_of(self._numbers(0), 1.0)
            return most * max(1.0, max((info.back for info in results[1:]), default=0.0))
        if trips.has_data or condition.has_data or (not self._has(0) and self._info(1).has_data):
            if not self._is_timeless:
                self._analysis.refuse(self._node, "takes as many turns as the data says")
            return 0.0
        return _largest_of(self._numbers(0), 1.0)

    def _holds_time(self, graph: Graph, first: int) -> bool:
        """Whether a body has a tensor along time: one that it takes from outside, or that is carried."""
        if not self._seen:
            return not self._is_timeless
        carried = self._node.inputs[first:] if self._node.operator == "Loop" else self._node.inputs[:first]
        outside = {name for name in _taken(graph) if name in self._scope} | set(carried)
        for name in outside:
            seen = self._seen.get(name)
            if seen is not None and seen.rates:
                return True
            if seen is None and self._scope.get(name, _NOTHING).size is None and name:
                return True
        return any(bool(seen.rates) for name in self._node.outputs[: len(carried)] if (seen := self._seen.get(name)))


def _taken(graph: Graph) -> set[str]:
    """Return the names that a graph takes from outside, graphs within it included."""
    made = {*graph.inputs, *graph.constants, *(name for node in graph.nodes for name in node.outputs)}
    wanted = {name for node in graph.nodes for name in node.inputs} | set(graph.outputs)
    for node in graph.nodes:
        for inner in node.graphs:
            wanted |= _taken(inner)
    return {name for name in wanted - made if name}


def _merged(infos: Sequence[_Info]) -> _Info:
    first, *rest = infos
    for other in rest:
        first = first.merged(other)
    return replace(first, value=None, size=None)


def _largest_of(numbers: Sequence[float] | None, rate: float | None) -> float:
    """Return the largest of some distances in steps; those that mean "to the end" count nothing."""
    if numbers is None or rate is None:
        return 0.0
    return max((abs(number) * rate for number in numbers if abs(number) < _ENDLESS), default=0.0)


_SPANS: Mapping[str, Callable[[_View], float]] = {
    **dict.fromkeys([*_CONVOLUTIONS, *_POOLS], _View.window),
    **dict.fromkeys([*_RECURRENT, "ReverseSequence"], _View.row_lengths),
    **dict.fromkeys(["Gather", "GatherElements", "Scatter", "ScatterElements"], _View.gathered),
    **dict.fromkeys(["GatherND", "ScatterND"], _View.gathered_within),
    **dict.fromkeys(["NonZero", "Compress", "Unique"], _View.picked),
    **dict.fromkeys(["STFT", "DFT"], _View.frames),
    "Slice": _View.sliced,
    "Pad": _View.padded,
    "Split": _View.parts,
    "TopK": _View.chosen_most,
    "Trilu": _View.diagonal,
    "OneHot": _View.hot,
}
"""Operator → the steps that one node of it adds."""
