"""The arena: contiguous arrays that hold the states of live sessions, one slot a session.

Slot 0 belongs to nobody and holds the initial state, so a session at position 0 is gathered from there and opening
one writes nothing. Address space for the whole budget is reserved at once; the system backs it with memory as slots
are first touched, and the lowest free slots are used first, so the arena grows on demand without ever being copied.

Who owns what: a slot belongs to the session (or, for a chunk in several pieces, to the work) that allocated it, until
freed.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tidegate.api import Tensor
from tidegate.bundle import StateSpec, TensorSpec

INITIAL = 0
_SPAN = 64
Slots = NDArray[np.intp]


class Budget:
    """Bytes that all arenas share."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0

    def can_take(self, size: int) -> bool:
        return self.used + size <= self.total

    def take(self, size: int) -> None:
        self.used += size

    def give(self, size: int) -> None:
        self.used -= size


@dataclass(frozen=True, slots=True)
class Plane:
    """One tensor of every slot: its shape without the slot axis, and where in the array the slots are."""

    dtype: np.dtype[np.generic]
    row_shape: tuple[int, ...]
    slot_axis: int
    initial: float = 0.0

    @classmethod
    def of_state(cls, spec: StateSpec) -> Plane:
        """Slots lie where the graph has its batch, so gathering gives what the graph takes; without a batch they lie
        first.
        """
        return cls(np.dtype(spec.dtype), spec.row_shape, spec.batch_axis or 0, spec.initial)

    @classmethod
    def of_output(cls, spec: TensorSpec) -> Plane:
        """One step of a per-step output."""
        return cls(np.dtype(spec.dtype), tuple(axis for axis in spec.axes if isinstance(axis, int)), 0)

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.row_shape, dtype=np.int64)) * self.dtype.itemsize

    def reserve(self, num_slots: int) -> Tensor:
        shape = (*self.row_shape[: self.slot_axis], num_slots, *self.row_shape[self.slot_axis :])
        array = np.empty(shape, self.dtype)
        array[self.index(INITIAL)] = self.initial
        return array

    def index(self, slots: Slots | slice | int) -> tuple[slice | Slots | int, ...]:
        return (*(slice(None) for _ in range(self.slot_axis)), slots)


class ArenaLike(Protocol):
    """What an engine needs of an arena.

    What ``gather`` gives is meant for the runner beside the arena, and what that runner returns for ``scatter``: the
    states themselves, or, where they stay on a device, which rows they are in.
    """

    slot_bytes: int
    num_used: int

    def can_allocate(self, count: int = 1) -> bool: ...
    def allocate(self) -> int: ...
    def free(self, slot: int) -> None: ...
    def gather(self, slots: Slots, num_planes: int) -> list[Tensor]: ...
    def select(self, rows: Slots, values: Sequence[Tensor]) -> list[Tensor]: ...
    def scatter(self, slots: Slots, values: Sequence[Tensor]) -> None: ...
    def read(self, slot: int, plane: int) -> Tensor: ...
    def pack(self, rows: Slots, values: Sequence[Tensor]) -> list[bytes]: ...
    def dump(self, slot: int) -> bytes: ...
    def load(self, slot: int, content: bytes) -> None: ...


class SlotTable:
    """Who holds which slot, and what that takes of the budget. Knows nothing of what lies in a slot, or where."""

    def __init__(self, slot_bytes: int, budget: Budget) -> None:
        self._budget = budget
        self.slot_bytes = slot_bytes
        self._num_slots = 1 + max(1, budget.total // max(1, slot_bytes))
        self._free: list[int] = []
        self._next = INITIAL + 1
        self.num_used = 0

    def can_allocate(self, count: int = 1) -> bool:
        """Whether the budget has room for ``count`` more slots."""
        return self._budget.can_take(count * self.slot_bytes) and self.num_used + count < self._num_slots

    def allocate(self) -> int:
        """Return the lowest free slot; its content is undefined. Ask ``can_allocate`` first."""
        assert self.can_allocate()
        self._budget.take(self.slot_bytes)
        self.num_used += 1
        if self._free:
            return heapq.heappop(self._free)
        self._next += 1
        return self._next - 1

    def free(self, slot: int) -> None:
        """Give the slot back."""
        assert slot != INITIAL
        self._budget.give(self.slot_bytes)
        self.num_used -= 1
        heapq.heappush(self._free, slot)


class Arena(SlotTable):
    """Slots of one model's planes: first its states, then, if any, the output that is kept with each session."""

    def __init__(self, planes: Sequence[Plane], budget: Budget) -> None:
        super().__init__(sum(plane.row_bytes for plane in planes), budget)
        self._planes = tuple(planes)
        self._arrays = [plane.reserve(self._num_slots) for plane in self._planes]

    def gather(self, slots: Slots, num_planes: int) -> list[Tensor]:
        """Return copies of the first ``num_planes`` planes at ``slots``, the slots in order along each plane's slot
        axis.
        """
        homes = zip(self._arrays[:num_planes], self._planes, strict=False)
        if (span := _span(slots)) is not None:
            return [array[plane.index(span)].copy() for array, plane in homes]
        return [array.take(slots, axis=plane.slot_axis) for array, plane in homes]

    def select(self, rows: Slots, values: Sequence[Tensor]) -> list[Tensor]:
        """Return only ``rows`` of ``values``, which are as ``gather`` gives them."""
        return [value.take(rows, axis=plane.slot_axis) for value, plane in zip(values, self._planes, strict=False)]

    def scatter(self, slots: Slots, values: Sequence[Tensor]) -> None:
        """Write ``values``, one array a plane as ``gather`` gives them, to ``slots``: the inverse of ``gather``."""
        span = _span(slots)
        for array, plane, value in zip(self._arrays, self._planes, values, strict=False):
            array[plane.index(slots if span is None else span)] = value

    def read(self, slot: int, plane: int) -> Tensor:
        """Return a view of one plane at one slot."""
        return np.asarray(self._arrays[plane][self._planes[plane].index(slot)])

    def pack(self, rows: Slots, values: Sequence[Tensor]) -> list[bytes]:
        """Return what ``dump`` would return of each of ``rows`` of ``values``, which are as ``gather`` gives them."""
        return pack_rows(
            [np.moveaxis(value, plane.slot_axis, 0)[rows] for value, plane in zip(values, self._planes, strict=True)]
        )

    def dump(self, slot: int) -> bytes:
        """Return all planes at a slot, one after the other: little-endian, row-major."""
        return b"".join(np.ascontiguousarray(self.read(slot, plane)).tobytes() for plane in range(len(self._planes)))

    def load(self, slot: int, content: bytes) -> None:
        """Write to a slot what ``dump`` returned: its inverse."""
        for array, plane, value in zip(self._arrays, self._planes, unpack(self._planes, content), strict=True):
            array[plane.index(slot)] = value


def _span(slots: Slots) -> slice | None:
    """Return many slots that lie side by side in order as one span, which is copied in half the time; else None."""
    num_slots = len(slots)
    if num_slots < _SPAN or slots[-1] - slots[0] != num_slots - 1 or (np.diff(slots) != 1).any():
        return None
    return slice(int(slots[0]), int(slots[0]) + num_slots)


def pack_rows(values: Sequence[Tensor]) -> list[bytes]:
    """Return the bytes of each row of ``values``, [rows, …] each, one value after the other."""
    parts = [np.ascontiguousarray(value).reshape(len(value), -1).view(np.uint8) for value in values]
    block = np.concatenate(parts, axis=1)
    size, content = block.shape[1], block.tobytes()
    return [content[start : start + size] for start in range(0, len(content), size)]


def unpack(planes: Sequence[Plane], content: bytes) -> list[Tensor]:
    """Return the planes of one slot from their bytes, each in its row's shape.

    Raises:
        ValueError: There are too few bytes, or too many.
    """
    if len(content) != sum(plane.row_bytes for plane in planes):
        raise ValueError(f"a state of {len(content)} bytes does not fit {sum(plane.row_bytes for plane in planes)}")
    found, start = [], 0
    for plane in planes:
        array = np.frombuffer(content, plane.dtype, plane.row_bytes // plane.dtype.itemsize, start)
        found.append(array.reshape(plane.row_shape))
        start += plane.row_bytes
    return found
