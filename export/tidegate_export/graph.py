"""Writes the ONNX graph of a stateful module: named axes, nothing but what a runtime needs, checked.

Knows `torch.onnx.export` and the manifest's names. Where the module and the manifest come from is not known here.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from onnx import shape_inference
from torch import Tensor, nn
from torch.export import Dim

from tidegate.bundle import Manifest, StateSpec, TensorSpec
from tidegate.replay import random_inputs
from tidegate_export.errors import ExportError
from tidegate_export.operators import OPSET, translations

_ROWS, _STEPS = 2, 5
"""Sizes of the example that is traced: neither is 1, which torch.export would take for a constant."""


def write_graph(module: nn.Module, manifest: Manifest) -> bytes:
    """Return the ONNX graph of `module`: `forward(x, *states) -> (*outputs, *states)` in the manifest's order.

    Raises:
        ExportError: PyTorch cannot export the module with a dynamic batch and time.
    """
    x, states = example(manifest, rows=_ROWS, steps=_STEPS)
    (spec,) = manifest.inputs
    shapes = (_dynamic(spec), tuple(_dynamic(state) for state in manifest.states))
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                (x, *states),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=shapes,
                input_names=[spec.name, *(state.input for state in manifest.states)],
                output_names=[*(out.name for out in manifest.outputs), *(state.output for state in manifest.states)],
                custom_translation_table=translations(),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"torch.onnx.export fails: {_first_line(error)}") from error
    assert program is not None  # with dynamo=True
    return _cleaned(program.model_proto, manifest)


def example(manifest: Manifest, *, rows: int, steps: int) -> tuple[Tensor, list[Tensor]]:
    """Return an input and initial states of the manifest's shapes."""
    inputs = random_inputs(manifest, rows, steps, np.random.default_rng(0))
    states = []
    for state in manifest.states:
        shape = tuple(axis if isinstance(axis, int) else rows for axis in state.axes)
        states.append(torch.full(shape, state.initial, dtype=getattr(torch, state.dtype)))
    return torch.from_numpy(inputs[manifest.inputs[0].name]), states


def _dynamic(spec: TensorSpec | StateSpec) -> dict[int, Any]:
    return {index: Dim(axis) for index, axis in enumerate(spec.axes) if isinstance(axis, str)}


def _cleaned(model: onnx.ModelProto, manifest: Manifest) -> bytes:
    """Drop what the exporter remembers of the machine (paths, stacks), and check what is left."""
    for item in _annotated(model):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    del model.graph.value_info[:]  # the runtime infers them; ours would only repeat it
    model.graph.name = manifest.name
    onnx.checker.check_model(model, full_check=True)
    shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    return bytes(model.SerializeToString(deterministic=True))


def _annotated(model: onnx.ModelProto) -> Iterator[Any]:
    graph = model.graph
    yield from (model, graph)
    for items in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer, model.functions):
        yield from items


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on torchvision and on itself from a user who can do nothing about them."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return str(cause).strip().partition("\n")[0] or type(cause).__name__
