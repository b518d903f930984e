"""Who is expected back."""

from __future__ import annotations

from tidegate.api import SessionRequest
from tidegate.engine.scheduler import BatchingWindow
from tidegate.engine.session import Session


def a_session(name: str) -> Session:
    return Session(name, object(), SessionRequest("model"), seed=0, created_at=0.0, used_at=0.0)


def test_an_answered_session_is_expected_until_it_arrives() -> None:
    window, first, second = BatchingWindow(1.0), a_session("a"), a_session("b")
    window.on_answer(first, 0.0)
    window.on_answer(second, 0.5)
    assert window.num_expected(0.5) == 2
    window.on_arrival(first)
    assert window.num_expected(0.5) == 1


def test_after_the_horizon_nobody_is_expected() -> None:
    window, session = BatchingWindow(1.0), a_session("a")
    window.on_answer(session, 0.0)
    assert window.num_expected(0.99) == 1
    assert window.num_expected(1.0) == 0


def test_being_answered_again_begins_anew() -> None:
    window, first, second = BatchingWindow(1.0), a_session("a"), a_session("b")
    window.on_answer(first, 0.0)
    window.on_answer(second, 0.1)
    window.on_answer(first, 0.9)
    assert window.num_expected(1.5) == 1
    window.on_arrival(first)
    assert window.num_expected(1.5) == 0


def test_who_was_never_answered_may_arrive() -> None:
    window = BatchingWindow(1.0)
    window.on_arrival(a_session("a"))
    assert window.num_expected(0.0) == 0


def test_waiting_that_never_pays_is_given_up_but_for_a_try_now_and_then() -> None:
    window = BatchingWindow(1.0)
    assert window.is_worthwhile()
    for _ in range(20):
        window.learn(came=False)
    tries = [window.is_worthwhile() for _ in range(320)]
    assert tries.count(True) == 10


def test_waiting_that_pays_again_is_taken_up_again() -> None:
    window = BatchingWindow(1.0)
    for came in [False] * 20 + [True] * 3:
        window.learn(came=came)
    assert window.is_worthwhile()
    assert window.is_worthwhile()


def test_callers_without_a_session_are_expected_by_their_number() -> None:
    window = BatchingWindow(1.0)
    window.on_answer(None, 0.0)
    window.on_answer(None, 0.5)
    assert window.num_expected(0.5) == 2
    window.on_arrival(None)
    assert window.num_expected(0.5) == 1
    assert window.num_expected(1.5) == 0
    window.on_arrival(None)
    assert window.num_expected(1.5) == 0
