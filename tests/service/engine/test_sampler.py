"""Sampling against a slow reference, and random numbers that depend on seed and position alone."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tidegate.api import Sampling
from tidegate.engine.sampler import sample, uniform

MASK = (1 << 64) - 1
rows = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=12)
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.integers(0, 14),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
)


def splitmix(state: int, count: int) -> list[int]:
    """The published generator, as it is usually written: a state that is stepped."""
    numbers = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        numbers.append(z ^ (z >> 31))
    return numbers


def allowed(logits: list[float], sampling: Sampling) -> dict[int, float]:
    """The distribution by the book, in Python: probability of each token that may be drawn, most probable first."""
    ranked = sorted(range(len(logits)), key=lambda token: -logits[token])
    if sampling.temperature == 0:
        return {ranked[0]: 1.0}
    weights = {token: math.exp((logits[token] - logits[ranked[0]]) / sampling.temperature) for token in ranked}
    kept = ranked[: sampling.top_k or None]
    total = math.fsum(weights[token] for token in kept)
    nucleus: dict[int, float] = {}
    for token in kept:
        nucleus[token] = weights[token]
        if math.fsum(nucleus.values()) >= sampling.top_p * total:
            break
    mass = math.fsum(nucleus.values())
    return {token: weight / mass for token, weight in nucleus.items()}


def draw(distribution: dict[int, float], random: float) -> int | None:
    """Invert the cumulative distribution; None where the random number is too near to a border to tell."""
    cumulative = 0.0
    for token, probability in distribution.items():
        if abs(random - cumulative) < 1e-9 and cumulative:
            return None
        cumulative += probability
        if random < cumulative - 1e-9:
            return token
    return None


def is_near_a_border(logits: list[float], sampling: Sampling) -> bool:
    """Whether rounding decides how large the nucleus is."""
    some = Sampling(temperature=sampling.temperature, top_k=sampling.top_k)
    cumulative = np.cumsum(list(allowed(logits, some).values()))
    return sampling.top_p < 1 and bool((np.abs(cumulative - sampling.top_p) < 1e-9).any())


@given(logits=rows, sampling=samplings, random=st.floats(0, 1, exclude_max=True))
def test_a_draw_is_the_slow_references(logits: list[float], sampling: Sampling, random: float) -> None:
    (token,) = sample(np.array([logits], np.float32), [sampling], [random])
    distribution = allowed(logits, sampling)
    if is_near_a_border(logits, sampling):
        return
    expected = draw(distribution, random)
    assert expected in {None, token}
    assert token in distribution or distribution[list(distribution)[-1]] < 1e-9


@given(logits=rows, random=st.floats(0, 1, exclude_max=True), others=st.lists(rows, max_size=3), sampling=samplings)
def test_a_draw_does_not_depend_on_company(
    logits: list[float], random: float, others: list[list[float]], sampling: Sampling
) -> None:
    width = len(logits)
    company = [(other * width)[:width] for other in others]
    (alone,) = sample(np.array([logits], np.float32), [sampling], [random])
    settings = [Sampling(temperature=0), Sampling(temperature=0.7, top_k=2), Sampling(top_p=0.4)][: len(company)]
    together = sample(np.array([*company, logits], np.float32), [*settings, sampling], [0.5] * len(company) + [random])
    assert together[-1] == alone


@given(logits=rows, random=st.floats(0, 1, exclude_max=True))
def test_temperature_0_takes_the_most_probable(logits: list[float], random: float) -> None:
    array = np.array([logits, logits], np.float32)
    assert sample(array, [Sampling(temperature=0), Sampling()], [random, 0.0])[0] == int(array[0].argmax())
    assert sample(array[:1], [Sampling(temperature=0)], [random]) == [int(array[0].argmax())]


def chi_square(counts: Counter[int], distribution: dict[int, float]) -> float:
    total = sum(counts.values())
    return sum((counts[token] - total * p) ** 2 / (total * p) for token, p in distribution.items())


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=0.5), Sampling(temperature=2), Sampling(top_k=4), Sampling(top_p=0.8)],
    ids=["plain", "cold", "hot", "top_k", "top_p"],
)
def test_draws_are_distributed_as_asked(sampling: Sampling) -> None:
    logits = [0.0, 1.5, -0.5, 0.7, 2.0, -1.0, 1.0, 0.2]
    array = np.tile(np.array(logits, np.float32), (4000, 1))
    counts = Counter(sample(array, [sampling] * 4000, [uniform(11, counter) for counter in range(4000)]))
    distribution = allowed(logits, sampling)
    assert set(counts) <= set(distribution)
    # The 99.9 % quantile of chi-square with 7 degrees of freedom, the most there are here.
    assert chi_square(counts, distribution) < 24.3


def test_extreme_settings_draw_like_any_other() -> None:
    array = np.array([[0.0, 3.0, -np.inf, 1.0]], np.float32)
    assert sample(array, [Sampling(temperature=1e-320)], [0.99]) == [1]
    assert sample(array, [Sampling(temperature=1e300)], [0.0]) == [1]
    assert sample(array, [Sampling(top_k=1 << 70)], [0.0]) == [1]
    assert sample(array, [Sampling(top_p=1e-300)], [0.999]) == [1]
    assert sample(array, [Sampling()], [math.nextafter(1.0, 0.0)]) == [0]


def test_random_numbers_are_splitmix64() -> None:
    # The first outputs for seed 0 as its authors publish them.
    assert splitmix(0, 3) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    for seed in (0, 1, 42, MASK):
        start = splitmix(seed, 1)[0]
        expected = [(number >> 11) / 2**53 for number in splitmix(start, 5)]
        assert [uniform(seed, counter) for counter in range(5)] == expected


def test_random_numbers_stay_what_they_are() -> None:
    """A stored session goes on with the numbers that it began with, in every later version."""
    known = [0.7215081806049702, 0.6497043364684557, 0.8452358607113265]
    assert [uniform(7, counter) for counter in (0, 1, 1000)] == known


@given(seed=st.integers(0, MASK), counter=st.integers(0, 2**40))
def test_random_numbers_lie_in_the_unit_interval(seed: int, counter: int) -> None:
    assert 0 <= uniform(seed, counter) < 1


def test_random_numbers_are_even_over_counters_and_over_seeds() -> None:
    for numbers in ([uniform(3, n) for n in range(4000)], [uniform(n, 3) for n in range(4000)]):
        bins: NDArray[np.int64] = np.histogram(numbers, bins=20, range=(0, 1))[0]
        # The 99.9 % quantile of chi-square with 19 degrees of freedom.
        assert float(((bins - 200) ** 2 / 200).sum()) < 43.8
