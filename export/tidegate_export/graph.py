"""Writes the ONNX graph of a stateful module: named axes, nothing but what a runtime needs, checked.

Knows `torch.export`, `torch.onnx.export` and the manifest's names. Where the module and the manifest come from is not
known here.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, shape_inference
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tidegate.bundle import Axis, Manifest, StateSpec, TensorSpec
from tidegate.replay import random_inputs
from tidegate_export.errors import ExportError
from tidegate_export.operators import OPSET, translations

_ROWS, _STEPS = 2, 5
"""Sizes of the example that is traced: neither is 1, which torch.export would take for a constant."""


def write_graph(module: nn.Module, manifest: Manifest) -> bytes:
    """Return the ONNX graph of `module`: `forward(*inputs, *states) -> (*outputs, *states)` in the manifest's order.

    Raises:
        ExportError: PyTorch cannot export the module with a dynamic batch and time.
    """
    inputs, states = example(manifest, rows=_ROWS, steps=_STEPS)
    specs: list[TensorSpec | StateSpec] = [*manifest.sources, *manifest.states]
    with _quiet(), torch.no_grad():
        program = _captured(module.eval(), (*inputs, *states), specs)
        try:
            written = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=OPSET,
                input_names=[*(spec.name for spec in manifest.sources), *(state.input for state in manifest.states)],
                output_names=[*(out.name for out in manifest.outputs), *(state.output for state in manifest.states)],
                custom_translation_table=translations(),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"torch.onnx.export fails: {_why_not_written(error)}") from error
    assert written is not None  # with dynamo=True
    return _cleaned(written.model_proto, manifest)


def example(manifest: Manifest, *, rows: int, steps: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return inputs and initial states of the manifest's shapes."""
    inputs = random_inputs(manifest, rows, steps, np.random.default_rng(0))
    states = []
    for state in manifest.states:
        shape = tuple(axis if isinstance(axis, int) else rows for axis in state.axes)
        states.append(torch.full(shape, state.initial, dtype=getattr(torch, state.dtype)))
    return [torch.from_numpy(inputs[spec.name]) for spec in manifest.sources], states


def _captured(
    module: nn.Module, tensors: tuple[Tensor, ...], specs: Sequence[TensorSpec | StateSpec]
) -> ExportedProgram:
    """Return the module's program for any batch and any number of steps.

    `torch.onnx.export` itself would go on with a size that forward fixes, or with one of two branches on a size.
    """
    try:
        return _program(module, tensors, specs)
    except Exception as error:  # the user's code runs on tensors without values and may raise anything
        _refuse_conditions(str(error))
        if "Constraints violated" not in str(error):
            # The compiler understands some of what plain tracing does not, such as NumPy's functions.
            with suppress(Exception):
                return _program(module, tensors, specs, is_strict=True)
            raise ExportError(f"torch.export fails: {_why_not_captured(error)}") from error
    try:
        return _program(module, tensors, specs, is_named=False)
    except Exception as error:
        raise ExportError(f"torch.export fails: {_why_not_captured(error)}") from error


def _program(
    module: nn.Module,
    tensors: tuple[Tensor, ...],
    specs: Sequence[TensorSpec | StateSpec],
    *,
    is_strict: bool = False,
    is_named: bool = True,
) -> ExportedProgram:
    """Capture `module`; with names for the sizes, torch.export says what the program would not hold for."""
    shapes = [
        {index: Dim(axis) if is_named else Dim.AUTO for index, axis in enumerate(spec.axes) if isinstance(axis, str)}
        for spec in specs
    ]
    return torch.export.export(module, tensors, dynamic_shapes=(shapes[0], tuple(shapes[1:])), strict=is_strict)


def _refuse_conditions(text: str) -> None:
    """Refuse a program that holds only for some sizes; one that asks whether a size is 1 holds for all others.

    What it does with a single step or row is compared with PyTorch later.
    """
    fixed = re.search(r"You marked (\w+) as dynamic but your code specialized it to be a constant \((\d+)\)", text)
    if fixed is not None:
        what = "steps" if fixed[1] == "time" else "rows"
        raise ExportError(
            f"forward fixes the number of {what} once it is exported: a loop in Python over the {what} (use nn.LSTM, "
            "nn.GRU or nn.RNN), or a size that is turned into a number"
        )
    for guard in re.findall(r"satisfy the generated guard (.*?)\.?$", text, re.MULTILINE):
        if not _asks_for_one(guard):
            shown = re.sub(r"L\['\w+'\](\[\d+\])*\.size\(\)\[\d+\]", "size", guard)
            raise ExportError(
                f"forward does something else where a sequence is longer or shorter: it asks whether {shown}; a stream "
                "comes in chunks of any size, so it must do the same with each"
            )


def _asks_for_one(guard: str) -> bool:
    """Whether a condition only says that a size (or a number of elements) is not 1 (or 0)."""
    left, is_unequal, right = guard.replace("(", "").replace(")", "").rpartition(" != ")
    if not is_unequal or not right.isdecimal():
        return False
    factor = 1
    for number in re.findall(r"(?:^|\*)(\d+)(?=\*|$)", re.sub(r"L\['\w+'\](\[\d+\])*\.size\[\d+\]", "", left)):
        factor *= int(number)
    return int(right) in {0, 1, factor}


def _why_not_captured(error: Exception) -> str:
    text = str(error)
    place = re.search(r'The following call raised this error:\s+File "([^"]+)", line (\d+)', text)
    where = f" ({place[1].rpartition('/')[2]}, line {place[2]})" if place else ""
    if "data-dependent" in text:
        return (
            f"forward decides by the values of its input{where}: an `if` on a tensor, .item() or float(); "
            "write it with torch.where and tensors"
        )
    return _first_line(error) + where


def _why_not_written(error: Exception) -> str:
    cause = _cause(error)
    found = re.search(r"No ONNX function found for <OpOverload\(op='([\w:.]+)'", str(cause))
    return f"ONNX has no operator for PyTorch's {found[1]}" if found else _first_line(error)


def _cleaned(model: onnx.ModelProto, manifest: Manifest) -> bytes:
    """Drop what the exporter remembers of the machine (paths, stacks), name the axes, and check what is left."""
    for item in _annotated(model):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    del model.graph.value_info[:]  # the runtime infers them; ours would only repeat it
    states = [state.axes for state in manifest.states]
    axes = [*(spec.axes for spec in manifest.sources), *states, *(spec.axes for spec in manifest.outputs), *states]
    for edge, named in zip((*model.graph.input, *model.graph.output), axes, strict=True):
        _name_axes(edge, named)
    model.graph.name = manifest.name
    if _has_type(model, TensorProto.BFLOAT16):
        raise ExportError(
            "forward computes in bfloat16 (autocast?), which onnxruntime does not on the CPU: leave it out of forward"
        )
    onnx.checker.check_model(model, full_check=True)
    shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    return bytes(model.SerializeToString(deterministic=True))


def computes_in_half(graph: bytes) -> bool:
    """Whether a graph has tensors in fp16."""
    return _has_type(onnx.load_from_string(graph), TensorProto.FLOAT16)


def _has_type(model: onnx.ModelProto, data_type: int) -> bool:
    edges = (*model.graph.input, *model.graph.output)
    return (
        any(item.data_type == data_type for item in model.graph.initializer)
        or any(edge.type.tensor_type.elem_type == data_type for edge in edges)
        or any(
            node.op_type == "Cast" and attribute.i == data_type
            for node in (*model.graph.node, *(node for function in model.functions for node in function.node))
            for attribute in node.attribute
            if attribute.name == "to"
        )
    )


def _name_axes(edge: onnx.ValueInfoProto, axes: Sequence[Axis]) -> None:
    """Give the axes that vary the manifest's names; the exporter calls them by its symbols."""
    for axis, dim in zip(axes, edge.type.tensor_type.shape.dim, strict=True):
        if isinstance(axis, str) and dim.WhichOneof("value") != "dim_value":
            dim.dim_param = axis


def _annotated(model: onnx.ModelProto) -> Iterator[Any]:
    graph = model.graph
    yield from (model, graph)
    for items in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer, model.functions):
        yield from items


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on torchvision and on itself, and its dumps of a program that it cannot export, from
    a user who can do nothing about them.
    """
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    cause = _cause(error)
    return str(cause).strip().partition("\n")[0] or type(cause).__name__


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
