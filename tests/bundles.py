"""Tiny bundles with seeded random weights, for tests: complete, verifiable, made without torch in milliseconds.

They follow DESIGN.md's graph contract (dynamic batch and time, states in and out, `surprise` in the graph). What they
predict means nothing; that they predict the same thing however the sequence is cut is the point.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tidegate.bundle import (
    BATCH,
    CARD,
    GRAPH,
    TIME,
    Codec,
    ForecastCodec,
    Manifest,
    Proof,
    StateSpec,
    TaskName,
    TensorCodec,
    TensorSpec,
    TokenCodec,
    write_bundle,
)

VOCABULARY = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
HIDDEN = 16
LAYERS = 2
HORIZON = 3
QUANTILES = (0.1, 0.5, 0.9)
SEASONAL_NAIVE_ERROR = 5.0
LOAD_MEAN, LOAD_SCALE = 100.0, 20.0
ENDLESS = 1000.0

OPSET, IR_VERSION = 20, 10
GATES = {"lstm": 4, "gru": 3, "rnn": 1}

Array = NDArray[np.float32]


class _Graph:
    """Collects the nodes and weights of one graph; every method returns the name of the tensor it adds."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(seed)

    def constant(self, value: NDArray[np.generic]) -> str:
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def scalar(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def random(self, *shape: int) -> str:
        return self.constant(self._random.normal(scale=0.4, size=shape).astype(np.float32))

    def add(self, operator: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        return self.add_many(operator, inputs, [to or f"{operator.lower()}_{len(self.nodes)}"], **attributes)[0]

    def add_many(self, operator: str, inputs: Sequence[str], outputs: list[str], **attributes: Any) -> list[str]:
        self.nodes.append(helper.make_node(operator, list(inputs), outputs, **attributes))
        return outputs

    def slice(self, tensor: str, start: int, stop: int, axis: int, to: str = "") -> str:
        bounds = [self.integers(bound) for bound in (start, stop, axis)]
        return self.add("Slice", tensor, *bounds, to=to)


def write_tiny_bundle(
    root: Path,
    name: str = "tiny",
    version: str = "1",
    cell: str = "lstm",
    *,
    seed: int = 0,
    hidden: int = HIDDEN,
    tokens: Sequence[str] = VOCABULARY,
) -> Path:
    """Write a `next_token` bundle over 65 characters (`VOCABULARY`), or other tokens, and return its folder."""
    graph = _Graph(seed)
    embedded = graph.add("Gather", graph.random(len(tokens), hidden), "tokens")
    known = _with_state_before(graph, _recurrent(graph, embedded, cell, hidden, width=hidden))
    logits = graph.add("MatMul", known, graph.random(hidden, len(tokens)))
    graph.slice(logits, 1, 2**62, 1, to="logits")
    logarithms = graph.add("LogSoftmax", graph.slice(logits, 0, -1, 1), axis=-1)
    chosen = graph.add("GatherElements", logarithms, graph.add("Unsqueeze", "tokens", graph.integers(2)), axis=2)
    nats = graph.add("Neg", graph.add("Squeeze", chosen, graph.integers(2)))
    graph.add("Div", nats, graph.constant(np.array(np.log(2), np.float32)), to="surprise")
    vocabulary = {"tokens": list(tokens), "unknown": None}
    return _write(
        root,
        graph,
        _manifest(name, version, "next_token", cell, hidden, TokenCodec(), len(tokens)),
        {"vocabulary.json": json.dumps(vocabulary).encode()},
    )


def write_tiny_forecast_bundle(
    root: Path, name: str = "tiny-forecast", version: str = "1", cell: str = "lstm", *, seed: int = 0
) -> Path:
    """Write a `forecast` bundle of the features `load` (standard scaling) and `hour` (cyclic) and return its folder."""
    graph = _Graph(seed)
    known = _with_state_before(graph, _recurrent(graph, "values", cell, HIDDEN, width=3))
    flat = graph.add("MatMul", known, graph.random(HIDDEN, HORIZON * len(QUANTILES)))
    shaped = graph.add("Reshape", flat, graph.integers(0, 0, HORIZON, len(QUANTILES)))
    offsets = np.array([-1, 0, 1], np.float32)
    quantiles = graph.add("Add", shaped, graph.constant(offsets))
    graph.slice(quantiles, 1, 2**62, 1, to="quantiles")
    median = graph.slice(graph.slice(graph.slice(quantiles, 0, -1, 1), 0, 1, 2), 1, 2, 3)
    expected = graph.add("Squeeze", median, graph.integers(2, 3))
    actual = graph.add("Squeeze", graph.slice("values", 0, 1, 2), graph.integers(2))
    error = graph.add("Abs", graph.add("Sub", expected, actual))
    factor = graph.constant(np.array(LOAD_SCALE / SEASONAL_NAIVE_ERROR, np.float32))
    graph.add("Mul", error, factor, to="surprise")
    codec = ForecastCodec(
        target="load", horizon=HORIZON, quantiles=QUANTILES, seasonal_naive_error=SEASONAL_NAIVE_ERROR
    )
    transforms = [{"kind": "standard", "mean": LOAD_MEAN, "scale": LOAD_SCALE}, {"kind": "cyclic", "period": 24}]
    return _write(
        root,
        graph,
        _manifest(name, version, "forecast", cell, HIDDEN, codec),
        {"scaling.json": json.dumps({"features": transforms}).encode()},
    )


def write_tiny_stream_bundle(
    root: Path, name: str = "tiny-stream", version: str = "1", cell: str = "gru", *, seed: int = 0
) -> Path:
    """Write a `stream` bundle (two features in, tensor `score` [batch, time, 4] out) and return its folder."""
    graph = _Graph(seed)
    top = _recurrent(graph, "values", cell, HIDDEN, width=2)
    graph.add("MatMul", top, graph.random(HIDDEN, 4), to="score")
    return _write(
        root, graph, _manifest(name, version, "stream", cell, HIDDEN, TensorCodec(outputs=("score",))), files={}
    )


def write_endless_bundle(root: Path, name: str = "endless", version: str = "1", *, above: float = ENDLESS) -> Path:
    """Write a `stream` bundle that never ends a run in which a value is larger than `above`, and return its folder."""
    graph = _Graph(seed=0)
    top = _recurrent(graph, "values", "gru", HIDDEN, width=2)
    score = graph.add("MatMul", top, graph.random(HIDDEN, 4))
    is_endless = graph.add("Greater", graph.add("ReduceMax", "values", keepdims=0), graph.scalar(above))
    body = helper.make_graph(
        [helper.make_node("Identity", ["goes_on"], ["goes_on_still"]), helper.make_node("Neg", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("goes_on_still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, []),
        ],
    )
    nothing = graph.add("Loop", "", is_endless, graph.scalar(0.0), body=body)
    graph.add("Add", score, nothing, to="score")
    manifest = _manifest(name, version, "stream", "gru", HIDDEN, TensorCodec(outputs=("score",)))
    return _write(root, graph, manifest, files={})


def write_greedy_bundle(root: Path, name: str = "greedy", version: str = "1") -> Path:
    """Write a `stream` bundle of which each run asks for 100 GB, and return its folder."""
    graph = _Graph(seed=0)
    top = _recurrent(graph, "values", "gru", HIDDEN, width=2)
    score = graph.add("MatMul", top, graph.random(HIDDEN, 4))
    much = graph.add("ConstantOfShape", graph.integers(25_000, 1_000_000))
    graph.add("Add", score, graph.add("ReduceSum", much, keepdims=0), to="score")
    manifest = _manifest(name, version, "stream", "gru", HIDDEN, TensorCodec(outputs=("score",)))
    return _write(root, graph, manifest, files={})


def write_slow_bundle(root: Path, name: str = "slow", version: str = "1") -> Path:
    """Write a `stream` bundle whose constants take onnxruntime some seconds to compute when it is loaded."""
    graph = _Graph(seed=0)
    top = _recurrent(graph, "values", "gru", HIDDEN, width=2)
    score = graph.add("MatMul", top, graph.random(HIDDEN, 4))
    value = numpy_helper.from_array(np.full(1, 1e-9, np.float32))
    matrix = graph.add("ConstantOfShape", graph.integers(1600, 1600), value=value)
    for _ in range(30):
        matrix = graph.add("MatMul", matrix, matrix)
    graph.add("Add", score, graph.add("ReduceSum", matrix, keepdims=0), to="score")
    manifest = _manifest(name, version, "stream", "gru", HIDDEN, TensorCodec(outputs=("score",)))
    return _write(root, graph, manifest, files={})


def _recurrent(graph: _Graph, inputs: str, cell: str, hidden: int, width: int) -> str:
    """Stack the layers on `inputs` [batch, time, width]; returns the top layer's outputs [batch, time, hidden]."""
    states = _states(cell)
    outputs: dict[str, list[str]] = {state: [] for state in states}
    current = graph.add("Transpose", inputs, perm=[1, 0, 2])
    for layer in range(LAYERS):
        size = GATES[cell] * hidden
        weights = [graph.random(1, size, hidden if layer else width), graph.random(1, size, hidden)]
        initial = [graph.slice(f"{state}_in", layer, layer + 1, 0) for state in states]
        finals = [f"{state}_{layer}" for state in states]
        extra = {"linear_before_reset": 1} if cell == "gru" else {}
        results = [f"y_{layer}", *finals]
        bias = graph.random(1, 2 * size)
        graph.add_many(cell.upper(), [current, *weights, bias, "", *initial], results, hidden_size=hidden, **extra)
        current = graph.add("Squeeze", f"y_{layer}", graph.integers(1))
        for state, final in zip(states, finals, strict=True):
            outputs[state].append(final)
    for state in states:
        graph.add("Concat", *outputs[state], to=f"{state}_out", axis=0)
    return graph.add("Transpose", current, perm=[1, 0, 2])


def _with_state_before(graph: _Graph, top: str) -> str:
    """Put the top layer's state before the first step in front: [batch, time + 1, hidden]."""
    before = graph.add("Transpose", graph.slice("h_in", LAYERS - 1, LAYERS, 0), perm=[1, 0, 2])
    return graph.add("Concat", before, top, axis=1)


def _states(cell: str) -> tuple[str, ...]:
    return ("h", "c") if cell == "lstm" else ("h",)


def _manifest(
    name: str, version: str, task: TaskName, cell: str, hidden: int, codec: Codec, num_tokens: int = 0
) -> Manifest:
    surprise = TensorSpec(name="surprise", dtype="float32", axes=(BATCH, TIME))
    match codec:
        case TokenCodec():
            inputs = TensorSpec(name="tokens", dtype="int64", axes=(BATCH, TIME))
            outputs = [TensorSpec(name="logits", dtype="float32", axes=(BATCH, TIME, num_tokens)), surprise]
            features: tuple[str, ...] = ()
        case ForecastCodec():
            inputs = TensorSpec(name="values", dtype="float32", axes=(BATCH, TIME, 3))
            axes = (BATCH, TIME, HORIZON, len(QUANTILES))
            outputs = [TensorSpec(name="quantiles", dtype="float32", axes=axes), surprise]
            features = ("load", "hour")
        case TensorCodec():
            inputs = TensorSpec(name="values", dtype="float32", axes=(BATCH, TIME, 2))
            outputs = [TensorSpec(name="score", dtype="float32", axes=(BATCH, TIME, 4))]
            features = ("left", "right")
    return Manifest(
        name=name,
        version=version,
        task=task,
        cell=cell,
        inputs=(inputs,),
        outputs=tuple(outputs),
        states=tuple(
            StateSpec(input=f"{state}_in", output=f"{state}_out", dtype="float32", axes=(LAYERS, BATCH, hidden))
            for state in _states(cell)
        ),
        features=features,
        codec=codec,
        proof=Proof(passed=True, max_error=0.0, cases=1, runtime="asserted by tests/bundles.py"),
    )


def _write(root: Path, graph: _Graph, manifest: Manifest, files: Mapping[str, bytes]) -> Path:
    states_in = [TensorSpec(name=state.input, dtype=state.dtype, axes=state.axes) for state in manifest.states]
    states_out = [TensorSpec(name=state.output, dtype=state.dtype, axes=state.axes) for state in manifest.states]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            manifest.name,
            [_value_info(spec) for spec in (*manifest.inputs, *states_in)],
            [_value_info(spec) for spec in (*manifest.outputs, *states_out)],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    card = f"# {manifest.name}\n\nRandom weights, for tests.\n"
    return write_bundle(root, manifest, {GRAPH: model.SerializeToString(), CARD: card.encode(), **files})


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    dtype = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}[spec.dtype]
    return helper.make_tensor_value_info(spec.name, dtype, list(spec.axes))
