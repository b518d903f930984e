"""A process with limits: what comes out of it, and how it ends. The functions are Python's own."""

from __future__ import annotations

import resource
import signal

import pytest

from tidegate.errors import BundleError
from tidegate.sandbox import CRASHED, OUT_OF_MEMORY, TIME_LIMIT, ResourceLimits, run_limited

LIMITS = ResourceLimits(memory_mb=512, seconds=60)


def failure(function: str, argument: object, limits: ResourceLimits = LIMITS) -> BundleError:
    with pytest.raises(BundleError) as caught:
        run_limited(function, argument, limits)
    return caught.value


def test_what_the_function_returns_comes_back() -> None:
    assert run_limited("builtins:sorted", ["ü", "b", "a"], LIMITS) == ["a", "b", "ü"]


def test_what_it_prints_goes_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_limited("builtins:print", "hello", LIMITS) is None
    assert capfd.readouterr() == ("", "")


def test_what_it_prints_is_seen_where_that_is_wanted(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_limited("builtins:print", "hello", LIMITS, is_quiet=False) is None
    assert capfd.readouterr().out == "hello\n"


def test_a_bundles_error_is_raised_here() -> None:
    error = failure("tidegate.proof:check_path", "/nowhere/1")
    assert (error.reason, error.message) == (
        "BAD_BUNDLE",
        "/nowhere/1: no readable manifest.json (No such file or directory)",
    )


def test_a_process_that_takes_too_long_is_ended() -> None:
    error = failure("time:sleep", 1000, ResourceLimits(512, 1))
    assert (error.reason, error.message) == (
        TIME_LIMIT,
        "the graph does not come to an end within 1 seconds (--time-limit)",
    )


def test_a_process_that_asks_for_too_much_is_told() -> None:
    error = failure("builtins:bytearray", 1 << 30)
    assert error.reason == OUT_OF_MEMORY
    assert error.message.endswith("(--memory-limit: 512 MiB)")


@pytest.mark.parametrize(
    ("number", "reason", "message"),
    [
        (signal.SIGSEGV, CRASHED, "it crashed (SIGSEGV)"),
        (signal.SIGABRT, CRASHED, "it crashed (SIGABRT)"),
        (signal.SIGKILL, OUT_OF_MEMORY, "the machine ran out of memory, most likely"),
        (signal.SIGXCPU, TIME_LIMIT, "does not come to an end"),
    ],
)
def test_a_process_that_dies_says_of_what(number: int, reason: str, message: str) -> None:
    error = failure("signal:raise_signal", int(number))
    assert error.reason == reason
    assert message in error.message


def test_a_process_that_fails_tells_its_last_line() -> None:
    error = failure("builtins:int", "x")
    assert error.reason == CRASHED
    assert error.message == "it failed: ValueError: invalid literal for int() with base 10: 'x'"


def test_a_process_whose_starter_is_gone_ends_by_its_processor_time() -> None:
    soft, hard = run_limited("resource:getrlimit", resource.RLIMIT_CPU, ResourceLimits(512, 10))
    assert 11 <= soft == hard < 100_000
