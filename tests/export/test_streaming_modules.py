"""Modules as people write them that can stream: exported, they give step by step what the untouched module gives."""

# mypy: disable-error-code="no-any-return"
# (nn.Module's call returns Any, and users do not cast)

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tidegate.bundle import Manifest, read_bundle
from tidegate.proof import ABSOLUTE, excess
from tidegate.replay import GraphRunner, random_inputs
from tidegate_export.candidate import export_candidate
from tidegate_export.errors import ExportError
from tidegate_export.modules import Description, module_candidate
from tidegate_export.rounding import HALF_TOLERANCE
from tidegate_export.signature import InputShape
from tidegate_export.structure import flatten


def exported(root: Path, module: nn.Module, inputs: Any = "1,8,6", tolerance: float = ABSOLUTE) -> Manifest:
    """Export `module`, and compare single steps and a chunk of three rows with PyTorch's run of the whole."""
    shapes = InputShape.parse(inputs) if isinstance(inputs, str) else inputs
    untouched = copy.deepcopy(module)
    path = export_candidate(module_candidate(module, Description("m", "1", shapes)), root).path
    bundle = read_bundle(path)
    manifest = bundle.manifest
    x = random_inputs(manifest, 3, 20, np.random.default_rng(0))
    own = [untouched.initial_state(3)] if isinstance(untouched, OwnCache) else []
    with torch.no_grad():
        wanted = flatten(untouched.eval()(*(torch.from_numpy(x[spec.name]) for spec in manifest.sources), *own))
    found = GraphRunner(bundle.graph, manifest).walk(x, [1] * 5 + [15]).outputs
    for spec, array in zip(manifest.outputs, wanted, strict=False):
        assert excess(array.numpy(), found[spec.name]) <= tolerance, spec.name
    return manifest


def axes_of(manifest: Manifest) -> dict[str, tuple[str | int, ...]]:
    return {state.input: state.axes for state in manifest.states}


class LearnedBeginning(nn.Module):
    """First states that are parameters, of one layer; the other begins at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 5, num_layers=2, batch_first=True)
        self.gru = nn.GRU(5, 4, batch_first=True)
        self.h = nn.Parameter(torch.randn(2, 1, 5))
        self.c = nn.Parameter(torch.randn(2, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.size(0)
        y, _ = self.lstm(x, (self.h.expand(-1, rows, -1).contiguous(), self.c.repeat(1, rows, 1)))
        return self.gru(y)[0]


def test_first_states_that_are_parameters_are_chosen_by_a_flag(tmp_path: Path) -> None:
    manifest = exported(tmp_path, LearnedBeginning())
    assert axes_of(manifest)["begun_in"] == ("batch",)
    assert manifest.states[-1].dtype == "bool"


class OwnBeginning(nn.Module):
    """Takes its state itself, and begins it with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 5, batch_first=True)
        self.begin = nn.Parameter(torch.randn(5))

    def initial_state(self, rows: int) -> Tensor:
        return self.begin.expand(1, rows, 5)

    def forward(self, x: Tensor, state: Tensor) -> dict[str, Tensor]:
        y, state = self.gru(x, state)
        return {"state": state, "y": y}


def test_a_modules_own_state_may_begin_with_a_parameter_and_is_found_by_its_name() -> None:
    about = Description("m", "1", InputShape.parse("1,8,6"))
    manifest = module_candidate(OwnBeginning(), about).manifest
    assert [spec.name for spec in manifest.outputs] == ["y"]
    assert axes_of(manifest) == {"state_in": (1, "batch", 5), "begun_in": ("batch",)}


class Mixed(nn.Module):
    """Takes two sequences and a vector that is the same for all steps; returns a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.lstm = nn.LSTM(11, 5, batch_first=True)

    def forward(self, x: Tensor, ids: Tensor, speaker: Tensor) -> dict[str, Any]:
        every = speaker[:, None].expand(-1, x.size(1), -1)
        y, (h, _) = self.lstm(torch.cat((x, self.embedding(ids), every), -1))
        return {"y": y, "last": (h[-1], y[:, -1]), "x": x}


def test_several_inputs_and_a_setting_are_fed_by_name(tmp_path: Path) -> None:
    shapes = {
        "ids": InputShape.parse("tokens"),
        "speaker": InputShape.parse("batch,2", may_be_setting=True),
        "x": InputShape.parse("1,8,6"),
    }
    manifest = exported(tmp_path, Mixed(), shapes)
    assert [(spec.name, spec.axes) for spec in manifest.inputs] == [
        ("x", ("batch", "time", 6)),
        ("ids", ("batch", "time")),
    ]
    assert [(spec.name, spec.axes, spec.default) for spec in manifest.settings] == [("speaker", ("batch", 2), (0.0,))]
    assert [spec.name for spec in manifest.outputs] == ["y", "last.0", "last.1", "x_result"]


class TimeFirst(nn.Module):
    """A layer over ids, time first."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 6)
        self.gru = nn.GRU(6, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.gru(self.embedding(ids))[0]


def test_ids_may_come_time_first(tmp_path: Path) -> None:
    manifest = exported(tmp_path, TimeFirst(), "tokens,time-first")
    assert manifest.inputs[0].axes == ("time", "batch")
    assert InputShape.parse("time,batch,int64") == InputShape.parse("tokens,time-first")


class DualPath(nn.Module):
    """Layers across each frame, both ways, and along time for each band; as denoisers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.across = nn.GRU(4, 3, batch_first=True, bidirectional=True)
        self.mix = nn.Linear(6, 4)
        self.along = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        rows, steps, _ = x.shape
        bands = x.reshape(rows, steps, 3, 4)
        bands = bands + self.mix(self.across(bands.reshape(rows * steps, 3, 4))[0]).reshape(rows, steps, 3, 4)
        lanes = bands.permute(0, 2, 1, 3).reshape(rows * 3, steps, 4)
        return self.along(lanes)[0].reshape(rows, 3, steps, 4).permute(0, 2, 1, 3).reshape(rows, steps, 12)


def test_layers_across_each_step_have_no_state_and_lanes_have_one_each(tmp_path: Path) -> None:
    manifest = exported(tmp_path, DualPath(), "1,8,12")
    assert axes_of(manifest) == {"along.h_in": (1, "batch", 3, 4), "along.c_in": (1, "batch", 3, 4)}


class HalfInside(nn.Module):
    """Computes in fp16."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 5, batch_first=True)
        self.half()

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x.half())[0].float()


def test_fp16_inside_is_proved_within_its_rounding(tmp_path: Path) -> None:
    manifest = exported(tmp_path, HalfInside(), tolerance=HALF_TOLERANCE)
    assert {state.dtype for state in manifest.states} == {"float16"}
    assert manifest.proof is not None
    assert ABSOLUTE < manifest.proof.tolerance <= 0.1


class OwnCache(nn.Module):
    """A causal convolution that takes and returns the steps that it looks back at; no recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 4, 3)

    def initial_state(self, rows: int) -> Tensor:
        return torch.zeros(rows, 6, 2)

    def forward(self, x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        joined = torch.cat((cache, x.transpose(1, 2)), 2)
        return self.conv(joined).transpose(1, 2), joined[:, :, -2:]


def test_a_module_needs_no_recurrent_layer_if_it_takes_its_state(tmp_path: Path) -> None:
    assert axes_of(exported(tmp_path, OwnCache())) == {"cache_in": ("batch", 6, 2)}


class Tuple(NamedTuple):
    score: Tensor
    last: Tensor


@dataclass
class Record:
    score: Tensor
    loss: Tensor | None = None


class Returning(nn.Module):
    """Returns whatever a function makes of a layer's outputs and state."""

    def __init__(self, make: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.LSTM(6, 5, batch_first=True), nn.GRU(5, 5, batch_first=True)])
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.hidden: Any = None
        self.make = make
        self.train()

    def forward(self, x: Tensor) -> Any:
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        for layer in self.layers:
            h = torch.zeros(1, x.size(0), 5, device=x.device)
            # What is kept is not used again; and a layer may be asked what it is.
            x, self.hidden = layer(x, (h, h) if isinstance(layer, nn.LSTM) else h)
        return self.make(self.drop(x), self.hidden)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda y, h: {"score": y, "deep": {"last": h[-1] + 0}}, ["score", "deep.last"]),
        (lambda y, h: Tuple(y, h[-1] + 0), ["score", "last"]),
        (lambda y, _: Record(y), ["score"]),
        (lambda y, h: (None, y, h), ["output"]),
        (lambda y, _: [y, y + 1], ["output0", "output1"]),
    ],
)
def test_outputs_are_named_by_keys_and_fields(make: Callable[[Tensor, Tensor], Any], names: list[str]) -> None:
    manifest = module_candidate(Returning(make), Description("m", "1", InputShape.parse("1,8,6"))).manifest
    assert [spec.name for spec in manifest.outputs] == names


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float16])
def test_weights_of_another_dtype_than_the_input_compute_in_float32(dtype: torch.dtype) -> None:
    module: Any = torch.compile(Returning(lambda y, _: y).to(dtype))
    candidate = module_candidate(module, Description("m", "1", InputShape.parse("1,8,6")))
    assert candidate.notes == (f"{str(dtype).removeprefix('torch.')} weights compute in float32",)
    assert {state.dtype for state in candidate.manifest.states} == {"float32"}


@pytest.mark.parametrize(
    ("text", "may_be_setting"), [("batch,16", False), ("16", True), ("tokens,first", False), ("1,8,complex64", False)]
)
def test_a_shape_with_a_dtype_or_without_time_that_is_none_is_refused(text: str, *, may_be_setting: bool) -> None:
    with pytest.raises(ExportError, match="is no shape"):
        InputShape.parse(text, may_be_setting=may_be_setting)
