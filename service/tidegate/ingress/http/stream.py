"""``WebSocket /v1/sessions/{session}/stream``: the steps of one session, each frame a ``:step`` body.

A stream has two tasks. The reader submits each frame as it comes, so pipelined frames share ticks with everybody else;
the writer waits for the answers in the frames' order. What is read and not yet answered is bounded: then the reader
stops, and TCP holds the client back. A frame's error is its answer, and the stream goes on.

The stream ends when the client leaves, which cancels what is in flight, or when the server drains: what is in flight is
answered, then a problem document with reason DRAINING, then close code 1001.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from tidegate.core import StepResult
from tidegate.errors import TidegateError, UnavailableError
from tidegate.ingress.http import convert
from tidegate.ingress.http.errors import problem, unexpected
from tidegate.ingress.http.exchange import dump, max_bytes, parse, timeout, too_large

if TYPE_CHECKING:
    from tidegate.service import Service

MAX_IN_FLIGHT = 32
GOING_AWAY = 1001
CLOSE_CODES = 4000  # plus the HTTP status of the error that kept a stream from starting

Answer = asyncio.Future[StepResult] | TidegateError


def draining() -> UnavailableError:
    return UnavailableError("the server is draining: go on elsewhere", reason="DRAINING", retry_after=1)


class Streams:
    """The streams that are open, as an ASGI application that serves them; ``drain`` ends them all."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._open: dict[asyncio.Task[None], SessionStream] = {}
        self._is_draining = False

    def __len__(self) -> int:
        return len(self._open)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        await send({"type": "websocket.accept"})
        try:
            seconds = await self._admit(scope)
        except Exception as error:  # noqa: BLE001 - the client is told, whatever it is
            await _refuse(unexpected(error), send)
            return
        stream = SessionStream(self._service, scope["path_params"]["session"], seconds, receive, send)
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._open[task] = stream
        try:
            await stream.run()
        finally:
            del self._open[task]

    async def _admit(self, scope: Scope) -> float:
        """Make sure that there is such a session, and return the seconds that each of its frames may take."""
        seconds = timeout(scope, self._service.settings)
        await self._service.get_session(scope["path_params"]["session"])
        if self._is_draining or self._service.is_draining:
            raise draining()
        return seconds

    async def drain(self) -> None:
        """End every stream after its frames in flight, and return when all are closed."""
        self._is_draining = True
        for stream in self._open.values():
            stream.end()
        if self._open:
            await asyncio.wait(list(self._open))


async def _refuse(error: TidegateError, send: Send) -> None:
    answer = problem(error)
    await send(_frame(answer.body))
    code = GOING_AWAY if error.reason == "DRAINING" else CLOSE_CODES + answer.status
    await send({"type": "websocket.close", "code": code, "reason": error.reason})


class SessionStream:
    """One client's stream of one session."""

    def __init__(self, service: Service, session: str, seconds: float, receive: Receive, send: Send) -> None:
        self._service = service
        self._session = session
        self._seconds = seconds
        self._max_bytes = max_bytes(service.settings)
        self._receive = receive
        self._send = send
        self._places = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._answers: asyncio.Queue[Answer | None] = asyncio.Queue()  # bounded by _places; None ends the stream
        self._reader: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve until the client leaves or ``end``."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._reader = tasks.create_task(self._read())
                tasks.create_task(self._write())
        except* (ClientDisconnect, OSError):
            pass  # the client left: nobody is to be told
        finally:
            self._abandon()

    def end(self) -> None:
        """Read no more; the writer closes after the answers in flight."""
        if self._reader is not None:
            self._reader.cancel()
        self._answers.put_nowait(None)

    async def _read(self) -> None:
        while True:
            await self._places.acquire()
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                raise ClientDisconnect
            self._answers.put_nowait(self._submit(message))

    def _submit(self, message: Message) -> Answer:
        try:
            chunk, ask, position = convert.parse_step(parse(self._data(message)))
            until = asyncio.get_running_loop().time() + self._seconds
            return self._service.step(self._session, chunk, ask, position, until)
        except Exception as error:  # noqa: BLE001 - a frame's error is its answer
            return unexpected(error)

    def _data(self, message: Message) -> bytes | str:
        data: bytes | str = message.get("bytes") or message.get("text") or ""
        if len(data) > self._max_bytes:
            raise too_large(self._max_bytes)
        return data

    async def _write(self) -> None:
        while (answer := await self._answers.get()) is not None:
            await self._send(_frame(await _render(answer)))
            self._places.release()
        await _refuse(draining(), self._send)

    def _abandon(self) -> None:
        """Cancel what nobody waits for any more."""
        while not self._answers.empty():
            answer = self._answers.get_nowait()
            if isinstance(answer, asyncio.Future) and not answer.cancel() and not answer.cancelled():
                answer.exception()  # looked at, so that asyncio does not complain that nobody did


async def _render(answer: Answer) -> bytes:
    try:
        if isinstance(answer, TidegateError):
            raise answer
        return dump(convert.step_json(await answer))
    except Exception as error:  # noqa: BLE001 - a frame's error is its answer
        return problem(unexpected(error)).body


def _frame(data: bytes) -> Message:
    return {"type": "websocket.send", "text": data.decode()}
