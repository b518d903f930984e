"""Requests one by one: for the access log, for traces, and for the ids that log lines carry.

Made only where one of these is asked for: then a request costs an object and some microseconds more than counting it.
While a request is in hand, `logs.REQUEST` holds it for whoever logs or passes on.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from itertools import count
from typing import Any, NamedTuple, Protocol

from tidegate.clock import Clock
from tidegate.engine.course import COURSES, Course
from tidegate.observability.logs import REQUEST, TraceSpan
from tidegate.observability.requests import OK, Headers, MethodMetrics, RequestMetrics

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
        courses: What its work went through in the engine; noted only where it is traced.
    """

    __slots__ = ("began", "courses", "id", "session", "span")

    def __init__(self, began: float, id_: str, session: str, span: TraceSpan | None) -> None:
        self.began = began
        self.id = id_
        self.session = session
        self.span = span
        self.courses: list[Course] = []


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
        COURSES.set(None if span is None else request.courses)
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
