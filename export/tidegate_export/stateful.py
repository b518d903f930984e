"""Makes the state of a module's recurrent layers explicit: taken from arguments, given back as results.

`expose` puts a `RecurrentShim` in the place of every `nn.LSTM`, `nn.GRU` and `nn.RNN`. A layer that its module calls
without a state (`self.lstm(x)`), or with the same first state in every call, starts from what the `Ledger` holds for it
and leaves its final state there; a layer that is given another state uses that. Knows nothing of files, manifests or
ONNX's weight layouts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tidegate_export.errors import ExportError
from tidegate_export.operators import Recurrent, cell_of, onnx_weights, run_layer
from tidegate_export.structure import Path, is_one_number, named_leaves, refill, split_states

States = tuple[Tensor, ...]
"""`(h,)` or `(h, c)`, each [layers, batch, hidden]."""


@dataclass(frozen=True, slots=True)
class LayerCall:
    """One call of a recurrent layer while a module is probed: the sizes of its input, and the state it was given."""

    rows: int
    steps: int
    given: States | None


@dataclass(slots=True)
class Ledger:
    """The hidden states of one forward pass, by path of the layer that has them; and what is known of the layers."""

    given: dict[str, States] = field(default_factory=dict)
    final: dict[str, States] = field(default_factory=dict)
    calls: dict[str, list[LayerCall]] = field(default_factory=dict)
    """What each layer was called with in this pass."""
    firsts: dict[str, States] = field(default_factory=dict)
    """Of layers that are given the same first state in every call: that of one row."""
    within: set[str] = field(default_factory=set)
    """Layers that run across each single step, say over its frequencies: they have no state between steps."""
    lanes: dict[str, int] = field(default_factory=dict)
    """Of layers that run over several sequences for each row, say one for each frequency: how many."""

    def begin(self, given: dict[str, States]) -> None:
        """Start a pass from the states `given`; a layer that is not named starts from its first state."""
        self.given, self.final, self.calls = given, {}, {}


class RecurrentShim(nn.Module):
    """Stands where a recurrent layer stood: runs it in PyTorch, becomes ONNX's operators in an export."""

    def __init__(self, path: str, inner: Recurrent, ledger: Ledger) -> None:
        """Take the layer `inner` found at `path`.

        Raises:
            ExportError: ONNX has no operator for it.
        """
        super().__init__()
        if isinstance(inner, nn.LSTM) and inner.proj_size:
            raise ExportError(f"{path or 'the layer'} has proj_size={inner.proj_size}: ONNX's LSTM has no projection")
        self.path, self.inner, self._ledger = path, inner, ledger
        self.cell = cell_of(inner)
        self.suffixes = ("", "_reverse") if inner.bidirectional else ("",)
        for layer in range(inner.num_layers):
            for suffix in self.suffixes:
                for name, weight in zip("wrb", onnx_weights(inner, layer, suffix), strict=True):
                    self.register_buffer(f"{name}{layer}{suffix}", weight, persistent=False)

    def forward(self, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """Do what the layer does; where it begins anew, begin with the ledger's state and leave the final one there."""
        _refuse_input(self.path, x)
        ledger = self._ledger
        batch, steps = (0, 1) if self.inner.batch_first else (1, 0)
        states = None if hx is None else tuple(hx) if self.cell == "lstm" else (hx,)
        calls = ledger.calls.setdefault(self.path, [])
        calls.append(LayerCall(x.shape[batch], x.shape[steps], states))
        if self.path in ledger.within:
            y, final = self._run(x, self._zeros(x.shape[batch]) if states is None else states)
        elif states is None or (self.path in ledger.firsts and len(calls) == 1):
            y, final = self._run(x, self._begin(x.shape[batch]))
            ledger.final[self.path] = tuple(self._by_row(state) for state in final)
        else:
            y, final = self._run(x, states)
        return y, final if self.cell == "lstm" else final[0]

    @property  # type: ignore[misc] # nobody assigns it
    def __class__(self) -> type[Any]:
        """Pass for the layer: its module may ask `isinstance(layer, nn.LSTM)`."""
        inner = vars(self).get("_modules", {}).get("inner")
        return RecurrentShim if inner is None else type(inner)

    def __getattr__(self, name: str) -> Any:
        """Answer for the layer: its module may ask for `hidden_size` and the like."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def firsts(self) -> States:
        """Return the state of one sequence that has not begun: [layers, 1, hidden], or [layers, 1, lanes, hidden]."""
        lanes = self._ledger.lanes.get(self.path, 1)
        firsts = self._ledger.firsts.get(self.path) or self._zeros(1)
        return tuple(self._by_row(first.expand(-1, lanes, -1)).clone() for first in firsts)

    def _begin(self, rows: int) -> States:
        if self.path in self._ledger.final:
            raise ExportError(
                f"{self.path or 'the layer'} runs twice in one pass without a given state: which one goes on?"
            )
        given = self._ledger.given.get(self.path)
        if given is None:
            firsts = self._ledger.firsts.get(self.path)
            return self._zeros(rows) if firsts is None else tuple(first.expand(-1, rows, -1) for first in firsts)
        return tuple(state.flatten(1, 2) if state.dim() == 4 else state for state in given)

    def _by_row(self, state: Tensor) -> Tensor:
        """Give a state of several lanes a row an axis for the rows: [layers, batch, lanes, hidden]."""
        lanes = self._ledger.lanes.get(self.path)
        return state if lanes is None else torch.unflatten(state, 1, (-1, lanes))

    def _zeros(self, rows: int) -> States:
        shape = (self.inner.num_layers * len(self.suffixes), rows, self.inner.hidden_size)
        return tuple(self.get_buffer("w0").new_zeros(shape) for _ in range(2 if self.cell == "lstm" else 1))

    def _run(self, x: Tensor, states: States) -> tuple[Tensor, States]:
        if torch.compiler.is_exporting():
            return self._run_operators(x, states)
        contiguous = tuple(state.contiguous() for state in states)
        y, final = self.inner(x, contiguous if self.cell == "lstm" else contiguous[0])
        return y, tuple(final) if self.cell == "lstm" else (final,)

    def _run_operators(self, x: Tensor, states: States) -> tuple[Tensor, States]:
        """Run ONNX's operators, one per layer and direction, time first."""
        number = self.inner.num_layers * len(self.suffixes)
        y = x.transpose(0, 1) if self.inner.batch_first else x
        befores = list(zip(*(state.tensor_split(number) for state in states), strict=True)) if number > 1 else [states]
        finals: list[States] = []
        for layer in range(self.inner.num_layers):
            halves = []
            for suffix in self.suffixes:
                weights = [self.get_buffer(f"{name}{layer}{suffix}") for name in "wrb"]
                before = befores[len(finals)]
                half, after = run_layer(self.inner, y.flip(0) if suffix else y, weights, before)
                half = half.squeeze(1)  # ONNX's axis of directions
                halves.append(half.flip(0) if suffix else half)
                finals.append(after)
            y = torch.cat(halves, -1) if len(halves) > 1 else halves[0]
        final = tuple(torch.cat(parts) if number > 1 else parts[0] for parts in zip(*finals, strict=True))
        return (y.transpose(0, 1) if self.inner.batch_first else y), final


@dataclass(frozen=True, slots=True)
class FirstState:
    """How a state begins: its values for one row, and which of its axes is the batch, None where there is none."""

    value: Tensor
    batch_axis: int | None

    def rows(self, number: int) -> Tensor:
        """Return the state of `number` sequences that have not begun."""
        if self.batch_axis is None:
            return self.value.clone()
        return self.value.repeat_interleave(number, self.batch_axis)


class StatefulModule(nn.Module):
    """A module whose hidden states are arguments and results: `forward(*inputs, *states) -> (*outputs, *states)`.

    The states are those that its layers would have begun anew, by path, then those that its own `forward` takes. If
    some begin with other values than one number throughout, the last is a flag [batch] that says whether the sequence
    has begun; every session starts without it, as in an imported graph (`importing.wrap`).
    """

    def __init__(
        self, exposed: Exposed, inputs: Sequence[str], own: Mapping[str, Any], firsts: Sequence[FirstState]
    ) -> None:
        """Hide the layers of `exposed` that begin anew.

        Args:
            exposed: The module, and what is known of its layers.
            inputs: Names of the arguments that are fed.
            own: The state arguments that forward takes itself, each as it begins for one row.
            firsts: How the hidden states begin, and then the leaves of `own`.
        """
        super().__init__()
        self.module = exposed.module
        self._ledger, self._paths = exposed.ledger, exposed.hidden
        self._inputs, self._own, self._firsts = tuple(inputs), dict(own), tuple(firsts)
        self._widths = tuple(len(exposed.shims[path].firsts()) for path in self._paths)
        self.output_paths: list[Path] = []
        """Where the outputs of the last run are in what forward returns."""
        self.has_flag = any(not is_one_number(first.value) for first in firsts)
        for index, first in enumerate(firsts if self.has_flag else ()):
            self.register_buffer(f"first{index}", first.value, persistent=False)

    @property
    def has_batch(self) -> bool:
        """Whether every state has a batch axis."""
        return all(first.batch_axis is not None for first in self._firsts)

    def first_states(self, rows: int) -> list[Tensor]:
        """Return the states of `rows` sequences that have not begun."""
        states = [first.rows(rows) for first in self._firsts]
        return [*states, torch.zeros(rows if self.has_batch else 1, dtype=torch.bool)] if self.has_flag else states

    def forward(self, x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """Give the outputs, then the states after x, in the order of `states`."""
        more = len(self._inputs) - 1
        inputs, states = dict(zip(self._inputs[1:], rest[:more], strict=True)), list(rest[more:])
        flags = [states.pop()] if self.has_flag else []
        for flag in flags:
            states = [self._chosen(flag, index, state) for index, state in enumerate(states)]
        given = {
            path: tuple(states.pop(0) for _ in range(width))
            for path, width in zip(self._paths, self._widths, strict=True)
        }
        num_own = len(states)
        self._ledger.begin(given)
        own = {name: refill(example, states) for name, example in self._own.items()}
        with unchanged(self.module):
            returned = self.module(x, **inputs, **own)
        leaves, after = split_states(named_leaves(returned), list(own), num_own)
        hidden = [state for path in self._paths for state in self._ledger.final[path]]
        # A module that returns the layer's final state beside its outputs: it is among the states already.
        seen = [(path, output) for path, output in leaves if not any(output is state for state in hidden)]
        self.output_paths = [path for path, _ in seen]
        return (*(output for _, output in seen), *hidden, *after, *(flag | ~flag for flag in flags))

    def _chosen(self, flag: Tensor, index: int, state: Tensor) -> Tensor:
        """Return the state, and the first state for rows that have not begun."""
        axis = self._firsts[index].batch_axis
        has_begun = flag.reshape([-1 if at == axis else 1 for at in range(state.dim())])
        return torch.where(has_begun, state, self.get_buffer(f"first{index}"))


@dataclass(frozen=True, slots=True)
class Exposed:
    """A copy of a module with shims in place, the shims by path, and the ledger that they share."""

    module: nn.Module
    shims: dict[str, RecurrentShim]
    ledger: Ledger

    @property
    def hidden(self) -> tuple[str, ...]:
        """Paths of the layers that began anew in the last pass."""
        return tuple(self.ledger.final)


def expose(module: nn.Module) -> Exposed:
    """Return a copy of `module`, in evaluation mode, with a shim for every recurrent layer.

    Raises:
        ExportError: It cannot be copied, or ONNX has no operator for a layer.
    """
    try:
        copied = copy.deepcopy(module).eval()
    except Exception as error:  # whatever a user's object raises when it is copied
        raise ExportError(f"the module cannot be copied (copy.deepcopy): {error}") from error
    root = nn.ModuleDict({"root": copied})  # a parent for a module that is a layer itself
    ledger = Ledger()
    shims: dict[int, RecurrentShim] = {}
    for path, found in list(root.named_modules(remove_duplicate=False)):
        if isinstance(found, nn.LSTM | nn.GRU | nn.RNN):
            shim = shims.setdefault(id(found), RecurrentShim(_shown(path), found, ledger))
            parent, _, name = path.rpartition(".")
            setattr(root.get_submodule(parent), name, shim)
    return Exposed(root["root"], {shim.path: shim for shim in shims.values()}, ledger)


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Undo what a run of `module` assigns to its attributes, such as the last hidden state."""
    before = [(vars(part), dict(vars(part)), dict(vars(part)["_buffers"])) for part in module.modules()]
    try:
        yield
    finally:
        for held, attributes, buffers in before:
            held.clear()
            held.update(attributes)
            held["_buffers"].clear()
            held["_buffers"].update(buffers)


def _shown(path: str) -> str:
    return path.removeprefix("root").removeprefix(".")


def _refuse_input(path: str, x: Any) -> None:
    where = path or "the layer"
    if not isinstance(x, Tensor):
        raise ExportError(f"{where} is called with a {type(x).__name__}: pass a plain tensor, the server never pads")
    if x.dim() != 3:
        raise ExportError(f"{where} is called with {x.dim()} axes: it needs [batch, time, features]")
