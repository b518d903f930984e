"""Metrics as plain values: families of series that can be added up, sent to another process, and kept.

A family knows what its sum over several processes is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tidegate.histogram import HistogramSnapshot

Labels = tuple[str, ...]
Value = float | HistogramSnapshot


@dataclass(frozen=True, slots=True)
class Family:
    """Series of one name.

    Attributes:
        name: Of counters without ``_total``.
        kind: Histograms hold a `HistogramSnapshot` for each series, the others a number.
        text: What it is, for people.
        labels: Names of the labels.
        values: By the labels' values, in the order of ``labels``.
        over: What the figure of several processes is: of counters and histograms always the sum.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: Labels
    values: Mapping[Labels, Value]
    over: Literal["sum", "max", "min"] = "sum"

    @property
    def is_counted(self) -> bool:
        """Whether it only grows, and so outlives the process that counted it."""
        return self.kind != "gauge"


Snapshot = Sequence[Family]
"""The figures of one moment, every name once."""


def merged(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Return the figures of several processes as those of one."""
    found: dict[str, Family] = {}
    for snapshot in snapshots:
        for family in snapshot:
            before = found.get(family.name)
            found[family.name] = family if before is None else _joined(before, family)
    return list(found.values())


def counted(snapshot: Snapshot) -> Snapshot:
    """Return what stays true of a process that is gone: what it has counted."""
    return [family for family in snapshot if family.is_counted]


class RetainedCounters:
    """Counters that never fall, whatever becomes of those who count.

    Args:
        before: What was counted in earlier lives.
    """

    def __init__(self, before: Snapshot = ()) -> None:
        self._before = before
        self._last: Snapshot = ()

    def take(self, snapshot: Snapshot) -> Snapshot:
        """Return the snapshot with what was counted before it by series that are gone, or that began anew."""
        now = {family.name: family.values for family in snapshot}
        lost = [_lost(family, now.get(family.name, {})) for family in self._last]
        self._before = merged([self._before, lost])
        self._last = counted(snapshot)
        return merged([snapshot, self._before])


def encode(snapshot: Snapshot) -> bytes:
    """Return the snapshot as JSON."""
    return json.dumps(
        [
            [family.name, family.kind, family.text, family.labels, family.over, list(family.values.items())]
            for family in snapshot
        ]
    ).encode()


def decode(data: bytes) -> Snapshot:
    """The inverse of `encode`.

    Raises:
        ValueError: It is none.
    """
    try:
        return [
            Family(name, kind, text, tuple(labels), {tuple(key): _value(value) for key, value in values}, over)
            for name, kind, text, labels, over, values in json.loads(data)
        ]
    except TypeError as error:
        raise ValueError(f"not a snapshot: {error}") from error


def _value(value: float | list[object]) -> Value:
    if not isinstance(value, list):
        return value
    bounds, counts, total = value
    return HistogramSnapshot(tuple(bounds), tuple(counts), total)  # type: ignore[arg-type]


def _joined(one: Family, other: Family) -> Family:
    values = dict(one.values)
    for key, value in other.values.items():
        values[key] = _join(one.over, values[key], value) if key in values else value
    return replace(one, values=values)


def _join(over: Literal["sum", "max", "min"], one: Value, other: Value) -> Value:
    if isinstance(one, HistogramSnapshot) and isinstance(other, HistogramSnapshot):
        assert one.bounds == other.bounds
        counts = tuple(a + b for a, b in zip(one.counts, other.counts, strict=True))
        return HistogramSnapshot(one.bounds, counts, one.total + other.total)
    assert not isinstance(one, HistogramSnapshot)
    assert not isinstance(other, HistogramSnapshot)
    if over == "sum":
        return one + other
    return max(one, other) if over == "max" else min(one, other)


def _lost(family: Family, now: Mapping[Labels, Value]) -> Family:
    """The series of the family that are not there now, or have less than they had."""
    gone = {key: value for key, value in family.values.items() if key not in now or _size(now[key]) < _size(value)}
    return replace(family, values=gone)


def _size(value: Value) -> float:
    return value.num_values if isinstance(value, HistogramSnapshot) else value
