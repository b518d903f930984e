"""Random PyTorch modules with the truth about them: what `tidegate export` must take, and what it must refuse."""

# mypy: disable-error-code="no-any-return"
# (nn.Module's call returns Any)

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.search.truth import Trap


class Recurrent(nn.Module):
    """A layer that begins at zero, at zeros made anew, or at a learned state."""

    width: int

    def __init__(self, chance: random.Random, width: int) -> None:
        super().__init__()
        self.width = chance.choice((3, 5, 8))
        kind = chance.choice((nn.LSTM, nn.GRU, nn.RNN))
        layers = chance.choice((1, 1, 2, 3))
        self.layer = kind(width, self.width, num_layers=layers, batch_first=True, dropout=0.3 if layers > 1 else 0.0)
        self.is_lstm = kind is nn.LSTM
        self.begins = chance.choice(("none", "none", "none", "zeros", "learned"))
        if self.begins == "learned":
            self.first = nn.Parameter(torch.randn(layers, 1, self.width))
            self.first_cell = nn.Parameter(torch.randn(layers, 1, self.width))

    def forward(self, x: Tensor) -> Tensor:
        if self.begins == "none":
            return self.layer(x)[0]
        if self.begins == "zeros":
            h = torch.zeros(self.layer.num_layers, x.size(0), self.width)
            return self.layer(x, (h, torch.zeros_like(h)) if self.is_lstm else h)[0]
        h, c = (part.expand(-1, x.size(0), -1).contiguous() for part in (self.first, self.first_cell))
        return self.layer(x, (h, c) if self.is_lstm else h)[0]


class Stepwise(nn.Module):
    """Something of each step alone."""

    width: int

    def __init__(self, chance: random.Random, width: int) -> None:
        super().__init__()
        self.kind = chance.choice(("linear", "norm", "residual", "glu", "dropout", "batchnorm", "gelu"))
        self.width = chance.choice((4, 6)) if self.kind == "linear" else width
        self.linear = nn.Linear(width, 2 * width if self.kind == "glu" else self.width)
        self.norm = nn.BatchNorm1d(width) if self.kind == "batchnorm" else nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:  # noqa: PLR0911 - one line for each kind
        match self.kind:
            case "norm":
                return self.norm(x)
            case "batchnorm":
                return self.norm(x.transpose(1, 2)).transpose(1, 2)
            case "residual":
                return x + torch.tanh(self.linear(x))
            case "glu":
                return F.glu(self.linear(x), -1)
            case "dropout":
                return F.dropout(self.linear(x), 0.5, self.training)
            case "gelu":
                return F.gelu(self.linear(x))
            case _:
                return self.linear(x)


class Keeping(nn.Module):
    """Traps that give as many features as they take."""

    width: int

    def __init__(self, chance: random.Random, width: int, kind: str) -> None:
        super().__init__()
        self.width, self.kind = width, kind
        self.number = chance.choice(NUMBERS[kind]) if kind in NUMBERS else 0
        if kind == "convolution":
            self.layer: nn.Module = nn.Conv1d(width, width, 3, dilation=self.number)
        elif kind in {"bidirectional", "kept", "flipped"}:
            self.layer = nn.GRU(width, width, batch_first=True, bidirectional=kind == "bidirectional")
        elif kind == "attention":
            self.layer = nn.MultiheadAttention(width, 1, batch_first=True)
        elif kind == "cell":
            self.layer = nn.GRUCell(width, width)
        self.hidden: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:  # noqa: C901, PLR0911, PLR0912 - one line for each kind
        steps = x.size(1)
        match self.kind:
            case "lag":
                return x - F.pad(x, (0, 0, self.number, 0))[:, :steps]
            case "ahead":
                return x - F.pad(x, (0, 0, 0, self.number))[:, self.number :]
            case "convolution":
                return self.layer(F.pad(x.transpose(1, 2), (2 * self.number, 0))).transpose(1, 2)
            case "mean":
                return x - x.mean(1, keepdim=True)
            case "largest":
                return x / (1 + x.abs().amax(1, keepdim=True))
            case "cumulative":
                return torch.tanh(0.1 * x.cumsum(1))
            case "positions":
                return x + torch.sin(torch.arange(steps) * 0.3)[None, :, None]
            case "limit":
                return x * 0.1 if steps > self.number else x
            case "late":
                return torch.where(torch.arange(steps)[None, :, None] >= self.number, x * 0.1, x)
            case "loud":
                before = F.pad(x, (0, 0, 1, 0))[:, :steps]
                return torch.where(x.abs() > self.number, before, x)
            case "bidirectional":
                forward, backward = self.layer(x)[0].chunk(2, -1)
                return forward + backward
            case "flipped":
                return self.layer(x.flip(1))[0].flip(1)
            case "noise":
                return x + 0.1 * torch.randn_like(x)
            case "dropout":
                return F.dropout(x, 0.5)
            case "attention":
                return self.layer(x, x, x, need_weights=False)[0]
            case "halved":
                return x[:, ::2]
            case "kept":
                y, self.hidden = self.layer(x, self.hidden)
                return y
            case "cell":
                h, told = torch.zeros(x.size(0), self.width), []
                for step in range(steps):
                    h = self.layer(x[:, step], h)
                    told.append(h)
                return torch.stack(told, 1)
            case _:
                raise AssertionError(self.kind)


NUMBERS: dict[str, tuple[int, ...]] = {
    "lag": (1, 3, 12, 24, 41, 48, 100, 300),
    "ahead": (1, 2, 9, 30),
    "convolution": (1, 4, 16, 64),
    "limit": (10, 30, 60, 100, 300),
    "late": (10, 30, 60, 100, 300),
    "loud": (3, 5),
}
_MEMORY = r"memory|remembers|not among the states|reach|steps back"
_AHEAD = r"ahead|later steps|backward|bidirectional|end of the sequence|all steps|reversed|turn"
_LENGTH = r"length|number of steps|sizes of a whole run|counts steps|how many steps|position|chunk"
REASONS = {
    "lag": _MEMORY, "ahead": _AHEAD, "convolution": _MEMORY, "mean": _AHEAD, "largest": f"{_AHEAD}|{_MEMORY}",
    "cumulative": _MEMORY, "positions": f"{_MEMORY}|{_LENGTH}", "limit": f"{_MEMORY}|{_LENGTH}",
    "late": f"{_MEMORY}|{_LENGTH}", "loud": _MEMORY, "bidirectional": _AHEAD, "flipped": _AHEAD,
    "noise": r"random|deterministic|two runs", "dropout": r"random|deterministic|two runs",
    "attention": f"{_AHEAD}|{_MEMORY}|attention", "halved": r"steps?.*(rate|number|every|gives|rows)|one step each",
    "kept": r"attribute|hidden|keeps", "cell": r"GRUCell|fixed length",
}  # fmt: skip


class Composed(nn.Module):
    """Parts one after the other, a skip connection from the input now and then; one output or two."""

    def __init__(
        self, parts: Sequence[Stepwise | Recurrent | Keeping], width: int, *, num_tokens: int, skips: bool, outputs: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, width) if num_tokens else None
        self.parts = nn.ModuleList(parts)
        self.head = nn.Linear(parts[-1].width, 3)
        self.skip = nn.Linear(width, 3) if skips else None
        self.num_outputs = outputs

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        first = x if self.embedding is None else self.embedding(x)
        y = first
        for part in self.parts:
            y = part(y)
        told = self.head(y)
        if self.skip is not None:
            told = told + self.skip(first)
        return (told, torch.sigmoid(y)) if self.num_outputs == 2 else told


@dataclass(frozen=True, slots=True)
class ModuleCase:
    """A module, how the command line describes its input, and the truth."""

    seed: int
    kind: str
    module: nn.Module
    shape: str
    width: int
    num_tokens: int
    reach: int
    trap: Trap | None


def make_module(seed: int, trap: str | None = None) -> ModuleCase:
    """Return the module of a seed: the same one whenever it is asked."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    width, tokens = chance.choice((1, 2, 4, 6)), chance.choice((0, 0, 0, 0, 5, 40))
    chosen = trap or (chance.choice(sorted(REASONS)) if chance.random() < 0.5 else None)
    num = chance.choice((1, 1, 2, 3))
    place = chance.randrange(num)
    parts: list[Stepwise | Recurrent | Keeping] = []
    now, reach = width, 0
    for number in range(num):
        if chosen is not None and number == place and chosen != "halved":
            parts.append(sprung := Keeping(chance, now, chosen))
            reach = sprung.number * (2 if chosen == "convolution" else 1)
        if chance.random() < 0.4:
            parts.append(Stepwise(chance, now))
            now = parts[-1].width
        parts.append(Recurrent(chance, now))
        now = parts[-1].width
    if chosen == "halved":
        parts.append(Keeping(chance, now, chosen))
    skips = chosen != "halved" and chance.random() < 0.4
    module = Composed(parts, width, num_tokens=tokens, skips=skips, outputs=chance.choice((1, 1, 2)))
    is_random = chosen in {"noise", "dropout"}
    truth = None if chosen is None else Trap(chosen, REASONS[chosen], is_random=is_random)
    kind = "module" if chosen is None else f"module trap: {chosen}"
    return ModuleCase(seed, kind, module.eval(), "tokens" if tokens else f"1,8,{width}", width, tokens, reach, truth)
