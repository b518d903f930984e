"""Weights in ONNX's order: the operators' own definition gives what PyTorch's layers give."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from tidegate.proof import ABSOLUTE, excess
from tidegate_export.operators import OPSET, Recurrent, cell_of, onnx_weights

HIDDEN, WIDTH = 5, 3


@pytest.mark.parametrize(
    "module",
    [nn.LSTM(WIDTH, HIDDEN), nn.LSTM(WIDTH, HIDDEN, bias=False), nn.GRU(WIDTH, HIDDEN), nn.RNN(WIDTH, HIDDEN)],
    ids=["lstm", "lstm-without-bias", "gru", "rnn"],
)
def test_the_reference_evaluator_agrees_with_pytorch(module: Recurrent) -> None:
    torch.manual_seed(3)
    x, h = torch.randn(7, 2, WIDTH), torch.randn(1, 2, HIDDEN)
    states = (h, torch.randn(1, 2, HIDDEN)) if cell_of(module) == "lstm" else (h,)
    with torch.no_grad():
        expected, _ = module(x, states if len(states) == 2 else h)
    names = ["x", "h", "c"][: 1 + len(states)]
    feeds = {name: value.numpy() for name, value in zip(names, (x, *states), strict=True)}
    (found,) = ReferenceEvaluator(_model(module, names)).run(None, feeds)
    assert excess(expected.numpy(), np.asarray(found)[:, 0]) <= ABSOLUTE


def _model(module: Recurrent, names: list[str]) -> onnx.ModelProto:
    cell = cell_of(module)
    attributes: dict[str, Any] = {"linear_before_reset": 1} if cell == "gru" else {}
    node = helper.make_node(
        cell.upper(), [names[0], "w", "r", "b", "", *names[1:]], ["y"], hidden_size=HIDDEN, **attributes
    )
    weights = [
        numpy_helper.from_array(tensor.numpy(), name)
        for name, tensor in zip("wrb", onnx_weights(module, 0), strict=True)
    ]
    float32 = onnx.TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info(name, float32, None) for name in names]
    graph = helper.make_graph([node], "one-layer", inputs, [helper.make_tensor_value_info("y", float32, None)], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
