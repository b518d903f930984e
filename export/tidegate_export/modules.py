"""Candidates made of a user's own `nn.Module`: what its inputs, outputs and states are is found by running it.

A module is called `module(x)`, or `module(x, state…)` where its forward requires states; then it says by
`initial_state(batch_size)` what they are in the beginning, and returns them after its outputs. Which axis of an output
is the batch and which is time shows when the sizes change. Knows nothing of files or of the command line.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from tidegate.bundle import BATCH, TIME, Axis, Manifest, StateSpec, TaskName, TensorCodec, TensorSpec, TokenCodec
from tidegate_export.candidate import ExportCandidate
from tidegate_export.errors import ExportError
from tidegate_export.networks import VOCABULARY, as_json
from tidegate_export.stateful import Exposed, StatefulModule, expose, flatten

_SIZES = ((2, 5), (3, 5), (2, 7))
"""Rows and steps of the probes: between the first and the second only the batch differs, to the third only the time."""


@dataclass(frozen=True, slots=True)
class InputShape:
    """What a module is fed: axes with `batch` and `time` among them, and a dtype."""

    axes: tuple[Axis, ...]
    dtype: str

    @classmethod
    def parse(cls, text: str) -> InputShape:
        """Parse `tokens` (int64 ids, batch and time), `1,8,16` (batch, time, 16 features) or `time,batch,16`.

        Raises:
            ExportError: It is none of these.
        """
        if text == "tokens":
            return cls((BATCH, TIME), "int64")
        parts = [part.strip() for part in text.split(",")]
        if len(parts) > 1 and all(_is_axis(part) for part in parts) and not {BATCH, TIME} & set(parts):
            parts[:2] = [BATCH, TIME]  # the two numbers only show the order
        if parts.count(BATCH) != 1 or parts.count(TIME) != 1 or not all(_is_axis(part) for part in parts):
            raise ExportError(f"{text!r} is no shape: write 1,8,16 (batch, time, features), time,batch,16 or tokens")
        return cls(tuple(int(part) if part.isdecimal() else part for part in parts), "float32")

    def example(self, rows: int, steps: int) -> Tensor:
        """Return random values of this shape, or ids 0 and 1."""
        sizes = {BATCH: rows, TIME: steps}
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in self.axes]
        generator = torch.Generator().manual_seed(0)
        if self.dtype == "int64":
            return torch.randint(0, 2, shape, generator=generator)
        return torch.randn(shape, generator=generator)


@dataclass(frozen=True, slots=True)
class Description:
    """What a user tells of a module, beside the module itself."""

    name: str
    version: str
    input: InputShape
    task: TaskName = "stream"
    vocabulary: Mapping[str, Any] | None = None
    features: tuple[str, ...] = ()
    provenance: Mapping[str, Any] | None = None


def module_candidate(module: nn.Module, description: Description) -> ExportCandidate:
    """Return the candidate of a user's module.

    Raises:
        ExportError: The module cannot be streamed, or is not as described; with the reason.
    """
    exposed = expose(module)
    arguments = _arguments(exposed.module)
    initial = _initial_states(exposed.module, arguments[1:])
    paths = _hidden_paths(exposed, description.input, initial)
    stateful = StatefulModule(exposed, paths, initial(1))
    states = (*_hidden_states(exposed, paths), *_own_states(initial, arguments[1:]))
    if not states:
        raise ExportError(
            "forward neither runs a recurrent layer over the sequence nor takes a state: nothing to stream"
        )
    outputs = _outputs(stateful, description.input, initial, num_states=len(states))
    manifest = _manifest(exposed, description, arguments[0], outputs, states)
    return ExportCandidate(stateful, manifest, _files(description), {}, _example(description))


InitialStates = Callable[[int], Sequence[Any]]
"""From a batch size to the state arguments of forward."""


def _arguments(module: nn.Module) -> list[str]:
    """Return the names of forward's required arguments: the input, then states."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    required = [item.name for item in parameters[1:] if item.default is item.empty and item.kind in _POSITIONAL]
    if not parameters:
        raise ExportError("forward takes no input")
    return [parameters[0].name, *required]


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _initial_states(module: nn.Module, names: Sequence[str]) -> InitialStates:
    if not names:
        return lambda _: ()
    method = getattr(module, "initial_state", None)
    if method is None:
        raise ExportError(
            f"forward requires {', '.join(names)}: add initial_state(batch_size) to the module, or default them to None"
        )

    def initial(batch_size: int) -> Sequence[Any]:
        value = method(batch_size)
        return (value,) if len(names) == 1 else tuple(value)

    if len(initial(1)) != len(names):
        raise ExportError(f"initial_state gives {len(initial(1))} states, forward requires {', '.join(names)}")
    return initial


def _hidden_paths(exposed: Exposed, shape: InputShape, initial: InitialStates) -> list[str]:
    """Find the layers that begin without a state, and check that they run over the sequence itself."""
    ledger = exposed.ledger
    for rows, steps in _SIZES:
        ledger.begin({})
        ledger.is_probing = not initial(rows)
        _try(exposed.module, shape, (rows, steps), initial(rows))
        _check_rows_and_steps(exposed, rows, steps)
    ledger.is_probing = False
    return list(ledger.final)


def _check_rows_and_steps(exposed: Exposed, rows: int, steps: int) -> None:
    """Refuse a layer that runs over another axis than time: its state is not the sequence's."""
    for path, seen in exposed.ledger.inputs.items():
        if seen != (rows, steps):
            raise ExportError(
                f"{path or 'the layer'} sees {seen[0]} rows of {seen[1]} steps, the input has {rows} of {steps}: "
                "is batch_first right?"
            )


def _try(module: nn.Module, shape: InputShape, sizes: tuple[int, int], arguments: Sequence[Any]) -> Any:
    """Run the user's module, whatever it may raise."""
    x = shape.example(*sizes)
    try:
        with torch.no_grad():
            return module(x, *arguments)
    except ExportError:
        raise
    except Exception as error:  # whatever a user's code raises is an error of the input
        text = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ExportError(f"the module fails on an input of shape {tuple(x.shape)}: {text}") from error


def _hidden_states(exposed: Exposed, paths: Sequence[str]) -> Iterator[StateSpec]:
    for path in paths:
        for name, example in zip("hc", exposed.shims[path].zeros(1), strict=False):
            prefix = f"{path}.{name}" if path else name
            axes = (example.shape[0], BATCH, example.shape[2])
            yield StateSpec(input=f"{prefix}_in", output=f"{prefix}_out", dtype=_dtype(example), axes=axes)


def _own_states(initial: InitialStates, names: Sequence[str]) -> Iterator[StateSpec]:
    for name, two, three in zip(names, initial(2), initial(3), strict=True):
        leaves = list(zip(flatten(two), flatten(three), strict=True))
        for index, (small, large) in enumerate(leaves):
            label = name if len(leaves) == 1 else f"{name}.{index}"
            initial_value = float(small.flatten()[0])
            if not bool((small == initial_value).all()):
                raise ExportError(f"the initial state {label} is not one number throughout")
            yield StateSpec(
                input=f"{label}_in",
                output=f"{label}_out",
                dtype=_dtype(small),
                axes=_axes(label, [tuple(small.shape), tuple(large.shape), tuple(small.shape)]),
                initial=initial_value,
            )


def _outputs(
    stateful: StatefulModule, shape: InputShape, initial: InitialStates, *, num_states: int
) -> tuple[TensorSpec, ...]:
    """Run the module at three sizes; name its outputs and their axes."""
    runs = []
    for rows, steps in _SIZES:
        hidden = stateful.hidden_zeros(rows)
        leaves = _try(stateful, shape, (rows, steps), [*hidden, *flatten(list(initial(rows)))])
        runs.append(leaves[: len(leaves) - num_states])
    names = ["output"] if len(runs[0]) == 1 else [f"output{index}" for index in range(len(runs[0]))]
    if not names:
        raise ExportError("forward returns no output")
    return tuple(
        TensorSpec(name=name, dtype=_dtype(seen[0]), axes=_axes(name, [tuple(it.shape) for it in seen]))
        for name, seen in zip(names, zip(*runs, strict=True), strict=True)
    )


def _axes(name: str, shapes: Sequence[tuple[int, ...]]) -> tuple[Axis, ...]:
    """Name the axes of a tensor whose shapes at `_SIZES` these are."""
    if len({len(shape) for shape in shapes}) > 1:
        raise ExportError(f"{name} changes its number of axes with the input")
    axes: list[Axis] = []
    for index, sizes in zip(count(), zip(*shapes, strict=True), strict=False):
        named = {tuple(rows for rows, _ in _SIZES): BATCH, tuple(steps for _, steps in _SIZES): TIME}
        if len(set(sizes)) > 1 and sizes not in named:
            raise ExportError(
                f"axis {index} of {name} has sizes {sizes} for rows and steps {_SIZES}: one row, one step each"
            )
        axes.append(named.get(sizes, sizes[0]))
    return tuple(axes)


def _manifest(
    exposed: Exposed,
    description: Description,
    argument: str,
    outputs: tuple[TensorSpec, ...],
    states: tuple[StateSpec, ...],
) -> Manifest:
    shape, features = description.input, description.features
    if features and len(features) != shape.axes[-1]:
        raise ExportError(f"{len(features)} features are named, the input has {shape.axes[-1]}")
    codec: TokenCodec | TensorCodec = TensorCodec(outputs=tuple(spec.name for spec in outputs))
    if description.task == "next_token":
        argument, outputs = "tokens", (_logits(description, outputs),)
        codec = TokenCodec(vocabulary=VOCABULARY, surprise=None)
    cells = {shim.cell for shim in exposed.shims.values()}
    return Manifest(
        name=description.name,
        version=description.version,
        task=description.task,
        cell=cells.pop() if len(cells) == 1 else "foreign",
        inputs=(TensorSpec.model_validate({"name": argument, "dtype": shape.dtype, "axes": shape.axes}),),
        outputs=outputs,
        states=states,
        features=features,
        codec=codec,
        provenance=dict(description.provenance or {}),
    )


def _logits(description: Description, outputs: Sequence[TensorSpec]) -> TensorSpec:
    """Check that the module is a language model over the vocabulary."""
    if description.vocabulary is None:
        raise ExportError("task next_token needs --vocabulary")
    if description.input.dtype != "int64":
        raise ExportError("task next_token needs --input tokens")
    wanted = (BATCH, TIME, len(description.vocabulary["tokens"]))
    if len(outputs) != 1 or outputs[0].axes != wanted:
        found = ", ".join(str(list(spec.axes)) for spec in outputs)
        raise ExportError(f"task next_token needs one output {list(wanted)}, the module gives {found}")
    return outputs[0].model_copy(update={"name": "logits"})


def _files(description: Description) -> dict[str, bytes]:
    is_text = description.task == "next_token" and description.vocabulary is not None
    return {VOCABULARY: as_json(description.vocabulary)} if is_text else {}


def _example(description: Description) -> Any:
    x = description.input.example(1, 2)
    if description.input.dtype == "int64":
        return {"tokens": x.flatten().tolist()}
    return {"values": torch.zeros(2, x.numel() // 2).tolist()}


def _dtype(tensor: Tensor) -> Any:
    return str(tensor.dtype).removeprefix("torch.")


def _is_axis(part: str) -> bool:
    return part in {BATCH, TIME} or (part.isdecimal() and int(part) > 0)
