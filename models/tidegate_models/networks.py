"""Networks with explicit state: encoder → stacked recurrent layers → head.

Knows shapes and parameters only; what the inputs and outputs mean is the tasks' business (`text`, `forecast`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

Cell: TypeAlias = Literal["lstm", "gru", "rnn"]
State: TypeAlias = tuple[Tensor, ...]
"""`(h, c)` for an LSTM, `(h,)` for a GRU or a plain RNN; each [layers, batch, hidden]."""

_LAYERS: dict[str, type[nn.LSTM | nn.GRU | nn.RNN]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class RecurrentNetwork(nn.Module):
    """An encoder, a stack of recurrent layers and a head, with the state passed in and handed back.

    The head sees nothing but the top layer's hidden state, so `head(h[-1])` of a state is the prediction made from it.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        head: nn.Module,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        dropout: float = 0.0,
    ) -> None:
        """Build the recurrent layers between `encoder` (to `input_size` columns) and `head` (from `hidden_size`)."""
        super().__init__()
        self.cell = cell
        self.num_layers = num_layers
        self.hidden_size = hidden_size
        self.encoder = encoder
        between = dropout if num_layers > 1 else 0.0  # torch warns about dropout that has no layer to stand between
        self.recurrent = _LAYERS[cell](input_size, hidden_size, num_layers, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.head = head
        if cell == "lstm":
            self._open_forget_gates()

    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Consume `inputs` [B, T, ...] from `state`; return the outputs [B, T, ...] of every step and the new state."""
        encoded = self.encoder(inputs)  # [B, T, input_size]
        if self.cell == "lstm":
            hidden, after = self.recurrent(encoded, state)
        else:
            hidden, h = self.recurrent(encoded, state[0])
            after = (h,)
        return self.head(self.dropout(hidden)), after

    def initial_state(self, batch_size: int, device: torch.device | str | None = None) -> State:
        """Zeros for `batch_size` sequences that have not begun."""
        shape = (self.num_layers, batch_size, self.hidden_size)
        return tuple(torch.zeros(shape, device=device) for _ in range(2 if self.cell == "lstm" else 1))

    def _open_forget_gates(self) -> None:
        """Start with forget gates open (bias 1), so that early gradients reach far back: Jozefowicz et al. 2015."""
        rows = slice(self.hidden_size, 2 * self.hidden_size)  # torch orders the gates i, f, g, o
        for name, parameter in self.recurrent.named_parameters():
            if name.startswith("bias_"):
                nn.init.constant_(parameter.data[rows], 0.5)  # torch adds two bias vectors


class QuantileHead(nn.Module):
    """Quantiles of the next `horizon` steps that never cross: the median, and positive distances from it outwards."""

    spread: Tensor

    def __init__(self, hidden_size: int, horizon: int, quantiles: Sequence[float]) -> None:
        """Take ascending `quantiles` that contain 0.5."""
        super().__init__()
        self.horizon = horizon
        self.num_quantiles = len(quantiles)
        self.median = list(quantiles).index(0.5)
        self.linear = nn.Linear(hidden_size, horizon * self.num_quantiles)
        # Recalibrated on held-out data after training (see `forecast`): stretches the intervals about the median.
        self.register_buffer("spread", torch.ones(horizon))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states [..., hidden] to quantiles [..., horizon, quantiles], ascending along the last axis."""
        raw = self.linear(hidden).unflatten(-1, (self.horizon, self.num_quantiles))
        middle = raw[..., self.median : self.median + 1]
        distance = functional.softplus(raw) * self.spread.unsqueeze(-1)
        above = distance[..., self.median + 1 :].cumsum(-1)
        # Distances below accumulate from the median downwards; flip and cumsum are plain operators for the exporter.
        below = distance[..., : self.median].flip(-1).cumsum(-1).flip(-1)
        return torch.cat((middle - below, middle, middle + above), dim=-1)


def token_network(
    *, num_tokens: int, embedding_size: int, cell: Cell, hidden_size: int, num_layers: int, dropout: float = 0.0
) -> RecurrentNetwork:
    """Token ids int64 [B, T] → logits [B, T, num_tokens] of the token that follows."""
    return RecurrentNetwork(
        encoder=nn.Embedding(num_tokens, embedding_size),
        head=nn.Linear(hidden_size, num_tokens),
        cell=cell,
        input_size=embedding_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        dropout=dropout,
    )


def quantile_network(
    *,
    num_columns: int,
    embedding_size: int,
    horizon: int,
    quantiles: Sequence[float],
    cell: Cell,
    hidden_size: int,
    num_layers: int,
    dropout: float = 0.0,
) -> RecurrentNetwork:
    """Encoded features float32 [B, T, num_columns] → scaled quantiles [B, T, horizon, quantiles]."""
    return RecurrentNetwork(
        encoder=nn.Linear(num_columns, embedding_size),
        head=QuantileHead(hidden_size, horizon, quantiles),
        cell=cell,
        input_size=embedding_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        dropout=dropout,
    )


def detach(state: State) -> State:
    """Keep the values of `state` and forget how they came about: the truncation in truncated back-propagation."""
    return tuple(part.detach() for part in state)
