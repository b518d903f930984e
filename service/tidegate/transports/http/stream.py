"""``WebSocket /v1/sessions/{session}/stream``: the steps of one session, each frame a ``:step`` body.

Each frame is submitted as it comes, so pipelined frames share ticks with everybody else, and answers are written in the
frames' order as soon as they are there: no task wakes for either. What is read and not yet answered is bounded: then
reading stops, and TCP holds the client back. A frame's error is its answer, and the stream goes on.

The stream ends when the client leaves, which cancels what is in flight, or when the server drains: what is in flight is
answered, then a problem document with reason DRAINING, then close code 1001.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, cast

from starlette.types import Message, Receive, Scope, Send

from tidegate.core import StepResult
from tidegate.errors import TidegateError, UnavailableError
from tidegate.faults import conceal
from tidegate.limits import LARGE_JSON_BYTES, MAX_IN_FLIGHT
from tidegate.observe.requests import CANCELLED, OK, Begun, Headers, Requests, outcome_of
from tidegate.slices import in_slices
from tidegate.transports.http import convert
from tidegate.transports.http.errors import problem
from tidegate.transports.http.exchange import Json, dump, max_bytes, parse, parse_in_slices, timeout, too_large
from tidegate.transports.http.large_json import write

if TYPE_CHECKING:
    from tidegate.service import Service

GOING_AWAY = 1001
CLOSE_CODES = 4000  # plus the HTTP status of the error that kept a stream from starting

FRAMES = "tidegate.frames"
"""The ASGI extension by which a stream writes at once, and is handed frames without a task's awakening."""

Answer = asyncio.Future[StepResult] | TidegateError
"""An answer that is under way, or one that is there: a frame's own error."""


def draining() -> UnavailableError:
    return UnavailableError("the server is draining: go on elsewhere", reason="DRAINING", retry_after=1)


class Streams:
    """The streams that are open, as an ASGI application that serves them; ``drain`` ends them all."""

    def __init__(self, service: Service, requests: Requests) -> None:
        self._service = service
        self._requests = requests
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
            await _refuse(conceal(error), send)
            return
        session, headers = scope["path_params"]["session"], scope["headers"]
        stream = SessionStream(self._service, session, seconds, receive, send, self._requests, headers)
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._open[task] = stream
        try:
            await stream.run(scope["extensions"][FRAMES])
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


class Frames(Protocol):
    """What a stream needs of its connection beyond ASGI; ``frames.py`` has it."""

    def attach(self, stream: SessionStream) -> None:
        """Hand the stream what it can take as soon as it is read; the rest comes by ``receive``."""

    def can_write(self) -> bool:
        """Whether the client keeps up; when it does again, the stream is told by ``flush``."""

    def write(self, text: bytes) -> None:
        """Send a frame of text."""


class SessionStream:
    """One client's stream of one session."""

    def __init__(
        self,
        service: Service,
        session: str,
        seconds: float,
        receive: Receive,
        send: Send,
        requests: Requests,
        headers: Headers,
    ) -> None:
        self._service = service
        self._session = session
        self._seconds = seconds
        self._max_bytes = max_bytes(service.settings)
        self._receive = receive
        self._send = send
        self._requests = requests
        self._headers = headers
        self._watched = requests.method("websocket", "Step")
        self._answers: deque[tuple[Answer, Begun]] = deque()
        self._writing: asyncio.Future[bytes] | None = None
        self._room = asyncio.Event()
        self._is_holding = False
        self._is_ending = False
        self._drained: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, frames: Frames) -> None:
        """Serve until the client leaves or, after ``end``, what is in flight is answered."""
        self._frames = frames
        reader = asyncio.create_task(self._read())
        frames.attach(self)
        try:
            await asyncio.wait((reader, self._drained), return_when=asyncio.FIRST_COMPLETED)
            if self._drained.done():
                with suppress(OSError):  # the client left: nobody is to be told
                    await _refuse(draining(), self._send)
        finally:
            reader.cancel()
            self._abandon()

    def end(self) -> None:
        """Take no more; the stream closes after the answers in flight."""
        self._is_ending = True
        self.flush()

    async def _read(self) -> None:
        """Take what comes by ``receive``; return when the client leaves."""
        while (message := await self._receive())["type"] != "websocket.disconnect":
            self._is_holding = True
            while len(self._answers) >= MAX_IN_FLIGHT:
                self._room.clear()
                await self._room.wait()
            if not self._is_ending:
                data = message.get("bytes") or message.get("text") or ""
                if len(data) <= LARGE_JSON_BYTES:
                    self.take(data)
                else:
                    await self._take_large(data.encode() if isinstance(data, str) else data)
            self._is_holding = False

    def can_take(self, size: int) -> bool:
        """Whether the next frame, of so many bytes, may be handed over: nothing waits before it, and there is room."""
        is_free = not self._is_holding and not self._is_ending and len(self._answers) < MAX_IN_FLIGHT
        return is_free and size <= LARGE_JSON_BYTES

    def take(self, data: str | bytes) -> None:
        """Submit a frame, a small one; its answer is written in turn."""
        begun = self._requests.begin(self._headers, self._session)
        try:
            self._check_size(data)
            answer: Answer = self._submit(parse(data))
        except Exception as error:  # noqa: BLE001 - a frame's error is its answer
            answer = conceal(error)
        self._expect(answer, begun)

    async def _take_large(self, data: bytes) -> None:
        begun = self._requests.begin(self._headers, self._session)
        try:
            self._check_size(data)
            document = await parse_in_slices(data)
            if self._is_ending:
                return
            answer: Answer = self._submit(document)
        except Exception as error:  # noqa: BLE001 - a frame's error is its answer
            answer = conceal(error)
        self._expect(answer, begun)

    def _check_size(self, data: str | bytes) -> None:
        if len(data) > self._max_bytes:
            raise too_large(self._max_bytes)

    def _expect(self, answer: Answer, begun: Begun) -> None:
        self._answers.append((answer, begun))
        if isinstance(answer, TidegateError):
            self.flush()
        else:
            answer.add_done_callback(self.flush)

    def _submit(self, document: dict[str, Json]) -> asyncio.Future[StepResult]:
        chunk, ask, position = convert.parse_step(document)
        deadline = self._service.clock.monotonic() + self._seconds
        return self._service.step(self._session, chunk, ask, position, deadline)

    def flush(self, _: object = None) -> None:
        """Write what is ready, in the frames' order, as far as the client keeps up."""
        answers, frames = self._answers, self._frames
        while answers and self._writing is None and _is_ready(answers[0][0]) and frames.can_write():
            if _is_large(answers[0][0]):
                self._write_large(answers[0][0])
                break
            answer, begun = answers.popleft()
            text, outcome = _render(answer)
            self._watched.end(begun, outcome, self._session)
            frames.write(text)
        if self._is_holding:
            self._room.set()
        if self._is_ending and not answers and not self._drained.done():
            self._drained.set_result(None)

    def _write_large(self, answer: Answer) -> None:
        """Write a large answer, which stands first; those behind it wait."""
        assert isinstance(answer, asyncio.Future)
        self._writing = asyncio.ensure_future(in_slices(write(convert.step_json(answer.result()))))
        self._writing.add_done_callback(self._wrote_large)

    def _wrote_large(self, writing: asyncio.Future[bytes]) -> None:
        if writing.cancelled():
            return
        self._writing = None
        _, begun = self._answers.popleft()
        self._watched.end(begun, OK, self._session)
        self._frames.write(writing.result())
        self.flush()

    def _abandon(self) -> None:
        """Cancel what nobody waits for any more."""
        if self._writing is not None:
            self._writing.cancel()
        while self._answers:
            answer, begun = self._answers.popleft()
            self._watched.end(begun, CANCELLED, self._session)
            if isinstance(answer, asyncio.Future) and not answer.cancel() and not answer.cancelled():
                answer.exception()  # looked at, so that asyncio does not complain that nobody did


def _is_large(answer: Answer) -> bool:
    """Whether an answer that is ready is a large one."""
    if isinstance(answer, TidegateError) or answer.cancelled() or answer.exception() is not None:
        return False
    return answer.result().prediction.is_large


def _is_ready(answer: Answer) -> bool:
    return isinstance(answer, TidegateError) or answer.done()


def _render(answer: Answer) -> tuple[bytes, str]:
    """Return the answer's text, and how the frame ended."""
    try:
        if isinstance(answer, TidegateError):
            raise answer
        if answer.cancelled():  # not by its stream: the server goes down
            raise draining()
        return dump(convert.step_json(answer.result())), OK
    except Exception as error:  # noqa: BLE001 - a frame's error is its answer
        told = conceal(error)
        return problem(told).body, outcome_of(told)


def _frame(data: bytes) -> Message:
    return {"type": "websocket.send", "text": data.decode()}
