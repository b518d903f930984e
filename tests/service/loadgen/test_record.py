"""Percentiles are exact, and a record counts what belongs to it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.loadgen.record import TO_FIRST, Latency, LoadRecord, Samples, percentile

seconds = st.floats(0, 1e3, allow_nan=False)


@given(st.lists(seconds, min_size=1), st.sampled_from([0.001, 0.5, 0.9, 0.99, 0.999, 1]))
def test_a_percentile_is_a_value_that_occurred_and_the_least_that_reaches_the_share(
    values: list[float], share: float
) -> None:
    ordered = np.sort(np.array(values))
    found = percentile(ordered, share)
    assert found in values
    assert np.mean(ordered <= found) >= share - 1e-9
    assert np.mean(ordered < found) < share


def test_a_thousand_values_have_an_exact_p999() -> None:
    samples = Samples()
    for milliseconds in reversed(range(1, 1001)):
        samples.add(0, milliseconds)
    assert samples.latency() == Latency(1000, 500.5, 500, 900, 990, 999, 1000)


def test_one_value_is_every_percentile_and_none_has_none() -> None:
    samples = Samples()
    assert samples.latency() is None
    samples.add(0, 0.25)
    assert samples.latency() == Latency(1, *[0.25] * 6)


def test_latencies_belong_by_due_time_and_work_by_reply() -> None:
    record = LoadRecord(begin=10, end=20)
    record.answered("1", due=9.9, now=10.1, steps=1)
    record.answered("1", due=19.9, now=25, steps=2)
    record.answered("8", due=12, now=13, steps=8)
    assert {label: samples.latencies.tolist() for label, samples in record.samples.items()} == {
        "1": [pytest.approx(5.1)],
        "8": [1.0],
    }
    assert (record.num_requests, record.num_steps, record.seconds) == (2, 9, 10)


def test_a_generation_is_told_twice_the_whole_and_its_first_token() -> None:
    record = LoadRecord(0, 10)
    record.answered("4", due=1, now=3, steps=68, first_token=1.5)
    assert record.samples["4"].latencies.tolist() == [2]
    assert record.samples[TO_FIRST].latencies.tolist() == [0.5]
    assert record.num_requests == 1


def test_what_fails_in_the_warm_up_is_not_counted() -> None:
    record = LoadRecord(10, 20)
    for due in (5, 15, 25):
        record.failed(due, ["OVERLOADED"])
        record.unfinished(due)
        record.sent(due, 0.001)
    record.unsent([9, 10, 19, 20])
    assert record.errors == {"OVERLOADED": 1}
    assert (record.num_unfinished, record.num_unsent, len(record.send_lags)) == (1, 2, 1)


def test_closing_shortens_and_never_lengthens() -> None:
    record = LoadRecord(10, 20)
    record.close(30)
    assert record.seconds == 10
    record.close(12)
    assert record.seconds == 2
    record.close(5)
    assert record.seconds == 0
