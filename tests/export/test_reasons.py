"""What export says of modules that cannot stream: the layer, the line or the attribute, and what to do."""

# mypy: disable-error-code="no-any-return"
# (nn.Module's call returns Any, and users do not cast)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, pad

from tidegate.errors import BundleError
from tidegate_export.errors import ExportError
from tidegate_export.graph import write_graph
from tidegate_export.modules import Description, module_candidate
from tidegate_export.signature import InputShape

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Custom(nn.Module):
    """A layer `lstm`, a layer `head`, the parts given, and a forward of one line."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(6, 5, batch_first=True)
        self.head = nn.Linear(5, 2)
        self.hidden: Any = None
        for name, part in parts.items():
            if isinstance(part, Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def along_time(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return layer(x.transpose(1, 2)).transpose(1, 2)


def keep(m: Any, x: Tensor) -> Tensor:
    y, m.hidden = m.lstm(x, m.hidden)
    return y


def keep_in_a_buffer(m: Any, x: Tensor) -> Tensor:
    y = m.lstm(x + m.before)[0]
    m.before.copy_(x.mean((0, 1)))
    return y


def step_by_step(m: Any, x: Tensor) -> Tensor:
    state, steps = None, []
    for t in range(x.size(1)):
        y, state = m.lstm(x[:, t : t + 1], state)
        steps.append(y)
    return torch.cat(steps, 1)


def in_doubled_steps(m: Any, x: Tensor) -> Tensor:
    rows, steps, width = x.shape
    return m.wide(x[:, : steps // 2 * 2].reshape(rows, steps // 2, 2 * width))[0]


def seldom_another_beginning(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(x.abs().amax((1, 2)) - 40)[None, :, None].repeat(1, 1, 5)
    return m.lstm(x, (h, h))[0]


def if_loud(m: Any, x: Tensor) -> Tensor:
    y = m.lstm(x)[0]
    return y * 2 if x.max() > 1000 else y


def if_long(m: Any, x: Tensor) -> Tensor:
    y = m.lstm(x)[0]
    return y * 0 if x.size(1) > 4000 else y


def own_recurrence(m: Any, x: Tensor) -> Tensor:
    y, steps = m.lstm(x)[0], []
    h = torch.zeros_like(y[:, 0])
    for t in range(x.size(1)):
        h = torch.tanh(y[:, t] + h)
        steps.append(h)
    return torch.stack(steps, 1)


def in_bfloat16(m: Any, x: Tensor) -> Tensor:
    return m.lstm(x.bfloat16())[0].float()


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "noise": (
        lambda: Custom(lambda m, x: m.lstm(x + torch.randn_like(x))[0]),
        r"not deterministic, .*: randn_like draws at random in <lambda>, line \d+ of test_reasons.py",
    ),
    "dropout": (
        lambda: Custom(lambda m, x: dropout(m.lstm(x)[0], 0.5)),
        r"not deterministic, .*: dropout is active \(training=True\) in <lambda>, line \d+ of test_reasons.py",
    ),
    "a kept state": (lambda: Custom(keep), r"keeps a state between calls \(self.hidden\): take it as an argument"),
    "a kept state of one row": (
        lambda: Custom(keep, hidden=(torch.zeros(1, 1, 5), torch.zeros(1, 1, 5))),
        r"keeps a state between calls \(self.hidden\)",
    ),
    "a kept buffer": (
        lambda: Custom(keep_in_a_buffer, before=torch.zeros(6)),
        r"keeps a state between calls \(self.before\)",
    ),
    "a first state of one row": (
        lambda: Custom(lambda m, x: m.lstm(x, (torch.zeros(1, 1, 5), torch.zeros(1, 1, 5)))[0]),
        r"takes one row only, .* its first state is made for another number of rows",
    ),
    "fewer steps": (
        lambda: Custom(lambda m, x: m.lstm(along_time(m.conv, x))[0], conv=nn.Conv1d(6, 6, 3)),
        r"conv \(Conv1d\) takes away 2 steps, so lstm sees 3 steps of 5 and 5 of 7",
    ),
    "half the steps": (
        lambda: Custom(in_doubled_steps, wide=nn.LSTM(12, 5, batch_first=True)),
        r"forward changes the number of steps, wide sees 2 .* \(about one for every 2 of the input\)",
    ),
    "pooling": (
        lambda: Custom(lambda m, x: m.lstm(along_time(m.pool, x))[0], pool=nn.MaxPool1d(2)),
        r"pool \(MaxPool1d\) changes the number of steps",
    ),
    "TorchScript": (lambda: torch.jit.script(nn.LSTM(6, 5)), "the module is TorchScript, .*: export the Python module"),
    "TorchScript inside": (
        lambda: Custom(lambda m, x: m.script(m.lstm(x)[0]), script=torch.jit.script(nn.Linear(5, 2))),
        "script is TorchScript",
    ),
    "bfloat16": (
        lambda: Custom(in_bfloat16).bfloat16(),
        r"computes in it, .*: call \.float\(\) on it, and leave the casts",
    ),
    "a loop over the steps": (lambda: Custom(step_by_step), "lstm is called for every step .* in a loop in Python"),
    "a state from the input": (
        lambda: Custom(lambda m, x: m.lstm(x, (h := x.mean(1)[None, :, :5].contiguous(), h))[0]),
        "lstm begins every call with a state that forward computes from the input",
    ),
    "a state that depends on rare values": (
        lambda: Custom(seldom_another_beginning),
        "output changes when the states are taken out of the module",
    ),
    "no such device": (
        lambda: Custom(lambda m, x: m.lstm(x.to("cuda"))[0]),
        r"forward puts a tensor on a CUDA device: make it on the device of the input \(x.device\)",
    ),
    "nn.Sequential": (lambda: nn.Sequential(nn.LSTM(6, 5), nn.Linear(5, 2)), "nn.Sequential hands on whole"),
    "attention": (lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), "self_attn attends to all steps"),
    "a bfloat16 output": (
        lambda: Custom(lambda m, x: m.lstm(x)[0].bfloat16()),
        "output is bfloat16, which a bundle cannot hold",
    ),
    "a word among the outputs": (
        lambda: Custom(lambda m, x: {"y": m.lstm(x)[0], "of": "me"}),
        "handles a str where tensors",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_reason_names_what_is_to_blame(case: str) -> None:
    factory, reason = REFUSED[case]
    with pytest.raises(ExportError, match=reason) as caught:
        module_candidate(factory(), Description("m", "1", InputShape.parse("1,8,6")))
    assert "\n" not in str(caught.value)


UNSTREAMABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a centred convolution": (
        lambda: Custom(lambda m, x: m.lstm(along_time(m.conv, x))[0], conv=nn.Conv1d(6, 6, 5, padding=2)),
        r"output looks ahead 2 steps, from conv \(Conv1d\) on",
    ),
    "a causal convolution": (
        lambda: Custom(lambda m, x: m.lstm(along_time(m.conv, pad(x, (0, 0, 4, 0))))[0], conv=nn.Conv1d(6, 6, 5)),
        r"a memory that is not among the states, of 4 steps before, from what forward does before conv \(Conv1d\) on",
    ),
    "a seasonal difference": (
        lambda: Custom(lambda m, x: m.lstm(x - pad(x, (0, 0, 48, 0))[:, : x.size(1)])[0]),
        r"a memory that is not among the states, of 48 steps before, from what forward does before lstm",
    ),
    "attention": (
        lambda: Custom(
            lambda m, x: m.heads(*[m.lstm(x)[0]] * 3)[0], heads=nn.MultiheadAttention(5, 1, batch_first=True)
        ),
        r"output looks ahead over the whole sequence, from heads \(MultiheadAttention\) on",
    ),
    "a normalization over time": (
        lambda: Custom(lambda m, x: m.lstm(along_time(m.norm, x))[0], norm=nn.GroupNorm(2, 6)),
        r"looks ahead over the whole sequence, from norm \(GroupNorm\) on",
    ),
    "positions": (
        lambda: Custom(lambda m, x: m.lstm(x + torch.sin(torch.arange(x.size(1)).float())[None, :, None])[0]),
        "of all steps before, from what forward does before lstm .* positions counted",
    ),
    "a recurrence of its own": (
        lambda: Custom(own_recurrence),
        "of all steps before, in what forward does after its last layer",
    ),
}


@pytest.mark.parametrize("case", UNSTREAMABLE)
def test_the_layer_that_looks_ahead_or_remembers_is_named_with_how_far_it_reaches(case: str) -> None:
    factory, reason = UNSTREAMABLE[case]
    with pytest.raises(BundleError, match=reason) as caught:
        module_candidate(factory(), Description("m", "1", InputShape.parse("1,8,6")))
    assert caught.value.reason == "NOT_STREAMABLE"


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (if_loud, r"forward decides by the values of its input \(test_reasons.py, line \d+\)"),
        (if_long, "does something else where a sequence is longer or shorter: it asks whether .*size <= 4000"),
        (lambda m, x: torch.special.i1e(m.lstm(x)[0]), r"ONNX has no operator for PyTorch's prims.bessel_i1e"),
    ],
)
def test_what_cannot_be_exported_is_told_in_one_line(
    capfd: pytest.CaptureFixture[str], run: Callable[[Any, Tensor], Any], reason: str
) -> None:
    candidate = module_candidate(Custom(run), Description("m", "1", InputShape.parse("1,8,6")))
    with pytest.raises(ExportError, match=reason) as caught:
        write_graph(candidate.module, candidate.manifest)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


class Pair(nn.Module):
    """Takes two sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 5, batch_first=True)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.lstm(torch.cat((a, b), -1))[0]


class Padded(Pair):
    """Takes the lengths of padded sequences."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.lstm(x)[0] + 0 * lengths


@pytest.mark.parametrize(
    ("module", "inputs", "reason"),
    [
        (Pair(), InputShape.parse("1,8,6"), "forward requires b: .* say their shapes, --example-shape b=1,8,16"),
        (Pair(), {"a": InputShape.parse("1,8,6"), "c": InputShape.parse("1,8,2")}, "has no argument 'c': it has a, b"),
        (Pair(), {"b": InputShape.parse("1,8,6")}, "say the shape of a too"),
        (Padded(), InputShape.parse("1,8,8"), "forward requires lengths: the server never pads a sequence"),
    ],
)
def test_arguments_of_which_nothing_is_known_are_asked_for(module: nn.Module, inputs: Any, reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        module_candidate(module, Description("m", "1", inputs))
