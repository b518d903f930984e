"""A bundle's graph holds all its tensors: wherever the format lets one lie, one that lies elsewhere is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tests.bundles import write_tiny_bundle
from tests.service.test_bundle import listed, refusal
from tidegate.bundle import GRAPH, read_bundle
from tidegate.errors import BundleError
from tidegate.onnx_file import check_graph
from tidegate.protobuf import block

Place = tuple[FieldDescriptor, ...]


def places(message: Any, seen: frozenset[str] = frozenset()) -> list[Place]:
    """All ways from a message to a tensor that go through no message twice, as the installed schema has them."""
    found: list[Place] = []
    for field in message.fields:
        inner = field.message_type
        if inner is None or inner.full_name in seen:
            continue
        if inner is onnx.TensorProto.DESCRIPTOR:
            found.append((field,))
        found += [(field, *rest) for rest in places(inner, seen | {message.full_name})]
    return found


PLACES = {".".join(field.name for field in place): place for place in places(onnx.ModelProto.DESCRIPTOR)}


def with_tensor(place: Place, tensor: onnx.TensorProto) -> bytes:
    model = onnx.ModelProto()
    model.graph.name = "g"
    message: Message = model
    for field in place:
        inner = getattr(message, field.name)
        message = inner.add() if hasattr(inner, "add") else inner
    message.CopyFrom(tensor)
    return model.SerializeToString()


def external() -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="w", dims=[1], data_type=1)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "weights.bin"
    return tensor


def reason(model: bytes) -> str:
    with pytest.raises(BundleError) as caught:
        check_graph(model, "model.onnx")
    assert caught.value.message.startswith("model.onnx: ")
    return caught.value.reason


def test_there_are_the_places_that_are_known() -> None:
    assert {
        "graph.initializer",
        "graph.sparse_initializer.values",
        "graph.node.attribute.t",
        "graph.node.attribute.tensors",
        "graph.node.attribute.sparse_tensor.indices",
        "training_info.initialization.initializer",
        "functions.node.attribute.t",
    } <= set(PLACES)


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_that_lies_elsewhere_is_found_wherever_it_may_be(place: str) -> None:
    wanted = "GRAPH_REFUSED" if place.startswith("functions") else "EXTERNAL_DATA"
    assert reason(with_tensor(PLACES[place], external())) == wanted
    by_location = onnx.TensorProto(name="w", dims=[1], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    assert reason(with_tensor(PLACES[place], by_location)) == wanted
    if wanted == "EXTERNAL_DATA":
        inside = onnx.TensorProto(name="w", data_type=1, float_data=[1], data_location=onnx.TensorProto.DEFAULT)
        check_graph(with_tensor(PLACES[place], inside), "model.onnx")


def test_bodies_within_bodies_are_looked_into() -> None:
    graph = onnx.GraphProto(name="innermost")
    graph.initializer.append(external())
    for _ in range(20):
        outer = onnx.GraphProto(name="outer")
        outer.node.add(op_type="Loop").attribute.add(name="body").g.CopyFrom(graph)
        graph = outer
    assert reason(onnx.ModelProto(graph=graph).SerializeToString()) == "EXTERNAL_DATA"


@pytest.mark.parametrize(
    "location",
    [
        b"\x70\x01",
        b"\x70\x81\x00",  # 1 in two bytes
        b"\x70\x81\x80\x80\x80\x10",  # 2^32 + 1, which is 1 in 32 bits
        b"\xf0\x00\x01",  # the field's number in two bytes
        b"\x70\x01\x70\x00",  # twice
    ],
)
def test_a_location_is_found_however_it_is_written(location: bytes) -> None:
    assert reason(block(7, block(5, location))) == "EXTERNAL_DATA"


@pytest.mark.parametrize(
    "model",
    [
        b"",
        b"no graph",
        b"\x08\x0a",  # a version and no graph
        block(7, b"\x0a\x05"),  # cut off within a node
        block(7, b"\xf3\x80\x80\x80\x10\x00"),  # a field's number beyond 32 bits
    ],
)
def test_what_is_no_graph_is_refused(model: bytes) -> None:
    assert reason(model) == "GRAPH_REFUSED"


def test_graphs_nested_beyond_what_readers_take_are_refused() -> None:
    graph = b""
    for _ in range(300):
        graph = block(1, block(5, block(6, graph)))
    assert reason(block(7, graph)) == "GRAPH_REFUSED"


def test_a_file_of_nothing_but_fields_is_refused() -> None:
    assert reason(block(7, b"\x08\x00" * 1_000_001)) == "GRAPH_REFUSED"


def test_local_functions_are_refused_for_they_may_expand_without_bound() -> None:
    model = onnx.ModelProto(graph=onnx.GraphProto(name="g"))
    model.functions.add(name="F", domain="local")
    assert reason(model.SerializeToString()) == "GRAPH_REFUSED"


def test_a_bundle_with_weights_in_other_files_is_refused_even_if_they_are_listed(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path)
    check_graph(read_bundle(path).graph, GRAPH)
    model = onnx.load(path / GRAPH)
    (path / GRAPH).unlink()
    onnx.save_model(model, path / GRAPH, save_as_external_data=True, location="weights.bin", size_threshold=0)
    listed(path, GRAPH, (path / GRAPH).read_bytes())
    listed(path, "weights.bin", (path / "weights.bin").read_bytes())
    error = refusal(path)
    assert error.reason == "EXTERNAL_DATA"
    assert "save it with all weights inside" in error.message
