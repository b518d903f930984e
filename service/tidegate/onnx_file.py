"""What a bundle's graph may hold, found by reading the ONNX file without the package ``onnx``.

A graph is data of somebody else's, and what onnxruntime would read for it beside the file is covered by no checksum. So
all tensors lie inside the file, and the file is read here as onnxruntime reads it: wherever a tensor can be.

Numbers of fields: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from typing import NamedTuple

from tidegate.errors import BundleError
from tidegate.limits import MAX_GRAPH_DEPTH, MAX_GRAPH_FIELDS
from tidegate.protobuf import Field, entries

_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _TRAINING = range(7)

_MODEL_GRAPH, _FUNCTIONS = 7, 25
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_IN_THE_FILE = b"\x70\x00"
"""The one way of writing that a tensor's data lies in the file, for who writes it at all."""

# Message → number of a field → the message that it holds: all ways to a tensor but by local functions.
_HOLDS = {
    _MODEL: {_MODEL_GRAPH: _GRAPH, 20: _TRAINING},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _TENSOR: {},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
}


class _Message(NamedTuple):
    kind: int
    content: memoryview
    depth: int


def check_graph(model: bytes, name: str) -> None:
    """Refuse a file that is no ONNX model, or one of which onnxruntime would read more than the file.

    Args:
        model: The content of the file.
        name: What errors call it.

    Raises:
        BundleError: Reason EXTERNAL_DATA where a tensor lies elsewhere, GRAPH_REFUSED otherwise.
    """
    try:
        has_graph = _walk(model, name)
    except ValueError as error:
        raise BundleError(f"{name}: not an ONNX file: {error}", reason="GRAPH_REFUSED") from error
    if not has_graph:
        raise BundleError(f"{name}: not an ONNX file: it holds no graph", reason="GRAPH_REFUSED")


def _walk(model: bytes, name: str) -> bool:
    """Look at every message that may hold a tensor; say whether there is a graph."""
    waiting, num_fields, has_graph = [_Message(_MODEL, memoryview(model), 0)], 0, False
    while waiting:
        message = waiting.pop()
        if message.depth > MAX_GRAPH_DEPTH:
            raise ValueError(f"messages lie within each other {MAX_GRAPH_DEPTH} deep")
        holds = _HOLDS[message.kind]
        for entry in entries(message.content):
            num_fields += 1
            if num_fields > MAX_GRAPH_FIELDS:
                raise ValueError(f"more than {MAX_GRAPH_FIELDS:,} fields")
            if entry.number in holds:
                waiting.append(_Message(holds[entry.number], entry.content, message.depth + 1))
                has_graph = has_graph or (message.kind == _MODEL and entry.number == _MODEL_GRAPH)
            elif message.kind == _MODEL and entry.number == _FUNCTIONS:
                # They may call each other a billion times over, and onnxruntime expands them all as it loads.
                raise BundleError(
                    f"{name}: the graph has local functions: `tidegate import` puts their nodes in place",
                    reason="GRAPH_REFUSED",
                )
            elif message.kind == _TENSOR and _is_elsewhere(entry):
                raise BundleError(
                    f"{name}: the graph has weights in other files, which no checksum covers: save it with all weights "
                    "inside (onnx.save_model without external data), or let `tidegate import` do that",
                    reason="EXTERNAL_DATA",
                )
    return has_graph


def _is_elsewhere(entry: Field) -> bool:
    """Whether a field of a tensor says that its data is not in the file, or may say so to another reader."""
    return entry.number == _EXTERNAL_DATA or (entry.number == _DATA_LOCATION and entry.encoding != _IN_THE_FILE)
