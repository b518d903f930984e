"""What a transport counts of each request: how many, how they ended, how long they took.

A request costs one reading of the clock where it begins and one where it ends. Names are the transports' own and few:
nothing that a client sends becomes a label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from tidegate.clock import Clock
from tidegate.errors import TidegateError, TooLargeError
from tidegate.histogram import Histogram, HistogramSnapshot
from tidegate.wire.errors import code_name

OK = "ok"
CANCELLED = "cancelled"
"""The client went away before its answer."""

INTERNAL = "internal"
"""A fault of ours."""

TOO_LARGE = "too_large"
"""The client's fault, though its gRPC code, RESOURCE_EXHAUSTED, is that of an overload."""

Headers = Iterable[tuple[Any, Any]] | Callable[[], Iterable[tuple[Any, Any]] | None]
"""Pairs of text or bytes: HTTP's header fields, gRPC's metadata."""

RequestStart = Any
"""What `RequestMetrics.begin` returned; `MethodMetrics.end` wants it back."""


class MethodSnapshot(NamedTuple):
    """One method of one interface: requests by outcome, and their durations."""

    interface: str
    method: str
    outcomes: dict[str, int]
    seconds: HistogramSnapshot


class MethodMetrics:
    """A method of an interface, and what became of its requests."""

    def __init__(self, interface: str, name: str, clock: Clock) -> None:
        self.interface = interface
        self.name = name
        self._now = clock.monotonic
        self._outcomes: dict[str, int] = {OK: 0}
        self._seconds = Histogram()

    def end(self, begun: RequestStart, outcome: str = OK, session: str = "") -> None:
        """A request is answered, or over; ``session`` is the one that it was about, if any."""
        # Not by `count`: a call costs as much as all that it does.
        outcomes = self._outcomes
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        self._seconds.add(self._now() - begun)

    def count(self, seconds: float, outcome: str) -> None:
        """Count a request that took ``seconds``."""
        self._outcomes[outcome] = self._outcomes.get(outcome, 0) + 1
        self._seconds.add(seconds)

    def snapshot(self) -> MethodSnapshot:
        return MethodSnapshot(self.interface, self.name, dict(self._outcomes), self._seconds.snapshot())


class RequestMetrics:
    """All methods that were asked for; ``failed_lanes`` counts lanes of columns that failed, by outcome.

    Args:
        clock: The engine's, for a trace tells the engine's times beside the request's.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._methods: dict[tuple[str, str], MethodMetrics] = {}
        self.failed_lanes: Counter[str] = Counter()

    def begin(self, headers: Headers = (), session: str = "") -> RequestStart:
        """A request comes in; ``headers`` are its own, or what returns them, ``session`` that it is about, if known."""
        return self.clock.monotonic()

    def method(self, interface: str, name: str) -> MethodMetrics:
        """Return the method's counters; look them up once where that can be."""
        key = interface, name
        found = self._methods.get(key)
        if found is None:
            found = self._methods[key] = self._make(interface, name)
        return found

    def lanes_failed(self, outcomes: Iterable[str]) -> None:
        """Count lanes of a message of columns, which itself fails only with all of them."""
        self.failed_lanes.update(outcomes)

    def snapshots(self) -> Iterator[MethodSnapshot]:
        """What was counted of each method, by name."""
        return (self._methods[key].snapshot() for key in sorted(self._methods))

    def _make(self, interface: str, name: str) -> MethodMetrics:
        return MethodMetrics(interface, name, self.clock)


def outcome_of(error: BaseException) -> str:
    """Return the label of an error: its gRPC code in lower case, or `TOO_LARGE`; of one not ours, `INTERNAL`."""
    if isinstance(error, TooLargeError):
        return TOO_LARGE
    return code_name(error) if isinstance(error, TidegateError) else INTERNAL
