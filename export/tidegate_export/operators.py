"""One torch operator per recurrent cell, each translated to one ONNX operator.

Knows weight layouts: PyTorch stacks gates as i, f, g, o (LSTM) and r, z, n (GRU), ONNX as i, o, f, c and z, r, h;
PyTorch has a module for many layers, ONNX an operator for one. Knows nothing of modules around a cell or where state
comes from.

The torch operators are placeholders: they carry shapes through `torch.export` and are never run. What runs in PyTorch
is the user's own `nn.LSTM`, what runs in onnxruntime is the ONNX operator, and parity compares the two.

Sources: https://onnx.ai/onnx/operators/onnx__LSTM.html (and GRU, RNN), and the pages of torch.nn.LSTM, GRU, RNN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from onnxscript import opset21
from torch import Tensor, nn

OPSET = 21
"""Newest opset whose every kernel onnxruntime 1.22, the oldest that tidegate accepts, has on the CPU."""

Recurrent: TypeAlias = nn.LSTM | nn.GRU | nn.RNN

_GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}
"""Where ONNX's gates lie among PyTorch's, in ONNX's order."""

_STEP = "Tensor x, Tensor w, Tensor r, Tensor b, Tensor h"
torch.library.define("tidegate::lstm", f"({_STEP}, Tensor c, int hidden) -> (Tensor, Tensor, Tensor)")
torch.library.define("tidegate::gru", f"({_STEP}, int hidden) -> (Tensor, Tensor)")
torch.library.define("tidegate::rnn", f"({_STEP}, int hidden, str nonlinearity) -> (Tensor, Tensor)")


def cell_of(module: Recurrent) -> str:
    """Return `lstm`, `gru` or `rnn`."""
    if isinstance(module, nn.LSTM):
        return "lstm"
    return "gru" if isinstance(module, nn.GRU) else "rnn"


def onnx_weights(module: Recurrent, layer: int, suffix: str = "") -> tuple[Tensor, Tensor, Tensor]:
    """Return the layer's W [1, gates·hidden, input], R [1, gates·hidden, hidden] and B [1, 2·gates·hidden] for ONNX.

    `suffix` is `_reverse` for the backward half of a bidirectional layer.
    """
    order = _GATES[cell_of(module)]

    def ordered(name: str) -> Tensor:
        gates = getattr(module, f"{name}_l{layer}{suffix}").detach().chunk(len(order))
        return torch.cat([gates[gate] for gate in order])

    w, r = ordered("weight_ih"), ordered("weight_hh")
    b = torch.cat((ordered("bias_ih"), ordered("bias_hh"))) if module.bias else w.new_zeros(2 * len(w))
    return w.unsqueeze(0), r.unsqueeze(0), b.unsqueeze(0)


def run_layer(
    module: Recurrent, x: Tensor, weights: Sequence[Tensor], states: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a layer over x [time, batch, input] from states [1, batch, hidden]: [time, 1, batch, hidden], and states."""
    operators, hidden = torch.ops.tidegate, module.hidden_size
    if isinstance(module, nn.RNN):
        y, *after = operators.rnn(x, *weights, *states, hidden, module.nonlinearity)
    else:
        y, *after = getattr(operators, cell_of(module))(x, *weights, *states, hidden)
    return y, tuple(after)


def _shapes_of(x: Tensor, w: Tensor, r: Tensor, b: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Give empty tensors of the results' shapes: all that `torch.export` needs."""
    states = [item for item in rest if isinstance(item, Tensor)]
    y = x.new_empty(x.shape[0], 1, x.shape[1], r.shape[2])
    return (y, *(torch.empty_like(state) for state in states))


for _name in _GATES:
    torch.library.register_fake(f"tidegate::{_name}", _shapes_of)


def _lstm(x: Any, w: Any, r: Any, b: Any, h: Any, c: Any, hidden: int) -> Any:
    return opset21.LSTM(x, w, r, b, None, h, c, hidden_size=hidden)


def _gru(x: Any, w: Any, r: Any, b: Any, h: Any, hidden: int) -> Any:
    # PyTorch multiplies by the reset gate after the linear map, ONNX's default is before it.
    return opset21.GRU(x, w, r, b, None, h, hidden_size=hidden, linear_before_reset=1)


def _rnn(x: Any, w: Any, r: Any, b: Any, h: Any, hidden: int, nonlinearity: str) -> Any:
    return opset21.RNN(x, w, r, b, None, h, hidden_size=hidden, activations=[nonlinearity.capitalize()])


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the table by which `torch.onnx.export` turns our operators into ONNX's."""
    operators = torch.ops.tidegate
    return {operators.lstm.default: _lstm, operators.gru.default: _gru, operators.rnn.default: _rnn}
