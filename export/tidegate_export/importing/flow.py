"""What flows where in a graph: how an output hangs on an input, and which layers carry which state.

Knows the operators that merely move values. Runs nothing.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple, TypeAlias

import onnx
import onnx_ir as ir

from tidegate_export.importing.source import RECURRENT


class Link(IntEnum):
    """How a value hangs on another, by the most that happens on the way; the least is the strongest."""

    MOVED = 0
    """Only copied, cut, joined, reshaped, or carried by a recurrent layer from its first state to its last."""
    ELEMENTWISE = 1
    """Scaled and added element by element, as the cell of an LSTM is."""
    MIXED = 2
    """Through a product of matrices, a convolution or the like."""
    NONE = 3


_MOVES_WORDS = """
    Cast Concat Constant DepthToSpace Expand Flatten Gather GatherElements GatherND Identity Pad Reshape
    Reverse ScatterElements ScatterND Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze Where
"""
_MOVES = frozenset(_MOVES_WORDS.split())
_JOINS: Mapping[str, Container[int]] = {
    "Concat": range(1 << 16),
    "Where": (1, 2),
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
    "Pad": (0, 2),
}
"""Those that make one value of several, with the places of these."""
_ELEMENTWISE_WORDS = """
    Abs Add Ceil Clip Div Elu Erf Exp Floor HardSigmoid HardSwish LeakyRelu Log Max Min Mul Neg PRelu Pow
    Relu Round Sigmoid Softplus Sqrt Sub Sum Tanh DequantizeLinear QuantizeLinear DynamicQuantizeLinear Mod
    And Or Not
"""
_ELEMENTWISE = frozenset(_ELEMENTWISE_WORDS.split())


SETTING = "/setting"
"""Behind the name of a constant that stands for an input which callers may set: what hangs on it is not settled."""

SHAPES = frozenset({"Shape", "Size"})
"""Operators whose results hang on an input's shape alone."""

Edge: TypeAlias = tuple[ir.Value, ir.Value, Link]


class Layer(NamedTuple):
    """A recurrent layer: where its first state comes from (None: it begins at zero in every run)."""

    name: str
    initial: ir.Value | None
    is_backward: bool
    slots: tuple[tuple[ir.Value, ir.Value], ...] = ()
    """First and last value of each of its states that has both."""


class Flow:
    """The edges between the values of a graph and of those nested in it, and its recurrent layers."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.edges: dict[ir.Value, list[tuple[ir.Value, Link]]] = defaultdict(list)
        self.layers: list[Layer] = []
        self.reversals: list[str] = []
        """Nodes that turn a sequence around."""
        for node in ir.traversal.RecursiveGraphIterator(graph):
            for source, target, link in _edges(node):
                self.edges[source].append((target, link))
            if node.op_type in RECURRENT:
                self.layers.append(_layer(node))
            if _turns_around(node):
                self.reversals.append(_called(node))

    def links(self, start: ir.Value) -> dict[ir.Value, Link]:
        """Return everything that hangs on `start`, with the strongest link."""
        best = {start: Link.MOVED}
        for most in (Link.MOVED, Link.ELEMENTWISE, Link.MIXED):
            todo = deque(best)
            while todo:
                value = todo.popleft()
                for other, link in self.edges.get(value, ()):
                    if link <= most and other not in best:
                        best[other] = most
                        todo.append(other)
        return best

    def input_links(self, names: Iterable[str]) -> dict[str, dict[ir.Value, Link]]:
        """Return the links of some of the graph's inputs, by their names."""
        inputs = {item.name: item for item in self.graph.inputs}
        return {name: self.links(inputs[name]) for name in names}

    def carried(self, reached: Mapping[str, Mapping[ir.Value, Link]]) -> set[tuple[str, str]]:
        """Return which inputs (with all that hangs on each) a layer takes its first state from, and which outputs it
        gives its last to, scaled at most.
        """
        return {
            (source, target.name or "")
            for layer in self.layers
            for first, last in layer.slots
            for target, link in self.links(last).items()
            if link <= Link.ELEMENTWISE
            for source, links in reached.items()
            if links.get(first, Link.NONE) <= Link.ELEMENTWISE
        }

    def backward(self) -> list[str]:
        """Return the layers that also, or only, run from the end of the sequence."""
        return [layer.name for layer in self.layers if layer.is_backward]

    def forgetful(self, states: Sequence[str]) -> list[str]:
        """Return the layers whose first state comes from none of the inputs `states`."""
        carried = {value for links in self.input_links(states).values() for value in links}
        return [layer.name for layer in self.layers if layer.initial is None or layer.initial not in carried]

    def handed_on(self) -> list[str]:
        """Return the inputs that come out again as they are."""
        sources = []
        for value in self.graph.outputs:
            source = value
            while (node := source.producer()) is not None and node.op_type == "Identity" and node.inputs[0] is not None:
                source = node.inputs[0]
            if source.is_graph_input():
                sources.append(source.name or "")
        return sources

    def handed_on_from(self, output: ir.Value) -> ir.Value | None:
        """Return the input that an output is, cut or rearranged at most; None where it is no such thing."""
        source: ir.Value | None = output
        while source is not None and (node := source.producer()) is not None:
            if node.op_type not in _MOVES or node.op_type in _JOINS or not node.inputs:
                return None
            source = node.inputs[0]
        return source if source is not None and source.is_graph_input() else None

    def parts(self, output: ir.Value) -> set[ir.Value]:
        """Return the values that an output is put together of, itself among them; inputs and constants are left out."""
        found: set[ir.Value] = set()
        todo = [output]
        while todo:
            value = todo.pop()
            node = value.producer()
            if node is None or value in found or node.op_type == "Constant":
                continue
            found.add(value)
            if node.op_type in _MOVES:
                places = _JOINS.get(node.op_type, (0,))
                todo += [source for place, source in enumerate(node.inputs) if source is not None and place in places]
            elif node.op_type == "If":
                place = list(node.outputs).index(value)
                todo += [body.outputs[place] for body in _bodies(node)]
            elif node.op_type in RECURRENT:
                found.update(item for item in node.outputs if item.name)
        return found

    def values_reached(self) -> set[ir.Value]:
        """Return what hangs on the values of inputs and settings, not only on their shapes."""
        settings = {value for name, value in self.graph.initializers.items() if name.endswith(SETTING)}
        reached = {*self.graph.inputs, *settings}
        todo = deque(reached)
        while todo:
            for other, _ in self.edges.get(todo.popleft(), ()):
                if other not in reached:
                    reached.add(other)
                    todo.append(other)
        return reached


def trace(model: onnx.ModelProto) -> Flow:
    """Return the flow of a model's graph."""
    return Flow(ir.from_proto(model).graph)


def _edges(node: ir.Node) -> Iterator[Edge]:
    if node.op_type in SHAPES:
        return  # a size is no value
    inputs = [value for value in node.inputs if value is not None]
    bodies = list(_bodies(node))
    link = Link.MOVED if node.op_type in _MOVES else Link.ELEMENTWISE if node.op_type in _ELEMENTWISE else Link.MIXED
    for source in inputs:
        for target in node.outputs:
            yield source, target, Link.MIXED if bodies else link
    if node.op_type in RECURRENT:
        yield from _carried(node)
    for body in bodies:
        yield from _body_edges(node, body)


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _layer(node: ir.Node) -> Layer:
    direction = node.attributes.get_string("direction", "forward")
    slots = tuple((first, last) for first, last, link in _carried(node) if link is Link.MOVED)
    return Layer(_called(node), _input(node, 5), direction in {"bidirectional", "reverse"}, slots)


def _carried(node: ir.Node) -> Iterator[Edge]:
    """A layer hands its first hidden and cell state on to its last ones; its Y ends with the last hidden state."""
    for place, output, link in ((5, 1, Link.MOVED), (5, 0, Link.ELEMENTWISE), (6, 2, Link.MOVED)):
        first = _input(node, place)
        if first is not None and len(node.outputs) > output and node.outputs[output].name:
            yield first, node.outputs[output], link


def _body_edges(node: ir.Node, body: ir.Graph) -> Iterator[Edge]:
    arguments: list[ir.Value | None] = []
    skipped = 0
    if node.op_type == "Loop":  # (trip count, condition, v…) → body(number, condition, v…) → (condition, v…, scans…)
        arguments, skipped = [None, *node.inputs[1:]], 1
        yield from ((a, b, Link.MOVED) for a, b in zip(body.outputs, body.inputs[1:], strict=False))
    elif node.op_type == "Scan":
        arguments = list(node.inputs)
        num_states = len(node.inputs) - node.attributes.get_int("num_scan_inputs", 0)
        yield from ((a, b, Link.MOVED) for a, b in zip(body.outputs[:num_states], body.inputs, strict=False))
    yield from ((a, b, Link.MOVED) for a, b in zip(arguments, body.inputs, strict=False) if a is not None)
    yield from ((a, b, Link.MOVED) for a, b in zip(body.outputs[skipped:], node.outputs, strict=False))


def _turns_around(node: ir.Node) -> bool:
    steps = _input(node, 4) if node.op_type == "Slice" else None
    tensor = None if steps is None else ir.convenience.get_const_tensor(steps)
    return node.op_type == "ReverseSequence" or (tensor is not None and bool((tensor.numpy() < 0).any()))


def _input(node: ir.Node, place: int) -> ir.Value | None:
    return node.inputs[place] if len(node.inputs) > place else None


def _called(node: ir.Node) -> str:
    return f"{node.op_type} {node.name or (node.outputs[0].name if node.outputs else '')!r}"
