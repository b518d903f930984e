"""`tidegate import` of graphs that round: int8 scales taken by run, fixed ones, fp16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16

from tests.export.importing.graphs import lstm
from tests.export.importing.importing import axes, imported, pairs, refusal
from tests.export.importing.test_refused import hidden
from tidegate.proof import ABSOLUTE, check_bundle

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def by_run(model: onnx.ModelProto, root: Path) -> Path:
    file = root / "int8.onnx"
    quantize_dynamic(model, file, op_types_to_quantize=["LSTM", "MatMul"], weight_type=QuantType.QInt8)
    return file


def test_int8_scales_of_a_run_make_rows_and_steps_run_one_by_one(tmp_path: Path) -> None:
    bundle = imported(by_run(lstm().model(), tmp_path), tmp_path)
    assert pairs(bundle) == {"h_in": "h_out", "c_in": "c_out"}
    assert axes(bundle) == {"x": ("time", "batch", 4), "y": ("time", "batch", 3)}
    assert not bundle.manifest.batch_invariant
    proof = check_bundle(bundle.path)
    assert proof.tolerance == ABSOLUTE  # steps never share a scale
    assert "int8 scales are taken by run: steps run one by one" in (bundle.path / "card.md").read_text()


def test_a_hidden_state_is_lifted_out_of_a_graph_that_rounds(tmp_path: Path) -> None:
    bundle = imported(by_run(hidden().model(), tmp_path), tmp_path)
    assert pairs(bundle).keys() == {"h_in", "lifted.0.h_in"}


class Samples(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        state = np.zeros((1, 2, 8), np.float32)
        x = [rng.normal(size=(6, 2, 4)).astype(np.float32) for _ in range(4)]
        self.left = [{"x": each, "h_in": state, "c_in": state} for each in x]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None


def test_fixed_int8_scales_leave_rows_and_steps_together(tmp_path: Path) -> None:
    source, file = lstm().save(tmp_path / "fp32.onnx"), tmp_path / "int8.onnx"
    quantize_static(source, file, Samples(), quant_format=QuantFormat.QDQ, op_types_to_quantize=["MatMul"])
    bundle = imported(file, tmp_path)
    assert axes(bundle) == {"x": ("time", "batch", 4), "y": ("time", "batch", 3)}
    assert bundle.manifest.is_batchable
    assert check_bundle(bundle.path).passed


@pytest.mark.parametrize("keeps_types", [True, False])
def test_fp16_is_proved_within_what_it_rounds(tmp_path: Path, keeps_types: bool) -> None:
    file = tmp_path / "fp16.onnx"
    half = convert_float_to_float16(lstm().model(), keep_io_types=keeps_types)
    file.write_bytes(half.SerializeToString())
    bundle = imported(file, tmp_path)
    assert bundle.manifest.inputs[0].dtype == ("float32" if keeps_types else "float16")
    assert bundle.manifest.batch_invariant
    proof = check_bundle(bundle.path)
    assert proof.tolerance <= 0.1


def test_what_counts_as_equal_may_be_said_and_is_recorded(tmp_path: Path) -> None:
    bundle = imported(lstm(), tmp_path, tolerance=1e-3)
    assert bundle.manifest.proof is not None
    assert bundle.manifest.proof.tolerance == 1e-3


def test_what_rounding_does_not_explain_is_refused(tmp_path: Path) -> None:
    net = lstm()
    (output,) = (item for item in net.outputs if item.name == "y")
    net.outputs.remove(output)
    loudest = net.add("ReduceMax", net.add("Abs", "y"), axes=[0], keepdims=1)
    share = net.add("CastLike", net.constant(np.array(0.05, np.float16)), "y")
    part = net.add("Mul", net.add("Div", "y", loudest), share)
    net.output(net.add("Add", "y", part), "z", "time", "batch", 3)
    assert "cannot stream" in refusal(net, tmp_path)
