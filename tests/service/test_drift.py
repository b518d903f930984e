"""The control chart by itself: its false alarms and its speed as published, its rules, its blocks."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tidegate.bundle import DriftCalibration, Limit
from tidegate.drift import NOT_WHOLE, Chart, ChartState, add_steps

MEAN, SPREAD = 2.0, 0.25


def calibrated(
    factor: float = 0.1, warning: float = 2.0, drift: float = 2.814, clip: float = 4.0, block: int = 8
) -> DriftCalibration:
    return DriftCalibration(
        block=block,
        factor=factor,
        mean=MEAN,
        spread=SPREAD,
        clip=clip,
        warning=Limit(width=warning, run_length=100),
        drift=Limit(width=drift, run_length=500),
        autocorrelation=0.0,
        blocks=1000,
        data="made up",
    )


def run_length(chart: Chart, shift: float, runs: int) -> float:
    """The mean number of blocks until drift, of normal means that are shifted by so many spreads.

    The charts begin as old ones: the published figures are for limits that are as wide as they become.
    """
    random = np.random.default_rng(7)
    fresh = ChartState(MEAN, blocks=1000)
    total = 0
    for _ in range(runs):
        charted = fresh
        while charted.state != "drift":
            charted = chart.advance(charted, MEAN + SPREAD * (shift + random.standard_normal()))
        total += charted.blocks - fresh.blocks
    return total / runs


# Lucas & Saccucci, "Exponentially weighted moving average control schemes", Technometrics 32 (1990): average
# run lengths by factor, limit and shift. A run's length spreads about as wide as its mean: the bounds are of 4 standard
# errors of what is simulated here.
@pytest.mark.parametrize(
    ("factor", "limit", "shift", "published", "runs"),
    [
        (0.1, 2.814, 0.0, 500, 1500),
        (0.1, 2.814, 0.5, 31.3, 2000),
        (0.1, 2.814, 1.0, 10.3, 2000),
        (0.1, 2.814, 2.0, 4.36, 2000),
        (0.1, 2.814, 4.0, 2.19, 2000),
        (0.05, 2.615, 0.5, 28.8, 2000),
        (0.2, 2.962, 1.0, 10.5, 2000),
    ],
)
def test_run_lengths_are_the_published_ones(
    factor: float, limit: float, shift: float, published: float, runs: int
) -> None:
    chart = Chart(calibrated(factor, warning=limit, drift=limit, clip=100.0))
    assert run_length(chart, shift, runs) == pytest.approx(published, rel=4 / math.sqrt(runs))


def test_limits_widen_from_one_blocks_to_what_they_stay() -> None:
    chart = Chart(calibrated())
    first, later = chart.limits(1, "drift"), chart.limits(10_000, "drift")
    assert first.high - MEAN == pytest.approx(2.814 * SPREAD * 0.1)
    assert later.high - MEAN == pytest.approx(2.814 * SPREAD * math.sqrt(0.1 / 1.9))
    reaches = [chart.limits(blocks, "drift").high for blocks in range(1, 300)]
    assert all(one <= other for one, other in pairwise(reaches))
    assert MEAN - later.low == pytest.approx(later.high - MEAN)


@pytest.mark.parametrize("mean", [MEAN + 8 * SPREAD, MEAN - 8 * SPREAD])
def test_more_surprise_and_less_are_both_drift_but_never_for_one_block(mean: float) -> None:
    chart = Chart(calibrated(warning=3.0, drift=4.5))
    charted = chart.advance_all(chart.start(), [MEAN] * 200)
    one = chart.advance(charted, mean)
    assert one.state == "normal"
    assert chart.advance_all(one, [mean] * 5).state == "drift"


def test_a_state_lasts_until_the_average_is_well_back() -> None:
    chart = Chart(calibrated(warning=2.0, drift=4.0))
    charted = chart.advance_all(chart.start(), [MEAN + 4 * SPREAD] * 30)
    states = [charted.state]
    averages = [charted.ewma]
    for _ in range(60):
        charted = chart.advance(charted, MEAN)
        states.append(charted.state)
        averages.append(charted.ewma)
    changes = [index for index, (one, other) in enumerate(pairwise(states), 1) if one != other]
    assert [states[0], *(states[index] for index in changes)] == ["drift", "warning", "normal"]
    warning = chart.limits(1000, "warning").high - MEAN
    assert averages[changes[0] - 1] - MEAN > warning >= averages[changes[0]] - MEAN
    assert averages[changes[1] - 1] - MEAN > warning / 2 >= averages[changes[1]] - MEAN


steps = st.lists(st.floats(0, 30, width=32), max_size=90).map(lambda it: np.array(it, np.float32))


def means_of(values: NDArray[np.float32], block: int) -> list[float]:
    """The means of the whole blocks of a sequence but its first, all at once."""
    count = len(values) // block
    found: list[float] = values[: count * block].reshape(count, block).astype(np.float64).mean(axis=1)[1:].tolist()
    return found


@given(steps, st.integers(1, 20), st.data())
def test_any_split_gives_the_same_blocks(values: NDArray[np.float32], block: int, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=6)))
    total, found = NOT_WHOLE, []
    for start, end in pairwise([0, *cuts, len(values)]):
        total, means = add_steps(total, start, values[start:end].tolist(), block)
        found += means
    assert found == pytest.approx(means_of(values, block), rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_block_with_a_step_that_is_no_number_is_left_out(bad: float) -> None:
    values = np.arange(16, dtype=np.float32)
    values[9] = bad
    total, means = add_steps(0.0, 0, values.tolist(), 4)
    assert means == [1.5, 5.5, 13.5]
    assert total == 0.0
