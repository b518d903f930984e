"""What an import found, in sentences: for the terminal, and the card of the imported model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tidegate.bundle import BATCH, TIME, Manifest, SettingSpec, StateSpec, TensorSpec
from tidegate_export.importing.decisions import Decision
from tidegate_export.importing.parity import ImportParity
from tidegate_export.importing.plan import Found
from tidegate_export.meaning import described


def imported_card(imported: Imported, about: str | None = None) -> str:
    """Return the Markdown of `card.md`; `about` is what somebody who knows the model says of it."""
    manifest = imported.manifest
    origin = manifest.provenance["import"]
    package = f" of {origin['origin']}" if "origin" in origin else ""
    unknown = "" if about else "Of its training nothing is known here. "
    sections = [
        f"# {manifest.name}, version {manifest.version}",
        f"Imported from `{origin['file']}`{package} (sha256 {origin['sha256']}, opset {origin['opset']}).",
        f"{unknown}A session's state takes {manifest.state_bytes:,} bytes.",
        *([about] if about else ()),
        f"## Recipe\n\n```\n{origin['command']}\n```",
        "## Found\n\n" + "\n".join(f"- {line}" for line in findings(imported)),
        "## Checks at import\n\n" + "\n".join(f"- {line}" for line in checks(imported)),
        "## Call\n\n" + _call(manifest),
    ]
    if origin["constants"]:
        constants = "\n".join(f"- {name} = {value}" for name, value in origin["constants"].items())
        sections.insert(-2, f"## Constants\n\n{constants}")
    return "\n\n".join(sections) + "\n"


def _call(manifest: Manifest) -> str:
    width = sum(_width(spec) for spec in manifest.inputs)
    rows = f"A step is a row of {width} values"
    if len(manifest.inputs) > 1:
        rows += ": " + ", then ".join(f"{_width(spec)} of {spec.name}" for spec in manifest.inputs)
    is_tokens = manifest.inputs[0].dtype.startswith("int") and len(manifest.inputs) == 1 and width == 1
    example = {"tokens": [0, 1]} if is_tokens else {"values": [[0.0] * width]} if width <= 8 else None
    if manifest.sample_rate is not None and manifest.frame_length == width and len(manifest.inputs) == 1:
        return f"{rows}.\n\n```\ntidegate predict {manifest.name} --wav recording.wav --every-step --json\n```"
    if example is None:
        return f"{rows}."
    body = json.dumps({"sequences": [example]})
    url = f"localhost:8080/v1/models/{manifest.name}:predict"
    return f"{rows}.\n\n```\ncurl -s {url} -H 'content-type: application/json' -d '{body}'\n```"


def _width(spec: TensorSpec) -> int:
    return math.prod(axis for axis in spec.axes if isinstance(axis, int))


@dataclass(frozen=True, slots=True)
class Imported:
    """The bundle as written, the graph as the file has it, and with its axes freed."""

    path: Path
    manifest: Manifest
    as_it_is: Found
    found: Found
    parity: ImportParity
    decided: Sequence[Decision]


def findings(imported: Imported) -> Iterator[str]:
    """Yield a line for each thing that was found."""
    manifest, found = imported.manifest, imported.found
    for spec in manifest.inputs:
        yield f"input {_shown(spec)}"
    for spec in manifest.outputs:
        yield f"output {_shown(spec)}{'' if TIME in spec.axes else ', not per step: the value after the last'}"
    for state in manifest.states:
        yield f"state {state.input} → {state.output} {_described(state, found)}"
    yield from facts(imported)


def facts(imported: Imported) -> Iterator[str]:
    """Yield a line for each thing that was found beside what every tensor is."""
    manifest, found = imported.manifest, imported.found
    for setting in manifest.settings:
        yield f"setting {_shown(setting)}: {_default(setting)} where no request and no session says another"
    yield from described(manifest)
    yield _time(found, imported.as_it_is)
    yield _batch(manifest, imported.as_it_is)
    yield from found.notes


def checks(imported: Imported) -> Iterator[str]:
    """Yield a line for each thing that was compared."""
    proof = imported.manifest.proof
    assert proof is not None  # import_model proves
    worst = f"worst |Δ| - 1e-4·|x| = {proof.max_error:.1e}, tolerance {proof.tolerance:g}"
    yield f"streaming proof: {proof.cases} comparisons, {worst}, {proof.described_reach}"
    parity = imported.parity
    yield f"parity with {parity.reference}: {parity.cases} sequences, largest |Δ| = {parity.largest:.1e}"


def _default(setting: SettingSpec) -> str:
    numbers = [f"{number:g}" for number in setting.default[:4]]
    more = f" and {len(setting.default) - 4:,} more" if len(setting.default) > 4 else ""
    return ", ".join(numbers) + more


def _described(state: StateSpec, found: Found) -> str:
    shape = f"{state.dtype} [{', '.join(map(str, state.axes))}]"
    if state.input in found.reasons:
        first = ", first state from --initial" if state.input in found.initial else ""
        return f"{shape}: {found.reasons[state.input]}{first}"
    if state.input == "begun_in":
        return f"{shape}: whether the session has begun, for first states that are no single number"
    return f"{shape}: the end of the input before, put in front of the next"


def _time(found: Found, as_it_is: Found) -> str:
    if found.is_frame:
        return "time: one run of the graph is one step; the bundle loops over the steps of a chunk"
    if as_it_is.is_frame:
        return "time: fixed at one step in the file, freed, and proved to give the same"
    return "time: an axis of the graph"


def _batch(manifest: Manifest, as_it_is: Found) -> str:
    if not manifest.is_batchable:
        return "batch: none, or fixed at 1: rows run one by one"
    alone = "" if manifest.batch_invariant else "; a row's result depends on its neighbours: rows run one by one"
    where = (
        "an axis of the graph" if as_it_is.has_batch else "fixed at 1 in the file, freed, and proved to give the same"
    )
    return f"batch: {where}{alone}"


def _shown(spec: TensorSpec) -> str:
    axes = [axis if axis in {BATCH, TIME} else str(axis) for axis in spec.axes]
    return f"{spec.name} {spec.dtype} [{', '.join(map(str, axes))}]"
