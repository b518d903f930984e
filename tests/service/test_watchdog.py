"""Runs end in time: what is told to stop, and what is not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tidegate.errors import BundleError, InternalError
from tidegate.ort import onnxruntime
from tidegate.watchdog import LOAD_TIMEOUT, RUN_TIMEOUT, Options, RunLimit, Watchdog


@dataclass
class Bench:
    """A limit of 10 s for runs and of 100 s for loads, and a clock that tests turn."""

    now: float = 0.0

    def __post_init__(self) -> None:
        self.limit = RunLimit(10, 100, lambda: self.now)
        self.options = Options()

    def lasting(self, *pauses: float, ends: bool = False) -> Callable[[onnxruntime.RunOptions], str]:
        """A run at which somebody looks after each pause; onnxruntime ends it where it is told to."""

        def call(options: onnxruntime.RunOptions) -> str:
            self.watch(*pauses)
            if options.terminate and not ends:
                raise RuntimeError("Exiting due to terminate flag being set to true.")
            return "done"

        return call

    def watch(self, *pauses: float) -> None:
        self.limit.look()
        for pause in pauses:
            self.now += pause
            self.limit.look()


def test_a_run_in_time_is_left_alone_and_its_options_serve_the_next() -> None:
    bench = Bench()
    options = bench.options.value
    for pauses in ((), (4, 5), (9.9,)):
        assert bench.limit.run(bench.options, bench.lasting(*pauses)) == "done"
    assert bench.options.value is options


def test_a_run_that_takes_longer_is_ended_and_the_next_has_new_options() -> None:
    bench = Bench()
    with pytest.raises(InternalError, match="more than the 10 seconds of --run-timeout") as caught:
        bench.limit.run(bench.options, bench.lasting(5, 6))
    assert caught.value.reason == RUN_TIMEOUT
    assert not bench.options.value.terminate
    assert bench.limit.run(bench.options, bench.lasting(9)) == "done"


def test_a_run_that_fails_by_itself_says_why() -> None:
    bench = Bench()
    with pytest.raises(ZeroDivisionError):
        bench.limit.run(bench.options, lambda _: str(1 // 0))


def test_a_run_that_ends_just_then_is_a_run_and_the_next_is_not_stopped_in_its_place() -> None:
    bench = Bench()
    assert bench.limit.run(bench.options, bench.lasting(11, ends=True)) == "done"
    assert not bench.options.value.terminate


def test_runs_that_follow_each_other_are_not_one_long_run() -> None:
    bench = Bench()
    for _ in range(10):
        assert bench.limit.run(bench.options, bench.lasting(4, 4)) == "done"


def test_who_looked_at_a_run_stops_no_other_that_began_while_it_looked() -> None:
    """The first run ends, and a second begins, between a look at what is under way and the look at the clock."""
    began, end = threading.Event(), [threading.Event(), threading.Event()]
    found: list[onnxruntime.RunOptions] = []
    times = iter([0.0])

    def clock() -> float:
        if (now := next(times, None)) is not None:
            return now
        began.clear()
        end[0].set()
        assert began.wait(30)
        return 100.0

    limit, options = RunLimit(10, 100, clock), Options()

    def call(value: onnxruntime.RunOptions) -> None:
        found.append(value)
        began.set()
        assert end[len(found) - 1].wait(30)

    def run_twice() -> None:
        for _ in range(2):
            limit.run(options, call)

    thread = threading.Thread(target=run_twice)
    thread.start()
    assert began.wait(30)
    limit.look()
    limit.look()
    end[1].set()
    thread.join()
    assert len(found) == 2
    assert not found[1].terminate


def test_options_keep_what_they_configure_when_they_are_renewed() -> None:
    options = Options({"gpu_graph_id": "7"})
    before = options.value
    options.renew()
    assert options.value is not before
    assert options.value.get_run_config_entry("gpu_graph_id") == "7"


def test_loading_has_a_time_of_its_own() -> None:
    bench = Bench()
    settings = onnxruntime.SessionOptions()

    def load(*pauses: float) -> str:
        bench.watch(*pauses)
        if bench.now > 100:
            raise RuntimeError("Session initialization canceled due to user request.")
        return "loaded"

    assert bench.limit.load(settings, lambda: load(50, 40)) == "loaded"
    with pytest.raises(BundleError, match="more than the 100 seconds of --load-timeout") as caught:
        bench.limit.load(settings, lambda: load(101))
    assert caught.value.reason == LOAD_TIMEOUT
    assert bench.limit.run(bench.options, bench.lasting(9)) == "done"


def test_one_thread_looks_at_all_limits_until_it_is_closed() -> None:
    is_looked_at = threading.Event()

    def clock() -> float:
        is_looked_at.set()
        return 0.0

    watchdog = Watchdog(0.1, 1, clock)
    before = threading.active_count()
    limits = [watchdog.limit() for _ in range(5)]
    assert threading.active_count() == before + 1
    assert is_looked_at.wait(30)
    watchdog.close()
    assert threading.active_count() == before
    assert len(limits) == 5
