from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidegate.histogram import SECONDS, Histogram


def test_a_value_on_a_bound_is_in_that_bucket() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 2.5):
        histogram.add(value)
    assert histogram.snapshot() == ((1.0, 2.0), (2, 2, 1), 7.0)


def test_a_reading_does_not_change_with_what_comes_later() -> None:
    histogram = Histogram()
    before = histogram.snapshot()
    histogram.add(0.1)
    assert (before.num_values, histogram.snapshot().num_values) == (0, 1)


@given(st.lists(st.floats(0, 1e6)))
def test_every_value_is_in_the_first_bucket_that_holds_it(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    reading = histogram.snapshot()
    assert reading.num_values == len(values)
    for index, bound in enumerate(SECONDS):
        assert sum(reading.counts[: index + 1]) == sum(value <= bound for value in values)
