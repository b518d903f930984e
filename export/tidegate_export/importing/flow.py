"""What flows where in a graph: how an output hangs on an input, and which layers carry which state.

Knows ONNX's scopes and the operators that merely move values. Runs nothing.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from onnx import GraphProto, NodeProto

from tidegate_export.importing.source import RECURRENT, attribute, called, inner_graphs, integers, nodes


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
_ELEMENTWISE_WORDS = """
    Abs Add Ceil Clip Div Elu Erf Exp Floor HardSigmoid HardSwish LeakyRelu Log Max Min Mul Neg PRelu Pow
    Relu Round Sigmoid Softplus Sqrt Sub Sum Tanh DequantizeLinear QuantizeLinear DynamicQuantizeLinear Mod
    And Or Not
"""
_ELEMENTWISE = frozenset(_ELEMENTWISE_WORDS.split())


@dataclass(frozen=True, slots=True)
class Layer:
    """A recurrent layer: where its first state comes from (None: it begins at zero in every run)."""

    name: str
    initial: str | None
    is_backward: bool
    slots: tuple[tuple[str, str], ...] = ()
    """First and last value of each of its states that has both."""


@dataclass(slots=True)
class Flow:
    """Edges between values. A value is known by its scope and name, for sibling graphs may use a name twice."""

    edges: dict[str, list[tuple[str, Link]]] = field(default_factory=lambda: defaultdict(list))
    layers: list[Layer] = field(default_factory=list)
    reversals: list[str] = field(default_factory=list)
    """Nodes that turn a sequence around."""

    def links(self, start: str) -> dict[str, Link]:
        """Return everything that hangs on the graph's input `start`, with the strongest link."""
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

    def carried(self, reached: Mapping[str, Mapping[str, Link]]) -> set[tuple[str, str]]:
        """Return which values (keys of `reached`, with all that hangs on each) a layer takes its first state from, and
        which it gives its last to, scaled at most.
        """
        return {
            (source, target)
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
        carried = {value for state in states for value in self.links(state)}
        return [layer.name for layer in self.layers if layer.initial is None or layer.initial not in carried]


Scope = dict[str, str]


def trace(graph: GraphProto) -> Flow:
    """Return the flow of a graph, nested ones included; values at the top are known by their name alone."""
    known = integers(graph)
    flow = Flow(reversals=[called(node) for node in nodes(graph) if _turns_around(node, known)])
    _trace_graph(graph, {item.name: item.name for item in graph.input}, "", flow)
    return flow


def _trace_graph(graph: GraphProto, outer: Scope, prefix: str, flow: Flow) -> Scope:
    scope = dict(outer)
    names = [item.name for item in graph.input] + [item.name for item in graph.initializer]
    scope |= {name: prefix + name for name in names}
    for index, node in enumerate(graph.node):
        for name in node.output:
            scope[name] = prefix + name
        for source, target, link in _edges(node, scope, f"{prefix}{index}/", flow):
            flow.edges[source].append((target, link))
    return scope


Edge = tuple[str, str, Link]


def _edges(node: NodeProto, scope: Scope, prefix: str, flow: Flow) -> Iterator[Edge]:
    outputs = [scope[name] for name in node.output if name]
    inputs = [scope[name] for name in node.input if name in scope]
    link = Link.MOVED if node.op_type in _MOVES else Link.ELEMENTWISE if node.op_type in _ELEMENTWISE else Link.MIXED
    if node.op_type in RECURRENT:
        flow.layers.append(_layer(node, scope))
        yield from _carried(node, scope)
    bodies = list(inner_graphs(node))
    for number, body in enumerate(bodies):
        yield from _body_edges(node, body, scope, f"{prefix}{number}/", flow)
    for source in inputs:
        for target in outputs:
            yield source, target, Link.MIXED if bodies else link


def _layer(node: NodeProto, scope: Scope) -> Layer:
    name = node.input[5] if len(node.input) > 5 else ""
    is_backward = attribute(node, "direction") in {b"bidirectional", b"reverse"}
    slots = tuple((first, last) for first, last, link in _carried(node, scope) if link is Link.MOVED)
    return Layer(called(node), scope.get(name), is_backward, slots)


def handed_on(graph: GraphProto) -> list[str]:
    """Return the inputs that come out again as they are."""
    sources = {item.name: item.name for item in graph.input}
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in sources:
            sources[node.output[0]] = sources[node.input[0]]
    outputs = {item.name for item in graph.output}
    return [source for value, source in sources.items() if value in outputs]


def _turns_around(node: NodeProto, known: Mapping[str, Sequence[int]]) -> bool:
    steps = known.get(node.input[4], ()) if node.op_type == "Slice" and len(node.input) > 4 else ()
    return node.op_type == "ReverseSequence" or any(step < 0 for step in steps)


def _carried(node: NodeProto, scope: Scope) -> Iterator[Edge]:
    """A layer hands its first hidden and cell state on to its last ones; its Y ends with the last hidden state."""
    for place, output, link in ((5, 1, Link.MOVED), (5, 0, Link.ELEMENTWISE), (6, 2, Link.MOVED)):
        if len(node.input) > place and len(node.output) > output and node.input[place] in scope and node.output[output]:
            yield scope[node.input[place]], scope[node.output[output]], link


def _body_edges(node: NodeProto, body: GraphProto, scope: Scope, prefix: str, flow: Flow) -> Iterator[Edge]:
    inner = _trace_graph(body, scope, prefix, flow)
    results = [inner.get(item.name, prefix + item.name) for item in body.output]
    parameters = [prefix + item.name for item in body.input]
    targets = [scope.get(name, "") for name in node.output]
    skipped = 0
    if node.op_type == "Loop":  # (trip count, condition, v…) → body(number, condition, v…) → (condition, v…, scans…)
        arguments, skipped = ["", *(scope.get(name, "") for name in node.input[1:])], 1
        yield from ((a, b, Link.MOVED) for a, b in zip(results, parameters[1:], strict=False))
    elif node.op_type == "Scan":
        arguments = [scope.get(name, "") for name in node.input]
        num_states = len(node.input) - int(str(attribute(node, "num_scan_inputs") or 0))
        yield from ((a, b, Link.MOVED) for a, b in zip(results[:num_states], parameters, strict=False))
    else:
        arguments = []
    yield from ((a, b, Link.MOVED) for a, b in zip(arguments, parameters, strict=False) if a)
    yield from ((a, b, Link.MOVED) for a, b in zip(results[skipped:], targets, strict=False) if b)
