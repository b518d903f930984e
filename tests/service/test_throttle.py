"""How often the same thing is told."""

from __future__ import annotations

from tidegate.throttle import Throttle


class Clock:
    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


def test_a_kind_comes_through_once_in_a_while_with_how_many_were_held_back() -> None:
    clock = Clock()
    throttle = Throttle(10, clock)
    assert throttle.let_through("full") == 0
    assert [throttle.let_through("full") for _ in range(3)] == [None] * 3
    clock.now += 10
    assert throttle.let_through("full") == 3
    clock.now += 10
    assert throttle.let_through("full") == 0


def test_kinds_do_not_hold_each_other_back() -> None:
    throttle = Throttle(10, Clock())
    assert [throttle.let_through(kind) for kind in "abab"] == [0, 0, None, None]


def test_of_many_kinds_the_oldest_are_forgotten() -> None:
    throttle = Throttle(10, Clock())
    for kind in range(5000):
        throttle.let_through(kind)
    assert throttle.let_through(4999) is None
    assert throttle.let_through(0) == 0
