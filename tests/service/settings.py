"""A tiny graph with settings, and what numpy says it computes: for tests of what a caller gives beside a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, ValueInfoProto, helper

from tidegate.bundle import (
    BATCH,
    CARD,
    GRAPH,
    TIME,
    Manifest,
    Proof,
    SettingSpec,
    StateSpec,
    TensorCodec,
    TensorSpec,
    write_bundle,
)

LIMIT, SPEAKER = 2.0, (1.0, -1.0)
Array = NDArray[np.float32]

LIMITED = SettingSpec(name="limit", dtype="float32", axes=(BATCH,), default=(LIMIT,))
SPOKEN = SettingSpec(name="speaker", dtype="float32", axes=(BATCH, 2), default=SPEAKER)
LANGUAGE = SettingSpec(name="language", dtype="int64", axes=(BATCH,), default=(0,))


def write_bundle_with_settings(root: Path, name: str = "tuned", version: str = "1") -> Path:
    """Write a bundle whose output is ``min(Σ x + speaker, limit) + language`` a column, and whose state is Σ x."""
    nodes = [
        helper.make_node("CumSum", ["x", "one"], ["sums"]),
        helper.make_node("Unsqueeze", ["state", "one"], ["before"]),
        helper.make_node("Add", ["sums", "before"], ["all"]),
        helper.make_node("Gather", ["all", "last"], ["next"], axis=1),
        helper.make_node("Unsqueeze", ["speaker", "one"], ["spoken"]),
        helper.make_node("Add", ["all", "spoken"], ["free"]),
        helper.make_node("Reshape", ["limit", "three"], ["bound"]),
        helper.make_node("Min", ["free", "bound"], ["bounded"]),
        helper.make_node("Cast", ["language" ], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["number", "three"], ["added"]),
        helper.make_node("Add", ["bounded", "added"], ["y"]),
    ]  # fmt: skip
    constants = [
        helper.make_tensor("one", TensorProto.INT64, [1], [1]),
        helper.make_tensor("last", TensorProto.INT64, [], [-1]),
        helper.make_tensor("three", TensorProto.INT64, [3], [-1, 1, 1]),
    ]
    inputs = [TensorSpec(name="x", dtype="float32", axes=(BATCH, TIME, 2))]
    outputs = [TensorSpec(name="y", dtype="float32", axes=(BATCH, TIME, 2))]
    state = StateSpec(input="state", output="next", dtype="float32", axes=(BATCH, 2))
    settings = (LIMITED, SPOKEN, LANGUAGE)

    def value(tensor: str, dtype: str, axes: Sequence[str | int]) -> ValueInfoProto:
        kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
        return helper.make_tensor_value_info(tensor, kinds[dtype], list(axes))

    graph = helper.make_graph(
        nodes,
        "tuned",
        [value(spec.name, spec.dtype, spec.axes) for spec in (*inputs, *settings)]
        + [value("state", "float32", (BATCH, 2))],
        [value("y", "float32", (BATCH, TIME, 2)), value("next", "float32", (BATCH, 2))],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    manifest = Manifest(
        name=name,
        version=version,
        task="stream",
        cell="foreign",
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        states=(state,),
        settings=settings,
        codec=TensorCodec(outputs=("y",)),
        proof=Proof(passed=True, max_error=0.0, cases=1, runtime="none"),
    )
    return write_bundle(root, manifest, {GRAPH: model.SerializeToString(), CARD: b"a test\n"})


def by_hand(
    x: Array, state: Array, limit: float = LIMIT, speaker: Sequence[float] = SPEAKER, language: int = 0
) -> tuple[Array, Array]:
    """Return what the graph gives for one row's steps, [steps, 2], and its next state, [2]."""
    sums = (np.cumsum(x, axis=0) + state).astype(np.float32)
    free = sums + np.array(speaker, np.float32)
    return np.minimum(free, np.float32(limit)) + np.float32(language), sums[-1]
