"""Checkpoints as trainers write them: where the weights are in a file, and what keeps them from being a module's."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from tests.export.user_modules import Classifier, Language, Tagger
from tidegate_export.errors import ExportError
from tidegate_export.weights import LoadedWeights, load_weights

Weights = dict[str, Tensor]


def trained(factory: Callable[[], nn.Module] = Classifier) -> Weights:
    torch.manual_seed(1)
    return factory().state_dict()


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items()}


def loaded(root: Path, content: Any, module: nn.Module | None = None, key: str | None = None) -> LoadedWeights:
    """Save `content`, load it into a module, and check that every weight of `Classifier` arrived."""
    torch.save(content, root / "w.pt")
    return checked(root / "w.pt", module, key)


def checked(path: Path, module: nn.Module | None = None, key: str | None = None) -> LoadedWeights:
    module = module or Classifier()
    result = load_weights(module, path, key)
    for name, tensor in trained().items():
        if name in module.state_dict():
            assert torch.equal(module.state_dict()[name], tensor), name
    return result


LAYOUTS: dict[str, Callable[[Weights], Any]] = {
    "plain": lambda w: w,
    "state_dict": lambda w: {"state_dict": w, "epoch": 3, "best": torch.tensor(0.5)},
    "model_state_dict with its optimizer": lambda w: {"model_state_dict": w, "optimizer": momentum(w)},
    "model_state": lambda w: {"model_state": w, "step": 1},
    "an unheard-of key": lambda w: {"weights_of_the_net": w},
    "several keys deep": lambda w: {"checkpoint": {"module": {"model": w}}},
    "a list": lambda w: [w, {"lr": 0.1}],
    "Lightning": lambda w: {
        "state_dict": {**prefixed("model.", w), "loss.weight": torch.ones(2)},
        "hyper_parameters": {"lr": 0.1},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.1)}},
        "pytorch-lightning_version": "2.5.0",
    },
    "Lightning with a namespace": lambda w: {
        "state_dict": prefixed("net.", w),
        "hyper_parameters": argparse.Namespace(lr=0.1, layers=[1]),
        "path": Path("x"),
        "score": np.float64(1.0),
    },
    "DataParallel": lambda w: prefixed("module.", w),
    "torch.compile": lambda w: prefixed("_orig_mod.", w),
    "a compiled layer": lambda w: {name.replace("gru.", "gru._orig_mod."): tensor for name, tensor in w.items()},
    "wrappers upon wrappers": lambda w: prefixed("module._orig_mod._fsdp_wrapped_module.model.", w),
    "AveragedModel": lambda w: {"n_averaged": torch.tensor(7), **prefixed("module.", w)},
    "weights and their average": lambda w: {"state_dict": w, "state_dict_ema": doubled(w)},
    "an average beside the weights": lambda w: {**prefixed("model.", w), **prefixed("ema_model.module.", doubled(w))},
    "the same twice": lambda w: {"model": w, "best": {name: tensor.clone() for name, tensor in w.items()}},
}


def momentum(weights: Weights) -> Any:
    state = {index: {"exp_avg": tensor, "step": 3} for index, tensor in enumerate(weights.values())}
    return {"state": state, "param_groups": [{"lr": 0.1, "params": [*state]}]}


def doubled(weights: Weights) -> Weights:
    return {name: 2 * tensor for name, tensor in weights.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_found_wherever_a_trainer_put_them(tmp_path: Path, layout: str) -> None:
    loaded(tmp_path, LAYOUTS[layout](trained()))


def test_old_torch_safetensors_npz_and_sharded_files_are_read(tmp_path: Path) -> None:
    weights = trained()
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(prefixed("model.", weights), tmp_path / "w.safetensors")
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in weights.items()}
    np.savez(tmp_path / "w.npz", **arrays)
    names = sorted(weights)
    places = {name: f"w-0000{1 + names.index(name) % 2}.safetensors" for name in names}
    for file in set(places.values()):
        save_file({name: weights[name] for name in names if places[name] == file}, tmp_path / file)
    (tmp_path / "w.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for file in ("old.pth", "w.safetensors", "w.npz", "w.safetensors.index.json"):
        assert len(checked(tmp_path / file).sha256) == 64


def test_what_is_taken_and_what_is_left_is_told(tmp_path: Path) -> None:
    content = LAYOUTS["Lightning"](trained())
    assert loaded(tmp_path, content).notes == (
        "taken from state_dict",
        "without the prefix model.",
        "not used: loss.weight",
    )


def test_of_trained_weights_and_their_average_a_key_chooses(tmp_path: Path) -> None:
    content = {"state_dict": doubled(trained()), "state_dict_ema": trained()}
    result = loaded(tmp_path, content, key="state_dict_ema")
    assert result.notes == ("taken from state_dict_ema",)
    unsaid = {"state_dict": trained(), "state_dict_ema": doubled(trained())}
    assert loaded(tmp_path, unsaid).notes == ("taken from state_dict", "state_dict_ema would fit too (--weights-key)")
    flat = {**prefixed("model.", doubled(trained())), **prefixed("ema_model.", trained())}
    loaded(tmp_path, flat, key="ema_model")


def test_half_and_bfloat16_weights_become_the_modules_dtype(tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        module = Classifier()
        torch.save({name: tensor.to(dtype) for name, tensor in trained().items()}, tmp_path / "w.pt")
        (note,) = load_weights(module, tmp_path / "w.pt").notes
        assert note == f"{str(dtype).removeprefix('torch.')} weights become float32"
        assert torch.equal(module.state_dict()["head.bias"], trained()["head.bias"].to(dtype).float())


def test_a_counter_and_a_tied_tensor_need_not_be_in_the_file(tmp_path: Path) -> None:
    weights = trained(Tagger)
    del weights["norm.num_batches_tracked"]
    torch.save(weights, tmp_path / "w.pt")
    load_weights(Tagger(), tmp_path / "w.pt")
    save_model(Tied(), str(tmp_path / "tied.safetensors"))  # it writes one of the two names
    load_weights(Tied(), tmp_path / "tied.safetensors")


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 6)
        self.gru = nn.GRU(6, 6)
        self.head = nn.Linear(6, 4, bias=False)
        self.head.weight = self.embedding.weight


def test_weight_norm_of_old_torch_is_read_into_the_new(tmp_path: Path) -> None:
    weight = trained()["head.weight"]
    norm = weight.norm(dim=1, keepdim=True)
    old = {"weight_g": norm, "weight_v": weight, "bias": torch.zeros(2)}
    torch.save(old, tmp_path / "w.pt")
    module = nn.utils.parametrizations.weight_norm(nn.Linear(5, 2))
    load_weights(module, tmp_path / "w.pt")
    assert torch.allclose(module.weight, weight)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_layer_that_the_module_itself_compiles_gets_its_weights(tmp_path: Path) -> None:
    module = Classifier()
    module.gru = torch.compile(module.gru)  # type: ignore[assignment]
    torch.save(trained(), tmp_path / "w.pt")
    load_weights(module, tmp_path / "w.pt")
    assert torch.equal(module.state_dict()["gru._orig_mod.weight_ih_l0"], trained()["gru.weight_ih_l0"])


def without(*names: str) -> Weights:
    return {name: tensor for name, tensor in trained().items() if name not in names}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (without("head.bias"), r"1 of 6 \(head.bias\) missing"),
        (prefixed("rnn.", without("head.bias")), r"1 of 6 \(head.bias\) missing"),
        (
            {name.replace("gru", "rnn"): tensor for name, tensor in trained().items()},
            r"4 of 6 \(gru.weight_ih_l0, .*\) missing \(is rnn.weight_ih_l0 gru.weight_ih_l0\?\); 4 \(rnn.* left over",
        ),
        ({**trained(), "head.bias": torch.zeros(3)}, r"head.bias is \[3\] in the file and \[2\] in the module"),
        (
            {**trained(), "gru.weight_ih_l1": torch.ones(15, 5)},
            r"1 \(gru.weight_ih_l1\) left over: the module has fewer",
        ),
        ({**trained(), "head.bias": torch.tensor([1.0, torch.nan])}, "head.bias holds NaN or infinity"),
        ({**trained(), "head.bias": torch.ones(2, dtype=torch.int8)}, r"head.bias is int8 in the file \(quantized\?\)"),
        ({"model": trained(), "best": doubled(trained())}, "more than once: say --weights-key, one of 'model', 'best'"),
        ({"epoch": 3, "lr": 0.1}, "holds no dictionary of weights: its keys are epoch, lr"),
        (Language().state_dict(), "does not fit the module: "),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, content: Any, reason: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    module = Classifier()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(ExportError, match=reason) as caught:
        load_weights(module, tmp_path / "w.pt")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_a_key_that_the_file_has_not_is_refused_with_those_that_it_has(tmp_path: Path) -> None:
    torch.save({"model": trained(), "best": doubled(trained())}, tmp_path / "w.pt")
    with pytest.raises(ExportError, match="no weights of the module at 'ema': it has best, model"):
        load_weights(Classifier(), tmp_path / "w.pt", "ema")


def test_tied_weights_that_differ_in_the_file_are_refused(tmp_path: Path) -> None:
    weights = Tied().state_dict()
    torch.save({**weights, "head.weight": weights["head.weight"] + 1}, tmp_path / "w.pt")
    with pytest.raises(ExportError, match=r"embedding.weight and head.weight are one tensor in the module"):
        load_weights(Tied(), tmp_path / "w.pt")


class Trap:
    """An object whose unpickling would run code."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __reduce__(self) -> Any:
        return shutil.copytree, (self.root, self.root / "ran")


def test_no_code_of_a_file_runs(tmp_path: Path) -> None:
    torch.save({"state_dict": trained(), "trap": Trap(tmp_path)}, tmp_path / "w.pt")
    checked(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_whole_module_is_refused_with_what_to_save_instead(tmp_path: Path) -> None:
    torch.save(Classifier(), tmp_path / "whole.pt")
    torch.jit.save(torch.jit.script(nn.Linear(5, 2)), tmp_path / "script.pt")
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\n")
    for name, reason in (
        ("whole.pt", r"whole pickled object \(\S*Classifier\), which would run its code: save its state_dict"),
        ("script.pt", "is a TorchScript archive: save the state_dict"),
        ("pointer.safetensors", "is a pointer of Git LFS"),
    ):
        with pytest.raises(ExportError, match=reason):
            load_weights(Classifier(), tmp_path / name)
