"""What every tensor of an imported file is, and why: kept in the manifest, and printed as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tidegate.bundle import Axis, Json, Manifest
from tidegate_export.importing.foreign import Declared
from tidegate_export.importing.plan import Found, num_overlapping
from tidegate_export.importing.request import ImportRequest

_HEADINGS = ("tensor", "is", "axes", "with", "because")
_WIDEST = 40
"""Of a column but the last."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What one tensor is: data, state, setting, constant, length, context or output."""

    tensor: str
    role: str
    axes: tuple[Axis, ...]
    because: str
    other: str | None = None
    """Where a state comes out."""

    def as_json(self) -> Json:
        axes = list(self.axes)
        return {"tensor": self.tensor, "role": self.role, "axes": axes, "with": self.other, "because": self.because}


def decisions(
    manifest: Manifest, found: Found, declared: Mapping[str, Declared], request: ImportRequest
) -> list[Decision]:
    """Return what was decided: of the inputs in the file's order, then of what was added, then of the outputs."""
    known = {item.tensor: item for item in (*_inputs(manifest, found), *_said(declared, request))}
    first = [known.pop(name) for name in declared if name in known]
    lost = [name for name in declared if name not in {item.tensor for item in first}]
    empty = [Decision(name, "constant", declared[name].dims or (), "it holds nothing") for name in lost]
    return [*first, *empty, *known.values(), *_outputs(manifest, found)]


def _inputs(manifest: Manifest, found: Found) -> Iterator[Decision]:
    axes = {spec.name: spec.axes for spec in manifest.inputs} | {spec.input: spec.axes for spec in manifest.states}
    for spec in found.data:
        yield Decision(spec.name, "data", axes.get(spec.name, spec.axes), found.reasons.get(spec.name, ""))
    for state in found.states:
        because = found.reasons[state.input]
        yield Decision(state.input, "state", axes.get(state.input, state.axes), because, state.output)
    if found.lengths is not None:
        yield Decision(found.lengths, "length", (), "whole numbers called so: how many steps each row has")
    states = {spec.output: spec for spec in manifest.states}
    for name, context in found.contexts.items():
        kept = states.get(f"{name}.context_out")
        if kept is not None:
            spec = next(spec for spec in found.data if spec.name == name)
            unit = "steps" if num_overlapping(found, spec) else "elements"
            because = f"--context: the last {context.size} {unit} of {name} go in front of the next"
            yield Decision(kept.input, "context", kept.axes, because, kept.output)


def _said(declared: Mapping[str, Declared], request: ImportRequest) -> Iterator[Decision]:
    for option, role, values in (
        ("--constant", "constant", request.constants),
        ("--setting", "setting", request.settings),
    ):
        for name, value in values.items():
            yield Decision(name, role, declared[name].dims or (), f"as you said, {option} {name}={value}")


def _outputs(manifest: Manifest, found: Found) -> Iterator[Decision]:
    axes = {spec.name: spec.axes for spec in manifest.outputs}
    for spec in found.outputs:
        yield Decision(spec.name, "output", axes.get(spec.name, spec.axes), "no state comes out of it")


def table(rows: Sequence[Decision]) -> Iterator[str]:
    """Yield the lines of a table."""
    cells = [_HEADINGS, *(_cells(row) for row in rows)]
    widths = [min(_WIDEST, max(len(row[column]) for row in cells)) for column in range(len(_HEADINGS) - 1)]
    for row in cells:
        told = "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True))
        yield told.rstrip()


def _cells(row: Decision) -> tuple[str, ...]:
    return row.tensor, row.role, f"[{', '.join(map(str, row.axes))}]", row.other or "", row.because
