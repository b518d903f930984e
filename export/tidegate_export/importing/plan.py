"""What was found out about a foreign graph: which tensor is what, and along which axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx

from tidegate.bundle import BATCH, TIME, Axis, SettingSpec, StateSpec, TensorSpec
from tidegate_export.errors import ExportError
from tidegate_export.importing.request import Array, Context

Axes = tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A graph with its constants inside, and the roles of what is left at its edges.

    Axes are those of one run of the graph. Where `is_frame`, one run is one step: no tensor has a time axis, or all
    time axes have one step.
    """

    model: onnx.ModelProto
    data: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...]
    outputs: tuple[TensorSpec, ...]
    is_frame: bool
    lengths: str | None = None
    settings: tuple[SettingSpec, ...] = ()
    """Inputs that callers may set; constants of the model while it is explored."""
    initial: Mapping[str, Array] = field(default_factory=dict)
    """First states that are not one number everywhere, batch axis of size 1."""
    contexts: Mapping[str, Context] = field(default_factory=dict)
    first_contexts: Mapping[str, Array] = field(default_factory=dict)
    """By input: what its context is before the first step, where that is not zeros; batch axis of size 1."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """By state input: how it is known where it comes out."""
    notes: tuple[str, ...] = ()

    @property
    def has_batch(self) -> bool:
        """Whether every input and state has a batch axis."""
        specs: tuple[TensorSpec | StateSpec, ...] = (*self.data, *self.states)
        return all(BATCH in spec.axes for spec in specs)


def sized(axes: Axes, rows: int, steps: int) -> tuple[int, ...]:
    """Return the shape of `rows` rows of `steps` steps."""
    sizes = {BATCH: rows, TIME: steps}
    return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in axes)


def context_place(context: Context, axes: Axes) -> int | None:
    """Return which of `axes` a context is counted along; None where there is no such axis."""
    if context.axis == TIME:
        return axes.index(TIME) if TIME in axes else None
    place = len(axes) - 1 if context.axis is None else int(context.axis)
    return place if 0 <= place < len(axes) else None


def is_along_time(context: Context, axes: Axes) -> bool:
    """Whether a context is counted in steps of a time axis."""
    place = context_place(context, axes)
    return place is not None and axes[place] == TIME


def num_overlapping(found: Found, spec: TensorSpec) -> int:
    """Return how many steps of its context stand in front of what is new, where that is counted along time."""
    context = found.contexts.get(spec.name)
    return context.size if context is not None and is_along_time(context, spec.axes) else 0


def num_left(context: Context, axes: Axes) -> int:
    """Return how many elements of its axis are new in each step, next to those of a context.

    Raises:
        ExportError: None, or nobody knows.
    """
    place = context_place(context, axes)
    whole = None if place is None else 1 + context.size if axes[place] == TIME else axes[place]
    if not isinstance(whole, int) or whole <= context.size:
        raise ExportError(f"a context of {context} does not fit the axes {list(axes)}: {what_fits(axes)}")
    return whole - context.size


def what_fits(axes: Axes) -> str:
    """Say what contexts an input of these axes can have."""
    fits = [f"1 to {size - 1} along axis {at}" for at, size in enumerate(axes) if isinstance(size, int) and size > 1]
    return f"it can have {' or '.join(fits)}" if fits else "it has no axis of a fixed size with room for one"


def context_axes(context: Context, axes: Axes) -> Axes:
    """Return the axes of the context of an input: as many elements along one axis as it keeps, one step of others."""
    place = context_place(context, axes)
    return tuple(context.size if at == place else 1 if axis == TIME else axis for at, axis in enumerate(axes))
