"""How a worker asks its fellows: by gRPC over their Unix sockets, once, and what happens where nobody answers.

Knows connections, and who serves a session. What is asked, and how it is done here, the routing says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any, TypeVar

from grpc import aio

from tidegate.api import Events, GenerationDone
from tidegate.client._async.connection import AsyncConnection
from tidegate.client.channel import ChannelPlan
from tidegate.client.retry import STREAM_BROKEN, Retry
from tidegate.client.tls import CONNECTION_CLOSED
from tidegate.clock import Clock
from tidegate.cluster.seat import Seat
from tidegate.config import Settings
from tidegate.errors import DeadlineExceededError, NotFoundError, UnavailableError
from tidegate.observability.logs import REQUEST
from tidegate.sessions.ids import DURABLE, EPHEMERAL
from tidegate.v1 import sessions_pb2

Answer = TypeVar("Answer")

AWAY = "WORKER_AWAY"
"""The reason of an error that says that nobody answered: what was asked may have been done or not."""


class Fellow:
    """Another worker of the same server. It asks nobody else: what it is asked, its own core answers.

    Args:
        address: Its Unix socket.
        timeout: Seconds for a call that has no deadline.
        clock: That of deadlines.
    """

    def __init__(self, address: str, timeout: float, clock: Clock) -> None:
        self._clock = clock
        self._connection = AsyncConnection(ChannelPlan(address), timeout, Retry(attempts=1), asyncio.sleep)
        self.models = self._connection.models
        self.sessions = self._connection.sessions
        self._is_closed = False

    async def ask(self, method: Any, request: Any, deadline: float | None = None) -> Any:
        """Call once; ``deadline`` is by the clock, None is the server's time for a request."""
        self._check_open()
        try:
            return await self._connection.call(_traced(method), request, timeout=self._seconds(deadline))
        except UnavailableError as error:
            raise _away(error) from error
        except asyncio.CancelledError:
            _raise_if_closed()
            raise

    async def generate(
        self, request: sessions_pb2.SessionGenerateRequest, deadline: float | None, *, is_streamed: bool
    ) -> Events:
        """The events of a generation; its tokens come in any case, and are told where they are wanted."""
        self._check_open()
        try:
            call = self._connection.events(_traced(self.sessions.Generate), request, timeout=self._seconds(deadline))
            async with aclosing(call) as events:
                async for event in events:
                    if is_streamed or isinstance(event, GenerationDone):
                        yield event
        except UnavailableError as error:
            raise _away(error) from error
        except asyncio.CancelledError:
            _raise_if_closed()
            raise

    async def close(self) -> None:
        self._is_closed = True
        await self._connection.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise _stopping()

    def _seconds(self, deadline: float | None) -> float | None:
        """What is left until a deadline."""
        if deadline is None:
            return None
        seconds = deadline - self._clock.monotonic()
        if seconds <= 0:
            raise DeadlineExceededError("the request's time ran out before it was passed on")
        return seconds


class Fellows:
    """All other workers, and the rule by which a session is served by one of them or here.

    A durable session lies in the store, which all workers share: one whose id the server made is served where it is
    asked for. An id that a client chose does not say what it is, so it has an owner like an ephemeral session; where
    that is away, this worker looks into the store in its place.
    """

    def __init__(self, seat: Seat, settings: Settings, clock: Clock) -> None:
        self._seat = seat
        self._has_store = settings.store != "none"
        self._fellows = {number: Fellow(seat.target(number), settings.request_timeout, clock) for number in seat.others}

    def __iter__(self) -> Iterator[Fellow]:
        return iter(self._fellows.values())

    def owner(self, session: str) -> int:
        """The number of the worker that serves the session."""
        return self._seat.number if session.startswith(DURABLE) else self._seat.owner(session)

    def serving(self, session: str) -> Fellow | None:
        """Who serves the session, None where this worker does."""
        return self._fellows.get(self.owner(session))

    async def routed(
        self,
        session: str,
        method: str,
        request: Any,
        decode: Callable[[Any], Answer],
        here: Callable[[], Awaitable[Answer]],
        *,
        home: int | None = None,
        is_repeatable: bool = True,
    ) -> Answer:
        """Call a method of `Sessions` where the session is served, or at the worker ``home``."""
        fellow = self._fellows.get(self.owner(session) if home is None else home)
        if fellow is None:
            return await here()
        try:
            return decode(await fellow.ask(getattr(fellow.sessions, method), request))
        except UnavailableError as error:
            return await self.stand_in(error, session, here, is_repeatable=is_repeatable)

    async def stand_in(
        self, error: UnavailableError, session: str, here: Callable[[], Awaitable[Answer]], *, is_repeatable: bool
    ) -> Answer:
        """Do here what a fellow was asked that is away, or raise ``error`` where that may be wrong.

        ``is_repeatable`` says that it may be done twice without harm: the fellow may have done it before it went.
        """
        may_be_stored = self._has_store and not session.startswith(EPHEMERAL)
        if error.reason != AWAY or not may_be_stored or not is_repeatable:
            raise error
        try:
            return await here()
        except NotFoundError as missing:
            # That it is not in the store does not say that the fellow had it not.
            raise (error if missing.reason == "UNKNOWN_SESSION" else missing) from None

    async def close(self) -> None:
        await asyncio.gather(*(fellow.close() for fellow in self))


def _traced(method: Any) -> Any:
    """The method, telling the fellow of the trace that the request is in, if it is in one."""
    seen = REQUEST.get()
    if seen is None or seen.span is None:
        return method
    headers = seen.span.headers()
    return lambda request, *, timeout, metadata: method(
        request, timeout=timeout, metadata=aio.Metadata(*metadata, *headers)
    )


def _raise_if_closed() -> None:
    """A call whose channel is closed is cancelled by gRPC: nobody who waits for it was told to go."""
    task = asyncio.current_task()
    if task is not None and not task.cancelling():
        raise _stopping()


def _stopping() -> UnavailableError:
    return UnavailableError("the server is stopping", reason="DRAINING", retry_after=1.0)


def _away(error: UnavailableError) -> UnavailableError:
    """What a caller is told: the fellow's own words, or, where gRPC found nobody, that there is nobody."""
    if error.reason not in {UnavailableError.default_reason, STREAM_BROKEN, CONNECTION_CLOSED}:
        return error
    message = "the worker that holds the session is away: it is being started again"
    return UnavailableError(message, reason=AWAY, retry_after=1.0)
