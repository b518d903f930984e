"""`tidegate import`: weights in files of their own are taken from the model's folder and from nowhere else, wherever in
the model they are named.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from tests.export.importing.graphs import lstm
from tests.export.importing.importing import imported, refusal, walked

SECRET = np.arange(3, dtype=np.float32) + 41
OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]


def elsewhere(location: str, dims: tuple[int, ...] = (3,), dtype: int = TensorProto.FLOAT) -> TensorProto:
    """Three numbers that lie in another file."""
    tensor = TensorProto(name="far", data_type=dtype, dims=dims, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def attribute(name: str, tensor: TensorProto) -> AttributeProto:
    return AttributeProto(name=name, type=AttributeProto.TENSOR, t=tensor)


def constant(tensor: TensorProto, to: str = "far") -> onnx.NodeProto:
    node = helper.make_node("Constant", [], [to])
    node.attribute.append(attribute("value", tensor))
    return node


def with_nodes(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """An LSTM whose output goes through `nodes`, from `y` to `told`."""
    model = lstm().model()
    model.graph.node.extend(nodes)
    model.graph.output.append(helper.make_tensor_value_info("told", TensorProto.FLOAT, None))
    return model


def calling(*body: onnx.NodeProto, default: TensorProto | None = None, depth: int = 1) -> onnx.ModelProto:
    """A model whose local function has this body, from `v` to `w`; `depth` functions call each other to get there."""
    model = with_nodes(helper.make_node("F0", ["y"], ["told"], domain="acme"))
    model.opset_import.append(OPSETS[1])
    for number in range(depth - 1):
        call = helper.make_node(f"F{number + 1}", ["v"], ["w"], domain="acme")
        model.functions.append(helper.make_function("acme", f"F{number}", ["v"], ["w"], [call], OPSETS))
    defaults = [] if default is None else [attribute("what", default)]
    model.functions.append(
        helper.make_function("acme", f"F{depth - 1}", ["v"], ["w"], body, OPSETS, attribute_protos=defaults)
    )
    return model


def branch(tensor: TensorProto, to: str, *, is_initializer: bool) -> onnx.NodeProto:
    """An If that gives `tensor` in either branch."""
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    copy = [helper.make_node("Identity", ["far"], ["out"])]
    nodes, weights = (copy, [tensor]) if is_initializer else ([constant(tensor), *copy], [])
    branches = [(name, helper.make_graph(nodes, name, [], [out], weights)) for name in ("then_branch", "else_branch")]
    node = helper.make_node("If", ["yes"], [to])
    node.attribute.extend(AttributeProto(name=name, type=AttributeProto.GRAPH, g=graph) for name, graph in branches)
    return node


def yes() -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))


ADD = helper.make_node("Add", ["y", "far"], ["told"])
ADD_INSIDE = helper.make_node("Add", ["v", "far"], ["w"])


def initializer(tensor: TensorProto) -> onnx.ModelProto:
    model = with_nodes(ADD)
    model.graph.initializer.append(tensor)
    return model


def default_of_a_function(tensor: TensorProto) -> onnx.ModelProto:
    node = helper.make_node("Constant", [], ["far"])
    node.attribute.append(AttributeProto(name="value", type=AttributeProto.TENSOR, ref_attr_name="what"))
    return calling(node, ADD_INSIDE, default=tensor)


PLACES: dict[str, Callable[[TensorProto], onnx.ModelProto]] = {
    "initializer": initializer,
    "attribute": lambda tensor: with_nodes(constant(tensor), ADD),
    "initializer of a branch": lambda tensor: with_nodes(yes(), branch(tensor, "far", is_initializer=True), ADD),
    "attribute in a branch": lambda tensor: with_nodes(yes(), branch(tensor, "far", is_initializer=False), ADD),
    "local function": lambda tensor: calling(constant(tensor), ADD_INSIDE),
    "branch in a local function": lambda tensor: calling(yes(), branch(tensor, "far", is_initializer=True), ADD_INSIDE),
    "function called by functions": lambda tensor: calling(constant(tensor), ADD_INSIDE, depth=4),
    "default of a function's attribute": default_of_a_function,
}


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "foreign.onnx"
    file.write_bytes(model.SerializeToString())
    return file


@pytest.mark.parametrize("place", PLACES)
def test_weights_beside_the_model_are_taken_in_wherever_they_are_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "weights.bin").write_bytes(SECRET.tobytes())
    bundle = imported(saved(PLACES[place](elsewhere("weights.bin")), tmp_path), tmp_path)
    assert b"weights.bin" not in bundle.graph
    results = walked(bundle, [4]).outputs
    np.testing.assert_allclose(results["told"] - results["y"], np.broadcast_to(SECRET, (4, 1, 3)), atol=1e-4)


@pytest.mark.parametrize("location", ["../secret.bin", "{root}/secret.bin", "link.bin", "folder/secret.bin"])
@pytest.mark.parametrize("place", PLACES)
def test_weights_elsewhere_are_never_read_wherever_they_are_named(tmp_path: Path, place: str, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(SECRET.tobytes())
    file = saved(PLACES[place](elsewhere(location.format(root=tmp_path))), tmp_path / "model")
    (tmp_path / "model" / "link.bin").symlink_to(tmp_path / "secret.bin")
    (tmp_path / "model" / "folder").symlink_to(tmp_path)
    assert "outside the model's folder" in refusal(file, tmp_path)


def odd_places(location: str) -> list[onnx.ModelProto]:
    """Models that name a file where no runtime looks today, or another might."""
    mistyped, listed, unread = with_nodes(constant(elsewhere(location)), ADD), with_nodes(ADD), with_nodes(ADD)
    mistyped.graph.node[-2].attribute[0].type = AttributeProto.FLOAT
    far = AttributeProto(name="whats", type=AttributeProto.TENSORS, tensors=[elsewhere(location)])
    listed.graph.node[0].attribute.append(far)
    values, places = (elsewhere(location), elsewhere(location, dtype=TensorProto.INT64))
    near = [numpy_helper.from_array(SECRET, "near"), numpy_helper.from_array(np.arange(3), "places")]
    sparse = [
        SparseTensorProto(values=values, indices=near[1], dims=[3]),
        SparseTensorProto(values=near[0], indices=places, dims=[3]),
    ]
    unread.graph.sparse_initializer.append(sparse[0])
    sparse_constants = []
    for item in sparse:
        node = helper.make_node("Constant", [], ["far"])
        node.attribute.append(
            AttributeProto(name="sparse_value", type=AttributeProto.SPARSE_TENSOR, sparse_tensor=item)
        )
        sparse_constants += [with_nodes(node, ADD), calling(node, ADD_INSIDE)]
    return [mistyped, listed, unread, *sparse_constants]


@pytest.mark.parametrize("number", range(7))
def test_no_odd_place_gets_around_the_folder(tmp_path: Path, number: int) -> None:
    (tmp_path / "secret.bin").write_bytes(SECRET.tobytes())
    file = saved(odd_places("../secret.bin")[number], tmp_path / "model")
    assert "outside the model's folder" in refusal(file, tmp_path)


def test_what_only_trains_is_left_out_unread(tmp_path: Path) -> None:
    model = lstm().model()
    model.training_info.add().algorithm.initializer.append(elsewhere("../secret.bin"))
    assert b"secret" not in imported(saved(model, tmp_path), tmp_path).graph


@pytest.mark.parametrize("location", ["", "a\0b", "a" * 5000, "loop"])
def test_what_is_no_name_of_a_file_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    told = refusal(saved(initializer(elsewhere(location)), tmp_path), tmp_path)
    assert any(words in told for words in ("in no file", "which is no file's name", "not beside the model"))
    assert len(told) < 300
