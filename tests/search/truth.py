"""What is true of a generated graph: the roles and axes of its tensors, and whether it can stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray

from tidegate.bundle import BATCH, TIME, Axis

Array = NDArray[np.generic]
Arrays = dict[str, Array]
Axes = tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class Data:
    """An input that callers send: its axes in one run of the file, context included."""

    name: str
    axes: Axes
    dtype: str = "float32"
    num_ids: int = 0
    """Whole numbers below this are sent; 0 where it takes reals."""
    context: int = 0
    """Of the last elements along `along`, which the graph wants again in front of the next."""
    along: int = 0

    @property
    def step_shape(self) -> tuple[int, ...]:
        """Return the shape of one step of one row, context not included."""
        return tuple(axis for axis in self.sent if isinstance(axis, int))

    @property
    def sent(self) -> Axes:
        """Return the axes as callers send them."""
        axis = self.axes[self.along]
        if not self.context or not isinstance(axis, int):
            return self.axes
        return (*self.axes[: self.along], axis - self.context, *self.axes[self.along + 1 :])

    @property
    def has_time(self) -> bool:
        return TIME in self.axes


@dataclass(frozen=True, slots=True)
class State:
    """An input that comes out again as an output."""

    input: str
    output: str
    axes: Axes
    dtype: str

    def zeros(self) -> Array:
        """Return the state of one row that has not begun."""
        return np.zeros([axis if isinstance(axis, int) else 1 for axis in self.axes], self.dtype)


@dataclass(frozen=True, slots=True)
class Trap:
    """Why a graph cannot stream."""

    kind: str
    reason: str
    """A regular expression: a right refusal matches it."""
    is_random: bool = False
    """Nothing can be compared with it: whoever accepts it is wrong."""


@dataclass(frozen=True, slots=True)
class Case:
    """A graph and the truth about it."""

    seed: int
    kind: str
    """Of what it is made, for the table."""
    model: onnx.ModelProto
    data: tuple[Data, ...]
    states: tuple[State, ...]
    outputs: Mapping[str, Axes]
    """Axes of the outputs that are no states."""
    is_frame: bool
    """One run of the file is one step; else a run takes any number."""
    reach: int
    """Steps, the largest constant along time in the graph."""
    constants: Mapping[str, str] = field(default_factory=dict)
    lengths: str | None = None
    trap: Trap | None = None
    is_within_frame: bool = False
    has_batch: bool = True
    slack: float = 0.0
    """What rounding to fp16 may change."""
    notes: tuple[str, ...] = ()

    @property
    def num_steps(self) -> int:
        """Return how many steps a comparison takes: more than any constant in the graph."""
        return max(60, 2 * self.reach + 37) if self.reach < 1000 else self.reach + 250


def sized(axes: Axes, rows: int, steps: int) -> tuple[int, ...]:
    sizes = {BATCH: rows, TIME: steps}
    return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in axes)
