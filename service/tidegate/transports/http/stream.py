"""WebSockets: ``/v1/sessions/{session}/stream`` for the steps of one session, ``/v1/stream`` for those of many.

Frames are answered in their order, each in its own kind. A text frame is a ``:step`` body in JSON; on ``/v1/stream``
the first one opens the session that the others step. A binary frame is a `StreamRequest`, as on gRPC's stream, or, with
the subprotocol ``tidegate.f32``, bare numbers (``floats.py``). A frame's error is its answer, and the stream goes on.

The stream ends when the client leaves, which cancels what is in flight, or when the server drains: what is in flight is
answered, then a problem document with reason DRAINING, then close code 1001. Why one cannot start is told likewise.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Awaitable
from contextlib import suppress
from functools import partial
from typing import Any

from tidegate.api import Core
from tidegate.errors import InvalidInputError, NotFoundError, TidegateError, without_traceback
from tidegate.faults import conceal
from tidegate.limits import LARGE_JSON_BYTES, MAX_IN_FLIGHT
from tidegate.observability.requests import OK, RequestMetrics, RequestStart, outcome_of
from tidegate.reply import DirectReply
from tidegate.slices import in_slices
from tidegate.transports.asgi import Event, Receive, Scope, Send
from tidegate.transports.grpc.columns import refusal
from tidegate.transports.grpc.stream import StepMessages
from tidegate.transports.http import convert, schemas
from tidegate.transports.http.errors import PROBLEM, problem
from tidegate.transports.http.exchange import dump, max_bytes, parse, parse_in_slices, timeout, too_large
from tidegate.transports.http.floats import dump_floats, parse_floats, width_of
from tidegate.transports.http.large_json import write
from tidegate.transports.http.sessions import session_request
from tidegate.transports.reply_queue import (
    OpenStreams,
    Pending,
    ReadyReply,
    ReplyQueue,
    draining,
    result_of,
)
from tidegate.v1 import predictor_pb2
from tidegate.wire import parsing

JSON = "tidegate.json"
FLOATS = "tidegate.f32"

GOING_AWAY = 1001
CLOSE_CODES = 4000  # plus the HTTP status of the error that kept a stream from starting

_PATH = re.compile(r"/v1/(?:sessions/([^/:]+)/)?stream")
_JSON_BEGINS = (b"{", BOM_UTF8)  # with neither begins a StreamRequest


class Streams:
    """The streams that are open, as an ASGI application that serves them; ``drain`` ends them all."""

    def __init__(self, service: Core, requests: RequestMetrics) -> None:
        self._service = service
        self._requests = requests
        self.open = OpenStreams()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a WebSocket."""
        await receive()  # websocket.connect
        path = _PATH.fullmatch(scope["path"])
        if path is None:
            await _reject(scope, send)
            return
        stream = WebSocketStream(self._service, self._requests, scope, receive, send, path[1] or "")
        with self.open.holding(stream.queue):
            await stream.run()

    async def drain(self) -> None:
        """End every stream after its frames in flight, and return when all are closed."""
        self.open.drain()
        await self.open.wait_closed()


class WebSocketStream:
    """One client's stream.

    Args:
        service: The core.
        requests: Where frames are counted.
        scope: The connection's.
        receive: Its frames.
        send: Its replies.
        session: That its path names; empty where the first text frame opens one.
    """

    def __init__(
        self, service: Core, requests: RequestMetrics, scope: Scope, receive: Receive, send: Send, session: str
    ) -> None:
        self._service = service
        self._requests = requests
        self._scope = scope
        self._now = service.clock.monotonic
        self._send = send
        self._session = session
        self._max_bytes = max_bytes(service.settings)
        self._width: int | None = None
        self._failure: TidegateError | None = None
        self.queue = ReplyQueue(
            receive,
            self._write,
            self._submit,
            MAX_IN_FLIGHT,
            begin=self._begin,
            method=partial(requests.method, "websocket"),
            has_left=_is_end,
        )

    async def run(self) -> None:
        """Serve until the client leaves, the session cannot be had, or the server drains."""
        with suppress(OSError):  # the client left while it was told something
            failure = await self._start() or await self._serve()
            if failure is not None:
                await self._send(_problem_frame(failure))
                self._failure = failure
            if self._failure is not None:
                await self._send(_closing(self._failure))

    async def _serve(self) -> TidegateError | None:
        """Answer frames to the end; return what is to be told then."""
        try:
            await self.queue.run()
        except TidegateError as error:
            return without_traceback(error)
        finally:
            del self.queue  # which has methods of this stream: a cycle
        return None

    async def _start(self) -> TidegateError | None:
        """Accept the connection; return why there will be no stream, if so."""
        offered = [each for each in self._scope.get("subprotocols", ()) if each in {JSON, FLOATS}]
        self._subprotocol = offered[0] if offered else None
        failure: TidegateError | None = None
        try:
            self._seconds = timeout(self._scope, self._service.settings)
            self._messages = StepMessages(self._service, self._requests, self._session, seconds=self._seconds)
            if self._session:
                await self._find(self._session, is_json_possible=JSON in offered)
            if self._service.is_draining:
                failure = draining()
        except Exception as error:  # noqa: BLE001 - the client is told, whatever it is
            failure = conceal(error)
        await self._send({"type": "websocket.accept", "subprotocol": self._subprotocol})
        return failure

    async def _find(self, session: str, *, is_json_possible: bool) -> None:
        """Make sure that there is such a session, and that it can be spoken to as was asked for."""
        info = await self._service.get_session(session)
        if self._subprotocol == FLOATS:
            try:
                self._width = width_of(self._service.model(info.model, info.version))
            except TidegateError:
                if not is_json_possible:
                    raise
                self._subprotocol = JSON

    def _begin(self) -> RequestStart:
        return self._requests.begin(self._scope["headers"], self._session)

    def _write(self, reply: Event | predictor_pb2.StreamReply) -> Awaitable[None]:
        if isinstance(reply, predictor_pb2.StreamReply):
            return self._send({"type": "websocket.send", "bytes": reply.SerializeToString()})
        return self._send(reply)

    async def _submit(self, event: Event) -> Pending:
        frame: str | bytes | None = event.get("text")
        if frame is None:
            frame = event["bytes"]
            assert isinstance(frame, bytes)
            if self._subprotocol == FLOATS:
                return self._submit_floats(frame)
            if not frame.startswith(_JSON_BEGINS):
                return await self._submit_message(frame)
        try:
            self._check_size(frame)
            if len(frame) <= LARGE_JSON_BYTES:
                document = parse(frame)
            else:
                document = await parse_in_slices(frame.encode() if isinstance(frame, str) else frame)
            if not self._session:
                return await self._open(document)
            chunk, options, position = convert.parse_step(document)
            pending = PendingFrame(self._session, is_floats=False)
            self._service.submit_step(self._session, chunk, options, position, self._now() + self._seconds, pending)
        except Exception as error:  # noqa: BLE001 - a frame's error is its answer
            return self._refuse(error)
        return pending

    def _refuse(self, error: Exception) -> Pending:
        """Return the answer to a frame that failed. Without a session, it is the last one."""
        told = conceal(error)
        if not self._session:
            self._failure = told
            self.queue.stop()
        return ReadyReply("Step" if self._session else "Open", _problem_frame(told), outcome_of(told), self._session)

    async def _submit_message(self, frame: bytes) -> Pending:
        try:
            self._check_size(frame)
            request = parsing.parse(predictor_pb2.StreamRequest, frame)
        except TidegateError as error:
            return ReadyReply("unknown", refusal(error), outcome_of(error), self._session)
        return await self._messages.submit(request)

    async def _open(self, document: dict[str, Any]) -> Pending:
        request = session_request(document)
        if self._subprotocol == FLOATS:
            self._width = width_of(self._service.model(request.model, request.version))
        info = await self._service.open_session(request)
        self._session = self._messages.session = info.id
        return ReadyReply("Open", _text_frame(dump(schemas.Session.model_validate(info))), OK, info.id)

    def _submit_floats(self, frame: bytes) -> Pending:
        try:
            self._check_size(frame)
            if self._width is None:
                raise InvalidInputError("no session: the first frame must open one, a text frame")
            chunk, options = parse_floats(frame, self._width)
            pending = PendingFrame(self._session, is_floats=True)
            self._service.submit_step(self._session, chunk, options, None, self._now() + self._seconds, pending)
        except Exception as error:  # noqa: BLE001 - a frame's error is its answer
            return self._refuse(error)
        return pending

    def _check_size(self, frame: str | bytes) -> None:
        if len(frame) > self._max_bytes:
            raise too_large(self._max_bytes)


class PendingFrame(DirectReply):
    """Steps of a text frame, or of one of numbers: takes their result, and makes the reply."""

    __slots__ = ("_is_floats", "outcome", "session")

    method = "Step"

    def __init__(self, session: str, *, is_floats: bool) -> None:
        super().__init__()
        self.session = session
        self.outcome = OK
        self._is_floats = is_floats

    @property
    def awaited(self) -> DirectReply:
        return self

    async def reply(self) -> Event:
        try:
            result = result_of(self)
            if self._is_floats:
                return {"type": "websocket.send", "bytes": dump_floats(result.prediction)}
            reply = convert.step_json(result)
            return _text_frame(await in_slices(write(reply)) if result.prediction.is_large else dump(reply))
        except Exception as error:  # noqa: BLE001 - a frame's error is its answer
            told = conceal(error)
            self.outcome = outcome_of(told)
            return _problem_frame(told)


def _is_end(event: Event) -> bool:
    return bool(event["type"] != "websocket.receive")


def _text_frame(text: bytes) -> Event:
    return {"type": "websocket.send", "text": text.decode()}


def _problem_frame(error: TidegateError) -> Event:
    return _text_frame(problem(error).body)


def _closing(error: TidegateError) -> Event:
    code = GOING_AWAY if error.reason == "DRAINING" else CLOSE_CODES + problem(error).status
    return {"type": "websocket.close", "code": code, "reason": error.reason}


async def _reject(scope: Scope, send: Send) -> None:
    """Answer who asks for a WebSocket where there is none."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close"})
        return
    told = "WebSockets are at /v1/stream and /v1/sessions/{session}/stream"
    answer = problem(NotFoundError(told, reason="NO_SUCH_PATH"))
    headers = [(b"content-type", PROBLEM.encode()), (b"content-length", b"%d" % len(answer.body))]
    await send({"type": "websocket.http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": answer.body})
