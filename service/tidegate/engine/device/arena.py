"""The arena whose states stay on a device: it deals in numbers of rows, the device graph moves what is in them.

Copy on write: a run reads states from some rows and writes the new ones to rows that were free. ``scatter`` then only
notes that a slot's state is now in another row. So a run that fails, or whose result is refused at the commit, leaves
every state as it was, and a run may be repeated; both arenas keep the same promise to the engine.

`DeviceMemory` holds the rows: each state has one array [capacity, …] that the device graph reads and writes in place.
It grows by doubling, through the host: rare, and the arrays' addresses change then. The output that is kept with each
session, if any, lies on the host: the sampler reads it there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tidegate.api import Tensor
from tidegate.bundle import StateSpec
from tidegate.engine.arena import Budget, Plane, Slots, SlotTable, pack_rows, unpack
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


class DeviceArena(SlotTable):
    """Slots of one model's states, on a device.

    One run at a time: what ``gather`` handed out is for the next run, and what of it ``scatter`` was not given is free
    again at the next ``gather``.

    Args:
        memory: Where the rows lie.
        kept: The output that is kept with each session, if any.
        budget: Bytes that all arenas share. Rows of a run in progress come on top.
    """

    def __init__(self, memory: DeviceMemory, kept: Plane | None, budget: Budget) -> None:
        super().__init__(memory.row_bytes + (kept.row_bytes if kept else 0), budget)
        self._memory = memory
        self._num_states = len(memory.arrays)
        self._kept = None if kept is None else kept.reserve(self._num_slots)
        self._kept_planes = () if kept is None else (kept,)
        assert INITIAL_ROW == 0  # zeros are backed with memory only as they are touched
        self._row_of = np.zeros(self._num_slots, np.intp)
        self._free_rows: list[int] = []
        self._next_row = FIRST_ROW
        self._in_flight: set[int] = set()

    @property
    def num_rows_used(self) -> int:
        """Rows that hold a slot's state, or are promised to a run."""
        return self._next_row - FIRST_ROW - len(self._free_rows)

    def gather(self, slots: Slots, num_planes: int) -> list[Tensor]:
        """Return the rows that the states at ``slots`` are in, and as many rows for the new ones, both [slots]."""
        assert num_planes == self._num_states
        self._free_rows.extend(self._in_flight)
        targets = self._take_rows(len(slots))
        self._in_flight = set(targets)
        return [self._row_of[slots], np.array(targets, np.intp)]

    def select(self, rows: Slots, values: Sequence[Tensor]) -> list[Tensor]:
        """Return only ``rows`` of what a run gave."""
        return [value[rows] for value in values]

    def scatter(self, slots: Slots, values: Sequence[Tensor]) -> None:
        """Note that the states of ``slots`` are now in the rows ``values[0]``; keep the output that may follow."""
        targets, *kept = values
        before = self._row_of[slots]
        self._free_rows.extend(before[before != INITIAL_ROW].tolist())
        self._row_of[slots] = targets
        self._in_flight.difference_update(targets.tolist())
        for value in kept:
            assert self._kept is not None
            self._kept[slots] = value

    def free(self, slot: int) -> None:
        super().free(slot)
        row = int(self._row_of[slot])
        if row != INITIAL_ROW:
            self._free_rows.append(row)
            self._row_of[slot] = INITIAL_ROW

    def read(self, slot: int, plane: int) -> Tensor:
        """Return one plane at one slot; a state comes from the device, which takes long."""
        if plane < self._num_states:
            return self._memory.read(int(self._row_of[slot]), plane)
        assert self._kept is not None
        return np.asarray(self._kept[slot])

    def pack(self, rows: Slots, values: Sequence[Tensor]) -> list[bytes]:
        """Return what ``dump`` would return of each of ``rows`` of a run: its states are copied to the host."""
        targets, *kept = values
        return pack_rows([*self._memory.rows(targets[rows].astype(np.intp)), *(value[rows] for value in kept)])

    def dump(self, slot: int) -> bytes:
        """Return the states at a slot, and the kept output, one after the other: little-endian, row-major."""
        planes = range(self._num_states + (self._kept is not None))
        return b"".join(np.ascontiguousarray(self.read(slot, plane)).tobytes() for plane in planes)

    def load(self, slot: int, content: bytes) -> None:
        """Write to a slot what ``dump`` returned: its inverse."""
        values = unpack([*self._memory.planes, *self._kept_planes], content)
        (row,) = self._take_rows(1)
        self._memory.write(row, values[: self._num_states])
        before = int(self._row_of[slot])
        if before != INITIAL_ROW:
            self._free_rows.append(before)
        self._row_of[slot] = row
        if self._kept is not None:
            self._kept[slot] = values[-1]

    def _take_rows(self, count: int) -> list[int]:
        """Take free rows, the last freed first, and make more where there are too few."""
        missing = count - len(self._free_rows)
        if missing > 0:
            self._memory.grow(self._next_row + missing)
            self._free_rows.extend(range(self._next_row, self._next_row + missing))
            self._next_row += missing
        return [self._free_rows.pop() for _ in range(count)]
