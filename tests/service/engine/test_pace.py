"""Who is expected back."""

from __future__ import annotations

from tidegate.api import SessionRequest
from tidegate.engine.pace import Pace, Patience
from tidegate.engine.session import Session


def a_session(name: str) -> Session:
    return Session(name, object(), SessionRequest("model"), seed=0, created_at=0.0, used_at=0.0)


def test_an_answered_session_is_expected_until_it_arrives() -> None:
    pace, first, second = Pace(1.0), a_session("a"), a_session("b")
    pace.answered(first, 0.0)
    pace.answered(second, 0.5)
    assert pace.num_expected(0.5) == 2
    pace.arrived(first)
    assert pace.num_expected(0.5) == 1


def test_after_the_horizon_nobody_is_expected() -> None:
    pace, session = Pace(1.0), a_session("a")
    pace.answered(session, 0.0)
    assert pace.num_expected(0.99) == 1
    assert pace.num_expected(1.0) == 0


def test_being_answered_again_begins_anew() -> None:
    pace, first, second = Pace(1.0), a_session("a"), a_session("b")
    pace.answered(first, 0.0)
    pace.answered(second, 0.1)
    pace.answered(first, 0.9)
    assert pace.num_expected(1.5) == 1
    pace.arrived(first)
    assert pace.num_expected(1.5) == 0


def test_who_was_never_answered_may_arrive() -> None:
    pace = Pace(1.0)
    pace.arrived(a_session("a"))
    assert pace.num_expected(0.0) == 0


def test_waiting_that_never_pays_is_given_up_but_for_a_try_now_and_then() -> None:
    patience = Patience()
    assert patience.is_worthwhile()
    for _ in range(20):
        patience.learn(came=False)
    tries = [patience.is_worthwhile() for _ in range(320)]
    assert tries.count(True) == 10


def test_waiting_that_pays_again_is_taken_up_again() -> None:
    patience = Patience()
    for came in [False] * 20 + [True] * 3:
        patience.learn(came=came)
    assert patience.is_worthwhile()
    assert patience.is_worthwhile()


def test_callers_without_a_session_are_expected_by_their_number() -> None:
    pace = Pace(1.0)
    pace.answered(None, 0.0)
    pace.answered(None, 0.5)
    assert pace.num_expected(0.5) == 2
    pace.arrived(None)
    assert pace.num_expected(0.5) == 1
    assert pace.num_expected(1.5) == 0
    pace.arrived(None)
    assert pace.num_expected(1.5) == 0
