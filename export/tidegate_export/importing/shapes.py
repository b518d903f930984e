"""Which free axes of a graph's inputs must be equal, and which must have a certain size.

Sizes are variables. Every node says which of them are equal, whatever side the knowledge comes from: a product of
matrices tells the width of what goes in, a recurrent layer that a state's rows are those of its sequence. Forward,
onnx's own shape inference helps. What is sure is kept apart from what is likely: two free sizes that meet in an
addition are equal, unless one of them is 1. Runs nothing.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import onnx
import onnx_ir as ir

from tidegate.bundle import BATCH, TIME
from tidegate_export.importing.foreign import Declared
from tidegate_export.importing.source import RECURRENT

Place: TypeAlias = tuple[str, int]
"""An input and one of its axes."""

_MOST_BYTES = 1 << 29
"""Of a model that onnx's shape inference is asked about: it copies the weights."""
_MOST_ROUNDS = 8
_MOST_SIZES = 64
"""Elements of a list of integers that may be a shape."""


@dataclass(frozen=True, slots=True)
class FreeAxis:
    """Axes of inputs that are one: the places where it stands, and what is known of it."""

    places: tuple[Place, ...]
    labels: frozenset[str]
    """What the file calls it."""
    size: int | str | None
    """The size that the graph asks for, or `batch` or `time` where the caller said so."""
    hints: Mapping[str, int]
    """How many operators take it for a batch, how many for the time."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the graph says of sizes: of its inputs' free axes, and by output of each axis (None: not known)."""

    axes: tuple[FreeAxis, ...]
    outputs: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    """Only those whose number of axes is known."""

    def sized(self, item: Declared) -> tuple[int | None, ...]:
        """Return the sizes of an input's axes, as far as the file or the graph says them."""
        found = {place: axis.size for axis in self.axes for place in axis.places}
        sizes = [found.get((item.name, place), dim) for place, dim in enumerate(item.dims or ())]
        return tuple(size if isinstance(size, int) else None for size in sizes)


@dataclass(frozen=True, slots=True)
class Readings:
    """What the graph says of sizes: what is sure, and with what is likely."""

    sure: Reading
    likely: Reading


def read_shapes(model: onnx.ModelProto, inputs: Sequence[Declared]) -> Readings:
    """Return the free axes of `inputs` (dims with what the caller told), those that must be equal as one.

    Args:
        model: The graph.
        inputs: Its inputs that have no value yet.
    """
    return _Solver(_inferred(model, inputs), inputs).solve()


def read_names(inputs: Sequence[Declared]) -> Reading:
    """Return the free axes of `inputs` by what the file calls them, and no more."""
    found: dict[str, list[Place]] = defaultdict(list)
    for item in inputs:
        for place, dim in enumerate(item.dims or ()):
            if isinstance(dim, str):
                found[dim].append((item.name, place))
    return Reading(
        tuple(
            FreeAxis(tuple(places), frozenset({label}), label if label in {BATCH, TIME} else None, {})
            for label, places in found.items()
        )
    )


def _label(name: str, place: int) -> str:
    return f"{name}·{place}"


def _inferred(model: onnx.ModelProto, inputs: Sequence[Declared]) -> ir.Graph:
    """Return the graph with what onnx infers forward, every free axis of an input under a label of its own."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {item.name: item.dims or () for item in inputs}
    for value in copy.graph.input:
        shape = value.type.tensor_type.shape
        for place, dim in enumerate(known.get(value.name, ())):
            if place == len(shape.dim):
                shape.dim.add()
            if isinstance(dim, int):
                shape.dim[place].dim_value = dim
            else:
                shape.dim[place].dim_param = _label(value.name, place)
    del copy.graph.value_info[:]  # they hold the sizes of an exporter's example
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    if copy.ByteSize() < _MOST_BYTES:
        with contextlib.suppress(onnx.shape_inference.InferenceError, ValueError):  # the file declares what cannot be
            copy = onnx.shape_inference.infer_shapes(copy, data_prop=True)
    return ir.from_proto(copy).graph


class _Size(NamedTuple):
    """A size that is only known as a variable, among integers that are."""

    variable: int


Sizes: TypeAlias = "list[int]"
"""One variable for each axis."""


@dataclass(slots=True)
class _Variables:
    """Sizes that may be equal: a union-find structure. A size is a number, or a word that the caller said."""

    parents: list[int] = field(default_factory=list)
    sizes: list[int | str | None] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)
    """By root: the number of changes when it was joined or fixed last."""
    num_changes: int = 0

    def new(self, size: int | str | None = None) -> int:
        self.parents.append(len(self.parents))
        self.sizes.append(size)
        self.changed.append(0)
        return len(self.parents) - 1

    def root(self, variable: int) -> int:
        while self.parents[variable] != variable:
            self.parents[variable] = self.parents[self.parents[variable]]
            variable = self.parents[variable]
        return variable

    def size(self, variable: int) -> int | str | None:
        return self.sizes[self.root(variable)]

    def join(self, left: int, right: int) -> None:
        """Make two variables one, unless both are known and differ: then the file lies somewhere, and runs decide."""
        a, b = self.root(left), self.root(right)
        if a == b or (self.sizes[a] is not None and self.sizes[b] is not None and self.sizes[a] != self.sizes[b]):
            return
        self.parents[b] = a
        self.sizes[a] = self.sizes[a] if self.sizes[a] is not None else self.sizes[b]
        self.num_changes += 1
        self.changed[a] = self.num_changes

    def fix(self, variable: int, size: int) -> None:
        root = self.root(variable)
        if self.sizes[root] is None:
            self.sizes[root] = size
            self.num_changes += 1
            self.changed[root] = self.num_changes


class _Solver:
    def __init__(self, graph: ir.Graph, inputs: Sequence[Declared]) -> None:
        self.graph = graph
        self.variables = _Variables()
        self.words = {word: self.variables.new(word) for word in (BATCH, TIME)}
        self.places: dict[Place, int] = {}
        self.labels: dict[str, int] = {}
        self.names: dict[str, list[int]] = defaultdict(list)
        """By what the file calls an axis: it may say so rightly."""
        for item in inputs:
            for place, dim in enumerate(item.dims or ()):
                if isinstance(dim, str):
                    variable = self.words[dim] if dim in self.words else self.variables.new()
                    self.places[item.name, place] = self.labels[_label(item.name, place)] = variable
                    self.names[dim].append(variable)
        self.dims: dict[ir.Value, Sizes | None] = {}
        self.ints: dict[ir.Value, list[int | _Size]] = {}
        """Lists of integers that may be shapes."""
        self.no_integers: set[ir.Value] = set()
        self.likely: list[tuple[int, int]] = []
        self.hints: list[tuple[int, str]] = []
        self.seen: dict[ir.Node, int] = {}
        """By node: the number of changes when it was looked at last."""
        self.given: dict[ir.Value, int] = {}
        """By value: the number of changes when something new was said of it as a whole."""
        self.rules: dict[str, Callable[[ir.Node], None]] = {
            **dict.fromkeys(
                ("MatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"), self._product
            ),
            **dict.fromkeys(("Conv", "ConvInteger", "ConvTranspose", "QLinearConv"), self._convolution),
            **dict.fromkeys(("ArgMax", "ArgMin", *_REDUCTIONS), self._reduce),
            "Gemm": self._gemm,
            "Transpose": self._transpose,
            "Unsqueeze": self._unsqueeze,
            "Squeeze": self._squeeze,
            "Flatten": self._flatten,
            "Reshape": self._reshape,
            "Concat": self._concat,
            "Split": self._split,
            "Slice": self._slice,
            "Pad": self._pad,
            "Tile": self._tile,
            "Gather": self._gather,
            "Expand": self._expand,
            "Einsum": self._einsum,
            "If": self._branches,
            "Loop": self._loop,
            "Scan": self._scan,
        }

    def solve(self) -> Readings:
        declared = {label: labels for label, labels in self.names.items() if label not in self.words}
        self._repeat()
        for variables in declared.values():
            for variable in variables[1:]:
                self.variables.join(variables[0], variable)
        self._repeat()
        sure = self._collected()
        for _ in range(_MOST_ROUNDS):
            before = self.variables.num_changes
            for left, right in self.likely:
                # Of two sizes that meet, one may be 1 and be repeated: that is no reason to make the other 1.
                if 1 not in {self.variables.size(left), self.variables.size(right)}:
                    self.variables.join(left, right)
            if self.variables.num_changes == before:
                break
            self._repeat()
        return Readings(sure, self._collected())

    def _collected(self) -> Reading:
        roots: dict[int, list[Place]] = defaultdict(list)
        for place, variable in self.places.items():
            roots[self.variables.root(variable)].append(place)
        labels: dict[int, set[str]] = defaultdict(set)
        for label, variables in self.names.items():
            for variable in variables:
                labels[self.variables.root(variable)].add(label)
        hints: dict[int, dict[str, int]] = defaultdict(lambda: {BATCH: 0, TIME: 0})
        for variable, word in self.hints:
            hints[self.variables.root(variable)][word] += 1
        axes = (
            FreeAxis(tuple(places), frozenset(labels[root]), self.variables.sizes[root], hints[root])
            for root, places in roots.items()
        )
        outputs = {value.name or "": dims for value in self.graph.outputs if (dims := self._of(value)) is not None}
        return Reading(tuple(axes), {name: tuple(map(self._number, dims)) for name, dims in outputs.items()})

    def _number(self, variable: int) -> int | None:
        size = self.variables.size(variable)
        return size if isinstance(size, int) else None

    def _repeat(self) -> None:
        """Go over the nodes until nothing new comes of it: knowledge goes back one node a round, and further."""
        for _ in range(_MOST_ROUNDS):
            before = self.variables.num_changes
            self._pass(self.graph)
            if self.variables.num_changes == before:
                return

    def _pass(self, graph: ir.Graph) -> None:
        # What holds graphs is looked into once: each of these is gone over forth and back too.
        forth = list(graph)
        back = [node for node in reversed(forth) if node.op_type not in _LOOKED_INTO]
        for node in (*forth, *back):
            if self._is_news(node):
                self.seen[node] = self.variables.num_changes
                self._relate(node)

    def _is_news(self, node: ir.Node) -> bool:
        """Whether anything that a node relates has changed since it was looked at; bodies are always looked into."""
        seen = self.seen.get(node)
        if seen is None or node.op_type in _LOOKED_INTO:
            return True
        values = [value for value in (*node.inputs, *node.outputs) if value is not None]
        return any(self._changed_at(value) > seen for value in values)

    def _changed_at(self, value: ir.Value) -> int:
        dims = self._of(value)
        return max(
            self.given.get(value, 0),
            max((self.variables.changed[self.variables.root(variable)] for variable in dims or ()), default=0),
        )

    # ---- what is known of a value

    def _of(self, value: ir.Value | None) -> Sizes | None:
        """Return the variables of a value's axes, None where nobody knows how many it has."""
        if value is None:
            return None
        if value not in self.dims:
            shape = value.shape
            self.dims[value] = None if shape is None else [self._variable(dim) for dim in shape.dims]
        return self.dims[value]

    def _variable(self, dim: int | ir.SymbolicDim) -> int:
        if isinstance(dim, int):
            return self.variables.new(dim)
        if dim.value is None:
            return self.variables.new()
        if dim.value not in self.labels:
            self.labels[dim.value] = self.variables.new()
        return self.labels[dim.value]

    def _give(self, value: ir.Value, dims: Sizes) -> None:
        """Say what a value's axes are."""
        known = self._of(value)
        if known is None:
            self.dims[value] = dims
            self._mark(value)
        elif len(known) == len(dims):
            self._same(known, dims)

    def _mark(self, value: ir.Value) -> None:
        self.variables.num_changes += 1
        self.given[value] = self.variables.num_changes

    def _same(self, left: Sequence[int], right: Sequence[int]) -> None:
        for a, b in zip(left, right, strict=False):
            self.variables.join(a, b)

    def _integers(self, value: ir.Value | None) -> list[int | _Size] | None:
        """Return what a small list of integers holds, as far as it is known without a run."""
        if value is None:
            return None
        if value in self.ints:
            return self.ints[value]
        if value in self.no_integers:
            return None
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None or tensor.size > _MOST_SIZES or not tensor.dtype.is_integer():
            self.no_integers.add(value)
            return None
        self.ints[value] = [int(number) for number in tensor.numpy().ravel()]
        return self.ints[value]

    def _constants(self, value: ir.Value | None) -> list[int] | None:
        found = self._integers(value)
        if found is None:
            return None
        numbers = [number for number in found if not isinstance(number, _Size)]
        return numbers if len(numbers) == len(found) else None

    def _option(self, node: ir.Node, name: str, place: int) -> list[int] | None:
        """Return integers that are an attribute in older opsets, an input in newer ones."""
        if name in node.attributes:
            return list(node.attributes[name].as_ints())
        return self._constants(_input(node, place))

    # ---- what a node says

    def _relate(self, node: ir.Node) -> None:
        if not node.outputs:
            return
        kind = node.op_type
        if kind in RECURRENT:
            self._recurrent(node)
        elif kind in _ALIKE:
            first = self._of(node.inputs[0])
            if first is not None:
                self._give(node.outputs[0], first)
            second = self._of(node.outputs[0])
            if first is None and second is not None and node.inputs[0] is not None:
                self._give(node.inputs[0], second)
        elif kind in _BROADCAST:
            self._broadcast(node)
        elif (rule := self.rules.get(kind)) is not None:
            rule(node)
        self._follow_integers(node)

    def _recurrent(self, node: ir.Node) -> None:
        x, w, r = (self._of(_input(node, place)) for place in (0, 1, 2))
        if node.op_type == "DynamicQuantizeLSTM" and w is not None and r is not None and len(w) == len(r) == 3:
            w, r = [w[0], w[2], w[1]], [r[0], r[2], r[1]]
        steps, rows, width, hidden, directions = (self.variables.new() for _ in range(5))
        if x is not None and len(x) == 3:
            self._same([steps, rows, width], x)
        if w is not None and len(w) == 3:
            self._same([directions, width], [w[0], w[2]])
        if r is not None and len(r) == 3:
            self._same([hidden], [r[2]])
        size = node.attributes.get_int("hidden_size", None)
        if size is not None:
            self.variables.fix(hidden, size)
        for place in (5, 6):
            first = self._of(_input(node, place))
            if first is not None and len(first) == 3:
                self._same([directions, rows, hidden], first)
        if node.inputs[0] is not None:
            self._give(node.inputs[0], [steps, rows, width])
        for output, dims in zip(
            node.outputs, ([steps, directions, rows, hidden], *([[directions, rows, hidden]] * 2)), strict=False
        ):
            self._give(output, dims)
        self.hints += [(steps, TIME), (rows, BATCH)]

    def _broadcast(self, node: ir.Node) -> None:
        operands = [dims for value in node.inputs if (dims := self._of(value)) is not None]
        if len(operands) < sum(value is not None for value in node.inputs):
            return
        rank = max((len(dims) for dims in operands), default=0)
        self._give(node.outputs[0], self._spread(operands, rank))

    def _spread(self, operands: Sequence[Sizes], rank: int) -> Sizes:
        """Return the axes of a result over operands of which some are repeated along axes of 1."""
        result = []
        for place in range(rank):
            met = [dims[place - rank] for dims in operands if rank - place <= len(dims)]
            open_ = [variable for variable in met if self.variables.size(variable) != 1]
            if len(open_) == 1:
                result.append(open_[0])
            elif not open_:
                result.append(met[0])
            else:
                sized = [variable for variable in open_ if self.variables.size(variable) is not None]
                result.append((sized or open_)[0] if sized else self.variables.new())
                self.likely += [(open_[0], variable) for variable in [*open_[1:], result[-1]]]
        return result

    def _product(self, node: ir.Node) -> None:
        left, right = self._of(node.inputs[0]), self._of(node.inputs[1])
        if not left or not right:
            return
        self.variables.join(left[-1], right[-2] if len(right) > 1 else right[0])
        rows = left[-2:-1]
        columns = right[-1:] if len(right) > 1 else []
        many = max(len(left), len(right)) - 2
        batch = self._spread([left[:-2], right[:-2]], many) if many > 0 else []
        self._give(node.outputs[0], [*batch, *rows, *columns])

    def _gemm(self, node: ir.Node) -> None:
        left, right = self._of(node.inputs[0]), self._of(node.inputs[1])
        if left is None or right is None or len(left) != 2 or len(right) != 2:
            return
        a = left[::-1] if node.attributes.get_int("transA", 0) else left
        b = right[::-1] if node.attributes.get_int("transB", 0) else right
        self.variables.join(a[1], b[0])
        self._give(node.outputs[0], [a[0], b[1]])

    def _convolution(self, node: ir.Node) -> None:
        place = 3 if node.op_type == "QLinearConv" else 1
        x, w, y = self._of(node.inputs[0]), self._of(_input(node, place)), self._of(node.outputs[0])
        if x is None or w is None or len(x) != len(w) or len(x) < 3:
            return
        is_transposed = node.op_type == "ConvTranspose"
        groups = node.attributes.get_int("group", 1)
        width = self.variables.size(w[0] if is_transposed else w[1])
        if isinstance(width, int):
            self.variables.fix(x[1], width if is_transposed else width * groups)
        if y is None or len(y) != len(x):
            return
        self.variables.join(x[0], y[0])
        if not is_transposed:
            self.variables.join(y[1], w[0])
        self.hints.append((x[0], BATCH))
        for axis in range(len(x) - 2):
            if not is_transposed and self._keeps_length(node, axis, w[axis + 2], len(x) - 2):
                self.variables.join(x[axis + 2], y[axis + 2])

    def _keeps_length(self, node: ir.Node, axis: int, kernel: int, num_axes: int) -> bool:
        def listed(name: str, default: list[int]) -> list[int]:
            return list(node.attributes[name].as_ints()) if name in node.attributes else default

        size = self.variables.size(kernel)
        pads, strides = listed("pads", [0] * 2 * num_axes), listed("strides", [1] * num_axes)
        dilations = listed("dilations", [1] * num_axes)
        if not isinstance(size, int) or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            return False
        return strides[axis] == 1 and pads[axis] + pads[axis + num_axes] == dilations[axis] * (size - 1)

    def _transpose(self, node: ir.Node) -> None:
        x, y = self._of(node.inputs[0]), self._of(node.outputs[0])
        known = x if x is not None else y
        if known is None:
            return
        order = list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else range(len(known))[::-1]
        if sorted(order) != list(range(len(known))):
            return
        if x is not None:
            self._give(node.outputs[0], [x[axis] for axis in order])
        elif node.inputs[0] is not None:
            self._give(node.inputs[0], [known[list(order).index(axis)] for axis in range(len(known))])

    def _unsqueeze(self, node: ir.Node) -> None:
        axes = self._option(node, "axes", 1)
        self._insert_ones(node.inputs[0], node.outputs[0], axes)

    def _squeeze(self, node: ir.Node) -> None:
        axes = self._option(node, "axes", 1)
        if axes is not None:
            self._insert_ones(node.outputs[0], node.inputs[0], axes)

    def _insert_ones(self, short: ir.Value | None, long: ir.Value | None, axes: list[int] | None) -> None:
        """Relate two values of which one has axes of 1 besides."""
        less, more = self._of(short), self._of(long)
        if axes is None or short is None or long is None or (less is None and more is None):
            return
        rank = len(more) if more is not None else len(less or ()) + len(axes)
        ones = {axis % rank for axis in axes if -rank <= axis < rank}
        if more is None:
            rest = iter(less or ())
            self._give(long, [self.variables.new(1) if axis in ones else next(rest) for axis in range(rank)])
            return
        for axis in ones:
            self.variables.fix(more[axis], 1)
        self._give(short, [more[axis] for axis in range(rank) if axis not in ones])

    def _flatten(self, node: ir.Node) -> None:
        x, y = self._of(node.inputs[0]), self._of(node.outputs[0])
        if x is None or y is None or len(y) != 2:
            return
        axis = node.attributes.get_int("axis", 1) % (len(x) + 1)
        for dims, result in ((x[:axis], y[0]), (x[axis:], y[1])):
            self._equal_products(dims, [result])

    def _reshape(self, node: ir.Node) -> None:
        x, shape = self._of(node.inputs[0]), self._integers(_input(node, 1))
        if x is None or shape is None:
            return
        y = self._of(node.outputs[0])
        if y is None:
            y = [self.variables.new() for _ in shape]
            self._give(node.outputs[0], y)
        if len(y) != len(shape):
            return
        keeps_zeros = node.attributes.get_int("allowzero", 0)
        for place, size in enumerate(shape):
            if isinstance(size, _Size):
                self.variables.join(y[place], size.variable)
            elif size > 0:
                self.variables.fix(y[place], size)
            elif size == 0 and not keeps_zeros and place < len(x):
                self.variables.join(y[place], x[place])
        self._equal_products(x, y)

    def _equal_products(self, left: Sequence[int], right: Sequence[int]) -> None:
        """Use that both lists have equally many elements in all: the one unknown size follows from the others."""
        ones, others = list(left), list(right)
        for variable in list(ones):
            same = next(
                (other for other in others if self.variables.root(other) == self.variables.root(variable)), None
            )
            if same is not None:
                ones.remove(variable)
                others.remove(same)
        (known, open_), (other_known, other_open) = self._parted(ones), self._parted(others)
        if len(open_) == 1 and len(other_open) == 1 and known == other_known:
            self.variables.join(open_[0], other_open[0])
        elif len(open_) == 1 and not other_open and known and other_known % known == 0:
            self.variables.fix(open_[0], other_known // known)
        elif len(other_open) == 1 and not open_ and other_known and known % other_known == 0:
            self.variables.fix(other_open[0], known // other_known)

    def _parted(self, variables: Sequence[int]) -> tuple[int, list[int]]:
        """Return the product of the sizes that are known, and the variables that are not."""
        product, open_ = 1, []
        for variable in variables:
            size = self.variables.size(variable)
            if isinstance(size, int):
                product *= size
            else:
                open_.append(variable)
        return product, open_

    def _concat(self, node: ir.Node) -> None:
        parts = [self._of(value) for value in node.inputs]
        known = [dims for dims in parts if dims is not None]
        y = self._of(node.outputs[0])
        rank = len(y) if y is not None else len(known[0]) if known else 0
        if not rank or any(len(dims) != rank for dims in known):
            return
        axis = node.attributes.get_int("axis", 0) % rank
        if y is None:
            y = [self.variables.new() if place == axis else known[0][place] for place in range(rank)]
            self._give(node.outputs[0], y)
        for dims in known:
            for place in range(rank):
                if place != axis:
                    self.variables.join(dims[place], y[place])
        sizes = [None if dims is None else self.variables.size(dims[axis]) for dims in parts]
        numbers = [size for size in sizes if isinstance(size, int)]
        whole = self.variables.size(y[axis])
        if len(numbers) == len(sizes):
            self.variables.fix(y[axis], sum(numbers))
        elif len(numbers) == len(sizes) - 1 and isinstance(whole, int) and whole > sum(numbers):
            missing = parts[next(place for place, size in enumerate(sizes) if not isinstance(size, int))]
            if missing is not None:
                self.variables.fix(missing[axis], whole - sum(numbers))

    def _split(self, node: ir.Node) -> None:
        x = self._of(node.inputs[0])
        if x is None or not x:
            return
        axis = node.attributes.get_int("axis", 0) % len(x)
        for output in node.outputs:
            self._same_but(x, self._of(output), {axis})
        sizes = [None if dims is None else self.variables.size(dims[axis]) for dims in map(self._of, node.outputs)]
        told = self._option(node, "split", 1)
        if told is not None:
            self.variables.fix(x[axis], sum(told))
        elif all(isinstance(size, int) for size in sizes):
            self.variables.fix(x[axis], sum(size for size in sizes if isinstance(size, int)))

    def _slice(self, node: ir.Node) -> None:
        x = self._of(node.inputs[0])
        starts = self._option(node, "starts", 1)
        axes = self._option(node, "axes", 3)
        if x is None or starts is None:
            return
        cut = range(len(starts)) if axes is None and _input(node, 3) is None else axes
        if cut is not None:
            self._same_but(x, self._of(node.outputs[0]), {axis % len(x) for axis in cut})

    def _pad(self, node: ir.Node) -> None:
        x = self._of(node.inputs[0])
        pads = self._option(node, "pads", 1)
        if x is not None and pads is not None and len(pads) == 2 * len(x):
            padded = {axis for axis in range(len(x)) if pads[axis] or pads[axis + len(x)]}
            self._same_but(x, self._of(node.outputs[0]), padded)

    def _tile(self, node: ir.Node) -> None:
        x, repeats = self._of(node.inputs[0]), self._constants(_input(node, 1))
        if x is not None and repeats is not None and len(repeats) == len(x):
            self._same_but(x, self._of(node.outputs[0]), {axis for axis, times in enumerate(repeats) if times != 1})

    def _same_but(self, left: Sizes, right: Sizes | None, changed: set[int]) -> None:
        if right is not None and len(left) == len(right):
            for axis, (a, b) in enumerate(zip(left, right, strict=True)):
                if axis not in changed:
                    self.variables.join(a, b)

    def _gather(self, node: ir.Node) -> None:
        x, indices = self._of(node.inputs[0]), self._of(_input(node, 1))
        if x and indices is not None:
            axis = node.attributes.get_int("axis", 0) % len(x)
            self._give(node.outputs[0], [*x[:axis], *indices, *x[axis + 1 :]])

    def _reduce(self, node: ir.Node) -> None:
        x = self._of(node.inputs[0])
        if x is None or not x:
            return
        axes = [node.attributes.get_int("axis", 0)] if node.op_type.startswith("Arg") else self._option(node, "axes", 1)
        if axes is None:
            return
        gone = {axis % len(x) for axis in axes}
        if node.attributes.get_int("keepdims", 1):
            dims = [self.variables.new(1) if axis in gone else variable for axis, variable in enumerate(x)]
        else:
            dims = [variable for axis, variable in enumerate(x) if axis not in gone]
        self._give(node.outputs[0], dims)

    def _expand(self, node: ir.Node) -> None:
        x, shape = self._of(node.inputs[0]), self._integers(_input(node, 1))
        if x is None or shape is None:
            return
        wanted = [size.variable if isinstance(size, _Size) else self.variables.new(size) for size in shape]
        self._give(node.outputs[0], self._spread([x, wanted], max(len(x), len(wanted))))

    def _einsum(self, node: ir.Node) -> None:
        equation = node.attributes.get_string("equation", "").replace(" ", "")
        terms, _, result = equation.partition("->")
        if not result or "." in equation:
            return
        letters: dict[str, int] = {}
        for value, term in zip(node.inputs, terms.split(","), strict=False):
            for letter, variable in zip(term, self._of(value) or (), strict=False):
                self.variables.join(letters.setdefault(letter, variable), variable)
        if all(letter in letters for letter in result):
            self._give(node.outputs[0], [letters[letter] for letter in result])

    def _branches(self, node: ir.Node) -> None:
        for branch in _bodies(node):
            self._pass(branch)
            for inner, outer in zip(branch.outputs, node.outputs, strict=False):
                dims, known = self._of(inner), self._of(outer)
                if dims is not None and known is not None and len(dims) == len(known):
                    self.likely += zip(dims, known, strict=True)
                elif dims is not None and known is None:
                    self._give(outer, [self.variables.new() for _ in dims])

    def _loop(self, node: ir.Node) -> None:
        for body in _bodies(node):
            num_states = len(node.inputs) - 2
            for first, before, after, last in zip(
                node.inputs[2:], body.inputs[2:], body.outputs[1:], node.outputs, strict=False
            ):
                self._equal(first, before)
                self._equal(first, after)
                self._equal(first, last)
            self._pass(body)
            for each, all_ in zip(body.outputs[1 + num_states :], node.outputs[num_states:], strict=False):
                dims = self._of(each)
                if dims is not None:
                    self._give(all_, [self._times(all_, 0), *dims])

    def _scan(self, node: ir.Node) -> None:
        for body in _bodies(node):
            num_inputs = node.attributes.get_int("num_scan_inputs", 0)
            num_states = len(node.inputs) - num_inputs
            for first, before, after, last in zip(
                node.inputs[:num_states], body.inputs, body.outputs, node.outputs, strict=False
            ):
                self._equal(first, before)
                self._equal(first, after)
                self._equal(first, last)
            steps = self.variables.new()
            self.hints.append((steps, TIME))
            axes = _listed(node, "scan_input_axes") or [0] * num_inputs
            for all_, each, axis in zip(node.inputs[num_states:], body.inputs[num_states:], axes, strict=False):
                self._scanned(all_, each, axis, steps)
            self._pass(body)
            num_outputs = len(node.outputs) - num_states
            axes = _listed(node, "scan_output_axes") or [0] * num_outputs
            for all_, each, axis in zip(node.outputs[num_states:], body.outputs[num_states:], axes, strict=False):
                self._scanned(all_, each, axis, steps)

    def _scanned(self, all_: ir.Value | None, each: ir.Value, axis: int, steps: int) -> None:
        whole, step = self._of(all_), self._of(each)
        if whole:
            self.variables.join(whole[axis % len(whole)], steps)
            place = axis % len(whole)
            self._give(each, [*whole[:place], *whole[place + 1 :]])
        elif step is not None and all_ is not None:
            place = axis % (len(step) + 1)
            self._give(all_, [*step[:place], steps, *step[place:]])

    def _times(self, value: ir.Value, axis: int) -> int:
        dims = self._of(value)
        return self.variables.new() if dims is None else dims[axis]

    def _equal(self, left: ir.Value | None, right: ir.Value | None) -> None:
        if left is None or right is None:
            return
        one, other = self._of(left), self._of(right)
        if one is not None:
            self._give(right, one)
        elif other is not None:
            self._give(left, other)

    # ---- lists of integers that are shapes

    def _follow_integers(self, node: ir.Node) -> None:
        """Follow sizes that a graph reads at run time: Shape, then cut, joined and given to a Reshape."""
        source, output = _input(node, 0), node.outputs[0]
        if node.op_type == "Shape":
            dims = self._of(source)
            if dims is not None:
                start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(dims))
                self._tell(output, [self._as_integer(variable) for variable in dims[start:end]])
            return
        if node.op_type == "Concat":
            parts = [self._integers(value) for value in node.inputs]
            if all(part is not None for part in parts) and len(self._of(output) or [0]) == 1:
                self._tell(output, [size for part in parts if part is not None for size in part])
            return
        known = self._integers(source)
        moved = None if known is None else self._moved_integers(node, known)
        if moved is not None:
            self._tell(output, moved)

    def _tell(self, value: ir.Value, integers: list[int | _Size]) -> None:
        if self.ints.get(value) != integers:
            self.ints[value] = integers
            self._mark(value)

    def _moved_integers(self, node: ir.Node, known: list[int | _Size]) -> list[int | _Size] | None:
        if node.op_type in {"Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape"}:
            return known
        if node.op_type == "Gather":
            places = self._constants(_input(node, 1))
            if places is not None and all(-len(known) <= place < len(known) for place in places):
                return [known[place] for place in places]
        if node.op_type == "Slice" and _input(node, 4) is None:
            starts, ends = self._option(node, "starts", 1), self._option(node, "ends", 2)
            if starts is not None and ends is not None and len(starts) == len(ends) == 1:
                return known[starts[0] : ends[0]]
        return None

    def _as_integer(self, variable: int) -> int | _Size:
        size = self.variables.size(variable)
        return size if isinstance(size, int) else _Size(variable)


_LOOKED_INTO = frozenset({"If", "Loop", "Scan"})
_ALIKE_WORDS = """
    Abs BatchNormalization Cast CastLike Ceil Clip CumSum DequantizeLinear Dropout DynamicQuantizeLinear Elu Erf Exp
    FastGelu Floor Gelu HardSigmoid HardSwish Identity InstanceNormalization LayerNormalization LeakyRelu Log LogSoftmax
    LpNormalization MeanVarianceNormalization Mish Neg Not QuantizeLinear Reciprocal Relu ReverseSequence
    RMSNormalization Round ScatterElements ScatterND Selu Sigmoid Sign Sin Cos SimplifiedLayerNormalization Softmax
    Softplus Softsign Sqrt Swish Tanh ThresholdedRelu Trilu
    """
_ALIKE = frozenset(_ALIKE_WORDS.split())
"""Operators whose first result has the shape of their first input."""
_REDUCTIONS_WORDS = """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
    """
_REDUCTIONS = frozenset(_REDUCTIONS_WORDS.split())
_BROADCAST_WORDS = """
    Add And BitwiseAnd BitwiseOr Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub
    Sum Where Xor
    """
_BROADCAST = frozenset(_BROADCAST_WORDS.split())


def _input(node: ir.Node, place: int) -> ir.Value | None:
    return node.inputs[place] if len(node.inputs) > place else None


def _listed(node: ir.Node, name: str) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else []


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
