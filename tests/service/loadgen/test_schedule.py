"""Due times: how many, how far apart, and that they are nobody's business but the seed's."""

from __future__ import annotations

import random
from itertools import islice, pairwise, takewhile

import pytest

from tidegate.loadgen.load import Arrivals, due_times


def dues(arrivals: Arrivals, rate: float, num_senders: int, until: float, start: float = 0) -> list[float]:
    """The due times of all senders together, in order."""
    found: list[float] = []
    for sender in range(num_senders):
        times = due_times(arrivals, rate, start, sender, num_senders, random.Random(f"0 {sender}"))
        found += takewhile(lambda due: due < until, times)
    return sorted(found)


@pytest.mark.parametrize("num_senders", [1, 3, 64])
def test_even_senders_take_turns(num_senders: int) -> None:
    found = dues(Arrivals.EVEN, rate=100, num_senders=num_senders, start=5, until=6.995)
    assert found == pytest.approx([5 + each / 100 for each in range(200)])


def test_even_times_do_not_drift() -> None:
    times = due_times(Arrivals.EVEN, 3, 0, 0, 1, random.Random(0))
    assert next(islice(times, 3_000_000, None)) == pytest.approx(1_000_000, abs=1e-6)


@pytest.mark.parametrize("num_senders", [1, 50])
def test_poisson_senders_together_have_exponential_gaps(num_senders: int) -> None:
    found = dues(Arrivals.POISSON, rate=1000, num_senders=num_senders, until=20)
    assert len(found) == pytest.approx(20_000, rel=0.03)
    gaps = sorted(later - earlier for earlier, later in pairwise(found))
    # The median of exponential gaps is ln 2 of their mean; even ones would have the mean.
    assert gaps[len(gaps) // 2] == pytest.approx(0.693 / 1000, rel=0.05)


def test_poisson_times_rise_and_repeat_with_their_seed() -> None:
    first, second = (list(islice(due_times(Arrivals.POISSON, 10, 3, 0, 4, random.Random(1)), 100)) for _ in range(2))
    assert first == second == sorted(first)
    assert first[0] > 3
