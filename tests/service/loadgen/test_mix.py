"""Lengths by weight."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice

import pytest

from tidegate.errors import ConfigurationError
from tidegate.loadgen.load import Mix, RequestKind


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("1", [RequestKind(1, 1)]),
        ("16-512", [RequestKind(16, 512)]),
        ("1:99,1024:1", [RequestKind(1, 1, 99), RequestKind(1024, 1024, 1)]),
        ("1:0.5, 2-3:1.5", [RequestKind(1, 1, 0.5), RequestKind(2, 3, 1.5)]),
    ],
)
def test_a_mix_is_read(text: str, kinds: list[RequestKind]) -> None:
    mix = Mix.parse(text)
    assert list(mix.kinds) == kinds
    assert Mix.parse(str(mix)) == mix


@pytest.mark.parametrize("text", ["", "0", "a", "5-2", "1:", "1:-1", "-3", "1,,2", "1:0,2:0", "1.5"])
def test_what_is_no_mix_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--chunk"):
        Mix.parse(text)


def test_sizes_follow_the_weights_and_stay_in_their_ranges() -> None:
    mix = Mix.parse("1:90,16-32:10,64:0")
    sizes = list(islice(mix.draws(random.Random(0)), 10_000))
    counts = Counter(label for label, _ in sizes)
    assert set(counts) == {"1", "16-32"}
    assert counts["16-32"] == pytest.approx(1000, rel=0.1)
    assert {length for label, length in sizes if label == "16-32"} == set(range(16, 33))
    assert mix.longest == 64


def test_the_same_seed_draws_the_same_sizes() -> None:
    first, second = (list(islice(Mix.parse("1-100").draws(random.Random("7 0")), 50)) for _ in range(2))
    assert first == second
