"""Figures of several processes as one: sums that never fall, whoever dies."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.histogram import HistogramSnapshot
from tidegate.observability.families import (
    Family,
    Labels,
    RetainedCounters,
    Snapshot,
    Value,
    counted,
    decode,
    encode,
    merged,
)

BOUNDS = (1.0, 10.0)


def family(values: Mapping[Labels, Value], kind: str = "counter", over: str = "sum") -> Family:
    return Family(f"some_{kind}_{over}", kind, "Some.", ("model",), values, over)  # type: ignore[arg-type]


def read(*counts: int) -> HistogramSnapshot:
    return HistogramSnapshot(BOUNDS, counts, float(sum(counts)))


SNAPSHOT: Snapshot = [
    family({("a",): 1.0, ("b",): 2.0}),
    family({("a",): read(1, 2, 3)}, "histogram"),
    family({("a",): 5.0}, "gauge"),
    family({("a",): 5.0}, "gauge", "max"),
    family({("a",): 5.0}, "gauge", "min"),
]
OTHER: Snapshot = [
    family({("b",): 10.0, ("c",): 20.0}),
    family({("a",): read(10, 20, 30)}, "histogram"),
    family({("a",): 7.0}, "gauge"),
    family({("a",): 7.0}, "gauge", "max"),
    family({("a",): 7.0}, "gauge", "min"),
]


def test_what_is_encoded_comes_back() -> None:
    assert decode(encode(SNAPSHOT)) == SNAPSHOT
    assert decode(encode([])) == []


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"[[1, 2]]", b"5"])
def test_what_is_no_snapshot_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whichever
        decode(data)


def test_figures_of_two_are_added_up() -> None:
    assert merged([SNAPSHOT, OTHER]) == [
        family({("a",): 1.0, ("b",): 12.0, ("c",): 20.0}),
        family({("a",): read(11, 22, 33)}, "histogram"),
        family({("a",): 12.0}, "gauge"),
        family({("a",): 7.0}, "gauge", "max"),
        family({("a",): 5.0}, "gauge", "min"),
    ]
    assert merged([SNAPSHOT]) == SNAPSHOT


def test_only_what_is_counted_outlives_its_process() -> None:
    assert [each.name for each in counted(SNAPSHOT)] == ["some_counter_sum", "some_histogram_sum"]


def test_a_new_life_counts_on_from_the_last() -> None:
    kept = RetainedCounters(counted(SNAPSHOT))
    assert kept.take([family({("b",): 5.0})])[0].values == {("a",): 1.0, ("b",): 7.0}
    assert kept.take([family({("b",): 6.0})])[0].values == {("a",): 1.0, ("b",): 8.0}


def test_a_series_that_is_gone_stays_told() -> None:
    """A model that was unloaded, which another process may still have."""
    kept = RetainedCounters()
    kept.take([family({("a",): 3.0, ("b",): 1.0})])
    assert kept.take([family({("b",): 2.0})])[0].values == {("a",): 3.0, ("b",): 2.0}
    assert kept.take([family({("a",): 1.0, ("b",): 2.0})])[0].values == {("a",): 4.0, ("b",): 2.0}


def test_gauges_are_not_kept() -> None:
    kept = RetainedCounters()
    kept.take([family({("a",): 3.0}, "gauge")])
    assert kept.take([]) == []


Lives = st.lists(st.lists(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(0, 9)), max_size=6), max_size=5)


@given(Lives)
def test_sums_never_fall_and_nothing_told_is_counted_twice(lives: list[list[dict[str, int]]]) -> None:
    """In each life a process counts on, series come and go, and it dies after any telling."""
    before: Snapshot = []
    told: dict[Labels, Value] = {}
    for steps in lives:
        kept, here = RetainedCounters(before), dict.fromkeys("abc", 0)
        for step in steps:
            present: dict[Labels, Value] = {(name,): float(here[name] + more) for name, more in step.items()}
            for name in here:
                here[name] = here[name] + step[name] if name in step else 0
            (now,) = kept.take([family(present)])
            for key, value in told.items():
                assert now.values[key] >= value  # type: ignore[operator]
            rise = {key: now.values[key] - told.get(key, 0.0) for key in now.values}  # type: ignore[operator]
            assert rise == {key: float(step.get(key[0], 0)) for key in now.values}
            told, before = dict(now.values), counted([now])
