"""Candidates made of a user's own `nn.Module`: what its inputs, outputs and states are is found by running it.

A module is called `module(x)`, or `module(x, state…)` where its forward requires states; then it says by
`initial_state(batch_size)` what they are in the beginning, and returns them after its outputs. Which axis of an output
is the batch and which is time shows when the sizes change. Knows nothing of files or of the command line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from tidegate.bundle import (
    BATCH,
    TIME,
    Axis,
    DType,
    Manifest,
    SettingSpec,
    StateSpec,
    TaskName,
    TensorCodec,
    TensorSpec,
    TokenCodec,
)
from tidegate_export.blame import check_streams
from tidegate_export.candidate import ExportCandidate
from tidegate_export.errors import ExportError
from tidegate_export.layers import SIZES, find_layers
from tidegate_export.networks import VOCABULARY, as_json
from tidegate_export.prepare import in_runnable_dtype, refuse_unpredictable, unwrapped
from tidegate_export.signature import InputShape, Signature, signature_of
from tidegate_export.stateful import Exposed, FirstState, StatefulModule, expose, unchanged
from tidegate_export.structure import flatten, is_one_number, named_leaves, output_names


@dataclass(frozen=True, slots=True)
class Description:
    """What a user tells of a module, beside the module itself."""

    name: str
    version: str
    input: InputShape | Mapping[str, InputShape]
    """Of forward's first argument; or of several, by name."""
    task: TaskName = "stream"
    vocabulary: Mapping[str, Any] | None = None
    features: tuple[str, ...] = ()
    provenance: Mapping[str, Any] | None = None


def module_candidate(module: nn.Module, description: Description) -> ExportCandidate:
    """Return the candidate of a user's module.

    Raises:
        ExportError: The module cannot be exported, or is not as described; with the reason.
        BundleError: The module cannot be streamed; with the layer that is to blame.
    """
    module = unwrapped(module)
    signature = signature_of(module, description.input)
    module, notes = in_runnable_dtype(module, signature)
    refuse_unpredictable(module, signature)
    exposed = expose(module)
    find_layers(exposed, signature)
    firsts, states = _states(exposed, signature)
    if not states:
        raise ExportError(_why_no_state(module))
    own = dict(zip(signature.states, signature.initial(1), strict=True))
    stateful = StatefulModule(exposed, list(signature.inputs), own, firsts)
    if stateful.has_flag:
        axes = (BATCH,) if stateful.has_batch else (1,)
        states = (*states, StateSpec(input="begun_in", output="begun_out", dtype="bool", axes=axes))
    outputs = _outputs(stateful, signature, states)
    is_half = any(tensor.dtype == torch.float16 for tensor in module.state_dict().values())
    check_streams(stateful, signature, outputs, is_half=is_half)
    _compare(module, stateful, signature, outputs)
    manifest = _manifest(exposed, description, signature, outputs, states)
    return ExportCandidate(stateful, manifest, _files(description), {}, _example(manifest), notes)


def _states(exposed: Exposed, signature: Signature) -> tuple[list[FirstState], tuple[StateSpec, ...]]:
    """Return how the states begin, hidden ones first, and what the manifest says of them."""
    found = [*_hidden_states(exposed), *_own_states(signature)]
    specs = []
    for label, first in found:
        value = first.value
        axes = tuple(BATCH if index == first.batch_axis else size for index, size in enumerate(value.shape))
        initial = float(value.flatten()[0]) if value.numel() and is_one_number(value) else 0.0
        dtype = _dtype(f"the state {label}", value)
        specs.append(StateSpec(input=f"{label}_in", output=f"{label}_out", dtype=dtype, axes=axes, initial=initial))
    return [first for _, first in found], tuple(specs)


def _hidden_states(exposed: Exposed) -> Iterator[tuple[str, FirstState]]:
    for path in exposed.hidden:
        for name, first in zip("hc", exposed.shims[path].firsts(), strict=False):
            yield f"{path}.{name}" if path else name, FirstState(first, 1)


def _own_states(signature: Signature) -> Iterator[tuple[str, FirstState]]:
    for name, one, two, three in zip(
        signature.states, signature.initial(1), signature.initial(2), signature.initial(3), strict=True
    ):
        for index, leaves in enumerate(zip(flatten(one), flatten(two), flatten(three), strict=True)):
            label = name if len(flatten(one)) == 1 else f"{name}.{index}"
            yield label, _first_state(label, leaves)


def _first_state(label: str, leaves: Sequence[Tensor]) -> FirstState:
    """Return how a state begins that is made for 1, 2 and 3 rows."""
    if len({leaf.dim() for leaf in leaves}) > 1:
        raise ExportError(f"initial_state: {label} changes its number of axes with the number of rows")
    axes = [axis for axis, sizes in enumerate(zip(*(leaf.shape for leaf in leaves), strict=True)) if sizes == (1, 2, 3)]
    first = FirstState(leaves[0].detach().clone(), axes[0] if axes else None)
    if not all(torch.equal(first.rows(rows), leaf) for rows, leaf in zip((1, 2, 3), leaves, strict=True)):
        raise ExportError(
            f"initial_state: {label} is not the same for every row, or has no axis that follows the number of rows: "
            f"shapes {[list(leaf.shape) for leaf in leaves]} for 1, 2 and 3 rows"
        )
    return first


def _why_no_state(module: nn.Module) -> str:
    for kind, reason in (
        (nn.MultiheadAttention, "attends to all steps, so it needs the whole sequence at once"),
        (
            (nn.Conv1d, nn.Conv2d, nn.Conv3d),
            "sees neighbouring steps; take those before as an argument, with initial_state",
        ),
    ):
        for path, part in module.named_modules():
            if isinstance(part, kind):
                return (
                    "there is no nn.LSTM, nn.GRU or nn.RNN that runs over the sequence, and forward takes no state: "
                    f"nothing to stream; {path or type(part).__name__} {reason}"
                )
    if not any(isinstance(part, nn.RNNBase) for part in module.modules()):
        return (
            "there is no nn.LSTM, nn.GRU or nn.RNN in the module, and forward takes no state: nothing to stream; a "
            "recurrence of your own takes its state as an argument, with initial_state(batch_size)"
        )
    return "forward neither runs a recurrent layer over the sequence nor takes a state: nothing to stream"


def _outputs(stateful: StatefulModule, signature: Signature, states: Sequence[StateSpec]) -> tuple[TensorSpec, ...]:
    """Run the module at three sizes; name its outputs and their axes."""
    runs = []
    for rows, steps in SIZES:
        with torch.no_grad():
            leaves = stateful(*signature.examples(rows, steps), *stateful.first_states(rows))
        runs.append(leaves[: len(leaves) - len(states)])
    if not runs[0]:
        raise ExportError("forward returns no output")
    taken = {*signature.inputs, *(name for state in states for name in (state.input, state.output))}
    names = [f"{name}_result" if name in taken else name for name in output_names(stateful.output_paths)]
    specs = []
    for name, seen in zip(names, zip(*runs, strict=True), strict=True):
        dtype = _dtype(name, seen[0])
        specs.append(TensorSpec(name=name, dtype=dtype, axes=_axes(name, [tuple(it.shape) for it in seen])))
    return tuple(specs)


def _compare(module: nn.Module, stateful: StatefulModule, signature: Signature, outputs: Sequence[TensorSpec]) -> None:
    """Compare the module with its states made explicit with the module as it is, on whole sequences.

    Raises:
        ExportError: They differ: what was found out by running the module does not hold for all input.
    """
    for seed, (rows, steps, scale) in enumerate(((1, 40, 1.0), (3, 31, 30.0), (2, 1, 0.01)), start=11):
        inputs = signature.examples(rows, steps, seed, scale)
        with unchanged(module):
            wanted = dict(named_leaves(signature.call(module, inputs, signature.own_states(rows))))
        with torch.no_grad():
            found = stateful(*inputs, *stateful.first_states(rows))
        for path, spec, tensor in zip(stateful.output_paths, outputs, found, strict=False):
            if not torch.allclose(wanted[path].double(), tensor.double(), rtol=1e-4, atol=1e-5, equal_nan=True):
                raise ExportError(
                    f"{spec.name} changes when the states are taken out of the module: a layer's first state, or what "
                    "forward does, depends on the values or the size of the input"
                )


def _axes(name: str, shapes: Sequence[tuple[int, ...]]) -> tuple[Axis, ...]:
    """Name the axes of a tensor whose shapes at `SIZES` these are."""
    if len({len(shape) for shape in shapes}) > 1:
        raise ExportError(f"{name} changes its number of axes with the input")
    axes: list[Axis] = []
    for index, sizes in zip(count(), zip(*shapes, strict=True), strict=False):
        named = {tuple(rows for rows, _ in SIZES): BATCH, tuple(steps for _, steps in SIZES): TIME}
        if len(set(sizes)) > 1 and sizes not in named:
            raise ExportError(
                f"axis {index} of {name} has sizes {sizes} for rows and steps {SIZES}: one row, one step each"
            )
        axes.append(named.get(sizes, sizes[0]))
    return tuple(axes)


def _manifest(
    exposed: Exposed,
    description: Description,
    signature: Signature,
    outputs: tuple[TensorSpec, ...],
    states: tuple[StateSpec, ...],
) -> Manifest:
    features = description.features
    inputs = tuple(_input(name, shape) for name, shape in signature.inputs.items() if not shape.is_setting)
    settings = tuple(
        SettingSpec(**_input(name, shape).model_dump(), default=(0.0,))
        for name, shape in signature.inputs.items()
        if shape.is_setting
    )
    width = sum(_width(spec) for spec in inputs)
    if features and len(features) != width:
        raise ExportError(f"{len(features)} features are named, the input has {width}")
    codec: TokenCodec | TensorCodec = TensorCodec(outputs=tuple(spec.name for spec in outputs))
    if description.task == "next_token":
        outputs = (_logits(description, inputs, outputs),)
        inputs = (inputs[0].model_copy(update={"name": "tokens"}),)
        codec = TokenCodec(vocabulary=VOCABULARY, surprise=None)
    cells = {shim.cell for shim in exposed.shims.values()}
    return Manifest(
        name=description.name,
        version=description.version,
        task=description.task,
        cell=cells.pop() if len(cells) == 1 else "foreign",
        inputs=inputs,
        settings=settings,
        outputs=outputs,
        states=states,
        features=features,
        codec=codec,
        provenance=dict(description.provenance or {}),
    )


def _input(name: str, shape: InputShape) -> TensorSpec:
    return TensorSpec.model_validate({"name": name, "dtype": shape.dtype, "axes": shape.axes})


def _logits(description: Description, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> TensorSpec:
    """Check that the module is a language model over the vocabulary."""
    if description.vocabulary is None:
        raise ExportError("task next_token needs --vocabulary")
    if [spec.dtype for spec in inputs] != ["int64"]:
        raise ExportError("task next_token needs --input tokens")
    wanted = (BATCH, TIME, len(description.vocabulary["tokens"]))
    if len(outputs) != 1 or outputs[0].axes != wanted:
        found = ", ".join(str(list(spec.axes)) for spec in outputs)
        raise ExportError(f"task next_token needs one output {list(wanted)}, the module gives {found}")
    return outputs[0].model_copy(update={"name": "logits"})


def _files(description: Description) -> dict[str, bytes]:
    is_text = description.task == "next_token" and description.vocabulary is not None
    return {VOCABULARY: as_json(description.vocabulary)} if is_text else {}


def _example(manifest: Manifest) -> Any:
    """Return two steps as `:predict` takes them."""
    width = sum(_width(spec) for spec in manifest.inputs)
    if len(manifest.inputs) == 1 and width == 1 and manifest.inputs[0].dtype.startswith("int"):
        return {"tokens": [0, 1]}
    return {"values": [[0.0] * width] * 2}


def _width(spec: TensorSpec) -> int:
    """Return how many numbers a step has."""
    return int(np.prod([axis for axis in spec.axes if isinstance(axis, int)], dtype=np.int64))


def _dtype(name: str, tensor: Tensor) -> Any:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in get_args(DType):
        raise ExportError(f"{name} is {dtype}, which a bundle cannot hold: cast it to float32 (.float()) in the module")
    return dtype
