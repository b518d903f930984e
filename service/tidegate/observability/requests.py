"""What is observed of requests: how many, how they ended and how long they took; and, where the access log, traces or
ids in log lines ask for it, each by itself.

Counting costs one reading of the clock where a request begins and one where it ends. Interfaces and methods are the
transports' own names and few: nothing that a client sends becomes a label. While a request that is recorded by itself
is in hand, `logs.REQUEST` holds it for whoever logs or passes on.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tidegate.clock import Clock
from tidegate.config import Settings
from tidegate.engine.request import TIMINGS, RequestTimings
from tidegate.errors import ConfigurationError, TidegateError, TooLargeError
from tidegate.histogram import Histogram, HistogramSnapshot
from tidegate.observability.logs import REQUEST, TraceSpan, write_lines

if TYPE_CHECKING:
    from tidegate.observability.tracing import OtelTracing

log = logging.getLogger(__name__)

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
    return error.code.name.lower() if isinstance(error, TidegateError) else INTERNAL


REQUEST_ID = "x-request-id"
_ID = re.compile(r"[A-Za-z0-9._~:/+=-]{1,128}")


class FinishedRequest(NamedTuple):
    """What is told of a request when it is over; times are monotonic seconds."""

    interface: str
    method: str
    outcome: str
    session: str
    began: float
    ended: float


class Tracing(Protocol):
    """Where spans go."""

    def begin(self, headers: dict[str, str]) -> TraceSpan | None:
        """Return the span of a request, None where its trace is not sampled."""

    def end(self, request: RequestContext, finished: FinishedRequest) -> None: ...


class Access(Protocol):
    """Where a line a request goes."""

    def write(self, request: RequestContext, finished: FinishedRequest) -> None: ...


class RequestContext:
    """A request that is under way.

    Attributes:
        id: The client's ``x-request-id``, or one made here.
        began: Monotonic seconds.
        session: That it is about, where that was known at its beginning.
        timings: What its work went through in the engine; noted only where it is traced.
    """

    __slots__ = ("began", "id", "session", "span", "timings")

    def __init__(self, began: float, id_: str, session: str, span: TraceSpan | None) -> None:
        self.began = began
        self.id = id_
        self.session = session
        self.span = span
        self.timings: list[RequestTimings] = []


class RequestRecorder(RequestMetrics):
    """Counts, and tells of each request.

    Args:
        clock: As of `RequestMetrics`.
        access: Where a line a request goes; None: nowhere.
        tracing: Where spans go; None: nowhere.
    """

    def __init__(self, clock: Clock, access: Access | None, tracing: Tracing | None) -> None:
        super().__init__(clock)
        self.access = access
        self.tracing = tracing
        self._prefix = secrets.token_hex(4)
        self._numbers = count(1)

    def begin(self, headers: Headers = (), session: str = "") -> RequestContext:
        fields = _texts(headers() or () if callable(headers) else headers)
        span = None if self.tracing is None else self.tracing.begin(fields)
        given = fields.get(REQUEST_ID, "")
        id_ = given if _ID.fullmatch(given) else f"{self._prefix}-{next(self._numbers)}"
        request = RequestContext(self.clock.monotonic(), id_, session, span)
        REQUEST.set(request)
        TIMINGS.set(None if span is None else request.timings)
        return request

    def _make(self, interface: str, name: str) -> MethodMetrics:
        return RecordedMethod(interface, name, self)


class RecordedMethod(MethodMetrics):
    """Counts its requests, and tells of each."""

    def __init__(self, interface: str, name: str, requests: RequestRecorder) -> None:
        super().__init__(interface, name, requests.clock)
        self._requests = requests

    def end(self, begun: RequestContext, outcome: str = OK, session: str = "") -> None:
        finished = FinishedRequest(self.interface, self.name, outcome, session, begun.began, self._now())
        self.count(finished.ended - finished.began, outcome)
        if self._requests.access is not None:
            self._requests.access.write(begun, finished)
        if self._requests.tracing is not None and begun.span is not None:
            self._requests.tracing.end(begun, finished)


def _texts(headers: Iterable[tuple[Any, Any]]) -> dict[str, str]:
    """Header fields by their names in lower case; of equal names the first counts."""
    fields: dict[str, str] = {}
    for name, value in headers:
        fields.setdefault(_text(name).lower(), _text(value))
    return fields


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""Variables of OpenTelemetry's own; either asks for traces as ``--otlp`` does."""


def make_requests(settings: Settings, tracing: OtelTracing | None, clock: Clock) -> RequestMetrics:
    """Return where requests are counted, in the running event loop."""
    from tidegate.observability.access import AccessLog

    access = AccessLog(settings.log_format, clock, write_lines) if settings.access_log else None
    if access is None and tracing is None and settings.log_level != "debug":
        return RequestMetrics(clock)
    return RequestRecorder(clock, access, tracing)


def make_tracing(settings: Settings, clock: Clock) -> OtelTracing | None:
    """Return where traces go, None where nobody asked for them.

    Raises:
        ConfigurationError: ``--otlp`` asks for them, and the extra is not installed.
    """
    if settings.otlp is None and not _is_asked_by_environment():
        return None
    try:
        from tidegate.observability.tracing import open_tracing
    except ImportError:
        if settings.otlp is not None:
            message = "--otlp needs OpenTelemetry: pip install 'tidegate[otel]'"
            raise ConfigurationError(message, reason="NO_OPENTELEMETRY") from None
        # Such variables may be set for a whole cluster.
        log.warning("no traces, though %s asks for them: pip install 'tidegate[otel]'", ENDPOINTS[0])
        return None
    return open_tracing(settings.otlp, settings.replica or "tidegate", clock)


def _is_asked_by_environment() -> bool:
    is_off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    is_none = os.environ.get("OTEL_TRACES_EXPORTER", "otlp") == "none"
    return not is_off and not is_none and any(os.environ.get(name) for name in ENDPOINTS)
