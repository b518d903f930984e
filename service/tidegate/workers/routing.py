"""The core's face for a worker: a session that lives on a fellow is served by passing the request on.

Whatever the interface, a call, a stream or a WebSocket comes to the core's face, so passing on is done here, once. The
owner is asked by gRPC over its Unix socket and does the work; the outcome, an error too, is the same as if it had been
asked itself. Calls that no session's id decides are served where they arrive.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from tidegate.client.aio_connection import AsyncConnection
from tidegate.client.asking import session_generate_request, step_request
from tidegate.client.retry import Retry
from tidegate.core import (
    Ask,
    GeneratedToken,
    GenerationDone,
    Input,
    ReloadReport,
    Sampling,
    SessionInfo,
    SessionPage,
    SessionRequest,
    StepResult,
)
from tidegate.errors import DeadlineExceededError, InvalidInputError, UnavailableError
from tidegate.service import PAGE_DEFAULT
from tidegate.v1 import models_pb2, sessions_pb2
from tidegate.wire.predictions import decode_step
from tidegate.wire.sessions import decode_session, decode_session_page, encode_session_request
from tidegate.workers.seat import Seat

if TYPE_CHECKING:
    from tidegate.service import Service

Events = AsyncGenerator[GeneratedToken | GenerationDone]
P = ParamSpec("P")
Message = TypeVar("Message")


class RoutedService:
    """`tidegate.service.Service` over the sessions of all workers; what is not defined here is the local core's."""

    def __init__(self, local: Service, seat: Seat) -> None:
        self.settings = local.settings
        self._local = local
        self._seat = seat
        timeout, once = self.settings.request_timeout, Retry(attempts=1)
        self._fellows = {
            number: AsyncConnection(seat.address(number), timeout, once, asyncio.sleep) for number in seat.others
        }
        # The last step under way of each fellow's session. Calls may overtake each other, steps of a session may not.
        self._last: dict[str, asyncio.Future[StepResult]] = {}

    def as_service(self) -> Service:
        return cast("Service", self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._local, name)

    async def stop(self) -> None:
        """Stop at once; what was passed on ends with the connections."""
        await self.disconnect()
        await self._local.stop()

    async def disconnect(self) -> None:
        """Close the connections to the fellows."""
        await asyncio.gather(*(fellow.close() for fellow in self._fellows.values()))

    def _fellow(self, session: str) -> AsyncConnection | None:
        """Who holds the session, None where this worker does."""
        return self._fellows.get(self._seat.owner(session))

    def step(
        self,
        session: str,
        source: Input,
        ask: Ask = Ask(),  # noqa: B008
        position: int | None = None,
        deadline: float | None = None,
    ) -> asyncio.Future[StepResult]:
        """Let a chunk wait behind the session's other work, and return at once."""
        fellow = self._fellow(session)
        if fellow is None:
            return self._local.step(session, source, ask, position, deadline)
        request = _encoded(step_request, session, position, source, ask)
        step = asyncio.create_task(self._step(fellow, request, self._last.get(session), deadline))
        self._last[session] = step
        step.add_done_callback(partial(self._forget, session))
        return step

    async def _step(
        self,
        fellow: AsyncConnection,
        request: sessions_pb2.StepRequest,
        before: asyncio.Future[StepResult] | None,
        deadline: float | None,
    ) -> StepResult:
        if before is not None:
            await asyncio.wait([before])
        reply = await _ask(fellow, fellow.sessions.Step, request, _seconds(deadline))
        return decode_step(reply, every_step=request.every_step)

    def _forget(self, session: str, step: asyncio.Future[StepResult]) -> None:
        if self._last.get(session) is step:
            del self._last[session]

    def generate_on_session(
        self,
        session: str,
        prompt: Input | None,
        sampling: Sampling,
        position: int | None = None,
        deadline: float | None = None,
        *,
        is_streamed: bool = True,
    ) -> Events:
        """Sample on a session; closing the generator ends the generation, on a fellow too."""
        fellow = self._fellow(session)
        if fellow is None:
            return self._local.generate_on_session(
                session, prompt, sampling, position, deadline, is_streamed=is_streamed
            )
        request = _encoded(session_generate_request, session, position, prompt, sampling)
        return _events(fellow, request, _seconds(deadline), is_streamed=is_streamed)

    async def open_session(self, request: SessionRequest) -> SessionInfo:
        """Open a session here, or, where the client has chosen its id, with the worker that the id belongs to."""
        fellow = None if request.id is None else self._fellow(request.id)
        # A lifetime of 0 is refused, and a message cannot carry it.
        if fellow is None or 0 in {request.ttl_seconds, request.idle_seconds}:
            return await self._local.open_session(request)
        message = _encoded(encode_session_request, request)
        return decode_session(await _ask(fellow, fellow.sessions.Open, message))

    async def get_session(self, id: str) -> SessionInfo:  # noqa: A002
        fellow = self._fellow(id)
        if fellow is None:
            return await self._local.get_session(id)
        return decode_session(await _ask(fellow, fellow.sessions.Get, sessions_pb2.GetSessionRequest(session=id)))

    async def close_session(self, id: str) -> None:  # noqa: A002
        fellow = self._fellow(id)
        if fellow is None:
            await self._local.close_session(id)
        else:
            await _ask(fellow, fellow.sessions.Close, sessions_pb2.CloseRequest(session=id))

    async def list_sessions(self, limit: int = 0, page_token: str = "") -> SessionPage:
        """Return a page of the live sessions of all workers by rising id; a token is the last id before it."""
        pages = [await self._local.list_sessions(limit, page_token)]
        request = sessions_pb2.ListSessionsRequest(limit=limit, page_token=page_token)
        asked = (_ask(fellow, fellow.sessions.List, request) for fellow in self._fellows.values())
        pages += map(decode_session_page, await asyncio.gather(*asked))
        found = sorted((session for page in pages for session in page.sessions), key=lambda session: session.id)
        shown = found[: limit or PAGE_DEFAULT]
        has_more = len(found) > len(shown) or any(page.next_page_token for page in pages)
        return SessionPage(shown, shown[-1].id if has_more else "")

    async def reload(self) -> ReloadReport:
        """Read the bundle directory again, on every worker; all find the same there, so this one's report tells."""
        report = await self._local.reload()
        asked = (_ask(fellow, fellow.models.Reload, models_pb2.ReloadRequest()) for fellow in self._fellows.values())
        await asyncio.gather(*asked)
        return report


def _encoded(encode: Callable[P, Message], *args: P.args, **kwargs: P.kwargs) -> Message:
    """A request as a message. JSON has numbers that no field holds, and no model takes."""
    try:
        return encode(*args, **kwargs)
    except ValueError as error:
        raise InvalidInputError(f"a number is out of range: {error}") from None


async def _ask(fellow: AsyncConnection, method: Any, request: Any, timeout: float | None = None) -> Any:  # noqa: ASYNC109
    try:
        return await fellow.call(method, request, timeout=timeout)
    except UnavailableError as error:
        raise _away(error) from error


async def _events(
    fellow: AsyncConnection, request: sessions_pb2.SessionGenerateRequest, seconds: float | None, *, is_streamed: bool
) -> Events:
    """The events of a fellow's generation; its tokens come in any case, and are told where they are wanted."""
    try:
        events = cast("Events", fellow.events(fellow.sessions.Generate, request, timeout=seconds))
        async with aclosing(events):
            async for event in events:
                if is_streamed or isinstance(event, GenerationDone):
                    yield event
    except UnavailableError as error:
        raise _away(error) from error


def _away(error: UnavailableError) -> UnavailableError:
    """What a caller is told: the fellow's own words, or, where gRPC found nobody, that there is nobody."""
    if error.reason != UnavailableError.default_reason:
        return error
    message = "the worker that holds the session is away: it is being started again"
    return UnavailableError(message, reason="WORKER_AWAY", retry_after=1.0)


def _seconds(deadline: float | None) -> float | None:
    """What is left until a deadline in the event loop's time."""
    if deadline is None:
        return None
    seconds = deadline - asyncio.get_running_loop().time()
    if seconds <= 0:
        raise DeadlineExceededError("the request's time ran out before it was passed on")
    return seconds
