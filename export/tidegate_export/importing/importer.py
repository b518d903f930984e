"""From a file to a bundle: read, find out, free what can be freed, wrap, prove, compare, write.

Knows the order of the steps and what is refused between them; each step has its own module. `run` is `tidegate import`
inside its process: every error becomes one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import onnx
from onnx import TensorProto
from pydantic import ValidationError

from tidegate.bundle import (
    CARD,
    GRAPH,
    TIME,
    Json,
    Manifest,
    Proof,
    TensorCodec,
    next_version,
    write_bundle,
)
from tidegate.errors import BundleError, known_names
from tidegate.proof import ABSOLUTE, is_batch_invariant, prove
from tidegate.replay import GraphRunner, random_inputs
from tidegate_export.errors import ExportError
from tidegate_export.importing.axes import told
from tidegate_export.importing.branches import with_branches_taken
from tidegate_export.importing.card import Imported, checks, facts, imported_card
from tidegate_export.importing.contexts import with_contexts_placed, with_first_contexts
from tidegate_export.importing.decisions import Decision, decisions, table
from tidegate_export.importing.diagnosis import refuse_at_sight, why_it_cannot_stream
from tidegate_export.importing.edit import empty, is_empty, with_constants, without_empty_outputs
from tidegate_export.importing.evidence import Evidence
from tidegate_export.importing.explore import Explorer
from tidegate_export.importing.flow import Flow, trace
from tidegate_export.importing.foreign import Array, Declared, Foreign, declared
from tidegate_export.importing.layout import put_time_first
from tidegate_export.importing.lift import Lifted, free_steps, survey
from tidegate_export.importing.parity import ImportParity, check_parity
from tidegate_export.importing.plan import Found
from tidegate_export.importing.recipe import command_of
from tidegate_export.importing.refusals import begins_anew
from tidegate_export.importing.relax import free_batch, free_time
from tidegate_export.importing.request import (
    ANY,
    ImportRequest,
    SaidRoles,
    parse_axes,
    parse_constant,
    parse_contexts,
    parse_named,
    parse_shapes,
    read_about,
    read_initial,
    read_roles,
)
from tidegate_export.importing.settings import (
    have_rows_their_own,
    read_settings,
    with_settings,
    with_settings_by_row,
    with_settings_fixed,
    with_settings_free,
)
from tidegate_export.importing.shapes import read_shapes
from tidegate_export.importing.source import ImportSource, nodes, read_source
from tidegate_export.importing.whole import check_whole
from tidegate_export.importing.wrap import Wrapped, wrap
from tidegate_export.meaning import MeaningWords, SaidMeaning
from tidegate_export.rounding import HALF_TOLERANCE, SEEDS, prove_rounded

_MOST_SHARE = 0.25
"""Of an output's variation: what rounding may change, and no more, when a sequence is cut otherwise."""

_SCALED_BY_RUN = {"DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul"}
_ROUNDING = {"QuantizeLinear", "MatMulInteger", "MatMulIntegerToFloat", "ConvInteger"}


@dataclass(frozen=True, slots=True)
class Rounding:
    """How coarsely a graph computes."""

    is_by_run: bool
    """int8 scales are taken over all that is in a run: rows see their neighbours, steps each other."""
    slack: float
    """What may differ between two cuts, as a share of an output's variation; 0 in fp32."""

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Rounding:
        operators = {node.op_type for node in nodes(model.graph)}
        is_half = any(item.data_type == TensorProto.FLOAT16 for item in model.graph.initializer) or any(
            item.type.tensor_type.elem_type == TensorProto.FLOAT16 for item in model.graph.input
        )
        if operators & _SCALED_BY_RUN:
            return cls(is_by_run=True, slack=_MOST_SHARE)
        if operators & _ROUNDING or any(name.startswith("QLinear") for name in operators):
            return cls(is_by_run=False, slack=_MOST_SHARE)
        return cls(is_by_run=False, slack=0.05 if is_half else 0.0)


def import_model(request: ImportRequest) -> Imported:
    """Write the bundle that `request` asks for.

    Raises:
        ExportError: The file cannot become a bundle, or more must be said; with the reason and what to do.
        BundleError: It does not stream, or the version exists with other content.
    """
    source = read_source(request.file)
    put_time_first(source.model)
    rounding = Rounding.of(source.model)
    graph, request = _prepared(source, request)
    imported, files = _first_that_holds(graph, source, rounding, request)
    write_bundle(request.out, imported.manifest, files | {CARD: imported_card(imported, request.about).encode()})
    return imported


@dataclass(frozen=True, slots=True)
class _Graph:
    """The file's graph with its constants inside, its inputs with the axes that the caller named, and their roles."""

    model: onnx.ModelProto
    inputs: Sequence[Declared]
    roles: SaidRoles
    initial: Mapping[str, Array]
    first_contexts: Mapping[str, Array]
    settings: Mapping[str, Array]
    """Defaults by name; in the model they are constants."""
    declared: Mapping[str, Declared]
    """All inputs, as the file has them."""


def _prepared(source: ImportSource, request: ImportRequest) -> tuple[_Graph, ImportRequest]:
    """Return the graph, and what was asked with contexts along axes that the graph has."""
    inputs = {item.name: item for item in declared(source.model.graph.input)}
    declared(source.model.graph.output)
    _refuse_unknown(inputs, request)
    request = with_contexts_placed(request, inputs)
    roles = read_roles(request, inputs, [item.name for item in source.model.graph.output])
    constants = {
        name: parse_constant(name, text, inputs[name].dtype, inputs[name].dims or ())
        for name, text in request.constants.items()
    }
    constants |= {name: empty(item) for name, item in inputs.items() if is_empty(item)}
    settings = read_settings(request.settings, inputs)
    model = with_settings_fixed(without_empty_outputs(source.model), settings, inputs)
    model = with_constants(model, constants, inputs)
    rest = told([item for name, item in inputs.items() if name not in {*constants, *settings}], request)
    first_contexts, initial = _initial(request, {item.name: inputs[item.name] for item in rest})
    return _Graph(model, rest, roles, initial, first_contexts, settings, inputs), request


def _first_that_holds(
    graph: _Graph, source: ImportSource, rounding: Rounding, request: ImportRequest
) -> tuple[Imported, dict[str, bytes]]:
    """Try the graph with what can be lifted out of it, the likeliest first, then as it is."""
    has_time = request.time_axes.get(ANY, 0) is not None  # where one run is one step, nothing goes on from run to run
    seen = survey(graph.model, graph.inputs, is_within_frame=request.is_within_frame) if has_time else None
    refuse_at_sight(graph.model if seen is None else seen.model)
    ways = [] if seen is None else [_Way(lifted) for lifted in seen.lifts if lifted.states]
    if seen is not None and not any(way.has_layers for way in ways):
        for freed in free_steps(seen, graph.inputs):
            again = survey(freed.model, freed.inputs, is_within_frame=request.is_within_frame)
            freer = [_Way(lifted, freed.size) for lifted in again.lifts if lifted.has_layers]
            if freer:
                ways, seen = ways + freer, again
                break
    if not any(way.has_layers and way.size is None for way in ways):
        ways.append(_Way())
    failures: list[ExportError | BundleError] = []
    for way in ways:
        try:
            as_it_is = _explored(graph, way, rounding, request)
            found = with_settings_by_row(_with_settings(_relaxed(as_it_is, rounding, request), graph))
            as_it_is = _with_settings(as_it_is, graph)
            return _proved(as_it_is, found, way, graph, source, rounding, request)
        except (ExportError, BundleError) as error:
            failures.append(error)
    why = why_it_cannot_stream(seen) if seen is not None and _is_about_streaming(failures[0]) else None
    raise ExportError(why) if why else failures[0]


@dataclass(frozen=True, slots=True)
class _Way:
    """What is tried with a graph: states lifted out of it, or nothing."""

    lifted: Lifted | None = None
    size: int | None = None
    """The number of steps that the file takes, where it fixes it."""

    @property
    def has_layers(self) -> bool:
        return self.lifted is not None and self.lifted.has_layers


def _is_about_streaming(error: ExportError | BundleError) -> bool:
    """Whether an error says that a graph cannot stream, and not that something must be said first."""
    words = (
        "cannot stream",
        "nothing to stream",
        "no state to keep",
        "has no tensors",
        "elements where",
        "differs from",
    )
    # What the user can state is for the user to say.
    return any(word in str(error) for word in words) and "--reach" not in str(error)


def _proved(
    as_it_is: Found,
    found: Found,
    way: _Way,
    graph: _Graph,
    source: ImportSource,
    rounding: Rounding,
    request: ImportRequest,
) -> tuple[Imported, dict[str, bytes]]:
    """Prove, and compare with the file: run step by step by hand, or whole where states were lifted out of it."""
    wrapped = wrap(found, source.opset)
    manifest = _manifest(wrapped, found, request)
    if manifest.is_batchable:
        tolerance = HALF_TOLERANCE if rounding.slack and not rounding.is_by_run else request.tolerance or ABSOLUTE
        is_invariant = all(
            is_batch_invariant(wrapped.graph, manifest, seed=seed, tolerance=tolerance) for seed in SEEDS
        ) and have_rows_their_own(GraphRunner(wrapped.graph, manifest))
        manifest = manifest.model_copy(update={"batch_invariant": is_invariant})
    proof = _proof(wrapped.graph, manifest, rounding, request)
    whole = with_settings_free(graph.model, as_it_is.settings)  # branches not yet taken: they may ask for the steps
    if way.lifted is None:
        parity = check_parity(as_it_is, wrapped.graph, manifest, proof.tolerance)
        if _runs_whole(as_it_is) and not rounding.is_by_run:
            check_whole(whole, as_it_is, wrapped.graph, manifest, proof.tolerance, rounding.slack)
    else:
        parity = check_whole(whole, as_it_is, wrapped.graph, manifest, proof.tolerance, rounding.slack, way.size)
    inputs = {item.name: item for item in declared(source.model.graph.input)}
    decided = decisions(manifest, found, inputs, request)
    provenance = _provenance(source, found, request, parity, decided)
    manifest = manifest.model_copy(update={"proof": proof, "provenance": provenance})
    path = request.out / manifest.name / manifest.version
    return Imported(path, manifest, as_it_is, found, parity, decided), {GRAPH: wrapped.graph}


def _runs_whole(found: Found) -> bool:
    """Whether the bundle runs step by step what the file may run whole: an input without time comes beside others."""
    return found.is_frame and len({TIME in spec.axes for spec in found.data}) == 2


def _explored(graph: _Graph, way: _Way, rounding: Rounding, request: ImportRequest) -> Found:
    model, inputs, roles, initial = graph.model, graph.inputs, graph.roles, graph.initial
    lifted = way.lifted
    if lifted is not None:
        model, inputs = lifted.model, lifted.inputs
        roles = replace(roles, states={**roles.states, **lifted.pairs}, data=roles.data | lifted.sequences)
        initial = lifted.initial | dict(initial)
    flow, foreign = trace(model), Foreign(model)
    explorer = Explorer(
        model=model,
        foreign=foreign,
        inputs=inputs,
        evidence=Evidence.gather([item.name for item in inputs], foreign.outputs, flow),
        flow=flow,
        request=request,
        roles=roles,
        initial=initial,
        slack=rounding.slack,
        tolerance=request.tolerance or ABSOLUTE,
        readings=read_shapes(model, inputs),
    )
    found = with_branches_taken(with_first_contexts(explorer.explore(), graph.first_contexts, request.initial))
    if lifted is not None:
        along = dict.fromkeys(lifted.sequences - graph.roles.data, "memory along its time axis was lifted out")
        found = replace(found, reasons={**found.reasons, **along, **lifted.reasons})
    if way.size is not None:
        note = (
            f"the file takes {way.size} steps at once, each time from its first state; here a sequence has any length"
        )
        found = replace(found, notes=(*found.notes, note))
    if found.is_frame and not request.is_within_frame:
        _refuse_forgetful(found, trace(found.model))
    if rounding.is_by_run and not found.is_frame:
        # Scales over several steps would make a step depend on its chunk.
        found = replace(
            found,
            is_frame=True,
            notes=(
                *found.notes,
                "int8 scales are taken by run: steps run one by one",
            ),
        )
    if found.is_frame and found.lengths is not None:
        raise ExportError(f"steps run one by one, so each is one long: --constant {found.lengths}=1")
    return found


def _with_settings(found: Found, graph: _Graph) -> Found:
    return with_settings(found, graph.settings, graph.declared)


def _relaxed(found: Found, rounding: Rounding, request: ImportRequest) -> Found:
    """Free the batch and the time where the file fixes them at 1, unless the caller said that there are none."""
    axis = request.batch_axes.get(ANY)
    better = found
    if axis is not None or ANY not in request.batch_axes:
        better = free_batch(better, axis)
    if not rounding.slack and not request.contexts and ANY not in request.time_axes:
        better = free_time(better)
    return better


def _refuse_unknown(inputs: Mapping[str, Declared], request: ImportRequest) -> None:
    for name in request.constants:
        if name not in inputs:
            raise ExportError(f"--constant: the graph has no {name!r}{known_names(name, sorted(inputs), 'it has')}")


def _initial(request: ImportRequest, inputs: Mapping[str, Declared]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the first contexts, and the first states, by the names of their inputs."""
    arrays = read_initial(request.initial)
    contexts = {name: arrays.pop(name) for name in request.contexts if name in arrays}
    for name, array in arrays.items():
        item = inputs.get(name)
        if item is None:
            names = known_names(name, sorted(inputs), "it has")
            raise ExportError(f"{request.initial}: the graph has no input {name!r}{names}")
        dims = item.dims or ()
        if len(dims) != array.ndim or any(
            size != (dim if isinstance(dim, int) else 1) for size, dim in zip(array.shape, dims, strict=True)
        ):
            raise ExportError(
                f"{request.initial}: {name!r} has the shape {list(array.shape)}, the graph takes {list(dims)} (one row)"
            )
        if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
            raise ExportError(f"{request.initial}: {name!r} does not hold finite numbers")
    return contexts, {name: array.astype(inputs[name].dtype) for name, array in arrays.items()}


def _refuse_forgetful(found: Found, flow: Flow) -> None:
    """Where one run is one step, layers that begin anew in each are right only if they run across the frame."""
    layers = sorted({*flow.backward(), *flow.forgetful([state.input for state in found.states])})
    if layers:
        raise ExportError(begins_anew(layers))


def _manifest(wrapped: Wrapped, found: Found, request: ImportRequest) -> Manifest:
    number = next_version(request.out, request.name) if request.version is None else str(request.version)
    contexts = {name: context.size for name, context in found.contexts.items()}
    manifest = Manifest(
        name=request.name,
        version=number,
        task="stream",
        cell="foreign",
        inputs=wrapped.data,
        outputs=wrapped.outputs,
        states=wrapped.states,
        settings=found.settings,
        lengths=found.lengths,
        codec=TensorCodec(outputs=tuple(spec.name for spec in wrapped.outputs), context=contexts),
    )
    return request.meaning.of_bundle(manifest)


def _proof(graph: bytes, manifest: Manifest, rounding: Rounding, request: ImportRequest) -> Proof:
    """Prove within 1e-5, or what the caller said; where the graph rounds, within what several proofs saw."""
    if not rounding.slack:
        return prove(graph, manifest, tolerance=request.tolerance or ABSOLUTE, reach=request.reach)
    return prove_rounded(graph, manifest, reach=request.reach, most=lambda: rounding.slack * _spread(graph, manifest))


def _spread(graph: bytes, manifest: Manifest) -> float:
    """Return how much the output or state varies that varies most, over one sequence."""
    runner, steps = GraphRunner(graph, manifest), 64
    result = runner.walk(random_inputs(manifest, 1, steps, np.random.default_rng(0)), [1] * steps)
    return max(float(np.std(array.astype(np.float64))) for array in (result.outputs | result.states).values())


def _provenance(
    source: ImportSource, found: Found, request: ImportRequest, parity: ImportParity, decided: Sequence[Decision]
) -> dict[str, Json]:
    return {
        "import": {
            "file": source.file,
            "sha256": source.sha256,
            "opset": source.opset,
            "command": request.command,
            **({"origin": request.origin} if request.origin else {}),
            "constants": dict(request.constants),
            **({"settings": dict(request.settings)} if request.settings else {}),
            "states": {state.input: found.reasons[state.input] for state in found.states},
            "decisions": [decision.as_json() for decision in decided],
            "one_run_is_one_step": found.is_frame,
        },
        "parity": parity.as_json(),
        "versions": {name: version(name) for name in ("tidegate", "onnx", "onnxruntime")},
    }


class Said(TypedDict):
    """The command line as it was typed: what goes from one process to the other."""

    file: str
    name: str | None
    version: int | None
    out: str
    states: Sequence[str]
    data: Sequence[str]
    shapes: Sequence[str]
    batch_axes: Sequence[str]
    time_axes: Sequence[str]
    constants: Sequence[str]
    settings: Sequence[str]
    contexts: Sequence[str]
    initial: str | None
    is_within_frame: bool
    tolerance: float | None
    reach: NotRequired[int | None]
    meaning: MeaningWords
    origin: NotRequired[str | None]
    about: NotRequired[str | None]


def run(said: Said) -> tuple[str, bool]:
    """Import; return what to tell, and whether there is a bundle."""
    try:
        return "\n".join(_told(import_model(_request(said)))), True
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}", False
    except (ExportError, BundleError) as error:
        return " ".join(str(error).split()), False
    except MemoryError:
        return "out of memory: the graph asks for more than --memory-limit", False


def _request(said: Said) -> ImportRequest:
    return ImportRequest(
        file=Path(said["file"]),
        name=said["name"] or _plain(Path(said["file"]).stem),
        version=said["version"],
        out=Path(said["out"]),
        states=tuple(said["states"]),
        data=tuple(said["data"]),
        shapes=parse_shapes(said["shapes"]),
        batch_axes=parse_axes("--batch-axis", said["batch_axes"]),
        time_axes=parse_axes("--time-axis", said["time_axes"]),
        constants=parse_named("--constant", said["constants"]),
        settings=parse_named("--setting", said["settings"]),
        contexts=parse_contexts(said["contexts"]),
        initial=None if said["initial"] is None else Path(said["initial"]),
        is_within_frame=said["is_within_frame"],
        tolerance=said["tolerance"],
        reach=said.get("reach"),
        meaning=SaidMeaning.of(said["meaning"]),
        command=command_of(said),
        origin=said.get("origin"),
        about=read_about(said.get("about")),
    )


def _plain(stem: str) -> str:
    """Return a file's name as a bundle may be called."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "imported"


def _told(imported: Imported) -> Iterator[str]:
    manifest = imported.manifest
    yield f"{imported.path}: {manifest.task}, {manifest.state_bytes} bytes of state per session"
    yield from table(imported.decided)
    yield from facts(imported)
    yield from checks(imported)
