"""What was found out about a foreign graph: which tensor is what, and along which axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx

from tidegate.bundle import BATCH, TIME, Axis, StateSpec, TensorSpec
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
    initial: Mapping[str, Array] = field(default_factory=dict)
    """First states that are not one number everywhere, batch axis of size 1."""
    contexts: Mapping[str, Context] = field(default_factory=dict)
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


def is_along_time(context: Context, axes: Axes) -> bool:
    """Whether a context is counted in steps: it was said so, or the last axis is the time."""
    return TIME in axes and (context.is_time or axes[-1] == TIME)
