"""What is told of a fault of ours, to whom."""

from __future__ import annotations

import logging

import pytest

from tidegate.errors import InternalError, NotFoundError, UnavailableError
from tidegate.faults import conceal


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:  # noqa: BLE001 - it is what was raised
        return caught


def test_an_error_of_ours_is_told_as_it_is_and_logged_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    error = NotFoundError("unknown session")
    assert conceal(error) is error
    assert caplog.messages == []


def test_another_is_told_by_a_number_and_the_log_has_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        told = conceal(raised(ZeroDivisionError("secret")), "a step failed")
    assert isinstance(told, InternalError)
    number = told.details["fault"]
    assert told.message == f"internal error: the server's log says more under fault {number}"
    assert caplog.messages == [f"fault {number}: a step failed"]
    assert "ZeroDivisionError: secret" in caplog.text


def test_the_number_is_that_of_the_place_whatever_the_request_was() -> None:
    def fail(text: str) -> None:
        raise ValueError(text)

    numbers = []
    for text in ("one", "two"):
        try:
            fail(text)
        except ValueError as error:
            numbers.append(conceal(error).details["fault"])
    assert numbers[0] == numbers[1]
    assert conceal(raised(ZeroDivisionError())).details["fault"] != numbers[0]
    assert conceal(ZeroDivisionError("raised nowhere")).details["fault"]


def test_a_cause_is_for_the_log_alone() -> None:
    error = UnavailableError("the store is away", cause="Error 111 connecting to 10.0.0.7:6379")
    assert error.message == "the store is away"
    assert str(error) == "the store is away: Error 111 connecting to 10.0.0.7:6379"
