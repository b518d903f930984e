"""Modules as users write them, for the tests of export; `tests/export/user_modules.py:Tagger` is a factory as well."""

# mypy: disable-error-code="no-any-return"
# (nn.Module's call returns Any, and users do not cast)

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

State = tuple[Tensor, Tensor]


class Tagger(nn.Module):
    """Two recurrent layers of different kinds; the first is given zeros made anew, as tutorials do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.lstm = nn.LSTM(6, 10, num_layers=2, batch_first=True, dropout=0.4)
        self.gru = nn.GRU(10, 7, batch_first=True)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        h = torch.zeros(self.lstm.num_layers, x.size(0), self.lstm.hidden_size)
        y, _ = self.lstm(x, (h, h.clone()))
        y, _ = self.gru(y)
        return self.head(y)


class Convolved(nn.Module):
    """A convolution over the channels of every single step, then a relu RNN, time first; returns its state too."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.ReLU())
        self.rnn = nn.RNN(24, 8, num_layers=3, nonlinearity="relu")

    def forward(self, x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        time, batch, width = x.shape
        frames = self.front(x.reshape(time * batch, 1, width)).reshape(time, batch, 4 * width)
        y, hx = self.rnn(frames, hx)
        return y, hx


class Stateful(nn.Module):
    """Takes and returns the state of one layer itself, and hides that of another."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 5, batch_first=True)
        self.gru = nn.GRU(6, 5, batch_first=True)

    def initial_state(self, batch_size: int) -> State:
        return torch.ones(1, batch_size, 5), torch.ones(1, batch_size, 5)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = self.lstm(x, state)
        z, _ = self.gru(x)
        return y + z, state


class Classifier(nn.Module):
    """Labels the sequence so far: an output without a time axis."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.gru(x)
        return self.head(y[:, -1])


class Language(nn.Module):
    """A language model over four tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 6)
        self.gru = nn.GRU(6, 5, batch_first=True)
        self.head = nn.Linear(5, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.gru(self.embedding(tokens))[0])


class Wrapped(nn.Module):
    """One recurrent layer and one of the mistakes that keep a module from streaming."""

    def __init__(self, mistake: str, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.mistake = mistake
        self.layer = nn.GRU(6, 5, batch_first=True) if layer is None else layer
        self.conv = nn.Conv1d(6, 6, 3)

    def forward(self, x: Tensor) -> Tensor:  # noqa: PLR0911 - one per mistake
        match self.mistake:
            case "twice":
                return self.layer(x)[0] + self.layer(-x)[0]
            case "mean over time":
                return self.layer(x - x.mean(1, keepdim=True))[0]
            case "mean over the batch":
                return self.layer(x)[0] - x.mean(dim=(0, 2))[None, :, None]
            case "convolution over time":
                padded = nn.functional.pad(x.transpose(1, 2), (2, 0))
                return self.layer(self.conv(padded).transpose(1, 2))[0]
            case "packed":
                return self.layer(pack_padded_sequence(x, torch.full((len(x),), x.shape[1]), batch_first=True))[0].data
            case "every second step":
                return self.layer(x)[0][:, ::2]
            case "unused":
                return x
            case "wrong width":
                return self.layer(x[..., :4])[0]
        return self.layer(x)[0]


class Demanding(Classifier):
    """Requires a state but does not say how it begins."""

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override] # another signature
        return self.gru(x, state)


def endless() -> nn.Module:
    """Never return."""
    while True:
        pass


def greedy() -> nn.Module:
    """Ask for 100 GB."""
    bytearray(100 << 30)
    return Tagger()
