"""Makes the state of a module's recurrent layers explicit: taken from arguments, given back as results.

`expose` puts a `RecurrentShim` in the place of every `nn.LSTM`, `nn.GRU` and `nn.RNN`. A layer that its module calls
without a state (`self.lstm(x)`) starts from what the `Ledger` holds for it and leaves its final state there; a layer
that is given a state uses that. Knows nothing of files, manifests or ONNX's weight layouts.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tidegate_export.errors import ExportError
from tidegate_export.operators import Recurrent, cell_of, onnx_weights, run_layer

States = tuple[Tensor, ...]
"""`(h,)` or `(h, c)`, each [layers, batch, hidden]."""


@dataclass(slots=True)
class Ledger:
    """The hidden states of one forward pass, by path of the layer that has them."""

    given: dict[str, States] = field(default_factory=dict)
    final: dict[str, States] = field(default_factory=dict)
    inputs: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Batch size and number of steps that each such layer saw."""
    is_probing: bool = False
    """Whether a layer that is given zeros should from now on count as one that is given nothing."""

    def begin(self, given: dict[str, States]) -> None:
        """Start a pass from the states `given`; a layer that is not named starts from zeros."""
        self.given, self.final, self.inputs = given, {}, {}


class RecurrentShim(nn.Module):
    """Stands where a recurrent layer stood: runs it in PyTorch, becomes ONNX's operators in an export."""

    def __init__(self, path: str, inner: Recurrent, ledger: Ledger) -> None:
        """Take the layer `inner` found at `path`.

        Raises:
            ExportError: The layer cannot stream, or ONNX has no operator for it.
        """
        super().__init__()
        _refuse(path, inner)
        self.path, self.inner, self._ledger = path, inner, ledger
        self.cell = cell_of(inner)
        self._is_reset = False
        for layer in range(inner.num_layers):
            for name, weight in zip("wrb", onnx_weights(inner, layer), strict=True):
                self.register_buffer(f"{name}{layer}", weight, persistent=False)

    def forward(self, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """Do what the layer does; with `hx` None, begin with the ledger's state and leave the final one there."""
        _refuse_input(self.path, x)
        if hx is None or self._starts_over(hx):
            y, final = self._run(x, self._begin(x))
            self._ledger.final[self.path] = final
        else:
            y, final = self._run(x, tuple(hx) if self.cell == "lstm" else (hx,))
        return y, final if self.cell == "lstm" else final[0]

    def __getattr__(self, name: str) -> Any:
        """Answer for the layer: its module may ask for `hidden_size` and the like."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def _starts_over(self, hx: Any) -> bool:
        """Tell zeros that forward makes anew for every call, as many tutorials do, from a state that it passes on."""
        if self._ledger.is_probing:
            self._is_reset = not any(bool(part.any()) for part in flatten(hx))
        return self._is_reset

    def _begin(self, x: Tensor) -> States:
        if self.path in self._ledger.inputs:
            raise ExportError(
                f"{self.path or 'the layer'} runs twice in one pass without a given state: which one goes on?"
            )
        batch, steps = (0, 1) if self.inner.batch_first else (1, 0)
        self._ledger.inputs[self.path] = (x.shape[batch], x.shape[steps])
        given = self._ledger.given.get(self.path)
        return self.zeros(x.shape[batch]) if given is None else given

    def zeros(self, batch: int) -> States:
        """Return the state of `batch` sequences that have not begun."""
        shape = (self.inner.num_layers, batch, self.inner.hidden_size)
        return tuple(self.get_buffer("w0").new_zeros(shape) for _ in range(2 if self.cell == "lstm" else 1))

    def _run(self, x: Tensor, states: States) -> tuple[Tensor, States]:
        if torch.compiler.is_exporting():
            return self._run_operators(x, states)
        y, final = self.inner(x, states if self.cell == "lstm" else states[0])
        return y, tuple(final) if self.cell == "lstm" else (final,)

    def _run_operators(self, x: Tensor, states: States) -> tuple[Tensor, States]:
        """Run ONNX's operators, one per layer, time first."""
        num_layers = self.inner.num_layers
        y = x.transpose(0, 1) if self.inner.batch_first else x
        layers = zip(*(state.tensor_split(num_layers) for state in states), strict=True) if num_layers > 1 else [states]
        finals = []
        for layer, before in enumerate(layers):
            weights = [self.get_buffer(f"{name}{layer}") for name in "wrb"]
            y, after = run_layer(self.inner, y, weights, before)
            y = y.squeeze(1)  # ONNX's axis of directions
            finals.append(after)
        final = tuple(torch.cat(parts) if num_layers > 1 else parts[0] for parts in zip(*finals, strict=True))
        return (y.transpose(0, 1) if self.inner.batch_first else y), final


class StatefulModule(nn.Module):
    """A module whose hidden states are arguments and results: `forward(x, *states) -> (*outputs, *states)`.

    The states are those that its layers would have begun at zero, by path, then those that its own `forward` takes.
    """

    def __init__(self, exposed: Exposed, paths: Sequence[str], own: Sequence[Any]) -> None:
        """Hide the layers at `paths`; `own` are examples of the state arguments that forward takes itself."""
        super().__init__()
        self.module = exposed.module
        self._ledger = exposed.ledger
        self._paths = tuple(paths)
        self._shims = [exposed.shims[path] for path in paths]
        self._widths = tuple(len(shim.zeros(1)) for shim in self._shims)
        self._own = tuple(own)

    def hidden_zeros(self, batch: int) -> list[Tensor]:
        """Return the layers' states of `batch` sequences that have not begun."""
        return [state for shim in self._shims for state in shim.zeros(batch)]

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Give the outputs, then the states after x, in the order of `states`."""
        rest = list(states)
        given = {
            path: tuple(rest.pop(0) for _ in range(width))
            for path, width in zip(self._paths, self._widths, strict=True)
        }
        num_own = len(rest)
        self._ledger.begin(given)
        leaves = flatten(self.module(x, *(refill(example, rest) for example in self._own)))
        hidden = [state for path in self._paths for state in self._ledger.final[path]]
        outputs, own = leaves[: len(leaves) - num_own], leaves[len(leaves) - num_own :]
        # A module that returns the layer's final state beside its outputs: it is among the states already.
        seen = [output for output in outputs if not any(output is state for state in hidden)]
        return (*seen, *hidden, *own)


@dataclass(frozen=True, slots=True)
class Exposed:
    """A copy of a module with shims in place, the shims by path, and the ledger that they share."""

    module: nn.Module
    shims: dict[str, RecurrentShim]
    ledger: Ledger


def expose(module: nn.Module) -> Exposed:
    """Return a copy of `module`, in evaluation mode, with a shim for every recurrent layer.

    Raises:
        ExportError: A layer cannot stream or cannot be exported, or there is none.
    """
    root = nn.ModuleDict({"root": copy.deepcopy(module).eval()})  # a parent for a module that is a layer itself
    ledger = Ledger()
    shims: dict[int, RecurrentShim] = {}
    for path, found in list(root.named_modules(remove_duplicate=False)):
        if isinstance(found, nn.RNNCellBase):
            raise ExportError(
                f"{_shown(path)} is an {type(found).__name__}: a loop in Python has a fixed length once exported; "
                f"use nn.{type(found).__name__.removesuffix('Cell')}"
            )
        if isinstance(found, nn.LSTM | nn.GRU | nn.RNN):
            shim = shims.setdefault(id(found), RecurrentShim(_shown(path), found, ledger))
            parent, _, name = path.rpartition(".")
            setattr(root.get_submodule(parent), name, shim)
    if not shims:
        raise ExportError("there is no nn.LSTM, nn.GRU or nn.RNN in the module: nothing to stream")
    return Exposed(root["root"], {shim.path: shim for shim in shims.values()}, ledger)


def flatten(value: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists and dictionaries, depth first."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    if value is None or isinstance(value, str | int | float):
        raise ExportError(f"forward handles a {type(value).__name__} where tensors are expected")
    return [leaf for item in value for leaf in flatten(item)]


def refill(example: Any, leaves: list[Tensor]) -> Any:
    """Build a value nested like `example` out of the first `leaves`, which it takes away."""
    if isinstance(example, Tensor):
        return leaves.pop(0)
    return type(example)(refill(item, leaves) for item in example)


def _shown(path: str) -> str:
    return path.removeprefix("root").removeprefix(".")


def _refuse(path: str, inner: Recurrent) -> None:
    where = path or "the layer"
    if inner.bidirectional:
        raise ExportError(
            f"{where} is bidirectional: its backward half begins at the end of the sequence, so it cannot stream"
        )
    if isinstance(inner, nn.LSTM) and inner.proj_size:
        raise ExportError(f"{where} has proj_size={inner.proj_size}: ONNX's LSTM has no projection")


def _refuse_input(path: str, x: Any) -> None:
    where = path or "the layer"
    if not isinstance(x, Tensor):
        raise ExportError(f"{where} is called with a {type(x).__name__}: pass a plain tensor, the server never pads")
    if x.dim() != 3:
        raise ExportError(f"{where} is called with {x.dim()} axes: it needs [batch, time, features]")
