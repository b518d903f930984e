"""Rows of states in a device's memory. Knows where they lie, not whose they are.

Each state has one array [capacity, …] that the device graph reads and writes in place. It grows by doubling, through
the host: rare, and the arrays' addresses change then.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tidegate.api import Tensor
from tidegate.bundle import StateSpec
from tidegate.engine.arena import Plane, Slots
from tidegate.ort import onnxruntime

INITIAL_ROW = 0
"""Holds the initial state; never written."""
SPARE_ROW = 1
"""Takes what nobody wants: the states of rows that only fill a batch up."""
FIRST_ROW = 2


class DeviceMemory:
    """The arrays of one model's states.

    Args:
        states: The states, in the manifest's order.
        device: onnxruntime's name: ``cpu`` or ``cuda``.
        capacity: Rows to begin with.
    """

    def __init__(self, states: Sequence[StateSpec], device: str, capacity: int) -> None:
        self.planes = [
            Plane(np.dtype(state.dtype), state.row_shape, slot_axis=0, initial=state.initial) for state in states
        ]
        self.device = device
        self.row_bytes = sum(plane.row_bytes for plane in self.planes)
        self.capacity = max(capacity, FIRST_ROW)
        self.generation = 0
        self.arrays = [self._put(plane.reserve(self.capacity)) for plane in self.planes]

    def grow(self, capacity: int) -> None:
        """Make room for ``capacity`` rows or more; no run may be under way. What is there stays in its rows."""
        if capacity <= self.capacity:
            return
        size = max(capacity, 2 * self.capacity)
        for index, (plane, array) in enumerate(zip(self.planes, self.arrays, strict=True)):
            larger = plane.reserve(size)
            larger[: self.capacity] = array.numpy()
            self.arrays[index] = self._put(larger)
        self.capacity = size
        self.generation += 1

    def read(self, row: int, state: int) -> Tensor:
        """Return a state's row, by way of the host and with all others: for rare use."""
        found: Tensor = self.arrays[state].numpy()[row]
        return found

    def rows(self, rows: Slots) -> list[Tensor]:
        """Return each state's rows, [rows, …], on the host; all other rows come along, so call it once a run."""
        return [array.numpy()[rows] for array in self.arrays]

    def write(self, row: int, values: Sequence[Tensor]) -> None:
        """Write one row of every state, by way of the host: for rare use."""
        for array, value in zip(self.arrays, values, strict=True):
            content = array.numpy()
            content[row] = value
            array.update_inplace(content)

    def _put(self, array: Tensor) -> onnxruntime.OrtValue:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array, self.device, 0)
